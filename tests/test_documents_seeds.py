"""Tables of results over seeds, from made-up files."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.documents import seeds


def interval(value: float, half: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def factors(hue: float, word: str, half: float = 0.1) -> dict[str, Any]:
    columns = ["factor", "slope", "verdict", "detectable slope", "linear R^2", "non-linear R^2", "network R^2"]
    rows = [
        ["x", interval(1.0), "kept", 0.3, interval(1), interval(1), interval(0.99)],
        ["ground_hue", interval(hue, half), word, 0.3, interval(0), interval(0), interval(0.125)],
    ]
    return {"tables": [{"name": "factors", "columns": columns, "rows": rows}]}


def test_trainings_side_by_side() -> None:
    found = {"a0-0": factors(0.5, "kept"), "b0-0": factors(0.01, "dropped"), "c0-0": factors(9, "kept")}
    assert seeds.trainings(found, {"b0-0": "colors", "a0-0": "crops"}) == (
        "| | colors | crops |\n|---|---|---|\n"
        "| x | 1.00 [0.90, 1.10] kept; 0.99 | 1.00 [0.90, 1.10] kept; 0.99 |\n"
        "| ground's hue | 0.01 [-0.09, 0.11] dropped; 0.12 | 0.50 [0.40, 0.60] kept; 0.12 |"
    )


def test_spread_of_encoders_and_of_decoders() -> None:
    """Decoders lie 0.05 about the mean of their encoder, a sd of 0.0707; encoders are 0.4 apart, which stays."""
    slopes = {"e0-0": 0.0, "e0-1": 0.1, "e1-0": 0.5, "e1-1": 0.4}
    found = {name: factors(value, "inconclusive", half=0.196) for name, value in slopes.items()}
    wanted = (0.4**2 / 2 - 0.005 / 2) ** 0.5
    line = seeds.world(found).splitlines()[-1]
    assert line == f"| ground's hue | 0.25 | 0.00..0.50 | {wanted:.2f} | 0.07 | 0.10 |"
    alike = {"e0-0": 0.0, "e0-1": 0.2, "e1-0": 0.2, "e1-1": 0.0}  # encoders do not differ: no less than nothing
    line = seeds.world({name: factors(value, "kept") for name, value in alike.items()}).splitlines()[-1]
    assert line == "| ground's hue | 0.10 | 0.00..0.20 | 0.00 | 0.14 | 0.05 |"


def test_verdicts_are_counted() -> None:
    found = {"a-0": factors(1, "kept"), "a-1": factors(0, "dropped"), "b-0": factors(0, "dropped")}
    assert seeds.verdicts(found).splitlines()[2:] == ["| x | 3 | 0 | 0 |", "| ground's hue | 1 | 2 | 0 |"]


def test_encoders_of_photographs() -> None:
    columns = ["augmentation", "property", "slope", "verdict", "detectable slope", "r", "chance of |r|", "h moves"]

    def found(slope: float) -> dict[str, Any]:
        rows = [["flip", "left-right orientation", interval(slope), "kept", 0.3, interval(0), 0.2, 0.1]]
        return {
            "tables": [
                {"name": "readout", "columns": [], "rows": []},
                {"name": "recovered", "columns": columns, "rows": rows},
            ]
        }

    with pytest.raises(KeyError):
        seeds.images({"seed0": found(0.5), "seed1": {"tables": [{"name": "recovered", "columns": [], "rows": []}]}})
    assert seeds.images({"seed0": found(0.5), "seed1": found(0.7)}) == (
        "| | encoder 1 | encoder 2 |\n|---|---|---|\n"
        "| left-right orientation (flip) | 0.50 [0.40, 0.60] kept | 0.70 [0.60, 0.80] kept |"
    )
