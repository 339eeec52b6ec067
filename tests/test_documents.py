"""Numbers in README, docs and cards: from results, or listed with a reason."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.documents import check, encoders, guard, known_world, marks, models, results, solvers, speed
from benchmarks.documents.results import Result
from rcdm_fast.analysis import error_rates
from rcdm_fast.models import zoo

PAGE = """# A page

It takes <!-- result: ms -->151.3<!-- end --> ms.

<!-- result: table -->

| a | 1.5 |
| b | 2.5 |

<!-- end -->

The end.
"""
TABLE = "| a | 1.5 |\n| b | 2.5 |"
FOUND = {"ms": Result(("step",), lambda: "151.3"), "table": Result((), lambda: TABLE)}


def _changed(**texts: str) -> dict[str, Result]:
    return FOUND | {name: Result(FOUND[name].sources, functools.partial(str, text)) for name, text in texts.items()}


def test_a_page_that_says_what_its_results_say_has_no_fault() -> None:
    assert check.compared("docs/a.md", PAGE, FOUND) == []


def test_a_difference_is_told_with_file_line_and_both_values() -> None:
    told = check.compared("docs/a.md", PAGE, _changed(ms="150.9", table="| a | 1.5 |\n| b | 2.6 |"))
    assert told == [
        "docs/a.md:3: ms: the text says '151.3', the result '150.9' (step.json)",
        "docs/a.md:8: table: the text says '2.5', the result '2.6'",
    ]


@pytest.mark.parametrize(
    ("table", "line", "says", "result"),
    [("| a | 1.5 |", 8, "| b | 2.5 |", "nothing"), (TABLE + "\n| c | 3 |", 9, "nothing", "| c | 3 |")],
)
def test_a_row_more_or_less_is_told(table: str, line: int, says: str, result: str) -> None:
    (told,) = check.compared("a.md", PAGE, _changed(table=table))
    assert told == f"a.md:{line}: table: the text says {says!r}, the result {result!r}"


def test_a_space_more_is_a_difference() -> None:
    assert len(check.compared("a.md", PAGE, _changed(table=TABLE.replace("| 1.5", "|  1.5")))) == 1


def test_results_are_written_and_what_stands_around_them_stays() -> None:
    assert marks.written(PAGE, {"ms": "151.3", "table": TABLE}) == PAGE
    new = marks.written(PAGE, {"ms": "7", "table": "| c |"})
    assert new == PAGE.replace("151.3", "7").replace(TABLE, "| c |")
    assert marks.written(PAGE, {}) == PAGE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\nb <!-- result: x -->1\n", "2: .* has no <!-- end --> of its own"),
        ("b <!-- result: x -->1 <!-- result: y -->2<!-- end -->", "1: .* has no <!-- end --> of its own"),
        ("b <!-- result: x -->1<!-- end --> 2<!-- end -->", "1: marks from here on"),
        ("a\n\nb <!-- result:x -->1<!-- end -->", "3: marks from here on"),
        ("<!-- result: x -->1<!-- end --> of it", "1: .* begins a line"),
        ("b <!-- result: x -->1\n2<!-- end -->", "1: .* goes over several lines"),
    ],
)
def test_marks_that_are_wrong_are_refused(text: str, told: str) -> None:
    with pytest.raises(marks.MarkError, match=told):
        marks.uncovered(text)


def test_lines_are_not_written_into_a_line() -> None:
    with pytest.raises(marks.MarkError, match="3: ms is lines"):
        marks.written(PAGE, {"ms": TABLE})


def test_a_result_that_there_is_not_is_told() -> None:
    def missing() -> str:
        return str(results.read("nothing_of_that_name"))

    given = {"table": FOUND["table"], "ms": Result(("nothing_of_that_name",), missing)}
    (told,) = check.compared("a.md", PAGE, given)
    assert told.startswith("a.md:3: ms: no such result: ")
    assert check.compared("a.md", PAGE, {"ms": FOUND["ms"]}) == ["a.md:5: there is no result 'table'"]


def test_files_that_no_page_shows_are_told() -> None:
    files = ["step", "other", "evaluate_trunk"]
    told = "benchmarks/results/{}.json: no page shows it"
    assert check.unused({"a.md": PAGE}, FOUND, files) == [told.format("other"), told.format("evaluate_trunk")]
    assert check.unused({"a.md": PAGE + "a <!-- result: models -->b<!-- end -->"}, FOUND, files) == [
        told.format("other")
    ]


def test_a_result_says_what_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    (tmp_path / "quick.json").write_text("{}")
    with pytest.raises(ValueError, match=r"quick\.json does not say what made it"):
        results.read("quick")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("The MRR is 0.704 [0.673, 0.736].", ["0.704", "0.673", "0.736"]),
        ("It takes 151 ms, 3 GB and 40 % of it, in 12 s.", ["151ms", "3GB", "40%", "12s"]),
        ("1,024 images, 25 steps, 12,530 in all; 3 seeds", []),
        ("agree to 1.5e-6 or 1e-4", ["1.5e-6", "1e-4"]),
        ("| a | 1,047 [878, 1230] | 3 rows |", ["1,047", "878", "1230"]),
        ("|---|---:|", []),
        ("`steps=0.5` in [a](b0.5.md), 95 % intervals", []),
        ("Python 3.11, PyTorch 2.11, arXiv 2409.19681, torch 2.14.1, 0.1.0", []),
        ("    rcdm x 0.5", []),
        ("# 0.5 of it", []),
        ("1 to 1.5 times, 2x2, 32-px, sm_80, 3.6 times.", ["1.5times", "3.6times"]),
    ],
)
def test_numbers_that_look_measured(line: str, found: list[str]) -> None:
    assert [each.text for each in guard.numbers(line)] == found


def test_code_between_fences_is_no_text() -> None:
    assert [each.text for each in guard.numbers("```\n0.5\n# 0.5\n```\n0.25")] == ["0.25"]


def test_a_new_number_fails_and_one_that_is_gone_has_to_leave() -> None:
    text = "# A\n\nIt is 0.5 and 0.5, then 3.5 s.\n"
    listed = {("a.md", "A"): Counter(["0.5", "0.5", "3.5s"])}
    assert guard.faults({"a.md": text}, listed) == []
    (new,) = guard.faults({"a.md": text.replace("then", "then 0.5,")}, listed)
    assert new.startswith("a.md:3: 0.5 looks measured and comes from no result")
    (gone,) = guard.faults({"a.md": text.replace("0.5 and ", "")}, listed)
    assert gone.endswith("a.md, 'A': no longer in the text, take them out: 0.5")
    assert len(guard.faults({"a.md": text.replace("# A", "# B")}, listed)) == 4
    assert listed["a.md", "A"].total() == 3


def test_numbers_are_listed_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "listed.toml"
    entry = '[[allowed]]\npage = "a.md"\nsection = "A"\nreason = "{}"\nnumbers = """\n0.5 0.5\n2s\n"""\n'
    file.write_text(entry.format("measured by hand"))
    assert guard.allowed(file) == {("a.md", "A"): Counter({"0.5": 2, "2s": 1})}
    file.write_text(entry.format(" "))
    with pytest.raises(ValueError, match="need a reason"):
        guard.allowed(file)
    file.write_text(entry.format("measured by hand") * 2)
    with pytest.raises(ValueError, match="twice"):
        guard.allowed(file)


def _interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def test_a_card_is_written_from_an_evaluation_and_tables_are_read_off_it() -> None:
    found = {
        "mrr": _interval(0.5),
        "mean_rank": _interval(12),
        "distance": _interval(3),
        "nearest_real": {str(k): _interval(k) for k in (1, 5, 10)},
        "blurred_mrr": _interval(0.2),
        "chance_mrr": 0.00098,
        "chance_mean_rank": 5000.5,
        "variance": _interval(0.08),
    }
    assert "class of the source" not in models.evaluation(found)
    found["recognized"] = {"samples": _interval(0.4), "sources": _interval(0.8)}
    card = models.evaluation(found)
    assert "| class of the source, read off samples, % | 40.0 [39.0, 41.0] | sources: 80.0 [79.0, 81.0] |" in card
    assert models.of_card(card, models.MRR) == "0.500 [0.490, 0.510]"
    assert models.ranks("any", card, None) == models.ranks("any", "", found)
    with pytest.raises(ValueError, match="no row 'rank'"):
        models.of_card(card, "rank")
    cards = dict.fromkeys(models.ENCODERS, card)
    table = models.table(cards, {"cifar10-simclr-head": {**found, "mrr": _interval(0.7)}}, {}, long=False)
    shown = re.findall(r"(?m)^\| !\[samples\]\(docs/of-[\w-]+\.png\) \| `([\w-]+)` \|.*?\| (0\.\d+) \[", table)
    assert dict(shown)["cifar10-simclr-head"] == "0.700"
    assert [value for name, value in shown if name != "cifar10-simclr-head"] == ["0.500"] * 3
    assert f"{zoo.bundled_path('cifar10-simclr-wide').stat().st_size / 1e6:.1f} MB" in table


def test_accuracies_of_an_encoder_layer_by_layer() -> None:
    found = [
        {"layer": layer, "dim": dim, "accuracy": {"knn": _interval(knn), "linear": _interval(0.5)}}
        for layer, dim, knn in (("backbone", 192, 0.6), ("projector", 128, 0.4))
    ]
    assert encoders.accuracies(*found).splitlines()[2:] == [
        "| backbone | 192 | 60.0 [59.0, 61.0] | 50.0 [49.0, 51.0] |",
        "| projector | 128 | 40.0 [39.0, 41.0] | 50.0 [49.0, 51.0] |",
    ]
    assert encoders.accuracy(found[0], "knn") == "60.0 %"


def test_the_known_world_is_shown_once_its_result_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = results.read(results.CALIBRATION)
    table = results.RESULTS["calibration"].text()
    monkeypatch.setattr(results, "SHIPPED", tmp_path / "none.json")
    assert results.RESULTS["calibration"].text() == known_world.NOT_YET
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    held = [cell for cell in whole["decoders"][1]["cells"] if not cell["free"]]
    kept = [cell["called"] for cell in held if cell["kept"]]
    assert rows[3][:6] == [
        "shapes-oracle",
        "kept",
        str(len(kept)),
        *(str(kept.count(x)) for x in ("kept", "dropped", "inconclusive")),
    ]
    known = error_rates.measured()
    span = known.false_kept.interval
    assert rows[4][6] == f"{100 * span.value:.1f} [{100 * span.low:.1f}, {100 * span.high:.1f}]"


def test_budgets_put_the_seeds_of_one_budget_together_and_leave_out_the_ideal_decoder() -> None:
    def decoder(name: str, called: str, seen: int, slope: float) -> dict[str, object]:
        cells = [
            {"kept": kept, "free": free, "called": called, "factor": "x", "slope": {"value": slope if kept else 9.0}}
            for kept in (True, False)
            for free in (True, False)
        ]
        return {"name": name, "images_seen": seen, "cells": cells}

    decoders = [
        decoder("ideal", "dropped", 0, 1.0),
        decoder("a", "kept", 1000, 0.5),
        decoder("b", "inconclusive", 1000, 0.25),
    ]
    found = {"decoders": [decoder("c", "kept", 3_072_000, 0.75), *decoders]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in known_world.budgets(found).splitlines()[2:]]
    assert [row[:8] for row in rows] == [
        ["1,000", "2", "1 of 2", "0", "1", "1 of 2", "0", "1"],
        ["3,072,000", "1", "1 of 1", "0", "0", "1 of 1", "0", "0"],
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in known_world.spread(found).splitlines()[2:]]
    assert rows == [["1,000", "0.38 (0.25..0.50)"], ["3,072,000", "0.75"]]


def test_solvers_are_shown_by_evaluations() -> None:
    rows = [("ddim", 50, 0.1), ("ddim", 5, 0.3), ("heun", 5, 0.2)]
    quality = [{"solver": solver, "nfe": nfe, "error": _interval(value)} for solver, nfe, value in rows]
    assert solvers.distances({"quality": quality}).splitlines()[2:] == [
        "| 5 | 0.300 [0.290, 0.310] | 0.200 [0.190, 0.210] |",
        "| 50 | 0.100 [0.090, 0.110] |  |",
    ]
    assert solvers.distance({"quality": quality}, "heun", 5) == "0.200"


def test_pages_of_a_folder_are_written_and_then_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE.replace("151.3", "9"))
    (tmp_path / "docs" / "b.md").write_text("# B\n\n0.5\n")
    monkeypatch.setattr(check, "RESULTS", FOUND)
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    monkeypatch.setattr(guard, "allowed", lambda: {("docs/b.md", "B"): Counter(["0.5"])})
    assert check.pages(tmp_path) == ["README.md", "docs/b.md"]
    assert len(check.check(tmp_path)) == 1
    assert check.write(tmp_path) == ["README.md"]
    assert check.write(tmp_path) == []
    assert check.check(tmp_path) == []
    monkeypatch.setattr(check, "check", lambda: ["README.md:1: a fault"])
    assert check.main([]) == 1
    assert "README.md:1: a fault" in capsys.readouterr().err


def test_rounded_results_are_json_as_the_command_wrote_it() -> None:
    for path in sorted(results.FOLDER.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if path.stem not in results.OLDER:
            assert {"command", "git", "date", "models"} <= set(found["made_by"]), path.name


def _cells(table: str, first: int = 2) -> list[list[str]]:
    """A Markdown table's cells below its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[first:]]


