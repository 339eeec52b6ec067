"""What a job costs beyond drawing: `rcdm generate` in every form of shards beside the bare sampling loop, in one run.

    python benchmarks/bench_generate.py --steps 25 --images 512 --rounds 5

The bare loop runs the same request in the same full batches and throws the images away. A job also hashes the
weights, rounds to levels, encodes images, computes checksums and writes shards and a manifest. Before anything is
timed, the job's images are compared with the loop's; ratios are medians over the rounds of the ratio within one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rcdm_fast
from benchmarks import workload
from benchmarks.rows import RowFile, table
from rcdm_fast import benchmarking
from rcdm_fast.images import to_uint8
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import FORMATS, JobConfig, RunOptions
from rcdm_fast.model import Model

KEYS = ("model", "name", "precision", "steps")
COLUMNS = (
    ("", "name", "s"),
    ("s (p50)", "p50_s", ".2f"),
    ("images/s", "images_per_s", ".1f"),
    ("x bare loop", "of_bare", ".3f"),
    ("lowest", "of_bare_low", ".3f"),
    ("highest", "of_bare_high", ".3f"),
)
BARE = "bare loop"
PER = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 if a job's images are not those of the loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-simclr-trunk")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    model = rcdm_fast.load(given.model, precision=given.precision)
    generator = torch.Generator().manual_seed(workload.SEED)
    h = torch.randn(given.images // PER, model.config.unet.representation_dim, generator=generator)
    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[str, Callable[[], object]] = {BARE: lambda: bare(model, h, given.steps, given.batch)}
        for form in FORMATS:
            config = JobConfig(per=PER, steps=given.steps, solver="ddim", format=form)
            runs[form] = _job(model, h, Path(scratch) / form, config, given.batch)
        runs["npz"]()
        found = np.load(Path(scratch) / "npz" / "samples.npz")["arr_0"]
        drawn = to_uint8(torch.cat(bare(model, h, given.steps, given.batch)))
        if not np.array_equal(found, drawn.permute(0, 2, 3, 1).numpy()):
            print("the job's images are not those of the bare loop: nothing was timed", file=sys.stderr)
            return 1
        times = benchmarking.in_turn(runs, model.device, rounds=given.rounds, warmup=1, settle_s=0.2)
    rows = []
    for name, each in times.items():
        ratios = [one / other for one, other in zip(each, times[BARE], strict=True)]
        seconds = statistics.median(each) / 1e3
        rows.append({
            "model": given.model, "name": name, "precision": model.engine.precision, "steps": given.steps,
            "batch": given.batch, "images": len(found), "p50_s": seconds, "images_per_s": len(found) / seconds,
            "of_bare": statistics.median(ratios), "of_bare_low": min(ratios), "of_bare_high": max(ratios),
            "rounds": len(each),
        })  # fmt: skip
    print("\n".join(table(rows, COLUMNS)))
    if given.json is not None:
        RowFile(given.json, benchmarking.facts(model.device), KEYS).put(*rows)
    return 0


def bare(model: Model, h: torch.Tensor, steps: int, batch: int) -> list[torch.Tensor]:
    """The loop alone; float32 images in [-1,1], one tensor [N,3,H,W] of each batch."""
    request = model.request(h, per=PER, steps=steps, solver="ddim")
    return [images for _, images in model.batches(request, batch)]


def _job(model: Model, h: torch.Tensor, folder: Path, config: JobConfig, batch: int) -> Callable[[], object]:
    def run() -> object:
        shutil.rmtree(folder, ignore_errors=True)
        return local.run(model, h, folder, config, RunOptions(batch_size=batch, threads=2))

    return run


if __name__ == "__main__":
    raise SystemExit(main())
