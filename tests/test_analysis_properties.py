"""Augmentations and properties, against images whose numbers are known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import augment, properties
from rcdm_fast.analysis.augment import AUGMENTATIONS
from rcdm_fast.analysis.properties import PROPERTIES
from rcdm_fast.config import ConfigError
from rcdm_fast.data.world import World
from rcdm_fast.images import ImageError, from_uint8, to_pil
from tests import small


def square(top: int = 12, left: int = 12, side: int = 8, size: int = 32) -> Tensor:
    """A light square on dark gray-blue."""
    image = torch.tensor([-0.5, -0.5, -0.4])[:, None, None].expand(3, size, size).clone()
    image[:, top : top + side, left : left + side] = torch.tensor([0.6, 0.5, 0.2])[:, None, None]
    return image[None]


def stripes(degrees: float, size: int = 32) -> Tensor:
    """Gray waves whose lines run at an angle, counterclockwise from the horizontal."""
    y, x = torch.meshgrid(torch.arange(size) - 15.5, torch.arange(size) - 15.5, indexing="ij")
    angle = math.radians(degrees)
    across = x * math.sin(angle) + y * math.cos(angle)
    return (0.7 * torch.sin(across * 0.6)).expand(1, 3, -1, -1)


def value(name: str, images: Tensor) -> float:
    return float(PROPERTIES[name](images)[0])


def changed(augmentation: str, magnitude: float, images: Tensor) -> float:
    each = AUGMENTATIONS[augmentation]
    prop = PROPERTIES[each.changes]
    before, after = prop(images), prop(each(images, magnitude))
    return float(prop.change(before[:, None], after[:, None])[0])


@pytest.mark.parametrize("fraction", [-0.25, -0.125, 0.125, 0.25])
def test_a_square_moves_by_exactly_the_shift(fraction: float) -> None:
    assert changed("shift-x", fraction, square()) == pytest.approx(fraction, abs=1e-6)
    assert changed("shift-y", fraction, square()) == pytest.approx(fraction, abs=1e-6)
    assert value("mass-x", AUGMENTATIONS["shift-y"](square(), fraction)) == pytest.approx(0, abs=1e-6)
    assert value("mass-y", square(top=16, left=12)) == pytest.approx(4 / 32, abs=1e-6)  # downwards is positive


def test_the_size_of_a_square_is_its_side_and_grows_with_the_zoom() -> None:
    assert value("scale", square()) == pytest.approx(8 / 32, abs=1e-6)
    for factor in (0.6, 0.8, 1.25, 1.6):
        assert value("scale", AUGMENTATIONS["zoom"](square(), factor)) == pytest.approx(factor * 8 / 32, abs=0.5 / 32)
    assert value("scale", torch.full((1, 3, 32, 32), 0.3)) == pytest.approx(1)


def test_a_noisy_ground_hides_no_object() -> None:
    """Noise of up to 0.1 in RGB's distance; without a floor the size was 0.60 and the place 0.13 instead of 0.25."""
    generator = torch.Generator().manual_seed(0)
    noise = (torch.rand(1, 3, 32, 32, generator=generator) - 0.5) * 0.23
    noisy = (square(top=20) + noise).clamp(-1, 1)
    assert value("scale", noisy) == pytest.approx(8 / 32, rel=0.05)
    assert value("mass-y", noisy) == pytest.approx(8 / 32, abs=0.005)


@pytest.mark.parametrize(
    ("name", "factor", "least"), [("scale", "size", 0.95), ("mass-x", "x", 0.99), ("mass-y", "y", 0.99)]
)
def test_properties_follow_the_factors_of_a_world(name: str, factor: str, least: float) -> None:
    """Renders of `world:shapes`, where the truth is known."""
    world = World(count=300)
    true = world.factors(range(300))[:, world.names.index(factor)].numpy()
    read = PROPERTIES[name](from_uint8(world.pixels(range(300)))).numpy()
    assert np.corrcoef(true, read)[0, 1] >= least
    assert np.polyfit(true, read, 1)[0] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("degrees", [-90.0, -45.0, 30.0, 45.0, 90.0, 170.0])