def test_rivals_are_compared_in_one_precision() -> None:
    times = {"rcdm_fast native": 50.0, "diffusers": 100.0, "torch.compile": 75.0, "OpenVINO": 60.0}
    rows = [
        {"name": name, "precision": precision, "p50_ms": ms if precision == "bf16" else 1.0}
        for precision in ("fp32", "bf16")
        for name, ms in times.items()
    ]
    assert _cells(speed.rivals({"rows": rows})) == [
        ["diffusers", "100.0", "2.0 times as long"],
        ["torch.compile", "75.0", "1.5"],
        ["OpenVINO", "60.0", "1.2"],
        ["**rcdm_fast**", "50.0", "1"],
    ]


def test_rates_of_sampling() -> None:
    row = {"model": "m", "batch": 4, "precision": "fp32", "steps": "10", "images_per_s": 0.1234, "times_published": 1.0}
    rows = [
        {**row, "engine": "published recipe", "solver": "ancestral"},
        {**row, "engine": "native", "solver": "ddim", "images_per_s": 12.345, "times_published": 4.56}
        | {"sampler_percent": 0.74},
    ]
    shown = speed.sampling({"rows": rows, "facts": {"threads": 2}})
    assert shown.startswith("| `m`, batch 4, 2 threads |")
    assert _cells(shown) == [
        ["published recipe (eager)", "fp32", "ancestral 10", "0.123", "", "1.0"],
        ["native", "fp32", "DDIM 10", "12.35", "0.7 %", "4.6"],
    ]


