"""Images in and out: files, PIL, uint8 and float tensors; grids of images.

Inside the library an image is float32 [N,3,H,W] with values in [-1,1]. Conversions are fixed maps: 0 <-> -1 and
255 <-> 1, rounded to the nearest level; nothing is stretched to its own minimum and maximum, so colors can be
compared between images.

Knows nothing about models or encoders (`encoders/` decides at what size an encoder sees an image).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import decoding, doors, folders, resizing, storage
from rcdm_fast.decoding import MAX_PIXELS, MIN_SIDE, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MIN_SIDE",
    "ImageError",
    "ImageSource",
    "check_images",
    "expand_paths",
    "find_images",
    "fit_images",
    "from_pil",
    "from_uint8",
    "image_sheet",
    "images_below",
    "load_image",
    "open_image",
    "save_image",
    "several_images",
    "to_pil",
    "to_uint8",
    "to_uint8_array",
]  # fmt: skip

IMAGE_EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".avif", ".jfif", ".jpe", ".apng", ".pbm", ".pnm"}
)
MAX_SIDE = 4096  # larger images are box-reduced on reading; encoders see 32..518 pixels
_KEPT_SIDE = 640  # pixels; a long strip is not reduced to fewer in its short side

# Anything that is one image: a path, its bytes, a file open for reading bytes, a PIL image, an array or a tensor.
ImageSource = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor


def images_below(folder: Path) -> Iterator[Path]:
    """Files below a folder with an image's extension, linked folders included, in order; see `folders.tree`."""
    return (path for path in folders.tree(folder).files if path.suffix.lower() in IMAGE_EXTENSIONS)


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files `below` a folder, sorted by path; what else lies there is counted in the log.

    Raises:
        ImageError: no such folder, or no file in it has an image's extension.
    """
    root = doors.path(folder, ImageError)
    if not root.is_dir():
        raise ImageError(f"{doors.printable(root)}: no such folder")
    found = folders.tree(root)
    paths = [path for path in found.files if path.suffix.lower() in IMAGE_EXTENSIONS]
    folders.report(root, set(found.files).difference(paths), found.unseen)
    if not paths:
        raise ImageError(f"{doors.printable(root)}: no images here (looked for {', '.join(sorted(IMAGE_EXTENSIONS))})")
    return paths


def expand_paths(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files and folders as a flat list of image files, in the order given."""
    paths: list[Path] = []
    for source in sources:
        path = doors.path(source, ImageError)
        if path.is_dir():
            paths += find_images(path)
        elif path.exists():
            paths.append(path)
        else:
            raise ImageError(f"{path}: no such file or folder")
    return paths


