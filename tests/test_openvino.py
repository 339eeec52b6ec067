"""OpenVINO: the same numbers in float32 and bf16, int8 that was calibrated on trajectories, refusals that say why."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import benchmarking, engine_comparison, engines, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.conditioning import make_plan
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines.openvino_runtime import KEPT, OpenVINOEngine
from rcdm_fast.exporters import calibration, fallback, openvino_core
from rcdm_fast.exporters import openvino as exported
from rcdm_fast.exporters.graph import NetworkGraph
from rcdm_fast.exporters.onnx import ExportError, GraphError
from rcdm_fast.models import checkpoint
from tests import small
from tests.reference_weights import CASES, flags_path, state_dict
from tests.tolerances import FORWARD_L2, TRAJECTORY_L2

openvino = pytest.importorskip("openvino", reason="openvino is not installed")

pytestmark = pytest.mark.usefixtures("shared_exports")

CPU = torch.device("cpu")
has_bf16 = not engines.reasons_unavailable("openvino", CPU, "bf16")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for this file: what a test has exported and compiled, the next finds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(cache))


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def _reference(case: str, tmp_path: Path, engine: str, precision: str = "fp32") -> rcdm_fast.Model:
    path = tmp_path / "checkpoint.pt"
    torch.save(state_dict(case), path)
    return rcdm_fast.load(path, flags_path(case), device="cpu", engine=engine, precision=precision)


@pytest.mark.long
@pytest.mark.parametrize("case", [CASES[0], pytest.param(CASES[1], marks=pytest.mark.long(short=False))])
def test_reference_cases(case: str, tmp_path: Path) -> None:
    truth = _reference(case, tmp_path, "eager")
    h = torch.randn(3, truth.config.unet.representation_dim)
    cases = [engine_comparison.Case("openvino", "fp32")]
    cases += [engine_comparison.Case(engine, "bf16") for engine in ("openvino", "eager")] if has_bf16 else []
    settings = engine_comparison.Settings(steps=5, per=1, batch_size=2, rounds=1)
    _, exact, *reduced = engine_comparison.compare(truth, cases, h, settings)
    assert max(exact.step_errors) <= FORWARD_L2
    if has_bf16:
        ours, autocast = reduced
        assert max(ours.step_errors) <= 1.5 * max(autocast.step_errors)


@pytest.mark.long(short=False)
def test_a_whole_trajectory_of_a_bundled_model() -> None:
    h = torch.randn(2, 192)
    want, got = (rcdm_fast.load("cifar10-supervised", engine=engine) for engine in ("eager", "openvino"))
    settings = engine_comparison.Settings(steps=25, per=2, rounds=1)
    _, found = engine_comparison.compare(want, [engine_comparison.Case("openvino")], h, settings)
    assert found.path_errors[-1] <= TRAJECTORY_L2
    images = got.sample(h, per=2, steps=25, seed=settings.seed).flatten(0, 1)
    assert _relative(images, found.images) <= TRAJECTORY_L2


def test_batches_share_an_engine_and_few_are_kept() -> None:
    model = small.model()
    engine = OpenVINOEngine(model.unet, model.config, CPU, "fp32")
    model.engine = engine
    h = torch.randn(7, small.DIM)
    want = model.sample(h, per=1, steps=2)
    for size in range(1, 7):
        assert _relative(model.sample(h, per=1, steps=2, batch_size=size), want) <= TRAJECTORY_L2
    assert len(engine._requests) == KEPT


def test_the_batch_size_that_was_not_used_for_longest_is_given_up() -> None:
    engine: Any = OpenVINOEngine.__new__(OpenVINOEngine)
    engine._requests, engine._compiled = OrderedDict(), lambda size: f"for {size}"
    for size in (*range(1, KEPT + 1), 1, KEPT + 1):
        assert engine._request(size) == f"for {size}"
    assert sorted(engine._requests) == [1, *range(3, KEPT + 2)]


def test_what_is_compiled_is_kept_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
    engine = OpenVINOEngine(model.unet, model.config, CPU, "fp32")
    keys: list[dict[str, str]] = []

    def entry(_: str, key: dict[str, str], build: object) -> Path:
        keys.append(dict(key))
        raise FileNotFoundError

    monkeypatch.setattr("rcdm_fast.engines.cache.entry", entry)

    def asked(size: int) -> None:
        with pytest.raises(FileNotFoundError):
            engine._compiled(size)

    asked(2)
    asked(3)
    changes: tuple[tuple[object, str, object], ...] = (
        (engine, "precision", "bf16"),
        (engine, "_digest", "of other weights"),
        (torch, "get_num_threads", lambda: 77),
        (openvino, "__version__", "0.1"),
    )
    for where, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            asked(2)
    assert len({str(sorted(key.items())) for key in keys}) == len(keys) == 6
    asked(2)
    assert keys[-1] == keys[0]


def test_a_file_is_run_and_checked(tmp_path: Path) -> None:
    model = small.model()
    files = rcdm_fast.export(model, "openvino", tmp_path / "out")
    assert [file.name for file in files] == ["network.bin", "network.xml"]
    h = torch.randn(2, small.DIM)
    want = model.sample(h, per=1, steps=2)

    def run(network: object, file: Path, precision: str = "fp32") -> Tensor:
        model.engine = engines.make("openvino", network, model.config, CPU, precision, file)  # type: ignore[arg-type]
        return model.sample(h, per=1, steps=2)

    assert _relative(run(model.unet, files[1]), want) <= TRAJECTORY_L2
    other = small.network()
    with torch.no_grad():
        next(other.out.parameters()).add_(1)
    with pytest.raises(GraphError, match="exported from other weights"):
        run(other, files[1])
    with pytest.raises(GraphError, match="exported in fp32, asked for is int8"):
        run(model.unet, files[1], "int8")
    text = files[1].read_text()
    foreign = tmp_path / "out/foreign.xml"
    foreign.write_text(text.replace("<rcdm_fast>", "<someone>").replace("</rcdm_fast>", "</someone>"))
    (tmp_path / "out/foreign.bin").write_bytes(files[0].read_bytes())
    with pytest.raises(GraphError, match="not exported by rcdm_fast"):
        run(model.unet, foreign)
    weights = bytearray(files[0].read_bytes())
    weights[len(weights) // 2] ^= 255
    files[0].write_bytes(weights)
    with pytest.raises(GraphError, match="its checksum differs"):
        run(model.unet, files[1])
    files[1].write_text(text.replace('"timestep"', '"timestop"'))
    with pytest.raises(GraphError, match="damaged"):
        run(model.unet, files[1])
    files[1].write_text(text[: len(text) // 2])
    with pytest.raises(GraphError, match="cannot read it"):
        run(model.unet, files[1])


SIGNALED = """
    import ctypes, signal, sys, threading
    import torch
    import rcdm_fast
    from tests import small

    def stack():
        words = (ctypes.c_size_t * 3)()
        assert ctypes.CDLL(None).sigaltstack(None, words) == 0
        return list(words)

    signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
    before = stack()
    models = [rcdm_fast.load(sys.argv[1], device="cpu", engine="openvino", precision="fp32") for _ in range(2)]
    for model in models:
        model.sample(torch.ones(1, small.DIM), per=1, steps=2)
    del models[0], model
    signal.raise_signal(signal.SIGUSR1)
    other = threading.Thread(target=models.clear)
    other.start()
    other.join()
    signal.raise_signal(signal.SIGUSR1)
    print(stack() == before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack as Linux has it")
@pytest.mark.long
def test_signals_find_a_stack_when_engines_are_gone(tmp_path: Path, checkout: Path) -> None:
    """In whatever order and thread they go."""
    model = small.model()
    saved = checkpoint.save_model(tmp_path / "model", model.config, model.unet.state_dict())
    command = [sys.executable, "-c", textwrap.dedent(SIGNALED), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=checkout)
    assert done.stdout.split() == ["handled", "handled", "True"], (done.returncode, done.stderr)


def test_threads_that_come_at_once_get_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_core, "_MADE", {})
    together = threading.Barrier(4)
    real = openvino_core._loaded

    def late() -> object:
        made = real()
        together.wait(timeout=60)
        return made

    monkeypatch.setattr(openvino_core, "_loaded", late)
    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(openvino_core.core) for _ in range(4)]]
    assert all(each is found[0] for each in found)


