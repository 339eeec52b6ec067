"""Benchmarks: what they refuse, what their rows say, and the arithmetic of their claims. No speed is asserted."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import rcdm_fast
from benchmarks import (
    bench_generate,
    bench_maps,
    bench_sampling,
    bench_step,
    bench_training,
    convolutions,
    profile_step,
    rows,
    timing,
    workload,
)
from benchmarks.peers import eager
from rcdm_fast import benchmarking, cli, precision, solver_quality, storage, throughput
from rcdm_fast.benchmarking import Times, pair_ratio, relative_l2
from rcdm_fast.cli import bench
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.engines.program import Program
from rcdm_fast.models.checkpoint import save_model
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops import winograd
from tests import small

CPU = torch.device("cpu")


@pytest.fixture
def tiny() -> workload.Workload:
    return workload.make(ModelConfig(small.UNET, small.SCHEDULE, name="tiny", info={"batch": 3}))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    model = small.model()
    save_model(path, model.config, model.unet.state_dict())
    return path


def test_percentiles() -> None:
    expected = {"p20_ms": 1.8, "p50_ms": 3.0, "p80_ms": 5.4, "runs": 5}
    assert asdict(Times.of([1.0, 2.0, 3.0, 4.0, 11.0])) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no run"):
        Times.of([])


def test_pair_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The medians themselves would give 1.5; a machine that is slow in whole rounds changes nothing here.
    assert pair_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 2.0]) == 2.0
    assert pair_ratio([1.0], [4.0]) == 0.25
    with pytest.raises(ValueError, match="do not pair"):
        pair_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="do not pair"):
        pair_ratio([], [])


def test_relative_l2() -> None:
    want = torch.tensor([3.0, 4.0])
    assert relative_l2(want + torch.tensor([0.0, 0.5]), want) == pytest.approx(0.1)
    assert relative_l2(torch.tensor([3.0, math.nan]), want) == math.inf
    assert relative_l2(torch.ones(3), want) == math.inf


def test_runs_take_turns_and_another_one_begins_each_time() -> None:
    seen: list[str] = []
    runs = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    times = benchmarking.in_turn(runs, CPU, rounds=4, warmup=1)
    assert {name: len(each) for name, each in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert seen[:3] == list("abc")
    assert ["".join(seen[i : i + 3]) for i in range(3, 15, 3)] == ["abc", "acb", "cab", "cba"]


def test_a_deadline_ends_the_rounds_but_not_the_first() -> None:
    times = benchmarking.in_turn({"a": lambda: None}, CPU, rounds=9, deadline=time.monotonic() - 1)
    assert len(times["a"]) == 1


@pytest.mark.parametrize(("name", "gflop"), [("s", 59), ("m", 313), ("release128", 8 * 614)])
def test_configurations_have_the_operations_they_are_known_for(name: str, gflop: int) -> None:
    model = workload.read_config(name)
    assert workload.count_flops(model.unet, model.info["batch"]) * 1e-9 == pytest.approx(gflop, rel=0.02)


def test_configurations_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="release128"):
        workload.read_config("xl")


def test_bytes_are_weights_and_activations(tiny: workload.Workload) -> None:
    config = tiny.network.config
    one, two = (workload.count_bytes(config, batch, 2) for batch in (1, 2))
    weights = 2 * (2 * one - two) / 2  # what does not grow with the batch
    layers = [
        each for each in tiny.network.modules() if isinstance(each, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d)
    ]
    assert weights == 2 * sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def test_made_up_weights_leave_nothing_out(tiny: workload.Workload) -> None:
    assert all(bool((parameter != 0).any()) for parameter in tiny.network.parameters())
    out = tiny.network(tiny.timed.x, tiny.timed.t, tiny.timed.h)
    assert 0.1 < float(out.std()) < 10
    again = workload.make_network(tiny.network.config)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tiny.network.parameters(), strict=True))


@pytest.mark.parametrize("fault", ["wrong", "raises", "other batch", "nan"])
def test_a_red_candidate_is_not_timed(fault: str, tiny: workload.Workload, tmp_path: Path) -> None:
    good = bench_step.build_engine(tiny, "eager", "fp32")

    def evaluate(inputs: workload.Inputs) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("out of\nsomething")
        if fault == "other batch":
            return good(tiny.timed)  # right for the batch that is timed, but only for that
        return good(inputs) * (1.001 if fault == "wrong" else math.nan)

    red = timing.Candidate("broken", "fp32", True, lambda: evaluate)
    right = timing.Candidate("good", "fp32", True, lambda: good)
    file = rows.RowFile(tmp_path / "rows.json", {}, bench_step.KEYS)
    assert bench_step.measure(tiny, [red, right], 2, file, {})
    written = {row["name"]: row for row in json.loads(file.path.read_text())["rows"]}
    assert written["broken"]["red"]
    assert "p50_ms" not in written["broken"]
    assert written["broken"]["why_not"] in rows.table(file.rows, bench_step.COLUMNS)[1]
    assert "broken" not in "".join(rows.markdown(file.rows, bench_step.COLUMNS))
    assert written["good"]["p50_ms"] > 0
    assert written["good"]["error"] < 1e-5


def test_bf16_may_not_be_worse_than_autocast(tiny: workload.Workload) -> None:
    gate = timing.Gate(tiny)
    ours, rival = (timing.Candidate("x", "bf16", own, lambda: None) for own in (True, False))  # type: ignore[arg-type,return-value]
    assert 1e-3 < gate.limit(ours) < 0.1
    assert gate.limit(rival) == 2 * gate.limit(ours)


@pytest.mark.parametrize(("device", "factor"), [("cpu", 1.0), ("cuda", 1.1)])
def test_on_cuda_rounding_alone_may_make_a_tenth_of_difference(
    tiny: workload.Workload, monkeypatch: pytest.MonkeyPatch, device: str, factor: float
) -> None:
    monkeypatch.setattr(workload.Workload, "device", torch.device(device))
    monkeypatch.setattr(timing.Gate, "error", lambda *_: 1.02e-2)
    ours = timing.Candidate("x", "bf16", True, lambda: None)  # type: ignore[arg-type,return-value]
    assert timing.Gate(tiny).limit(ours) == pytest.approx(1.02e-2 * factor)


def test_the_reference_is_ieee_fp32_with_cudnn(tiny: workload.Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    forward = type(tiny.network).forward

    def watch(*arguments: Any) -> torch.Tensor:
        backends: Any = torch.backends
        exact = (backends.cudnn.conv, backends.cuda.matmul) if kind == "cuda" else (backends.mkldnn.matmul,)
        seen.append((backends.cudnn.enabled, all(each.fp32_precision in ("ieee", "none") for each in exact)))
        return forward(*arguments)

    monkeypatch.setattr(type(tiny.network), "forward", watch)
    for kind in ("cpu", "cuda"):
        with monkeypatch.context() as patch:
            manager = precision.ieee_fp32
            for module in (timing, eager):
                patch.setattr(module, "ieee_fp32", lambda _: manager(kind))  # noqa: B023 (used at once)
            torch.set_float32_matmul_precision("high")
            try:
                timing.Gate(tiny).error(eager.build(tiny))
            finally:
                torch.set_float32_matmul_precision("highest")
    assert seen == [(True, True)] * 8


def test_a_candidate_that_fails_later_does_not_stop_the_others(tiny: workload.Workload, tmp_path: Path) -> None:
    good = bench_step.build_engine(tiny, "eager", "fp32")
    calls = {"second": 0, "timed": 0}

    def build(name: str, sound: int) -> timing.Evaluate:
        def evaluate(inputs: workload.Inputs) -> torch.Tensor:
            calls[name] += 1
            if calls[name] > sound:
                raise LookupError("no more")
            return good(inputs)

        return evaluate

    # The first call is made to warm up, two are compared, the next ones are timed.
    second = timing.Candidate("second", "fp32", True, lambda: build("second", 2))
    timed = timing.Candidate("timed", "fp32", True, lambda: build("timed", 6))
    right = timing.Candidate("good", "fp32", True, lambda: good)
    file = rows.RowFile(tmp_path / "rows.json", {}, bench_step.KEYS)
    assert bench_step.measure(tiny, [second, timed, right], 4, file, {})
    written = {row["name"]: row for row in json.loads(file.path.read_text())["rows"]}
    assert written["second"]["why_not"] == "cannot be built or run: no more"
    assert written["timed"]["why_not"] == "fails when it is timed: no more"
    assert "p50_ms" not in written["timed"]
    assert written["good"]["runs"] == 4


def test_bench_step_writes_rows_one_by_one(
    tiny: workload.Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[list[dict[str, object]]] = []
    write = storage.write_json

    def watch(path: Path, data: dict[str, list[dict[str, object]]]) -> None:
        write(path, data)
        states.append(json.loads(path.read_text())["rows"])

    monkeypatch.setattr(storage, "write_json", watch)
    monkeypatch.setattr(workload, "read_config", lambda name: None)
    monkeypatch.setattr(workload, "make", lambda *_: tiny)
    monkeypatch.setattr(timing, "ceilings", lambda device: [{"name": "GEMM", "precision": "fp32", "gflop_per_s": 1.0}])
    arguments = ["--rounds", "2", "--peers", "pytorch-eager-fp32", "pytorch-autocast-bf16", "--engines", "eager"]
    arguments += ["--precisions", "fp32", "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    assert bench_step.main(arguments) == 0
    assert [len(state) for state in states] == [1, 2, 3, 4, 4, 4, 5]
    final = {row["name"]: row for row in states[-1]}
    for name in ("PyTorch eager", "PyTorch autocast", "rcdm_fast eager"):
        row = final[name]
        assert {"p20_ms", "p50_ms", "p80_ms", "device", "versions", "threads", "allocator", "error"} <= set(row)
        assert {"gflop_per_s", "of_eager", "batch", "config", "ready_s"} <= set(row)
        assert row["runs"] == 2
    assert final["PyTorch eager"]["of_eager"] == 1.0
    assert "conditioning plan, 50 steps, 3 representations" in final
    assert "| rcdm_fast eager | fp32 |" in (tmp_path / "r.md").read_text()
    assert "x eager fp32" in capsys.readouterr().out


@pytest.mark.long
def test_bench_training_writes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig(small.UNET, small.SCHEDULE, info={"batch": 3})
    monkeypatch.setattr(workload, "read_config", lambda name: model)
    arguments = ["--rounds", "2", "--no-compile", "--json", str(tmp_path / "r.json")]
    assert bench_training.main(arguments) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["name"], row["precision"]) for row in rows] == [
        ("plain PyTorch", "fp32"), ("rcdm train", "fp32"), ("rcdm train", "bf16"),
        ("convolutions alone", "fp32"), ("convolutions alone", "bf16"),
    ]  # fmt: skip
    assert rows[3]["of_floor"] == rows[4]["of_floor"] == 1.0
    assert rows[0]["of_plain"] == 1.0
    assert all(row["runs"] == 2 and row["images_per_s"] > 0 for row in rows)
    assert rows[1]["loss_error"] < 1e-5
    assert 0 < rows[2]["loss_error"]
    assert "x plain fp32" in capsys.readouterr().out
    monkeypatch.setitem(bench_training.LIMITS, "bf16", 0.0)
    assert bench_training.main(arguments) == 1
    assert "wrong result" in json.loads((tmp_path / "r.json").read_text())["rows"][2]["why_not"]


def test_the_floor_has_all_convolutions_of_a_network() -> None:
    """As many operations as PyTorch counts, less attention's and the linear layers'; and every shape is timed."""
    found = convolutions.rates(small.UNET, 2, torch.float32, repeats=1)
    first = next(row for row in found if row["inputs"] == 3)
    assert (first["outputs"], first["size"], first["kernel"], first["count"]) == (32, 8, 3, 1)
    assert first["gflop"] == pytest.approx(2 * 2 * 32 * 8 * 8 * 3 * 9 / 1e9)
    with torch.device("meta"), torch.no_grad():
        network = UNet(small.UNET)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(2, 3, 8, 8), torch.empty(2), torch.empty(2, small.DIM))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert sum(row["gflop"] * row["count"] for row in found) == pytest.approx(counted / 1e9)
    assert all(row[f"{part}_ms"] > 0 for row in found for part in convolutions.PARTS)


def test_bench_step_refuses_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_step.main(["--configs", "xl", "--json", str(tmp_path / "r.json")]) == 2
    assert "known: m, rehearsal, release128, s" in capsys.readouterr().err
    assert bench_step.main(["--json", "/proc/nowhere/r.json"]) == 2
    with pytest.raises(SystemExit):
        bench_step.main(["--peers", "nobody"])


@pytest.mark.long
def test_rcdm_bench(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    arguments = ["bench", str(model_file), "--steps", "2,3", "--solver", "ddim,ancestral", "--engine", "eager"]
    arguments += [
        "--precision",
        "fp32,bf16",
        "--batch-size",
        "2",
        "--images",
        "4",
        "--rounds",
        "1",
        "--json",
        str(out),
    ]
    result = CliRunner().invoke(cli.app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())["rows"]
    assert len(written) == 1 + 2 * 2 * 2
    for row in written:
        assert {"p20_ms", "p50_ms", "p80_ms", "device", "versions", "threads", "times_published"} <= set(row)
        assert row["images_per_s"] == pytest.approx(4 / (row["p50_ms"] * 1e-3))
    assert (written[0]["engine"], written[0]["nfe"]) == (throughput.PUBLISHED, 100)
    assert "sampler_percent" not in written[0]
    assert [row["nfe"] for row in written[1:]] == [2] * 4 + [3] * 4
    assert all(0 < row["sampler_percent"] < 100 for row in written[1:])
    assert "published recipe" in result.output


def test_all_engines_may_be_asked_for_among_others() -> None:
    ways = [solver_quality.SolverCase("ddim", "3")]
    device = torch.device("cpu")
    alone = bench._cases(device, "all", "fp32", ways)
    assert {"eager", "native"} <= {case.engine for case in alone}
    for together in ("all,eager", "eager, all"):
        found = bench._cases(device, together, "fp32", ways)
        assert len(found) == len(alone)
        assert set(found) == set(alone)


def test_no_time_of_int8_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the error of autocast in 16 bits is no bound for it: every file was called wrong."""
    model = small.quick_model()
    model.engine.precision = "int8"
    with pytest.raises(ConfigError, match="rcdm compare times it"):
        throughput.measure(model, throughput.Plan((throughput.Case(steps=2),), batch=2, rounds=1), lambda *_: None)


