"""TensorRT plans: parsed and built without a GPU, recognized by their description; run where there is a GPU."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import rcdm_fast
from rcdm_fast import engines, storage
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.engines import tensorrt_runtime
from rcdm_fast.exporters import onnx as onnx_export
from rcdm_fast.exporters import plan_file, tensorrt
from rcdm_fast.exporters.onnx import ExportError, GraphError
from rcdm_fast.exporters.plan_file import PlanHeader
from rcdm_fast.models import checkpoint
from rcdm_fast.storage import StorageError
from rcdm_fast.version import __version__
from tests import small
from tests.exports import FEW_LAYERS
from tests.reference_weights import CASES, flags_path, state_dict

HEADER = PlanHeader(
    __version__,
    "tensorrt_rtx",
    "1.7.1",
    "fp16",
    "a" * 64,
    small.model().config,
    (1, 4, 8),
    ("sm89", "sm120"),
    False,
)
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return plan_file.write(tmp_path / "a.plan", HEADER, b"a plan" * 1000)


@pytest.mark.long
@needs_rtx
@pytest.mark.parametrize(
    ("case", "targets", "dynamic"),
    [
        pytest.param(CASES[0], ("sm89", "sm120"), False, marks=pytest.mark.long(short=False)),
        (CASES[1], ("sm89",), True),
    ],
)
def test_reference_cases_are_built(tmp_path: Path, case: str, targets: tuple[str, ...], dynamic: bool) -> None:
    torch.save(state_dict(case), tmp_path / "checkpoint.pt")
    model = rcdm_fast.load(tmp_path / "checkpoint.pt", flags_path(case), device="cpu", engine="eager")
    said: list[str] = []
    file, description = rcdm_fast.export(
        model,
        "tensorrt",
        tmp_path / "out",
        precision="fp16",
        targets=targets,
        batches=(4,),
        dynamic=dynamic,
        progress=said.append,
    )
    assert file.name == ("network-fp16-b1to4.plan" if dynamic else "network-fp16-b4.plan")
    assert description == plan_file.described_in(file)
    header, built = plan_file.read(file)
    assert header == plan_file.read_header(file)
    assert len(built) > sum(value.numel() for value in model.unet.parameters())  # half of each, and code
    assert header.config == model.config
    assert (header.precision, header.batches, header.targets) == ("fp16", (1 if dynamic else 4, 4, 4), targets)
    assert header.refittable == (targets == (tensorrt.current_target(),))
    assert any("building engine" in line for line in said)


def malformed(plan: bytes) -> bool:
    """Whether TensorRT itself, which no GPU is needed for, takes bytes for something else than a plan."""
    trt = tensorrt.library()
    _, found = trt.Runtime(tensorrt.make_logger(trt)).get_engine_validity(plan)
    return bool(int(found) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE))


@needs_rtx
def test_the_command_builds_a_plan_for_every_batch(
    shared_exports: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small.model(**FEW_LAYERS)
    config = dataclasses.replace(model.config, encoder=None)
    saved = checkpoint.save_model(tmp_path / "small", config, model.unet.state_dict())
    command = ["export", str(saved), "--to", "tensorrt", "--precision", "fp16", "--out", str(tmp_path / "p")]
    assert main([*command, "--target", "sm89", "--batch-size", "1,8"]) == 0
    plans = list((tmp_path / "p").glob("*.plan"))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == sorted(
        name for path in plans for name in (path.name, f"{path.name}.json")
    )
    found = {path.name: plan_file.read_header(path).batches for path in plans}
    assert found == {
        "network-fp16-b1.plan": (1, 1, 1),
        "network-fp16-b8.plan": (8, 8, 8),
    }
    assert not any(malformed(path.read_bytes()) for path in plans)
    assert malformed(b"a header of ours" + plans[0].read_bytes())
    capsys.readouterr()
    assert main([*command, "--target", "sm90"]) == 2
    assert "cannot compile for 'sm90'; it can for sm75" in capsys.readouterr().err
    assert main([*command, "--target", "sm89", "--batch-size", "0"]) == 2
    if not torch.cuda.is_available():
        assert main(command) == 2
        assert "no GPU to build a plan for; name GPU generations" in capsys.readouterr().err


@needs_rtx
def test_what_cannot_be_parsed_is_said(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot parse the network"):
        tensorrt.build(tmp_path / "damaged.onnx", HEADER.config, (1, 1, 1), ("sm89",))


def test_a_plan_is_what_it_was(plan: Path) -> None:
    assert plan.read_bytes() == b"a plan" * 1000  # and nothing else: other tools read it
    header, found = plan_file.read(plan)
    assert found == b"a plan" * 1000
    assert dataclasses.replace(header, size_bytes=0, sha256="") == HEADER


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], r"5999 bytes, but a\.plan\.json is of a plan of 6000"),
        (lambda data: data[:-1] + b"x", r"a\.plan: damaged, or not the plan that a\.plan\.json is of"),
        (lambda data: b"x" + data[1:], "its checksum differs"),
        (lambda data: b"", "0 bytes, but"),
        (lambda data: b"RCDMPLN1" + data, r"a\.plan: a plan inside a container, .* export it again"),
    ],
)
def test_a_damaged_plan_is_recognized(plan: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    plan.write_bytes(damage(plan.read_bytes()))
    with pytest.raises(GraphError, match=message):
        plan_file.read(plan)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-10], r"a\.plan\.json: damaged"),
        (lambda text: "", r"a\.plan\.json: damaged"),
        (lambda text: "[" * 200_000, r"a\.plan\.json: damaged"),
        (lambda text: "3", r"a\.plan\.json: damaged"),
        (lambda text: " " * 2**20 + text, r"a\.plan\.json: cannot be read \(a description of 10"),
        (lambda text: text.replace('"image_size": 8', '"image_size": -8'), r"a\.plan\.json: damaged"),
        (lambda text: text.replace('"batches": [\n  1', '"batches": [\n  9'), "batches of 9, 4 and 8"),
        (lambda text: text.replace('"fp16"', "16"), "precision is no text"),
        (lambda text: text.replace("TensorRT plan 1", "TensorRT plan 2"), "TensorRT plan 2' where .* was expected"),
    ],
)
def test_a_damaged_description_is_recognized(plan: Path, damage: Callable[[str], str], message: str) -> None:
    description = plan_file.described_in(plan)
    text = description.read_text(encoding="utf-8")
    assert damage(text) != text
    description.write_text(damage(text), encoding="utf-8")
    with pytest.raises(GraphError, match=message):
        plan_file.read(plan)


def test_a_stop_between_the_two_files_is_recognized(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is new, its description an older one or not there."""
    for before in (True, False):
        description = plan_file.described_in(plan)
        if not before:
            description.unlink()
        whole = storage.move

        def stopped(finished: Path, target: Path) -> None:
            if target == description:  # noqa: B023 # called before the loop goes on
                raise KeyboardInterrupt
            whole(finished, target)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(storage, "move", stopped)
            with pytest.raises(KeyboardInterrupt):
                plan_file.write(plan, HEADER, b"another" * 1000)
        assert plan.read_bytes() == b"another" * 1000
        with pytest.raises(GraphError, match="stopped between the two files" if before else "the export was stopped"):
            plan_file.read(plan)
    plan_file.write(plan, HEADER, b"another" * 1000)
    assert plan_file.read(plan)[1] == b"another" * 1000


