"""Weights in and out: native safetensors files, published-format `.pt` files, names, and the Hugging Face hub.

Whatever the source, the result is a `ModelConfig` and float32 tensors on the CPU, finite and fitting the network that
it describes tensor by tensor. Nothing pickled is ever run.

Knows nothing about devices, engines or encoders (`model.py` puts a model together).
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import config as configs
from rcdm_fast import doors, downloads, state_dicts, storage
from rcdm_fast.config import ConfigError, ModelConfig, UNetConfig
from rcdm_fast.encoders.native import METADATA_KEY as ENCODER_KEY
from rcdm_fast.encoders.weights import load_pickle
from rcdm_fast.errors import RcdmError
from rcdm_fast.models import diffusers_folder, hub, shared, zoo
from rcdm_fast.models.flags import FlagSource, FlagValue, configs_from_flags, read_flags
from rcdm_fast.models.infer_flags import RELEASE_FLAGS, recognize
from rcdm_fast.models.unet import UNet
from rcdm_fast.models.zoo import KnownModel as KnownModel
from rcdm_fast.models.zoo import list_bundled as list_bundled
from rcdm_fast.models.zoo import model_names as model_names

log = logging.getLogger(__name__)

NATIVE_FILE = hub.FILE  # in a folder or a hub repository

_WEIGHT_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_SHOWN = 3  # tensor names per message
_MARKS = ("time_embed.0.weight", "time_embed.2.weight", "input_blocks.0.0.weight", "out.2.weight")  # of every network
_SMALL = 10_000_000  # parameters of a network that can be compared name by name, whatever the file lacks


class CheckpointError(RcdmError, ValueError):
    """Weights that are unknown, damaged, foreign, or do not fit their description; the message names the file."""


def load_model(
    source: str | os.PathLike[str], flags: FlagSource | None = None, sha256: str | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Find and read a model.

    A bundled or published name comes first, then an existing file or folder, then a hub id; a path object is always a
    path. A published release is downloaded once into the cache.

    Args:
        source: a name (`model_names`), a native ``.safetensors`` file or a folder with ``model.safetensors``, a
            published-format ``.pt`` (a bare state dict, or one inside what a training script saved: DataParallel,
            torch.compile, Lightning, averaged weights), or a hub id ``org/name`` (a repository with
            ``model.safetensors``).
        flags: published flags of a ``.pt``, or the path of a JSON file of them; what they leave out is read off the
            tensors. Without flags only the published layouts are recognized in full.
        sha256: hex digest that the model's file must have; a downloaded file without it has to stay what it was when
            it was first seen.

    Returns:
        The configuration, and float32 tensors by name, ready for a strict load into ``UNet(config.unet)``. What was
        recognized of a ``.pt`` is logged and kept in ``config.info["flags_recognized"]``.

    Raises:
        CheckpointError: no such model; a truncated, foreign or pickled-code file; flags that contradict the tensors;
            missing, unexpected or misshapen tensors; NaN or infinite weights; another digest than `sha256`.
        ConfigError: flags that are unknown or malformed, or a `sha256` that is none.
        downloads.DownloadError: a release that cannot be fetched.
    """
    given = None if flags is None else read_flags(flags)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"a SHA-256 has 64 hexadecimal digits, got {sha256!r}")
    if isinstance(source, str):
        if source in list_bundled():
            return _load_path(zoo.bundled_path(source), given, sha256)
        if source in zoo.RELEASES:
            return _load_release(source, given, sha256)
        if not source or not doors.path(source, CheckpointError).exists():
            return _load_elsewhere(source, given, sha256)
    return _load_path(doors.path(source, CheckpointError), given, sha256)


def save_model(
    path: str | os.PathLike[str],
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    base: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a native model file, atomically: tensors as `dtype`, the configuration as JSON in the metadata.

    Args:
        path: a ``.safetensors`` file, or a folder that gets ``model.safetensors``.
        config: what the file says about itself.
        state_dict: the tensors of ``UNet(config.unet)``.
        dtype: torch.float32, bfloat16 or float16 on disk; loading gives float32 again.
        base: a native file in the same folder, of a model that shares tensors with this one: what it holds with the
            same bits is not written again, and the new file is read together with it.

    Returns:
        The file written.

    Raises:
        CheckpointError: the tensors do not fit the configuration, or are not finite as `dtype`; `base` is in another
            folder.
        StorageError: the file cannot be written, or `base` is no file that another can share tensors with.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target / NATIVE_FILE
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in state_dict.items()}
    _check_fit(config.unet, tensors, str(target))
    _check_finite(tensors, f"{target} (as {str(dtype).removeprefix('torch.')})")
    described = {zoo.MODEL_KEY: configs.to_json(config)}
    if base is not None:
        if Path(base).parent.resolve() != target.parent.resolve() or Path(base).name == target.name:
            raise CheckpointError(f"{base}: a file that {target.name} shares tensors with must lie beside it")
        tensors, named = shared.own(tensors, Path(base))
        described |= named
    storage.save_tensors(target, tensors, described)
    return target


