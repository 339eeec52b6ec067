"""A small job and what tests of jobs ask about it again and again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcdm_fast.jobs import local
from rcdm_fast.jobs.ledger import Row, Summary, read_lines
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from tests import small

CONFIG = JobConfig(per=3, steps=3, shard_images=8)
ITEMS = 9


def representations(count: int = ITEMS, seed: int = 0) -> torch.Tensor:
    """float32 [count,D]."""
    return torch.randn(count, small.DIM, generator=torch.Generator().manual_seed(seed))


def write_inputs(folder: Path, count: int = ITEMS) -> tuple[Path, Path]:
    """A model file and a file of representations."""
    folder.mkdir(parents=True, exist_ok=True)
    model = small.quick_model()
    config = dataclasses.replace(model.config, encoder=None, name="small")
    checkpoint.save_model(folder / "small.safetensors", config, model.unet.state_dict())
    np.save(folder / "h.npy", representations(count).numpy())
    return folder / "small.safetensors", folder / "h.npy"


def run(model: Model, folder: Path, **changes: Any) -> Summary:
    """The small job, or one with other settings; options: batch_size, threads, retry; given: other items."""
    options = RunOptions(**{key: changes.pop(key) for key in ("batch_size", "threads", "retry") if key in changes})
    given = changes.pop("given", None)
    report = changes.pop("report", None)
    config = dataclasses.replace(CONFIG, **changes)
    return local.run(model, representations() if given is None else given, folder, config, options, report)


def manifest(folder: Path) -> list[Row]:
    """All rows of a finished job."""
    return list(read_lines(folder / "manifest.jsonl"))
