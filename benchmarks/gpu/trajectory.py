"""A whole trajectory of a small batch, step by step and as one CUDA graph: what launches between evaluations cost.

    python -m benchmarks.gpu.trajectory --config release128 --batch 1 --names native-bf16 --seconds 60 --json FILE

The engine captures and chooses as it does for any program (`engines/trajectory_graphs.py`). Both ways are timed in
turn, between two events of the stream, so that a GPU that waits for the host counts. Both have to give the same images,
of the batch that was captured and of another one; whether an evaluation is right is asked by `group.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import workload
from benchmarks.gpu import machine
from benchmarks.gpu.machine import Deadline
from benchmarks.gpu.process import BROKEN
from benchmarks.gpu.settings import Settings, chosen
from benchmarks.rows import Row, RowFile
from benchmarks.workload import Inputs, Workload
from rcdm_fast import benchmarking, engines
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.conditioning import make_plan
from rcdm_fast.diffusion.engine import Bound
from rcdm_fast.diffusion.sampling_config import STEPS
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.diffusion.trajectory import Trajectory
from rcdm_fast.engines.trajectory_graphs import USES_BEFORE

PART = "trajectory"
KEYS = ("name", "precision", "part", "item")
# Relative L2 between the two ways. They launch the same kernels, but cuDNN may have measured another algorithm, and a
# trajectory magnifies rounding in 16 bits; other representations, steps or noise give images that are other by half or
# more.
LIMIT = 0.05


@dataclass(frozen=True)
class _Batch:
    """A batch that is bound, and its x_T."""

    trajectory: Trajectory
    bound: Bound
    x: Tensor

    @torch.inference_mode()
    def steps(self) -> Tensor:
        return self.trajectory(self.bound.predict, self.x, _no_noise)

    def whole(self) -> Tensor | None:
        return self.bound.trajectory(self.trajectory, self.x, _no_noise)


def _no_noise(i: int) -> Tensor:
    raise AssertionError("a solver without fresh noise asked for some")


def measure(name: str, work: Workload, settings: Settings, shared: Row, put: Callable[[Row], None]) -> None:
    """Both ways of one engine, named as in `candidates`; a row for each."""
    kind, precision = name.rsplit("-", 1)
    about = {"item": name, "precision": precision, "ours": True, **shared, "config": work.name, "batch": work.batch}
    one_by_one, at_once = (
        {**about, "name": f"rcdm_fast {kind}, {STEPS} steps {how}"} for how in ("one by one", "in one launch")
    )
    put({**one_by_one, "begun": True})
    reasons = engines.reasons_unavailable(kind, work.device, precision)  # type: ignore[arg-type]
    if reasons:
        put({**one_by_one, "why_not": "; ".join(reasons)})
        return
    engine = engines.make(kind, workload.copy_network(work.network), work.config, work.device, precision)
    solver = registry.choose(work.config, registry.USUAL, STEPS)
    trajectory = Trajectory(solver.name, solver.run, solver.schedule, SolverOptions(), solver.evaluations, solver.fresh)

    def bind(inputs: Inputs) -> _Batch:
        plan = make_plan(work.network, solver.schedule, inputs.h, None)
        return _Batch(trajectory, engine.bind(plan, torch.arange(work.batch)), inputs.x)

    timed, other = bind(work.timed), bind(work.other)
    for _ in range(USES_BEFORE + 1):
        found = timed.whole()
    runs: dict[str, Callable[[], object]] = {"steps": timed.steps}
    if found is None:
        put({**at_once, "why_not": f"the engine draws step by step: {engine.describe().rsplit('; ', 1)[-1]}"})
    else:
        pairs = [(each.whole(), each.steps()) for each in (timed, other)]
        errors = [benchmarking.relative_l2(whole, steps) for whole, steps in pairs if whole is not None]
        at_once |= {"error": max(errors), "error_limit": LIMIT}
        if max(errors) > LIMIT:
            said = f"wrong result: relative error {max(errors):.2e} to step by step, allowed {LIMIT:.2e}"
            put({**at_once, "why_not": said, "red": True})
        else:
            runs["whole"] = timed.whole
    times = benchmarking.in_turn(runs, work.device, rounds=settings.rounds, warmup=2)
    put({**benchmarking.row(times["steps"]), **one_by_one})
    if "whole" in times:
        ratio = benchmarking.pair_ratio(times["steps"], times["whole"])
        put({**benchmarking.row(times["whole"]), **at_once, "of_steps": ratio})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the names; the exit status is `process.BROKEN` when the device stopped answering."""
    parser = argparse.ArgumentParser(description="Trajectories of PART=step.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--machine", type=Path, required=True, help="what benchmarks.gpu.machine wrote")
    parser.add_argument("--seconds", type=float, required=True, help="after which nothing more is begun")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    deadline = Deadline.after(options.seconds)
    settings = chosen(options.rehearse)
    device = torch.device(settings.device)
    facts, _ = machine.read(options.machine)
    file = RowFile(options.json, facts, KEYS)
    work = workload.make(workload.read_config(options.config), options.batch, device)
    for name in options.names:
        if not deadline.left_s:
            break
        try:
            measure(name, work, settings, {**facts, "part": PART}, file.put)
        except RuntimeError as error:  # what a device answers once it is broken, wherever it is asked
            print(error, file=sys.stderr)
            if machine.answers(device):
                raise
        if not machine.answers(device):
            return BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