def _load_path(
    path: Path, flags: Mapping[str, FlagValue] | None, sha256: str | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    if path.is_dir():
        inside = path / NATIVE_FILE
        if not inside.is_file() and (path / "unet").is_dir():
            if sha256 is not None:
                raise CheckpointError(f"{path}: a folder of several files, which no one SHA-256 describes")
            return _load_diffusers(path, flags)
        if not inside.is_file():
            found = sorted(item.name for item in path.iterdir())
            raise CheckpointError(f"{path}: no {NATIVE_FILE} in this folder (found {_some(found) or 'nothing'})")
        path = inside
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if sha256 is not None:
        try:
            downloads.check_digest(path, sha256)
        except downloads.DownloadError as error:
            raise CheckpointError(str(error)) from error
    if path.suffix == ".safetensors":
        return _load_safetensors(path, flags)
    return _load_published(path, _read_pickle(path), flags)


def _load_diffusers(path: Path, flags: Mapping[str, FlagValue] | None) -> tuple[ModelConfig, dict[str, Tensor]]:
    if flags is not None:
        raise CheckpointError(f"{path}: an exported folder describes itself; flags are for .pt files")
    try:
        config, found = diffusers_folder.read(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return config, _checked(config.unet, found, str(path))


def _load_elsewhere(
    source: str, flags: Mapping[str, FlagValue] | None, sha256: str | None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A text that is neither a known name nor an existing path."""
    if source.endswith(_WEIGHT_ENDINGS) or source.startswith((".", "/", "~")):
        raise CheckpointError(f"{doors.printable(source)}: no such file or folder")
    if not hub.ID.fullmatch(source):
        raise CheckpointError(f"unknown model {source!r}; {zoo.suggestion(source)}")
    try:
        return _load_path(hub.fetch(source), flags, sha256)
    except hub.HubError as error:
        raise CheckpointError(str(error)) from error


def _load_release(
    name: str, flags: Mapping[str, FlagValue] | None, sha256: str | None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    release = zoo.RELEASES[name]
    _tell_license(zoo.RELEASE_LICENSE)
    path = downloads.fetch(release.url, release.file, sha256=sha256, whole=_check_whole)
    flags = flags or RELEASE_FLAGS | {"feat_cond": True, "ssl_dim": release.encoder.dim}
    try:
        config, tensors = _load_published(path, _read_pickle(path), flags)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete {path} to download it again") from error
    info = {**config.info, "url": release.url, "license": zoo.RELEASE_LICENSE}
    return ModelConfig(config.unet, config.schedule, release.encoder, name, info), tensors


@functools.cache
def _tell_license(license: str) -> None:
    log.warning("the published RCDM weights are licensed %s: %s/LICENSE", license, zoo.RELEASE_URL)


def _load_safetensors(path: Path, flags: Mapping[str, FlagValue] | None) -> tuple[ModelConfig, dict[str, Tensor]]:
    try:
        metadata = storage.read_metadata(path)
        if ENCODER_KEY in metadata:
            raise CheckpointError(f"{path}: this is an encoder, not a model (give it as encoder=)")
        found = storage.read_tensors(path)
        if zoo.MODEL_KEY not in metadata:
            return _load_published(path, found, flags)
        found = shared.complete(found, metadata, path)
        config = configs.from_json(ModelConfig, metadata[zoo.MODEL_KEY], str(path))
        config = hub.with_encoder_beside(config, path)
    except (storage.StorageError, ConfigError) as error:
        raise CheckpointError(str(error)) from error
    if flags is not None:
        raise CheckpointError(f"{path}: a native file describes itself; flags are for published-format checkpoints")
    return config, _checked(config.unet, found, str(path))


def _load_published(
    path: Path, found: Mapping[Any, Any], flags: Mapping[str, FlagValue] | None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A state dict in the published naming, bare or inside what a training script saved; flags given or recognized."""
    found = _inside(found, path)
    try:
        recognition = recognize({name: tuple(tensor.shape) for name, tensor in found.items()}, flags)
        unet, schedule = configs_from_flags(recognition.flags)
    except ConfigError as error:
        beside = path.with_name("flags.json")
        hint = f" (flags={str(beside)!r} lies beside it)" if flags is None and beside.is_file() else ""
        raise CheckpointError(f"{path}: {error}{hint}") from error
    log.info("%s: %s", path, recognition.describe())
    tensors = _checked(unet, found, str(path))
    info = {"source": path.name, "flags_recognized": recognition.summary()}
    return ModelConfig(unet, schedule, name=path.stem, info=info), tensors


def _inside(saved: Mapping[Any, Any], path: Path) -> Mapping[str, Tensor]:
    """The network's tensors in a saved object, free of what wrappers and scripts put around them."""
    try:
        found = state_dicts.find(saved, _MARKS)
    except state_dicts.Several as error:
        raise CheckpointError(f"{path}: {error}; save the one that is meant alone") from error
    except state_dicts.NotFound as error:
        others = [str(key) for key, item in saved.items() if not (isinstance(key, str) and isinstance(item, Tensor))]
        if others or not saved:
            raise CheckpointError(
                f"{path}: expected a bare state_dict (tensors by name), found {_some(others) or 'nothing'}; no network "
                "of this kind is inside"
            ) from error
        return saved
    if found.prefix:
        log.info("%s: dropped the prefix %r of every name (DistributedDataParallel, compile...)", path, found.prefix)
    return {name: tensor.detach() for name, tensor in found.state.items()}


def _read_pickle(path: Path) -> Mapping[Any, Any]:
    """What `torch.save` saved, a dictionary, read without running any code in it."""
    try:
        found = load_pickle(path)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise CheckpointError(f"{path}: truncated, or not a PyTorch checkpoint") from error
        raise CheckpointError(
            f"{path}: holds pickled code ({refused[1]}), which is never run; save the bare state_dict instead"
        ) from error
    except (FileNotFoundError, PermissionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # damaged bytes raise nearly anything inside the unpickler
        raise CheckpointError(f"{path}: truncated, or not a PyTorch checkpoint ({doors.said(error)})") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: expected a state_dict (tensors by name), found {type(found).__name__}")
    return found


def _check_whole(path: Path) -> None:
    """Raise an error unless a download is a checkpoint from its beginning to its end."""
    _read_pickle(path)
    if zipfile.is_zipfile(path):
        downloads.check_container(path)


def _checked(unet: UNetConfig, found: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors as float32, after a strict comparison with the network."""
    _check_fit(unet, found, where)
    tensors = {name: tensor.to(torch.float32) for name, tensor in found.items()}
    _check_finite(tensors, where)
    return tensors


def _check_fit(unet: UNetConfig, found: Mapping[str, Tensor], where: str) -> None:
    held = sum(tensor.numel() for tensor in found.values())
    if unet.parameters > 2 * held + _SMALL:  # before thousands of layers are described to say what is missing
        raise CheckpointError(
            f"{where}: the configuration describes a network of {unet.parameters} parameters, the file holds {held}"
        )
    expected = _shapes(unet)
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": [
            f"{name} {list(found[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ],
        "not floating-point": [name for name, tensor in found.items() if not tensor.is_floating_point()],
        "not plain numbers": [
            name for name, tensor in found.items() if tensor.layout != torch.strided or tensor.device.type == "meta"
        ],
    }
    text = "; ".join(f"{kind}: {_some(items)}" for kind, items in problems.items() if items)
    if text:
        raise CheckpointError(f"{where}: the tensors do not fit the network. {text}")


@functools.lru_cache(maxsize=16)
def _shapes(unet: UNetConfig) -> Mapping[str, torch.Size]:
    """What a network's tensors are called, and their shapes. To find out takes as long as making a small network."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in UNet(unet).state_dict().items()}


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        # numpy: one thread, no waiting for a second core that is busy with something else
        finite = np.isfinite(tensor.to(torch.float32).numpy())
        if not finite.all():
            count = finite.size - int(finite.sum())
            raise CheckpointError(f"{where}: {name} holds NaN or infinite weights ({count} of {tensor.numel()})")


def _some(items: Iterable[Any]) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
