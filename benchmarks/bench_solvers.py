"""How far few evaluations end from many, from the same noise: a model's own solvers beside those for any model.

    python benchmarks/bench_solvers.py cifar10-simclr-trunk --data cifar10/test --keep out/solvers --json solvers.json

Relative L2 distance of single samples to those of a second-order solver in `REFERENCE` evaluations, fp32, on sources
and noise that no solver was fitted on. Images are kept in a folder, so that the same command goes on after an
interruption and draws only what is new.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rcdm_fast
from rcdm_fast import provenance, sealed, storage
from rcdm_fast.data.image_set import evenly
from rcdm_fast.data.sources import open_data
from rcdm_fast.metrics import intervals
from rcdm_fast.model import Model
from rcdm_fast.solver_fit import distances
from rcdm_fast.training import masks, representations

REFERENCE = ("dpmpp_2m", "100")
BASELINE = ("ddim", "50")
FEW = ("ipndm", "dpmpp_2m", "deis")
SOURCES, RESAMPLES = 64, 2000
SEED = 1  # learning draws with 0 unless told otherwise, and the noise is to be new, too


def cases(model: Model, counts: Sequence[int]) -> list[tuple[str, str]]:
    """Solvers and steps, the quick ones first: the model's own, others in as many evaluations, and DDIM in many."""
    own = {each.nfe for each in model.config.fitted}
    found = [("fitted", str(nfe)) for nfe in counts if nfe in own]
    found += [(name, f"{placed}{nfe}") for nfe in counts for name in FEW for placed in ("logsnr", "quadratic")]
    return [*found, BASELINE]


def drawn(model: Model, h: Tensor, solver: str, steps: str, keep: Path) -> Tensor:
    """A sample of every source, [N,3,H,W]; drawn once for these weights and sources."""
    chosen = model.request(h[:1], per=1, solver=solver, steps=steps).chosen
    of_sources = hashlib.sha256(h.cpu().numpy().tobytes()).hexdigest()
    file = keep / f"{model.weights[:12]}_{of_sources[:12]}_{chosen.label.replace(':', '-')}_{steps}.images"
    if not file.exists():
        made = model.sample(h, per=1, seed=SEED, solver=solver, steps=steps)[:, 0]
        sealed.save(file, {"images": made.cpu()})
    images: Tensor = sealed.load(file)["images"]
    return images


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cases and write them; the exit status."""
    parser = argparse.ArgumentParser(description="Distances of few evaluations to many.")
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="images, as rcdm takes them; none that a solver was fitted on")
    parser.add_argument("--counts", type=int, nargs="+", default=[5], help="evaluations")
    parser.add_argument("--keep", type=Path, default=Path("out/solvers"))
    parser.add_argument("--json", type=Path, default=Path("out/solvers.json"))
    given = parser.parse_args(arguments)
    model = rcdm_fast.load(given.model, device="cpu")
    if model.encoder is None:
        parser.error(f"{given.model} has no encoder for the images")
    data = open_data(given.data, model.image_size)
    h = representations.compute(model.encoder, data.subset(evenly(SOURCES, len(data))))
    if parts := masks.parts_of(model.encoder):  # such a model is asked of any subset of them
        h = masks.hidden(h, parts, SEED)
    given.keep.mkdir(parents=True, exist_ok=True)
    want, rows = drawn(model, h, *REFERENCE, given.keep), []
    baseline = distances(drawn(model, h, *BASELINE, given.keep), want)
    for solver, steps in cases(model, given.counts):
        apart = distances(drawn(model, h, solver, steps, given.keep), want)
        rng = np.random.default_rng(SEED)
        row = {
            "solver": solver,
            "steps": steps,
            "nfe": model.request(h[:1], per=1, solver=solver, steps=steps).evaluations,
            "error": dataclasses.asdict(intervals.bootstrap(apart, RESAMPLES, rng)),
            "less_ddim_50": dataclasses.asdict(
                intervals.bootstrap(apart - baseline, RESAMPLES, np.random.default_rng(SEED))
            ),
        }
        rows.append(row)
        print(f"{solver:10s} {steps:12s} {row['nfe']:4d}  {row['error']}", flush=True)
    found = {"quality": rows, "reference": " ".join(REFERENCE), "sources": SOURCES, "seed": SEED}
    storage.write_json(given.json, {**found, "made_by": provenance.made_by([model], {"data": data})})
    return 0


if __name__ == "__main__":
    sys.exit(main())
