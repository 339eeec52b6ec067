"""`rcdm compare`: what it measures is right, a wrong engine shows, and its gates fail."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from rcdm_fast import benchmarking, engine_comparison, engines
from rcdm_fast.cli import main
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