def test_a_description_is_no_plan(plan: Path) -> None:
    with pytest.raises(GraphError, match=r"a\.plan\.json: describes a plan and is none"):
        plan_file.read(plan_file.described_in(plan))


def test_other_places_and_batches_are_recognized(tmp_path: Path) -> None:
    HEADER.check_target("tensorrt_rtx", "1.7.1", "sm120", "a.plan")
    for place, message in (
        (("tensorrt_rtx", "1.7.1", "sm86"), "built for sm89, sm120, this GPU is sm86"),
        (("tensorrt_rtx", "1.8.0", "sm89"), "built by tensorrt_rtx 1.7.1, here is tensorrt_rtx 1.8.0"),
        (("tensorrt", "1.7.1", "sm89"), "here is tensorrt 1.7.1"),
    ):
        with pytest.raises(GraphError, match=message):
            HEADER.check_target(*place, "a.plan")
    assert [HEADER.batch_for(size, "a.plan") for size in (1, 5, 8)] == [1, 5, 8]
    static = dataclasses.replace(HEADER, batches=(8, 8, 8))
    assert [static.batch_for(size, "a.plan") for size in (1, 5, 8)] == [8, 8, 8]
    with pytest.raises(GraphError, match="at most 8 images per evaluation, not 9; sample with batch_size=8"):
        static.batch_for(9, "a.plan")
    with pytest.raises(GraphError, match="cannot be read"):
        plan_file.read_header(tmp_path / "absent.plan")


def test_other_networks_are_recognized() -> None:
    config = HEADER.config
    HEADER.check_network(config, "fp16", "a.plan")
    other = small.model(num_res_blocks=2).config
    schedule = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, diffusion_steps=500))
    for header, wanted, precision, message in (
        (dataclasses.replace(HEADER, version="0.0.1"), config, "fp16", "exported by rcdm_fast 0.0.1, this is"),
        (HEADER, config, "fp32", "built in fp16, asked for is fp32"),
        (HEADER, other, "fp16", "another structure or schedule"),
        (HEADER, schedule, "fp16", "another structure or schedule"),
    ):
        with pytest.raises(GraphError, match=message):
            header.check_network(wanted, precision, "a.plan")