def test_profiles_add_up_to_their_evaluations() -> None:
    def found(name: str, scale: float) -> dict[str, object]:
        floors = {"operations_floor_ms": 2.0 * scale, "bytes_floor_ms": 1.0 * scale}
        convolution = {"kind": "convolution", "calls": 3, "ms": 4 * scale, "gflop": 8.0, "mbyte": 20.0, **floors}
        rest = {"kind": "everything else", "calls": 0, "ms": 1.0, "operations_floor_ms": 0, "bytes_floor_ms": 0}
        norm = {"kind": "norm", "calls": 2, "ms": 1.0, "gflop": 0.0, "mbyte": 10.0, **floors, "operations_floor_ms": 0}
        whole = {"kind": "whole evaluation", "calls": 0, "ms": 10.0, **floors}
        return {"config": name, "rows": [convolution, norm, rest, whole]}

    s, m = found("s", 1.0), found("m", 2.0)
    assert _cells(speed.profiles(s, m)) == [
        ["**s**, convolution", "3", "4.0", "8.0", "2000", "20", "2.0", "1.0"],
        ["norm", "2", "1.0", "", "", "10", "", "1.0"],
        ["everything else", "", "1.0", "", "", "", "", ""],
        ["whole evaluation", "", "10.0", "8.0", "800", "30", "2.0", "1.0"],
        ["**m**, convolution", "3", "8.0", "8.0", "1000", "20", "4.0", "2.0"],
        ["norm", "2", "1.0", "", "", "10", "", "2.0"],
        ["everything else", "", "1.0", "", "", "", "", ""],
        ["whole evaluation", "", "10.0", "8.0", "800", "30", "4.0", "2.0"],
    ]
    assert [speed.above_floor(each) for each in (s, m)] == ["5.00", "2.50"]


