"""The native engine on GPUs made of the CPU's memory: its graphs, its choices, its devices, and what it waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import devices, engines
from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines import cuda_graphs
from rcdm_fast.engines.native import NativeEngine
from rcdm_fast.models import checkpoint
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops import candidates
from tests import small
from tests.fake_cuda import CudaTensor, Machine, fake_cuda
from tests.tolerances import ENGINE_FP32_L2, TRAJECTORY_L2

CPU = torch.device("cpu")
SCHEDULE = Schedule.make(ScheduleConfig(1000, variance="learned_range"), 4)
REPRESENTATIONS = torch.randn(4, small.DIM, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def machine() -> Iterator[Machine]:
    with fake_cuda(2) as found:
        yield found


def make_network() -> UNet:
    return small.network().eval().requires_grad_(False)


def _engine(device: str = "cuda:0", precision: str = "fp32") -> tuple[NativeEngine, conditioning.ConditioningPlan]:
    network = make_network()
    engine = NativeEngine(network, torch.device(device), precision)
    return engine, conditioning.make_plan(network, SCHEDULE, REPRESENTATIONS.to(device), None)


def made_images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def truth(x: Tensor, rows: list[int], k: int) -> Tensor:
    network = make_network()
    plan = conditioning.make_plan(network, SCHEDULE, REPRESENTATIONS, None)
    with torch.inference_mode():
        return network.denoise(x, plan.batch(torch.tensor(rows)).film(k))


def _close(got: Tensor, want: Tensor, bound: float = ENGINE_FP32_L2) -> bool:
    assert isinstance(got, CudaTensor)
    return float((got.numbers - want).norm() / want.norm()) <= bound


@pytest.mark.parametrize("place", ["", "cuda:1"])
def test_the_main_job(machine: Machine, place: str, tmp_path: Path) -> None:
    """Load, encode, sample: the images are those of the CPU, on the device that was asked for."""
    file = tmp_path / "small.safetensors"
    made = small.model()
    checkpoint.save_model(file, made.config, made.unet.state_dict())
    images = small.make_images(3)
    on_cpu = rcdm_fast.load(file, encoder=small.encoder(), device="cpu")
    want = on_cpu.sample(on_cpu.encode(images), per=2, steps=3, batch_size=4)
    given: dict[str, Any] = {"device": place} if place else {}
    model = rcdm_fast.load(file, encoder=small.encoder().to(place or "cuda"), **given)
    assert model.engine.name == "native"
    h = model.encode(images)
    got = model.sample(h, per=2, steps=3, batch_size=4)
    assert str(got.device) == str(h.device) == str(model.device) == (place or "cuda:0")
    assert _close(got, want, TRAJECTORY_L2)
    assert "CUDA graphs for batches of [4, 2] (2 captured, at most 4 kept)" in model.describe()
    assert machine.current_device() == 0


@pytest.mark.parametrize("table", [True, False])
def test_a_step_waits_for_nothing(machine: Machine, table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with rows of a table nor with rows that are computed step by step; padded batches and shared rows too."""
    if not table:
        monkeypatch.setattr(conditioning, "TABLE_LIMIT_BYTES", 0)
    engine, plan = _engine()
    assert (plan.table is None) == (not table)
    for rows in ([3, 0, 3], [1, 2, 3, 0, 0]):
        x = made_images(len(rows))
        bound = engine.bind(plan, torch.tensor(rows))
        there = x.to("cuda")
        for k in (3, 1):
            with machine.no_waiting():
                got = bound.predict(there, k)
            assert _close(got, truth(x, rows, k))


