"""Calibrated files as they are named in commands and calls, in results, and where a model goes with one."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import rcdm_fast
from rcdm_fast import cli, engine_comparison, engines, provenance, storage, throughput
from rcdm_fast.analysis import adapted
from rcdm_fast.analysis.adapted import Wanted
from rcdm_fast.cli import bench
from rcdm_fast.cli import compare as comparison
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.conditioning import make_plan
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engine_comparison import Case, Settings
from rcdm_fast.engines.eager import EagerEngine
from rcdm_fast.exporters import fp8
from rcdm_fast.exporters.onnx import GraphError
from rcdm_fast.model import Model
from rcdm_fast.models.fp8 import MOST_EXPONENT, Fp8Convolution, inner_convolutions, input_scale
from rcdm_fast.solver_quality import SolverCase
from rcdm_fast.storage import StorageError
from tests import small

CPU = torch.device("cpu")
ONCE = Settings(steps=1, per=1, rounds=1)


def written(model: Model, path: Path, scale: float = 2.0**-4) -> Path:
    found = inner_convolutions(model.unet)
    scales = {name: torch.full((each.in_channels,), scale) for name, each in found.items()}
    fp8.save(fp8.Calibrated(scales, (), 43.5, path), model.unet, model.config)
    return path


def with_fp8(model: Model, file: Path) -> Model:
    return engine_comparison.with_engine(model, Case("eager", "fp8", file))


def not_loaded(*_: Any, **__: Any) -> None:
    pytest.fail("the model was loaded")


@pytest.mark.parametrize("wrong", [torch.bfloat16, None, 16, b"fp32"])
def test_what_is_no_text_is_no_precision(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdm_fast.models.checkpoint.load_model", not_loaded)
    said = r"one of auto, fp32, bf16, fp16, int8, fp8; got (torch\.bfloat16|None|16|b'fp32')"
    with pytest.raises(ConfigError, match=said):
        rcdm_fast.load("cifar10-supervised", device="cpu", precision=wrong)


@pytest.mark.parametrize(("precision", "name"), [("fp8", "fp8.safetensors"), ("int8", "network.xml")])
def test_a_folder_is_no_file(precision: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdm_fast.models.checkpoint.load_model", not_loaded)
    said = re.escape(f"{tmp_path} is a folder; name the file in it: {tmp_path / name}")
    with pytest.raises(ConfigError, match=said):
        rcdm_fast.load("cifar10-supervised", device="cpu", precision=f"{precision}={tmp_path}")
    with pytest.raises(ConfigError, match=said):
        rcdm_fast.load("cifar10-supervised", device="cpu", precision=precision, engine_file=tmp_path)
    with pytest.raises(ConfigError, match=said):
        Case.parse(f"eager:{precision}={tmp_path}")


def test_one_file_by_two_names_is_one(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert engines.parse(f"fp8={tmp_path}/a", f"{tmp_path}/x/../a")[1] == f"{tmp_path}/a"
    with pytest.raises(ConfigError, match="two files"):
        engines.parse(f"fp8={tmp_path}/a", f"{tmp_path}/x/a")


def test_bench_takes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every engine: those that have fp8 are measured, the others left out with their own reasons."""
    text = f"fp8={written(small.quick_model(), tmp_path / 'fp8.safetensors')}"
    found = bench._cases(CPU, "all", text, [SolverCase("ddim", 2)])
    assert found == (throughput.Case("eager", text, "ddim", 2),)
    said = capsys.readouterr().out
    assert "left out    openvino fp8=" in said
    assert said.count("fp8 runs in native, eager only") == len(engines.ENGINES) - 2
    assert "no precision" not in said


@pytest.mark.parametrize("precision", ["fp8", "fp32,fp8", "bf16,int8", "fp32,fp9"])
def test_bench_refuses_before_the_model_is_loaded(
    precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rcdm_fast, "load", not_loaded)
    assert cli.main(["bench", "cifar10-supervised", "--precision", precision]) == 2
    needed = {"fp8": "rcdm export MODEL --to fp8", "int8": "rcdm export MODEL --to openvino", "fp9": "called 'fp9'"}
    assert needed[precision.split(",")[-1]] in capsys.readouterr().err


