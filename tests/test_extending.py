"""What CONTRIBUTING says about adding things is tried: one of each is added to a copy of the library, and used there.

Each addition touches the files that its row of the table names and no others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Added:
    """One row: new files by name, and what is put after (or in place of) a text of a file that is there."""

    what: str
    new: dict[str, str]
    after: tuple[tuple[str, str, str], ...] = ()
    replaced: tuple[tuple[str, str, str], ...] = ()

    @property
    def touched(self) -> set[str]:
        """Files, as paths in the checkout."""
        return {*self.new, *(file for file, _, _ in (*self.after, *self.replaced))}


SOLVER = Added(
    "solver",
    {
        "rcdm_fast/diffusion/halves.py": '''
"""DDIM under another name."""

from rcdm_fast.diffusion.solvers import ddim as halves
'''
    },
    after=(
        ("rcdm_fast/diffusion/registry.py", "SolverName = Literal[\n", '    "halves",\n'),
        ("rcdm_fast/diffusion/registry.py", "SOLVERS: dict[str, Known] = {\n", '    "halves": Known(halves.halves),\n'),
    ),
    replaced=(
        (
            "rcdm_fast/diffusion/registry.py",
            "from rcdm_fast.diffusion import ",
            "from rcdm_fast.diffusion import halves, ",
        ),
    ),
)
ENGINE = Added(
    "engine",
    {
        "rcdm_fast/engines/slow.py": '''
"""The eager engine under another name."""

from rcdm_fast.engines.eager import EagerEngine


class SlowEngine(EagerEngine):
    name = "slow"


def reasons_unavailable(device, precision):
    return []
'''
    },
    after=(
        (
            "rcdm_fast/engines/__init__.py",
            "SPECS = {",
            '\n    "slow": EngineSpec(_of_network(slow.SlowEngine), slow.reasons_unavailable, "never"),',
        ),
    ),
    replaced=(
        ("rcdm_fast/engines/__init__.py", "from rcdm_fast.engines import ", "from rcdm_fast.engines import slow, "),
    ),
)
ENCODER = Added(
    "encoder",
    {
        "rcdm_fast/encoders/corners.py": '''
"""The four corners of an image."""

import torch

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders.base import Network

OPTIONS = frozenset()


class Corners(torch.nn.Module):
    def forward(self, x):
        return x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].flatten(1)


def load(source, fields):
    return Network(Corners(), EncoderConfig("module", image_size=int(source.name)))
'''
    },
    after=(
        (
            "rcdm_fast/encoders/__init__.py",
            "LOADERS: dict[str, Callable[[Source, Mapping[str, Any]], Network]] = {\n",
            '    "corners": corners.load,\n',
        ),
        (
            "rcdm_fast/encoders/__init__.py",
            "OPTIONS: dict[str, frozenset[str]] = {\n",
            '    "corners": corners.OPTIONS,\n',
        ),
    ),
    replaced=(
        (
            "rcdm_fast/encoders/__init__.py",
            "from rcdm_fast.encoders import (\n",
            "from rcdm_fast.encoders import (\n    corners,\n",
        ),
    ),
)
EXPERIMENT = Added(
    "experiment",
    {
        "rcdm_fast/analysis/counting.py": '''
"""How many images there are."""

from rcdm_fast.analysis.result import Analysis, Table


def run(job):
    table = Table("count", "Images", ("what", "how many"), (("images", len(job.data)),))
    return Analysis("counting", "How many?", "", {}, (table,))
'''
    },
    after=(
        (
            "rcdm_fast/analysis/registry.py",
            "EXPERIMENTS: dict[str, Experiment] = {\n",
            '    "counting": Experiment("how many images there are", _counting),\n',
        ),
    ),
    replaced=(
        (
            "rcdm_fast/analysis/registry.py",
            "\n\nEXPERIMENTS:",
            "\n\ndef _counting(job):\n    from rcdm_fast.analysis import counting\n\n"
            "    return counting.run(job)\n\n\nEXPERIMENTS:",
        ),
    ),
)
JOB_FORMAT = Added(
    "job format",
    {},
    after=(
        ("rcdm_fast/jobs/settings.py", "Format = Literal[", '"flat", '),
        ("rcdm_fast/jobs/settings.py", "FORMATS: tuple[Format, ...] = (", '"flat", '),
        (
            "rcdm_fast/jobs/formats.py",
            '    if config.format == "folder":\n        return Folders(encode, extension)\n',
            '    if config.format == "flat":\n        return Folders(encode, extension, ".flat")\n',
        ),
    ),
)
EXPORT_FORMAT = Added(
    "export format",
    {
        "rcdm_fast/exporters/names.py": '''
"""The names of the tensors."""

from rcdm_fast import storage

PRECISIONS = ("fp32",)


def missing_packages():
    return []


def write(out, job):
    storage.write_text(out / "names.txt", "\\n".join(job.network.state_dict()))
    return [out / "names.txt"]
'''
    },
    replaced=(
        ("rcdm_fast/exporting.py", "FORMATS = (", 'FORMATS = ("names", '),
        (
            "rcdm_fast/exporting.py",
            "    from rcdm_fast.exporters import ",
            "    from rcdm_fast.exporters import names, ",
        ),
        ("rcdm_fast/exporting.py", "formats: tuple[Format, ...] = (", "formats: tuple[Format, ...] = (names, "),
    ),
)
LOSS = Added(
    "loss",
    {},
    replaced=(
        ("training/losses.py", "Weighting = Literal[", 'Weighting = Literal["snr", '),
        (
            "training/losses.py",
            "        weight = of_error_in_x0 * per_error\n",
            '        weight = (snr if config.weighting == "snr" else of_error_in_x0) * per_error\n',
        ),
    ),
)
COMMAND = Added(
    "command",
    {
        "rcdm_fast/cli/hello.py": '''
"""`rcdm hello`."""

from rcdm_fast.cli import common


def hello() -> None:
    """Say hello."""
    common.report("hello")
'''
    },
    after=(("rcdm_fast/cli/__init__.py", "    about.info,\n", "    hello.hello,\n"),),
    replaced=(
        ("rcdm_fast/cli/__init__.py", "from rcdm_fast.cli import (\n", "from rcdm_fast.cli import (\n    hello,\n"),
    ),
)
ROWS = (SOLVER, ENGINE, ENCODER, EXPERIMENT, JOB_FORMAT, EXPORT_FORMAT, LOSS, COMMAND)

USED = """
import json
from pathlib import Path
import numpy as np, torch
import rcdm_fast
from rcdm_fast import encoders
from rcdm_fast.cli import main
from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.training.losses import DiffusionLoss, LossConfig
from tests import small

