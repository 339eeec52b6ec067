"""Frames as a strip (any image format), an animation (GIF) or a film (MP4).

GIFs are written by Pillow. A film is piped into ffmpeg: the program on the path, or the one that imageio-ffmpeg brings.

Knows nothing about where frames come from.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from rcdm_fast import outputs, storage
from rcdm_fast.checks import Range, whole
from rcdm_fast.doors import printable
from rcdm_fast.images import ImageError, image_sheet, to_pil
from rcdm_fast.storage import StorageError

CELL = 96  # pixels
FPS = 8
FILM, ANIMATION = ".mp4", ".gif"
MAX_ROWS = 200
_GIF_FPS = 50  # a GIF counts hundredths of a second, and viewers slow down what is faster


def check(path: str | os.PathLike[str], shape: Sequence[int], fps: int = FPS, cell: int = CELL) -> None:
    """Find out now, before frames are drawn, whether they can be written.

    Args:
        path, fps, cell: as in `write`.
        shape: (sequences, samples of each, frames).

    Raises:
        ImageError, StorageError, ConfigError: as `write`.
    """
    ending = Path(path).suffix.lower()
    whole(fps, "fps", Range(1, _GIF_FPS if ending == ANIMATION else 240))
    sequences, per, frames = shape
    if sequences * per > MAX_ROWS:
        raise ImageError(f"{path}: {sequences} sequences of {per} samples are too many for a sheet, {MAX_ROWS} at most")
    if ending == FILM:
        _ffmpeg()
        storage.check_writable(path)
    elif ending == ANIMATION:
        outputs.check_image(path, per * (cell + 2) + 200, sequences * (cell + 2) + 40)
    else:
        outputs.check_image(path, frames * (cell + 2) + 200, sequences * per * (cell + 2) + 40)


def write(
    images: Tensor, path: str | os.PathLike[str], *, names: Sequence[str] = (), fps: int = FPS, cell: int = CELL
) -> None:
    """Write frames; the extension says as what.

    Args:
        images: float [S,P,T,3,H,W] in [-1,1], P samples of S sequences of T frames, as `Model.sequence` gives them.
        path: .gif: an animation, a row for each sequence and a column for each sample; .mp4: the same as a film; else
            an image with a row for each sample and the frames from left to right.
        names: of the sequences.
        fps: frames a second.
        cell: side of an image, in pixels.

    Raises:
        ImageError: the extension names no format, or the image is too large for it; no ffmpeg for an .mp4.
        StorageError: the file cannot be written, or ffmpeg fails.
        ConfigError: frames of another shape, or a speed that there is not.
    """
    if images.ndim != 6 or images.shape[3] != 3 or not images.numel():
        raise ImageError(f"frames are [S,P,T,3,H,W], got {list(images.shape)}")
    sequences, per, count = images.shape[:3]
    check(path, (sequences, per, count), fps, cell)
    ending = Path(path).suffix.lower()
    if ending in (FILM, ANIMATION):
        frames = [_frame(images[:, :, number], names, cell) for number in range(count)]
        write_frames = _write_film if ending == FILM else _write_gif
        outputs.keep(path, lambda file: write_frames(frames, file, fps))
        return
    rows = [[to_pil(each) for each in one] for one in images.flatten(0, 1)]
    titles = [name if number == 0 else "" for name in names for number in range(per)]
    outputs.write_image(image_sheet(rows, cell=cell, row_titles=titles), path)


def _frame(images: Tensor, names: Sequence[str], cell: int) -> Image.Image:
    """All samples [S,P,3,H,W] at one time."""
    return image_sheet([[to_pil(each) for each in row] for row in images], cell=cell, row_titles=names)


def _write_gif(frames: Sequence[Image.Image], file: Path, fps: int) -> None:
    first, *rest = frames
    with storage.atomic(file) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=10 * round(100 / fps), loop=0)


def _write_film(frames: Sequence[Image.Image], file: Path, fps: int) -> None:
    width, height = (side + side % 2 for side in frames[0].size)  # the format halves the resolution of colors
    with storage.atomic(file) as temporary:
        words = [
            *(_ffmpeg(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            *("-s", f"{width}x{height}", "-r", str(fps), "-i", "-"),
            *("-pix_fmt", "yuv420p", "-f", "mp4", os.fspath(temporary.absolute())),
        ]
        pixels = b"".join(_padded(frame, width, height).tobytes() for frame in frames)
        done = subprocess.run(words, input=pixels, capture_output=True)
        if done.returncode:
            said = printable(" ".join(done.stderr.decode(errors="replace").split()))
            raise StorageError(f"{file}: ffmpeg cannot write it ({said or f'exit code {done.returncode}'})")


def _padded(frame: Image.Image, width: int, height: int) -> Image.Image:
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(frame, (0, 0))
    return canvas


def _ffmpeg() -> str:
    """The program. Raises `ImageError` if there is none."""
    found = shutil.which("ffmpeg")
    if found is None:
        try:
            found = str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
        except (ImportError, RuntimeError) as error:
            raise ImageError(
                f"an {FILM} needs ffmpeg ({error}): install it, or pip install imageio-ffmpeg; an animation as "
                f"{ANIMATION} needs neither"
            ) from error
    return found
