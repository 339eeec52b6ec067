"""The encoder protocol: what is seen, which layer is read, how it is pooled, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders import Encoder, EncoderError, ImageEncoder, build
from rcdm_fast.images import ImageError, from_pil, to_uint8
from tests.encoder_checks import close, make_images
from tests.tolerances import ENCODER_CUDA_L2, RESIZE_ABS, RESIZE_HALVED_ABS


class Tokens(nn.Module):
    """[N,3,8,8] -> tokens [N,T,4], `prefix` of them before the four patches."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.patches = nn.Conv2d(3, 4, 4, 4)
        self.prefix = nn.Parameter(torch.randn(prefix, 4))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.expand(len(x), -1, -1), patches], dim=1)


class Registers(nn.Module):
    """As DINOv2 has them: a class token, three registers, and the four patches of an image of 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self.num_register_tokens = 3
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.register_tokens = nn.Parameter(torch.randn(1, 3, 4))
        self.patches = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        before = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.register_tokens)]
        return torch.cat([*before, patches], dim=1)


class Permuted(nn.Module):
    """[N,3,H,W] -> [N,H,W,3], said as timm says it."""

    output_fmt = "NHWC"

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class TwoParts(nn.Module):
    """A backbone and a projector that must not be reached when the backbone is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projector = nn.Linear(5, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.backbone(x)
        self.calls += 1
        out: Tensor = self.projector(h)
        return out


SMALL = EncoderConfig("module", image_size=8)


def test_squash_sees_everything_and_short_side_the_center() -> None:
    wide = torch.full((1, 3, 20, 60), 0.5)
    wide[..., :20] = -0.5  # the left third, outside the central square
    encoder = build(nn.Flatten(), config=dataclasses.replace(SMALL, dim=192))
    assert isinstance(encoder, ImageEncoder)
    assert encoder.view(wide).min() > 0.3  # the filter reaches a little beyond the crop
    squashed = build(nn.Flatten(), config=dataclasses.replace(SMALL, resize="squash", dim=192))
    assert isinstance(squashed, ImageEncoder)
    seen = squashed.view(wide)
    assert seen.shape == (1, 3, 8, 8)
    assert float(seen[..., 0].max()) < -0.49
    assert float(seen[..., -1].min()) > 0.49


def test_resize_to_crops_the_center() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 8:24, 8:24] = 1.0
    config = dataclasses.replace(SMALL, resize_to=16, interpolation="area", dim=1)
    encoder = ImageEncoder(nn.Flatten(), config)
    assert torch.equal(encoder.view(image), torch.ones(1, 3, 8, 8))
    squash = ImageEncoder(nn.Flatten(), dataclasses.replace(config, resize="squash"))
    assert torch.equal(squash.view(image), torch.ones(1, 3, 8, 8))


def test_an_image_of_the_right_size_is_seen_as_it_is() -> None:
    encoder = ImageEncoder(nn.Flatten(), dataclasses.replace(SMALL, resize_to=12))
    images = make_images(8, 8, count=2)
    assert torch.equal(encoder.view(images), images)
    assert torch.equal(encoder.encode(images), images.flatten(1))  # mean and std 0.5 leave [-1,1] alone


