"""Items that are rows of an array: given in memory, or held by .npy, .npz and .safetensors files.

Knows nothing about other sources (`data/random_access.py`), nor how arrays lie in files (`arrays.py`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import doors, maps, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.items import Kind, check_ids
from rcdm_fast.data.readers import arrays
from rcdm_fast.data.readers.image_files import Item, is_levels, text
from rcdm_fast.doors import door
from rcdm_fast.images import ImageError, check_images, to_pil

log = logging.getLogger(__name__)

ARRAY_NAMES = ("representations", "representation", "h", "embeddings", "images", "labels", "x", "arr_0", "y", "arr_1")
_ID_NAMES = ("ids", "id", "paths", "names")


class Rows:
    """An array in memory or in a file: representations, images, or labels, by its shape and type.

    Of maps [N,C,h,w] and tokens [N,L,C] an item is its map's C h w numbers (`maps.py`).
    """

    def __init__(self, name: str, rows: Tensor | np.ndarray | arrays.Rows, ids: Sequence[str] | None = None) -> None:
        self.name, self._rows, self._ids = name, rows, ids
        self.kind: Kind = _kind_of(rows, name)
        if ids is not None:
            if len(ids) != len(rows):
                raise ConfigError(f"{name}: {len(ids)} ids for {len(rows)} rows")
            check_ids(ids, name)

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, index: int) -> str:
        """See `Source`."""
        return str(index) if self._ids is None else self._ids[index]

    def read(self, index: int) -> Image.Image | Tensor:
        """See `Source`."""
        row = self._rows[index]
        if self.kind == "representation":
            h = to_float32(row)
            h = (maps.of_tokens(h[None]) if self._tokens else h).reshape(-1)
            if not bool(h.isfinite().all()):
                raise ImageError(f"{self.name}, item {self.id(index)}: the representation is not finite")
            return h
        if self.kind == "label":
            with door(ImageError, f"{self.name}, item {self.id(index)}: no usable label"):
                return torch.tensor(int(row.reshape(-1)[0]), dtype=torch.int64)
        if isinstance(row, Tensor) and row.is_floating_point():
            return to_pil(check_images(row[None])[0])
        return Item(Path(self.name) / str(index), None, np.asarray(row)).image()

    @property
    def _tokens(self) -> bool:
        return self.kind == "representation" and len(self._rows.shape) == 3 and 1 not in self._rows.shape[1:]

    @property
    def map_shape(self) -> tuple[int, ...]:
        """(C,h,w) of maps; empty for anything else."""
        shape = tuple(self._rows.shape[1:])
        if self._tokens:
            side = math.isqrt(shape[0])
            return shape[1], side, side
        is_map = self.kind == "representation" and len(shape) == 3 and shape[1] * shape[2] > 1 and shape[0] > 0
        return shape if is_map and sum(side != 1 for side in shape) > 1 else ()

    def width(self) -> int | None:
        """See `Source`."""
        return math.prod(self._rows.shape[1:]) if self.kind == "representation" else None

    def content(self, index: int) -> bytes:
        """See `Source`."""
        row = self._rows[index]
        if isinstance(row, Tensor):
            return row.contiguous().view(torch.uint8).numpy().tobytes() if row.ndim else str(int(row)).encode()
        return np.ascontiguousarray(row).tobytes()


def to_float32(row: Tensor | np.ndarray) -> Tensor:
    """A copy; what is too large becomes infinite."""
    if isinstance(row, Tensor):
        return row.to(torch.float32, copy=True)
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(row, dtype=np.float32))


def _known_kind(rows: Tensor | np.ndarray | arrays.Rows) -> Kind | None:
    """What rows are; sides of one beside a representation's or a label's are of no account.

    Floats [N,C,h,w] are maps, unless there are three colors; [N,L,C] are tokens of a square grid.
    """
    shape = tuple(rows.shape)
    if isinstance(rows, Tensor):
        floating = rows.is_floating_point()
        whole = not floating and not rows.is_complex() and rows.dtype != torch.bool
    else:
        floating, whole = rows.dtype.kind == "f", rows.dtype.kind in "iu"  # numpy calls durations integers
    if 0 in shape[1:]:
        return None
    if floating and len(shape) > 1 and sum(side != 1 for side in shape[1:]) <= 1 and len(shape) < 6:
        return "representation"
    if is_levels(rows) or (isinstance(rows, Tensor) and floating and len(shape) == 4 and 3 in (shape[1], shape[3])):
        return "image"
    if floating and len(shape) == 4 and 3 not in (shape[1], shape[3]):
        return "representation"
    if floating and len(shape) == 3 and math.isqrt(shape[1]) ** 2 == shape[1]:
        return "representation"
    if whole and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        return "label"
    return None


def _kind_of(rows: Tensor | np.ndarray | arrays.Rows, name: str) -> Kind:
    kind = _known_kind(rows)
    if kind is None:
        expected = (
            "representations float [N,D] (maps [N,C,h,w], tokens [N,L,C] of a square grid), images uint8 [N,H,W,3] or "
            "[N,3,H,W], or labels int [N]"
        )
        raise ConfigError(f"{name}: expected {expected}, got {rows.dtype} {list(rows.shape)}")
    return kind


def array_file(path: Path, wanted: Sequence[Kind] = ()) -> Rows:
    """The rows of .npy, .npz or .safetensors that are wanted, and their ids. Raises `StorageError`, `ConfigError`."""
    name = doors.printable(path)
    held: Mapping[str, Any]
    if path.suffix.lower() == ".safetensors":
        held, about = storage.read_tensors(path), storage.read_metadata(path)
        with door(storage.StorageError, f"{name}: its ids cannot be read"):
            ids = next((_texts(json.loads(about[each])) for each in _ID_NAMES if each in about), None)
        return Rows(name, _chosen(held, wanted, name), ids)
    held = arrays.read(path, storage.StorageError)
    if "" in held:
        return Rows(name, held[""])
    rows = _chosen(held, wanted, name)
    return Rows(name, rows, _ids(held, len(rows), name))


def _texts(ids: Any) -> list[str]:
    if not isinstance(ids, list) or not all(isinstance(each, str | int) for each in ids):
        raise ValueError("they are no list of texts")
    return [doors.escaped(str(each)) for each in ids]


def _ids(held: Mapping[str, Any], count: int, name: str) -> list[str] | None:
    """The first array of ids; "names" may be those of classes, and then they are none."""
    for key in _ID_NAMES:
        if key not in held or held[key].dtype.kind not in "SUiu":
            continue
        found = [doors.escaped(text(each)) for each in held[key]]
        if key == "names" and len(set(found)) != count:
            log.warning("%s: %r are not as many as rows, or the same for several, and so no ids", name, key)
            continue
        return found
    return None


def _chosen(held: Mapping[str, Any], wanted: Sequence[Kind], name: str) -> Any:
    """The array with a usual name that is of a wanted kind, or the only one at all that is."""
    kinds = wanted or ("representation", "image", "label")
    usual = [key for key in ARRAY_NAMES if key in held]
    if not usual and not wanted:
        kinds = ("representation", "image")
    fits = [key for key in usual if _known_kind(held[key]) in kinds]
    if not wanted and fits:  # labels beside images are about them
        fits.sort(key=lambda key: _known_kind(held[key]) == "label")
    if not fits:
        others = [key for key in held if key not in ARRAY_NAMES and key not in _ID_NAMES]
        fits = [key for key in others if _readable_kind(held, key) in kinds]
        fits = fits if len(fits) == 1 else []
    if fits:
        return held[fits[0]]
    if usual:
        return held[usual[0]]
    known = doors.printable(", ".join(held))
    raise ConfigError(f"{name}: no array called {' or '.join(ARRAY_NAMES)}; there are {known}")


def _readable_kind(held: Mapping[str, Any], key: str) -> Kind | None:
    try:
        return _known_kind(held[key])
    except storage.StorageError:  # an array that nobody asked for
        return None
