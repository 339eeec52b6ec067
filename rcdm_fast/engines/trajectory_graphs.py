"""CUDA graphs of whole trajectories: a solver's loop with all its network evaluations, replayed by one launch.

For small batches, where an evaluation is over before the host has launched what lies between two of them: the solver's
step, copies into and out of the evaluation's own graph, FiLM rows. Here the loop is captured with the form of the
program that `GraphCache` measured as the fastest one for the bucket; the solver's numbers are arguments of the captured
kernels, FiLM rows of all kept steps lie in one table, and noise of the steps, if there is any, beside it. A batch fills
these, replays the graph and copies the result.

A graph belongs to a number of images and to a `Trajectory`, and serves all batches for which these are equal, whatever
their representations. It is captured when the same trajectory has been drawn step by step `USES_BEFORE` times, then
timed against that way, and kept where it is faster. One that cannot be captured (memory was out, a solver asks what a
tensor holds) is reported and drawn step by step from then on. So a single odd request never pays for a capture; and
since capturing and timing take about as long as `USES_BEFORE` batches, they at most double the time of what was drawn.

Nothing here has run on a GPU yet.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast import devices, memory
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.solvers import StepNoise
from rcdm_fast.diffusion.trajectory import Trajectory
from rcdm_fast.engines.cuda_graphs import GraphCache, bucket_for
from rcdm_fast.ops import selection

log = logging.getLogger(__name__)

MOST_IMAGES = 4  # of an evaluation; of more it takes the GPU longer than the host takes for what lies between two
# The published 128-px network has some 300 kernels, so these are 30,000 nodes. At an estimated 2 kB of each (nobody has
# measured it) a graph takes 60 MB, and all that are kept a quarter of a GB; one more while a trajectory is timed.
MOST_EVALUATIONS = 100
MOST_BYTES = 64 * 2**20  # of the tensors that a batch fills, as of a plan's table
MOST_TRAJECTORIES = 4  # as many as buckets: a job has one and an odd last batch, a playground a draft and a better one
USES_BEFORE = 8  # a run before the capture, the capture, and twice `TIMED_RUNS` + 1 take about as long
TIMED_RUNS = 2  # each way, of which the least time counts; a whole trajectory varies less than one evaluation
REMEMBERED = 16  # trajectories without a graph whose uses are counted, or which are known to be better off step by step

Key = tuple[int, Trajectory]  # images of an evaluation


@dataclass
class _Met:
    """What is known of a trajectory.

    Attributes:
        uses: how often it was asked for since it has no graph.
        whole_ms, steps_ms: of a batch by one launch and step by step; 0 before they were timed.
        unable: why it cannot be captured, if that was tried.
    """

    uses: int = 0
    whole_ms: float = 0.0
    steps_ms: float = 0.0
    unable: str = ""

    @property
    def slower(self) -> bool:
        """Whether one launch was timed, and was no faster."""
        return self.whole_ms >= self.steps_ms > 0


@dataclass
class _Captured:
    """A graph, and all memory that it uses and does not own."""

    graph: torch.cuda.CUDAGraph
    x: Tensor  # x_T, float32 [n,3,H,W]
    padded: Tensor  # what the network reads where a bucket is not full, float32 [B,3,H,W]
    films: Tensor  # float32 [K,B,F] or [K,B,F,h,w], B of the bucket
    rows: Tensor  # int64 [B]; those of padding stay 0
    noise: dict[int, Tensor]  # of the steps that ask for it, float32 [n,3,H,W]
    out: Tensor  # float32 [n,3,H,W]


class TrajectoryGraphs:
    """Captured trajectories of one engine.

    Args:
        graphs: its graphs of single evaluations, whose memory and order on streams are shared.
        film: as of `GraphCache`.
        device: a GPU.
    """

    def __init__(self, graphs: GraphCache, film: Callable[[int], Tensor], device: torch.device) -> None:
        self._graphs, self._film, self._device = graphs, film, device
        self._row_size = math.prod(film(0).shape[1:])
        self._met: OrderedDict[Key, _Met] = OrderedDict()
        self._kept: OrderedDict[Key, _Captured] = OrderedDict()

    def describe(self) -> str:
        """Which trajectories are replayed as a whole, which are not, and why; empty before one was tried."""
        timed = {key: met for key, met in self._met.items() if met.steps_ms}
        kept = ", ".join(_line(key, met) for key, met in timed.items() if key in self._kept)
        slower = ", ".join(_line(key, met) for key, met in timed.items() if met.slower)
        said = [f"trajectories in one launch: {kept}"] if kept else []
        said += [f"faster step by step: {slower}"] if slower else []
        unable = ", ".join(f"{_named(key)} ({met.unable})" for key, met in self._met.items() if met.unable)
        return "; ".join([*said, *([f"cannot be captured: {unable}"] if unable else [])])

    @torch.inference_mode()
    def run(self, batch: Batch, trajectory: Trajectory, x: Tensor, step_noise: StepNoise) -> Tensor | None:
        """x0, float32 [n,3,H,W], a copy; or None where the batch is to be drawn step by step: nothing was done then.

        Args:
            batch: as many images as each of the trajectory's evaluations has.
            trajectory: what is run.
            x: x_T, float32 [n,3,H,W].
            step_noise: noise of the steps; asked for all of them before the first evaluation.
        """
        key = len(batch), trajectory
        if not self._bounded(batch, trajectory, x):
            return None
        met = self._meet(key)
        captured = self._kept.get(key)
        if captured is None and (met.unable or met.slower or met.uses <= USES_BEFORE):
            return None
        with devices.current(self._device):
            if captured is None:
                captured = self._tried(key, met, batch, x, step_noise)
                if captured is None:
                    return None
            self._kept.move_to_end(key)
            self._renew(captured, step_noise)
            return self._replay(captured, batch, x)

    def _bounded(self, batch: Batch, trajectory: Trajectory, x: Tensor) -> bool:
        """Whether the trajectory is one for a graph at all."""
        few = len(batch) <= MOST_IMAGES and trajectory.evaluations <= MOST_EVALUATIONS
        numbers = bucket_for(len(batch)) * self._row_size + (x.numel() if trajectory.fresh else 0)
        small = len(trajectory.schedule) * numbers * x.element_size() <= MOST_BYTES
        return few and small and trajectory.options.observer is None

    def _meet(self, key: Key) -> _Met:
        """What is known of a trajectory that is asked for once more; the one longest not asked for is forgotten."""
        met = self._met.setdefault(key, _Met())
        self._met.move_to_end(key)
        met.uses += key not in self._kept
        while len(self._met) - len(self._kept) > REMEMBERED:
            del self._met[next(each for each in self._met if each not in self._kept)]
        return met

    def _tried(self, key: Key, met: _Met, batch: Batch, x: Tensor, step_noise: StepNoise) -> _Captured | None:
        """`_measured`, or None where the trajectory cannot be captured, as is reported once and remembered."""
        try:
            return self._measured(key, met, batch, x, step_noise)
        except selection.MISTAKES:
            raise
        except Exception as error:
            met.unable = selection.in_short(error)
            log.warning("%s cannot be captured and is drawn step by step: %s", _named(key), str(error))
        memory.release()  # no traceback holds it any more
        return None

    def _measured(self, key: Key, met: _Met, batch: Batch, x: Tensor, step_noise: StepNoise) -> _Captured | None:
        """The trajectory captured, and kept if it is faster than step by step."""
        trajectory, graphs = key[1], self._graphs
        captured = self._capture(trajectory, batch, x)
        self._renew(captured, step_noise)  # the same noise either way, and no part of either time
        met.whole_ms = graphs.time_ms(lambda: self._replay(captured, batch, x), TIMED_RUNS)

        def step_by_step() -> Tensor:
            return trajectory(lambda x, k: graphs.replay(batch, x, k), x, captured.noise.__getitem__)

        met.steps_ms = graphs.time_ms(step_by_step, TIMED_RUNS)
        if met.slower:
            return None
        self._make_room()
        self._kept[key] = captured
        return captured

    def _make_room(self) -> None:
        """Drop graphs, the least recently used first, until one more may be kept; uses of theirs are counted anew."""
        while len(self._kept) >= MOST_TRAJECTORIES:
            self._graphs.wait()
            key, _ = self._kept.popitem(last=False)
            self._met[key] = _Met()

    def _replay(self, captured: _Captured, batch: Batch, x: Tensor) -> Tensor:
        self._graphs.follow()
        captured.rows[: len(batch)].copy_(batch.inverse)
        batch.films(out=captured.films[:, : len(batch.distinct)])
        captured.x.copy_(x)
        captured.graph.replay()
        return captured.out.clone()

    def _renew(self, captured: _Captured, step_noise: StepNoise) -> None:
        if captured.noise:
            self._graphs.follow()
        for i, own in captured.noise.items():
            own.copy_(step_noise(i))

    def _capture(self, trajectory: Trajectory, batch: Batch, x: Tensor) -> _Captured:
        graphs, count, steps = self._graphs, len(batch), len(trajectory.schedule)
        size, program = graphs.fastest(count)
        films = self._film(steps * size).unflatten(0, (steps, size))
        rows = torch.zeros(size, dtype=torch.int64, device=self._device)
        begin, padded = x.clone(), x.new_zeros(size, *x.shape[1:])
        noise: dict[int, Tensor] = {}

        def evaluate(x: Tensor, k: int) -> Tensor:
            if count < size:
                padded[:count].copy_(x)
                x = padded
            output = program.denoise(x.contiguous(), films[k], rows)[:count]
            return output.to(torch.float32, memory_format=torch.contiguous_format)

        def fresh(i: int) -> Tensor:
            if i not in noise:  # in the run before the capture
                noise[i] = torch.zeros_like(begin)
            return noise[i]

        with graphs.alone():
            graph, out = graphs.record(lambda: trajectory(evaluate, begin, fresh), warm_runs=1)
        return _Captured(graph, begin, padded, films, rows, noise, out)


def _line(key: Key, met: _Met) -> str:
    return f"{_named(key)} ({met.whole_ms:.3f} ms, step by step {met.steps_ms:.3f})"


def _named(key: Key) -> str:
    images, trajectory = key
    return f"{trajectory.name}, {trajectory.evaluations} evaluations of {images}"
