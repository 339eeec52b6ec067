"""`rcdm compare`: what it measures is right, a wrong engine shows, and its gates fail."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from rcdm_fast import benchmarking, engine_comparison, engines
from rcdm_fast.cli import compare, main
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.engines.native import NativeEngine
from tests import small

# An engine that is not exact; without bf16 in the processor PyTorch computes it all the same, slowly.
INEXACT = "native" if not engines.reasons_unavailable("native", torch.device("cpu"), "bf16") else "eager"
SETTINGS = engine_comparison.Settings(steps=3, per=2, batch_size=3, rounds=1)


def _found(engine: str = INEXACT, precision: engines.Precision = "bf16") -> list[engine_comparison.Drift]:
    return engine_comparison.compare(
        small.model(), [engine_comparison.Case(engine, precision)], torch.randn(2, small.DIM), SETTINGS
    )


def test_the_reference_comes_first_and_equals_itself() -> None:
    first, second = _found()
    assert first.case == engine_comparison.REFERENCE
    assert set(first.step_errors) == set(first.path_errors) == {0.0}
    assert math.isinf(first.psnr_db)
    assert first.speedup == 1.0
    assert len(second.step_errors) == len(second.path_errors) == 3
    assert 0 < max(second.step_errors) < 0.05
    assert 0 < second.path_errors[-1] < 0.1
    assert second.images.shape == (4, 3, 8, 8)


def test_an_engine_that_is_wrong_at_one_step_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NativeEngine.evaluate

    def evaluate(self: NativeEngine, batch: Batch, x: torch.Tensor, k: int) -> torch.Tensor:
        return right(self, batch, x, k) * (1.5 if k == 1 else 1.0)

    monkeypatch.setattr(NativeEngine, "evaluate", evaluate)
    errors = _found("native", "fp32")[1].step_errors
    assert errors[1] == pytest.approx(0.5, abs=1e-3)
    assert errors[0] < 1e-4
    assert errors[2] < 1e-4


def test_psnr() -> None:
    assert benchmarking.psnr_db(torch.full((1, 3, 2, 2), 0.2), torch.zeros(1, 3, 2, 2)) == pytest.approx(20.0, abs=1e-3)
    assert math.isinf(benchmarking.psnr_db(torch.full((1,), 7.0), torch.ones(1)))  # both are white


def test_cases_are_parsed() -> None:
    assert engine_comparison.Case.parse("native") == engine_comparison.Case("native", "fp32")
    assert engine_comparison.Case.parse(" openvino:int8=a/b.xml") == engine_comparison.Case(
        "openvino", "int8", Path("a/b.xml")
    )
    with pytest.raises(ConfigError, match="no engine called 'fast'"):
        _found("fast")
    with pytest.raises(ConfigError, match="rounds must be at least 1"):
        engine_comparison.compare(small.model(), [], torch.randn(1, small.DIM), engine_comparison.Settings(rounds=0))


@pytest.mark.long
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, rows = tmp_path / "sheet.png", tmp_path / "rows.json"
    command = ["compare", "cifar10-supervised", "--steps", "2", "--per", "1", "--rounds", "1"]
    assert main([*command, "--engines", f"{INEXACT}:bf16", "--out", str(sheet), "--json", str(rows)]) == 0
    assert INEXACT in capsys.readouterr().out
    found = json.loads(rows.read_text())["rows"]
    assert [row["engine"] for row in found] == ["eager", INEXACT]
    assert [row["precision"] for row in found] == ["fp32", "bf16"]
    assert found[0]["psnr_db"] is None
    assert found[1]["psnr_db"] > 30
    assert Image.open(sheet).height > 3 * 96  # two cases, and a row of differences
    assert main([*command, "--engines", f"{INEXACT}:bf16", "--min-psnr", "150"]) == 1
    assert "is below 150" in capsys.readouterr().err


def test_the_command_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(4):
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
    command = ["compare", "cifar10-supervised", "--steps", "2", "--per", "1", "--rounds", "1"]
    assert main([*command, "--engines", "native", "--data", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " fp32 " in line and "%" in line]
    assert len(lines) == 1  # the reference has no change from itself
    assert "+0.0 % [none: n < 20]" in lines[0]


@pytest.mark.parametrize("wrong", [0, 2])
def test_errors_stand_in_the_order_of_the_steps(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the noisy end: what is wrong at the first step is carried on, at the last one only the image shows it."""
    right = NativeEngine.evaluate

    def evaluate(self: NativeEngine, batch: Batch, x: torch.Tensor, k: int) -> torch.Tensor:
        return right(self, batch, x, k) * (1.5 if k == wrong else 1.0)

    monkeypatch.setattr(NativeEngine, "evaluate", evaluate)
    monkeypatch.setattr(benchmarking, "in_turn", lambda runs, *_, **options: {name: [1.0] for name in runs})
    h, cases = torch.randn(2, small.DIM), [engine_comparison.Case("native")]
    found = engine_comparison.compare(small.quick_model(), cases, h, SETTINGS)[1]
    assert [error > 0.4 for error in found.step_errors] == [wrong == 2, False, wrong == 0]
    assert [error > 1e-4 for error in found.path_errors] == [wrong == 2, wrong == 2, True]


