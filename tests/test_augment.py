"""Random views for pre-training: crops, flips and colors."""

from __future__ import annotations

import math

import pytest
import torch

from rcdm_fast.images import check_images
from rcdm_fast.training.augment import _RGB_TO_YIQ, AugmentConfig, random_color, random_crop_flip, random_views
from tests import small


def test_views_are_images_and_differ(generator: torch.Generator) -> None:
    images = small.make_images(16, 32)
    views = random_views(images, AugmentConfig(), generator)
    check_images(views)
    assert views.shape == images.shape
    assert all(not torch.equal(view, image) for view, image in zip(views, images, strict=True))


def test_gray_and_identity_augmentation(generator: torch.Generator) -> None:
    images = small.make_images(4, 16)
    still = random_color(images, AugmentConfig(jitter=0.0, gray=0.0), generator)
    torch.testing.assert_close(still, images, atol=1e-6, rtol=0)
    gray = random_color(images, AugmentConfig(jitter=0.0, gray=1.0), generator)
    torch.testing.assert_close(gray[:, 0], gray[:, 2], atol=1e-6, rtol=0)
    whole = random_crop_flip(images, 1.0, generator)
    assert whole.shape == images.shape


def test_colors_change_as_by_one_operation_after_another(generator: torch.Generator) -> None:
    """Brightness, contrast around the mean gray, saturation, hue in YIQ; too little to pass any bound."""
    images = small.make_images(6, 8) * 0.2
    config = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.2, jitter=1.0, gray=0.0)
    drawn = torch.Generator()
    drawn.set_state(generator.get_state())
    found = random_color(images, config, generator)
    luma, to_yiq = torch.tensor([0.299, 0.587, 0.114]), torch.tensor(_RGB_TO_YIQ)
    numbers = [torch.rand(6, generator=drawn) for _ in range(4)]
    bright, contrast, saturation = (0.7 + 0.6 * each for each in numbers[:3])
    for place, image in enumerate(images):
        pixels = (image.flatten(1).T + 1) / 2 * bright[place]  # [64,3]
        pixels = contrast[place] * pixels + (1 - contrast[place]) * (pixels @ luma).mean()
        pixels = saturation[place] * pixels + (1 - saturation[place]) * (pixels @ luma)[:, None]
        yiq = pixels @ to_yiq.T
        turned = torch.polar(torch.tensor(1.0), 2 * math.pi * (0.4 * numbers[3][place] - 0.2))
        yiq[:, 1:] = torch.view_as_real(torch.complex(yiq[:, 1], yiq[:, 2]) * turned)
        want = yiq @ torch.linalg.inv(to_yiq).T
        assert 0 < float(want.min()) < float(want.max()) < 1
        torch.testing.assert_close(found[place].flatten(1).T, want * 2 - 1, atol=1e-5, rtol=0)


def test_crops_are_wide_and_tall_within_their_bounds(generator: torch.Generator) -> None:
    """Two ramps: their ends are where a crop's are, so that its sides, and with them its area and aspect, are known."""
    places = torch.linspace(-1, 1, 64)
    ramps = torch.stack([places.expand(64, 64), places[:, None].expand(64, 64), torch.zeros(64, 64)])
    crops = random_crop_flip(ramps.expand(512, 3, 64, 64), 0.2, generator, 0.4)
    width, height = (
        (crops[:, channel].amax(dim=(1, 2)) - crops[:, channel].amin(dim=(1, 2))) / 2 for channel in (0, 1)
    )
    aspect, area = width / height, width * height
    assert 0.75 - 0.03 < float(aspect.min()) < 0.77
    assert 1.30 < float(aspect.max()) < 4 / 3 + 0.03
    assert float(aspect.log().mean()) == pytest.approx(0, abs=0.03)  # wide as often as tall
    assert 0.2 - 0.02 < float(area.min()) < 0.22
    assert 0.38 < float(area.max()) < 0.4 + 0.02
    rightwards = crops[:, 0, 0, -1] > crops[:, 0, 0, 0]
    assert 0.4 < float(rightwards.float().mean()) < 0.6  # mirrored in half of the cases
    assert bool((crops[:, 1, -1, 0] > crops[:, 1, 0, 0]).all())  # and never upside down


def test_gray_images_are_no_others_than_any(generator: torch.Generator) -> None:
    """Whether an image loses its color says nothing about whether its color was changed before."""
    images = small.make_images(1, 4).expand(2000, 3, 4, 4)
    seen = random_color(images, AugmentConfig(jitter=0.6, gray=0.3), generator)
    luma = torch.tensor([0.299, 0.587, 0.114])
    gray = (seen - seen.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-4
    kept = (torch.einsum("nchw,c->nhw", seen - images, luma)).abs().amax(dim=(1, 2)) < 1e-4  # brightness and contrast
    for first, second, want in ((gray, kept, 0.12), (gray, ~kept, 0.18), (~gray, kept, 0.28), (~gray, ~kept, 0.42)):
        assert float((first & second).float().mean()) == pytest.approx(want, abs=0.03)


def test_views_are_cropped_as_the_settings_say(generator: torch.Generator) -> None:
    ramp = torch.linspace(-1, 1, 32).expand(64, 3, 32, 32).contiguous()
    for scale in (0.02, 1.0):
        views = random_views(ramp, AugmentConfig(min_scale=scale, jitter=0.0, gray=0.0), generator)
        width = (views.amax(dim=(1, 2, 3)) - views.amin(dim=(1, 2, 3))) / 2
        assert (float(width.min()) > 0.75**0.5 - 0.05) is (scale == 1)
        assert (float(width.min()) < 0.35) is (scale < 1)  # a fifth of the area is at least 0.387 wide