def edges_and_noise(height: int, width: int) -> list[Image.Image]:
    """Black and white stripes both ways, beside which a bicubic filter overshoots, and noise that stays in its range.

    Not both at once: PIL clips between its two directions.
    """
    random = np.random.default_rng(height)
    across = random.integers(0, 2, (1, -(-width // 4), 3)).repeat(4, 1)[:, :width].repeat(height, 0) * 255
    down = random.integers(0, 2, (-(-height // 4), 1, 3)).repeat(4, 0)[:height].repeat(width, 1) * 255
    noise = random.integers(64, 192, (height, width, 3))
    return [Image.fromarray(each.astype(np.uint8)) for each in (across, down, noise)]


@pytest.mark.parametrize(("height", "width"), [(37, 53), (90, 41), (20, 21), (11, 13)])
def test_bilinear_and_bicubic_resize_like_pil(height: int, width: int) -> None:
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for image, (name, method) in itertools.product(edges_and_noise(height, width), filters.items()):
        config = dataclasses.replace(SMALL, image_size=16, resize="squash", interpolation=name, dim=1)  # type: ignore[arg-type]
        seen = ImageEncoder(nn.Flatten(), config).view(from_pil(image))
        assert float((seen - from_pil(image.resize((16, 16), method))).abs().max()) <= RESIZE_ABS
        assert float(seen.abs().max()) <= 1.0
    bare = nn.functional.interpolate(
        from_pil(edges_and_noise(height, width)[0]), (16, 16), mode="bicubic", antialias=True
    )
    assert float(bare.abs().max()) > 1.02  # there is something to be clipped


@pytest.mark.parametrize("resize", ["short_side", "squash"])
def test_an_image_smaller_than_the_view_lies_on_black(resize: Literal["short_side", "squash"]) -> None:
    """Resized to less than the encoder sees, as torchvision's transforms do it, overshoot clipped."""
    for image in edges_and_noise(30, 45):
        config = dataclasses.replace(
            SMALL, image_size=24, resize=resize, resize_to=10, border="black", interpolation="bicubic", dim=1
        )
        seen = to_uint8(ImageEncoder(nn.Flatten(), config).view(from_pil(image)))[0].permute(1, 2, 0).numpy()
        reduced = image.resize((10, 10) if resize == "squash" else (15, 10), Image.Resampling.BICUBIC)
        want = Image.new("RGB", (24, 24))
        want.paste(reduced, ((24 - reduced.width) // 2, 7))
        assert np.abs(seen.astype(int) - np.asarray(want)).max() <= RESIZE_ABS * 127.5
        assert set(np.unique(seen[:7])) == {0}


@pytest.mark.parametrize(
    ("side", "halvings"),
    [(19, 0), (39, 0), (40, 1), (79, 1), (80, 2), (96, 2)],  # a side of exactly twice the target is halved
)
def test_box_bicubic_halves_first(side: int, halvings: int) -> None:
    config = dataclasses.replace(SMALL, image_size=20, interpolation="box_bicubic", dim=1)
    apart = 0.0
    for image in edges_and_noise(side, side * 3 // 2):
        seen = ImageEncoder(nn.Flatten(), config).view(from_pil(image))
        expected = image
        for _ in range(halvings):
            expected = expected.resize((expected.width // 2, expected.height // 2), Image.Resampling.BOX)
        wide = round(image.width * 20 / side)
        left = (wide - 20) // 2
        expected = expected.resize((wide, 20), Image.Resampling.BICUBIC).crop((left, 0, left + 20, 20))
        assert float((seen - from_pil(expected)).abs().max()) <= RESIZE_HALVED_ABS
        assert float(seen.abs().max()) <= 1.0
        direct = ImageEncoder(nn.Flatten(), dataclasses.replace(config, interpolation="bicubic")).view(from_pil(image))
        apart = max(apart, float((seen - direct).abs().max()))
    assert (apart > RESIZE_HALVED_ABS) == (halvings > 0)


def test_normalization() -> None:
    config = dataclasses.replace(SMALL, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    h = build(nn.Flatten(), config=config).encode(torch.zeros(1, 3, 8, 8)).reshape(3, 64)
    assert close(h, torch.tensor([[0.8], [0.3], [0.1]]).expand(3, 64))


def test_backbone_stops_before_the_projector_and_projector_is_the_output() -> None:
    network = TwoParts().eval()
    images = make_images(8, 8, count=3)
    encoder = build(network, config=SMALL)
    h = encoder.encode(images)
    assert encoder.dim == 5
    assert network.calls == 1  # once, to see how often the layer is called
    encoder.encode(images)
    assert network.calls == 1
    assert close(h, network.backbone(images))
    projection = build(network, config=dataclasses.replace(SMALL, layer="projector")).encode(images)
    assert close(projection, network(images))
    inside = build(network, config=dataclasses.replace(SMALL, layer="0", pooling="mean")).encode(images)
    assert close(inside, network.backbone[0](images).mean((2, 3)))
    assert not any(module._forward_hooks for module in network.modules())


def test_mean_of_positions_in_either_order() -> None:
    images = make_images(8, 8, count=2)
    config = dataclasses.replace(SMALL, pooling="mean")
    first = build(nn.Identity(), config=config).encode(images)
    assert close(first, images.mean((2, 3)))
    last = Permuted()
    assert close(build(last, config=config).encode(images), first)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_cls_and_mean_of_tokens(prefix: int) -> None:
    network = Tokens(prefix)
    images = make_images(8, 8, count=2)
    mean = build(network, config=dataclasses.replace(SMALL, pooling="mean")).encode(images)
    assert close(mean, network.patches(images).mean((2, 3)))
    if prefix:
        cls = build(network, config=dataclasses.replace(SMALL, pooling="cls")).encode(images)
        assert close(cls, network.prefix[0].expand(2, -1))
    else:
        with pytest.raises(EncoderError, match="no class token"):
            build(network, config=dataclasses.replace(SMALL, pooling="cls"))


def test_registers_are_no_patches() -> None:
    network, images = Registers(), make_images(8)
    network.register_tokens.data += 100
    with torch.no_grad():
        patches = network.patches(images).flatten(2)
    assert close(build(network, config=dataclasses.replace(SMALL, pooling="mean")).encode(images), patches.mean(2))
    assert close(build(network, config=dataclasses.replace(SMALL, pooling="max")).encode(images), patches.amax(2))
    positions = build(network, config=dataclasses.replace(SMALL, pooling="map")).encode(images)
    assert close(positions, patches.flatten(1))


def test_batches_do_not_matter() -> None:
    encoder = ImageEncoder(TwoParts(), SMALL, batch_size=2)
    images = make_images(11, 9, count=5)
    whole = encoder.encode(images)
    assert close(whole, torch.cat([encoder.encode(part) for part in (images[:1], images[1:])]))
    assert close(whole, ImageEncoder(encoder._network, SMALL, batch_size=100).encode(images))
    assert encoder.encode(images[:0]).shape == (0, 5)


def test_evaluation_mode_and_no_gradients_but_usable_in_training() -> None:
    network = TwoParts().train()
    encoder = build(network, config=SMALL)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.projector.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    images = make_images(8, 8, count=4)
    h = encoder.encode(images)
    assert {name: module.training for name, module in network.named_modules()} == modes  # as its owner has it
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        assert close(h, copy.deepcopy(network).eval().backbone(images))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert not h.requires_grad
    assert not h.is_inference()
    layer = nn.Linear(5, 1)
    (gradient,) = torch.autograd.grad(layer(h).sum(), layer.weight)
    assert close(gradient, h.sum(0, keepdim=True))


def test_several_threads_in_a_network_that_is_training() -> None:
    network = TwoParts().train()
    encoder = build(network, config=SMALL)
    images = make_images(8, 8, count=4)
    expected = encoder.encode(images)
    before = {name: value.clone() for name, value in network.named_buffers()}
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.extend(encoder.encode(images) for _ in range(30))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert all(torch.equal(h, expected) for h in found)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert network.training


def test_a_hosts_autocast_and_default_dtype_change_nothing() -> None:
    network, images = TwoParts(), make_images(8, 8, count=2)
    expected = build(network, config=SMALL).encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(build(network, config=SMALL).encode(images), expected)
        assert torch.is_autocast_enabled("cpu")
    drawn = build("timm:test_resnet").encode(make_images(160))
    torch.set_default_dtype(torch.float64)
    try:
        late = build("timm:test_resnet")
        assert late.encode(torch.zeros(0, 3, 9, 9)).dtype == torch.float32
        assert {value.dtype for value in late.network.parameters()} == {torch.float32}  # type: ignore[attr-defined]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == torch.float32


def test_tables_that_a_network_keeps_do_for_its_training() -> None:
    class Kept(nn.Module):
        """Makes a table at its first call."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(3)
            return x.mean((2, 3)) * self.table * self.weight

    network = Kept()
    build(network, config=SMALL).encode(make_images(8))
    network(make_images(8)).sum().backward()
    assert network.weight.grad is not None


def test_a_class_is_no_encoder() -> None:
    for given in (TwoParts, ImageEncoder, torch.nn.Identity):
        with pytest.raises(EncoderError, match=f"{given.__name__} is a class; give an instance"):
            build(given)  # type: ignore[arg-type]


def test_represent_carries_gradients() -> None:
    encoder = ImageEncoder(TwoParts(), SMALL)
    images = make_images(8, 8, count=2).requires_grad_()
    (gradient,) = torch.autograd.grad(encoder.represent(images).sum(), images)
    assert float(gradient.abs().sum()) > 0


def test_normalize_and_half_precision_networks() -> None:
    images = make_images(8, 8, count=2)
    network = TwoParts().eval()
    h = build(network, config=dataclasses.replace(SMALL, normalize=True)).encode(images)
    assert close(h, F.normalize(network.backbone(images), dim=1))
    half = build(TwoParts().to(torch.bfloat16), config=SMALL).encode(images)
    assert half.dtype == torch.float32


def test_functions_and_encoders() -> None:
    def brightness(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    with pytest.raises(EncoderError, match=r"nothing tells what images brightness takes; .* EncoderConfig\('module'"):
        build(brightness)
    encoder = build(brightness, config=EncoderConfig("module"))
    assert encoder.config == EncoderConfig("module", dim=3)
    assert isinstance(encoder, Encoder)
    assert build(encoder) is encoder
    assert close(encoder.encode(torch.full((2, 3, 30, 40), 0.25)), torch.full((2, 3), 0.25))
    with pytest.raises(EncoderError, match="a function has no layer"):
        build(brightness, config=EncoderConfig("module", layer="projector"))
    with pytest.raises(ConfigError, match="config="):
        build(encoder, config=SMALL)


@pytest.mark.parametrize(
    ("network", "config", "message"),
    [
        (nn.Conv2d(3, 4, 3), SMALL, r"gives \[1, 4, 6, 6\], not \[N,D\]; choose pooling=mean"),
        (Tokens(1), SMALL, "choose pooling=cls or pooling=mean"),
        (nn.Flatten(), dataclasses.replace(SMALL, pooling="mean"), "choose pooling=none"),
        (nn.Linear(9, 4), SMALL, r"fails on an image \[1,3,8,8\]"),
        (lambda x: x.sum(), SMALL, "not"),
        (lambda x: "text", SMALL, "returned str, not a tensor"),
        (lambda x: x.flatten(1) * float("nan"), SMALL, "NaN"),
        (nn.Flatten(), dataclasses.replace(SMALL, layer="layer3"), "no layer 'layer3'"),
    ],
)
def test_outputs_that_are_no_representation(network: nn.Module, config: EncoderConfig, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        build(network, config=config)


def test_wrong_width_and_damaged_weights() -> None:
    images = make_images(8, 8, count=1)
    with pytest.raises(EncoderError, match=r"gives \[1, 5\], configured are \[1, 7\]"):
        build(TwoParts(), config=dataclasses.replace(SMALL, dim=7)).encode(images)
    network = TwoParts()
    encoder = build(network, config=SMALL)
    with torch.no_grad():
        network.backbone[0].weight[0, 0, 0, 0] = float("nan")  # type: ignore[operator]
    with pytest.raises(EncoderError, match="weights are damaged"):
        encoder.encode(images)


def test_a_network_sees_so_many_at_once_and_each_of_them_is_checked() -> None:
    sizes: list[int] = []

    def network(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return 1 / x.mean((2, 3))

    encoder = ImageEncoder(network, dataclasses.replace(SMALL, dim=3), batch_size=2)
    images = make_images(8, 8, count=5)
    assert close(encoder.encode(images), 1 / images.mean((2, 3)))
    assert sizes == [2, 2, 1]
    for place in range(5):
        black = images.clone()
        black[place] = 0
        with pytest.raises(EncoderError, match="NaN or infinity"):
            encoder.encode(black)


def test_what_is_no_batch_of_images() -> None:
    encoder = build(TwoParts(), config=SMALL)
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ImageError):
            encoder.encode(wrong)
    with pytest.raises(ImageError, match="values in"):
        encoder.encode(torch.full((1, 3, 8, 8), 255.0))


def test_devices() -> None:
    encoder = build(TwoParts(), torch.device("cpu"), config=SMALL)
    assert encoder.to("cpu") is encoder
    assert encoder.device == torch.device("cpu")
    with pytest.raises(EncoderError, match="no device"):
        build(TwoParts(), "warp", config=SMALL)
    if not torch.cuda.is_available():
        with pytest.raises(EncoderError, match="no CUDA"):
            encoder.to("cuda")


@pytest.mark.gpu
def test_cuda_agrees_with_cpu() -> None:
    network, images = TwoParts(), make_images(20, 30, count=3)
    on_cpu = build(network, config=SMALL).encode(images)
    encoder = build(network, "cuda", config=SMALL)
    h = encoder.encode(images)
    assert h.device.type == "cuda"
    assert close(h.cpu(), on_cpu, ENCODER_CUDA_L2)