def test_single_numbers_of_speed() -> None:
    assert speed.first_image({"seconds": {"install": 7, "whole": 125}}) == "2 min 5 s"
    rates = {"gflop_per_s": 120.4, "copy_gbyte_per_s": 9.87}
    assert speed.ceilings({"config": "s", "ceilings": rates}) == "s: 120 GFLOP/s, 9.9 GB/s"
    job = {"name": "npz", "precision": "fp32", "of_bare": 1.046, "of_bare_low": 0.98, "of_bare_high": 1.125}
    other = {**job, "name": "folder", "of_bare": 2.0, "of_bare_low": 2.0, "of_bare_high": 2.0}
    found = {"rows": [other, {**other, "name": "npz", "precision": "bf16"}, job]}
    assert (speed.job(found, "npz"), speed.job(found, "npz", digits=1)) == ("1.05", "1.0")
    assert speed.job_spread(found, "npz") == "0.98 to 1.12"
    steps = {"precision": "bf16", "p50_ms": 200.0, "images_per_s": 80.0, "ready_s": 3.0}
    rows = [
        {**steps, "name": "rcdm train", "of_plain": 1.5},
        {**steps, "name": "rcdm train, compiled", "of_plain": 2.25},
        {**steps, "name": "torn", "why_not": "wrong"},
    ]
    assert speed.compiled_step({"rows": rows}) == "2.25"
    assert _cells(speed.training_step({"rows": rows})) == [
        ["rcdm train", "bf16", "200", "80.0", "1.50", "3"],
        ["rcdm train, compiled", "bf16", "200", "80.0", "2.25", "3"],
    ]


