"""Images of WebDataset shards: which members of tar archives they are, their labels, and where they lie.

A sample is what follows one another under the same key: the member's path up to the first dot of its last part, as
webdataset splits it. Its image is the member with nothing but an image's extension behind the key. Where there is
none, members whose names merely hold dots ("b.v2.jpg") are images of their own. What is left out is counted.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcdm_fast import folders
from rcdm_fast.data.readers import archives
from rcdm_fast.data.readers.archives import Archive, Member
from rcdm_fast.doors import door, printable
from rcdm_fast.images import IMAGE_EXTENSIONS, ImageError

log = logging.getLogger(__name__)

_FIRST = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
EXTENSIONS = (*_FIRST, *sorted({each[1:] for each in IMAGE_EXTENSIONS}.difference(_FIRST)), "img")
IMAGE_BYTES = 1 << 30  # of an image's file; 170 megapixels of 16 bits, uncompressed
_PACKED_BYTES = 1 << 28  # of one that has to be unpacked into memory
_ABOUT_BYTES = 1 << 20  # of what describes an image
_EXPANDED = 1_000_000  # shards that a pattern may mean
_ENDINGS = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


@dataclass(frozen=True)
class Piece:
    """A part of a file."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """Its bytes. Raises `ImageError`."""
        if self.size > IMAGE_BYTES:
            raise ImageError(f"{printable(self.path)}: an image of {self.size / 1e9:.1f} GB")
        return archives.pread(self.path, self.start, self.size, ImageError)


@dataclass(frozen=True)
class _Part:
    """A member of a sample: what stands behind the key, and what is known of its content."""

    behind: str
    member: Member
    content: Piece | bytes | ImageError


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        key: what it is called.
        content: where it lies, its bytes if the archive is compressed, or why it cannot be read.
        part: number of the archive, of several that were joined.
        about: members that may hold its label: .cls, .json.
    """

    key: str
    content: Piece | bytes | ImageError
    part: int
    about: tuple[_Part | None, _Part | None]

    def label(self) -> str | None:
        """Name of its class: what .cls holds, or "label" in .json, if that is a text or a number."""
        cls, described = (None if part is None else _about(part) for part in self.about)
        if cls is not None:
            return cls.decode("utf-8", "replace").strip()
        if described is None:
            return None
        try:
            with door(ImageError, "no JSON"):
                value = json.loads(described)
        except ImageError:
            return None
        found = value.get("label") if isinstance(value, dict) else None
        return str(found) if isinstance(found, str | int | float) else None


def is_shard(name: str) -> bool:
    """Whether a name is that of a tar archive, compressed ones included."""
    return name.lower().endswith(_ENDINGS)


def remote(shard: str) -> bool:
    """Whether a shard's name is a command or an address, and no path."""
    return "://" in shard or shard.startswith("pipe:")


def shards(pattern: str) -> list[str]:
    """The archives that a name means: itself if there is such a file, those in a folder, or those of a pattern.

    A pattern is what a person wrote: parts between "::", with {000..099} and {a,b}. What is found is never taken for
    a pattern.

    Raises:
        ImageError: there is none, some are missing, or the pattern means too many.
    """
    if os.path.isdir(pattern):
        found = [str(file) for file in folders.tree(Path(pattern)).files if is_shard(file.name)]
        if not found:
            raise ImageError(f"{printable(pattern)}: no .tar files here")
        return found
    if os.path.lexists(pattern):
        return [pattern]
    found = [name for part in pattern.split("::") for name in _expanded(part)]
    missing = [name for name in found if not remote(name) and not os.path.isfile(name)]
    if missing:
        shown = ", ".join(printable(name) for name in missing[:5])
        raise ImageError(f"{len(missing)} of {len(found)} shards are missing: {shown}")
    return found


def _expanded(pattern: str) -> list[str]:
    """All names that a pattern with braces means, in order."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, listed = braces.groups()
    if listed is not None:
        choices = listed.split(",")
    else:
        low, high, width = int(first), int(last), len(first) if first.startswith("0") or len(first) == len(last) else 0
        if abs(high - low) >= _EXPANDED:
            raise ImageError(f"{printable(pattern)}: means {abs(high - low) + 1} shards")
        step = 1 if high >= low else -1
        choices = [f"{number:0{width}d}" for number in range(low, high + step, step)]
    before, after = _expanded(pattern[: braces.start()]), _expanded(pattern[braces.end() :])
    if len(before) * len(choices) * len(after) > _EXPANDED:
        raise ImageError(f"{printable(pattern)}: means more than {_EXPANDED} shards")
    return [f"{start}{choice}{end}" for start in before for choice in choices for end in after]


def samples(source: Path | Any, name: str, left: Counter[str]) -> Iterator[Sample]:
    """The images of an archive, in order; members that are left out are counted in `left`, by their extension.

    Args:
        source: path of a file, or a stream with `read` and `close`.
        name: for messages.
        left: is added to.

    Raises:
        ImageError: the archive is damaged or missing.
    """
    archive = Archive(source, name, ImageError)
    known: dict[tuple[int, str], Member] = {}
    group: list[_Part] = []
    at: tuple[int, str] | None = None
    for member in archive:
        key, behind = _split(member.name)
        if member.kind == "other" or behind is None:
            continue
        held = member
        if member.kind == "link":  # a second name of a file that stands before it
            beside = posixpath.join(posixpath.dirname(member.name), member.link)
            targets = [(member.part, posixpath.normpath(name)) for name in (member.link, beside)]
            linked = next((known[target] for target in targets if target in known), None)
            if linked is None or not archive.direct:
                left["links"] += 1
                continue
            held = linked
        elif _is_image(behind):
            known[member.part, posixpath.normpath(member.name)] = member
        if at != (member.part, key) or any(part.behind == behind for part in group):
            yield from _images(group, at, left)
            at, group = (member.part, key), []
        group.append(_Part(behind, held, _content(archive, held, behind)))
    yield from _images(group, at, left)


def _split(name: str) -> tuple[str, str | None]:
    """Key, and what stands behind it without the first dot, in lower case; None for hidden names and those without."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or any(part.startswith(".") and part != ".." for part in parts):
        return name, None
    base, dot, behind = parts[-1].partition(".")
    return "/".join([*parts[:-1], base]), behind.lower() if dot else None


