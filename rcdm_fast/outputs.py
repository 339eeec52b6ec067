"""What a command writes at its end: whether it can is found out first; what cannot be written after all is kept."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from rcdm_fast import storage
from rcdm_fast.doors import door
from rcdm_fast.images import IMAGE_EXTENSIONS, MAX_PIXELS, ImageError, save_image
from rcdm_fast.storage import StorageError

# Pixels a side that a format's files, or the library that writes them, cannot go beyond.
LARGEST_SIDE = {
    "JPEG": 65500,
    "WEBP": 16383,
    "GIF": 65535,
    "AVIF": 65536,
    "MPO": 65500,
    "TGA": 65535,
    "JPEG2000": 65535,
}
_NAME_BYTES = 255
_ROOM = 200  # pixels beside the cells of a sheet: gaps between groups, titles


def check_image(path: str | os.PathLike[str], width: int = 8, height: int = 8) -> None:
    """Find out now whether an image of so many pixels can be saved under a name.

    Raises:
        ImageError: the extension names no format that images are written in, or the format has smaller images.
        StorageError: the file cannot be written.
    """
    side = largest_side(path)
    if max(width, height) > side:
        raise ImageError(
            f"{path}: the image has {width}x{height} pixels, and this format at most {side} a side; take .png"
        )
    storage.check_writable(path)


def largest_side(path: str | os.PathLike[str]) -> int:
    """Pixels that a side of an image may have in the format that the extension names. Raises `ImageError`."""
    ending = Path(path).suffix.lower()
    known = ", ".join(sorted(IMAGE_EXTENSIONS))
    if ending not in IMAGE_EXTENSIONS:
        raise ImageError(f"{path}: the extension names no image format (known: {known})")
    form = Image.registered_extensions().get(ending, "")
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), form)
    except (KeyError, OSError, ValueError) as error:
        raise ImageError(f"{path}: images are not written as {ending} here ({error})") from error
    return LARGEST_SIDE.get(form, MAX_PIXELS)


def rows_of_sheet(path: str | os.PathLike[str], columns: int, rows: int, cell: int) -> int:
    """How many rows of a sheet (`image_sheet` with such cells) its format and memory can hold, at most `rows`.

    Raises:
        ImageError, StorageError: not even one row; the extension names no format; the file cannot be written.
    """
    side, each = largest_side(path), cell + 2
    width = columns * each + _ROOM
    fitting = min(rows, (side - _ROOM) // each, (MAX_PIXELS // max(1, width) - _ROOM) // each)
    check_image(path, width, each + _ROOM)
    if fitting < 1:
        raise ImageError(f"{path}: a row of {columns} images is {width} pixels wide, too much for a sheet")
    return fitting


def file_name(stem: str, rest: str, before: str = "") -> str:
    """BEFORE + STEM + REST, with as much of the stem as a file's name can hold."""
    while len(os.fsencode(f"{before}{stem}{rest}")) > _NAME_BYTES - 10 and stem:  # 10: of the temporary name
        stem = stem[:-1]
    return f"{before}{stem}{rest}"


def keep(path: str | os.PathLike[str], write: Callable[[Path], object], ending: str = "") -> None:
    """Write a file; where that fails, write it to the system's temporary folder instead, and say so in the error.

    Args:
        path: the file.
        write: writes to the path that it is given.
        ending: extension of the file instead, if another one than that of `path`.

    Raises:
        StorageError: it could not be written to `path`.
    """
    try:
        write(Path(path))
    except (OSError, ValueError) as error:
        place = Path(tempfile.mkdtemp(prefix="rcdm_fast-"))
        file = place / file_name(Path(path).stem, ending or Path(path).suffix[:20])
        try:
            write(file)
        except (OSError, ValueError):
            shutil.rmtree(place, ignore_errors=True)
            raise error from None
        raise StorageError(f"{error}; it is in {file} instead") from error


def write_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """`save_image`, and `keep`: as PNG where the image cannot be written under its name. Raises `StorageError`."""

    def write(file: Path) -> None:
        with door(StorageError, f"{file}: cannot be written"):  # formats have limits of their own
            save_image(image, file)

    keep(path, write, ".png")