def open_image(source: ImageSource, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one image as 8-bit RGB.

    EXIF orientation is applied; 16-bit gray is scaled to 8 bits; transparency is laid over white; CMYK and palettes are
    converted. A file, or its bytes, mean the first frame of an animation; a PIL image means the frame that it stands
    on, and stays there. The formats are `decoding.FORMATS`, told by a file's content.

    Args:
        source: a path ("~" is the home folder), bytes, a file open for reading bytes, a PIL image, an array uint8 or
            uint16 [H,W], [H,W,3] or [H,W,4]; a float [3,H,W] or [1,3,H,W] in [-1,1] is rounded to 8 bits.
        name: what to call it in messages, if it does not say so itself.
        max_pixels: what has more is refused before it is decoded.

    Raises:
        ImageError: no image, truncated, under 8 pixels a side, over 170 megapixels, or floating-point pixels.
    """
    floats = _floats(source)
    return decoding.read(source, name=name, max_pixels=max_pixels) if floats is None else to_pil(floats[0])


def load_image(source: ImageSource, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Tensor:
    """Anything that is one image -> float32 [1,3,H,W] in [-1,1]; takes what `open_image` takes.

    A float tensor or array [3,H,W] or [1,3,H,W] in [-1,1] is taken as it is. Of an image with a side above 4096
    pixels boxes of pixels are averaged, but not below 640 pixels in the short side.

    Raises:
        ImageError: as `open_image`; floats as `check`.
    """
    floats = _floats(source)
    if floats is not None:
        return floats.to(torch.float32)
    rgb = decoding.read(source, name=name, max_pixels=max_pixels, shrink=_reduction)
    array = torch.from_numpy(np.array(rgb, dtype=np.uint8)).permute(2, 0, 1)
    return from_uint8(array[None])


def from_pil(image: Image.Image) -> Tensor:
    """PIL image (any mode, the frame it stands on) -> float32 [1,3,H,W] in [-1,1], as `load`."""
    return load_image(image)


def several_images(given: ImageSource | Iterable[ImageSource]) -> Tensor | list[Any]:
    """Anything that is images, as one batch or as a list of what `load` takes one by one.

    A float [N,3,H,W] in [-1,1], or uint8 array [N,H,W,3], is a batch and becomes float [N,3,H,W]; one image a list
    of one; a folder the list of its files; anything else is gone through.

    Raises:
        ImageError: nothing in it, a mapping, an animation given again and again (it stands on one frame), a batch that
            is none of images, or what `find` says of a folder.
    """
    if isinstance(given, np.ndarray) and given.ndim == 4:
        if given.dtype == np.uint8 and given.shape[3] == 3:
            return from_uint8(torch.from_numpy(np.ascontiguousarray(given.transpose(0, 3, 1, 2))))
        if given.dtype.kind != "f":
            raise ImageError(
                f"an array {given.dtype} {list(given.shape)} is no batch of images: "
                "give uint8 [N,H,W,3] or float [N,3,H,W] in [-1,1]"
            )
        return check_images(torch.from_numpy(np.ascontiguousarray(given, dtype=np.float32)))
    if isinstance(given, Tensor) and given.ndim not in (3,):
        return check_images(given)
    if isinstance(given, str | os.PathLike):
        path = doors.path(given, ImageError)
        return list(find_images(path)) if path.is_dir() else [given]
    if isinstance(given, bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor) or hasattr(given, "read"):
        return [given]
    if isinstance(given, Mapping):
        raise ImageError(f"a {type(given).__name__} of {', '.join(map(str, list(given)[:5]))} is no image: give one")
    if not isinstance(given, Iterable):
        raise ImageError(f"{type(given).__name__} is no image: give {decoding.KINDS}")
    listed = list(given)
    if not listed:
        raise ImageError("no images given")
    animations = [id(each) for each in listed if isinstance(each, Image.Image) and getattr(each, "is_animated", False)]
    if len(set(animations)) < len(animations):
        raise ImageError("the same animated image is given several times, and stands on one frame; copy() each frame")
    return listed


def _floats(source: Any) -> Tensor | None:
    """One image given as floats, checked, [1,3,H,W]; None for what is to be decoded."""
    if isinstance(source, np.ndarray) and source.dtype.kind == "f":
        source = torch.from_numpy(np.ascontiguousarray(source, dtype=np.float32))
    if not isinstance(source, Tensor):
        return None
    found = check_images(source[None] if source.ndim == 3 else source)
    if len(found) != 1 or not found.numel():
        raise ImageError(f"expected one image, [3,H,W] or [1,3,H,W], got {list(source.shape)}")
    return found


def _reduction(width: int, height: int) -> int:
    """By how much `load` reduces an image: to `MAX_SIDE`, but a strip only as far as memory asks for."""
    factor = min(-(-max(width, height) // MAX_SIDE), max(1, min(width, height) // _KEPT_SIDE))
    return max(factor, math.ceil(math.sqrt(width * height) / MAX_SIDE))


def to_uint8_array(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """RGB image -> uint8 [size,size,3]: short side resized (antialiased), center crop."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 [...] in 0..255 -> float32 [...] in [-1,1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """float [...] in [-1,1] -> uint8 [...]; values outside are clipped, the rest rounded to the nearest level."""
    return images.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """float [3,H,W] in [-1,1] -> PIL RGB."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(f"expected [3,H,W], got {list(image.shape)}")
    return Image.fromarray(to_uint8(image.detach().cpu()).permute(1, 2, 0).contiguous().numpy())


def fit_images(images: Tensor, size: int) -> Tensor:
    """Short side resized to `size` (antialiased bicubic, clipped), center crop; [N,3,H,W] -> [N,3,size,size]."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    corner = ((shape[0] - size) // 2, (shape[1] - size) // 2)
    return resizing.cropped(images.float(), shape, corner, size, "bicubic").clamp(-1, 1)


def check_images(images: Tensor) -> Tensor:
    """The float [N,3,H,W] tensor itself if it is a batch of images in [-1,1]; `ImageError` otherwise."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ImageError(f"expected images [N,3,H,W], got {list(images.shape)}")
    if not images.is_floating_point():
        raise ImageError(f"expected float images in [-1,1], got {images.dtype}; see rcdm_fast.images.from_uint8")
    if len(images) and not bool(images.isfinite().all()):
        raise ImageError("the images contain NaN or infinity")
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if low < -1.01 or high > 1.01:
        raise ImageError(f"expected images in [-1,1], got values in [{low:.3g}, {high:.3g}]")
    return images


def blur_images(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur; float [N,3,H,W] -> [N,3,H,W].

    Args:
        images: of any range; beyond their edges the last pixel goes on.
        deviation: of the Gaussian, in pixels, at least 0.

    Raises:
        ImageError: a negative deviation.
    """
    if not deviation >= 0:
        raise ImageError(f"the deviation of a blur must not be negative, got {deviation}")
    if deviation == 0:
        return images
    radius = max(1, math.ceil(3 * deviation))
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / deviation).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    across = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(across, kernel.transpose(2, 3), groups=3)


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image atomically; the extension gives the format. Raises `ImageError` or `storage.StorageError`."""
    if Path(path).suffix.lower() not in IMAGE_EXTENSIONS:
        raise ImageError(f"{path}: the extension names no image format (known: {', '.join(sorted(IMAGE_EXTENSIONS))})")
    with storage.atomic(path) as temporary:
        image.save(temporary)


def image_sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    cell: int,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    gap: int = 2,
    group_gaps: Sequence[int] = (),
) -> Image.Image:
    """Images in rows on white; every image is scaled to `cell` x `cell` pixels.

    Args:
        rows: images, row by row; rows may differ in length.
        cell: side of a cell in pixels. Small images are enlarged by nearest neighbor, so that pixels stay visible.
        column_titles: one text per column, broken into lines where the next title begins; an empty text leaves its
            place to its left neighbor.
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
        for column, image in enumerate(row):
            enlarge = max(image.size) < cell
            method = Image.Resampling.NEAREST if enlarge else Image.Resampling.BICUBIC
            canvas.paste(ImageOps.fit(image, (cell, cell), method=method), (offsets[column], y))
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
