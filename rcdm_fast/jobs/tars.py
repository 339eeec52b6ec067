"""Where the pictures of WebDataset shards lie: found once in the archives' heads, then read at any place.

Knows nothing about what the pictures are for.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from rcdm_fast import images
from rcdm_fast.training import source_kinds


@dataclass(frozen=True)
class Index:
    """N pictures.

    Attributes:
        shards: the archives.
        keys: of the samples.
        shard, offset, size: archive of each picture, its first byte there, its bytes; int64 [N].
    """

    shards: tuple[Path, ...]
    keys: list[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def content(self, place: int) -> bytes:
        """A picture file's bytes. Raises `images.ImageError` if the archive cannot be read any more."""
        path = self.shards[int(self.shard[place])]
        try:
            with open(path, "rb") as file:
                file.seek(int(self.offset[place]))
                return file.read(int(self.size[place]))
        except OSError as error:
            raise images.ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def index(pattern: str) -> Index:
    """Look through all shards of a pattern, a folder or a file.

    Raises:
        images.ImageError: shards that are missing, torn, compressed or not on this machine.
    """
    names = source_kinds.Shards(pattern).shards()
    keys: list[str] = []
    places: list[tuple[int, int, int]] = []
    for number, name in enumerate(names):
        if source_kinds.remote(name) or not name.endswith(".tar"):
            raise images.ImageError(f"{name}: a job reads uncompressed .tar files that lie on this machine")
        path = Path(name)
        if not path.is_file():
            raise images.ImageError(f"{path}: no such file")
        if not source_kinds.ended(path):
            raise images.ImageError(f"{path}: damaged: the end of the archive is missing")
        try:
            with tarfile.open(path, "r:") as archive:
                taken = ""
                for member in archive:
                    key, _, extension = _split(member.name)
                    if member.isfile() and key != taken and extension.lower() in source_kinds.SHARD_EXTENSIONS:
                        taken = key
                        keys.append(key)
                        places.append((number, member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise images.ImageError(f"{path}: damaged ({error})") from error
    columns = np.array(places, dtype=np.int64).reshape(-1, 3).T
    return Index(tuple(map(Path, names)), keys, *(np.ascontiguousarray(each) for each in columns))


def _split(name: str) -> tuple[str, str, str]:
    """Key and extension of a member: the base name up to its first dot, as webdataset splits it."""
    path = PurePosixPath(name)
    base, dot, extension = path.name.partition(".")
    return (str(path.parent / base) if str(path.parent) != "." else base), dot, extension
