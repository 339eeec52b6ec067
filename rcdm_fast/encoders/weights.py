"""Local weights files for networks of other libraries: read safely, loaded strictly.

Knows nothing about the networks.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rcdm_fast import storage
from rcdm_fast.encoders.errors import EncoderError, reason

WRAPPERS = ("state_dict", "model")  # keys below which training scripts put the weights


def _harmless() -> list[Any]:
    """What training scripts store beside the weights; none of it runs code when it is unpickled."""
    allowed: list[Any] = [argparse.Namespace, collections.defaultdict, collections.Counter, set, np.dtype, np.ndarray]
    allowed += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    makers: tuple[Any, ...] = (np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0])
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
        allowed += [(maker, f"{module}.{maker.__name__}") for maker in makers]
    return allowed


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Networks made inside have the same random weights every time; the random state outside is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """A file of `torch.save`, on the CPU, read without running code from it.

    Raises:
        EncoderError: missing or truncated, or it holds objects other than tensors, numbers, text and their containers.
    """
    if not Path(path).is_file():
        raise EncoderError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown is None:
            raise EncoderError(f"{path}: not a weights file, or truncated") from error
        raise EncoderError(f"{path}: holds {unknown[1]}, which could run code when opened; refused") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise EncoderError(f"{path}: not a readable weights file, or truncated ({reason(error)})") from error


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state dict from a ``.safetensors`` file or a file of `torch.save`.

    A dictionary below ``state_dict`` or ``model`` is unwrapped, and a ``module.`` before every name is dropped.

    Raises:
        EncoderError: no state dict in it.
        StorageError: a broken safetensors file.
    """
    if Path(path).suffix == ".safetensors":
        return storage.read_tensors(path)
    found = read_pickle(path)
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(item, Tensor) for item in found.values()):
        raise EncoderError(f"{path}: holds no state dict (names and tensors)")
    state = dict(found)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def load(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy a state dict into a module, strictly. Raises `EncoderError` that names what is missing or does not fit."""
    with _explained(where):
        module.load_state_dict(state, strict=True)


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        text = " ".join(line if len(line) <= 300 else f"{line[:300]}..." for line in lines)
        raise EncoderError(f"{where}: the weights do not fit the network. {text}") from error
