"""Representations as sequences: one x_T for all frames, as a strip, an animation, a film; `rcdm sequence`."""

from __future__ import annotations

import re
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast import films, outputs
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.images import ImageError, image_sheet
from rcdm_fast.storage import StorageError
from tests import small

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sampling.md"
FRAMES = small.make_images(12).view(2, 2, 3, 3, 8, 8)  # two samples of two sequences of three frames


def test_frames_of_a_sequence_share_their_noise() -> None:
    model = small.model()
    still, moving = torch.ones(3, small.DIM), torch.randn(3, small.DIM, generator=torch.Generator().manual_seed(0))
    drawn = model.sequence(torch.stack([still, moving]), per=2, steps=2, solver="ancestral")
    assert drawn.shape == (2, 2, 3, 3, 8, 8)
    torch.testing.assert_close(drawn[0, :, 0], drawn[0, :, 2], atol=1e-4, rtol=0)
    assert float((drawn[0, 0] - drawn[0, 1]).abs().max()) > 0.1, "another sample has another x_T"
    alone = model.sample(moving[1:2], items=[1], per=2, steps=2, solver="ancestral")[0]
    torch.testing.assert_close(drawn[1, :, 1], alone, atol=1e-4, rtol=0)
    one = model.sequence(still.numpy(), steps=2, solver="ancestral")
    assert one.shape == (1, 1, 3, 3, 8, 8)
    torch.testing.assert_close(one[0, 0], drawn[0, 0], atol=1e-4, rtol=0)
    for wrong in (torch.ones(small.DIM), torch.ones(0, small.DIM), torch.ones(1, 1, 1, small.DIM)):
        with pytest.raises(ConfigError, match=r"\[T,D\] or \[S,T,D\]"):
            model.sequence(wrong)


def test_a_sequences_name_stands_at_its_first_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[str]]] = []

    def drawn(rows: Any, **options: Any) -> Image.Image:
        seen.append((len(rows), list(options["row_titles"])))
        return image_sheet(rows, **options)

    monkeypatch.setattr(films, "image_sheet", drawn)
    films.write(FRAMES, tmp_path / "strip.png", names=["a", "b"], cell=16)
    assert seen == [(4, ["a", "", "b", ""])]


def test_a_strip_and_an_animation(tmp_path: Path) -> None:
    films.write(FRAMES, tmp_path / "strip.png", names=["a", "b"], cell=16)
    with Image.open(tmp_path / "strip.png") as strip:
        strip.load()
        assert strip.width >= 3 * 16
        assert strip.height >= 4 * 16
        assert strip.width > strip.height * 0.7, "a row for each sample, frames from left to right"
    films.write(FRAMES, tmp_path / "film.gif", fps=20, cell=16)
    with Image.open(tmp_path / "film.gif") as film:
        assert getattr(film, "n_frames", 1) == 3
        assert (film.info["duration"], film.info["loop"]) == (50, 0)
        assert film.width < 4 * 16
        film.seek(2)
        shown = np.asarray(film.convert("RGB")).astype(int)
    cells = np.asarray(films._frame(FRAMES[:, :, 2], (), 16)).astype(int)
    assert np.abs(shown - cells).mean() < 8, "a palette of 256 colors"


def _program(folder: Path, code: str, patch: pytest.MonkeyPatch) -> None:
    """An ffmpeg that is a few lines of Python, alone on the path."""
    file = folder / "ffmpeg"
    file.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    patch.setenv("PATH", str(folder))