@pytest.mark.parametrize("parts", [("cpu", "cuda"), ("cpu",)], ids=["native", "Triton alone"])
def test_maps(parts: tuple[str, ...]) -> None:
    """In padded batches, with shared rows and batches beside each other; in both forms of the program."""
    changes: dict[str, object] = {"condition_map": (5, 3, 4), "representation_dim": 60}
    network = small.network(**changes).eval().requires_grad_(False)
    given = torch.randn(4, 60, generator=torch.Generator().manual_seed(5))
    of_cpu = conditioning.make_plan(network, SCHEDULE, given, None)
    with fake_cuda(1, parts) as machine:
        twin = small.network(**changes).eval().requires_grad_(False)
        twin.load_state_dict(network.state_dict())
        engine = NativeEngine(twin, torch.device("cuda"), "fp32")
        plan = conditioning.make_plan(twin, SCHEDULE, given.to("cuda"), None)
        batches = [[3, 0, 3], [2]]
        bound = [engine.bind(plan, torch.tensor(rows)) for rows in batches]
        for k in (3, 1):
            for rows, batch in zip(batches, bound, strict=True):
                x = made_images(len(rows))
                there = x.to("cuda")
                with machine.no_waiting():
                    got = batch.predict(there, k)
                with torch.inference_mode():
                    want = network.denoise(x, of_cpu.batch(torch.tensor(rows)).film(k))
                assert _close(got, want)
        assert "map_film: " in engine.describe()


def test_preparing_and_predicting_in_any_mode(machine: Machine) -> None:
    """A graph's tensors are ordinary ones: they can be written inside inference mode and outside."""
    engine, plan = _engine()
    x = made_images(2)
    with torch.inference_mode():
        engine.warmup((2,))
    for inside in (False, True, False):
        with torch.inference_mode(inside):
            got = engine.bind(plan, torch.tensor([2, 1])).predict(x.to("cuda"), 2)
        assert _close(got, truth(x, [2, 1], 2))


def test_what_is_prepared_stays_prepared(machine: Machine) -> None:
    """Whatever is captured between two steps: the images keep their representations."""
    engine, plan = _engine()
    rows = [3, 1]
    x = made_images(2)
    bound = engine.bind(plan, torch.tensor(rows))
    for step in range(2):
        engine.warmup((1, 3, 5, 9)[:: 1 if step else -1])
        assert _close(bound.predict(x.to("cuda"), 1), truth(x, rows, 1))
    kept = engine.describe().split("batches of ")[1].split(" (")[0]
    assert len(kept.split(",")) == cuda_graphs.MOST_GRAPHS
    assert "2" in kept
    with pytest.raises(ValueError, match="3 images, bound was a batch of 2"):
        bound.predict(made_images(3).to("cuda"), 1)


@pytest.mark.parametrize("others", [[1, 2], [0, 1, 2, 3, 0]])
def test_batches_that_are_bound_beside_each_other(machine: Machine, others: list[int]) -> None:
    """In one graph or in two: each keeps its representations, and the second question of one waits for nothing."""
    engine, plan = _engine()
    rows = [3, 0]
    first, second = engine.bind(plan, torch.tensor(rows)), engine.bind(plan, torch.tensor(others))
    for _ in range(2):
        for bound, own in ((first, rows), (second, others)):
            x = made_images(len(own))
            there = x.to("cuda")
            assert _close(bound.predict(there, 1), truth(x, own, 1))
            with machine.no_waiting():
                bound.predict(there, 1)


def test_the_other_gpu(machine: Machine) -> None:
    """With another GPU current: captured, measured and replayed where the weights are."""
    x, rows = made_images(3), [0, 2, 1]
    for device, current in (("cuda:1", 0), ("cuda:0", 1)):
        engine, plan = _engine(device)
        torch.cuda.set_device(current)
        bound = engine.bind(plan, torch.tensor(rows))
        got = bound.predict(x.to(device), 2)
        assert str(got.device) == device
        assert _close(got, truth(x, rows, 2))
        assert torch.cuda.current_device() == current
        assert bound.first_nonfinite(x.to(device), 2) is None
        torch.cuda.set_device(0)
    captured_on = [str(facts.stream.device) for facts in machine.graphs]
    assert sorted(set(captured_on)) == ["cuda:0", "cuda:1"]
    assert captured_on == sorted(captured_on, reverse=True)  # first the engine of cuda:1
    torch.cuda.set_device(1)
    assert str(devices.placed("cuda")) == "cuda:1"
    assert str(devices.placed("cuda:0")) == "cuda:0"


def test_another_thread_encodes_during_a_capture(machine: Machine) -> None:
    engine, plan = _engine()
    encoder, images = small.encoder().to("cuda"), small.make_images(2)
    want = small.encoder().encode(images)
    found: list[Tensor] = []

    def encode() -> None:
        with machine.here():
            found.append(encoder.encode(images.to("cuda")))

    _meanwhile(machine, engine, encode, until=threading.Event())
    bound = engine.bind(plan, torch.tensor([1]))
    assert len(found) == 1
    assert torch.allclose(found[0].cpu(), want)
    assert _close(bound.predict(made_images(1).to("cuda"), 0), truth(made_images(1), [1], 0))