def test_turning_the_hue_turns_the_mean_hue_by_that_angle(degrees: float) -> None:
    image = small.make_images(1, size=16, seed=4)
    assert changed("hue", degrees, image) == pytest.approx(degrees, abs=1e-3)
    turned = AUGMENTATIONS["hue"](image, degrees)
    assert value("saturation", turned) == pytest.approx(value("saturation", image), abs=1e-6)


@pytest.mark.parametrize(
    ("color", "degrees"),
    [((1, -1, -1), 0), ((1, 1, -1), 60), ((-1, 1, -1), 120), ((-1, 1, 1), 180), ((-1, -1, 1), -120), ((1, -1, 1), -60)],
)
def test_hues_of_pure_colors(color: tuple[int, int, int], degrees: float) -> None:
    image = torch.tensor(color, dtype=torch.float32)[None, :, None, None].expand(1, 3, 8, 8)
    read = PROPERTIES["hue"](image)
    assert float(PROPERTIES["hue"].degrees(read)[0]) == pytest.approx(degrees, abs=1e-9) or degrees == 180
    assert abs(float(PROPERTIES["hue"].degrees(read)[0])) == pytest.approx(abs(degrees), abs=1e-9)
    assert float(read.abs()) == pytest.approx(1)
    green = AUGMENTATIONS["hue"](image, 120 - degrees)
    torch.testing.assert_close(green[0, :, 0, 0], torch.tensor([-1.0, 1.0, -1.0]), atol=1e-5, rtol=0)


def test_a_gray_image_has_no_hue_and_a_flat_one_no_direction() -> None:
    gray = AUGMENTATIONS["grayscale"](small.make_images(1, size=16), 1.0)
    assert float(PROPERTIES["hue"](gray).abs()) < 1e-6
    assert value("saturation", gray) < 1e-6
    assert float(PROPERTIES["orientation"](torch.zeros(1, 3, 16, 16)).abs()) == 0


@pytest.mark.parametrize("amount", [0.0, 0.33, 1.0])
def test_gray_takes_its_share_of_the_saturation_and_no_brightness(amount: float) -> None:
    image = small.make_images(1, size=16, seed=2)
    gray = AUGMENTATIONS["grayscale"](image, amount)
    assert value("saturation", gray) == pytest.approx((1 - amount) * value("saturation", image), abs=1e-6)
    assert value("brightness", gray) == pytest.approx(value("brightness", image), abs=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 25.0, 60.0, 90.0, 135.0])
def test_the_direction_of_stripes(degrees: float) -> None:
    read = PROPERTIES["orientation"](stripes(degrees))
    off = (float(PROPERTIES["orientation"].degrees(read)[0]) - degrees + 90) % 180 - 90
    assert abs(off) < 2
    assert 0.95 < float(read.abs()[0]) < 1 + 1e-9


@pytest.mark.parametrize("degrees", [-40.0, -20.0, 20.0, 40.0])
def test_turning_an_image_turns_its_lines(degrees: float) -> None:
    assert changed("rotation", degrees, stripes(30)) == pytest.approx(degrees, abs=2)


def test_an_image_is_turned_counterclockwise() -> None:
    at_the_top = square(top=2, left=12)
    turned = AUGMENTATIONS["rotation"](at_the_top, 90)
    torch.testing.assert_close(turned, torch.rot90(at_the_top, 1, (2, 3)), atol=1e-5, rtol=0)


def test_brightness_doubles_and_highlights_fall() -> None:
    dark = square() * 0.3 - 0.5
    assert value("brightness", AUGMENTATIONS["brightness"](dark, 2)) == pytest.approx(2 * value("brightness", dark))
    half = torch.full((1, 3, 8, 8), 0.5)  # 3/4 of the way from black to white
    assert value("highlights", half) == pytest.approx(0.5)
    assert value("highlights", AUGMENTATIONS["solarize"](half, 0.6)) == 0
    assert value("highlights", AUGMENTATIONS["solarize"](half, 0.8)) == pytest.approx(0.5)


