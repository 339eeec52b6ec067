"""Distances of few evaluations to many: what is drawn, what is kept for the next run, and how texts show it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rcdm_fast
from benchmarks import bench_solvers
from benchmarks.documents import solvers
from rcdm_fast.config import FittedSolver
from rcdm_fast.data.image_set import ImageSet, fingerprint
from rcdm_fast.diffusion import fitted
from tests import small

PIXELS = ((small.make_images(20) * 0.5 + 1) * 127.5).round().to(torch.uint8)


def test_all_cases_from_the_same_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
    own = FittedSolver(2, tuple(fitted.initial(model.config.schedule, (300, 999)).tolist()), model.weights)
    model.config = dataclasses.replace(model.config, fitted=(own,))
    for name, value in {"SOURCES": 20, "FEW": ("ddim",), "REFERENCE": ("ddim", "quadratic2")}.items():
        monkeypatch.setattr(bench_solvers, name, value)
    monkeypatch.setattr(bench_solvers, "BASELINE", ("ddim", "3"))
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: model)
    data = ImageSet(PIXELS, None, (), (), fingerprint(PIXELS, None))
    monkeypatch.setattr(bench_solvers, "open_data", lambda *_: data)
    asked: list[tuple[str, str]] = []
    sample = model.sample

    def noted(*given: Any, **named: Any) -> Any:
        asked.append((named["solver"], named["steps"]))
        return sample(*given, **named)

    monkeypatch.setattr(model, "sample", noted)
    words = ["any", "--data", "any", "--counts", "2", "--keep", str(tmp_path / "kept"), "--json"]
    for file in ("first.json", "second.json"):
        assert bench_solvers.main([*words, str(tmp_path / file)]) == 0
    rows = json.loads((tmp_path / "second.json").read_text())["quality"]
    assert [(row["solver"], row["steps"], row["nfe"]) for row in rows] == [
        ("fitted", "2", 2), ("ddim", "logsnr2", 2), ("ddim", "quadratic2", 2), ("ddim", "3", 3),
    ]  # fmt: skip
    assert len(asked) == len(set(asked)) == 4  # each is drawn once, in the first run
    found = {(row["solver"], row["steps"]): row for row in rows}
    assert found["ddim", "quadratic2"]["error"]["value"] == 0  # from its own noise it is the reference
    less = found["ddim", "quadratic2"]["less_ddim_50"]["value"]
    assert less == pytest.approx(-found["ddim", "3"]["error"]["value"])
    assert json.loads((tmp_path / "first.json").read_text())["quality"] == rows
    others = PIXELS.flip(0)
    monkeypatch.setattr(
        bench_solvers, "open_data", lambda *_: ImageSet(others, None, (), (), fingerprint(others, None))
    )
    assert bench_solvers.main([*words, str(tmp_path / "third.json")]) == 0
    assert len(asked) == 8  # what was kept is of other images
    shown = solvers.own({"quality": rows, "made_by": {"models": [{"name": "m"}]}}).splitlines()
    assert shown[0] == "| | `ddim`, 3 | fitted, 2 | best other, 2 |"
    assert "| 0.000, -" in shown[-1]
