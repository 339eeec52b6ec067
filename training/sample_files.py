"""Pictures as one .npz file in the form that the evaluation of ADM (guided-diffusion) and its kin reads.

`arr_0` holds uint8 [N,H,W,3], `arr_1` (if there) one label per picture.

Knows nothing about models.
"""

from __future__ import annotations

import os
import zipfile

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.config import ConfigError


def write_npz(path: str | os.PathLike[str], pixels: Tensor, labels: Tensor | None = None) -> None:
    """Write pictures; the file appears complete or not at all.

    Args:
        path: the file.
        pixels: uint8 [N,3,H,W].
        labels: int64 [N].

    Raises:
        ConfigError: not such pictures, or another number of labels.
        StorageError: the file cannot be written.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ConfigError(f"expected uint8 pictures [N,3,H,W], got {pixels.dtype} {list(pixels.shape)}")
    if labels is not None and labels.shape != pixels.shape[:1]:
        raise ConfigError(f"{len(pixels)} pictures with labels {list(labels.shape)}")
    arrays = [pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    if labels is not None:
        arrays.append(labels.to(torch.int64).cpu().numpy())
    with storage.atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, *arrays)


def read_npz(path: str | os.PathLike[str]) -> Tensor:
    """Pictures of such a file, uint8 [N,3,H,W]. Raises `ConfigError` for any other file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if "arr_0" not in stored:
                raise ConfigError(f"{path}: no pictures: arr_0 is missing")
            array = stored["arr_0"]
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a readable .npz file ({error})") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise ConfigError(f"{path}: arr_0 must be uint8 [N,H,W,3], is {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
