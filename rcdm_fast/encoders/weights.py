"""Local weights files for networks of other libraries: read safely, loaded strictly."""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rcdm_fast import state_dicts, storage
from rcdm_fast.doors import printable, said
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.encoders.sources import Source

WHERE = frozenset({"key", "prefix"})  # options that say where in a file the network is
OPTIONS = WHERE | {"weights"}  # of every family that can read a local file

log = logging.getLogger(__name__)

# First parts of the names of what self-supervised methods and classifiers train on top of a network.
_HEADS = re.compile(
    r"(fc|heads?|head_dist|classifier|proj\w*|pred\w*|prototypes?|expander|decoder\w*|mask_token|queue\w*|mlp_head|"
    r"last_layer|aux\w*|linear|logit_scale|loss\w*|criterion\w*)(\.|$)",
    re.IGNORECASE,
)


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
    """Networks made inside have the same random weights every time, in float32; what is outside is not touched."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """A file of `torch.save`, on the CPU, read without running code from it.

    Raises:
        EncoderError: missing or truncated, or it holds objects other than tensors, numbers, text and their containers.
    """
    try:
        return load_pickle(path)
    except pickle.UnpicklingError as error:
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown is None:
            raise EncoderError(f"{printable(path)}: not a weights file, or truncated") from error
        raise EncoderError(
            f"{printable(path)}: holds {printable(unknown[1])}, which could run code when opened; refused"
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything inside the unpickler
        raise EncoderError(f"{printable(path)}: not a readable weights file, or truncated ({said(error)})") from error


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """What `read_pickle` reads, with whatever the reader raises."""
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    packed = zipfile.is_zipfile(path)
    if packed:
        _check_claims(Path(path))
    with torch.serialization.safe_globals(_harmless()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)


def _check_claims(path: Path) -> None:
    """`torch.save` compresses nothing: what entries claim to hold must be in the file. Seen before memory is taken."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > size:
                raise ValueError(f"{entry.filename} claims {entry.file_size} bytes in a file of {size}")


def read(
    path: str | os.PathLike[str], names: Collection[str] = (), key: str | None = None, prefix: str | None = None
) -> dict[str, Tensor]:
    """The state dict of a network in a ``.safetensors`` file or a file of `torch.save`.

    Args:
        path: the file.
        names: what the network calls its tensors; without them the only dictionary of tensors is taken.
        key, prefix: where to look, as in `state_dicts.find`.

    Raises:
        EncoderError: a file that cannot be read or holds code, or that network is not in it, or several times.
        StorageError: a broken safetensors file.
    """
    saved = storage.read_tensors(path) if Path(path).suffix == ".safetensors" else read_pickle(path)
    try:
        found = state_dicts.find(saved, names, key, prefix)
    except state_dicts.NotFound as error:
        raise EncoderError(f"{printable(path)}: {error}; say with key= and prefix= where the weights are") from error
    if found.key or found.prefix:
        log.info("%s: weights taken at %s", path, found)
    return found.state


def load_into(module: nn.Module, source: Source, heads: Collection[str] = ()) -> None:
    """Find a network's weights in the file that ``weights=`` names, and copy them into it.

    All of its tensors must be there. Beside them there may be heads that were trained on top of it; anything else would
    belong to another network. The options ``key`` and ``prefix`` say where to look.

    Args:
        module: the network, without what is not to be loaded.
        source: the specification; its option ``weights`` is the file.
        heads: prefixes of tensors of a classifier that was taken out of the network.

    Raises:
        EncoderError: as `read`; or tensors are missing or do not fit.
        StorageError: a broken safetensors file.
    """
    path, expected = source.options["weights"], module.state_dict()
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    found = read(path, expected.keys(), source.options.get("key"), source.options.get("prefix"))
    own = {name.partition(".")[0] for name in expected}
    beside = {name for name in found if name not in expected and _is_head(name, own, heads)}
    if beside:
        log.info("%s: %d tensors of heads are not part of the encoder, such as %s", path, len(beside), min(beside))
    load(module, counters | {name: tensor for name, tensor in found.items() if name not in beside}, path)


def _is_head(name: str, own: Collection[str], heads: Collection[str]) -> bool:
    """Whether a tensor that the network does not have belongs to something that was trained on top of it."""
    if any(name == head or name.startswith(f"{head}.") for head in heads):
        return True
    return name.partition(".")[0] not in own and _HEADS.match(name) is not None


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
        text = text if len(text) <= 1000 else f"{text[:1000]}..."
        raise EncoderError(f"{where}: the weights do not fit the network. {text}") from error
