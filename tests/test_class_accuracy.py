"""Class accuracy of an encoder: known by construction, by hand, and as the command writes it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast import class_accuracy
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data import sources
from rcdm_fast.data.image_set import ImageSet, fingerprint
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.metrics import probes
from rcdm_fast.training import representations

CLASSES = ("blue", "green", "red")


def colored(count: int, seed: int, classes: tuple[str, ...] = CLASSES) -> ImageSet:
    """Images 8 px, mostly of the color of their class, two others a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 90, (count, 3, 8, 8), generator=generator)
    pixels[torch.arange(count), 2 - labels] += 120
    pixels = pixels.to(torch.uint8)
    return ImageSet(pixels, labels, classes, (), fingerprint(pixels, labels))


class Means(nn.Module):
    """The means of the first colors of an image."""

    def __init__(self, colors: int) -> None:
        super().__init__()
        self.colors = colors

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.colors].mean((2, 3))


def encoder(colors: int = 3) -> ImageEncoder:
    return ImageEncoder(Means(colors), EncoderConfig("module", image_size=8))


def test_what_is_there_is_found_and_what_is_not_is_not() -> None:
    known, test = colored(300, 0), colored(120, 1)
    found = class_accuracy.measure(encoder(), known, test)
    assert found.linear.value == found.knn.value == 1
    assert found.linear.low == pytest.approx(120 / (120 + 1.959964**2), abs=1e-4)  # Wilson's, of 120 in 120
    assert (found.classes, found.images, found.test_images) == (3, 300, 120)
    mixed = ImageSet(test.pixels, test.labels.roll(1), CLASSES, (), "mixed")  # type: ignore[union-attr]
    assert class_accuracy.measure(encoder(), known, mixed).linear.value == 0
    blind = class_accuracy.measure(encoder(1), known, test)  # red is there, blue and green look alike
    assert 0.5 < blind.linear.value < 0.85
    assert blind.linear.low < blind.linear.value < blind.linear.high


def test_neighbors_and_the_probe_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Representations on two lines that cross: neighbors know the line, no linear function of the place does."""
    generator = torch.Generator().manual_seed(0)

    def crossing(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 2
        along = torch.randn(count, generator=generator)
        return torch.stack([along, along * (1 - 2 * labels)], dim=1), labels

    held = {}
    for name, count in (("known", 600), ("test", 200)):
        h, labels = crossing(count)
        pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
        held[name] = (ImageSet(pixels, labels, ("a", "b"), (), name), h)
    given = {name: h for _, (images, h) in held.items() for name in [images.fingerprint]}
    monkeypatch.setattr(representations, "compute", lambda _, images: given[images.fingerprint])
    found = class_accuracy.measure(encoder(), held["known"][0], held["test"][0])
    assert found.knn.value > 0.95
    assert 0.35 < found.linear.value < 0.65


@pytest.mark.parametrize(("options", "side"), [("", 32), ("&resize_to=40", 40)])
def test_images_are_opened_so_that_the_encoder_can_cut_its_own_out(
    options: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    seen: list[tuple[int, ...]] = []

    def opened(given: str, size: int) -> ImageSet:
        sizes.append(size)
        pixels = torch.randint(0, 255, (40, 3, size, size), dtype=torch.uint8)
        return ImageSet(pixels, torch.arange(40) % 2, ("a", "b"), (), given)

    real = ImageEncoder.encode

    def encode(self: ImageEncoder, images: Any) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        return real(self, images)

    monkeypatch.setattr(sources, "open_data", opened)
    monkeypatch.setattr(ImageEncoder, "encode", encode)
    out = tmp_path / "found.json"
    words = ["--data", "A", "--test-data", "B", "--device", "cpu", "--json", str(out)]
    assert main(["encoders", f"bundled:cifar10-simclr?layer=backbone{options}", *words]) == 0
    assert sizes == [side, side]
    assert seen[-2:] == [(side, side)] * 2
    found = json.loads(out.read_text())
    assert {name: each["fingerprint"] for name, each in found["made_by"]["data"].items()} == {
        "data": "A",
        "test_data": "B",
    }


def test_neighbors_vote_by_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 4, generator=generator), torch.randn(9, 4, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    wanted = []
    for query in test:
        near = F.cosine_similarity(query[None], train)
        votes = np.zeros(3)
        for place in near.argsort(descending=True)[:7].tolist():
            votes[int(labels[place])] += np.exp(float(near[place]) / 0.1)
        wanted.append(int(votes.argmax()))
    assert probes.knn_classes(train, labels, test, k=7).tolist() == wanted
    right = torch.tensor(wanted)
    right[:3] = (right[:3] + 1) % 3
    assert probes.knn_accuracy(train, labels, test, right, k=7) == pytest.approx(6 / 9)


def test_what_is_refused() -> None:
    known = colored(60, 0)
    with pytest.raises(ConfigError, match=r"60 of 60 images .* are among the very images that the probe was fitted on"):
        class_accuracy.measure(encoder(), known, known)
    pixels, labels = colored(60, 1).pixels, known.labels
    for copies, refused in ((3, False), (4, True), (30, True)):  # of 60: a few are in most sets
        pixels[:copies] = known.pixels[-copies:]
        test = ImageSet(pixels, labels, CLASSES, (), f"{copies} copies")
        with pytest.raises(ConfigError, match=f"{copies} of 60 images") if refused else nullcontext():
            class_accuracy.measure(encoder(), known, test)
    with pytest.raises(ConfigError, match="on the classes of the data, a, b, c"):
        class_accuracy.measure(encoder(), known, colored(30, 1, ("a", "b", "c")))
    with pytest.raises(ConfigError, match="have no labels"):
        class_accuracy.measure(encoder(), known, ImageSet(known.pixels, None, (), (), "none"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, images in (("train", colored(60, 0)), ("test", colored(30, 1))):
        assert images.labels is not None
        for place, (pixels, label) in enumerate(zip(images.pixels, images.labels.tolist(), strict=True)):
            folder = tmp_path / name / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((32, 32), 0).save(folder / f"{place:02}.png")
    spec, out = "bundled:cifar10-simclr?layer=projector", tmp_path / "found.json"
    words = ["--data", str(tmp_path / "train"), "--test-data", str(tmp_path / "test"), "--json", str(out)]
    assert main(["encoders", spec, *words]) == 0
    printed = capsys.readouterr().out
    assert "classes of 30 images, 3 in all, from 60 others" in printed
    found = json.loads(out.read_text())
    assert found["accuracy"]["linear"]["value"] == 1
    assert f"linear probe   {found['accuracy']['linear']['value']:.1%}".replace("%", "")[:20] in printed
    assert {name: each["images"] for name, each in found["made_by"]["data"].items()} == {"data": 60, "test_data": 30}
    assert len(found["hash"]) == 64
    assert main(["encoders", spec, "--data", str(tmp_path / "train")]) == 2
    assert "give both or neither" in capsys.readouterr().err


def test_a_probe_takes_features_as_they_are() -> None:
    """It answers as one that was fitted on standardized features, whatever their mean and scale."""
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0] > 0.3).long()
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    mean, std = torch.tensor([5.0, -2.0, 0.5]), torch.tensor([3.0, 0.25, 10.0])
    plain, moved = (probes.fit_linear_probe(each, labels) for each in (features, features * std + mean))
    torch.testing.assert_close(moved(features * std + mean), plain(features), rtol=1e-2, atol=1e-2)
