"""Squares cut out of resized images: equal to resizing everything, and not dearer than the square."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import resizing
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import preprocess
from rcdm_fast.images import fit_images, load_image, to_uint8
from tests.tolerances import CROP_FIRST_ABS, HUGE_BYTES, STRIP_BYTES

ROOT = Path(__file__).resolve().parents[1]

FILTERS: tuple[resizing.Filter, ...] = ("bilinear", "bicubic", "area")


def whole(images: Tensor, shape: tuple[int, int], filter: str) -> Tensor:
    """Everything resized by PyTorch, in float64: in float32 it is off by 1e-3 pixels at the end of a long line."""
    if filter == "area":
        return F.interpolate(images.double(), shape, mode="area")
    return F.interpolate(images.double(), shape, mode=filter, align_corners=False, antialias=True)


def noise(height: int, width: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width) * 1.6 - 0.9


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(
    ("size", "shape", "corner"),
    [
        ((8, 900), (64, 7200), (3, 3571)),  # enlarged, odd corner
        ((900, 8), (7200, 64), (7150, 0)),  # the end of the long side
        ((33, 1501), (20, 909), (1, 0)),  # reduced, the beginning
        ((1501, 33), (909, 20), (880, 2)),
        ((40, 3000), (16, 1200), (0, 592)),
        ((40, 3000), (40, 1200), (11, 592)),  # one side as it is
        ((50, 51), (300, 17), (101, 1)),  # enlarged and reduced
    ],
)
def test_equal_to_resizing_everything(
    filter: resizing.Filter, size: tuple[int, int], shape: tuple[int, int], corner: tuple[int, int]
) -> None:
    images = noise(*size, count=2).flip(3)[..., :].contiguous(memory_format=torch.channels_last)
    want = whole(images, shape, filter)[..., corner[0] : corner[0] + 16, corner[1] : corner[1] + 16]
    found = resizing.cropped(images, shape, corner, 16, filter)
    assert found.dtype == torch.float32
    assert float((found - want).abs().max()) <= CROP_FIRST_ABS


@pytest.mark.parametrize("filter", FILTERS)
def test_ordinary_images_have_the_bits_of_pytorch(filter: resizing.Filter) -> None:
    images = noise(97, 131)
    resized = (
        F.interpolate(images, (40, 54), mode="area")
        if filter == "area"
        else F.interpolate(images, (40, 54), mode=filter, align_corners=False, antialias=True)
    )
    assert torch.equal(resizing.cropped(images, (40, 54), (4, 11), 32, filter), resized[..., 4:36, 11:43])


@pytest.mark.parametrize("length", [*range(2, 150), 427, 640, 4001])
def test_halves_are_those_of_pils_box_filter(length: int) -> None:
    """In floating point, both directions: an odd number of pixels has boxes of three, and centers on their edges."""
    line = np.random.default_rng(length).random((1, length), dtype=np.float32)
    want = torch.from_numpy(np.array(Image.fromarray(line).resize((length // 2, 1), Image.Resampling.BOX)))
    row = torch.from_numpy(line)[None, None]
    torch.testing.assert_close(resizing.halved(row, -1)[0, 0], want)
    torch.testing.assert_close(resizing.halved(row.mT, 2)[0, 0], want.mT)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "area", "box_bicubic"])
@pytest.mark.parametrize("size", [(9, 700), (700, 9), (60, 80), (32, 32), (24, 24)])
def test_views_and_fits_keep_only_themselves(interpolation: str, size: tuple[int, int]) -> None:
    images = noise(*size)
    config = EncoderConfig("module", image_size=24, resize_to=32, interpolation=interpolation)  # type: ignore[arg-type]
    for seen in (preprocess.view(images, config), fit_images(images, 24)):
        assert seen.shape == (1, 3, 24, 24)
        assert seen.untyped_storage().nbytes() == 4 * 3 * 24 * 24
        assert float(seen.abs().max()) <= 1


def test_gradients_pass_through_a_crop_of_a_strip() -> None:
    images = noise(8, 400).requires_grad_()
    (gradient,) = torch.autograd.grad(fit_images(images, 16).sum(), images)
    columns = gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    assert 190 <= int(columns.min()) < int(columns.max()) <= 210


def test_a_long_strip_shows_its_middle_not_its_mean(tmp_path: Path) -> None:
    """60000 x 8 with a white square in the middle: reduced to one row of pixels, it would be gray."""
    levels = torch.zeros(8, 60000, dtype=torch.uint8)
    levels[:, 29996:30004] = 255
    seen = to_uint8(fit_images(load_image(levels.numpy()), 64))
    assert int(seen[..., 16:48].min()) >= 250
    assert load_image(levels.numpy()).shape == (1, 3, 8, 60000)


_STRIPS = """
import sys
from PIL import Image
import torch
from rcdm_fast.images import MAX_SIDE, fit_images, load_image, open_image, to_uint8, to_uint8_array
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import build
from tests import peak
torch.set_num_threads(1)
encoder = build(lambda x: x.mean((2, 3)), config=EncoderConfig("module", image_size=224, resize_to=256))
def draw(size):
    Image.new("RGB", size, (9, 99, 199)).save(sys.argv[1])
    kept = [encoder.view(load_image(sys.argv[1])), fit_images(load_image(sys.argv[1]), 64)]
    kept.append(load_image(to_uint8_array(open_image(sys.argv[1]), 224)))
    assert all(to_uint8(each).flatten(2).unique(dim=2).flatten().tolist() == [9, 99, 199] for each in kept), size
draw((640, 480))
before = peak.begin()
for size in ((20000, 8), (60000, 8), (8, 60000), (1000000, 9)):
    draw(size)
print(peak.bytes_held() - before)
"""


@pytest.mark.long
def test_strips_cost_little_memory(tmp_path: Path) -> None:
    """In a process of its own, above what an ordinary photograph costs there."""
    command = [sys.executable, "-W", "error", "-c", _STRIPS, str(tmp_path / "strip.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) <= STRIP_BYTES


_HUGE = """
import sys, torch
from rcdm_fast.images import MAX_SIDE, load_image
from tests import peak
torch.set_num_threads(1)
before = peak.begin()
loaded = load_image(sys.argv[1])
assert max(loaded.shape) <= MAX_SIDE, loaded.shape
print(peak.bytes_held() - before)
"""


@pytest.mark.long
def test_an_image_of_169_megapixels_is_reduced_on_the_way(tmp_path: Path) -> None:
    """Black and white it is one byte a pixel when decoded; turned, as RGB and as floats it would be 4 GB."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("1", (13000, 13000)).save(tmp_path / "huge.png", exif=exif)
    command = [sys.executable, "-W", "error", "-c", _HUGE, str(tmp_path / "huge.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) <= HUGE_BYTES