def test_two_models_capture_one_after_the_other(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, plan), (second, other) = _engine(), _engine("cuda:1")
    ended: list[str] = []
    asks = threading.Event()

    def bind() -> None:
        with machine.here():
            second.bind(other, torch.tensor([0]))
            ended.append("second")

    class Asked:
        """The lock, which tells when the second one stands before it."""

        def __init__(self, lock: threading.Lock) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                asks.set()
            self._lock.acquire()

        def __exit__(self, *error: object) -> None:
            self._lock.release()

    monkeypatch.setattr(cuda_graphs, "_capturing", Asked(cuda_graphs._capturing))
    thread = _meanwhile(machine, first, bind, until=asks)
    first.bind(plan, torch.tensor([0]))
    ended.append("first")
    thread.join(60)
    assert sorted(ended) == ["first", "second"]
    assert not [graph.fault for graph in machine.graphs if graph.fault]


def _meanwhile(
    machine: Machine, engine: NativeEngine, work: Callable[[], None], until: threading.Event
) -> threading.Thread:
    """Let another thread work while the engine's first graph is captured, until it ends or says so."""
    denoise = engine._made().denoise
    thread = threading.Thread(target=work)

    def hooked(*inputs: Any) -> Tensor:
        out = denoise(*inputs)
        mine = [capture for capture in machine.captures if capture.facts.thread == threading.get_ident()]
        if mine and thread.ident is None:
            thread.start()
            while thread.is_alive() and not until.wait(0.05):
                pass
        return out

    engine._made().denoise = hooked  # type: ignore[assignment, method-assign]
    return thread


def test_streams_follow_each_other(machine: Machine) -> None:
    """A graph's tensors are used on whatever stream is current, after what was done to them on the last one."""
    engine, plan = _engine()
    bound = engine.bind(plan, torch.tensor([0]))
    default, other = torch.cuda.current_stream(), torch.cuda.Stream()
    x = made_images(1).to("cuda")
    bound.predict(x, 0)
    with torch.cuda.stream(other):
        bound.predict(x, 0)
    assert default in other.waited_for  # type: ignore[attr-defined]
    bound.predict(x, 0)
    assert other in torch.cuda.current_stream().waited_for  # type: ignore[attr-defined]


def _costs(monkeypatch: pytest.MonkeyPatch, machine: Machine, fast_when_small: str) -> list[str]:
    """Two implementations of the norm, one fast for 4-px images, the other for 8-px ones; "triton" is slow to launch.

    Gives the list of those that run.
    """
    called: list[str] = []

    def candidate(name: str) -> Callable[..., None]:
        def write(out: Tensor, *inputs: Any) -> None:
            called.append(name)
            time.sleep(0.002 if name == "triton" else 0)
            machine.cost_ms = 0.02 if (out.shape[2] == 4) == (name == fast_when_small) else 0.05
            torch.ops.rcdm_fast.film_group_norm_out(out, *inputs)
            machine.cost_ms = 0.001

        return write

    found = {name: candidate(name) for name in ("native", "triton")}
    monkeypatch.setattr(candidates, "film_group_norm_candidates", lambda _: found)
    return called


def test_implementations_are_chosen_for_every_shape_by_what_they_take_in_a_graph(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _costs(monkeypatch, machine, "native")
    engine, plan = _engine()
    bound = engine.bind(plan, torch.tensor([0, 1]))
    choices = engine._backend.choices  # type: ignore[union-attr]
    times = choices.times_ms("film_group_norm")
    for kind, measured in times.items():
        out: Any = kind[0]
        small_image = out[0][2] == 4
        assert measured == pytest.approx(
            {"native": 0.02 if small_image else 0.05, "triton": 0.05 if small_image else 0.02}
        )
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in make_network().modules())
    assert len(times) < norms
    said = choices.describe()["film_group_norm"]
    # Some are of the forms with folded biases and given moments: of images that miss no bias.
    assert said == "native 19, triton 8 calls (measured, all of them: native 0.780 ms, triton 1.110 ms)"
    called = _costs(monkeypatch, machine, "triton")
    _engine()[0].warmup((2,))  # another model, for which the opposite is true
    assert called
    assert engine._backend.choices.times_ms("film_group_norm") == times  # type: ignore[union-attr]
    x = made_images(2).to("cuda")
    before = len(machine.kernels)
    assert bound.first_nonfinite(x, 1) is None
    assert machine.kernels[before:].count("film_group_norm_out") == norms


