"""The report on an install: complete, plain data, and never failing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rcdm_fast import info, ops


def test_report_is_plain_data_and_complete() -> None:
    facts = info.report()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["devices"]["available"][0]["type"] == "cpu"
    assert facts["native"].keys() == {part.name for part in ops.describe()}
    assert facts["runtimes"].keys() == {runtime.module for runtime in info.RUNTIMES}


def test_whatever_is_missing_has_a_reason() -> None:
    facts = info.report()
    for name, runtime in facts["runtimes"].items():
        assert runtime["available"] == (runtime["reason"] == ""), name
    for name, part in facts["native"].items():
        assert part["loaded"] == (part["reason"] == ""), name
    if not torch.cuda.is_available():
        assert "no CUDA" in facts["devices"]["reason"]


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    runtimes = info.report()["runtimes"]
    assert runtimes["openvino"] == {
        "available": False,
        "version": "",
        "reason": 'not installed: pip install ".[openvino]" in a clone of rcdm_fast',
    }


def test_a_package_without_metadata_is_still_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_version", lambda names: "")
    facts = info.report()
    assert facts["versions"]["rcdm_fast"] == "not installed"
    assert facts["runtimes"]["timm"] == {"available": True, "version": "", "reason": ""}
    assert any(line.strip() == "+ timm             available" for line in info.lines(facts))


def test_cuda_devices_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "Some GPU", 9, 0, 80 * 2**30

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    facts = info.report()
    assert facts["devices"]["available"][1] == {
        "type": "cuda",
        "name": "Some GPU",
        "capability": "9.0",
        "memory_bytes": 80 * 2**30,
    }
    assert facts["devices"]["reason"] == ""


def test_a_failing_driver_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", fail)
    assert info.report()["devices"]["reason"] == "no CUDA: driver too old"


def test_command_prints_and_writes_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    assert info.main(["--json", str(file)]) == 0
    printed = capsys.readouterr().out
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert facts["versions"]["torch"] in printed
    for runtime in info.RUNTIMES:
        assert runtime.module in printed


def test_command_reports_an_unwritable_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert info.main(["--json", str(tmp_path / "missing" / "info.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("gpu", "reason"), [(False, "installed, but there is no CUDA device"), (True, "")])
def test_what_needs_a_gpu_is_not_available_without(gpu: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_version", lambda names: "1.2")
    needing, other = (info.Runtime("json", ("json",), "x", cuda=cuda) for cuda in (True, False))
    assert info._runtime(needing, gpu) == {"available": gpu, "version": "1.2", "reason": reason}
    assert info._runtime(other, gpu) == {"available": True, "version": "1.2", "reason": ""}


@pytest.mark.parametrize(("key", "cpu"), [("flags", "A"), ("Features", "A")])
def test_the_first_processor_is_told(key: str, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"processor: 0\nmodel name : A\n{key}\t: fma sse avx2\n\nprocessor: 1\nmodel name : B\n{key} : avx512f\n"
    monkeypatch.setattr(info, "Path", lambda _: SimpleNamespace(read_text=lambda **_: text))
    found = info._machine()
    assert (found["cpu"], found["cpu_features"]) == (cpu, ["avx2", "fma"])


def test_lines_of_a_report() -> None:
    parts = {"ops": {"loaded": True, "path": "/a.so", "reason": ""}}
    parts["cuda"] = {"loaded": False, "path": "/b.so", "reason": "not built"}
    facts = {
        "versions": {"torch": "2"},
        "machine": {"system": "s", "cpu": "A", "cores": 2, "cpu_features": []},
        "devices": {"available": [{"type": "cpu", "name": "cpu", "threads": 2}], "reason": "no CUDA"},
        "native": parts,
        "instruction_set": "avx2",
        "build": {"compiler": "gcc", "cuda": ""},
        "runtimes": {
            "onnx": {"available": True, "version": "1.2", "reason": ""},
            "triton": {"available": False, "version": "3", "reason": "no GPU"},
            "timm": {"available": False, "version": "", "reason": "not installed"},
        },
    }
    assert [" ".join(line.split()) for line in info.lines(facts)] == [
        "torch 2", "system s", "cpu A, 2 cores", "cpu features unknown",
        "", "devices", "cpu name cpu, threads 2", "no CUDA",
        "", "native parts", "ops /a.so", "cuda missing: not built", "instructions avx2", "built with compiler gcc",
        "", "optional packages", "+ onnx 1.2", "- triton 3 no GPU", "- timm not installed",
    ]  # fmt: skip


def test_module_runs_and_imports_nothing_heavy() -> None:
    heavy = ("triton", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "transformers", "timm", "torchvision")
    code = (
        "import sys; from rcdm_fast import info; code = info.main([]);"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
