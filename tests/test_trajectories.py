"""Whole trajectories as one CUDA graph, on GPUs made of the CPU's memory: the images are those of step by step."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import engines
from rcdm_fast.config import FittedSolver, ModelConfig, ScheduleConfig
from rcdm_fast.diffusion import conditioning, fitted, registry, sampling
from rcdm_fast.diffusion.engine import Bound, EngineWrapper
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.diffusion.trajectory import Trajectory
from rcdm_fast.engines import trajectory_graphs
from rcdm_fast.engines.cuda_graphs import GraphCache
from rcdm_fast.engines.native import NativeEngine
from rcdm_fast.engines.trajectory_graphs import MOST_TRAJECTORIES, REMEMBERED, USES_BEFORE, TrajectoryGraphs
from tests import small
from tests.fake_cuda import Machine, fake_cuda
from tests.fake_streams import tensors_of

OF_MAPS: dict[str, Any] = {"condition_map": (5, 3, 4), "representation_dim": 60}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with fake_cuda(2) as found:
        yield found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trajectory is captured when it is asked for first, and said to be faster than step by step, without a trial."""
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 0)
    times = itertools.cycle([1.0, 2.0])

    def time_ms(self: GraphCache, run: object, runs: int = 0) -> float:
        return next(times) if runs == trajectory_graphs.TIMED_RUNS else 1.0  # of a form of the program

    monkeypatch.setattr(GraphCache, "time_ms", time_ms)


