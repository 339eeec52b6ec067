"""What `rcdm sample` and `rcdm encode` are given: photographs, folders of them, files of arrays; one bad one of many.

As in `rcdm generate`, an item that cannot be read is left out, listed, and keeps its place: the others' noise, and the
names of their files, do not depend on it. The exit code is then 3.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rcdm_fast.cli import common
from rcdm_fast.cli.generate import QUARANTINED

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from rcdm_fast.model import Model

ARRAYS = (".npy", ".npz", ".safetensors")
_LISTED = 20  # items left out that are named on the terminal


@dataclass
class Row:
    """One item: its place among all that were given, what it is called, and the photograph if it is one."""

    place: int
    name: str
    photo: Image.Image | None = None


@dataclass
class Rows:
    """The items that could be read, with their representations [N,D] on the CPU, and why others could not."""

    rows: list[Row] = field(default_factory=list)
    representations: list[Tensor] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def h(self) -> Tensor:
        """float32 [N,D]."""
        import torch

        return torch.stack(self.representations)

    def finish(self) -> None:
        """End with exit code 3 if anything was left out."""
        if self.left_out:
            raise typer.Exit(QUARANTINED)


def expand(given: Sequence[Path]) -> list[Path]:
    """Files, and the images of folders. Raises `ImageError`."""
    from rcdm_fast.images import expand_paths

    return [path for each in given for path in ([each] if _is_array(each) else expand_paths([each]))]


def read(model: Model, paths: Sequence[Path], photos: int = 0) -> Rows:
    """Read item by item and encode in groups; the first `photos` photographs are kept.

    Raises:
        ImageError: nothing can be read.
        ConfigError, StorageError: a file of arrays that the model cannot take, or that is damaged.
    """
    from rcdm_fast.encoders import groups
    from rcdm_fast.images import ImageError

    found = Rows()
    if model.config.unet.representation_dim and not all(map(_is_array, paths)):
        assert model.encoder is None or model.encoder.dim  # built now: that it cannot be built is no item's fault
    count = 0
    items = enumerate(_items(model, paths))
    with common.bar(len(paths), "files") as bar:
        while group := list(islice(items, groups.GROUP)):
            count += len(group)
            _read_group(model, group, found, photos)
            bar.update(min(len(group), bar.total - bar.n))  # a file of arrays has more items than one
    for reason in found.left_out[:_LISTED]:
        print(f"left out: {_printable(reason)}", file=sys.stderr)
    if len(found.left_out) > _LISTED:
        print(f"left out: {len(found.left_out) - _LISTED} more", file=sys.stderr)
    if not found.rows:
        raise ImageError(f"none of the {count} items can be read; the first: {found.left_out[0]}")
    return found


def end(given: Path) -> tuple[str, Image.Image | Tensor]:
    """One end of an interpolation, and its name: a photograph, or a row of a file of representations.

    A row is named by its number or its id, as in h.npy:3 or h.npz:cat.jpg; a file with one row needs no name.

    Raises:
        ImageError: no image, or a representation that is not finite.
        ConfigError, StorageError: no such row, or a file that cannot be read.
    """
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data import random_access
    from rcdm_fast.images import open_image

    head, colon, wanted = str(given).rpartition(":")
    named = bool(colon) and not given.exists() and _is_array(Path(head))
    file = Path(head) if named else given
    if not _is_array(file):
        return given.name, open_image(given)
    source = random_access.find(file, ("representation",))
    if source.kind != "representation":
        raise ConfigError(f"{file}: expected representations, these are {source.kind}s")
    ids = {source.id(place): place for place in range(len(source))}
    if not named and len(source) != 1:
        raise ConfigError(
            f"{file} has {len(source)} representations: say which, as in {file}:0 or {file}:{list(ids)[-1]}"
        )
    place = 0 if not named else ids.get(wanted)
    if place is None and wanted.isdecimal() and int(wanted) < len(source):
        place = int(wanted)
    if place is None:
        raise ConfigError(f"{file} has no representation {_printable(wanted)}; there are {len(source)}")
    h: Any = source.read(place)
    return f"{file.name}:{source.id(place)}", h


def _read_group(model: Model, group: list[tuple[int, tuple[str, Any]]], found: Rows, photos: int) -> None:
    """Read and encode a few items, and add them to what was found."""
    import torch

    from rcdm_fast.encoders import EncoderError, groups
    from rcdm_fast.images import ImageError

    read: dict[int, Any] = {}
    views: dict[int, Tensor] = {}
    bad: dict[int, str] = {}
    for place, (_, item) in group:
        try:
            value = item()
            if _is_image(value):
                views[place] = model.view(value)
                value = value if len(found.rows) + len(read) < photos else None
            read[place] = value
        except (ImageError, EncoderError, OSError) as error:
            bad[place] = str(error)
    encoded: dict[int, Tensor] = {}
    if views:
        assert model.encoder is not None, "a view was made by it"
        rows = groups.encode(model.encoder, torch.cat(list(views.values())), list(views), bad)
        encoded = dict(zip(views, rows, strict=True))
    for place, (name, _) in group:
        if place in bad:
            found.left_out.append(bad[place])
            continue
        photo = read[place] if place in views else None
        found.rows.append(Row(place, name, photo))
        found.representations.append((encoded[place] if place in views else read[place]).float().cpu())


def _items(model: Model, paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Name of every item, and what reads it."""
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data import random_access
    from rcdm_fast.images import open_image
    from rcdm_fast.jobs import feed

    for path in paths:
        if not _is_array(path):
            yield str(path), lambda path=path: open_image(path)
            continue
        source = random_access.find(path)
        if source.kind not in ("representation", "image"):
            raise ConfigError(f"{path}: expected representations or images, these are {source.kind}s")
        feed.check_kind(model, source)
        for place in range(len(source)):
            name = source.id(place)
            yield (f"{path.stem}-{name}" if name == str(place) else name), lambda s=source, p=place: s.read(p)


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in ARRAYS


def _is_image(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _printable(text: str) -> str:
    """One line that any terminal takes."""
    from rcdm_fast import doors

    return doors.printable(" ".join(text.split()))
