"""Images as one .npz file in the form that the evaluation of ADM (guided-diffusion) and its kin reads.

`arr_0` holds uint8 [N,H,W,3], `arr_1` (if there) one label per image.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import doors, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.readers import arrays


def write_npz(path: str | os.PathLike[str], pixels: Tensor, labels: Tensor | None = None) -> None:
    """Write images; the file appears complete or not at all.

    Args:
        path: the file.
        pixels: uint8 [N,3,H,W].
        labels: int64 [N].

    Raises:
        ConfigError: not such images, or another number of labels.
        StorageError: the file cannot be written.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ConfigError(f"expected uint8 images [N,3,H,W], got {pixels.dtype} {list(pixels.shape)}")
    if labels is not None and labels.shape != pixels.shape[:1]:
        raise ConfigError(f"{len(pixels)} images with labels {list(labels.shape)}")
    arrays = [pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    if labels is not None:
        arrays.append(labels.to(torch.int64).cpu().numpy())
    with storage.atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, *arrays)


def read_npz(path: str | os.PathLike[str]) -> Tensor:
    """Images of such a file, uint8 [N,3,H,W]. Raises `ConfigError` for any other file."""
    where = doors.printable(path)
    stored = arrays.read(doors.path(path, ConfigError), ConfigError)
    if "arr_0" not in stored:
        raise ConfigError(f"{where}: no images: arr_0 is missing")
    rows = stored["arr_0"]
    if rows.dtype != np.uint8 or rows.ndim != 4 or rows.shape[3] != 3 or not len(rows):
        raise ConfigError(f"{where}: arr_0 must be uint8 [N,H,W,3], is {rows.dtype} {list(rows.shape)}")
    pixels = np.empty((len(rows), 3, *rows.shape[1:3]), np.uint8)
    for place, row in enumerate(rows):
        pixels[place] = row.transpose(2, 0, 1)
    return torch.from_numpy(pixels)
