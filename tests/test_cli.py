"""The `rcdm` command, run as a user runs it: files written, messages, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcdm_fast.cli import main
from rcdm_fast.diffusion import registry
from rcdm_fast.images import ImageError, to_pil
from tests import small

BUNDLED = ("cifar10-simclr-trunk", "cifar10-simclr-head", "cifar10-supervised")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(small.make_images(3, size=48)):
        to_pil(image).save(folder / f"{number}.png")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_sample_writes_a_sheet_images_and_numbers(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        "sample", photos, "--per", 2, "--steps", 3, "--out", tmp_path / "sheet.png", "--images", tmp_path / "each",
        "--json", tmp_path / "numbers.json", "--batch-size", 4,
    )  # fmt: skip
    assert code == 0
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 4 * 96
    assert sheet.height > 3 * 96
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == [
        f"{number:05d}-{number}-{sample:03d}.png" for number in range(3) for sample in range(2)
    ]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["nfe"] == 3
    assert numbers["images"] == 6
    assert numbers["seconds_per_image"] > 0
    text = capsys.readouterr().out
    assert "cifar10-simclr-wide" in text
    assert re.search(r"by cifar10-simclr-wide, (native|eager) fp32 on (cpu|cuda:\d)", text)
    assert "NFE 3" in text


def test_sample_is_reproducible(photos: Path, tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 6)):
        options = ("--per", 2, "--steps", 2, "--batch-size", size, "--images", tmp_path / name)
        assert run("sample", photos / "0.png", *options, "--out", tmp_path / f"{name}.png") == 0
    for path in (tmp_path / "a").iterdir():
        first, second = (np.asarray(Image.open(tmp_path / name / path.name)).astype(int) for name in "ab")
        assert np.abs(first - second).max() <= 1


def test_encode(photos: Path, tmp_path: Path) -> None:
    assert run("encode", photos, "--out", tmp_path / "h.npy") == 0
    h = np.load(tmp_path / "h.npy")
    assert h.dtype == np.float32
    assert h.shape[0] == 3
    assert run("encode", photos, "--out", tmp_path / "h.safetensors", "--model", BUNDLED[1]) == 0
    assert run("encode", photos, "--out", tmp_path / "h.txt") == 2


def test_interpolate(photos: Path, tmp_path: Path) -> None:
    arguments = ("interpolate", photos / "0.png", photos / "1.png", "--frames", 3, "--per", 2, "--steps", 2)
    assert run(*arguments, "--mode", "spherical", "--out", tmp_path / "way.png") == 0
    assert Image.open(tmp_path / "way.png").width > 5 * 96


def test_models_lists_bundled_and_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    text = capsys.readouterr().out
    for name in (*BUNDLED, "rcdm-dino-head", "rcdm-supervised"):
        assert name in text
    assert max(map(len, text.splitlines())) <= 100


def test_models_as_json(tmp_path: Path) -> None:
    assert run("models", "--json", tmp_path / "models.json") == 0
    found = {each.pop("name"): each for each in json.loads((tmp_path / "models.json").read_text())}
    assert found["rcdm-supervised"]["license"].startswith("CC-BY-NC")
    assert found["shapes-oracle"]["present"] is True


def test_completion_of_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the script that `rcdm --install-completion` writes asks the command for."""
    for name, value in (("_RCDM_COMPLETE", "complete_bash"), ("COMP_WORDS", "rcdm tr"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(name, value)
    assert run() == 0
    assert capsys.readouterr().out.split() == ["train", "train-reader"]


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--json", tmp_path / "info.json") == 0
    assert "torch" in capsys.readouterr().out
    assert isinstance(json.loads((tmp_path / "info.json").read_text()), dict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "missing.jpg"), "missing.jpg"),
        (("sample", "{photos}", "--model", "cifar10-simclr-trnk"), "cifar10-simclr-trunk"),
        (("sample", "{photos}", "--steps", "ddim333"), "ddim333"),
        (("sample", "{photos}", "--solver", "euler"), "ancestral"),
        (("sample", "{photos}", "--seed", "-1"), "seed"),
        (("sample", "{photos}", "--engine", "warp"), "warp"),
        (("sample", "{photos}", "--precision", "fp8"), "fp8"),
        (("sample", "{photos}", "--out", "{tmp}/sheet.xyz"), "sheet.xyz"),
        (("sample", "{photos}", "--out", "/proc/nowhere/sheet.png"), "cannot be written"),
        (("sample", "{tmp}/empty"), "no images"),
        (("sample", "{tmp}/text.png"), "text.png"),
        (("train", "nobody", "--data", "{photos}"), "nobody"),
        (("train", "cifar10-simclr-trunk", "--data", "{tmp}/empty"), "no images"),
        (("train", "mine", "--data", "{photos}", "--config", "starter", "--set", "ema"), "expected KEY=VALUE"),
        (("train", "mine", "--data", "{photos}", "--config", "starter", "--set", "loss.gama=3"), "gama"),
        (("train", "mine", "--data", "{photos}", "--config", "starter"), "needs an encoder"),
        (("evaluate", "cifar10-simclr-trunk", "--data", "{photos}", "--gallery", "9"), "the data has 3"),
        (("evaluate", "cifar10-simclr-trunk", "--data", "{photos}", "--features", "model"), "at least 6 real images"),
        (("evaluate", "cifar10-simclr-trunk", "--data", "{photos}", "--inception", "{tmp}/no.pth"), "no such file"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    code = run(*(text.format(photos=photos, tmp=tmp_path) for text in arguments))
    error = capsys.readouterr().err
    assert code in (1, 2)
    assert message in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("rcdm:")]) == 1


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample") == 2
    assert run("dance") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ImageError):
        run("--debug", "sample", "missing.jpg")