def test_mirroring_changes_the_sign_of_the_asymmetry() -> None:
    image = small.make_images(1, size=16, seed=6)
    assert abs(value("asymmetry", image)) > 0.02
    assert value("asymmetry", image.flip(3)) == pytest.approx(-value("asymmetry", image))
    halves = torch.cat([torch.full((1, 3, 8, 4), -1.0), torch.full((1, 3, 8, 4), 1.0)], dim=3)
    assert value("asymmetry", halves) == pytest.approx(1)


def test_blur_takes_detail() -> None:
    noisy = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    values = [value("sharpness", AUGMENTATIONS["blur"](noisy, fraction)) for fraction in (0, 0.02, 0.04, 0.08)]
    assert values == sorted(values, reverse=True)
    assert values[3] < 0.2 * values[0]
    assert value("sharpness", torch.full((1, 3, 32, 32), 0.4)) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(AUGMENTATIONS["blur"](noisy, 0.04).mean(), noisy.mean(), atol=5e-3, rtol=0)


NOTHING = {"flip": 0.0, "zoom": 1.0, "brightness": 1.0, "solarize": 1.0}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_keeps_shape_range_and_has_a_magnitude_that_changes_nothing(name: str) -> None:
    each = AUGMENTATIONS[name]
    noise = torch.rand(3, 3, 24, 20, generator=torch.Generator().manual_seed(0)) - 0.5
    images = (small.make_images(3, size=24)[..., :20] + noise).clamp(-1, 1)
    assert NOTHING.get(name, 0.0) not in each.magnitudes
    torch.testing.assert_close(each(images, NOTHING.get(name, 0.0)), images, atol=2e-6, rtol=0)
    prop = PROPERTIES[each.changes]
    for magnitude in each.magnitudes:
        changed_images = each(images, magnitude)
        assert changed_images.shape == images.shape
        assert changed_images.dtype == torch.float32
        assert float(changed_images.abs().max()) <= 1
        change = prop.change(prop(images)[:, None], prop(changed_images)[:, None])
        assert float(change.abs().max()) > 1e-3
        torch.testing.assert_close(each(images[1:2], magnitude), changed_images[1:2])


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_is_one_number_per_image_whatever_the_batch(name: str) -> None:
    images = small.make_images(4, size=16)
    read = PROPERTIES[name](images)
    assert read.shape == (4,)
    assert read.dtype == (torch.float64 if PROPERTIES[name].period is None else torch.complex128)
    torch.testing.assert_close(PROPERTIES[name](images[2:3]), read[2:3])


def test_wrong_magnitudes_names_and_images() -> None:
    image = small.make_images(1)
    for name, magnitude in (("flip", 0.5), ("zoom", 0.0), ("grayscale", 1.5), ("brightness", -1.0), ("blur", -0.1)):
        with pytest.raises(ConfigError):
            AUGMENTATIONS[name](image, magnitude)
    with pytest.raises(ConfigError, match="must be a number"):
        AUGMENTATIONS["hue"](image, math.nan)
    with pytest.raises(ConfigError, match="known: flip"):
        augment.find(["twist"])
    with pytest.raises(ConfigError, match="twice"):
        augment.find(["hue", "hue"])
    with pytest.raises(ConfigError, match="known: asymmetry"):
        properties.find("charm")
    with pytest.raises(ImageError):
        AUGMENTATIONS["hue"](image * 2, 10)
    with pytest.raises(ImageError):
        PROPERTIES["hue"](image[0])


@pytest.mark.parametrize(("top", "left"), [(20, 4), (4, 20), (0, 12), (22, 22)])
def test_the_size_of_a_square_does_not_depend_on_its_place(top: int, left: int) -> None:
    image = torch.full((1, 3, 34, 34), -0.5)
    image[:, :, top + 1 : top + 9, left + 1 : left + 9] = 0.6
    assert value("scale", image) == pytest.approx(8 / 34, abs=1e-6)