@pytest.mark.parametrize(
    "changes", [{"representation_dim": 0}, {"representation_dim": 0, "num_classes": 3, "learn_sigma": False}]
)
def test_rates_of_models_without_representations(changes: dict[str, object]) -> None:
    plan = throughput.Plan((throughput.Case(steps=2),), batch=2, rounds=1)
    first, second = throughput.measure(small.model(**changes), plan, lambda rows, fraction: None)
    assert first["images_per_s"] > 0
    assert second["images_per_s"] > 0


def test_rates_that_do_not_fit_into_the_budget_say_so() -> None:
    plan = throughput.Plan((throughput.Case(steps=500),), batch=2, budget_s=1e-9)
    both = throughput.measure(small.model(), plan, lambda rows, fraction: None)
    assert all("more than was left" in row["why_not"] for row in both)


def test_a_wrong_engine_gets_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
    evaluate = model.engine.evaluate
    monkeypatch.setattr(model.engine, "evaluate", lambda batch, x, k: evaluate(batch, x, k) * 1.01)
    plan = throughput.Plan((throughput.Case(steps=2),), batch=2, published=False)
    (row,) = throughput.measure(model, plan, lambda rows, fraction: None)
    assert row["red"]
    assert "wrong result" in row["why_not"]
    assert "images_per_s" not in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", "0"), "batch"),
        (("--batch-size", "2", "--images", "3"), "multiple"),
        (("--steps", "2,x"), "'x'"),
        (("--steps", ","), "nothing to measure"),
        (("--solver", "euler"), "euler"),
        (("--engine", "warp", "--precision", "fp32"), "warp"),
        (("--precision", "fp8"), "fp8"),
        (("--budget", "0"), "budget"),
        (("--json", "/proc/nowhere/r.json"), "cannot be written"),
    ],
)
def test_rcdm_bench_errors_are_one_line(
    arguments: tuple[str, ...], message: str, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(model_file), *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("rcdm:")]) == 1
    assert message in errors[-1]


