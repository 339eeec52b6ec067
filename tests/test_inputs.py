"""What callers give: images of every kind and number, arguments of every type; what is taken, what is refused."""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rcdm_fast
from rcdm_fast import arguments
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.images import ImageError, load_image
from rcdm_fast.model import Model
from tests import small

TEXT: Any = "2"  # where a number is wanted


@pytest.fixture(scope="module")
def model() -> Model:
    return small.model()


@pytest.fixture(scope="module")
def h() -> Tensor:
    return torch.randn(2, small.DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = (np.random.default_rng(len(name) + ord(name[0])).random((12, 10, 3)) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def test_images_may_be_given_in_any_form(model: Model, folder: Path) -> None:
    path = folder / "a.png"
    expected = model.encode(path)
    image = Image.open(path).convert("RGB")
    for given in (
        str(path),
        image,
        np.asarray(image),
        io.BytesIO(path.read_bytes()),
        path.read_bytes(),
        load_image(path)[0],
        [load_image(path)[0]],
        [path],
        (each for each in [path]),
        np.asarray(image)[None],
    ):
        assert torch.equal(model.encode(given), expected), type(given)
    everything = model.encode(folder)
    assert torch.equal(everything, torch.cat([model.encode(folder / name) for name in ("a.png", "b.png", "sub/c.png")]))
    assert torch.equal(model.encode([path, str(folder / "sub")]), everything[[0, 2]])


def test_the_home_folder_is_understood(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert torch.equal(model.encode("~/a.png"), model.encode(folder / "a.png"))
    assert len(model.encode("~/sub")) == 1
    assert len(model.encode(["~/sub", "~/a.png"])) == 2


class Dataset:
    """As of the `datasets` library."""

    column_names = ("image", "label")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Dataset(), r"give the one with the images, as in dataset\['image'\]"),
        ({"image": 1}, "dict"),
        (5, "int"),
        (None, "NoneType"),
        ([], "no images"),
        (np.zeros((2, 8, 8, 3), dtype=np.int32), "int32"),
        (np.zeros((4,), dtype=np.uint8), "image"),
        ("no-such-folder/", "no such file"),
    ],
)
def test_what_is_no_image(given: Any, message: str, model: Model) -> None:
    with pytest.raises(ImageError, match=message):
        model.encode(given)


def test_one_bad_image_of_many(model: Model, folder: Path) -> None:
    bad = folder / "0.png"
    bad.write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"0\.png"):
        model.encode(folder)
    told: list[tuple[int, str]] = []
    found = model.encode(folder, on_bad=lambda place, reason: told.append((place, reason)))
    assert torch.equal(found, model.encode([folder / "a.png", folder / "b.png", folder / "sub"]))
    assert [place for place, _ in told] == [0]
    assert "0.png" in told[0][1]
    with pytest.raises(ImageError, match="image 1: "):
        model.encode([folder / "a.png", b"nothing"])
    with pytest.raises(ImageError, match="none of the 2 images"):
        model.encode([bad, b"nothing"], on_bad=lambda place, reason: None)


def test_interpolation_between_images(model: Model, folder: Path) -> None:
    a, b = folder / "a.png", Image.open(folder / "b.png")
    expected = model.interpolate(model.encode(a)[0], model.encode(b)[0], 3, steps=2)
    assert torch.equal(model.interpolate(str(a), b, 3, steps=2), expected)
    assert torch.equal(model.interpolate(model.encode(a).numpy(), np.asarray(b), 3, steps=2), expected)
    with pytest.raises(ConfigError, match="a must be one image, got 3"):
        model.interpolate(folder, b)
    with pytest.raises(ConfigError, match=r"a must be one representation \[D\], got \[2, 6\]"):
        model.interpolate(torch.zeros(2, 6), b)
    with pytest.raises(ConfigError, match=r"b must be a float tensor or array \[D\], got Tensor torch.int64"):
        model.interpolate(torch.zeros(6), torch.zeros(6, dtype=torch.int64))