def test_help_names_every_solver(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("sample", "generate", "evaluate", "compare"):
        assert run(command, "--help") == 0
        words = capsys.readouterr().out.replace(",", " ").replace(".", " ").split()
        assert set(registry.SOLVERS) <= set(words), command


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    commands = "sample encode interpolate train pretrain adapt evaluate bench models info"
    for command in commands.split():
        assert run(command, "--help") == 0
        assert f"Example: rcdm {command}" in " ".join(capsys.readouterr().out.split())


def test_interrupt_keeps_finished_images(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from rcdm_fast.cli import main; sys.exit(main())", "sample"]
    options = ["--per", "40", "--steps", "20", "--batch-size", "1", "--images", tmp_path / "each"]
    process = subprocess.Popen(
        [*command, str(photos), *map(str, options), "--out", str(tmp_path / "sheet.png")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    each = tmp_path / "each"
    while not list(each.glob("[!.]*.png")):  # a hidden one is still being written
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert Image.open(tmp_path / "sheet.png").height > 96
    assert 1 <= len(list(each.glob("[!.]*.png"))) < 120
    assert not list(each.glob(".*"))


def test_evaluate_writes_its_interval(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mrr.json"
    arguments = ("--per", 2, "--gallery", 3, "--steps", 2, "--json", out)
    assert run("evaluate", "cifar10-simclr-head", "--data", photos, *arguments) == 0
    assert set(json.loads(out.read_text())["mrr"]) == {"value", "low", "high"}
    assert json.loads(out.read_text())["distribution"] is None  # three images say nothing about a distribution


def test_evaluate_compares_distributions_and_keeps_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "real.npz", rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    np.savez(tmp_path / "six.npz", rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    sizes = ("--data", tmp_path / "six.npz", "--per", 2, "--steps", 2)
    files = ("--json", tmp_path / "all.json", "--npz", tmp_path / "drawn.npz", "--reference-npz", tmp_path / "real.npz")
    spec = "bundled:cifar10-supervised"
    assert run("evaluate", "cifar10-simclr-head", *sizes, *files, "--features", spec) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "all.json").read_text())
    assert spec in found["distribution"]["features"]
    assert (found["distribution"]["real"], found["distribution"]["samples"]) == (8, 6)
    assert found["distribution"]["rank_deficient"]
    assert set(found["nearest_real"]) == {"1", "5"}
    assert found["distribution"]["of_real"]["samples"] == 6
    assert found["mrr"]["low"] is found["mrr"]["high"] is None
    assert "[none: n < 20]" in said
    assert "6 samples beside 8 real images" in said
    assert "singular" in said
    assert "FID" not in said
    with np.load(tmp_path / "drawn.npz") as stored:
        assert stored["arr_0"].shape == (12, 32, 32, 3)


def test_pretrain_and_train_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    settings = {
        "name": "mine", "method": "simclr", "image_size": 8, "stem": 8, "widths": [8], "blocks": [1],
        "projector": [8, 4], "batch_size": 2, "compile": False,
    }  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(settings))
    out = tmp_path / "run"
    assert run("pretrain", "mine", "--data", photos, "--config", tmp_path / "p.json", "--images", 4, "--out", out) == 0
    encoder = out / "mine-encoder.safetensors"
    unet = {"image_size": 8, "num_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
    (tmp_path / "t.json").write_text(json.dumps({"name": "x", "unet": unet, "batch_size": 2, "compile": False}))
    arguments = ("--config", tmp_path / "t.json", "--images", 4, "--out", tmp_path / "model", "--set", "loss.gamma=3")
    assert run("train", "mine", "--data", photos, "--encoder", f"file:{encoder}", *arguments) == 0
    sheet = tmp_path / "sheet.png"
    model = tmp_path / "model" / "mine.safetensors"
    assert json.loads((tmp_path / "model/config.json").read_text())["loss"]["gamma"] == 3
    assert run("sample", photos / "0.png", "--model", model, "--per", 1, "--steps", 2, "--out", sheet) == 0
    assert sheet.exists()