def test_bench_sampling_covers_every_sampler() -> None:
    found = bench_sampling.cases(CPU, ["eager"], ["fp32"])
    assert [(case.solver, case.steps) for case in found] == list(bench_sampling.SAMPLERS)


def test_rows_of_one_key_take_each_others_place(tmp_path: Path) -> None:
    file = rows.RowFile(tmp_path / "r.json", {"device": "a"}, ("name", "precision"))
    file.put({"name": "x", "precision": "fp32"}, {"name": "y"})
    file.put({"name": "x", "precision": "bf16", "ms": 1}, {"name": "x", "precision": "fp32", "ms": 2})
    written = json.loads(file.path.read_text())
    assert written.pop("made_by")["command"]
    assert written == {
        "facts": {"device": "a"},
        "rows": [
            {"name": "x", "precision": "fp32", "ms": 2}, {"name": "y"}, {"name": "x", "precision": "bf16", "ms": 1},
        ],
    }  # fmt: skip


def test_a_jobs_time_is_held_against_the_loops_of_the_same_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the median of the ratios; the medians of the times would give 1.1 for the first and 2 for the second."""
    model = small.quick_model()
    bare = [1000.0, 2000.0, 4000.0]
    times = {bench_generate.BARE: bare, "folder": [1500.0, 2200.0, 8000.0], "npz": [4000.0, 2000.0, 4000.0]}
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: model)
    monkeypatch.setattr(benchmarking, "in_turn", lambda *_, **__: times)
    words = ["--images", "8", "--steps", "1", "--batch", "4", "--json", str(tmp_path / "r.json")]
    assert bench_generate.main(words) == 0
    found = {row["name"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    ratios = {name: [row[f"of_bare{end}"] for end in ("_low", "", "_high")] for name, row in found.items()}
    assert ratios == {bench_generate.BARE: [1, 1, 1], "folder": [1.1, 1.5, 2], "npz": [1, 1, 4]}
    assert (found["folder"]["p50_s"], found["folder"]["images_per_s"]) == (2.2, 8 / 2.2)
    assert found["folder"]["images"] == 8
    bare_loop = bench_generate.bare
    monkeypatch.setattr(bench_generate, "bare", lambda *given: [each * 0.5 for each in bare_loop(*given)])
    assert bench_generate.main(words) == 1


def test_a_map_is_held_against_the_vector_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """In milliseconds a step; the first round, which packs weights, does not count, and turns change."""
    now, seen = [0.0], list[str]()

    def model(name: str, taken: list[float]) -> Any:
        def sample(h: torch.Tensor, *, per: int, steps: int, batch_size: int) -> None:
            assert (h.ndim, per, steps, batch_size) == (2 if name == "vector" else 4, 3, 5, 7)
            seen.append(name)
            now[0] += taken.pop(0)

        return SimpleNamespace(sample=sample)

    monkeypatch.setattr(bench_maps, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    vector, of_map = model("vector", [99.0, 1.0, 2.0, 4.0]), model("map", [999.0, 1.5, 2.2, 8.0])
    found = bench_maps._timed(vector, of_map, torch.zeros(2, 3, 4, 5), 3, 5, 7, 3)
    assert found == pytest.approx(
        {"vector_ms": 400, "map_ms": 440, "of_vector": 1.5, "of_vector_low": 1.1, "of_vector_high": 2.0}
    )
    assert seen == ["map", "vector", "vector", "map", "map", "vector", "vector", "map"]


def test_a_profile_has_every_convolution_however_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for ours in (True, False):
        if not ours:
            monkeypatch.setattr(winograd, "serves", lambda *_: False)
        network = small.network(image_size=16, channel_mult=(1, 2), resblock_updown=True)
        backend = profile_step.RecordingBackend(torch.float32)
        program = Program(network, backend, torch.float32, torch.device("cpu"))
        film = torch.zeros(1, sum(block.film_width for block in network.residual_blocks()))
        with torch.inference_mode():
            program.denoise(torch.zeros(1, 3, 16, 16), film, torch.zeros(1, dtype=torch.int64))
        found[ours] = sum(calls for kind, calls in backend.recorder.calls.items() if kind.startswith("convolution"))
    assert found[True] == found[False]


def test_floors_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind by the machine's rates; of the whole evaluation the sums."""
    kinds = [
        {"kind": "convolution", "calls": 2, "ms": 4.0, "gflop": 1.0, "mbyte": 30.0},
        {"kind": "norm", "calls": 1, "ms": 1.0, "gflop": 0.5, "mbyte": 10.0},
        {"kind": "everything else", "calls": 0, "ms": 1.0},
        {"kind": "whole evaluation", "calls": 0, "ms": 6.0, "flop_as_written": 9.0},
    ]
    asked: list[Any] = []
    monkeypatch.setattr(profile_step, "profile", lambda *given: asked.append(given) or kinds)  # type: ignore[func-returns-value]
    monkeypatch.setattr(profile_step, "peak_gflop_per_s", lambda precision: {"fp32": 500.0}[precision])
    monkeypatch.setattr(timing, "ceilings", lambda _: [{"gflop_per_s": 7.0}, {"bytes_per_s": 20e9}])
    out = tmp_path / "p.json"
    words = ["profile", "--config", "m", "--precision", "fp32", "--rounds", "4", "--json", str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert profile_step.main() == 0
    assert asked == [("m", "fp32", 4)]
    found = json.loads(out.read_text())
    assert found["ceilings"] == {"gflop_per_s": 500.0, "copy_gbyte_per_s": 20.0}
    floors = [(row["operations_floor_ms"], row["bytes_floor_ms"]) for row in found["rows"]]
    assert floors == [(2.0, 1.5), (1.0, 0.5), (0.0, 0.0), (3.0, 2.0)]


@pytest.mark.parametrize("red", [False, True])
def test_bench_sampling_fails_where_a_batch_was_wrong(
    red: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is not the last batch; rows of all batches are kept."""
    plans: list[throughput.Plan] = []

    def measure(model: Any, plan: throughput.Plan, report: Any) -> list[dict[str, Any]]:
        plans.append(plan)
        row = {"engine": "eager", "precision": "fp32", "solver": "ddim", "steps": "10", "batch": plan.batch}
        found = [{**row, "why_not": "x", "red": red and plan.batch == 2, "threads": 1, "device": "d", "versions": {}}]
        report(found, 1.0)
        return found

    model = ModelConfig(small.UNET, small.SCHEDULE, info={"batch": 3})
    monkeypatch.setattr(workload, "read_config", lambda name: model)
    monkeypatch.setattr(throughput, "measure", measure)
    out = tmp_path / "r.json"
    words = ["--batches", "2", "3", "--engines", "eager", "--precisions", "fp32", "--rounds", "4", "--budget", "5"]
    assert bench_sampling.main([*words, "--device", "cpu", "--json", str(out)]) == int(red)
    assert [(each.batch, each.rounds, each.budget_s) for each in plans] == [(2, 4, 5.0), (3, 4, 5.0)]
    assert [row["batch"] for row in json.loads(out.read_text())["rows"]] == [2, 3]


def test_a_page_of_a_step_has_a_table_for_each_configuration_and_the_ceilings() -> None:
    shared = {"batch": 4, "flop": 59.4e9, "device": "a cpu", "threads": 2, "allocator": "x", "versions": {"torch": "2"}}
    row = {"precision": "bf16", "p50_ms": 12.34, "gflop_per_s": 56.0, "error": 1e-3, **shared}
    found = [
        {"config": "ceilings", "name": "GEMM 64", "precision": "bf16", **shared, "gflop_per_s": 120.0},
        {"config": "ceilings", "name": "copy", "precision": "", **shared, "gbyte_per_s": 9.87},
        {"config": "s", "name": "rcdm_fast native", **row, "of_eager": 2.5, "of_compile": 1.25, "of_openvino": 0.75},
        {"config": "m", "name": "torch.compile", **row, "batch": 8},
    ]
    lines = bench_step.document(found).splitlines()
    assert [line for line in lines if line.startswith("`")] == ["`s`, batch 4, 59 GFLOP:", "`m`, batch 8, 59 GFLOP:"]
    shown = [line for line in lines if "| bf16 |" in line]
    assert shown == [
        "| **rcdm_fast native** | bf16 | 12.3 | 56 | 1.0e-03 | 0.75 | 1.25 | 2.50 |",
        "| torch.compile | bf16 | 12.3 | 56 | 1.0e-03 |  |  |  |",
    ]
    assert lines[-3:] == [
        "Ceilings measured in the same run: GEMM 64 bf16 120 GFLOP/s; copy 9.9 GB/s.",
        "",
        "a cpu, 2 threads, allocator x; torch 2.",
    ]


def test_a_rate_stands_beside_its_yardsticks(tiny: workload.Workload) -> None:
    """How many times as long the yardstick takes, not the other way round."""
    candidate = timing.Candidate("x", "fp32", True, lambda: None)  # type: ignore[arg-type,return-value]
    own, others = [10.0, 20.0, 40.0], {name: [factor * 10.0] * 3 for factor, name in enumerate(("a", "b", "c"), 2)}
    yardsticks = dict(zip(others, bench_step.YARDSTICKS.values(), strict=True))
    times = {candidate.key: own, **{yardsticks[name]: each for name, each in others.items()}}
    found = bench_step._row(candidate, times, {"flop": 3e9})
    assert found["gflop_per_s"] == pytest.approx(150.0)  # in 20 ms
    assert [found[column] for column in bench_step.YARDSTICKS] == pytest.approx([1.0, 1.5, 2.0])


def test_a_row_of_rates_is_arithmetic_of_its_runs() -> None:
    """Six images a run in three batches of two, four evaluations for each of them."""
    plan = throughput.Plan((throughput.Case(),), batch=2, images=6)
    labels = {"engine": "x", "steps": "4"}
    timed = throughput.TimedEngine(small.quick_model().engine, CPU)
    ours = throughput._Runner(labels, 12, lambda: None, lambda: torch.zeros(1), timed)
    ours.times_ms, ours.evaluations_ms = [10.0, 20.0, 40.0], [6.0, 18.0, 30.0]
    published = throughput._Runner({"engine": "y"}, 300, lambda: None, lambda: torch.zeros(1))
    published.times_ms = [100.0, 80.0]
    row = throughput._row(ours, published, plan, {"model": "m"})
    assert (row["nfe"], row["model"], row["steps"]) == (4, "m", "4")
    assert row["p50_ms"] == 20
    assert row["images_per_s"] == pytest.approx(6 / 0.020)
    assert row["sampler_percent"] == pytest.approx(25)  # of 40, 10 and 25 % the median
    assert row["evaluation_ms"] == pytest.approx(18 / 12)
    assert row["times_published"] == pytest.approx((100 / 10 + 80 / 20) / 2)
    first = throughput._row(published, published, plan, {})
    assert (first["nfe"], first["times_published"]) == (100, 1.0)
    assert not {"sampler_percent", "evaluation_ms"} & first.keys()
    assert "times_published" not in throughput._row(ours, None, plan, {})


@pytest.mark.parametrize(("solver", "steps", "nfe"), [("ddim", 3, 3), ("heun", 5, 5)])
def test_a_timed_run_draws_all_its_batches(solver: str, steps: int, nfe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many evaluations as the row says, each of images with representations of their own; the recipe's of one."""
    monkeypatch.setattr(throughput, "PUBLISHED_STEPS", 2)
    model = small.quick_model()
    plan = throughput.Plan((throughput.Case(solver=solver, steps=steps),), batch=2, images=6)
    bench = throughput._Bench(model, plan)
    runner, published = bench.runner(plan.cases[0]), bench.published()
    assert (runner.nfe, published.nfe) == (3 * nfe, 3 * 2)
    assert runner.engine is not None
    before = runner.engine.evaluations
    runner.measure(CPU)
    assert runner.engine.evaluations - before == runner.nfe
    whole = runner.engine.evaluations_ms
    runner.measure(CPU)
    assert sum(runner.evaluations_ms) < runner.engine.evaluations_ms  # the one that was checked does not count
    assert runner.evaluations_ms[1] == pytest.approx(runner.engine.evaluations_ms - whole)
    seen: list[torch.Tensor] = []
    bench._network.register_forward_hook(lambda module, given, out: seen.append(given[2]))
    published.run()
    assert len(seen) == published.nfe
    assert all(torch.equal(h, bench._h[:1].expand(2, -1)) for h in seen)
    assert len(bench._h.unique(dim=0)) == 6


def test_a_run_is_expected_to_take_as_long_as_its_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "time_ms", lambda run, device: 50.0)
    runner = throughput._Runner({}, 40, lambda: None, lambda: torch.zeros(1))
    runner.warm_up(CPU)
    assert runner.expected_s == pytest.approx(2.0)


def test_rounds_end_with_the_number_that_is_planned_and_are_reported() -> None:
    told: list[tuple[list[int], float]] = []

    def report(rows: list[dict[str, Any]], fraction: float) -> None:
        told.append(([row.get("runs", 0) for row in rows], fraction))
        assert ["fp32" in row["what_runs"] for row in rows] == [True, True], "beside how often it ran"

    plan = throughput.Plan((throughput.Case(steps=1), throughput.Case(steps=2)), batch=1, rounds=2, published=False)
    throughput.measure(small.quick_model(), plan, report)
    assert [runs for runs, _ in told] == [[1, 0], [1, 1], [2, 1], [2, 2], [2, 2]]
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[0] < fractions[-1] == 1


def test_every_run_is_warmed_up_and_every_round_is_told_of() -> None:
    calls, told = {"a": 0, "b": 0}, []
    runs = {name: (lambda name=name: calls.update({name: calls[name] + 1})) for name in calls}
    benchmarking.in_turn(
        runs, CPU, rounds=3, warmup=2, after_round=lambda times: told.append({name: len(times[name]) for name in times})
    )
    assert calls == {"a": 5, "b": 5}
    assert told == [{"a": count, "b": count} for count in (1, 2, 3)]