def test_every_number_of_an_evaluation_stands_in_its_row() -> None:
    found = {
        "mrr": _interval(0.5), "mean_rank": _interval(12), "distance": _interval(3), "ranked_by": "an encoder",
        "nearest_real": {str(k): _interval(k) for k in (1, 5, 10)}, "chance_mrr": 0.00098, "chance_mean_rank": 5000.5,
        "blurred_mrr": _interval(0.2), "variance": _interval(0.08),
    }  # fmt: skip
    assert _cells(models.evaluation(found)) == [
        [models.MRR, "0.500 [0.490, 0.510]", "chance 0.00098; ranked by an encoder"],
        ["the same of the source, blurred by one pixel", "0.200 [0.190, 0.210]", ""],
        [models.RANK, "12.0 [12.0, 12.0]", "chance 5000.5"],
        ["squared distance of a sample to the source", "3.00 [2.99, 3.01]", ""],
        [
            "squared distance of the nearest other real image to the source", "1.00 [0.99, 1.01]",
            "of the 5th: 5.00, the 10th: 10.00",
        ],
        ["variance of a pixel over samples", "0.080 [0.070, 0.090]", ""],
    ]  # fmt: skip
    assert (models.mrr(found), models.blurred(found)) == ("0.500 [0.490, 0.510]", "0.200")
    measured = dict.fromkeys(models.ENCODERS, found)
    ceilings = {"cifar10-simclr-head": {**found, "blurred_mrr": _interval(0.3)}}
    rows = _cells(models.table(dict.fromkeys(models.ENCODERS, ""), measured, ceilings, long=True))
    assert [row[2:] for row in rows] == [
        ["0.500 [0.490, 0.510]", "0.300" if "head" in name else "", "12.0 [12.0, 12.0]"] for name in models.ENCODERS
    ] + [["0.00098", "", "5000.5"]]
    dims = [models.described(name).unet.representation_dim for name in models.ENCODERS]
    assert [row[1].rpartition(" (")[2] for row in rows[:-1]] == [f"{dim})" for dim in dims]


def test_strengths_of_guidance_stand_in_their_order() -> None:
    def row(value: float) -> dict[str, object]:
        names = ("mrr", "mean_rank", "distance", "variance")
        numbers: dict[str, object] = {name: _interval(value + place) for place, name in enumerate(names)}
        recognized = {"samples": _interval(0.4), "sources": _interval(0.9)}
        return {**numbers, "recognized": recognized, "distribution": {"frechet_distance": value / 2}}

    shown = _cells(models.guidance({"10": row(3), "2.5": row(2), "1": row(1)}))
    assert [row[0] for row in shown] == ["1", "2.5", "10"]
    assert shown[0][1:] == [
        "1.000 [0.990, 1.010]", "2.0", "3.00 [2.99, 3.01]", "40.0 % [39.0, 41.0]", "4.0000 [3.9900, 4.0100]", "0.50",
    ]  # fmt: skip


def test_times_the_published_recipe() -> None:
    rows = [
        {"engine": engine, "nfe": nfe, "times_published": nfe * 1.25}
        for engine in ("eager", "native")
        for nfe in (4, 5)
    ]
    assert speed.times_published({"rows": rows}, "native", 5) == "6.2"
    with pytest.raises(ValueError, match="unpack"):
        speed.times_published({"rows": rows}, "native", 6)


