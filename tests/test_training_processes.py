"""Runs in processes of their own: killed and resumed, several that train together."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rcdm_fast import storage
from rcdm_fast.encoders import native
from rcdm_fast.training.pretrain import PretrainConfig
from tests import training_process

ROOT = Path(__file__).resolve().parent.parent
STEPS = 50
CURVE: dict[str, object] = {"images": 16 * STEPS, "save_every": 1000}


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PretrainConfig(name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))
    path = tmp_path_factory.mktemp("encoder") / "tiny-encoder.safetensors"
    torch.manual_seed(0)
    native.save(path, config.network(), config.encoder(), {})
    return path


def start(out: Path, encoder_file: Path, changes: dict[str, object], processes: int = 1) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(launcher if processes > 1 else []), "-m", "tests.training_process"]
    arguments = [str(out), str(encoder_file), json.dumps(changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *command, *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def losses(process: subprocess.Popen[str]) -> list[float]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return [json.loads(line)["loss"] for line in out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def alone(encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of one process, and its losses."""
    out = tmp_path_factory.mktemp("alone")
    return out, losses(start(out, encoder_file, CURVE))


@pytest.mark.long
@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.long(short=False)), "fully_shard"])
def test_two_processes_follow_one(
    sharding: str, alone: tuple[Path, list[float]], encoder_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    two = losses(start(tmp_path, encoder_file, {**CURVE, "sharding": sharding}, processes=2))
    assert len(two) == len(alone[1]) == STEPS
    assert two == pytest.approx(alone[1], rel=1e-4)
    assert alone[1][-1] < 0.8 * alone[1][0]
    want, got = (storage.read_tensors(folder / "tiny.safetensors") for folder in (alone[0], tmp_path))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=2e-3, rtol=1e-2)


@pytest.mark.long(short=False)
def test_a_run_of_two_processes_goes_on_in_one(
    alone: tuple[Path, list[float]], encoder_file: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, encoder_file, {**CURVE, "save_every": 10}, processes=2)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and json.loads(line)["step"] >= 20:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    rest = losses(start(tmp_path, encoder_file, {**CURVE, "save_every": 10}))
    assert len(rest) <= STEPS - 20 + 10
    assert rest == pytest.approx(alone[1][-len(rest) :], rel=1e-4)


@pytest.mark.long
def test_killed_at_random_moments(encoder_file: Path, tmp_path: Path, short: bool) -> None:
    """SIGKILL ten times; the weights are those of an unbroken run, bit for bit."""
    changes = {"images": 16 * 90, "save_every": 3, "ema_decays": [0.9], "timesteps": "loss_aware"}
    losses(start(tmp_path / "whole", encoder_file, changes))
    moments = random.Random(20211216)
    kills = 0
    while kills < (1 if short else 10):
        process = start(tmp_path / "cut", encoder_file, changes)
        assert process.stdout is not None
        steps = moments.randint(1, 8)
        for _, line in zip(range(steps), (line for line in process.stdout if line.startswith("{")), strict=False):
            assert json.loads(line)["step"] < 90
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert losses(start(tmp_path / "cut", encoder_file, changes))
    for name in ("tiny.safetensors", "tiny-ema0.9.safetensors"):
        want, got = (storage.read_tensors(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(got[key], want[key]) for key in want)
    rows = [json.loads(line)["step"] for line in (tmp_path / "cut/log.jsonl").read_text().splitlines()]
    assert rows == [50, 90]
    starts = (tmp_path / "cut/environment.jsonl").read_text().splitlines()
    assert len(starts) == kills + 1


@pytest.mark.gpu
def test_accelerate_shards_on_a_gpu(encoder_file: Path, tmp_path: Path) -> None:
    """Accelerate's own FSDP, which refuses CPUs: one process, whose run is that of no launcher."""
    command = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "1"]
    code = (
        "import sys, torch; from tests import training_process as p; from rcdm_fast.training.train import train;"
        "train(p.config(sys.argv[2]), p.data(), sys.argv[1], 'cuda')"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [str(script), str(tmp_path / "out"), str(encoder_file)]
    subprocess.run([sys.executable, *command, *arguments], cwd=ROOT, env=environment, check=True)
    assert training_process.config(str(encoder_file)).steps == 6
    assert (tmp_path / "out/tiny.safetensors").exists()
