"""Images in and out, and files that are no usable images."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast.images import (
    MAX_SIDE,
    ImageError,
    check_images,
    expand_paths,
    find_images,
    fit_images,
    from_uint8,
    image_sheet,
    load_image,
    open_image,
    save_image,
    to_pil,
    to_uint8,
)
from rcdm_fast.storage import StorageError
from tests.tolerances import RESIZE_ABS


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def test_levels_survive_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    floats = from_uint8(levels)
    assert float(floats.min()) == -1
    assert float(floats.max()) == 1
    assert torch.equal(to_uint8(floats), levels)
    assert to_uint8(torch.tensor([-5.0, -1.01, 1.01, 5.0])).tolist() == [0, 0, 255, 255]
    between = torch.tensor([0.4, 0.6, 100.4, 100.6, 254.4, 254.6]) / 127.5 - 1
    assert to_uint8(between).tolist() == [0, 1, 100, 101, 254, 255]
    assert to_uint8(between.double()).tolist() == [0, 1, 100, 101, 254, 255]


def test_nothing_is_stretched() -> None:
    flat = torch.full((3, 8, 8), 0.1)
    assert len(np.unique(np.asarray(to_pil(flat)))) == 1
    assert np.asarray(to_pil(flat))[0, 0, 0] == round(1.1 * 127.5)


def test_modes_become_rgb(tmp_path: Path) -> None:
    base = Image.fromarray(gradient())
    for mode in ("L", "P", "CMYK", "1", "RGBA", "LA"):
        path = tmp_path / f"{mode}.{'tif' if mode in ('CMYK', 'LA') else 'png'}"
        (base.convert("L").convert("LA") if mode == "LA" else base.convert(mode)).save(path)
        opened = open_image(path)
        assert opened.mode == "RGB", mode
        assert opened.size == base.size


def test_ycbcr_becomes_rgb() -> None:
    """In memory: Pillow before 13 writes uncompressed YCbCr TIFF files that it cannot read."""
    base = Image.fromarray(gradient())
    opened = open_image(base.convert("YCbCr"))
    assert opened.mode == "RGB"
    assert np.abs(np.asarray(opened).astype(int) - gradient()).max() <= 3


def test_sixteen_bits_are_rounded_to_the_nearest_of_256_levels(tmp_path: Path) -> None:
    """All 65536 of them, from a file and from an array: 257 steps to a level, half-way at 128.5."""
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    want = np.rint(levels / 257).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    for given in (tmp_path / "deep.png", levels, np.stack([levels] * 3, 2), Image.fromarray(levels.astype(np.int32))):
        found = np.asarray(open_image(given))
        assert found.shape == (256, 256, 3)
        assert all(np.array_equal(found[:, :, channel], want) for channel in range(3))


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert np.asarray(open_image(clear)).min() == 255
    half = np.asarray(open_image(Image.new("RGBA", (8, 8), (0, 0, 0, 128))))
    assert 120 < half.mean() < 135


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 10), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient()).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 30)


@pytest.mark.filterwarnings("ignore:.*decompression bomb.*")
@pytest.mark.long
def test_large_images_are_reduced(tmp_path: Path) -> None:
    Image.new("L", (10000, 9000), 77).save(tmp_path / "large.png")
    loaded = load_image(tmp_path / "large.png")
    assert max(loaded.shape) <= MAX_SIDE
    assert to_uint8(loaded).unique().tolist() == [77]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 7)])
def test_too_small(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "dot.png")
    with pytest.raises(ImageError, match=r"dot.png.*at least 8"):
        load_image(tmp_path / "dot.png")


def test_too_large(tmp_path: Path) -> None:
    Image.new("1", (20000, 10000)).save(tmp_path / "huge.png")
    with pytest.raises(ImageError, match=r"huge.png"):
        load_image(tmp_path / "huge.png")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(gradient(200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    Image.fromarray(np.ones((9, 9), dtype=np.float32)).save(tmp_path / "float.tif")
    for name in ("text.png", "empty.jpg", "cut.jpg", "float.tif", "missing.png"):
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no images"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match="no such folder"):
        find_images(tmp_path / "nowhere")
    for name in ("b/2.PNG", "a/1.jpg", "a/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name in ("a/._1.jpg", ".previews/1.jpg"):  # systems put them beside images
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.name for path in find_images(tmp_path)] == ["1.jpg", "2.PNG"]
    assert [path.name for path in find_images(tmp_path / ".previews")] == ["1.jpg"]
    assert [path.name for path in expand_paths([tmp_path / "b", tmp_path / "a/1.jpg"])] == ["2.PNG", "1.jpg"]


def test_fit_keeps_the_center() -> None:
    image = torch.zeros(1, 3, 16, 64)
    image[:, :, :, 24:40] = 1
    assert torch.equal(fit_images(image, 16), torch.ones(1, 3, 16, 16))
    shrunk = fit_images(image, 8)
    assert shrunk.shape == (1, 3, 8, 8)
    assert float(shrunk[..., 2:6].min()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (17, 16), (9, 30)])
def test_fit_is_a_clipped_bicubic_resize_of_the_middle(size: tuple[int, int]) -> None:
    """Of stripes, which a bicubic filter overshoots; beside PIL, along and across."""
    stripes = np.random.default_rng(4).integers(0, 2, (8, 1, 3)).repeat(5, 0).repeat(40, 1).astype(np.uint8) * 255
    scale = 16 / min(size)
    height, width = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - 16) // 2, (width - 16) // 2
    for turned in (stripes, stripes.transpose(1, 0, 2)):
        pixels = np.ascontiguousarray(turned[: size[0], : size[1]])
        fitted = fit_images(load_image(pixels), 16)
        whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        want = load_image(whole.crop((left, top, left + 16, top + 16)))
        assert float((fitted - want).abs().max()) <= RESIZE_ABS
        assert float(fitted.abs().max()) <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.full((1, 3, 8, 8), 2.0),
        torch.full((1, 3, 8, 8), torch.nan),
    ],
)
def test_tensors_that_are_no_images(wrong: torch.Tensor) -> None:
    with pytest.raises(ImageError):
        check_images(wrong)


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "sheet.png"
    image = Image.fromarray(gradient())
    save_image(image, target)
    assert np.array_equal(np.asarray(Image.open(target)), gradient())
    assert [path.name for path in target.parent.iterdir()] == ["sheet.png"]
    with pytest.raises(ImageError, match="names no image format"):
        save_image(image, tmp_path / "sheet.xyz")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        save_image(image, tmp_path / "file" / "sheet.png")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(gradient())
    save_image(image, tmp_path / "sheet.png")
    before = (tmp_path / "sheet.png").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match=r"sheet.png: cannot be written \(No space left"):
        save_image(image, tmp_path / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert (tmp_path / "sheet.png").read_bytes() == before


def test_sheet_layout() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (64, 32), "blue")
    sheet = image_sheet([[red, blue], [blue]], cell=32, gap=2, group_gaps=[1])
    pixels = np.asarray(sheet)
    assert (pixels == [255, 0, 0]).all(axis=2).sum() == 32 * 32
    assert (pixels == [0, 0, 255]).all(axis=2).sum() == 2 * 32 * 32
    with pytest.raises(ImageError, match="at least one row"):
        image_sheet([], cell=8)


def test_titles_of_a_sheet_keep_to_their_columns() -> None:
    """A long title is broken where the next one begins; where none follows it may run on."""
    white = Image.new("RGB", (8, 8), "white")
    titles = ("short", "quite a long title for a column", "next")
    sheet = np.asarray(image_sheet([[white] * 3], cell=60, column_titles=titles).convert("L"))
    assert (sheet[:, 122:126] == 255).all(), "ink between the second title and the third"
    assert sheet.shape[0] > 62 + 3 * 12
    alone = np.asarray(image_sheet([[white] * 3], cell=60, column_titles=("a long title, alone",)).convert("L"))
    assert alone.shape[0] < 62 + 2 * 12
    assert (alone[:, 70:] < 255).any()


def test_a_cell_of_a_sheet_lies_where_its_row_and_column_say() -> None:
    """Wide gaps before a group; small images keep their pixels, larger ones are reduced smoothly."""
    colors = [[(10 * row + 1, 10 * column + 1, 0) for column in range(3)] for row in range(2)]
    rows = [[Image.new("RGB", (4, 4), each) for each in row] for row in colors]
    plain = np.asarray(image_sheet(rows, cell=10, gap=3))
    grouped = np.asarray(image_sheet(rows, cell=10, gap=3, group_gaps=[2]))
    assert grouped.shape[1] - plain.shape[1] == 4 * 3
    top = int((plain[:, 5] != 255).any(axis=1).argmax())
    for row in range(2):
        for column in range(3):
            y, x = top + 13 * row, 3 + 13 * column
            assert (plain[y : y + 10, x : x + 10] == colors[row][column]).all()
            x += 12 if column == 2 else 0
            assert (grouped[y : y + 10, x : x + 10] == colors[row][column]).all()
    board = Image.fromarray((np.indices((4, 4)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    enlarged = np.asarray(image_sheet([[board]], cell=16, gap=2))[-18:-2, 2:18, 0]
    assert (enlarged == np.kron(np.asarray(board)[..., 0], np.ones((4, 4)))).all()
    fine = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    reduced = np.asarray(image_sheet([[fine]], cell=16, gap=2))[-16:-4, 4:16, 0].astype(int)
    assert np.abs(reduced - 127).max() < 12


def test_every_row_of_a_sheet_has_its_own_title() -> None:
    white = Image.new("RGB", (8, 8), "white")
    ink = [
        (np.asarray(image_sheet([[white]] * 2, cell=40, row_titles=titles).convert("L")) < 255)
        for titles in (("WWW", ""), ("", "WWW"), ("WWW",), ("WWW", "i"))
    ]
    half = ink[0].shape[0] // 2
    assert [bool(each[:half].any()) for each in ink] == [True, False, True, True]
    assert [bool(each[half:].any()) for each in ink] == [False, True, False, True]
    assert ink[3][half:].sum() < ink[3][:half].sum()