def _is_image(behind: str) -> bool:
    return behind.rpartition(".")[2] in EXTENSIONS


def _content(archive: Archive, member: Member, behind: str) -> Piece | bytes | ImageError:
    if member.kind == "sparse":
        return ImageError(f"{archive.name}: {printable(member.name)} is a file with holes")
    if archive.direct and archive.path is not None:
        return Piece(archive.path, member.start, member.size)
    if not _is_image(behind) and behind.rpartition(".")[2] not in ("cls", "json"):
        return b""
    if member.size > _PACKED_BYTES:
        return ImageError(f"{archive.name}: {printable(member.name)} has {member.size} bytes")
    return archive.content(member, _PACKED_BYTES)


def _images(group: list[_Part], at: tuple[int, str] | None, left: Counter[str]) -> Iterator[Sample]:
    """What is an image among the members of one sample."""
    if at is None:
        return
    number, key = at
    parts = {part.behind: part for part in group}
    whole = next((parts[name] for name in EXTENSIONS if name in parts), None)
    chosen = [whole] if whole is not None else [part for part in group if _is_image(part.behind)]
    for part in group:
        if part not in chosen and (not chosen or _is_image(part.behind)):
            left[f".{part.behind}"] += 1
    for part in chosen:
        own, _, _ = part.behind.rpartition(".")
        cls, described = (parts.get(f"{own}.{name}" if own else name) or parts.get(name) for name in ("cls", "json"))
        yield Sample(f"{key}.{own}" if own else key, part.content, number, (cls, described))


def _about(part: _Part) -> bytes | None:
    if isinstance(part.content, ImageError) or part.member.size > _ABOUT_BYTES:
        return None
    return part.content if isinstance(part.content, bytes) else part.content.read()


def report(name: str, left: Counter[str]) -> None:
    """Say in the log which members of shards are left out."""
    if left:
        listed = ", ".join(f"{count} {printable(what)}" for what, count in left.most_common(8))
        log.warning("%s: %d members left out: %s", printable(name), left.total(), listed)


@dataclass(frozen=True)
class Index:
    """N images.

    Attributes:
        shards: the archives.
        keys: of the samples; where two shards have the same, the archive's name stands before all of them.
        shard, offset, size: archive of each image, its first byte there, its bytes; int64 [N]. Offset -1: it cannot
            be read.
    """

    shards: tuple[Path, ...]
    keys: list[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def content(self, index: int) -> bytes:
        """An image file's bytes. Raises `ImageError` if it cannot be read."""
        path = self.shards[int(self.shard[index])]
        if self.offset[index] < 0:
            raise ImageError(f"{printable(path)}: {printable(self.keys[index])} is a file with holes")
        return Piece(path, int(self.offset[index]), int(self.size[index])).read()


def index(pattern: str, found: Sequence[Path] = ()) -> Index:
    """Look through all shards of a pattern, a folder or a file; `found`: the archives, if they are known.

    Raises:
        ImageError: shards that are missing, torn, compressed or not on this machine.
    """
    names = [str(path) for path in found] or shards(pattern)
    keys: list[str] = []
    where: list[str] = []
    places: list[tuple[int, int, int]] = []
    left: Counter[str] = Counter()
    for number, name in enumerate(names):
        path = Path(name)
        if remote(name) and not os.path.lexists(name):
            raise ImageError(f"{printable(name)}: a job reads uncompressed .tar files that lie on this machine")
        with door(ImageError, f"{printable(name)}: cannot be read"):
            if packed := archives.compression(path):
                raise ImageError(f"{printable(name)}: packed with {packed}; a job reads uncompressed .tar files")
        for sample in samples(path, name, left):
            keys.append(sample.key)
            where.append(f"{name}\0{sample.part}" if sample.part else name)
            good = isinstance(sample.content, Piece)
            piece = sample.content if isinstance(sample.content, Piece) else Piece(path, -1, 0)
            places.append((number, piece.start if good else -1, piece.size))
    report(pattern, left)
    columns = np.array(places, dtype=np.int64).reshape(-1, 3).T
    return Index(tuple(map(Path, names)), _distinct(keys, where), *(np.ascontiguousarray(each) for each in columns))


def _distinct(keys: list[str], where: list[str]) -> list[str]:
    """Keys with their archive's name before them, if archives share some: "part-1/cat", "joined/2/cat"."""
    archived = sorted(set(where))
    if len(set(keys)) == len(keys) or len(archived) == 1:
        return keys
    common = os.path.commonpath([os.path.dirname(os.path.abspath(each.partition("\0")[0])) for each in archived])
    named = {}
    for each in archived:
        path, _, part = each.partition("\0")
        shown = os.path.relpath(os.path.abspath(path), common).removesuffix(".tar").replace(os.sep, "/")
        named[each] = f"{shown}/{int(part) + 1}" if part else shown
    return [f"{named[each]}/{key}" for each, key in zip(where, keys, strict=True)]
