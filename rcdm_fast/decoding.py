"""One image from outside, decoded to 8-bit RGB: the only place where this package reads image files.

A file's first bytes say which of the documented formats it has, never its name, and only that format's decoder is
asked. No other plugin of Pillow is reached: some of them start programs (PostScript) or read other files.

Knows nothing about tensors, folders or models (`images.py`).
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rcdm_fast import doors
from rcdm_fast.errors import RcdmError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_SIDE = 8  # pixels; below, "what the image shows" has no meaning
MAX_PIXELS = 170_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
KINDS = "a file, its bytes, a PIL image, uint8 [H,W,3] or float [3,H,W] in [-1,1]"

_BAND = 1 << 24  # pixels that are converted at once
_HEAD = 16  # bytes that tell the format
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_TURNS[each] for each in (5, 6, 7, 8))
# An image given by the caller may be decoded by one thread at a time: Pillow's lazy images share a file position.
_LOCKS = tuple(threading.Lock() for _ in range(64))

Shrink = Callable[[int, int], int]  # (width, height) -> by which number of pixels a side is to be divided


class ImageError(RcdmError, ValueError):
    """A file or an array that is not a usable image."""


def read(source: Any, *, name: str = "", max_pixels: int = MAX_PIXELS, shrink: Shrink | None = None) -> Image.Image:
    """One image as 8-bit RGB, upright, on white.

    A PIL image means the frame that it stands on, and is left there; a file or its bytes mean the first frame.
    Memory beside the decoded image and the result is bounded.

    Args:
        source: a path, bytes, a file open for reading (read from its start, its position is restored), a PIL
            image, or an array uint8 or uint16 [H,W], [H,W,1], [H,W,3] or [H,W,4] in RGB(A) order.
        name: what to call it in messages, if it does not say so itself.
        max_pixels: refuse more before they are decoded.
        shrink: the result is reduced by that factor, by means of boxes.

    Raises:
        ImageError: no image in a documented format, truncated, too small, too large, or floating-point pixels.
    """
    where = doors.printable(name) or name_of(source)
    with doors.door(ImageError, f"{where}: cannot be read as an image", memory=False):
        if isinstance(source, Image.Image):
            with _LOCKS[id(source) // 16 % len(_LOCKS)]:
                return _upright(_given(source, where, max_pixels), where, shrink, owned=False)
        if isinstance(source, np.ndarray):
            return _upright(_of_array(source, where, max_pixels), where, shrink, owned=True)
        if isinstance(source, bytes | bytearray | memoryview):
            return _decode(io.BytesIO(source), where, max_pixels, shrink)
        if isinstance(source, str | os.PathLike):
            if isinstance(source, str) and source.startswith(("http://", "https://")):
                raise ImageError(f"{where}: an address, not a file; fetch the image first and give its bytes")
            path = doors.path(source, ImageError)
            doors.regular(path)
            with open(path, "rb") as file:
                return _decode(file, where, max_pixels, shrink)
        if hasattr(source, "read"):
            return _decode(io.BytesIO(_content(source, where)), where, max_pixels, shrink)
    raise ImageError(f"{where} is no image: give {KINDS}")


def name_of(source: Any) -> str:
    """What to call a source in messages."""
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "filename", None)
    if name is None and hasattr(source, "read"):
        name = getattr(source, "name", None)
    if isinstance(name, str | bytes | os.PathLike) and name:
        return doors.printable(os.fsdecode(name)) or "image"
    if isinstance(source, Image.Image | np.ndarray | bytes | bytearray | memoryview) or hasattr(source, "read"):
        return "image"
    return type(source).__name__


def check_size(width: int, height: int, where: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `ImageError` for an image that is too small or too large to be decoded."""
    if width * height > max_pixels:
        raise ImageError(
            f"{where}: {width}x{height} is {width * height / 1e6:.0f} megapixels, more than {max_pixels / 1e6:.0f}"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{where}: {width}x{height} pixels; at least {MIN_SIDE} a side are needed")


def format_of(head: bytes) -> str | None:
    """The documented format that the first 16 bytes of a file announce; None if there is none."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"BM"):
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    return None


def _content(file: Any, where: str) -> bytes:
    """All bytes of an open file, which is left where it stands."""
    place = file.tell() if hasattr(file, "tell") and getattr(file, "seekable", lambda: True)() else None
    if place is not None:
        file.seek(0)
    try:
        content = file.read()
    finally:
        if place is not None:
            file.seek(place)
    if not isinstance(content, bytes):
        raise ImageError(f'{where}: opened as text; open it for reading bytes, with mode "rb"')
    return content


def _decode(file: IO[bytes], where: str, max_pixels: int, shrink: Shrink | None) -> Image.Image:
    if not file.seekable():
        file = io.BytesIO(file.read())
    found = format_of(file.read(_HEAD))
    if found is None:
        raise ImageError(f"{where}: cannot be read as an image (it has none of the formats {', '.join(FORMATS)})")
    file.seek(0)
    image = _plugin(found)(file)
    check_size(*image.size, where, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Its decoder would ask Pillow for the memory, which warns from about half of `MAX_PIXELS`.
        image.im = Image.new(image.mode, getattr(image, "_tile_size", image.size)).im
    image.load()
    return _upright(image, where, shrink, owned=True)


def _plugin(name: str) -> Callable[[IO[bytes]], ImageFile.ImageFile]:
    """Pillow's class for a format; called instead of `Image.open`, whose limits are global settings of the host."""
    if name == "AVIF":
        from PIL import AvifImagePlugin  # not in every Pillow

        return AvifImagePlugin.AvifImageFile
    plugins: dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,  # of a phone's MPO the first image, which is a whole JPEG
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
    }
    return plugins[name]


