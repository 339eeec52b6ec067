"""Files of single images: every format that is read, under its own and under wrong names, and formats that are not."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from rcdm_fast.images import IMAGE_EXTENSIONS, ImageError, check_images, load_image, to_uint8
from tests import small
from tests.fuzz.kind import Door, Kind

SUFFIXES = (*sorted(IMAGE_EXTENSIONS), ".eps", ".pdf", ".PNG", "")


def sample(mode: str = "RGB", width: int = 21, height: int = 17) -> Image.Image:
    """A smooth image that is not square."""
    pixels = to_uint8(small.make_images(1, 32)[0]).permute(1, 2, 0).numpy()
    found = Image.fromarray(pixels).resize((width, height)).convert("RGB" if mode in ("I;16", "F") else mode)
    if mode == "I;16":
        return Image.fromarray(np.asarray(found.convert("L")).astype(np.uint16) * 257)
    return found.convert("L").convert("F") if mode == "F" else found


def encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:
    """An image as a file of a format."""
    made = io.BytesIO()
    sample(mode).save(made, form, **options)
    return made.getvalue()


def exif(orientation: int = 6) -> bytes:
    """Tags as a camera writes them."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "maker" * 20
    tags[0x9286] = b"ASCII\0\0\0comment"
    tags.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return tags.tobytes()


def _png(folder: Path) -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("about", "text " * 50, zip=True)
    told.add_itxt("about", "texte é", zip=True)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        (folder / f"{mode.replace(';', '')}.png").write_bytes(encoded("png", mode))
    (folder / "told.png").write_bytes(encoded("png", pnginfo=told, exif=exif(), dpi=(72, 72), icc_profile=b"x" * 200))
    frames = [sample(width=20 + number, height=20).resize((20, 20)) for number in range(3)]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:], duration=50)


def _jpeg(folder: Path) -> None:
    for mode in ("RGB", "L", "CMYK"):
        (folder / f"{mode}.jpg").write_bytes(encoded("jpeg", mode))
    (folder / "progressive.jpg").write_bytes(encoded("jpeg", progressive=True, optimize=True))
    for orientation in (3, 6, 9):
        (folder / f"turned{orientation}.jpeg").write_bytes(encoded("jpeg", exif=exif(orientation), comment=b"x"))
    (folder / "profile.jpg").write_bytes(encoded("jpeg", icc_profile=b"x" * 70000))


def _webp(folder: Path) -> None:
    (folder / "lossy.webp").write_bytes(encoded("webp", exif=exif()))
    (folder / "lossless.webp").write_bytes(encoded("webp", "RGBA", lossless=True))
    sample().save(folder / "moving.webp", save_all=True, append_images=[sample("L").convert("RGB")] * 2)


def _bmp(folder: Path) -> None:
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        (folder / f"{mode}.bmp").write_bytes(encoded("bmp", mode))


def _gif(folder: Path) -> None:
    (folder / "still.gif").write_bytes(encoded("gif", "P"))
    frames = [sample("P"), sample("L"), sample("1")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], transparency=0, disposal=2)


def _tiff(folder: Path) -> None:
    for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4"):
        mode = "1" if name == "group4" else "RGB"
        (folder / f"{name}.tif").write_bytes(encoded("tiff", mode, compression=name))
    for mode in ("RGBA", "L", "I;16", "CMYK", "P"):
        (folder / f"{mode.replace(';', '')}.tiff").write_bytes(encoded("tiff", mode))
    sample().save(folder / "pages.tif", save_all=True, append_images=[sample("L")])


def _ppm(folder: Path) -> None:
    (folder / "a.ppm").write_bytes(encoded("ppm"))
    (folder / "a.pgm").write_bytes(encoded("ppm", "L"))
    (folder / "plain.ppm").write_bytes(b"P3\n# plain\n9 8\n255\n" + b"1 2 3\n" * 72)
    (folder / "deep.pgm").write_bytes(b"P5 9 8 65535\n" + bytes(144))


def _avif(folder: Path) -> None:
    (folder / "a.png").write_bytes(encoded("avif", quality=60))
    (folder / "b.png").write_bytes(encoded("avif", "RGBA", exif=exif()))


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 moveto 20 20 lineto stroke\nshowpage\n"
)


def _foreign(folder: Path) -> None:
    """Formats that Pillow knows and the documentation does not name."""
    (folder / "postscript.png").write_bytes(POSTSCRIPT)
    for form in ("eps", "pdf", "ico", "icns", "tga", "pcx", "sgi", "dds", "jpeg2000", "im", "msp", "xbm", "spider"):
        mode = {"msp": "1", "xbm": "1", "spider": "F"}.get(form, "RGB")
        (folder / f"{form}.png").write_bytes(encoded(form, mode))
    (folder / "svg.png").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"></svg>')
    (folder / "fits.png").write_bytes(b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800))
    (folder / "wmf.png").write_bytes(b"\xd7\xcd\xc6\x9a" + bytes(60))
    (folder / "mpo.png").write_bytes(encoded("mpo"))


def load(path: Path) -> None:
    """As every command that takes an image."""
    loaded = load_image(path)
    assert loaded.dtype == torch.float32, loaded.dtype
    assert loaded.ndim == 4, loaded.shape
    check_images(loaded)


DOORS = (Door(load, (ImageError,)),)
_kind = functools.partial(Kind, doors=DOORS, suffixes=SUFFIXES)
KINDS = (
    _kind("image-png", _png),
    _kind("image-jpeg", _jpeg),
    _kind("image-webp", _webp),
    _kind("image-bmp", _bmp),
    _kind("image-gif", _gif),
    _kind("image-tiff", _tiff),
    _kind("image-ppm", _ppm),
    _kind("image-avif", _avif, good=False),
    _kind("image-foreign", _foreign, good=False),
)