class Drawn:
    """An engine with a network of four representations."""

    def __init__(self, device: str = "cuda:0", **changes: object) -> None:
        self.network = small.network(**{"channel_mult": (1,), **changes}).eval().requires_grad_(False)
        self.engine = NativeEngine(self.network, torch.device(device), "fp32")
        self.given = torch.randn(4, self.network.config.representation_dim, generator=_generator(7)).to(device)
        self.device = device

    def bound(self, trajectory: Trajectory, rows: Sequence[int]) -> Bound:
        plan = conditioning.make_plan(self.network, trajectory.schedule, self.given, None)
        return self.engine.bind(plan, torch.tensor(rows))

    def both(self, trajectory: Trajectory, rows: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """Step by step, and as the engine draws all of it; with noise of that seed."""
        bound = self.bound(trajectory, rows)
        count = len(rows) // (1 if trajectory.guidance is None else 2)
        noise = torch.randn(101, count, 3, 8, 8, generator=_generator(seed)).to(self.device)
        x = noise[100]
        with torch.inference_mode():
            want = trajectory(bound.predict, x, noise.__getitem__)
        got = bound.trajectory(trajectory, x, noise.__getitem__)
        return want.cpu(), None if got is None else got.cpu()

    def graphs(self) -> TrajectoryGraphs:
        return cast(TrajectoryGraphs, self.engine._trajectories)

    def same(self, trajectory: Trajectory, rows: Sequence[int], seed: int = 0) -> Tensor:
        """That both have equal bits; gives the images."""
        want, got = self.both(trajectory, rows, seed)
        assert got is not None
        assert torch.equal(got, want)
        return got


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(solver: str, steps: int | str = 4, guidance: float | None = None, **options: Any) -> Trajectory:
    """Of a registered solver."""
    chosen = registry.choose(ModelConfig(small.UNET, small.SCHEDULE), solver, steps, SolverOptions(**options))
    return _of(chosen, SolverOptions(**options), guidance)


def made_fitted(change: float, nfe: int = 4) -> Trajectory:
    """Of a solver with numbers as if it had been fitted; made anew in every call."""
    times = Schedule.make(small.SCHEDULE, nfe).timesteps
    numbers = fitted.initial(small.SCHEDULE, times) + change
    config = ModelConfig(small.UNET, small.SCHEDULE, fitted=(FittedSolver(nfe, tuple(numbers.tolist()), ""),))
    return _of(registry.choose(config, "fitted", nfe), SolverOptions(), None)


def _of(chosen: registry.Chosen, options: SolverOptions, guidance: float | None) -> Trajectory:
    fresh = chosen.fresh or options.eta > 0
    return Trajectory(chosen.label, chosen.run, chosen.schedule, options, chosen.evaluations, fresh, guidance)


@pytest.mark.parametrize("count", [1, 3])  # of which the second is padded
def test_every_solver_draws_what_it_draws_step_by_step(machine: Machine, at_once: None, count: int) -> None:
    """The one that is captured and those that have other representations, noise and shared rows."""
    drawn = Drawn()
    of_all = [made(name, 5 if name == "heun" else 4) for name in registry.SOLVERS]
    of_all += [made("ddim", eta=0.7), made("heun", 3), made("ddim", 1), made_fitted(0.01)]
    for trajectory in of_all:
        images = [drawn.same(trajectory, rows[:count], seed) for seed, rows in enumerate(([1, 2, 3], [3, 0, 3]))]
        assert not torch.equal(*images)
        ((_, captured),) = [each for each in drawn.graphs()._kept.items() if each[0][1] == trajectory]
        assert bool(captured.noise) == trajectory.fresh
    assert len(drawn.graphs()._kept) == MOST_TRAJECTORIES


@pytest.mark.parametrize("count", [1, 3])
def test_memory_that_a_graph_uses_is_held(
    machine: Machine, at_once: None, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """By tensors, not only by kernels: all but what was allocated during the capture, which is the graph's."""
    own: dict[int, object] = {}
    wrap = machine.wrap

    def kept(inner: Tensor, device: torch.device) -> Tensor:
        storage = inner.untyped_storage()
        if machine.capturing() and storage._cdata not in machine._memory:  # no view of what was there
            own[storage._cdata] = storage
        return wrap(inner, device)

    monkeypatch.setattr(machine, "wrap", kept)
    drawn = Drawn()
    drawn.bound(made("ancestral"), [0, 1, 2][:count])
    own.clear()
    drawn.same(made("ancestral"), [0, 1, 2][:count])
    ((captured,),) = [drawn.graphs()._kept.values()]
    gc.collect()
    inputs = [(each.args, each.kwargs) for each in captured.graph.kernels]  # type: ignore[attr-defined]
    used = {each.untyped_storage()._cdata for each in tensors_of(inputs)}
    outer = {each.numbers.untyped_storage()._cdata for each in captured.noise.values()}  # type: ignore[attr-defined]
    assert outer <= used
    assert used - own.keys() <= machine._memory.keys()


@pytest.mark.parametrize(("changes", "table"), [({}, False), (OF_MAPS, True), (OF_MAPS, False)])
def test_rows_that_are_computed_and_maps(
    machine: Machine, at_once: None, changes: dict[str, Any], table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not table:
        monkeypatch.setattr(conditioning, "TABLE_LIMIT_BYTES", 0)
    drawn, trajectory = Drawn(**changes), made("deis", 4)
    for seed, rows in enumerate(([2, 1, 0], [3, 3, 1], [0, 0, 0])):
        drawn.same(trajectory, rows, seed)
    assert len(drawn.graphs()._kept) == 1


def test_what_differs_has_a_graph_of_its_own(machine: Machine, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever decides what a loop computes; and what is made anew with the same numbers has the same graph."""
    monkeypatch.setattr(trajectory_graphs, "MOST_TRAJECTORIES", 100)
    drawn = Drawn()
    other = ScheduleConfig(1000, noise_schedule="cosine", variance="learned_range")

    def all_of_them() -> list[tuple[Trajectory, list[int]]]:
        deis = made("deis", 3)
        plain = [
            *(deis, made("deis", 3, clip=False), made("deis", 4), made("deis", "karras3"), made("dpmpp_3m", 3)),
            *(made("ddim", 3), made("ddim", 3, eta=0.5), made("ddim", 3, eta=1.0), made("ddim", "at:0,400,999")),
            *(made_fitted(0.0, 3), made_fitted(0.02, 3), made_fitted(0.0, 4)),
            dataclasses.replace(deis, schedule=Schedule(other, deis.schedule.timesteps)),
            dataclasses.replace(deis, schedule=Schedule(dataclasses.replace(other, prediction="v"), (3, 90, 999))),
        ]
        guided = [made("ddim", 3, guidance) for guidance in (1.5, 3.0)]
        sizes = [(deis, [0, 1]), (deis, [2])]
        return [*((each, [2, 0, 1]) for each in plain), *((each, [0, 3]) for each in guided), *sizes]

    different = all_of_them()
    first = [drawn.same(*each) for each in different]
    assert len(drawn.graphs()._kept) == len(different)
    captured = len(machine.graphs)
    again = [drawn.same(*each) for each in all_of_them()]
    assert len(machine.graphs) == captured
    assert all(map(torch.equal, first, again))
    one_size = [images for images in first if len(images) == 3]
    assert not [1 for i, images in enumerate(one_size) for other in one_size[:i] if torch.equal(images, other)]


def test_one_launch_a_batch_that_waits_for_nothing(machine: Machine, at_once: None) -> None:
    drawn, trajectory = Drawn(), made("deis", 7)
    drawn.same(trajectory, [1, 2])
    bound = drawn.bound(trajectory, [3, 3])
    x = torch.randn(2, 3, 8, 8, generator=_generator(5)).to("cuda")
    before, launched = sum(facts.replays for facts in machine.graphs), len(machine.kernels)
    with machine.no_waiting():
        got = bound.trajectory(trajectory, x, lambda _: pytest.fail("asked for noise"))
    assert sum(facts.replays for facts in machine.graphs) == before + 1
    assert machine.kernels[launched:] == ["copy_", "index_select", "copy_", "clone"]
    assert got is not None
    with torch.inference_mode():
        assert torch.equal(got.cpu(), trajectory(bound.predict, x, lambda _: x).cpu())


def test_streams_follow_each_other(machine: Machine, at_once: None) -> None:
    """Also the graphs of single evaluations, whose memory is the same."""
    drawn, trajectory = Drawn(), made("ddim", 2)
    drawn.same(trajectory, [1])
    bound, x = drawn.bound(trajectory, [2]), torch.zeros(1, 3, 8, 8, device="cuda")
    default, other = torch.cuda.current_stream(), torch.cuda.Stream()
    bound.predict(x, 0)
    with torch.cuda.stream(other):
        bound.trajectory(trajectory, x, lambda _: x)
    assert default in other.waited_for  # type: ignore[attr-defined]
    default.waited_for.clear()  # type: ignore[attr-defined]
    bound.predict(x, 0)
    assert other in torch.cuda.current_stream().waited_for  # type: ignore[attr-defined]


def test_a_few_uses_pay_for_no_capture(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each trajectory by itself; those that were dropped or forgotten are counted anew."""
    drawn, x = Drawn(), torch.zeros(1, 3, 8, 8, device="cuda")

    def whole(name: str, guidance: float | None = None) -> bool:
        trajectory = made(name, 3, guidance)
        bound = drawn.bound(trajectory, [0] if guidance is None else [0, 1])
        return bound.trajectory(trajectory, x, lambda _: x) is not None

    names = ("ddim", "deis", "unipc_2", "dpmpp_2m", "dpmpp_3m")
    assert [whole("ddim") for _ in range(USES_BEFORE)] == [False] * USES_BEFORE
    captured = len(machine.graphs)
    assert whole("ddim")
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 1)
    assert not any(whole(name) for name in names[1:])
    assert len(machine.graphs) == captured + 1
    assert all(whole(name) for name in names[1:])
    assert len(machine.graphs) == captured + len(names)
    assert [key[1].name for key in drawn.graphs()._kept] == list(names[1:])
    assert len(names) == MOST_TRAJECTORIES + 1
    assert whole("deis")  # which is now the last one used
    assert [whole("ddim") for _ in range(2)] == [False, True]
    assert [key[1].name for key in drawn.graphs()._kept] == ["dpmpp_2m", "dpmpp_3m", "deis", "ddim"]
    for strength in range(REMEMBERED + 3):
        assert not whole("ddim", 2.0 + strength)
    assert len(drawn.graphs()._met) == REMEMBERED + MOST_TRAJECTORIES
    assert not whole("ddim", 2.0)  # forgotten since
    assert whole("ddim", 3.0 + REMEMBERED)


def test_the_faster_way_is_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock; of the fakes' kernels each takes equally long, and a graph of everything has fewer."""
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 0)
    drawn = Drawn()
    drawn.same(made("ddim"), [1])
    assert "; trajectories in one launch: ddim, 4 evaluations of 1 (" in drawn.engine.describe()
    assert "faster step by step" not in drawn.engine.describe()
    found = drawn.graphs()._met[1, made("ddim")]
    assert 0 < found.whole_ms < found.steps_ms
    times = [2.0, 1.0, 1.0, 1.0]
    monkeypatch.setattr(GraphCache, "time_ms", lambda *_: times.pop(0))
    for name in ("deis", "ipndm"):  # slower, and no faster
        captured = len(machine.graphs)
        for _ in range(3):
            assert drawn.both(made(name), [1])[1] is None
        assert len(machine.graphs) == captured + 1  # it is not tried again
    said = drawn.engine.describe()
    assert said.endswith(
        "; faster step by step: deis, 4 evaluations of 1 (2.000 ms, step by step 1.000), "
        "ipndm, 4 evaluations of 1 (1.000 ms, step by step 1.000)"
    )
    drawn.same(made("ddim"), [2])


def test_what_is_too_much_for_a_graph(machine: Machine, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn()
    assert drawn.both(made("deis"), [0, 1, 2, 3, 0])[1] is None
    assert drawn.both(made("deis", 101), [0])[1] is None
    assert drawn.both(made("deis", observer=lambda i, x: None), [0])[1] is None
    row = drawn.graphs()._row_size
    for solver, numbers in (("deis", 2 * row), ("ancestral", 2 * row + 2 * 3 * 8 * 8)):
        for short in (1, 0):
            monkeypatch.setattr(trajectory_graphs, "MOST_BYTES", 4 * 4 * numbers - short)
            assert (drawn.both(made(solver), [0, 1])[1] is None) == bool(short)
    assert len(drawn.graphs()._kept) == 2


def test_wrong_use(machine: Machine, at_once: None) -> None:
    drawn, trajectory, x = Drawn(), made("ddim", 3), torch.zeros(2, 3, 8, 8, device="cuda")
    bound = drawn.bound(trajectory, [0, 1])
    for other in (2, 4):
        with pytest.raises(ValueError, match=f"{other} steps, bound was a plan of 3"):
            bound.trajectory(made("ddim", other), x, lambda _: x)
    with pytest.raises(ValueError, match="1 images, bound was a batch of 2"):
        bound.trajectory(trajectory, x[:1], lambda _: x)
    with pytest.raises(ValueError, match="4 images, bound was a batch of 2"):
        bound.trajectory(made("ddim", 3, guidance=2.0), x, lambda _: x)


def test_who_wraps_an_engine_sees_every_evaluation(machine: Machine, at_once: None) -> None:
    drawn, trajectory, x = Drawn(), made("ddim", 2), torch.zeros(1, 3, 8, 8)
    drawn.same(trajectory, [0])
    wrapped = EngineWrapper(drawn.engine).bound(drawn.bound(trajectory, [0]).batch)
    assert wrapped.trajectory(trajectory, x.to("cuda"), lambda _: x) is None
    on_cpu = Drawn("cpu")
    assert on_cpu.bound(trajectory, [0]).trajectory(trajectory, x, lambda _: x) is None


def _model(device: str = "cuda:0", **settings: Any) -> rcdm_fast.Model:
    plain = small.quick_model()
    config = dataclasses.replace(plain.config, **settings)
    place = torch.device(device)
    return rcdm_fast.Model(config, plain.unet, engines.make("native", plain.unet, config, place, "fp32"), None, place)


def _captured(model: rcdm_fast.Model) -> int:
    assert isinstance(model.engine, NativeEngine)
    return 0 if model.engine._trajectories is None else len(model.engine._trajectories._kept)


@pytest.mark.parametrize(
    "settings", [{}, {"solver": "ddim", "eta": 0.5}, {"guidance": 2.0}, {"solver": "ancestral", "guidance": 0.5}]
)
def test_samples_stay_what_they_are(
    machine: Machine, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 3)
    model, h = _model(representation_dropout=0.1), torch.randn(2, small.DIM, generator=_generator(1))
    want = model.sample(h, per=1, steps=4, **settings)
    other = model.sample(h + 1, per=1, steps=4, seed=5, **settings)
    model.sample(h, per=1, steps=4, **settings)
    assert _captured(model) == 0
    for _ in range(2):
        assert torch.equal(model.sample(h, per=1, steps=4, **settings).cpu(), want.cpu())
        assert torch.equal(model.sample(h + 1, per=1, steps=4, seed=5, **settings).cpu(), other.cpu())
        assert _captured(model) == 1
    given = torch.randn(2, 1, 3, 8, 8, generator=_generator(2))
    steps = torch.randn(4, 2, 1, 3, 8, 8, generator=_generator(3))
    got = model.sample(h, per=1, steps=4, noise=given, step_noise=steps, **settings)
    want = _model(representation_dropout=0.1).sample(h, per=1, steps=4, noise=given, step_noise=steps, **settings)
    assert torch.equal(got.cpu(), want.cpu())


def test_a_guide_is_asked_step_by_step(machine: Machine, at_once: None) -> None:
    model, guide, h = _model(), _model(), torch.randn(1, small.DIM)
    for _ in range(2):
        model.sample(h, per=1, steps=3, guide=guide, guidance=2.0)
    assert _captured(model) == _captured(guide) == 0


def test_the_bar_counts_every_image(machine: Machine, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []
    make = sampling._bar

    def kept(*given: Any) -> Any:
        bars.append(make(*given))
        return bars[-1]

    monkeypatch.setattr(sampling, "_bar", kept)
    model = _model()
    model.sample(torch.randn(5, small.DIM), per=1, steps=4, batch_size=2, progress=True)
    assert _captured(model) == 2  # of two images, and of the one that is left
    assert float(bars[0].n) == pytest.approx(5)


def test_the_layer_that_is_not_finite_is_still_named(machine: Machine, at_once: None) -> None:
    model = _model()
    model.sample(torch.randn(2, small.DIM), per=1, steps=3)
    with pytest.raises(SamplingError, match=r"not finite: first in layer \S+, at step 2 \(fp32, native\)"):
        model.sample(torch.full((2, small.DIM), 1e38), per=1, steps=3)
    assert bool(model.sample(torch.randn(2, small.DIM), per=1, steps=3).isfinite().all())
    assert _captured(model) == 1


def test_two_models_in_two_threads(machine: Machine, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures take turns, and each model's images are its own."""
    h = torch.randn(2, small.DIM, generator=_generator(4))
    models = [_model(), _model("cuda:1")]
    found: dict[int, Tensor] = {}

    def draw(number: int) -> None:
        with machine.here():
            drawn = [models[number].sample(h, per=1, steps=3, seed=seed).cpu() for seed in range(3)]
            found[number] = torch.cat(drawn)

    with monkeypatch.context() as patch:
        patch.setattr(NativeEngine, "trajectory", lambda *_: None)
        for number in range(2):
            draw(number)
    want = dict(found)
    threads = [threading.Thread(target=draw, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [_captured(model) for model in models] == [1, 1]
    assert all(torch.equal(found[number], want[number]) for number in range(2))
    assert not [graph.fault for graph in machine.graphs if graph.fault]
