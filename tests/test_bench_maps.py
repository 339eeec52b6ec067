"""What a map costs beside a vector: rows for both engines, and none for an engine that draws other images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_maps
from benchmarks.documents import speed
from rcdm_fast.model import Model

WORDS = ["--map", "3", "4", "5", "--batch", "4", "--steps", "1", "--rounds", "2", "--json"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_maps, "ENGINES", ("native fp32",))


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_maps.main([*WORDS, str(tmp_path / "maps.json")]) == 0
    found = json.loads((tmp_path / "maps.json").read_text())
    assert (found["map"], found["batch"]) == ([3, 4, 5], 4)
    assert [(row["name"], row["per"]) for row in found["rows"]] == [("native fp32", 1), ("native fp32", 4)]
    for row in found["rows"]:
        assert 0 < row["of_vector_low"] <= row["of_vector"] <= row["of_vector_high"]
        assert row["vector_ms"] > 0
    assert "x vector" in capsys.readouterr().out
    lines = speed.maps(found).splitlines()
    assert lines[2].startswith("| native fp32 | 1 | ")
    assert len(lines) == 4


def test_other_images_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Model.sample

    def off(self: Model, *given: Any, **named: Any) -> Any:
        return sample(self, *given, **named) + (0.1 if self.engine.name == "native" else 0.0)

    monkeypatch.setattr(Model, "sample", off)
    assert bench_maps.main([*WORDS, str(tmp_path / "maps.json")]) == 1
    rows = json.loads((tmp_path / "maps.json").read_text())["rows"]
    assert all("relative L2 error" in row["why_not"] and "of_vector" not in row for row in rows)
