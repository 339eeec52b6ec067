"""Claims that are decided by themselves, and what is left of them when all are asked together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rcdm_fast.analysis import claims, registry, rules
from rcdm_fast.analysis.registry import Experiment, Job
from rcdm_fast.analysis.result import Analysis, Finding
from rcdm_fast.report import build
from tests import small


def finding(holds: bool | None, p: float | None) -> Finding:
    return Finding(f"claim {p}", holds, "measured", p=p)


def test_what_chance_may_explain_is_not_decided() -> None:
    given = [finding(True, 0.001), finding(True, 0.03), finding(None, 0.4), finding(False, 0.001), finding(True, None)]
    found = claims.together(given)
    assert [each.holds for each in found] == [True, None, None, False, True]
    assert [each.adjusted for each in found] == pytest.approx([0.004, 0.06, 0.4, 0.004, None])
    assert "not among all claims (p = 0.06 by Holm's method)" in found[1].measured
    assert [each.measured for each in (found[0], found[2], found[4])] == ["measured"] * 3
    assert claims.together([given[1]])[0].holds is True  # alone it is


@pytest.mark.parametrize("holds", [True, False])
def test_a_claim_at_the_level_itself_is_not_decided(holds: bool) -> None:
    assert claims.together([finding(holds, rules.LEVEL)])[0].holds is None
    assert claims.together([finding(holds, 0.0499)])[0].holds is holds


def test_more_claims_decide_less_and_never_more() -> None:
    first = claims.together([finding(True, 0.03), finding(True, 0.02)])
    assert [each.holds for each in first] == [True, True]
    again = claims.together([*first, *(finding(None, 0.5) for _ in range(8))])
    assert [each.holds for each in again[:2]] == [None, None]
    assert [each.p for each in again[:2]] == [0.03, 0.02]
    assert claims.together(claims.together(again)) == again


def test_a_report_asks_all_its_claims_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Analysis("one", "One", "m", {}, findings=claims.together([finding(True, 0.03)]))
    two = dataclasses.replace(one, name="two", findings=claims.together([finding(True, 0.04), finding(False, None)]))
    assert [each.holds for each in (*one.findings, *two.findings)] == [True, True, False]
    for each in (one, two):
        monkeypatch.setitem(registry.EXPERIMENTS, each.name, Experiment("x", lambda job, each=each: each))  # type: ignore[misc]
    job = Job(small.model())
    page = build.build(
        [build.Task(name, job) for name in ("one", "two")],
        tmp_path / "r.html",
        title="t",
        about="a",
        note=lambda _: None,
    )
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["made_by"]["rules"] == found["experiments"]["one"]["rules"] == rules.VERSION
    assert [each["holds"] for name in ("one", "two") for each in found["experiments"][name]["findings"]] == [
        None, None, False,
    ]  # fmt: skip
    text = page.read_text()
    assert "Of 3 claims 0 hold, 1 do not hold, and 2 are inconclusive." in text
    assert "2 have a p-value and are decided together by Holm" in text
    assert "intervals are unadjusted" in text


def test_a_sentence_begins_with_a_capital_unless_it_begins_with_a_models_name() -> None:
    assert Finding("samples move", True, "").sentence == "Samples move."
    assert Finding("samples move", None, "").sentence == "Inconclusive: samples move."
    assert Finding("cifar10-simclr-head keeps hue", True, "").sentence == "cifar10-simclr-head keeps hue."