def test_solvers_of_models_stand_beside_many_evaluations_and_the_best_other_one() -> None:
    """A row for each model; the best other one is in as many evaluations as the last that was fitted."""
    rows = [("ddim", 50, 0.2, 0.0), ("fitted", 4, 0.3, 0.1), ("fitted", 5, 0.1, -0.1), ("ipndm", 4, 0.01, -0.19),
            ("ipndm", 5, 0.25, 0.05), ("deis", 5, 0.24, 0.04)]  # fmt: skip
    quality = [
        {"solver": solver, "nfe": nfe, "error": _interval(error), "less_ddim_50": _interval(less)}
        for solver, nfe, error, less in rows
    ]
    found = {"quality": quality, "made_by": {"models": [{"name": "m"}]}}
    text = solvers.own(found, {**found, "made_by": {"models": [{"name": "other"}]}})
    assert text.splitlines()[0] == "| | `ddim`, 50 | fitted, 4 | fitted, 5 | best other, 5 |"
    assert _cells(text) == [
        [
            f"`{name}`",
            "0.200 [0.190, 0.210]",
            "0.300, +0.100 [+0.090, +0.110]",
            "0.100, -0.100 [-0.110, -0.090]",
            "0.240, +0.040 [+0.030, +0.050] (`deis`)",
        ]
        for name in ("m", "other")
    ]


def test_what_a_decoder_follows() -> None:
    """Means over the cells that are kept, largest first; verdicts are counted beside one truth."""

    def cell(factor: str, kept: bool, called: str, slope: float, free: bool = False) -> dict[str, object]:
        return {"factor": factor, "kept": kept, "called": called, "slope": {"value": slope}, "free": free}

    cells = [
        cell("x", False, "kept", 9.0, free=True),  # thresholds may have been moved on it: it is not counted
        cell("x", True, "kept", 0.5),
        cell("x", True, "dropped", 0.25),
        cell("x", False, "kept", 9.0),
        cell("ground_hue", True, "kept", 0.75),
        cell("ground_hue", False, "dropped", 0.0),
        cell("ground_hue", False, "inconclusive", 0.0),
    ]
    other = {"name": "other", "cells": [cell("x", True, "kept", 5.0)]}
    found = {"decoders": [other, {"name": "own", "cells": cells}], "reader": {"scores": {}}}
    assert known_world.followed(found, "own") == "| ground's hue | x |\n|---|---|\n| 0.75 | 0.38 |"
    counts = {
        (kept, called): known_world.counted(found, "own", kept, called)
        for kept in (True, False)
        for called in (True, False)
    }
    assert counts == {
        (True, True): "2 of 3", (True, False): "1 of 3", (False, True): "1 of 3", (False, False): "1 of 3",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["s", "m"])
def test_results_of_a_configuration_are_read_from_its_files(name: str) -> None:
    profile = (f"profile_{name}_2cores",)
    assert results.RESULTS[f"step {name}"].sources == (f"step_{name}_2cores",)
    assert results.RESULTS[f"rates {name}"].sources == results.RESULTS[f"above floor {name}"].sources == profile
    assert results.RESULTS[f"rates {name}"].text().startswith(f"{name}: ")


@pytest.mark.parametrize("name", results.ENCODERS)
def test_accuracies_are_of_the_encoder_and_layer_that_is_named(name: str) -> None:
    read = {layer: results.read(f"accuracy_{name}-{layer}")["accuracy"] for layer in ("backbone", "projector")}
    for kind in ("knn", "linear"):
        assert results.RESULTS[f"{kind} {name}"].text() == f"{100 * read['backbone'][kind]['value']:.1f} %"
    rows = _cells(results.RESULTS[f"accuracies {name}"].text())
    assert [row[0] for row in rows] == ["backbone", "projector"]
    for row in rows:
        assert row[2].startswith(f"{100 * read[row[0]]['knn']['value']:.1f} ")


def test_a_card_that_is_damaged_is_told_and_hides_no_other_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that nobody shows are not looked for as long as a page cannot be read."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("a <!-- result: ms -->9<!-- end -->\n")
    (tmp_path / "docs" / "b.md").write_text("b <!-- result: ms -->9\n")
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(check, "RESULTS", FOUND)
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    monkeypatch.setattr(guard, "allowed", dict)
    told = check.check(tmp_path)
    assert [line.partition(" ")[0] for line in told] == ["README.md:1:", "docs/b.md:1:"]
    (tmp_path / "docs" / "b.md").write_text("b <!-- result: ms -->151.3<!-- end -->\n")
    told = check.check(tmp_path)
    assert [line.partition(" ")[0] for line in told] == ["README.md:1:", "benchmarks/results/other.json:"]