def test_calibration_is_the_trajectory_itself() -> None:
    model = small.model()
    h = torch.randn(3, small.DIM)
    graph = NetworkGraph(model.unet, model.config.schedule)
    images, (x, timesteps, fractions, given) = calibration.collect(graph, model.config, h, steps=4)
    assert timesteps[::3].tolist() == [999, 666, 333, 0]
    assert not fractions.any()
    assert torch.equal(given[3:6], h)
    recorder = engine_comparison.RecordingEngine(model.engine)
    model.engine = recorder
    want = model.sample(h, per=1, solver="ddim", steps=4, seed=calibration.SEED)[:, 0]
    assert _relative(x, torch.cat([seen for _, _, seen, _ in recorder.seen])) < 1e-5
    assert _relative(images, want) < 1e-5


@pytest.mark.long(short=False)
def test_int8_keeps_the_images(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    model = rcdm_fast.load("cifar10-simclr-trunk", engine="eager")
    images = small.make_images(8, 32)
    said: list[str] = []
    rcdm_fast.export(model, "openvino", tmp_path / "out", precision="int8", calibrate=images, progress=said.append)
    assert any("int8" in line and "PSNR" in line for line in said)
    case = engine_comparison.Case("openvino", "int8", tmp_path / "out/network.xml")
    # Made-up images are unlike what the model was trained on: of the trajectories a few part early from float32's,
    # and one of them decides about the PSNR of few images.
    h = model.encode(small.make_images(24, 32, seed=5))
    _, found = engine_comparison.compare(model, [case], h, engine_comparison.Settings(steps=25, per=1, rounds=1))
    assert found.psnr_db >= 35
    assert "inner convolutions in int8, all but " in found.runs
    # Measured on a processor with AVX2 alone: 0.82, with more layers in floating point; why was not looked into.
    fraction = 0.75 if has_bf16 else 0.85
    assert found.file_bytes < fraction * sum(4 * value.numel() for value in model.unet.parameters())


@pytest.mark.long
@pytest.mark.parametrize("condition", ["label", pytest.param("nothing", marks=pytest.mark.long(short=False))])
def test_int8_of_models_without_representations(
    condition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    monkeypatch.setattr(fallback, "PSNR_DB", 15.0)  # made-up weights are rougher than trained ones
    monkeypatch.setattr(fallback, "MADE_UP", 8)
    model = small.model(representation_dim=0, num_classes=3 if condition == "label" else 0)
    said: list[str] = []
    rcdm_fast.export(model, "openvino", tmp_path / "out", precision="int8", progress=said.append)
    assert "drawing 8 trajectories" in said[1]
    model.engine = engines.make("openvino", model.unet, model.config, CPU, "int8", tmp_path / "out/network.xml")
    assert model.engine.digests == tuple(storage.sha256(tmp_path / "out" / f"network.{end}") for end in ("xml", "bin"))
    assert f"file {model.engine.digests[0][:12]}, on cpu" in model.engine.describe()
    label = torch.tensor([0, 2]) if condition == "label" else None
    between: Any = (412, 412.7)
    plan = make_plan(model.unet, Schedule(model.config.schedule, between), None, label)
    x, answers = torch.randn(1, 3, 8, 8), []
    for engine in (model.engine, engines.make("eager", model.unet, model.config, CPU, "fp32")):
        bound = engine.bind(plan, torch.tensor([0]))
        answers.append([bound.predict(x, k)[:, :3] for k in range(2)])
    whole, fraction = (_relative(ours, theirs) for ours, theirs in zip(*answers, strict=True))
    assert fraction <= 1.5 * whole
    assert _relative(answers[1][1], answers[1][0]) > 0.01
    got = model.sample(label=label, per=4, steps=5)
    model.engine = engines.make("eager", model.unet, model.config, CPU, "fp32")
    want = model.sample(label=label, per=4, steps=5)
    assert benchmarking.psnr_db(got, want) >= 15
    if condition == "label":  # each label has images of its own, further from the other's than int8 moves them
        turned = model.sample(label=label.flip(0), items=[0, 1], per=4, steps=5)  # type: ignore[union-attr]
        assert benchmarking.psnr_db(got, want) > benchmarking.psnr_db(got, turned)


@pytest.mark.parametrize("needed", range(8))
def test_the_fewest_layers_that_are_enough(needed: int) -> None:
    asked: list[int] = []

    def enough(kept: int) -> bool:
        asked.append(kept)
        return kept >= needed

    assert fallback.fewest(6, enough) == min(needed, 6)
    assert len(asked) <= 3


def test_int8_says_what_it_needs(tmp_path: Path) -> None:
    model = small.model()
    with pytest.raises(ConfigError, match="give at least 4 images"):
        rcdm_fast.export(model, "openvino", tmp_path / "out", precision="int8")
    assert not (tmp_path / "out").exists()  # said before anything is exported, which takes long
    with pytest.raises(ConfigError, match="int8 needs a calibrated export"):
        engines.make("openvino", model.unet, model.config, CPU, "int8")
    with pytest.raises(ConfigError, match="int8 runs in openvino only"):
        engines.make("native", model.unet, model.config, CPU, "int8")


@pytest.mark.long(short=False)
def test_int8_that_cannot_be_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    model = small.model()
    monkeypatch.setattr(fallback, "PSNR_DB", 500.0)
    monkeypatch.setattr(fallback, "MOST_KEPT", 0.15)  # fewer to go through
    with pytest.raises(
        ExportError, match=r"needed 500.*in floating point: (in|out)put_blocks\.\d+\.\d.*\(\d\.\de-\d\d\)"
    ):
        rcdm_fast.export(model, "openvino", tmp_path / "out", precision="int8", calibrate=small.make_images(4))
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_packages_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.reasons_unavailable("openvino", torch.device("cuda"), "fp32") == ["OpenVINO runs on the CPU here"]
    assert "no fp16" in engines.reasons_unavailable("openvino", CPU, "fp16")[0]
    monkeypatch.setattr(exported, "missing_packages", lambda: ["openvino"])
    assert engines.reasons_unavailable("openvino", CPU, "fp32") == ["not installed: openvino"]
