"""Model files that hold only what is their own, and name a file beside them for the rest.

A model that was adapted to another encoder has its base's decoder bit for bit: only the map from the representation
differs. Where both ship together, what they share is stored once. The base is named by its file's name, which lies in
the same folder, and by the checksum that the base's file carries of its tensors and metadata: another file of that name
is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.storage import StorageError

KEY = "rcdm_fast.base"  # metadata key: JSON with `file` and `checksum` of the base


def own(tensors: Mapping[str, Tensor], base: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that `base` does not hold with the same bits, and the metadata that names `base` for the others.

    Raises:
        StorageError: the base is missing, damaged, has no checksum, has tensors that the model has not, or is itself a
            file that needs a base.
    """
    held = _held(base)
    if foreign := sorted(held.keys() - tensors.keys()):
        raise StorageError(f"{base}: holds tensors that the new file's model has not, such as {foreign[0]}")
    kept = {name: tensor for name, tensor in tensors.items() if not _equal(held.get(name), tensor)}
    return kept, {KEY: json.dumps({"file": base.name, "checksum": _checksum(base)})}


def complete(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """All tensors of the file at `path`: its own, and those of the base that its metadata names, if it names one.

    Raises:
        StorageError: the base is not beside the file, is damaged, or is another one than when the file was written.
    """
    if KEY not in metadata:
        return dict(tensors)
    name, checksum = _named(metadata[KEY], path)
    base = path.parent / name
    if not base.is_file():
        raise StorageError(f"{path}: holds only what differs from {name}, which is not beside it")
    held = _held(base)
    if _checksum(base) != checksum:
        raise StorageError(f"{path}: holds only what differs from {name}, but the {name} beside it is another one")
    return {**held, **tensors}


def _named(text: str, path: Path) -> tuple[str, str]:
    """File name and checksum of a base."""
    try:
        found = json.loads(text)
        name, checksum = found["file"], found["checksum"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{path}: what it says about the file that it shares tensors with is unreadable") from error
    if not isinstance(name, str) or not isinstance(checksum, str) or Path(name).name != name or "\0" in name:
        raise StorageError(f"{path}: the file that it shares tensors with must be one beside it")
    return name, checksum


def _held(base: Path) -> dict[str, Tensor]:
    if KEY in storage.read_metadata(base):
        raise StorageError(f"{base}: holds only what differs from another file, so none can be based on it")
    return storage.read_tensors(base)


def _checksum(base: Path) -> str:
    found = storage.read_checksum(base)
    if found is None:
        raise StorageError(f"{base}: carries no checksum, so no other file can be based on it")
    return found


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
