"""`make bench-gpu` without a GPU: its processes, what becomes of those that break, all parts rehearsed on the CPU."""

from __future__ import annotations

import ast
import dataclasses
import gc
import json
import shutil
import subprocess
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_gpu, bench_step, roofline, rows, timing, workload
from benchmarks.gpu import build, candidates, cases, group, machine, ops, process, step, trajectory
from benchmarks.gpu.machine import Ceilings, Deadline
from benchmarks.gpu.process import Ended
from benchmarks.gpu.settings import REAL, REHEARSAL
from benchmarks.rows import Row
from rcdm_fast import engines, storage
from rcdm_fast.config import ModelConfig
from tests import small
from tests.fake_cuda import fake_cuda

CEILINGS = Ceilings([], {"bf16": 1e12, "fp32": 1e12}, 1e10)
SHARED = {"device": "NVIDIA H100 80GB HBM3"}


@pytest.fixture
def tiny() -> workload.Workload:
    return workload.make(workload.read_config("rehearsal"))


def test_it_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for part in bench_gpu.PARTS:
        assert bench_gpu.main([part, "--out", str(tmp_path)]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_peaks_of_gpus() -> None:
    assert machine.peak_tflops("NVIDIA H100 80GB HBM3") == 989.4
    assert machine.peak_tflops("NVIDIA H100 PCIe") == 756.0
    assert machine.peak_tflops("NVIDIA GH200 480GB") == 989.4
    assert machine.peak_tflops("NVIDIA A100-SXM4-80GB") == 312.0
    for name in ("something else", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D"):
        assert machine.peak_tflops(name) is None


def test_a_library_that_is_in_use_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    """Else a process that has it loaded dies."""
    made, used = tmp_path / "made.so", tmp_path / "used.so"
    made.write_bytes(b"new")
    used.write_bytes(b"old")
    with used.open("rb") as file:
        build._replace(made, used)
        assert (file.read(), used.read_bytes()) == (b"old", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.so", "used.so"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("build", {"build"}),
        pytest.param("ops", {"plain PyTorch", "native", "library"}, marks=pytest.mark.long),
        pytest.param(
            "step",
            {"PyTorch eager", "PyTorch autocast", "rcdm_fast eager", "rcdm_fast native"},
            marks=pytest.mark.long(short=False),
        ),
        pytest.param("tune", {"torch.compile max-autotune"}, marks=pytest.mark.long(short=False)),
    ],
)
@pytest.mark.long
def test_a_part_rehearsed(part: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if part == "build":
        monkeypatch.setattr(build, "TESTS", ["-c", ""])
    assert bench_gpu.main([part, "--rehearse", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / f"bench_gpu_{part}.json").read_text())
    assert written["facts"]["device"]
    timed = [row for row in written["rows"] if "p50_ms" in row]
    assert {row["name"] for row in timed} >= expected or part == "build"
    assert not [row for row in written["rows"] if row.get("red") or row.get("begun")]
    assert all(row["device"] for row in written["rows"])
    if part == "step":
        batches = REHEARSAL.groups[0][1]
        ours = [row for row in timed if row["name"] == "rcdm_fast eager" and row["precision"] == "bf16"]
        assert [row["batch"] for row in ours] == list(batches)
        assert all(row["of_autocast"] > 0 and row["of_gemm_percent"] > 0 and row["ready_s"] > 0 for row in ours)
        # Rivals that were measured beside the engine that compiles have rows of their own.
        autocast = [r for r in written["rows"] if r["name"] == "PyTorch autocast" and r["precision"] == "bf16"]
        native = [row for row in timed if row["name"] == "rcdm_fast native" and row["precision"] == "bf16"]
        assert native or engines.reasons_unavailable("native", torch.device("cpu"), "bf16")
        assert all(row["modeled_ms"] > 0 for row in native)
        assert sorted(row.get("part", "") for row in autocast) == ["", "", "compiled"]
        one_by_one, at_once = (row for row in written["rows"] if row.get("part") == "trajectory")
        assert (one_by_one["name"], one_by_one["batch"]) == ("rcdm_fast native, 10 steps one by one", 1)
        assert one_by_one["p50_ms"] > 0
        assert "the engine draws step by step" in at_once["why_not"]  # on a CPU
        assert [row["part"] for row in written["rows"] if row["name"] in ("rcdm_fast compiled", "compiled-bf16")]
    if part == "tune":
        assert "rcdm_fast native" in {row["name"] for row in written["rows"]}
        assert timed[-1]["of_compile"] == 1.0


def test_nothing_is_measured_without_native_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "reason_missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    asked: list[Any] = []

    def native(limit_s: float, env: dict[str, str]) -> Row:
        asked.append(env)
        return {"name": "build", "status": 1, "output": "no nvcc", "why_not": "exit status 1: no nvcc"}

    monkeypatch.setattr(build, "native", native)
    monkeypatch.setattr(process, "run", lambda *_: Ended([], "no such machine"))
    for part in bench_gpu.PARTS:
        assert bench_gpu.main([part, "--out", str(tmp_path)]) == 1
        written = json.loads((tmp_path / f"bench_gpu_{part}.json").read_text())["rows"]
        assert {row.get("why_not") for row in written} == {"exit status 1: no nvcc", "no such machine"}
        assert "failed or wrong" in capsys.readouterr().err
    assert asked == [{"RCDM_FAST_CUDA_ARCHS": "90"}] * len(bench_gpu.PARTS)


def _checkout(checkout: Path, folder: Path) -> Path:
    for name in ("csrc", "rcdm_fast"):
        left_out = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__", "bundled", "kernels", "training")
        shutil.copytree(checkout / name, folder / name, ignore=left_out)
    shutil.copy2(checkout / "setup.py", folder / "setup.py")
    return folder


def test_a_build_without_a_part_is_no_success(checkout: Path, tmp_path: Path) -> None:
    root = _checkout(checkout, tmp_path / "checkout")
    row = build.native(100, root=root, env={"CXX": "/nonexistent/c++"})
    assert row["status"] == 1
    assert "RCDM_FAST_REQUIRE=cpu, but it cannot be built: no C++ compiler" in row["why_not"]
    assert not list((root / "rcdm_fast").glob("*.so"))


@pytest.mark.long(short=False)
def test_a_build_in_a_copy_reaches_the_checkout(checkout: Path, tmp_path: Path) -> None:
    root = _checkout(checkout, tmp_path / "checkout")
    row = build.native(500, parts="cpu", root=root)
    assert row["status"] == 0, row
    assert sorted(path.name for path in (root / "rcdm_fast").glob("_[Cb]*")) == ["_C.abi3.so", "_build_info.py"]
    assert not list(root.glob("*.egg-info"))


def _scripted(monkeypatch: pytest.MonkeyPatch, *ends: Ended) -> list[list[str]]:
    """`process.run` that gives these results in order; the names it was asked for."""
    asked: list[list[str]] = []
    left = list(ends)

    def run(module: str, arguments: list[str], limit_s: float) -> Ended:
        asked.append(arguments[arguments.index("--names") + 1 :])
        return left.pop(0)

    monkeypatch.setattr(process, "run", run)
    return asked


def _run_all(names: list[str]) -> tuple[list[Row], int]:
    put: list[Row] = []
    red = process.run_all("group", [], names, lambda: 100.0, put.append, lambda name: {"name": name})
    return put, red


def test_what_breaks_its_process_costs_its_own_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"item": "a", "name": "A", "p50_ms": 1.0}
    asked = _scripted(
        monkeypatch,
        Ended([good, {"item": "b", "name": "B", "begun": True}], "status 3: illegal access"),
        Ended([{"item": "c", "name": "C", "red": True}, {"item": "rival", "name": "R"}], ""),
    )
    put, red = _run_all(["a", "b", "c"])
    assert asked == [["a", "b", "c"], ["c"]]
    assert put == [
        {"name": "A", "p50_ms": 1.0},
        {"name": "b", "why_not": "status 3: illegal access"},
        {"name": "C", "red": True},
        {"name": "R"},
    ]
    assert red == 1


def test_a_process_that_never_gets_anywhere_is_not_started_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _scripted(monkeypatch, Ended([], "cannot start"))
    put, _ = _run_all(["a", "b"])
    assert len(asked) == 1
    assert put == [{"name": name, "why_not": "cannot start"} for name in "ab"]


def test_a_process_that_takes_too_long_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.run("group", [], 5) == Ended([], "no time left")

    def expire(command: list[str], **options: object) -> None:
        path = Path(command[command.index("--json") + 1])
        storage.write_json(path, {"rows": [{"name": "written before"}]})
        raise subprocess.TimeoutExpired(command, 11)

    monkeypatch.setattr(subprocess, "run", expire)
    assert process.run("group", [], 11) == Ended([{"name": "written before"}], "not done within 11 s")


def _group(tiny: workload.Workload, folder: Path) -> group.Group:
    return group.Group(tiny, rows.RowFile(folder / "r.json", {}, group.KEYS), SHARED, CEILINGS, REHEARSAL)


class Held:
    """Stands for an engine's memory."""


def _evaluate_with(held: Held, evaluate: timing.Evaluate, inputs: workload.Inputs) -> torch.Tensor:
    return evaluate(inputs)


@pytest.mark.long
def test_a_candidate_is_gone_before_the_next_is_built(
    tiny: workload.Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[object]] = []
    counts: list[int] = []

    def make(name: str, work: workload.Workload) -> timing.Candidate:
        def made() -> timing.Evaluate:
            held = Held()
            alive.append(weakref.ref(held))
            counts.append(sum(each() is not None for each in alive))
            evaluate = bench_step.build_engine(work, "eager", "fp32")
            return partial(_evaluate_with, held, evaluate)

        return timing.Candidate(name, "fp32", not name.startswith("rival"), made)

    monkeypatch.setattr(candidates, "make", make)
    found = _group(tiny, tmp_path)
    for name in ("a-fp32", "b-fp32", "c-fp32"):
        found.measure(name, ["rival-eager-fp32"], Deadline.after(60))
        gc.collect()
    assert counts == [1, 2, 2, 2]  # the rival, which stays, and one candidate at a time
    written = {row["name"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert set(written) == {"rival-eager-fp32", "a-fp32", "b-fp32", "c-fp32"}
    assert all(row["runs"] == REHEARSAL.rounds and "begun" not in row for row in written.values())


def test_a_prediction_stands_beside_a_time(tiny: workload.Workload, tmp_path: Path) -> None:
    """A rehearsal shows that of an H100; a way to run that the model does not know has none."""
    found = _group(tiny, tmp_path)
    names = ("rcdm_fast native", "torch.compile max-autotune", "PyTorch eager")
    for name in names:
        made = timing.Candidate(name, "bf16", False, lambda: lambda inputs: inputs.x)
        found._put(name, made, {made.key: [1.0, 2.0]})
    written = {row["name"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    h100 = roofline.device_named("H100")
    assert h100 is not None
    predicted = {row["name"]: row["ms"] for row in roofline.predict(tiny.network.config, tiny.batch, h100)}
    modeled = [predicted[next(iter(roofline.WAYS))], predicted["torch.compile"], None]
    assert [written[name].get("modeled_ms") for name in names] == modeled
    lines = "\n".join(rows.table(found._file.rows, bench_gpu.STEP_COLUMNS))
    assert "ms, modeled" in lines
    unknown = dataclasses.replace(REHEARSAL, modeled="")
    other = group.Group(tiny, found._file, {"device": "abacus"}, CEILINGS, unknown)
    assert other._modeled(timing.Candidate(names[0], "bf16", True, lambda: lambda inputs: inputs.x)) == {}


def test_a_trajectory_is_timed_both_ways_where_they_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU made of the CPU's memory; on a CPU there is one way."""
    config = ModelConfig(dataclasses.replace(small.UNET, channel_mult=(1,)), small.SCHEDULE)

    def measured(device: str, precision: str = "fp32") -> list[Row]:
        put: list[Row] = []
        work = workload.make(config, 1, torch.device(device))
        trajectory.measure(f"native-{precision}", work, REHEARSAL, {"part": trajectory.PART}, put.append)
        return [row for row in put if "begun" not in row]

    at_once, one_by_one = measured("cpu")
    assert one_by_one["p50_ms"] > 0
    assert "the engine draws step by step: native, fp32, on cpu" in at_once["why_not"]
    assert [row["why_not"] for row in measured("cpu", "fp16")] == ["fp16 runs on CUDA only (use bf16)"]
    with fake_cuda():
        one_by_one, at_once = measured("cuda")
        assert at_once["error"] == 0.0
        assert at_once["of_steps"] > 1
        assert at_once["of_steps"] == pytest.approx(one_by_one["p50_ms"] / at_once["p50_ms"])
        assert {row["batch"] for row in (one_by_one, at_once)} == {1}
        steps = trajectory._Batch.steps
        monkeypatch.setattr(trajectory._Batch, "steps", lambda batch: steps(batch) * 1.1)
        wrong, timed = measured("cuda")
        assert wrong["red"]
        assert "wrong result: relative error 9.09e-02 to step by step, allowed 5.00e-02" in wrong["why_not"]
        assert "p50_ms" in timed


def test_a_group_ends_when_the_device_is_broken(
    tiny: workload.Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_json(tmp_path / "m.json", {"facts": SHARED, "rows": [{"precision": "", "bytes_per_s": 1.0}]})
    monkeypatch.setattr(machine, "answers", lambda device: False)

    def measure(candidates: object, *rest: object, **options: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(timing, "measure", measure)
    arguments = ["--config", "rehearsal", "--batch", "1", "--rehearse", "--machine", str(tmp_path / "m.json")]
    arguments += ["--seconds", "60", "--json", str(tmp_path / "r.json"), "--names", "eager-fp32", "eager-bf16"]
    assert group.main(arguments) == process.BROKEN
    (begun,) = (row for row in json.loads((tmp_path / "r.json").read_text())["rows"] if row.get("begun"))
    assert begun["item"] == "eager-fp32"


def test_a_broken_operator_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("CUDA error:\nmisaligned address")

    x = torch.randn(8)
    found = {cases.PLAIN: lambda: x, "broken": broken, "wrong": lambda: x + 1}
    case = cases.Case("double", "[8]", "fp32", found, lambda: x.double(), 64)
    put: list[Row] = []
    ops.measure(case, torch.device("cpu"), put.append, REHEARSAL, 1e10)
    said = {row["name"]: row for row in put}
    assert said["broken"]["why_not"] == "cannot run: CUDA error: misaligned address"
    assert "wrong result" in said["wrong"]["why_not"]
    assert said[cases.PLAIN]["p50_ms"] > 0
    assert [row["name"] for row in put if row.get("red")] == ["broken", "wrong"]


def test_triton_kernels_are_compiled_by_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[list[str]] = []

    def run_all(module: str, arguments: list[str], names: list[str], *rest: object) -> int:
        assert arguments[-1] == "--compile"
        fractions.append(names)
        return 0

    monkeypatch.setattr(process, "run_all", run_all)
    names = [str(number) for number in range(len(list(cases.plan(REAL))))]
    assert len(names) == 3 * (3 * (5 * 5 + 2 + 3) + (5 + 2) * 2 + 1)
    ops.compile_all([], names, REAL.workers, 10)
    assert len(fractions) == REAL.workers
    assert sorted(name for fraction in fractions for name in fraction) == sorted(names)
    assert max(map(len, fractions)) - min(map(len, fractions)) <= 1


def test_batches_begin_only_while_there_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run_all", lambda *_: pytest.fail("begun"))
    file = rows.RowFile(tmp_path / "r.json", {}, bench_gpu.KEYS["step"])
    monkeypatch.setattr(candidates, "SLOW_TO_BUILD", ())
    monkeypatch.setattr(engines, "ENGINES", {})
    assert step.run(REAL, file, SHARED, tmp_path, Deadline.after(3)) == 0
    assert [row["batch"] for row in file.rows] == [1, 8, 64, 256, 1, 4, 16, 256, 4, 64]
    assert {row["why_not"] for row in file.rows} == {"no time left"}


def test_parts_import_one_way() -> None:
    """What runs in a measuring process imports nothing of what starts it, and `process` nothing that is measured."""
    folder = Path(process.__file__).parent
    imported: dict[str, set[str]] = {}
    for path in folder.glob("*.py"):
        found = imported[path.stem] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "benchmarks.gpu":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks.gpu."):
                found.add(str(node.module).rsplit(".", 1)[1])
    order = [
        "settings",
        "process",
        "machine",
        "candidates",
        "group",
        "trajectory",
        "build",
        "cases",
        "ops",
        "step",
        "tune",
    ]
    assert set(imported) == {*order, "__init__"}
    for place, name in enumerate(order):
        assert imported[name] <= set(order[:place]), name
