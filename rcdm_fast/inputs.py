"""What callers give as photographs, as single ones: files, folders, images in memory, batches of them.

What counts as one image, and how it is read, is `images.py`'s to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rcdm_fast import images
from rcdm_fast.checks import described

One = str | os.PathLike[str] | Image.Image | Tensor | np.ndarray | Any  # a file (or a folder), or an image in memory
Pictures = One | Iterable[One]
OnBad = Callable[[int, str], None]


def singles(given: Pictures) -> list[One]:
    """Image by image; a folder stands for its images in the order of their paths.

    Raises:
        ImageError: nothing, or something that holds no images.
    """
    if isinstance(given, str | os.PathLike | Image.Image | bytes) or hasattr(given, "read"):
        found = list(_files(given))
    elif isinstance(given, Tensor | np.ndarray):
        found = list(given) if given.ndim == 4 else [given]
    elif hasattr(given, "column_names") or (isinstance(given, Mapping) and not isinstance(given, Set)):
        raise images.ImageError(
            f"{type(given).__name__} has several columns; give the one with the images, as in dataset['image']"
        )
    elif isinstance(given, Iterable) and not isinstance(given, Set):
        found = [each for item in given for each in _files(item)]
    else:
        raise images.ImageError(
            f"expected images (files, folders, PIL images, arrays or tensors), got {described(given)}"
        )
    if not found:
        raise images.ImageError("no pictures given")
    return found


def _files(given: One) -> Iterator[One]:
    if isinstance(given, str | os.PathLike) and Path(given).expanduser().is_dir():
        yield from images.find(Path(given).expanduser())
    else:
        yield given


def load(given: Pictures, on_bad: OnBad | None = None) -> Iterator[tuple[int, Tensor]]:
    """(place, image float32 [1,3,H,W] in [-1,1]) of every single one that can be read.

    Args:
        given: see `singles`.
        on_bad: told (place, reason) of one that cannot be read; without it that is an error, which says which one.

    Raises:
        ImageError: see above, or none of them can be read.
    """
    found, good = singles(given), 0
    for place, single in enumerate(found):
        try:
            loaded = images.load(single)
        except (images.ImageError, OSError) as error:
            named = isinstance(single, str | os.PathLike) or len(found) == 1
            reason = str(error) if named else f"item {place}: {error}"
            if on_bad is None:
                raise images.ImageError(reason) from error
            on_bad(place, reason)
            continue
        good += 1
        yield place, loaded
    if not good:
        raise images.ImageError(f"none of the {len(found)} images can be read")