def test_a_film_is_piped_into_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "data = sys.stdin.buffer.read(); open(sys.argv[-1], 'w').write(' '.join(sys.argv[1:-1]) + f' {len(data)}')"
    _program(tmp_path, code, monkeypatch)
    films.write(FRAMES[:, :1], tmp_path / "film.mp4", fps=12, cell=17)
    said = (tmp_path / "film.mp4").read_text()
    width, height = map(int, re.findall(r"-s (\d+)x(\d+)", said)[0])
    assert (width % 2, height % 2) == (0, 0)
    assert width >= 17
    assert "-r 12" in said
    assert said.endswith(f" {3 * width * height * 3}"), "three frames of RGB"
    _program(tmp_path, "sys.exit('no such\\ncodec')", monkeypatch)
    with pytest.raises(StorageError, match=r"ffmpeg cannot write it .no such codec"):
        films.write(FRAMES, tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_text() == said, "what was there stays"


def test_what_cannot_be_written_is_found_out_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImageError, match=r"needs ffmpeg .*imageio-ffmpeg; an animation as .gif"):
        films.check(tmp_path / "a.mp4", (1, 1, 2))
    with pytest.raises(ConfigError, match="fps"):
        films.check(tmp_path / "a.gif", (1, 1, 2), fps=60)
    with pytest.raises(ImageError, match="names no image format"):
        films.check(tmp_path / "a.avi", (1, 1, 2))
    with pytest.raises(ImageError, match="200 at most"):
        films.check(tmp_path / "a.gif", (101, 2, 2))
    with pytest.raises(ImageError, match="a side"):
        films.check(tmp_path / "a.jpg", (1, 1, 1000))
    with pytest.raises(ImageError, match=r"\[S,P,T,3,H,W\]"):
        films.write(FRAMES[0], tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


def test_the_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and its block, with few steps; a file of two sequences of three frames."""
    monkeypatch.chdir(tmp_path)
    h = np.random.default_rng(0).normal(size=(2, 3, 128)).astype(np.float32)
    np.save("h.npy", h)
    text = PAGE.read_text(encoding="utf-8").partition("## Sequences")[2]
    lines = re.findall(r"^    (rcdm .*?)(?:  #.*)?$", text, re.M)
    assert len(lines) == 2
    for line in lines:
        assert main([*shlex.split(line)[1:], "--steps", "1"]) == 0, line
    with Image.open("film.gif") as film:
        assert getattr(film, "n_frames", 1) == 3
    with Image.open("strip.png") as strip:
        assert strip.width > 3 * films.CELL
        assert strip.height > 2 * films.CELL, "two sequences"
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    Path("film.gif").unlink()
    names = {"model": rcdm_fast.load("cifar10-simclr-head"), "h": h}
    exec(compile(block.replace("per=2", "per=2, steps=1"), str(PAGE), "exec"), names)
    with Image.open("film.gif") as film:
        assert film.width > 2 * films.CELL, "two samples of each"


def test_files_that_are_no_sequences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 128), np.float32))
    np.save(tmp_path / "longer.npy", np.ones((4, 128), np.float32))
    np.save(tmp_path / "wide.npy", np.ones((3, 5), np.float32))
    np.save(tmp_path / "whole.npy", np.ones((3, 128), np.int64))
    np.save(tmp_path / "vector.npy", np.ones(128, np.float32))
    np.save(tmp_path / "bad.npy", np.full((3, 128), np.nan, np.float32))
    np.savez(tmp_path / "a.npz", np.ones((3, 128), np.float32))
    for given, said in (
        (["a.npy", "longer.npy"], "a-0: 3, a-1: 3, longer: 4"),
        (["a.npy", "wide.npy"], "different widths"),
        (["wide.npy"], "must be [R,128]"),
        (["whole.npy"], "this is int64"),
        (["vector.npy"], "this is float32 [128]"),
        (["bad.npy"], "NaN"),
        (["a.npz"], "in an .npy file"),
        (["nothing.npy"], "nothing.npy"),
    ):
        words = [*(str(tmp_path / name) for name in given), "--out", str(tmp_path / "x.gif"), "--steps", "1"]
        assert main(["sequence", *words, "--model", "cifar10-simclr-head"]) == 2, given
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x.gif").exists()


def test_an_animation_has_a_row_for_each_sequence_and_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two sequences of three samples at another size and speed than the usual ones."""
    frames = small.make_images(12).view(2, 3, 2, 3, 8, 8)
    seen: list[tuple[Any, ...]] = []

    def drawn(rows: Any, **options: Any) -> Image.Image:
        seen.append(([len(row) for row in rows], list(options["row_titles"]), options["cell"]))
        return image_sheet(rows, **options)

    monkeypatch.setattr(films, "image_sheet", drawn)
    films.write(frames, tmp_path / "film.gif", names=["a", "b"], fps=10, cell=24)
    assert seen == [([3, 3], ["a", "b"], 24)] * 2
    with Image.open(tmp_path / "film.gif") as film:
        assert film.info["duration"] == 100
    seen.clear()
    films.write(frames, tmp_path / "strip.png", names=["a", "b"], cell=24)
    assert seen == [([2] * 6, ["a", "", "", "b", "", ""], 24)]


def test_writing_asks_first_what_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the speed, the size and the numbers that it will have; a film of any number of frames is no larger."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(outputs, "check_image", lambda path, width, height: asked.append((width, height)))
    films.check(tmp_path / "a.gif", (3, 2, 50), cell=30)
    films.check(tmp_path / "a.png", (3, 2, 50), cell=30)
    assert asked == [(2 * 32 + 200, 3 * 32 + 40), (50 * 32 + 200, 6 * 32 + 40)]
    with pytest.raises(ConfigError, match="fps"):
        films.write(FRAMES, tmp_path / "a.gif", fps=60)
    asked.clear()
    films.write(FRAMES, tmp_path / "a.gif", cell=16)
    assert asked == [(2 * 18 + 200, 2 * 18 + 40)]
    _program(tmp_path, "", monkeypatch)
    with pytest.raises(StorageError):
        films.check(tmp_path / "nowhere" / "\0.mp4", (1, 1, 2))
