"""How fast a model draws images end to end, beside the published recipe: what `rcdm bench` measures.

The published recipe is plain PyTorch in fp32, 100 ancestral steps, and the images of one representation at a time;
it embeds the representation anew in every step. Images are drawn in turn with every case (see `benchmarking`) until
the time is used up. The fraction of the sampler is what a trajectory takes beyond its network evaluations. Those are
timed through an `EngineWrapper`, so images are drawn step by step: trajectories in one launch are never measured here.

No time is reported for an engine whose network evaluation is wrong: further from plain PyTorch in fp32 than
`benchmarking.FP32_LIMIT`, or in another precision than twice what PyTorch's autocast gives, in fp8 its emulation. int8
has no such bound and is refused; `engine_comparison.py` times it, beside its images.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rcdm_fast import benchmarking, engines
from rcdm_fast.checks import Checked, Count
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import conditioning, solvers
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine, EngineWrapper
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.exporters import fp8 as scales
from rcdm_fast.model import Model
from rcdm_fast.models import fp8

PUBLISHED_STEPS = 100
PUBLISHED = "published recipe"
SEED = 0
NO_BOUND = (
    "no time of int8 is reported here, for there is no bound on the error of its evaluations: rcdm compare times it, "
    "beside what becomes of the images"
)


@dataclass(frozen=True)
class Case(Checked):
    """One way to draw images. `engine` ``auto`` is the model's own."""

    engine: str = "auto"
    precision: str = "auto"
    solver: str = SamplingConfig.solver
    steps: Count | str = SamplingConfig.steps


@dataclass(frozen=True)
class Plan(Checked):
    """What to measure.

    Attributes:
        cases: ways to draw images.
        batch: images per network evaluation, each with a representation of its own.
        images: images per timed run; 0 means one batch.
        budget_s: no run begins that would probably end later than this after the start.
        rounds: at most so many timed runs of each case.
        published: measure the published recipe too.
    """

    cases: tuple[Case, ...]
    batch: int = 16
    images: int = 0
    budget_s: float = 60.0
    rounds: int = 5
    published: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("batch", self.batch), ("rounds", self.rounds)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.images < 0 or self.images % self.batch:
            raise ConfigError(f"images must be a multiple of the batch, {self.batch}; got {self.images}")
        if not self.budget_s > 0:
            raise ConfigError(f"the budget must be positive, got {self.budget_s}")
        if not self.cases:
            raise ConfigError("nothing to measure: no step count, solver, engine or precision is named")

    @property
    def drawn(self) -> int:
        """Images per timed run."""
        return self.images or self.batch

    @property
    def batches(self) -> int:
        """Batches of a timed run."""
        return self.drawn // self.batch