def test_inversion_reads_every_image_once(model: Model, folder: Path) -> None:
    expected = model.invert(folder / "a.png", steps=2)
    assert torch.equal(model.invert(io.BytesIO((folder / "a.png").read_bytes()), steps=2), expected)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_representations_of_any_floats(kind: torch.dtype, model: Model, h: Tensor) -> None:
    given = h.to(kind)
    expected = model.sample(given.float(), per=1, steps=2)
    assert torch.equal(model.sample(given, per=1, steps=2), expected)
    assert torch.equal(model.sample(given.clone().requires_grad_(), per=1, steps=2), expected)
    if kind != torch.bfloat16:
        array = given.numpy()
        assert torch.equal(model.sample(array, per=1, steps=2), expected)
        assert torch.equal(model.sample(array.astype(array.dtype.newbyteorder(">")), per=1, steps=2), expected)
        assert torch.equal(model.sample(array[::-1], per=1, steps=2), model.sample(given.flip(0), per=1, steps=2))


def test_whole_numbers_of_any_kind(model: Model, h: Tensor) -> None:
    expected = model.sample(h, items=[3, -4], per=2, steps=3, seed=7, batch_size=2)
    for kind in (np.int64, np.uint8, np.int16, torch.tensor):
        items = np.array([3, -4], dtype=np.int32)
        found = model.sample(
            h, items=items, per=kind(2), steps=kind(3), seed=kind(7), batch_size=kind(2)  # type: ignore[arg-type]
        )  # fmt: skip
        assert torch.equal(found, expected)
    assert torch.equal(model.sample(h, items=torch.tensor([3, -4]), per=2, steps="3", seed=7, batch_size=2), expected)
    labelled = small.model(representation_dim=0, num_classes=4)
    expected = labelled.sample(label=torch.tensor([0, 3]), per=1, steps=2)
    for label in ([0, 3], np.array([0, 3], dtype=np.uint8), torch.tensor([0, 3], dtype=torch.int16)):
        assert torch.equal(labelled.sample(label=label, per=1, steps=2), expected)


NOISE = torch.zeros(2, 8, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": [0.7, 1]}, r"items\[0\] must be a whole number, got 0.7"),
        ({"items": torch.tensor([0.0, 1.0])}, r"items must be whole numbers \[R\], got torch.float32"),
        ({"items": torch.tensor([True, False])}, "torch.bool"),
        ({"items": torch.tensor([[0, 1]])}, r"\[1, 2\]"),
        ({"items": [True, False]}, "got True"),
        ({"items": [2**70, 0]}, r"items\[0\] must be in -9223372036854775808..9223372036854775807"),
        ({"items": [2**63, 0]}, "items"),
        ({"items": np.array([2**64 - 1, 0], dtype=np.uint64)}, "items"),
        ({"items": "01"}, "whole numbers in a row, got '01'"),
        ({"items": 1}, "whole numbers in a row, got 1"),
        ({"items": {0, 1}}, "got set"),
        ({"items": [None, 1]}, "got None"),
        ({"per": 2.0}, "per must be a whole number, got 2.0"),
        ({"per": True}, "got True"),
        ({"per": "2"}, "got '2'"),
        ({"per": None}, "got None"),
        ({"per": -1}, "per must be at least 1, got -1"),
        ({"seed": 1.0}, "seed must be a whole number, got 1.0"),
        ({"seed": "1"}, "seed"),
        ({"seed": 2**64}, "seed must be in 0"),
        ({"seed": np.bool_(True)}, "seed"),
        ({"steps": 2.0}, "steps must be a whole number, got 2.0"),
        ({"steps": True}, "steps"),
        ({"steps": None}, "steps"),
        ({"steps": "1_0"}, "steps '1_0'"),
        ({"steps": "٣"}, "steps"),
        ({"steps": 1001}, "asks for 1001 of 1000 steps"),
        ({"eta": 1j}, "eta must be a number, got 1j"),
        ({"eta": "0.5"}, "eta"),
        ({"eta": float("nan")}, "eta must be a finite number"),
        ({"eta": True}, "eta"),
        ({"eta": 0.5, "solver": "ancestral"}, "eta is a setting of ddim"),
        ({"guidance": float("inf")}, "guidance must be a finite number"),
        ({"guidance": "2"}, "guidance"),
        ({"guidance": 2j}, "guidance"),
        ({"clip": "no"}, "clip must be True or False, got 'no'"),
        ({"clip": 1}, "clip"),
        ({"solver": "dim"}, r"did you mean ddim\?"),
        ({"solver": None}, "solver must be a text, got None"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"batch_size": "8"}, "batch_size"),
        ({"noise": NOISE.to(torch.complex64)}, "noise must be a float tensor"),
        ({"noise": NOISE.int()}, "noise must be a float tensor"),
        ({"noise": NOISE + torch.nan}, "noise contains NaN"),
        ({"noise": "noise"}, "got 'noise'"),
        ({"h": torch.zeros(2, 6, dtype=torch.complex64)}, "h must be a float tensor or array .*complex64"),
        ({"h": torch.zeros(2, 6, dtype=torch.int64)}, "int64"),
        ({"h": torch.zeros(2, 6, dtype=torch.bool)}, "bool"),
        ({"h": np.zeros((2, 6), dtype=object)}, "object"),
        ({"h": np.zeros((2, 6), dtype=np.complex128)}, "complex128"),
        ({"h": torch.zeros(2, 6, device="meta")}, "meta device"),
        ({"h": torch.zeros(2, 6).to_sparse()}, "sparse"),
        ({"h": torch.full((2, 6), 1e300, dtype=torch.float64)}, "beyond float32's range"),
        ({"h": np.full((2, 6), np.inf)}, "NaN or infinity"),
        ({"h": [torch.zeros(6), torch.zeros(6)]}, "a list of tensors; torch.stack makes one"),
        ({"h": [[0.0] * 6] * 2}, "got "),
        ({"h": "h.npy"}, "got 'h.npy'"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str, model: Model, h: Tensor) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sample(**{"h": h, "steps": 2, **changes})


