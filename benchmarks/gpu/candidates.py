"""Ways to evaluate the network on a GPU, by name: our engines, PyTorch, and the rival that has to be tuned.

Names are ENGINE-PRECISION for our engines, `eager-fp32`, `autocast-bf16`, `autocast-fp16` and `tuned-bf16` for rivals.
"""

from __future__ import annotations

from functools import partial

from benchmarks import bench_step, peers
from benchmarks.peers import autocast, eager, tuned
from benchmarks.timing import Candidate
from benchmarks.workload import Workload
from rcdm_fast import engines
from rcdm_fast.engines.native import DTYPES

AUTOCAST = "PyTorch autocast"
RIVALS = ("rival-eager-fp32", "rival-autocast-bf16", "rival-autocast-fp16", "rival-tuned-bf16")
SLOW_TO_BUILD = ("compiled",)


def make(name: str, work: Workload) -> Candidate:
    """The candidate of that name; `KeyError` if there is none."""
    kind, precision = name.rsplit("-", 1)
    if name == "rival-eager-fp32":
        return Candidate(peers.EAGER.removesuffix(" fp32"), precision, False, partial(eager.build, work))
    if name == "rival-tuned-bf16":
        note = "bf16 weights, channels-last"
        return Candidate("torch.compile max-autotune", precision, False, partial(tuned.build, work), note)
    if kind == "rival-autocast":
        dtype = DTYPES[precision]
        return Candidate(AUTOCAST, precision, False, partial(autocast.build, work, dtype), "channels-last")
    if kind not in engines.ENGINES:
        raise KeyError(name)
    (found,) = bench_step.engine_candidates(work, [kind], [precision])
    return found


def beside(name: str) -> list[str]:
    """The rivals that a candidate is timed in turn with: those of its own precision."""
    return ["rival-eager-fp32"] if name.endswith("fp32") else [f"rival-autocast-{name.rsplit('-', 1)[1]}"]


def quick(fp32: bool) -> list[str]:
    """What is measured of every batch: engines that are ready in seconds, in all precisions."""
    precisions = ("bf16", "fp16", *(("fp32",) if fp32 else ()))
    return [f"{name}-{each}" for each in precisions for name in engines.ENGINES if name not in SLOW_TO_BUILD]
