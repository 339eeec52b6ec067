"""Pictures in and out: files, PIL, uint8 and float tensors; grids of pictures.

Inside the library a picture is float32 [N,3,H,W] with values in [-1,1]. Conversions are fixed maps: 0 <-> -1 and
255 <-> 1, rounded to the nearest level; nothing is stretched to its own minimum and maximum, so colours can be
compared between pictures.

Knows nothing about models or encoders (`encoders/` decides at what size an encoder sees a picture).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MIN_SIDE = 8  # pixels; below, "what the picture shows" has no meaning
MAX_PIXELS = 170_000_000
MAX_SIDE = 4096  # larger pictures are box-reduced on reading; encoders see 32..518 pixels


class ImageError(ValueError):
    """A file or an array that is not a usable picture."""


def below(folder: Path) -> Iterator[Path]:
    """Files below a folder with a picture's extension; hidden ones, and what is in hidden folders, are not meant.

    Hidden are names that begin with a dot: previews and attributes that systems put beside pictures ("._1.jpg"), and
    files that are still being written.
    """
    for path in folder.rglob("*"):
        shown = not any(part.startswith(".") for part in path.relative_to(folder).parts)
        if shown and path.suffix.lower() in EXTENSIONS and path.is_file():
            yield path


def find(folder: str | os.PathLike[str]) -> list[Path]:
    """All picture files `below` a folder, sorted by path.

    Raises:
        ImageError: no such folder, or no file in it has a picture's extension.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(f"{root}: no such folder")
    paths = sorted(below(root))
    if not paths:
        raise ImageError(f"{root}: no pictures here (looked for {', '.join(sorted(EXTENSIONS))})")
    return paths


def expand(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files and folders as a flat list of picture files, in the order given."""
    paths: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            paths += find(path)
        elif path.exists():
            paths.append(path)
        else:
            raise ImageError(f"{path}: no such file or folder")
    return paths


def open_image(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Read one picture as 8-bit RGB.

    EXIF orientation is applied; 16-bit grey is scaled to 8 bits; transparency is laid over white; CMYK and palettes are
    converted; of an animation the first frame is taken.

    Raises:
        ImageError: no picture, truncated, under 8 pixels a side, over 170 megapixels, or floating-point pixels.
    """
    name = source.filename if isinstance(source, Image.Image) and hasattr(source, "filename") else source
    where = str(name) if isinstance(name, str | os.PathLike) and str(name) else "picture"
    try:
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"{where}: {width}x{height} is {width * height / 1e6:.0f} megapixels, more than 170")
        if min(width, height) < MIN_SIDE:
            raise ImageError(f"{where}: {width}x{height} pixels; at least {MIN_SIDE} a side are needed")
        if getattr(picture, "is_animated", False):
            picture.seek(0)
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture), where)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{where}: no such file") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise ImageError(f"{where}: cannot be read as a picture ({error})") from error


def _to_rgb(picture: Image.Image, where: str) -> Image.Image:
    if picture.mode == "F":
        raise ImageError(f"{where}: floating-point pixels have no agreed range; save the picture as 8 or 16 bit")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError(f"{where}: integer pixels outside 0..65535")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    return picture.convert("RGB")


def to_uint8_array(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """RGB picture -> uint8 [size,size,3]: short side resized (antialiased), centre crop."""
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.uint8)