class TimedEngine(EngineWrapper):
    """An engine that adds up the time of its network evaluations. On a GPU it waits for each of them."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        super().__init__(engine)
        self.evaluations_ms = 0.0
        self.evaluations = 0
        self._device = device

    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        benchmarking.wait(self._device)
        start = time.perf_counter()
        out = super().evaluate(batch, x, k)
        benchmarking.wait(self._device)
        self.evaluations_ms += (time.perf_counter() - start) * 1e3
        self.evaluations += 1
        return out


@dataclass
class _Runner:
    """A case that is ready to run, and its times so far. `engine` is None for the published recipe."""

    labels: dict[str, Any]
    nfe: int  # of one timed run, all its batches together
    run: Callable[[], None]
    evaluation: Callable[[], Tensor]
    engine: TimedEngine | None = None
    why_not: str = ""  # the result is wrong
    times_ms: list[float] = field(default_factory=list)
    evaluations_ms: list[float] = field(default_factory=list)
    expected_s: float = 0.0

    def warm_up(self, device: torch.device) -> None:
        """One network evaluation, which may compile and allocate, and one that tells how long a run will take."""
        self.evaluation()
        self.expected_s = benchmarking.time_ms(self.evaluation, device) * 1e-3 * self.nfe

    def measure(self, device: torch.device) -> None:
        """One timed run."""
        before = self.engine.evaluations_ms if self.engine else 0.0
        self.times_ms.append(benchmarking.time_ms(self.run, device))
        if self.engine:
            self.evaluations_ms.append(self.engine.evaluations_ms - before)


class _Bench:
    """Makes runners for one model; cases that share engine and precision share the engine."""

    def __init__(self, model: Model, plan: Plan) -> None:
        self._model = model
        self._plan = plan
        self._drawing: dict[tuple[str, str], Model] = {}
        self._network = copy.deepcopy(model.unet).to(memory_format=torch.contiguous_format)
        unet = model.config.unet
        generator = torch.Generator().manual_seed(SEED)
        self._h = torch.randn(plan.drawn, unet.representation_dim, generator=generator).to(model.device)
        self._label = torch.arange(plan.drawn, device=model.device) % max(1, unet.num_classes)

    def runner(self, case: Case) -> _Runner:
        """A case; `ConfigError` if there is no such engine, precision, solver or step count, or it cannot run here."""
        plan, drawing = self._plan, self._ready(case.engine, case.precision)
        unet, timed = drawing.config.unet, drawing.engine
        assert isinstance(timed, TimedEngine)
        h = self._h if unet.representation_dim else None
        label = self._label if unet.num_classes else None
        items = range(plan.drawn)
        request = drawing.request(h, label=label, items=items, per=1, steps=case.steps, solver=case.solver, seed=SEED)
        prepared = conditioning.make_plan(drawing.unet, request.schedule, h, label)
        rows = torch.arange(plan.batch) if h is not None or label is not None else torch.zeros(plan.batch).long()
        x = torch.randn(plan.batch, *request.image, generator=torch.Generator().manual_seed(SEED))
        x = x.to(drawing.device)

        def evaluation() -> Tensor:
            return timed.bind(prepared, rows).predict(x, len(request.schedule) - 1)

        def run() -> None:
            for _ in drawing.batches(request, plan.batch):
                pass

        seen = torch.full((plan.batch,), request.schedule.network_timesteps[-1], device=drawing.device)
        part = slice(0, plan.batch)
        inputs = (x, seen, None if h is None else h[part], None if label is None else label[part])
        labels = {"engine": timed.name, "precision": timed.precision, "solver": case.solver, "steps": str(case.steps)}
        labels["what_runs"] = timed.describe()
        why_not = self._why_not(evaluation(), timed, inputs)
        return _Runner(labels, request.evaluations * plan.batches, run, evaluation, timed, why_not)

    @torch.inference_mode()
    def _why_not(self, got: Tensor, timed: TimedEngine, inputs: tuple[Tensor | None, ...]) -> str:
        """Why no time may be reported for an engine that gave `got`; empty if it is right."""
        network, device = self._network, self._model.device
        want = network(*inputs)
        limit = benchmarking.FP32_LIMIT
        if timed.precision == "fp8":
            (file,) = timed.files
            rounded = fp8.emulated(network, scales.read(file, network, self._model.config).scales)
            limit = 2 * benchmarking.relative_l2(rounded(*inputs), want)
        elif timed.precision != "fp32":
            dtype = torch.bfloat16 if timed.precision == "bf16" else torch.float16
            with torch.autocast(device.type, dtype):
                limit = 2 * benchmarking.relative_l2(network(*inputs), want)
        error = benchmarking.relative_l2(got, want)
        return "" if error <= limit else f"wrong result: relative error {error:.2e}, allowed {limit:.2e}"

    def _ready(self, engine: str, precision: str) -> Model:
        key = (engine, precision)
        if key not in self._drawing:
            model = self._model
            if engine == precision == "auto":
                network, runner = model.unet, model.engine
            else:
                network = copy.deepcopy(model.unet)  # an engine may lay the weights out anew
                runner = engines.make(engine, network, model.config, model.device, precision)
            if runner.precision == "int8":
                raise ConfigError(NO_BOUND)
            timed = TimedEngine(runner, model.device)
            self._drawing[key] = Model(model.config, network, timed, None, model.device)
        return self._drawing[key]

    def published(self) -> _Runner:
        """The published recipe."""
        plan, device, network = self._plan, self._model.device, self._network
        unet = network.config
        schedule = Schedule.make(self._model.config.schedule, PUBLISHED_STEPS)
        shape = (plan.batch, 3, unet.image_size, unet.image_size)
        h = self._h[:1].expand(plan.batch, -1) if unet.representation_dim else None
        label = self._label[:1].expand(plan.batch) if unet.num_classes else None

        def predict(x: Tensor, k: int) -> Tensor:
            timesteps = torch.full((plan.batch,), schedule.network_timesteps[k], device=device)
            out: Tensor = network(x, timesteps, h, label)
            return out

        def evaluation() -> Tensor:
            with torch.inference_mode():
                return predict(torch.randn(shape, device=device), len(schedule) - 1)

        def noise(step: int) -> Tensor:
            return torch.randn(shape, device=device)

        def run() -> None:
            with torch.inference_mode():
                for _ in range(plan.batches):
                    solvers.ancestral(predict, noise(0), schedule, solvers.SolverOptions(), noise)

        labels = {"engine": PUBLISHED, "precision": "fp32", "solver": "ancestral", "steps": str(PUBLISHED_STEPS)}
        labels["what_runs"] = "plain PyTorch, the whole network in every step, one representation at a time"
        return _Runner(labels, len(schedule) * plan.batches, run, evaluation)


def measure(
    model: Model,
    plan: Plan,
    report: Callable[[list[dict[str, Any]], float], None],
) -> list[dict[str, Any]]:
    """Rates of all cases; one row each, the published recipe first.

    Args:
        model: what draws. Its own engine is used by cases that ask for ``auto`` twice; others are built here.
        plan: what to measure.
        report: called with all rows, and the fraction of the budget that is used up, whenever a row has changed.

    Raises:
        ConfigError: unknown engine, precision, solver or step count, or an engine that cannot run here.
    """
    device = model.device
    shared = benchmarking.facts(device) | {"model": model.config.name, "batch": plan.batch, "images": plan.drawn}
    start = time.monotonic()
    bench = _Bench(model, plan)
    runners = [bench.published()] if plan.published else []
    runners += [bench.runner(case) for case in plan.cases]
    for runner in runners:
        runner.warm_up(device)

    def rows() -> list[dict[str, Any]]:
        return [_row(runner, runners[0] if plan.published else None, plan, shared) for runner in runners]

    for _ in range(plan.rounds):
        for runner in runners:
            if not runner.why_not and runner.expected_s <= start + plan.budget_s - time.monotonic():
                runner.measure(device)
                report(rows(), min(1.0, (time.monotonic() - start) / plan.budget_s))
    report(rows(), 1.0)
    return rows()


def _row(runner: _Runner, published: _Runner | None, plan: Plan, shared: dict[str, Any]) -> dict[str, Any]:
    row = {**runner.labels, "nfe": runner.nfe // plan.batches, **shared}
    if runner.why_not:
        return row | {"why_not": runner.why_not, "red": True}
    if not runner.times_ms:
        return row | {"why_not": f"takes about {runner.expected_s:.0f} s, more than was left of {plan.budget_s:g} s"}
    row = benchmarking.row(runner.times_ms, **row)
    row["images_per_s"] = plan.drawn / (row["p50_ms"] * 1e-3)
    if runner.engine:
        fractions = [1 - own / whole for own, whole in zip(runner.evaluations_ms, runner.times_ms, strict=True)]
        row["sampler_percent"] = 100 * statistics.median(fractions)
        row["evaluation_ms"] = statistics.median(runner.evaluations_ms) / runner.nfe
    if published and published.times_ms:
        pairs = min(len(published.times_ms), len(runner.times_ms))
        row["times_published"] = benchmarking.pair_ratio(published.times_ms[:pairs], runner.times_ms[:pairs])
    return row
