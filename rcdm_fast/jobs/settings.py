"""What a job is: the settings that decide its pictures and files, and those that only decide how fast it goes.

Knows nothing about how either is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rcdm_fast import noise
from rcdm_fast.config import ConfigError

Format = Literal["webdataset", "folder", "npz", "parquet"]
Encoding = Literal["png", "jpeg", "webp"]

FORMATS: tuple[Format, ...] = ("webdataset", "folder", "npz", "parquet")
ENCODINGS: tuple[Encoding, ...] = ("png", "jpeg", "webp")


@dataclass(frozen=True)
class JobConfig:
    """What is drawn, and in what form it is kept. A job cannot be resumed with other values.

    Attributes:
        per: samples of each item.
        steps, solver, eta, guidance, seed: as in `Model.sample`.
        format: "webdataset" (tar files), "folder" (of pictures), "npz" (uint8 [N,H,W,3] under "arr_0", as ADM's
            evaluation reads it) or "parquet" (pictures as files in a column).
        encoding: of single pictures, where the format has them: "png", "jpeg" or "webp" (lossless at quality 100).
        quality: of jpeg and webp, 1..100.
        shard_pictures: the largest number of pictures in a shard; shards are what is committed at once.
    """

    per: int = 8
    steps: int | str = 50
    solver: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    seed: int = 0
    format: Format = "webdataset"
    encoding: Encoding = "png"
    quality: int = 95
    shard_pictures: int = 1024

    def __post_init__(self) -> None:
        if self.per < 1 or self.shard_pictures < 1:
            raise ConfigError(f"per and shard_pictures must be at least 1, got {self.per} and {self.shard_pictures}")
        if self.format not in FORMATS:
            raise ConfigError(f"no format called {self.format!r}; known: {', '.join(FORMATS)}")
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"no encoding called {self.encoding!r}; known: {', '.join(ENCODINGS)}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be in 1..100, got {self.quality}")
        noise.check_seed(self.seed)


@dataclass(frozen=True)
class RunOptions:
    """How a job is run; may differ from run to run.

    Attributes:
        batch_size: pictures per network evaluation (the bucket); None: 32 on CPU, 64 on GPU. Halved when memory does
            not suffice, and remembered in the job's folder.
        threads: that read pictures, and as many that encode them.
        retry: draw the shards of quarantined items again.
    """

    batch_size: int | None = None
    threads: int = 4
    retry: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ConfigError(f"threads and batch_size must be at least 1, got {self.threads} and {self.batch_size}")
