"""The notebooks in examples/: what they carry, and that they run.

Their code is formatted and linted with the rest (`make quality`); here it is checked that ruff does look at them.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rcdm_fast.engines import reasons_unavailable

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MAX_BYTES = 1_000_000
ABSOLUTE = re.compile(r"(?<![\w.])/(tmp|home|root|work|usr|var|opt|mnt|Users)\b|[A-Z]:\\\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def shows(source: str) -> bool:
    """Whether a cell's code prints, or ends with a sheet or a figure."""
    return bool(re.search(r"^\s*print\(|^image_sheet\(|\.figures\[", source, re.MULTILINE))


def load_script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"the_known_world", "the_papers_story", "your_own_encoder"}


@each_notebook
def test_outputs_are_there_and_clean(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    images = 0
    for number, cell in enumerate(code_cells(path), start=1):
        assert cell["execution_count"] == number, "not run from top to bottom"
        assert cell["metadata"] == {}
        assert bool(cell["outputs"]) == shows("".join(cell["source"])), "".join(cell["source"])
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "".join(output["text"])
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            assert not ABSOLUTE.search(text), text
            assert "\r" not in text
            assert set(data) <= {"image/png", "text/plain"}
            if "image/png" in data:
                with Image.open(io.BytesIO(base64.b64decode("".join(data["image/png"])))) as image:
                    assert image.width <= 900
                images += 1
    assert images


@each_notebook
def test_ruff_looks_at_them(path: Path, tmp_path: Path, checkout: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    settings = ["--config", str(checkout / "pyproject.toml"), "--no-cache"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *command, *settings, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][-1].update(cell_type="code", source=["print( undefined_name )"], outputs=[], execution_count=None)
    worse = tmp_path / "worse.ipynb"
    worse.write_text(json.dumps(notebook), encoding="utf-8")
    done = subprocess.run([ruff, "check", *settings, str(worse)], capture_output=True, text=True, check=False)
    assert "F821" in done.stdout


@each_notebook
@pytest.mark.long(short=False)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    """Afresh, in an empty folder; each takes about a minute."""
    if path.stem == "your_own_encoder" and reasons_unavailable("native", torch.device("cpu"), "bf16"):
        pytest.skip("it trains in bf16, which this processor does not have")
    for package in ("nbclient", "nbformat", "ipykernel", "skimage", "timm", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import nbformat

    run_notebooks = load_script(EXAMPLES / "run_notebooks.py")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    before = code_cells(path)
    done = run_notebooks.execute(nbformat.read(path, as_version=4), tmp_path)
    after = [cell for cell in done.cells if cell.cell_type == "code"]
    kinds = [[output["output_type"] for output in cell["outputs"]] for cell in before]
    assert [[output.output_type for output in cell.outputs] for cell in after] == kinds
    assert list(tmp_path.iterdir()) == []