@pytest.mark.parametrize("label", [torch.tensor([0.0]), torch.tensor([True]), [0.5], [True], "0", 0, [4], [-1], None])
def test_wrong_labels_are_refused(label: Any) -> None:
    with pytest.raises(ConfigError, match="label"):
        small.model(representation_dim=0, num_classes=4).sample(label=label, steps=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.invert(x, iterations=1.5), "iterations must be a whole number"),
        (lambda m, x: m.invert(x, torch.zeros(2, 6, dtype=torch.int64)), "h must be a float tensor"),
        (lambda m, x: m.invert(x, torch.zeros(3, 6)), "h has 3 rows for 2 images"),
        (lambda m, x: m.interpolate(torch.zeros(6), torch.ones(6), 2.5), "frames must be a whole number"),
        (lambda m, x: m.interpolate(torch.zeros(6), torch.ones(6), mode="line"), "mode"),
        (lambda m, x: m.network(x, torch.tensor([0.5, 1.0]), torch.zeros(2, 6)), "t must be whole numbers"),
        (lambda m, x: m.network(x, torch.tensor([True, True]), torch.zeros(2, 6)), "t must be whole numbers"),
        (lambda m, x: m.network(x + torch.nan, torch.tensor([1, 2]), torch.zeros(2, 6)), "x contains NaN"),
        (lambda m, x: m.request(torch.zeros(2, 6), pairs=[(0, 0.5)]), "the sample of a pair"),
        (lambda m, x: m.request(torch.zeros(2, 6), pairs=[(2, 0)]), r"rows 0\.\.1"),
        (lambda m, x: next(rcdm_fast.generate(m, torch.zeros(2, 6), per=TEXT)), "per must be a whole number"),
        (lambda m, x: next(rcdm_fast.generate(m, torch.zeros(2, 6), threads=0)), "threads must be at least 1"),
        (
            lambda m, x: next(rcdm_fast.generate(m, torch.zeros(2, 6), eta=1, solver="ancestral")),
            "eta is a setting of ddim",
        ),
    ],
)
def test_wrong_arguments_of_other_methods(call: Any, message: str, model: Model) -> None:
    with pytest.raises(ConfigError, match=message):
        call(model, small.make_images(2))


def test_devices() -> None:
    assert arguments.device("cpu:0") == arguments.device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"no device is called 'gpu'.*did you mean cuda\?"):
        arguments.device("gpu")
    with pytest.raises(ConfigError, match="device must be a whole number"):
        arguments.device(1.5)
    if torch.cuda.is_available():
        with pytest.raises(ConfigError, match=rf"there are only cuda:0\.\.cuda:{torch.cuda.device_count() - 1}"):
            arguments.device(torch.cuda.device_count())
    else:
        for given in ("cuda", "cuda:3", 0):
            with pytest.raises(ConfigError) as raised:
                Model.from_network(small.network(), small.SCHEDULE, device=given)
            assert str(raised.value).count("sees no CUDA device") == 1