def _given(image: Image.Image, where: str, max_pixels: int) -> Image.Image:
    """The caller's image with its pixels; its frame stays."""
    check_size(*image.size, where, max_pixels)
    if isinstance(image, ImageFile.ImageFile):
        pending = bool(image.tile) or isinstance(image, ImageFile.StubImageFile)
        if pending and image.format not in (*FORMATS, "MPO"):
            raise ImageError(
                f"{where}: {image.format or 'this format'} is not read here ({', '.join(FORMATS)} are); "
                "call the image's load() first if you trust the file"
            )
        if pending and (image.fp is None or image.fp.closed):
            raise ImageError(f"{where}: this PIL image was closed before its pixels were read")
    image.load()
    return image


def _of_array(array: NDArray[Any], where: str, max_pixels: int) -> Image.Image:
    shape = array.shape[:2] if array.ndim == 3 and array.shape[2] == 1 else array.shape
    levels = array.dtype in (np.uint8, np.uint16)
    if not levels or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        channels_first = levels and len(shape) == 3 and shape[0] in (1, 3, 4)
        hint = "put the channels last, [H,W,3]" if channels_first else f"give {KINDS}"
        raise ImageError(f"an array {array.dtype} {list(array.shape)} is no image: {hint}")
    check_size(shape[1], shape[0], where, max_pixels)
    array = array.reshape(shape)
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) + 128) // 257
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _upright(image: Image.Image, where: str, shrink: Shrink | None, owned: bool) -> Image.Image:
    """A decoded image as RGB, turned as its EXIF says, band by band: of a large one there are never three copies."""
    turn = _turn(image)
    width, height = image.size[::-1] if turn in _SIDEWAYS else image.size
    factor = shrink(width, height) if shrink else 1
    if owned and turn is None and factor == 1 and image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, _BAND // (width * factor)) * factor
    if rows >= height:
        whole = _to_rgb(image if turn is None else image.transpose(turn), where)
        return whole.reduce(factor) if factor > 1 else whole
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        part = image.crop(_behind(turn, image.size, top, min(top + rows, height)))
        band = _to_rgb(part if turn is None else part.transpose(turn), where)
        result.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
    return result


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an image upright. EXIF is only read: entries that are odd matter to nobody who looks at pixels."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever a damaged entry makes its reader raise; then nothing is known of an orientation
        return None
    return _TURNS.get(value) if isinstance(value, int) else None


def _behind(turn: Image.Transpose | None, size: tuple[int, int], top: int, bottom: int) -> tuple[int, int, int, int]:
    """The part of an image that becomes the rows `top` to `bottom` when it is turned."""
    width, height = size
    if turn in (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM):
        return 0, height - bottom, width, height - top
    if turn in (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270):
        return top, 0, bottom, height
    if turn in (Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90):
        return width - bottom, 0, width - top, height
    return 0, top, width, bottom


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{where}: floating-point pixels have no agreed range; save the image as 8 or 16 bit")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError(f"{where}: integer pixels outside 0..65535")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    return image.convert("RGB")
