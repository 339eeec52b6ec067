"""Representations that were computed elsewhere, brought to the images of a set: by their ids, or in their order.

Knows nothing about what made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

import torch
from torch import Tensor

from rcdm_fast import maps, storage
from rcdm_fast.config import MAX_WIDTH, ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.data.random_access import Given, Source
from rcdm_fast.doors import path, printable

BESIDE = ".paths.json"  # what `rcdm encode` calls the list of a file's photographs, in place of .npy


def read(given: Given, data: ImageSet) -> Tensor:
    """A representation for every image of a set.

    Where they have ids (``ids`` or ``paths`` in an .npz or .safetensors, a column of a table, NAME.paths.json beside
    NAME.npy), each image takes the one whose id is its path or the end of its path, with or without the extension.
    Otherwise they are in the images' order, and there are as many.

    Args:
        given: .npy, .npz, .safetensors, a table with a column of representations, or a tensor or array [N,D]; maps
            [N,C,h,w], or tokens [N,L,C] of a square grid without class token.
        data: the images.

    Returns:
        float32 [N,D], of maps and tokens [N,C,h,w].

    Raises:
        ConfigError: no representations, another number of them than of images, images without one, widths that
            differ, or ids that are there twice.
        ImageError: one that is not finite.
        StorageError: a file that cannot be read.
    """
    source = random_access.find(given, ("representation",))
    if source.kind != "representation":
        raise ConfigError(f"{source.name}: expected representations float [N,D], these are {source.kind}s")
    ids = _ids(given, source)
    if ids is not None:
        order = _order(ids, data, source.name)
    elif len(source) != len(data):
        left_out = f"; {len(data.skipped)} images could not be read" if data.skipped else ""
        raise ConfigError(
            f"{source.name}: {len(source)} representations for {len(data)} images{left_out}; give as many in their "
            "order, or ids of the images beside them (paths in an .npz)"
        )
    else:
        order = list(range(len(data)))
    rows = [source.read(place) for place in order]
    widths = sorted({len(row) for row in rows if isinstance(row, Tensor)})
    if len(widths) != 1 or not 0 < widths[0] <= MAX_WIDTH:
        raise ConfigError(f"{source.name}: representations of {', '.join(map(str, widths))} dimensions")
    h = torch.stack([row for row in rows if isinstance(row, Tensor)])
    return maps.shaped(h, getattr(source, "map_shape", ()))


def _ids(given: Given, source: Source) -> list[str] | None:
    """What the rows are called; None where they have numbers only."""
    found = [source.id(place) for place in range(len(source))]
    if found != [str(place) for place in range(len(found))]:
        return found
    if not isinstance(given, str) and not hasattr(given, "__fspath__"):
        return None
    file = path(given, ConfigError)
    beside = file.with_suffix(BESIDE)
    if file.suffix.lower() != ".npy" or not beside.is_file():
        return None
    listed = storage.read_json(beside)
    if not isinstance(listed, list) or len(listed) != len(source):
        raise ConfigError(f"{beside}: no list of the {len(source)} images of {file.name}")
    random_access.check_ids([str(each) for each in listed], str(beside))
    return [str(each) for each in listed]


def _order(ids: list[str], data: ImageSet, name: str) -> list[int]:
    """The row of every image."""
    whole = {each: place for place, each in enumerate(ids)}
    stems: dict[str, list[int]] = {}
    for place, each in enumerate(ids):
        stems.setdefault(_stem(each), []).append(place)
    order = [_row(str(image), whole, stems) for image in data.paths]
    missing = [str(image) for image, row in zip(data.paths, order, strict=True) if row is None]
    if missing or not order:
        shown = printable(", ".join(missing[:3]))
        raise ConfigError(
            f"{name}: {len(missing)} of {len(data)} images have no representation, such as {shown}; its ids are like "
            f"{printable(', '.join(ids[:3]))}"
        )
    found = [row for row in order if row is not None]
    if len(set(found)) < len(found):
        place = next(row for number, row in enumerate(found) if row in found[:number])
        raise ConfigError(f"{name}: id {printable(ids[place])} is that of several images")
    return found


def _row(image: str, whole: Mapping[str, int], stems: Mapping[str, list[int]]) -> int | None:
    """The row whose id is a path or the longest end of it that is one."""
    parts = PurePosixPath(image).parts
    ends = [image, *("/".join(parts[start:]) for start in range(len(parts)))]
    for end in ends:
        if end in whole:
            return whole[end]
    for end in ends:
        if (bare := _stem(end)) in whole:  # an id without extension may hold dots
            return whole[bare]
        if len(rows := stems.get(bare, [])) == 1:
            return rows[0]
    return None


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.name else name