def test_errors_can_be_sent_to_other_processes(model: Model) -> None:
    with pytest.raises(ConfigError) as raised:
        model.sample(torch.zeros(1, 6), per=0)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for given in ("cuda:2", 2, torch.device("cuda:3")):
        with pytest.raises(ConfigError, match=r"there are only cuda:0\.\.cuda:1"):
            arguments.device(given)


def test_what_is_taken_where_nothing_is_given() -> None:
    assert [arguments.batch_size(None, torch.device(kind)) for kind in ("cuda", "cpu")] == [64, 32]
    assert arguments.batch_size(7, torch.device("cpu")) == 7
    assert [arguments.keys(None, rows) for rows in (3, None)] == [(0, 1, 2), (0,)]
    assert arguments.keys([5, -6], None) == (5, -6)
    with pytest.raises(ConfigError, match="1 items for 2 representations"):
        arguments.keys([5], 2)


def test_pairs_are_rows_and_samples_that_there_are() -> None:
    assert arguments.pairs([(1, 0), (0, 2**63 - 1)], 2) == ((1, 0), (0, 2**63 - 1))
    for wrong in ((0, -1), (-1, 0), (2, 0), (0, 2**63)):
        with pytest.raises(ConfigError, match=r"rows 0\.\.1"):
            arguments.pairs([wrong], 2)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_labels_are_as_many_as_representations(labels: list[int]) -> None:
    unet = dataclasses.replace(small.UNET, num_classes=3)
    with pytest.raises(ConfigError, match=f"{len(labels)} labels for 2 representations"):
        arguments.condition(unet, torch.zeros(2, small.DIM), labels, torch.device("cpu"))


def test_one_map_is_its_numbers() -> None:
    numbers = torch.arange(12.0)
    for given in (numbers, numbers[None], numbers.reshape(3, 2, 2), numbers.reshape(1, 3, 2, 2)):
        assert torch.equal(arguments.vector(given, "a", (3, 2, 2)), numbers)
    for wrong in (numbers.reshape(3, 2, 2), numbers.reshape(1, 3, 2, 2), numbers.reshape(2, 6)):
        with pytest.raises(ConfigError, match="must be one representation"):
            arguments.vector(wrong, "a")


MAP = dataclasses.replace(small.UNET, condition_map=(2, 3, 1))


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({}, {"unet": dataclasses.replace(small.UNET, num_classes=3)}, "classes 3 instead of 0"),
        ({"unet": MAP}, {"unet": dataclasses.replace(MAP, condition_map=(2, 1, 3))}, "map .* instead of"),
        ({"encoder": "timm:a"}, {"encoder": "timm:b"}, r"encoder timm:b \(backbone\) instead of timm:a \(backbone\)"),
        ({"encoder": "timm:a"}, {"encoder": EncoderConfig("timm:a", "layer4")}, r"timm:a \(layer4\) instead"),
        ({"encoder": "timm:a?pretrained=1"}, {"encoder": "timm:a?pretrained=0"}, ""),
        *(({"encoder": "timm:a"}, {"encoder": f"{kind}:x"}, "") for kind in ("onnx", "file", "module", "function")),
        ({"encoder": "onnx:a"}, {"encoder": "timm:b"}, ""),
        ({"encoder": "timm:a"}, {}, ""),
    ],
)
def test_guides_are_asked_the_same(ours: dict[str, Any], theirs: dict[str, Any], message: str) -> None:
    """Of encoders as far as their names say it."""

    def config(encoder: Any = None, **changes: Any) -> ModelConfig:
        named = EncoderConfig(encoder) if isinstance(encoder, str) else encoder
        return ModelConfig(**{"unet": small.UNET, "schedule": small.SCHEDULE, "encoder": named, **changes})

    if not message:
        assert arguments.guidance(config(**ours), 2, config(**theirs)) == 2
        return
    with pytest.raises(ConfigError, match=message):
        arguments.guidance(config(**ours), 2, config(**theirs))