def test_other_weights_need_a_plan_that_takes_them() -> None:
    able = dataclasses.replace(HEADER, refittable=True)
    assert [header.needs_refit("a" * 64, "a.plan") for header in (HEADER, able)] == [False, False]
    assert able.needs_refit("b" * 64, "a.plan")
    with pytest.raises(GraphError, match=r"built from other weights \(sha256 aaaaaaaaaaaa\) and not refittable"):
        HEADER.needs_refit("b" * 64, "a.plan")


@pytest.mark.long
def test_exports_of_one_structure_differ_in_weights_alone(tmp_path: Path) -> None:
    """What a refit rests on: it finds weights by name."""
    onnx = pytest.importorskip("onnx")
    one, two = (small.network(channel_mult=(1,)) for _ in range(2))
    with torch.no_grad():
        for parameter in two.parameters():
            parameter.mul_(1.5)
    graphs = []
    for name, network in (("one", one), ("two", two)):
        path = onnx_export.export_network(tmp_path / f"{name}.onnx", network, HEADER.config, "fp16", check=False)
        graphs.append(onnx.load(str(path)).graph)
    assert list(graphs[0].node) == list(graphs[1].node)
    weights = [{entry.name: entry.SerializeToString() for entry in graph.initializer} for graph in graphs]
    assert weights[0].keys() == weights[1].keys()
    assert sum(weights[0][name] != weights[1][name] for name in weights[0]) >= len(list(one.parameters())) // 2


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        plan_file.write(tmp_path / "a.plan", HEADER, b"plan")
    assert list(tmp_path.iterdir()) == []


def test_without_a_library_or_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no CUDA device"):
            engines.make("tensorrt", small.network(), HEADER.config, torch.device("cuda"), "fp16")
    with pytest.raises(ConfigError, match="does not run on cpu"):
        engines.make("tensorrt", small.network(), HEADER.config, torch.device("cpu"), "fp16")
    monkeypatch.setattr(tensorrt, "LIBRARIES", ("tensorrt_of_nobody",))
    with pytest.raises(ConfigError, match="not installed: tensorrt or tensorrt_rtx"):
        rcdm_fast.export(small.model(), "tensorrt", tmp_path, targets=("sm89",))
    with pytest.raises(ConfigError, match=r"no TensorRT \(tensorrt_of_nobody"):
        tensorrt.library()


def test_buckets() -> None:
    assert [tensorrt_runtime.bucket(size) for size in (1, 2, 3, 33, 256)] == [1, 2, 4, 64, 256]
    with pytest.raises(ConfigError, match="larger than TensorRT plans are built for"):
        tensorrt_runtime.bucket(257)


def test_a_batch_is_filled_up_to_its_bucket() -> None:
    for value in (torch.randn(3, 3, 4, 4), torch.tensor([5, 6, 7]), torch.randn(3, 6)):
        padded = tensorrt_runtime._padded(value, 4)
        assert padded.shape == (4, *value.shape[1:])
        assert padded.dtype == value.dtype
        assert torch.equal(padded[:3], value)
        assert not padded[3].any()
        assert tensorrt_runtime._padded(value, 3) is value


def _gpu_model(engine: str, precision: str, file: Path | None = None) -> rcdm_fast.Model:
    return rcdm_fast.load("cifar10-supervised", device="cuda", engine=engine, precision=precision, engine_file=file)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_the_engine_computes_the_network(precision: str, bound: float) -> None:
    if engines.reasons_unavailable("tensorrt", torch.device("cuda"), precision):  # type: ignore[arg-type]
        pytest.skip("TensorRT cannot build for this GPU")
    h = torch.randn(3, 192)
    want = _gpu_model("eager", "fp32").sample(h, per=1, steps=5)
    got = _gpu_model("tensorrt", precision).sample(h, per=1, steps=5)
    assert float((got - want).norm() / want.norm()) < bound


@pytest.mark.gpu
def test_a_plan_with_other_weights_is_refitted(tmp_path: Path) -> None:
    if engines.reasons_unavailable("tensorrt", torch.device("cuda"), "fp16"):
        pytest.skip("TensorRT cannot build for this GPU")
    file, _ = rcdm_fast.export(_gpu_model("eager", "fp32"), "tensorrt", tmp_path, precision="fp16", batches=(4,))
    other = rcdm_fast.load("cifar10-simclr-trunk", device="cuda", engine="tensorrt", precision="fp16", engine_file=file)
    h = torch.randn(3, 192)
    want = rcdm_fast.load("cifar10-simclr-trunk", device="cuda", engine="eager").sample(
        h, per=1, steps=5, solver="ddim"
    )
    assert float((other.sample(h, per=1, steps=5, solver="ddim") - want).norm() / want.norm()) < 1e-2