@pytest.mark.parametrize("fraction", [0.02, 0.05])
def test_a_blur_is_as_wide_as_it_says(fraction: float) -> None:
    """A point becomes a bell whose standard deviation is that fraction of the width."""
    point = torch.full((1, 3, 64, 64), -1.0)
    point[:, :, 32, 32] = 1.0
    bell = (AUGMENTATIONS["blur"](point, fraction)[0, 0].double() + 1).sum(dim=0)
    places = torch.arange(64).double() - 32
    spread = float((bell * places.square()).sum() / bell.sum()) ** 0.5
    assert spread == pytest.approx(fraction * 64, rel=0.03)


def test_white_stays_white_where_nothing_is_above_the_threshold() -> None:
    white, level = torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    assert torch.equal(AUGMENTATIONS["solarize"](white, 1.0), white)
    assert torch.equal(AUGMENTATIONS["solarize"](level, 0.75), level)
    assert torch.equal(AUGMENTATIONS["solarize"](level, 0.74), -level)


def test_augmentations_come_in_the_order_in_which_they_are_asked_for() -> None:
    assert [each.name for each in augment.find(["solarize", "flip", "hue"])] == ["solarize", "flip", "hue"]
    assert [each.name for each in augment.find()] == list(AUGMENTATIONS)


def test_luminance_is_that_of_pillow() -> None:
    image = small.make_images(1, size=16, seed=8)
    gray = to_pil(image[0]).convert("L")
    torch.testing.assert_close(
        (augment.luminance(image)[0, 0] + 1) * 127.5, torch.tensor(np.asarray(gray)).float(), atol=1, rtol=0
    )


def test_the_middle_of_an_odd_width_is_in_neither_half() -> None:
    image = torch.full((1, 3, 5, 5), -1.0)
    image[..., 2:] = 1.0
    assert value("asymmetry", image) == pytest.approx(1)
    assert value("asymmetry", image.flip(3)) == pytest.approx(-1)


@pytest.mark.parametrize("turned", [False, True])
def test_lines_outside_the_disc_of_the_shorter_side_do_not_count(turned: bool) -> None:
    """Level lines in the middle of a long image, upright ones at its ends."""
    image = torch.zeros(1, 3, 16, 64)
    image[..., 1::2, 18:46] = 0.5
    image[..., 2::4, 18:46] = -0.3
    clean = PROPERTIES["orientation"](image.transpose(2, 3) if turned else image)
    image[..., :16] = (torch.arange(16) % 4 - 1.5) / 3
    image[..., 48:] = (torch.arange(16) % 4 - 1.5) / 3
    ends = PROPERTIES["orientation"](image.transpose(2, 3) if turned else image)
    torch.testing.assert_close(ends, clean)
    degrees = abs(float(PROPERTIES["orientation"].degrees(ends)[0]))
    assert degrees == pytest.approx(90 if turned else 0, abs=1e-6)


def test_a_change_of_direction_counts_by_both_lengths() -> None:
    hue = PROPERTIES["hue"]
    before = torch.tensor([[1.0, 0.5, 2.0]]).to(torch.complex128)
    turns = torch.tensor([[30.0, -60.0, 90.0]]).double().deg2rad()
    after = torch.polar(torch.tensor([[1.0, 4.0, 0.1]]).double(), turns)
    together = np.exp(1j * turns.numpy()) @ np.array([1.0, 2.0, 0.2])
    assert float(hue.change(before, after)) == pytest.approx(np.angle(together, deg=True)[0])
    assert hue.strength(after).tolist() == [pytest.approx([1, 4, 0.1])]
    assert PROPERTIES["scale"].strength(turns).tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match="brightness is not circular"):
        PROPERTIES["brightness"].degrees(turns)


def test_detail_is_what_a_blur_of_a_thirty_second_of_the_width_takes() -> None:
    """Of a wave of w radians a pixel a Gaussian of deviation s leaves exp(-s^2 w^2 / 2)."""
    size, turns = 64, 8
    wave = 0.5 * torch.cos(2 * math.pi * turns * torch.arange(size) / size)
    image = wave.expand(1, 3, size, -1)
    w = 2 * math.pi * turns / size
    want = 0.25 * math.sqrt(0.5) * (1 - math.exp(-((size / 32) ** 2) * w**2 / 2))
    assert value("sharpness", image) == pytest.approx(want, rel=0.05)