def test_times_belong_to_their_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def in_turn(runs: dict[str, object], device: object, **options: object) -> dict[str, list[float]]:
        asked.update(options)
        return {name: [12.0 / (number + 1), 24.0 / (number + 1)] for number, name in enumerate(runs)}

    monkeypatch.setattr(benchmarking, "in_turn", in_turn)
    cases = [engine_comparison.Case("native"), engine_comparison.REFERENCE, engine_comparison.Case("eager", "bf16")]
    settings = engine_comparison.Settings(steps=1, per=1, rounds=7)
    said: list[str] = []
    found = engine_comparison.compare(
        small.quick_model(), cases, torch.zeros(1, small.DIM), settings, report=said.append
    )
    assert [str(each.case) for each in found] == ["eager fp32", "native fp32", "eager bf16"]
    assert [each.speedup for each in found] == [1.0, 2.0, 3.0]
    assert [each.times.p50_ms for each in found] == [18.0, 9.0, 6.0]
    assert asked["rounds"] == 7
    assert said == [*(f"{each.case}: drawing" for each in found), "timing 3 cases in turn"]


def test_what_is_written_of_a_case() -> None:
    times = benchmarking.Times(1.0, 2.0, 3.0, 4)
    case = engine_comparison.Case("native", "bf16")
    found = engine_comparison.Drift(case, "says", (0.1, 0.2), (0.3, 0.4), 31.0, times, 1.5, 7, 9, torch.zeros(1))
    assert found.row() == {
        "engine": "native", "precision": "bf16", "runs": "says", "step_errors": [0.1, 0.2], "path_errors": [0.3, 0.4],
        "psnr_db": 31.0, "p50_ms": 2.0, "p20_ms": 1.0, "p80_ms": 3.0, "speedup": 1.5, "memory_bytes": 7,
        "file_bytes": 9,
    }  # fmt: skip
    assert dataclasses.replace(found, psnr_db=math.inf).row()["psnr_db"] is None


def test_labels_and_the_size_of_batches_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model(representation_dim=0, num_classes=3)
    settings = engine_comparison.Settings(steps="at:0", per=2, batch_size=3, rounds=1, seed=4)
    sizes: list[int] = []
    right = NativeEngine.evaluate

    def evaluate(self: NativeEngine, batch: Batch, x: torch.Tensor, k: int) -> torch.Tensor:
        sizes.append(len(batch))
        return right(self, batch, x, k)

    monkeypatch.setattr(NativeEngine, "evaluate", evaluate)
    label = torch.tensor([2, 0])
    cases = [engine_comparison.Case("native")]
    drawn = engine_comparison._draw(model, cases[0], None, label, settings)
    assert sizes == [3, 3, 1]  # the first is for memory
    want = model.sample(label=label, per=2, steps="at:0", seed=4).flatten(0, 1)
    torch.testing.assert_close(drawn.images, want, atol=1e-4, rtol=0)


def test_files_that_an_engine_runs_are_counted(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1" * 10)
    second.write_bytes(b"2" * 5)
    model, settings = small.quick_model(), engine_comparison.Settings(steps=1, per=1)
    drawn = engine_comparison._draw(model, engine_comparison.REFERENCE, torch.zeros(1, small.DIM), None, settings)
    drawn.engine.files = (first, second)
    found = engine_comparison._measure(engine_comparison.REFERENCE, drawn, drawn, [1.0], [1.0])
    assert found.file_bytes == 15


def test_memory_is_what_the_engine_and_its_first_run_took(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = small.quick_model(), engine_comparison.Settings(steps=2, per=1)
    for sizes, grown in (([100, 140], 40), ([140, 100], 0), ([None, 100], None), ([100, None], None)):
        told = iter(sizes)
        monkeypatch.setattr(engine_comparison, "_resident_bytes", lambda device, told=told: next(told))
        drawn = engine_comparison._draw(model, engine_comparison.REFERENCE, torch.zeros(1, small.DIM), None, settings)
        assert drawn.memory_bytes == grown


@pytest.mark.parametrize("changes", [{"num_classes": 3}, {"num_classes": 1}, {"representation_dim": 0}])
def test_a_model_is_compared_on_all_that_it_takes(changes: dict[str, object]) -> None:
    model = small.quick_model(**changes)
    h, label = compare._conditions(model, [])
    assert model.request(h, label=label).total
