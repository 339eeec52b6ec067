"""Tables and sentences of documents, from small results whose text is known."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.documents import experiments, models, results, runtimes, solvers, speed


def _span(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_what_lies_above_the_floor_comes_with_the_most_first() -> None:
    kinds = (("convolution", 10.0, 11.0), ("norm", 3.0, 0.0), ("attention", 9.0, 4.0), ("whole evaluation", 22.0, 15.0))
    rows = [{"kind": kind, "ms": ms, "operations_floor_ms": floor} for kind, ms, floor in kinds]
    assert speed.parts_above_floor({"rows": rows}) == "attention 5.0 ms; norm 3.0 ms"


def test_convolutions_count_as_often_as_they_occur() -> None:
    row: dict[str, Any] = {"kernel": 3, "size": 32, "inputs": 64, "outputs": 48, "count": 4}
    row |= {f"{part}_ms": ms for part, ms in (("forward", 1.5), ("of_input", 2.0), ("of_weight", 3.0))}
    row |= {f"{part}_gflops": 90.0 + ms for part, ms in (("forward", 1), ("of_input", 2), ("of_weight", 3))}
    once = {**row, "count": 1, "kernel": 1}
    assert _rows(speed.convolutions({"facts": {"convolutions": {"fp32": [row, once]}}})) == [
        ["all 5 convolutions, ms", "8", "10", "15"],
        ["GFLOP/s, 3x3 on 32 px, 64 to 48 channels", "91", "92", "93"],
        ["GFLOP/s, 1x1 on 32 px, 64 to 48 channels", "91", "92", "93"],
    ]


def test_a_step_beside_its_floor() -> None:
    row = {"name": "rcdm train", "p50_ms": 2500.4, "of_plain": 1.5, "of_floor": 1.06}
    assert _rows(speed.fused_step({"rows": [row]})) == [["rcdm train", "2500", "1.50", "1.06"]]


def test_errors_of_x0_on_both_sets_stand_at_their_timestep() -> None:
    training, test = (
        {"x0_errors": {"50": _span(0.1), "980": _span(0.2)}},
        {"x0_errors": {"980": _span(0.4), "50": _span(0.3)}},
    )
    assert _rows(models.denoising(training, test)) == [
        ["50", "0.100 [0.090, 0.110]", "0.300 [0.290, 0.310]"],
        ["980", "0.200 [0.190, 0.210]", "0.400 [0.390, 0.410]"],
    ]
    assert models.error_of_x0(test, 50) == "0.30000 [0.29000, 0.31000]"


def test_decoders_beside_one_another() -> None:
    found = [{"mrr": _span(mrr), "distance": _span(10 * mrr)} for mrr in (0.5, 0.25)]
    assert _rows(models.adapted(*found, names=("own", "adapted"))) == [
        ["own", "0.500 [0.490, 0.510]", "5.00 [4.99, 5.01]"],
        ["adapted", "0.250 [0.240, 0.260]", "2.50 [2.49, 2.51]"],
    ]
    with pytest.raises(ValueError, match="longer"):
        models.adapted(*found, names=("own",))


def test_ranks_and_variance_beside_the_first_solver() -> None:
    row = {"solver": "ddim", "steps": "50", "nfe": 50, "mrr": _span(0.4), "mrr_change": _span(0), "variance": _span(1)}
    other = {**row, "solver": "ipndm", "steps": "logsnr8", "nfe": 8, "mrr_change": _span(-0.05), "variance": _span(1.1)}
    assert _rows(solvers.faithful({"quality": [row, other, {**other, "nfe": 9}]}, (8,))) == [
        ["`ddim`, 50", "0.400 [0.390, 0.410]", "", ""],
        ["`ipndm`, logsnr8", "0.400 [0.390, 0.410]", "-5.0 [-6.0, -4.0]", "1.10 [1.09, 1.11]"],
    ]


def test_one_solver_of_several_models() -> None:
    first = {"solver": "ddim", "steps": "50", "nfe": 50, "error": _span(0.2)}
    row = {"solver": "deis", "steps": "10", "nfe": 10, "error": _span(0.1), "mrr_change": _span(-0.05)}
    made = [
        {
            "quality": [first, {**row, "nfe": 8}, {**row, "variance": _span(1.1)}],
            "made_by": {"models": [{"name": name}]},
        }
        for name in "ab"
    ]
    table = solvers.usual(*made, solver="deis", nfe=10)
    assert table.startswith(
        "| | distance | of `ddim`, 50 | change of MRR, % | variance over samples, against `ddim`, 50 |"
    )
    assert _rows(table) == [
        [f"`{name}`", "0.100 [0.090, 0.110]", "0.200 [0.190, 0.210]", "-5.0 [-6.0, -4.0]", "1.10 [1.09, 1.11]"]
        for name in "ab"
    ]


def test_placements_of_solvers_stand_side_by_side() -> None:
    def found(solver: str, error: float) -> dict[str, Any]:
        return {"solver": solver, "placements": [{"nfe": 5, "error": _span(error), "own_error": _span(2 * error)}]}

    table = solvers.placements(found("ddim", 0.1), found("ipndm", 0.2))
    assert table.startswith("| evaluations | `ddim`, found | own | `ipndm`, found | own |\n")
    assert [cell[:5] for cell in _rows(table)[0]] == ["5", "0.100", "0.200", "0.200", "0.400"]


def test_runtimes_are_held_against_the_first_of_them() -> None:
    first = {"engine": "eager", "precision": "fp32", "step_errors": [0.0], "path_errors": [0.0], "psnr_db": None}
    other: dict[str, Any] = {
        "engine": "openvino",
        "precision": "int8",
        "step_errors": [1e-3, 3e-3, 2e-3],
        "path_errors": [0.1, 0.02],
    }
    other |= {"psnr_db": 48.63, "mrr_change": _span(-0.008)}
    found = {"rows": [first, {**first, "engine": "native"}, other]}
    assert _rows(runtimes.drift(found)) == [
        ["`native`", "fp32", "0.0e+00", "0.0e+00", "equal"],
        ["`openvino`", "int8", "3.0e-03", "2.0e-02", "48.6"],
    ]
    assert runtimes.int8(found) == "a PSNR of 48.6 dB, and the MRR of the source changes by -0.8 % [-1.8, +0.2]"


def test_fp8_says_which_layers_run_in_it_and_whether_ranks_stay() -> None:
    first = {"engine": "eager", "precision": "fp32", "mrr": _span(0.4)}
    layers = "3 of 4 inner 3x3 convolutions in fp8, all but a.b"
    runs = f"eager PyTorch 2.14.1, fp8 (emulated, slower than fp32: {layers}), on cpu"
    other: dict[str, Any] = {"engine": "eager", "precision": "fp8", "mrr": _span(0.39), "psnr_db": 44.06, "runs": runs}
    made_by = {"command": "rcdm compare m a.jpg --per 4", "models": [{"name": "m"}]}

    def found(change: float) -> dict[str, Any]:
        return {"rows": [first, {**other, "mrr_change": _span(change)}], "made_by": made_by}

    passed, failed = _rows(runtimes.fp8(found(-0.019), found(-0.021)))
    assert passed[:2] == ["`m`", "4"]
    assert passed[4:] == ["-1.9 % [-2.9, -0.9]", "44.1", layers, "passed"]
    assert failed[-1] == "failed"
    with pytest.raises(ValueError, match="no comparison of fp8: eager fp32"):
        runtimes.fp8({"rows": [first, {**other, "precision": "fp32"}], "made_by": made_by})


def test_findings_without_numbers_say_all_that_was_measured() -> None:
    decided = {"sentence": "It holds.", "numbers": {"share": 1}, "measured": "not shown"}
    open_ = {"sentence": "Undecided.", "numbers": {}, "measured": "slope 0.1."}
    found = {"made_by": {"command": "rcdm report m"}, "experiments": {"attack": {"findings": [decided, open_]}}}
    assert experiments.command(found) == "`rcdm report m`"
    assert experiments.findings(found, "attack") == "* It holds.\n* Undecided: slope 0.1."


def test_models_stand_side_by_side_property_by_property() -> None:
    def table(name: str, kind: str, other: str, *rows: tuple[Any, ...]) -> dict[str, Any]:
        verdicts = ("a", other) if kind == "slope" else ()
        columns = ("augmentation", "property", "readout", f"{kind} a", f"{kind} {other}", "difference", *verdicts)
        return {"name": name, "columns": columns, "rows": rows}

    def slope(other: str, value: float, called: str) -> tuple[Any, ...]:
        return ("hue", "hue", "", _span(0.5), _span(value), _span(0), "kept", called)

    def readout(how: str, value: float) -> tuple[Any, ...]:
        return ("flip", "side", how, _span(value), _span(2 * value), _span(0))

    tables = [
        table("side-by-side", "slope", "b", slope("b", 0.25, "inconclusive")),
        table("side-by-side-2", "slope", "c", slope("c", 0.02, "dropped")),
        table("readouts", "R^2", "b", readout("non-linear", 0.3), readout("linear", 0.4)),
        table("recovered", "slope", "z", slope("z", 9, "kept")),
    ]
    found = {"experiments": {"layers": {"tables": tables}}}
    assert experiments.slopes(found).splitlines() == [
        "| samples follow | `a` | `b` | `c` |",
        "|---|---|---|---|",
        "| hue (hue) | 0.50 [0.49, 0.51] kept | 0.25 [0.24, 0.26] inconclusive | 0.02 [0.01, 0.03] dropped |",
    ]
    assert _rows(experiments.readouts(found)) == [["side (flip)", "0.40 [0.39, 0.41]", "0.80 [0.79, 0.81]"]]


def test_depth_and_positions_of_one_experiment() -> None:
    budget = {"columns": ("representation", "explained"), "rows": (("a", 0.254), ("b", 1.0)), "name": "budget"}
    columns = ("representation", "property", "slope", "R^2 of the better readout")
    rows = [(name, of, _span(value), best) for of in ("hue", "side") for name, value, best in (
        ("a", 0.5, _span(0.9)), ("b", 0.25, None)
    )]  # fmt: skip
    found: dict[str, Any] = {"tables": [budget, {"name": "depth", "columns": columns, "rows": rows}]}
    assert experiments.depth(found).splitlines() == [
        "| representation | explains | hue: slope | hue: readout | side: slope | side: readout |",
        "|---|---|---|---|---|---|",
        "| a | 25 % | 0.50 [0.49, 0.51] | 0.90 [0.89, 0.91] | 0.50 [0.49, 0.51] | 0.90 [0.89, 0.91] |",
        "| b | 100 % | 0.25 [0.24, 0.26] |  | 0.25 [0.24, 0.26] |  |",
    ]
    kept = {"name": "kept", "columns": ("away", "1 x 1", "film"), "rows": ((0, _span(0.5), 0.25), (1, None, None))}
    found = {"tables": [kept], "findings": [{"sentence": "It holds.", "numbers": {"share": 1}}]}
    assert experiments.positions(found).splitlines() == [
        "| away | 1 x 1 | film |",
        "|---|---|---|",
        "| 0 | 0.50 [0.49, 0.51] | 0.25 |",
        "| 1 |  |  |",
    ]
    assert experiments.findings(found) == "* It holds."


@pytest.mark.parametrize("name", sorted(results.ADAPTED.values()))
def test_decoders_of_one_encoder_were_measured_alike(name: str) -> None:
    settings = [results.read(each)["settings"] for each in ("evaluate_cifar10-supervised", name)]
    assert settings[0] == settings[1]
