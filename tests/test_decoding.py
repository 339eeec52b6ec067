"""One image from outside: which decoders may run, which frame is meant, what is left as it was, and what it costs."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
import tempfile
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps, ImageSequence, features

from rcdm_fast import decoding
from rcdm_fast.data.readers.image_files import Item
from rcdm_fast.images import ImageError, from_uint8, load_image, open_image, several_images, to_uint8

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(any PostScript program) pop\nshowpage\n%%EOF\n"
)
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when Ghostscript (a false one) is started."""
    folder, trace = tmp_path / "bin", tmp_path / "CALLED"
    folder.mkdir()
    for name in ("gs", "gswin64c", "djpeg"):
        (folder / name).write_text(
            f'#!/bin/sh\necho "$0 $@" >> {trace}\n[ "$1" = --version ] && echo 10 && exit 0\nexit 1\n'
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers where it is
    return trace


def test_no_file_starts_a_program(called: Path, tmp_path: Path) -> None:
    """Whatever its name: only the decoders of documented formats are asked, and none of them starts anything."""
    with pytest.raises(subprocess.CalledProcessError):
        Image.open(io.BytesIO(EPS)).load()
    assert called.exists(), "the false Ghostscript is found"
    called.unlink()
    dos = struct.pack("<4sIIIIIIh", b"\xc5\xd0\xd3\xc6", 32, len(EPS), 0, 0, 0, 0, -1) + b"\0\0" + EPS
    for content, name in itertools.product((EPS, b"\n" + EPS, dos), ("cat.png", "cat.jpg", "cat.eps", "cat.tif")):
        path = tmp_path / name
        path.write_bytes(content)
        for read in (load_image, open_image):
            for source in (path, content, io.BytesIO(content)):
                with pytest.raises(ImageError, match="none of the formats PNG, JPEG"):
                    read(source)
        with pytest.raises(ImageError, match="none of the formats"):
            Item(path, None, content).image()
    for name in ("x.png", "x.eps"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(ImageError, match=r"EPS is not read here"):
            load_image(Image.open(tmp_path / name))
    assert not called.exists()


def test_formats_are_told_by_content(tmp_path: Path) -> None:
    base = Image.fromarray(gradient())
    kinds = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO"] + ["AVIF"] * bool(features.check("avif"))
    for kind in kinds:
        (tmp_path / "file.xyz").write_bytes(encoded(base, kind))
        seen = open_image(tmp_path / "file.xyz")
        assert (seen.mode, seen.size) == ("RGB", base.size), kind
        assert np.abs(np.asarray(seen).astype(int) - gradient()).mean() < 12, kind
    gray = Image.fromarray(gradient()[:, :, 0])
    assert np.array_equal(np.asarray(open_image(encoded(gray, "PPM")))[:, :, 1], gradient()[:, :, 0])
    for kind in ("ICO", "TGA", "PCX", "PDF", "DDS", "SGI", "IM"):
        with pytest.raises(ImageError, match="none of the formats"):
            open_image(encoded(base, kind))


def test_limits_hold_before_decoding_whatever_the_host_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit is a global setting of the host, and its warnings are no business of a caller."""

    def header(width: int, height: int) -> bytes:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="20000x10000 is 200 megapixels, more than 170"):
            load_image(header(20000, 10000))
        with pytest.raises(ImageError, match=r"more than 170"):
            load_image(header(2**31 - 1, 2**31 - 1))
        for kind in ("PNG", "TIFF"):
            large = encoded(Image.new("1", (10000, 9500)), kind)
            assert load_image(large).shape == (1, 3, 3167, 3334), kind
        with pytest.raises(ImageError, match="more than 50"):
            load_image(large, max_pixels=50_000_000)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert load_image(encoded(Image.new("RGB", (40, 40)), "PNG")).shape == (1, 3, 40, 40)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_a_pil_image_means_the_frame_it_stands_on(kind: str) -> None:
    frames = [Image.new("RGB", (32, 24), color) for color in COLORS]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True, duration=50)
    assert np.asarray(open_image(content))[0, 0].tolist() == [255, 0, 0]
    with Image.open(io.BytesIO(content)) as film:
        seen = [open_image(frame).getpixel((3, 3)) for frame in ImageSequence.Iterator(film)]
        assert seen == list(COLORS)
        for place in (2, 0, 1):
            film.seek(place)
            film.load()  # Pillow itself completes `info` here
            before = (film.tell(), film.size, dict(film.info))
            assert to_uint8(load_image(film))[0, :, 5, 5].tolist() == list(COLORS[place])
            assert (film.tell(), film.size, dict(film.info)) == before
            assert film.convert("RGB").getpixel((3, 3)) == COLORS[place]


def test_what_the_caller_gives_is_left_as_it_is(tmp_path: Path) -> None:
    base = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    base.save(path, exif=exif)
    with Image.open(path) as lazy:
        before = (lazy.mode, lazy.size, dict(lazy.info), lazy.tell(), dict(lazy.getexif()))
        assert open_image(lazy).size == (20, 30)
        assert (lazy.mode, lazy.size, dict(lazy.info), lazy.tell(), dict(lazy.getexif())) == before
        assert lazy.getpixel((3, 3))
    rgba = base.convert("RGBA")
    pixels = rgba.tobytes()
    open_image(rgba).putpixel((0, 0), (1, 2, 3))
    open_image(base).putpixel((0, 0), (1, 2, 3))
    assert rgba.tobytes() == pixels
    assert np.array_equal(np.asarray(base), gradient())
    with open(path, "rb") as file:
        file.seek(7)
        assert open_image(file).size == (20, 30)
        assert (file.tell(), file.closed) == (7, False)


def test_closed_images_and_files_are_told() -> None:
    content = encoded(Image.fromarray(gradient()), "PNG")
    with Image.open(io.BytesIO(content)) as closed:
        pass
    with pytest.raises(ImageError, match="closed"):
        load_image(closed)
    image = Image.open(io.BytesIO(content))
    image.load()
    image.close()
    with pytest.raises(ImageError, match="closed"):
        load_image(image)
    file = io.BytesIO(content)
    file.close()
    with pytest.raises(ImageError, match="closed"):
        load_image(file)
    stopped = Image.open(io.BytesIO(content[:-30]))
    with pytest.raises(ImageError, match="cannot be read as an image"):
        load_image(stopped)


def test_threads_may_share_a_lazy_image() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    want = load_image(content)
    for _ in range(5):
        lazy = Image.open(io.BytesIO(content))
        gate = threading.Barrier(8)

        def read(_: int, lazy: Image.Image = lazy, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return torch.equal(load_image(lazy), want)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(8)))


def odd_exif(orientation: int) -> bytes:
    """EXIF with entries that cannot be written again: a type that does not fit, and text that is none."""
    entries = [
        (0x0112, 3, 1, struct.pack("<HH", orientation, 0)),
        (0x011A, 2, 4, b"\xff\xfe\xfd\0"),  # a resolution as text
        (0x0132, 3, 1, struct.pack("<HH", 7, 0)),  # a date as a number
        (0x8298, 5, 1, struct.pack("<I", 90)),  # a rational where a text should be, behind the end
        (0x9286, 7, 4, b"\0\1\2\3"),
    ]
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHI", *each[:3]) + each[3] for each in entries) + b"\0\0\0\0"
    return b"Exif\0\0" + body + struct.pack("<II", 1, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_exif_turns_the_pixels_all_the_same(orientation: int) -> None:
    base = Image.fromarray(gradient(16, 24))
    plain = Image.Exif()
    plain[0x0112] = orientation
    for kind, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})):
        want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(base, kind, exif=plain, **options)))))
        for source in (
            content := encoded(base, kind, exif=odd_exif(orientation), **options),
            Image.open(io.BytesIO(content)),
        ):
            assert np.array_equal(np.asarray(open_image(source)), want), kind
    tiff = encoded(base, "TIFF", tiffinfo={0x0112: orientation, 0x0132: "no date", 0x8298: "\u00e9"})
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(tiff))))
    assert np.array_equal(np.asarray(open_image(tiff)), want)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_is_no_reason_to_refuse_an_image(exif: bytes) -> None:
    base = Image.fromarray(gradient())
    assert np.array_equal(np.asarray(open_image(encoded(base, "PNG", exif=exif))), gradient())
    assert open_image(encoded(base, "JPEG", exif=exif)).size == (30, 20)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "LA"])
def test_bands_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images are turned, converted and reduced band by band: the same levels as at once."""
    base = Image.fromarray(gradient(53, 37))
    between = {"LA": "L", "1": "L", "I;16": "I"}.get(mode, "RGB")
    image = base.convert(between).convert(mode)
    for orientation, factor in itertools.product(range(1, 9), (1, 3)):
        image.getexif()[0x0112] = orientation

        def read(factor: int = factor) -> np.ndarray:
            return np.asarray(decoding.read(image, shrink=lambda width, height: factor))

        at_once = read()
        whole = decoding._to_rgb(ImageOps.exif_transpose(image), "x")
        assert np.array_equal(at_once, np.asarray(whole.reduce(factor) if factor > 1 else whole))
        monkeypatch.setattr(decoding, "_BAND", 200)
        assert np.array_equal(read(), at_once)
        monkeypatch.undo()


def test_everything_that_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = gradient()
    base = Image.fromarray(pixels)
    content = encoded(base, "PNG")
    want = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    (tmp_path / "x.png").write_bytes(content)
    monkeypatch.setenv("HOME", str(tmp_path))
    spooled = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    spooled.write(content)
    sources: list[Any] = [
        tmp_path / "x.png", str(tmp_path / "x.png"), "~/x.png", Path("~/x.png"), content, bytearray(content),
        memoryview(content), io.BytesIO(content), spooled, base, pixels, pixels[:, ::-1][:, ::-1],
        np.asfortranarray(pixels), pixels.astype(np.uint16) * 257,
        np.dstack([pixels, np.full((20, 30), 255, np.uint8)]),
        want, want[0], want.double(), want[0].numpy(), want.numpy().astype(">f8"),
    ]  # fmt: skip
    for number, source in enumerate(sources):
        assert torch.equal(load_image(source), want), number
        assert np.array_equal(np.asarray(open_image(source)), pixels), number
    gray = load_image(pixels[:, :, 0])
    assert torch.equal(gray, want[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(load_image(pixels[:, :, :1]), gray)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (gradient().transpose(2, 0, 1), "channels last"),
        (gradient().astype(np.int64), r"int64 \[20, 30, 3\] is no image: give"),
        (np.zeros((20, 30), dtype=bool), "bool"),
        (gradient()[:4], "at least 8"),
        (np.zeros(20, dtype=np.uint8), "is no image"),
        (gradient() / 255.0, r"expected images \[N,3,H,W\]"),
        (torch.from_numpy(gradient().transpose(2, 0, 1).copy()), "from_uint8"),
        (torch.full((3, 9, 9), 255.0), "values in"),
        (torch.full((3, 9, 9), torch.nan), "NaN"),
        (torch.zeros(2, 3, 9, 9), "one image"),
        (torch.zeros(3, 0, 9), "one image"),
        (b"", "none of the formats"),
        (io.StringIO("x"), "text"),
        (io.BytesIO(b"\x89PNG\r\n\x1a\n"), "cannot be read as an image"),
        ("https://example.org/cat.jpg", "an address, not a file"),
        ("a" * 3000 + ".png", "cannot be read|not a usable name"),
        ("~nosuchuser/x.png", "cannot be read|not a usable name"),
        ("x\0.png", "cannot be read|not a usable name"),
        ("", "empty name"),
        (".", "cannot be read as an image .*irectory"),
        (None, "NoneType is no image: give a file"),
        (7, "int is no image"),
        ({"image": 1}, "dict is no image"),
        ([gradient()], "list is no image"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_told_in_a_sentence(source: Any, message: str) -> None:
    for read in (load_image, open_image):
        with pytest.raises(ImageError, match=message) as caught:
            read(source)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


def test_everything_that_is_images(tmp_path: Path) -> None:
    pixels = gradient()
    batch = from_uint8(torch.from_numpy(np.stack([pixels, 255 - pixels])).permute(0, 3, 1, 2))
    for given in (batch, batch.numpy(), np.stack([pixels, 255 - pixels])):
        found = several_images(given)
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, batch)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    one = Image.fromarray(pixels)
    cases: list[tuple[Any, list[Any]]] = [
        (path, [path]), (str(path), [str(path)]), (tmp_path, [path]), (one, [one]), ((path, one), [path, one]),
        (iter([path]), [path]), ([batch[0], batch[1]], [batch[0], batch[1]]),
    ]  # fmt: skip
    for case, want in cases:
        listed = several_images(case)
        assert isinstance(listed, list)
        assert all(a is b or str(a) == str(b) for a, b in zip(listed, want, strict=True))
    assert several_images(pixels)[0] is pixels
    assert several_images(path.read_bytes()) == [path.read_bytes()]
    film = Image.open(io.BytesIO(encoded(one, "GIF", save_all=True, append_images=[Image.fromarray(255 - pixels)])))
    assert len(several_images([film, one, one])) == 3
    for wrong, message in (
        ([], "no images given"), ({"image": [one]}, "dict of image"), (7, "int is no image"),
        (list(ImageSequence.Iterator(film)), r"copy\(\) each frame"), (batch[:, :1], r"\[N,3,H,W\]"),
        (np.zeros((2, 3, 9, 9), np.uint8), r"uint8 \[N,H,W,3\]"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=message):
            several_images(wrong)  # type: ignore[arg-type]