def from_pil(picture: Image.Image) -> Tensor:
    """PIL picture (any mode) -> float32 [1,3,H,W] in [-1,1]; sides above 4096 pixels are box-reduced."""
    rgb = open_image(picture)
    factor = -(-max(rgb.size) // MAX_SIDE)
    if factor > 1:
        rgb = rgb.reduce(factor)
    array = torch.from_numpy(np.array(rgb, dtype=np.uint8)).permute(2, 0, 1)
    return from_uint8(array[None])


def load(source: str | os.PathLike[str] | Image.Image) -> Tensor:
    """File or PIL picture -> float32 [1,3,H,W] in [-1,1]. Raises `ImageError`."""
    if isinstance(source, Image.Image):
        return from_pil(source)
    return from_pil(open_image(source))


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 [...] in 0..255 -> float32 [...] in [-1,1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(pictures: Tensor) -> Tensor:
    """float [...] in [-1,1] -> uint8 [...]; values outside are clipped, the rest rounded to the nearest level."""
    return pictures.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(picture: Tensor) -> Image.Image:
    """float [3,H,W] in [-1,1] -> PIL RGB."""
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ImageError(f"expected [3,H,W], got {list(picture.shape)}")
    return Image.fromarray(to_uint8(picture.detach().cpu()).permute(1, 2, 0).contiguous().numpy())


def fit(pictures: Tensor, size: int) -> Tensor:
    """Short side resized to `size` (antialiased bicubic, clipped), centre crop; [N,3,H,W] -> [N,3,size,size]."""
    height, width = pictures.shape[-2:]
    if (height, width) == (size, size):
        return pictures
    scale = size / min(height, width)
    shape = [max(size, round(height * scale)), max(size, round(width * scale))]
    resized = F.interpolate(pictures.float(), shape, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return resized[..., top : top + size, left : left + size].contiguous()


def check(pictures: Tensor) -> Tensor:
    """The float [N,3,H,W] tensor itself if it is a batch of pictures in [-1,1]; `ImageError` otherwise."""
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ImageError(f"expected pictures [N,3,H,W], got {list(pictures.shape)}")
    if not pictures.is_floating_point():
        raise ImageError(f"expected float pictures in [-1,1], got {pictures.dtype}; see rcdm_fast.images.from_uint8")
    if len(pictures) and not bool(pictures.isfinite().all()):
        raise ImageError("the pictures contain NaN or infinity")
    low, high = (float(pictures.min()), float(pictures.max())) if pictures.numel() else (0.0, 0.0)
    if low < -1.01 or high > 1.01:
        raise ImageError(f"expected pictures in [-1,1], got values in [{low:.3g}, {high:.3g}]")
    return pictures


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture atomically; the extension gives the format. Raises `ImageError` or `storage.StorageError`."""
    if Path(path).suffix.lower() not in EXTENSIONS:
        raise ImageError(f"{path}: the extension names no picture format (known: {', '.join(sorted(EXTENSIONS))})")
    with storage.atomic(path) as temporary:
        picture.save(temporary)


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    cell: int,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    gap: int = 2,
    group_gaps: Sequence[int] = (),
) -> Image.Image:
    """Pictures in rows on white; every picture is scaled to `cell` x `cell` pixels.

    Args:
        rows: pictures, row by row; rows may differ in length.
        cell: side of a cell in pixels. Small pictures are enlarged by nearest neighbour, so that pixels stay visible.
        column_titles: one text per column, broken into lines where the next title begins; an empty text leaves its
            place to its left neighbour.
        row_titles: one text per row, at the left.
        gap: pixels between cells.
        group_gaps: columns before which a wider gap is left.
    """
    if not rows:
        raise ImageError("a sheet needs at least one row")
    size = max(10, cell // 6)
    font: Any = ImageFont.load_default(size=size)
    left = gap + max((int(font.getlength(text)) + 8 for text in row_titles if text), default=0)
    columns = max(len(row) for row in rows)
    offsets, x = [], left
    for column in range(columns):
        x += 4 * gap if column in group_gaps else 0
        offsets.append(x)
        x += cell + gap
    titles: list[tuple[int, list[str]]] = []
    end = x
    for column in reversed([number for number, text in enumerate(column_titles) if text]):
        titles.append((offsets[column], _lines(column_titles[column], font, end - offsets[column] - 4)))
        end = offsets[column]
    top = max((len(lines) * (size + 2) for _, lines in titles), default=gap - 6) + 6
    canvas = Image.new("RGB", (x, top + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, lines in titles:
        for number, line in enumerate(lines):
            draw.text((place, 2 + number * (size + 2)), line, fill="black", font=font)
    for number, row in enumerate(rows):
        y = top + number * (cell + gap)
        if number < len(row_titles):
            draw.text((gap, y + cell // 2 - 8), row_titles[number], fill="black", font=font)
        for column, picture in enumerate(row):
            enlarge = max(picture.size) < cell
            method = Image.Resampling.NEAREST if enlarge else Image.Resampling.BICUBIC
            canvas.paste(ImageOps.fit(picture, (cell, cell), method=method), (offsets[column], y))
    return canvas


def _lines(text: str, font: Any, width: int) -> list[str]:
    """The words of a text in lines that are at most so wide, single words apart."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