def test_settings_while_a_graph_is_captured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN times its algorithms, float32 is float32, and the host finds its settings again."""
    seen = set()
    convolution = torch.nn.functional.conv2d

    def look(*arguments: Any, **settings: Any) -> Tensor:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        seen.add((cudnn.benchmark, cudnn.conv.fp32_precision, cuda.matmul.fp32_precision))  # type: ignore[attr-defined]
        return convolution(*arguments, **settings)

    monkeypatch.setattr(torch.nn.functional, "conv2d", look)
    before = (torch.backends.cudnn.benchmark, torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
    engine, plan = _engine()
    state = torch.get_rng_state()
    bound = engine.bind(plan, torch.tensor([0]))
    assert seen == {(True, "ieee", "ieee")}
    seen.clear()
    x = made_images(1).to("cuda")
    bound.predict(x, 1)
    assert not seen  # a replay launches nothing by itself
    bound.first_nonfinite(x, 1)
    assert seen == {(False, "ieee", "ieee")}
    assert before == (torch.backends.cudnn.benchmark, torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("what", ["eager", "network", "encode"])
def test_float32_is_float32_wherever_the_plain_network_runs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    seen = set()
    convolution = torch.nn.functional.conv2d

    def look(*arguments: Any, **settings: Any) -> Tensor:
        seen.add(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
        return convolution(*arguments, **settings)

    device = torch.device("cuda")
    config, network = small.model().config, make_network()
    layer = torch.nn.Conv2d(3, 4, 3).requires_grad_(False)
    encoder = small.encoder()
    network.representation_encoder = layer  # to be moved with it
    engine = engines.make("eager", network, config, device, "fp32")
    model = rcdm_fast.Model(config, network, engine, encoder.to(device), device)
    monkeypatch.setattr(torch.nn.functional, "conv2d", look)
    if what == "eager":
        model.sample(REPRESENTATIONS, per=1, steps=1)
    elif what == "network":
        model.network(made_images(4), torch.tensor([5, 6, 7, 8]), REPRESENTATIONS)
    else:
        monkeypatch.setattr(encoder, "_forward", lambda x: layer(x)[:, 0].flatten(1)[:, : small.DIM])
        model.encode(small.make_images(2))
    assert seen == {"ieee"}


def test_the_first_layer_that_is_not_finite(machine: Machine) -> None:
    model = small.model()
    layer = dict(model.unet.named_modules())["middle_block.0.in_layers.2"]
    assert isinstance(layer, torch.nn.Conv2d)
    layer.weight.data[3, 2, 1, 1] = float("nan")
    device = torch.device("cuda:1")
    broken = rcdm_fast.Model(
        model.config, model.unet, engines.make("native", model.unet, model.config, device, "fp32"), None, device
    )
    with pytest.raises(SamplingError, match=r"first in layer middle_block\.0\S*, at step 2 \(fp32, native"):
        broken.sample(torch.randn(2, small.DIM), per=1, steps=3)


def test_measuring_keeps_no_operands(machine: Machine) -> None:
    """The peak of a pass that measures is that of a pass that does not, and the scratch of one operator."""
    engine, plan = _engine()
    program, backend = engine._made(), engine._backend
    x, film = torch.zeros(16, 3, 8, 8, device="cuda"), torch.zeros(16, len(plan.bias), device="cuda")
    rows = torch.zeros(16, dtype=torch.int64, device="cuda")
    peaks = []
    for measuring in (False, True):
        machine.peak_bytes = machine.allocated_bytes()
        before = machine.peak_bytes
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            if measuring:
                with backend.choices.measuring():  # type: ignore[union-attr]
                    program.denoise(x, film, rows)
            else:
                program.denoise(x, film, rows)
        peaks.append(machine.peak_bytes - before)
    assert peaks[1] <= 1.5 * peaks[0], peaks
