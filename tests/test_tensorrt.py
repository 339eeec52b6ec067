"""TensorRT plans: parsed and built without a GPU, recognised by their header; run where there is a GPU."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import rcdm_fast
from rcdm_fast import engines
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.engines import tensorrt_runtime
from rcdm_fast.export import plan_file, tensorrt
from rcdm_fast.export.onnx import ExportError, GraphError
from rcdm_fast.export.plan_file import PlanHeader
from rcdm_fast.storage import StorageError
from tests import small
from tests.reference_weights import CASES, flags_path, state_dict

HEADER = PlanHeader(
    "0.1.0", "tensorrt_rtx", "1.7.1", "fp16", "a" * 64, small.model().config, (1, 4, 8), ("sm89", "sm120"), False
)
needs_rtx = pytest.mark.skipif(
    not hasattr(pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx"), "ComputeCapability"),
    reason="another API",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return plan_file.write(tmp_path / "a.plan", HEADER, b"a plan" * 1000)


@needs_rtx
@pytest.mark.parametrize(("case", "targets"), [(CASES[0], ("sm89", "sm120")), (CASES[1], ("sm89",))])
def test_reference_cases_are_built(tmp_path: Path, case: str, targets: tuple[str, ...]) -> None:
    torch.save(state_dict(case), tmp_path / "checkpoint.pt")
    model = rcdm_fast.load(tmp_path / "checkpoint.pt", flags_path(case), device="cpu", engine="eager")
    said: list[str] = []
    (file,) = model.export(
        "tensorrt", tmp_path / "out", precision="fp16", targets=targets, batches=(4,), progress=said.append
    )
    header, built = plan_file.read(file)
    assert header == plan_file.read_header(file)
    assert len(built) > sum(value.numel() for value in model.unet.parameters())  # half of each, and code
    assert header.config == model.config
    assert (header.precision, header.batches, header.targets) == ("fp16", (4, 4, 4), targets)
    assert header.refittable == torch.cuda.is_available()
    assert any("building engine" in line for line in said)


@needs_rtx
def test_the_command_builds_dynamic_and_static_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "cifar10-supervised", "--to", "tensorrt", "--precision", "fp16", "--out", str(tmp_path / "p")]
    assert main([*command, "--target", "sm89", "--batch", "1,8"]) == 0
    assert main([*command, "--target", "sm89", "--batch", "8", "--dynamic"]) == 0
    found = {path.name: plan_file.read_header(path).batches for path in (tmp_path / "p").iterdir()}
    assert found == {
        "network-fp16-b1.plan": (1, 1, 1),
        "network-fp16-b8.plan": (8, 8, 8),
        "network-fp16-b1to8.plan": (1, 8, 8),
    }
    capsys.readouterr()
    assert main([*command, "--target", "sm90"]) == 2
    assert "cannot compile for 'sm90'; it can for sm75" in capsys.readouterr().err
    assert main([*command, "--target", "sm89", "--batch", "0"]) == 2
    if not torch.cuda.is_available():
        assert main(command) == 2
        assert "no GPU to build a plan for; name GPU generations" in capsys.readouterr().err


@needs_rtx
def test_what_cannot_be_parsed_is_said(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot parse the network"):
        tensorrt.build(tmp_path / "damaged.onnx", HEADER.config, (1, 1, 1), ("sm89",))


def test_a_plan_is_what_it_was(plan: Path) -> None:
    header, found = plan_file.read(plan)
    assert found == b"a plan" * 1000
    assert dataclasses.replace(header, size_bytes=0, sha256="") == HEADER


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "5999 bytes of 6000"),
        (lambda data: data[:-1] + b"x", "its checksum differs"),
        (lambda data: b"x" + data[1:], "no plan exported by rcdm_fast"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "header is damaged"),
        (lambda data: data[:20] + b"\x00" + data[21:], "header is damaged"),
        (lambda data: data[:12], "header is damaged"),
        (lambda data: b"", "no plan exported by rcdm_fast"),
    ],
)
def test_damage_is_recognised(plan: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    plan.write_bytes(damage(plan.read_bytes()))
    with pytest.raises(GraphError, match=message):
        plan_file.read(plan)


def test_other_places_and_batches_are_recognised(tmp_path: Path) -> None:
    HEADER.check_place("tensorrt_rtx", "1.7.1", "sm120", "a.plan")
    for place, message in (
        (("tensorrt_rtx", "1.7.1", "sm86"), "built for sm89, sm120, this GPU is sm86"),
        (("tensorrt_rtx", "1.8.0", "sm89"), "built by tensorrt_rtx 1.7.1, here is tensorrt_rtx 1.8.0"),
        (("tensorrt", "1.7.1", "sm89"), "here is tensorrt 1.7.1"),
    ):
        with pytest.raises(GraphError, match=message):
            HEADER.check_place(*place, "a.plan")
    for size in (1, 4, 8):
        HEADER.check_batch(size, "a.plan")
    for size in (0, 9):
        with pytest.raises(GraphError, match=f"1 to 8 pictures per evaluation, not {size}"):
            HEADER.check_batch(size, "a.plan")
    with pytest.raises(GraphError, match="cannot be read"):
        plan_file.read_header(tmp_path / "absent.plan")


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
        small.model().export("tensorrt", tmp_path, targets=("sm89",))
    with pytest.raises(ConfigError, match=r"no TensorRT \(tensorrt_of_nobody"):
        tensorrt.library()


def test_buckets() -> None:
    assert [tensorrt_runtime.bucket(size) for size in (1, 2, 3, 33, 256)] == [1, 2, 4, 64, 256]
    with pytest.raises(ConfigError, match="larger than TensorRT plans are built for"):
        tensorrt_runtime.bucket(257)


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
    (file,) = _gpu_model("eager", "fp32").export("tensorrt", tmp_path, precision="fp16", batches=(3,))
    other = rcdm_fast.load("cifar10-simclr-trunk", device="cuda", engine="tensorrt", precision="fp16", engine_file=file)
    h = torch.randn(3, 192)
    want = rcdm_fast.load("cifar10-simclr-trunk", device="cuda", engine="eager").sample(h, per=1, steps=5)
    assert float((other.sample(h, per=1, steps=5) - want).norm() / want.norm()) < 1e-2
