"""Photographs as callers give them, read one by one, with a say in what becomes of those that cannot be read.

What counts as an image, and how it is read, is `images.py`'s to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.images import ImageError, ImageSource, find_images, load_image, several_images

Images = ImageSource | Iterable[ImageSource]  # a path may be a folder's
OnBad = Callable[[int, str], None]


def several(given: Images) -> Tensor | list[Any]:
    """A batch float [N,3,H,W] in [-1,1], or image by image what `load_image` takes.

    A folder stands for its images in the order of their paths, also in a list.

    Raises:
        ImageError: nothing, or what holds no images.
    """
    if hasattr(given, "column_names"):
        raise ImageError(
            f"a {type(given).__name__} has several columns: give the one with the images, as in dataset['image']"
        )
    found = several_images(given)
    return found if isinstance(found, Tensor) else [each for single in found for each in _files(single)]


def _files(given: Any) -> list[Any]:
    if not isinstance(given, str | os.PathLike):
        return [given]
    path = doors.path(given, ImageError)
    return list(find_images(path)) if path.is_dir() else [given]


def load(found: list[Any], on_bad: OnBad | None = None) -> Iterator[tuple[int, Tensor]]:
    """(place, float32 [1,3,H,W] in [-1,1]) of every image that can be read.

    Args:
        found: images one by one, as from `several`.
        on_bad: told (place, reason) of one that cannot be read; without it that is an error, which says which one.

    Raises:
        ImageError: see above, or none of them can be read.
    """
    good = 0
    for place, single in enumerate(found):
        try:
            loaded = load_image(single)
        except (ImageError, OSError) as error:
            named = len(found) == 1 or isinstance(single, str | Path)
            reason = str(error) if named else f"image {place}: {error}"
            if on_bad is None:
                raise ImageError(reason) from error
            on_bad(place, reason)
            continue
        good += 1
        yield place, loaded
    if not good:
        raise ImageError(f"none of the {len(found)} images can be read")
