"""What encoders see, beside the transforms of the libraries that they come from: the same pixels of a photograph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torch import Tensor

from rcdm_fast import config as configs
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import EncoderError, ImageEncoder, build, preprocess
from rcdm_fast.encoders.processors import read_convention
from rcdm_fast.encoders.sources import Source
from rcdm_fast.encoders.timm_models import _convention
from rcdm_fast.images import load_image
from rcdm_fast.model import Model
from tests import small
from tests.tolerances import VIEW_LEVELS, VIEW_MEAN_LEVELS

# Long sides that int and round take differently, crops that are half a pixel off the middle, both ways up, and the
# encoder's own size.
SIZES = ((768, 512), (640, 427), (427, 640), (641, 481), (480, 640), (333, 1000), (224, 224), (225, 224), (97, 50))
Seen = Callable[[Image.Image], Tensor]


def photograph(width: int, height: int) -> Image.Image:
    """Waves a few pixels long, as fine as survive resizing: one pixel off, the mean difference is several levels."""
    y, x = np.mgrid[0:height, 0:width] * (1000 / min(width, height) / 4)
    waves = [128 + 90 * np.sin(x / 9), 128 + 90 * np.cos(y / 7), 128 + 80 * np.sin((x + y) / 8)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def check(config: EncoderConfig, theirs: Seen, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """`theirs` gives normalized pixels [3,s,s]; compared in 8-bit levels."""
    std = torch.tensor(config.std)[:, None, None]
    for size in sizes:
        photo = photograph(*size)
        ours = preprocess.normalize(preprocess.view(load_image(photo), config), config)[0]
        want = theirs(photo)
        assert ours.shape == want.shape, size
        apart = ((ours - want) * std * 255).abs()
        assert float(apart.mean()) <= VIEW_MEAN_LEVELS, (size, float(apart.mean()))
        assert float(apart.max()) <= VIEW_LEVELS, (size, float(apart.max()))


class Described:
    """A timm model as far as its transform is concerned."""

    def __init__(self, name: str, **changes: Any) -> None:
        self.pretrained_cfg = {**timm.get_pretrained_cfg(name).to_dict(), **changes}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet50.a1_in1k", {}),  # 0.95, bicubic
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", {}),  # 0.9
        ("resnet18.tv_in1k", {}),  # 0.875, bilinear
        ("test_vit.r160_in1k", {}),
        ("resnet50.a1_in1k", {"crop_mode": "squash"}),
        ("resnet50.a1_in1k", {"input_size": (3, 223, 223), "crop_pct": 0.93}),
    ],
)
def test_timm(name: str, changes: dict[str, Any]) -> None:
    model = Described(name, **changes)
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    check(_convention(timm, Source("timm", name, {}), model, {}), transform)


@pytest.mark.parametrize("size", [160, 192, 97])
def test_timm_at_another_size(size: int) -> None:
    """timm divides by the fraction of the crop at the size that is asked for; what was divided does not scale."""
    model = Described("resnet50.a1_in1k")
    data = timm.data.resolve_model_data_config(model) | {"input_size": (3, size, size)}
    transform = timm.data.create_transform(**data, is_training=False)
    encoder = build(f"timm:resnet18.a1_in1k?image_size={size}")
    assert encoder.config.resize_to == int(size / data["crop_pct"])
    check(encoder.config, transform)


def test_timm_models_that_pad_are_refused() -> None:
    for name, changes in (("resnet50.a1_in1k", {"crop_mode": "border"}), ("volo_d4_448.sail_in1k", {})):
        model = Described(name, **changes)
        with pytest.raises(EncoderError, match=r"pads images.*resize=short_side"):
            _convention(timm, Source("timm", name, {}), model, {})
        stated = {"resize": "squash", "resize_to": 448}
        assert _convention(timm, Source("timm", name, {}), model, stated).resize_to >= 224


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "efficientnet_b1", "inception_v3", "vit_b_16", "swin_t"])
def test_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rcdm_fast.encoders.torchvision_models import _convention

    for weights in torchvision.models.get_model_weights(name):
        convention = _convention(torchvision.models, Source("torchvision", name, {}), weights, None)
        check(convention, weights.transforms())


def test_torchhub_repositories_use_torchvision() -> None:
    from rcdm_fast.encoders import torchhub

    convention = torchhub.convention("torchhub:somebody/repository:network")
    preset = torchvision.transforms._presets.ImageClassification(
        crop_size=224, resize_size=256, interpolation=torchvision.transforms.InterpolationMode.BICUBIC
    )
    check(convention, preset)


PROCESSORS: list[tuple[Any, dict[str, Any]]] = [
    (transformers.BitImageProcessor, {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
    (transformers.BitImageProcessor, {"size": {"shortest_edge": 235}, "crop_size": {"height": 224, "width": 224}}),
    (transformers.CLIPImageProcessor, {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}),
    (transformers.ViTImageProcessor, {"size": {"height": 224, "width": 224}}),
    (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 224}}),
    (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 384}}),
]


@pytest.mark.parametrize(("kind", "options"), PROCESSORS)
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_transformers(kind: Any, options: dict[str, Any], backend: str) -> None:
    if backend == "pil":
        kind = getattr(transformers, f"{kind.__name__}Pil", None)
        if kind is None:  # other versions of transformers
            pytest.skip("no processor on Pillow")
    processor = kind(**options)
    convention = read_convention(Source("transformers", "x", {}), processor.to_dict())

    def theirs(photo: Image.Image) -> Tensor:
        found: Tensor = processor(photo, return_tensors="pt")["pixel_values"][0]
        return found

    check(convention, theirs)


def test_a_photograph_of_the_encoders_size_is_like_any_other(tmp_path: Path) -> None:
    """As a file or a PIL image it goes through the family's transform; a tensor of that size is a view already."""
    convention = EncoderConfig("module", image_size=32, resize_to=40, rounding="torchvision")
    encoder = ImageEncoder(small.MeanColor(), convention)
    model = Model.from_network(small.network(), small.SCHEDULE, encoder)
    photo = photograph(32, 32)
    photo.save(tmp_path / "photo.png")
    view = model.view(photo)
    assert not torch.equal(view, load_image(photo))
    for given in (photo, tmp_path / "photo.png", [photo]):
        assert torch.equal(model.encode(given), encoder.encode(view))
    assert torch.equal(encoder.encode(view), encoder.represent(view))
    assert torch.equal(model.encode(load_image(photo)), encoder.represent(load_image(photo)))
    as_stored = dataclasses.replace(convention, rounding="nearest")
    assert torch.equal(ImageEncoder(small.MeanColor(), as_stored).view(load_image(photo)), load_image(photo))


