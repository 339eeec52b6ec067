"""Images for training from any source: read by a pool of threads, resized, gathered in memory or in a store on disk.

What cannot be read as an image is skipped, counted and listed. What a person writes may mean a pattern, a command or
an address; a name that was found never does, and where there is a file of exactly the name that was written, that file
is meant.

Knows nothing about formats (`data/readers/images.py`) or training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.data import image_set, world
from rcdm_fast.data.block_file import Block, PixelStore
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.data.originals import Originals
from rcdm_fast.data.readers import hugging_face, tables, tars
from rcdm_fast.data.readers.image_files import (
    Arrays,
    Folder,
    Item,
    Several,
    Shards,
    Source,
    Tables,
    contents,
    is_archive,
)
from rcdm_fast.doors import escaped, printable
from rcdm_fast.images import IMAGE_EXTENSIONS, ImageError, fit_images, several_images, to_uint8
from rcdm_fast.storage import StorageError

log = logging.getLogger(__name__)

BLOCK = 2048  # items decoded before they are handed on together


def open_data(source: str | Path, size: int, *, store: str | Path | None = None, workers: int = 8) -> ImageSet:
    """All images of a source at `size` x `size` pixels (short side resized, center crop).

    Args:
        source: a folder of images (first-level sub-folders are classes; linked ones count) or one image; an .npy
            or .npz file of uint8 [N,H,W,3], [N,3,H,W] or [N,H,W] (.npz: under "images", "x" or "arr_0", labels under
            "labels", "y" or "arr_1"); WebDataset shards: a .tar file, a folder of them, a pattern as in
            ``train-{000..099}.tar``, or ``wds:`` and anything that webdataset opens (commands are run, so only what
            was written by hand may begin so); Parquet, Arrow or CSV files, or a folder of them, with a column of
            images or of their paths; a Hugging Face dataset: a folder written by save_to_disk, or
            ``hf:NAME_OR_FOLDER?split=train&image=img&label=label&name=CONFIGURATION``; a world of known truth,
            ``world:shapes?count=20000&size=32&seed=0`` (`world.py`). Where there is a file of exactly that name, it is
            meant.
        size: pixels.
        store: folder for the decoded images, which are then mapped into memory and not loaded; reading goes on
            there after an interruption, and the same source is read only once. Without it they are kept in memory.
        workers: threads that decode.

    Raises:
        ImageError: no such source, a shard is missing or damaged, or nothing could be read as an image.
        StorageError: the store cannot be written, or the source has changed since it was read in part.
    """
    name = str(source)
    if store is not None:
        with PixelStore(store, {"source": name, "size": size}) as kept:
            if not kept.complete:
                _fill(find(source), name, kept, size, workers)
            return _reported(kept.open(_Later(source)), name)
    found, memory = find(source), _Memory()
    _fill(found, name, memory, size, workers)
    return _reported(memory.open(found), name)


def of_array(images: np.ndarray | Tensor, size: int) -> ImageSet:
    """Images in memory as a set of size x size pixels, without labels.

    Args:
        images: uint8 [N,H,W,3], or float [N,3,H,W] in [-1,1].
        size: pixels.

    Raises:
        ImageError: no batch of images, or an empty one.
    """
    batch = several_images(images)
    if not isinstance(batch, Tensor) or not len(batch):
        raise ImageError(f"expected images uint8 [N,H,W,3] or float [N,3,H,W], got {list(images.shape)}")
    pixels = torch.cat([to_uint8(fit_images(part.cpu(), size)) for part in batch.split(BLOCK)]).contiguous()
    given = _Given(batch)
    paths = tuple(given.path(number) for number in range(len(pixels)))
    originals = None
    if tuple(batch.shape[-2:]) != (size, size):
        places = torch.arange(len(pixels))
        originals = Originals(given, places, torch.ones(len(pixels), dtype=torch.bool), [str(path) for path in paths])
    return ImageSet(pixels, None, (), paths, image_set.fingerprint(pixels, None), originals=originals)


@dataclass(frozen=True)
class _Given:
    """Images that are in memory; float [N,3,H,W] in [-1,1]."""

    batch: Tensor

    def path(self, number: int) -> Path:
        """What an image of them is called."""
        return Path("(given)") / str(number)

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        for number, image in enumerate(self.batch):
            yield Item(self.path(number), None, image.detach().cpu()[None])


@dataclass(frozen=True)
class _Later:
    """A source that is looked for when it is read."""

    name: str | Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        yield from find(self.name).items()


def find(source: str | Path) -> Source:
    """The source that a name means. Raises `ImageError`."""
    name = os.fspath(source)
    if not os.path.lexists(name):
        if name.startswith("wds:"):
            return Shards(name.removeprefix("wds:"), remote=True)
        if name.startswith("hf:"):
            return hugging_face.find(name.removeprefix("hf:"))
        if name.startswith(world.PREFIX):
            return world.find(name.removeprefix(world.PREFIX))
    path = doors.path(source, ImageError)
    if path.suffix.lower() in (".npy", ".npz"):
        return Arrays(path)
    if path.suffix.lower() in tables.NAMED_EXTENSIONS:
        return Tables((path,))
    if path.is_dir():
        return hugging_face.Saved(path) if hugging_face.is_saved(path) else _folder(path)
    if path.is_file() and path.suffix.lower() in IMAGE_EXTENSIONS:
        return Folder(path.parent, (path,))
    if tars.is_shard(path.name) or (path.is_file() and is_archive(path)) or "{" in name:
        return Shards(str(path))
    if path.is_file():
        return Folder(path.parent, (path,))
    raise ImageError(f"{printable(path)}: no such folder or file")


def _folder(root: Path) -> Source:
    found = contents(root)
    if found.images and found.shards:
        return Several((Folder(root, found.images), Shards(str(root), found.shards)))
    if found.shards:
        return Shards(str(root), found.shards)
    if found.tables:
        return Tables(found.tables)
    if not found.images:
        looked = ", ".join(sorted(IMAGE_EXTENSIONS))
        raise ImageError(f"{printable(root)}: no images here (looked for {looked}, shards and tables)")
    return Folder(root, found.images)


class _Memory:
    """Takes blocks of images and keeps them."""

    def __init__(self) -> None:
        self.read = 0
        self._blocks: list[Block] = []

    def names(self) -> dict[int, str]:
        return {}

    def append(self, block: Block) -> None:
        self._blocks.append(block)

    def finish(self) -> None:
        return

    def open(self, source: Source) -> ImageSet:
        blocks = self._blocks
        pixels = torch.from_numpy(np.concatenate([block.pixels for block in blocks]))
        labels, classes = image_set.number_labels([label for block in blocks for label in block.labels])
        names = [path for block in blocks for path in block.paths]
        skipped = tuple(line for block in blocks for line in block.skipped)
        other = torch.tensor([each for block in blocks for each in block.other], dtype=torch.bool)
        originals = None
        if bool(other.any()):
            places = torch.tensor([place for block in blocks for place in block.places])
            originals = Originals(source, places, other, names)
        marks = image_set.fingerprint(pixels, labels)
        return ImageSet(pixels, labels, classes, tuple(map(Path, names)), marks, skipped, originals=originals)


def _fill(source: Source, name: str, target: _Memory | PixelStore, size: int, workers: int) -> None:
    """Decode what `target` has not seen yet and hand it over, block by block."""
    kept, read = target.read > 0, target.read
    rest = source.items()
    _go_behind(rest, name, target)
    with ThreadPoolExecutor(workers) as pool:
        while block := list(islice(rest, BLOCK)):
            results = list(pool.map(lambda item: _decoded(item, size), block))
            good = [
                (place, item, found)
                for place, (item, found) in enumerate(zip(block, results, strict=True), read)
                if not isinstance(found, str)
            ]
            skipped = [escaped(found) for found in results if isinstance(found, str)]
            for line in skipped:
                log.warning("skipped: %s", line)
            pixels = np.stack([found for _, _, (found, _) in good]) if good else np.empty((0, 3, size, size), np.uint8)
            paths = [escaped(str(item.path)) for _, item, _ in good]
            labels = [None if item.label is None else escaped(item.label) for _, item, _ in good]
            places, other = [place for place, _, _ in good], [resized for _, _, (_, resized) in good]
            target.append(Block(pixels, labels, paths, places, other, skipped))
            kept, read = True, read + len(block)
    if not kept:
        raise ImageError(f"{printable(name)}: no images in it")
    target.finish()


def _go_behind(items: Iterator[Item], name: str, target: _Memory | PixelStore) -> None:
    """Leave out what `target` has read. Raises `StorageError` if the source has changed since, as far as names tell."""
    known = target.names() if target.read else {}
    walked = 0
    for place, item in zip(range(target.read), items, strict=False):
        walked += 1
        found = escaped(str(item.path))
        if known.get(place, found) != found:
            raise StorageError(
                f"{printable(name)} has changed since reading was interrupted (item {place} was "
                f"{printable(known[place])}, is {printable(found)}); delete the store"
            )
    if walked < target.read:
        raise StorageError(
            f"{printable(name)} has changed since reading was interrupted ({target.read} items were read, there are "
            f"{walked}); delete the store"
        )


def _decoded(item: Item, size: int) -> tuple[np.ndarray, bool] | str:
    try:
        return item.pixels(size)
    except ImageError as error:
        return str(error)


def _reported(found: ImageSet, name: str) -> ImageSet:
    if not len(found):
        raise ImageError(f"{printable(name)}: none of {len(found.skipped)} items could be read as an image")
    if found.skipped:
        log.warning("%s: %d of %d items skipped", name, len(found.skipped), len(found) + len(found.skipped))
    return found
