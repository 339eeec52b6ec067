"""What a job is: the settings that decide its images and files, and those that only decide how fast it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rcdm_fast.checks import Checked, Count, Range
from rcdm_fast.diffusion.sampling_config import SamplingConfig

Format = Literal["webdataset", "folder", "npz", "parquet"]
Encoding = Literal["png", "jpeg", "webp"]

FORMATS: tuple[Format, ...] = ("webdataset", "folder", "npz", "parquet")
ENCODINGS: tuple[Encoding, ...] = ("png", "jpeg", "webp")


@dataclass(frozen=True, kw_only=True)
class JobConfig(SamplingConfig):
    """What is drawn, and in what form it is kept. A job cannot be resumed with other values.

    Attributes:
        per: samples of each item; steps, solver and so on as in `SamplingConfig`.
        format: "webdataset" (tar files), "folder" (of images), "npz" (uint8 [N,H,W,3] under "arr_0", as ADM's
            evaluation reads it) or "parquet" (images as files in a column).
        encoding: of single images, where the format has them: "png", "jpeg" or "webp" (lossless at quality 100).
        quality: of jpeg and webp, 1..100.
        shard_images: the largest number of images in a shard; shards are what is committed at once.
    """

    format: Format = "webdataset"
    encoding: Encoding = "png"
    quality: Annotated[int, Range(1, 100)] = 95
    shard_images: Count = 1024


@dataclass(frozen=True)
class RunOptions(Checked):
    """How a job is run; may differ from run to run.

    Attributes:
        batch_size: images per network evaluation (the bucket); None: 32 on CPU, 64 on GPU. Halved when memory does
            not suffice, and remembered in the job's folder.
        threads: that read images, and as many that encode them.
        retry: draw the shards of quarantined items again.
    """

    batch_size: Count | None = None
    threads: Count = 4
    retry: bool = False