assert "extended" in rcdm_fast.__file__
made = small.model()
h = torch.zeros(1, small.DIM)
np.savez("set.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
np.save("h.npy", h.numpy())
made.save_pretrained("small")
model = rcdm_fast.load("small", encoder=small.encoder(), engine="slow")
schedule = Schedule.make(ScheduleConfig())
loss = DiffusionLoss(schedule, LossConfig("snr"))
found = {
    "solver": torch.equal(model.sample(h, steps=3, solver="halves"), model.sample(h, steps="logsnr3", solver="ddim")),
    "engine": model.engine.name,
    "encoder": encoders.build("corners:8").encode(torch.ones(1, 3, 8, 8)).shape[1],
    "experiment": rcdm_fast.analyze(model, "counting", "set.npz").tables[0].rows[0][1],
    "job format": main("generate h.npy --model small --per 2 --steps 2 --format flat --out job".split()),
    "shards": [path.suffix for path in Path("job/shards").iterdir()],
    "export format": [path.name for path in rcdm_fast.export(made, "names", "out")],
    "loss": loss._weight.unique().tolist(),
    "command": main(["hello"]),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as it is installed, with every row's addition."""
    root = tmp_path_factory.mktemp("extended")
    left = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "rcdm_fast", root / "rcdm_fast", ignore=left)  # links to kernels and training become folders
    for row in ROWS:
        for name, content in row.new.items():
            assert not _inside(root, name).exists()
            _inside(root, name).write_text(content.lstrip("\n"))
        for name, text, more in row.after:
            _changed(_inside(root, name), text, text + more)
        for name, text, other in row.replaced:
            _changed(_inside(root, name), text, other)
    return root


def _inside(root: Path, name: str) -> Path:
    return root / name if name.startswith("rcdm_fast/") else root / "rcdm_fast" / name


def _changed(file: Path, text: str, other: str) -> None:
    content = file.read_text()
    assert text in content, f"{file.name} has no {text!r}"
    file.write_text(content.replace(text, other, 1))


@pytest.mark.long
def test_one_of_each_is_added_and_used(copy: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USED], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])
    assert found == {
        "solver": True,
        "engine": "slow",
        "encoder": 12,
        "experiment": 3,
        "job format": 0,
        "shards": [".flat"],
        "export format": ["names.txt"],
        "loss": [1.0],  # of a network that predicts eps: snr / snr
        "command": 0,
    }
    assert "hello" in lines


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_the_table_names_what_has_to_be_touched(row: Added) -> None:
    """And nothing else but tests and documents."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row.what} |")]
    named = set(re.findall(r"`([\w/.]+\.py)`", line))
    there = row.touched - row.new.keys()
    assert there <= named, f"{there - named} are touched, the table does not say so"
    for name in named - there:  # where a new one of the kind lives
        assert any(Path(name).parent == Path(new).parent for new in row.new) or (ROOT / name).is_file()