def test_every_file_is_looked_at_before_anything_is_drawn(tmp_path: Path) -> None:
    model = small.quick_model()
    good = Case("eager", "fp8", written(model, tmp_path / "good.safetensors"))
    other = small.quick_model()
    other.unet.get_parameter("out.2.bias").data += 1
    cases: list[tuple[Case, type[Exception], str]] = [
        (Case("eager", "fp8", tmp_path / "none.safetensors"), StorageError, "no such file"),
        (Case("eager", "fp8", written(other, tmp_path / "other.safetensors")), GraphError, "from other weights"),
        (Case("eager", "fp8"), ConfigError, "fp8 needs a calibrated file"),
        (Case("eager", "fp32", tmp_path / "good.safetensors"), ConfigError, "runs the model itself, not a file"),
    ]
    for wrong, kind, match in cases:
        said: list[str] = []
        with pytest.raises(kind, match=match):
            engine_comparison.compare(model, [good, wrong], torch.zeros(1, small.DIM), ONCE, report=said.append)
        assert said == []


def test_memory_of_a_case_with_a_file_is_of_making_it_and_of_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.quick_model()
    case = Case("eager", "fp8", written(model, tmp_path / "fp8.safetensors"))
    for sizes, grown in (([100, 130, 500, 507], 37), ([100, 130, None, 507], None), ([None, 130, 500, 507], None)):
        told = iter(sizes)
        monkeypatch.setattr(engine_comparison, "_resident_bytes", lambda device, told=told: next(told))
        made = engine_comparison._made(model, case)
        drawn = engine_comparison._draw(model, case, torch.zeros(1, small.DIM), None, ONCE, made)
        assert drawn.memory_bytes == grown
        assert drawn.engine is made.model.engine._engine  # type: ignore[attr-defined]


def test_results_name_the_calibrated_file(tmp_path: Path) -> None:
    model = small.quick_model()
    files = [written(model, tmp_path / str(n) / "fp8.safetensors", 2.0**-n) for n in (4, 5)]
    digests = [storage.sha256(file) for file in files]
    for file, digest in zip(files, digests, strict=True):
        run = with_fp8(model, file)
        assert provenance.of_model(run)["calibrated"] == [digest]
        assert f"scales {digest[:12]}," in run.engine.describe()
        assert digest[:13] not in run.describe()
        run.engine = throughput.TimedEngine(run.engine, CPU)
        assert provenance.of_model(run)["calibrated"] == [digest]
    assert "calibrated" not in provenance.of_model(model)
    found = engine_comparison.compare(
        model, [Case("eager", "fp8", file) for file in files], torch.zeros(1, small.DIM), ONCE
    )
    assert [each.row().get("calibrated") for each in found] == [None, [digests[0]], [digests[1]]]
    assert json.dumps(found[1].row())
    _, reference, *lines = comparison.table(found, {})
    assert "fp8" not in reference
    assert [f"fp8 {digest[:12]} " in line for digest, line in zip(digests, lines, strict=True)] == [True, True]
    assert len({str(each.case) for each in found}) == 3


def test_decoders_are_not_adapted_from_a_calibrated_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    run = with_fp8(model, written(model, tmp_path / "fp8.safetensors"))
    monkeypatch.setattr(adapted, "adapt", lambda *_: pytest.fail("a decoder was adapted"))
    with pytest.raises(ConfigError, match=r"in fp8: the calibrated file is bound to the model's weights.* fp32, bf16"):
        adapted.chosen(run, Wanted("m", tmp_path, layers=("a", "b")), "mean")


def test_channels_that_hardly_anything_reaches() -> None:
    """Scales stay where they and their inverses are normal numbers, and what is divided by them finite."""
    scale = input_scale(torch.tensor([1e-45, 1e-40, 1e-30, 1e30, 3e38, float("inf"), 0.0]))
    exponents = scale.log2()
    assert exponents.tolist() == [-MOST_EXPONENT, -MOST_EXPONENT, -MOST_EXPONENT, *[MOST_EXPONENT] * 3, 0]
    given = torch.nn.Conv2d(7, 3, 3, padding=1)
    given.weight.data[1], given.weight.data[1, 0] = 1e-43, 0
    x = torch.tensor([1e-40, -1e-40, 1e-30, 1e20, 3e38, 0.0, 0.0])[:, None, None].expand(1, 7, 4, 4)
    assert bool(Fp8Convolution(given, scale)(x).isfinite().all())
    for one in (scale[0], scale[5], torch.ones(())):
        assert bool(Fp8Convolution(given, one.expand(7))(x).isfinite().all())
    assert given.bias is not None
    few = Fp8Convolution(given, scale[:1].expand(7))(torch.full((1, 7, 4, 4), 1e-40))
    torch.testing.assert_close(few, given.bias[:, None, None].expand(1, 3, 4, 4), atol=1e-12, rtol=0)