def test_stored_conventions_keep_their_bits() -> None:
    """Configurations written before there was `rounding`: sides rounded, crops at the floor of the middle."""
    stored = {"source": "module", "image_size": 30, "resize_to": 33, "interpolation": "bicubic"}
    config = configs.from_dict(EncoderConfig, stored)
    assert config.rounding == "nearest"
    for height, width in ((47, 71), (71, 47), (30, 30), (33, 40)):
        images = torch.rand(2, 3, height, width) * 2 - 1
        scale = 33 / min(height, width)
        shape = (round(height * scale), round(width * scale))
        want = images
        if (height, width) != (30, 30):
            if shape != (height, width):
                resize = torch.nn.functional.interpolate
                want = resize(images, size=shape, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
            top, left = (shape[0] - 30) // 2, (shape[1] - 30) // 2
            want = want[..., top : top + 30, left : left + 30]
        assert torch.equal(preprocess.view(images, config), want)


def test_the_example_without_torch_sees_the_same(checkout: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("onnx_only", checkout / "examples" / "onnx_only.py")
    assert spec is not None
    assert spec.loader is not None
    example: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for rounding in ("nearest", "torchvision", "transformers"):
        config = EncoderConfig("module", image_size=224, resize_to=235, interpolation="bicubic", rounding=rounding)

        def theirs(photo: Image.Image, config: EncoderConfig = config) -> Tensor:
            return torch.from_numpy(example.to_array(example.view(photo, dataclasses.asdict(config))))[0]

        check(config, theirs)