@pytest.mark.parametrize("exponent", [-140, -127, 127])
def test_scales_that_nothing_can_be_divided_by_are_refused(exponent: int, tmp_path: Path) -> None:
    model = small.quick_model()
    file = written(model, tmp_path / "fp8.safetensors", 2.0**exponent)
    with pytest.raises(GraphError, match="are too small or too large for float32 to divide by"):
        fp8.read(file, model.unet, model.config)


def test_a_model_that_was_put_on_another_engine_travels(tmp_path: Path) -> None:
    model, h = small.quick_model(), torch.zeros(1, small.DIM)
    run = with_fp8(model, written(model, tmp_path / "fp8.safetensors"))
    want = run.sample(h, per=1, steps=1)
    again = pickle.loads(pickle.dumps(run))
    assert again.engine.precision == "fp8"
    assert torch.equal(again.sample(h, per=1, steps=1), want)


def test_workers_are_told_where_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rcdm_fast.jobs import cluster

    monkeypatch.chdir(tmp_path)
    spec = cluster.ModelSpec("m", precision="fp8=own.safetensors")
    assert spec.precision == f"fp8={tmp_path / 'own.safetensors'}"
    assert cluster.ModelSpec("m", precision="int8=/a/b.xml").precision == "int8=/a/b.xml"
    assert [cluster.ModelSpec("m", precision=each).precision for each in ("auto", "bf16")] == ["auto", "bf16"]
    monkeypatch.chdir(tmp_path.parent)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_the_first_layer_that_is_not_finite_may_be_in_fp8(tmp_path: Path) -> None:
    model = small.quick_model()
    run = with_fp8(model, written(model, tmp_path / "fp8.safetensors"))
    engine = run.engine
    assert isinstance(engine, EagerEngine)
    name = list(inner_convolutions(model.unet))[-1]
    schedule, x = Schedule.make(model.config.schedule, 2), torch.zeros(1, 3, 8, 8)
    bound = engine.bind(make_plan(model.unet, schedule, torch.zeros(1, small.DIM), None), torch.tensor([0]))
    assert bound.first_nonfinite(x, 1) is None
    found = engine._network.get_submodule(name)
    assert isinstance(found, Fp8Convolution)
    found.out_scale.fill_(float("nan"))
    assert bound.first_nonfinite(x, 1) == name


def test_reasons_stand_once_and_the_cure_beside_them() -> None:
    model = small.quick_model()
    with pytest.raises(ConfigError) as raised:
        engines.make("auto", model.unet, model.config, CPU, "fp8", "fp8.safetensors")
    said = str(raised.value)
    assert said.count("fp8 runs in native, eager only") == 1
    assert "compiled, onnxruntime, onnxruntime-tensorrt, openvino, tensorrt: fp8 runs in" in said
    assert said.endswith("; engine='eager' (in commands --engine eager) emulates it")
    with pytest.raises(ConfigError) as raised:
        engines.choose(CPU, "int8")
    assert "emulates" not in str(raised.value)
    with pytest.raises(ConfigError, match="no engine called 'auto'; known: native, compiled"):
        engine_comparison.compare(model, [Case("auto", "fp8", Path("a"))])


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp8"},
        {"precision": "int8"},
        {"precision": "fp9"},
        {"engine": "natve"},
        {"engine": "tensorrt"},
        {"engine": "native", "precision": "int8=a.xml"},
        {"engine": "native", "engine_file": "a.onnx"},
    ],
)
def test_what_no_engine_can_run_is_refused_before_a_model_is_read(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        rcdm_fast.load("there-is-no-such-model", device="cpu", **options)  # type: ignore[arg-type]
    assert "there-is-no-such-model" not in str(refused.value)


@pytest.mark.parametrize(
    "command",
    [
        "sample a.png --guide OTHER",
        "evaluate cifar10-simclr-trunk --data D --guide OTHER",
        "analyze cifar10-simclr-trunk layers --data D --against OTHER --out FOLDER",
        "report cifar10-simclr-trunk --data D --against OTHER --out FOLDER/a.html",
        "app --model cifar10-simclr-trunk --model OTHER",
        "calibrate shapes-oracle OTHER --quick",
    ],
)
def test_a_calibrated_file_is_not_for_the_other_model_of_a_command(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(rcdm_fast, "load", load)
    monkeypatch.chdir(tmp_path)
    words = command.replace("FOLDER", str(tmp_path)).split()
    assert cli.main([*words, "--precision", "fp8=scales.safetensors"]) == 2
    said = capsys.readouterr().err
    assert "scales.safetensors is calibrated for one model, so OTHER cannot run in --precision fp8" in said
