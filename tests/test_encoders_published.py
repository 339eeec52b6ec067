"""The published encoders, read from small files laid out like the published ones."""

from __future__ import annotations

import argparse
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rcdm_fast import downloads, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.encoders import EncoderError, build, published
from rcdm_fast.models import zoo
from tests.encoder_checks import close, make_images

WIDTH = 16  # of the small trunk
State = dict[str, Tensor]


def small_trunk() -> nn.Module:
    """[N,3,224,224] -> [N,WIDTH] under two of the names that a ResNet-50 has."""
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(3, 4, 7, 8, bias=False), "bn1": nn.BatchNorm2d(4)}
    layers |= {"layer4": nn.Conv2d(4, WIDTH, 3, 2), "avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers))


def small_heads() -> dict[str, nn.Module]:
    """Projectors of the published shapes, but narrow."""
    block = nn.Sequential(nn.Linear(WIDTH, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU())
    again = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU())
    wide = [nn.Linear(WIDTH, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()]
    return {
        "simclr": nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 4)),
        "barlow": nn.Sequential(block, again, nn.Sequential(nn.Linear(6, 6, bias=False))),
        "vicreg": nn.Sequential(*wide, nn.Linear(6, 6, bias=False)),
        "dino": nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 5)),
    }


def checkpoint(name: str, trunk: State, head: State) -> dict[str, Any]:
    """The content of a published file."""
    if name in ("simclr", "barlow"):
        inserted = (
            {"0.": "0.clf.0.", "2.": "1.clf.0."} if name == "simclr" else {f"{i}.": f"{i}.clf." for i in range(3)}
        )
        heads = {inserted[key[:2]] + key[2:]: value for key, value in head.items()}
        model = {"trunk": {f"_feature_blocks.{key}": value for key, value in trunk.items()}, "heads": heads}
        losses = {"losses": [np.float64(0.5)], "meters": []}
        return {"phase_idx": 999, "classy_state_dict": {"base_model": {"model": model}, **losses}}
    inside = "projector" if name == "vicreg" else "head.mlp"
    state = {f"module.backbone.{key}": value for key, value in trunk.items()}
    state |= {f"module.{inside}.{key}": value for key, value in head.items()}
    if name == "vicreg":
        return {"epoch": 1000, "model": state, "optimizer": {"param_groups": []}}
    state["module.head.last_layer.weight"] = torch.zeros(7, 5)
    return {"student": {}, "teacher": state, "epoch": 800, "args": argparse.Namespace(arch="resnet50")}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Narrow projectors in place of the published ones."""
    heads = small_heads()
    for name, release in published.RELEASES.items():
        head = heads.get(name)
        width = 0 if head is None else [m for m in head.modules() if isinstance(m, nn.Linear)][-1].out_features
        make: Callable[[], nn.Module] | None = None if head is None else (lambda name=name: small_heads()[name])
        changed = dataclasses.replace(release, trunk=small_trunk, projector=make, dim=WIDTH, projector_dim=width)
        monkeypatch.setitem(published.RELEASES, name, changed)
    return heads


def trained(module: nn.Module) -> nn.Module:
    """With batch statistics that differ from their initial values."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.normal_(std=0.1)
    return module.eval()


@pytest.mark.parametrize("name", ["simclr", "barlow", "vicreg", "dino"])
def test_trunk_and_projector(
    name: str, small: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, head = trained(small_trunk()), trained(small[name])
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoint(name, trunk.state_dict(), head.state_dict()), path)
    asked: list[tuple[str, str]] = []

    def fetch(url: str, file: str, *, sha256: str | None, whole: Any) -> Path:
        asked.append((url, file))
        assert sha256 is None
        whole(path)
        return path

    monkeypatch.setattr(downloads, "fetch", fetch)
    images = make_images(224)
    with torch.inference_mode():
        h = trunk(images)
        z = head(h)
    assert close(build(f"published:{name}").encode(images), h)
    projector = build(f"published:{name}?layer=projector")
    assert close(projector.encode(images), z)
    assert close(build(projector.config).encode(images), z)
    assert close(build(f"published:{name}?layer=layer4&pooling=mean").encode(images), h)
    assert {url.startswith("https://dl.fbaipublicfiles.com/") for url, _ in asked} == {True}
    assert {file for _, file in asked} == {published.RELEASES[name].file}


@pytest.mark.parametrize("name", ["simclr", "barlow", "vicreg", "dino"])
@pytest.mark.parametrize("change", ["missing", "extra", "shape", "layout"])
def test_other_checkpoints_are_refused(name: str, change: str, small: dict[str, nn.Module], tmp_path: Path) -> None:
    trunk, head = small_trunk().state_dict(), small[name].state_dict()
    last = list(head)[-1]
    if change == "missing":
        del head[last]
    elif change == "extra":
        trunk["layer5.weight"] = torch.zeros(1)
    elif change == "shape":
        head[last] = torch.zeros(99, 2)
    content = checkpoint(name, trunk, head) if change != "layout" else {"weights": trunk}
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    match = {"missing": "Missing key", "extra": "layer5", "shape": "size mismatch", "layout": "not laid out"}[change]
    with pytest.raises(EncoderError, match=match):
        build(f"published:{name}?layer=projector&weights={path}")


def test_supervised(small: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trained(small_trunk())
    path = tmp_path / "resnet.pth"
    torch.save({**trunk.state_dict(), "fc.weight": torch.zeros(3, WIDTH), "fc.bias": torch.zeros(3)}, path)
    asked = []

    def fetch(url: str, file: str, *, sha256: str | None, whole: Any) -> Path:
        asked.append(url)
        assert sha256 == "0676ba61", "torchvision's names end in the first digits"
        whole(path)
        return path

    monkeypatch.setattr(downloads, "fetch", fetch)
    images = make_images(224)
    with torch.inference_mode():
        assert close(build("published:supervised").encode(images), trunk(images))
    assert asked[0].endswith("resnet50-0676ba61.pth")
    with pytest.raises(ConfigError, match="no projector"):
        build("published:supervised?layer=projector")


def test_the_digest_that_a_specification_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resnet.pth"
    trunk = small_trunk()
    monkeypatch.setitem(
        published.RELEASES, "supervised", dataclasses.replace(published.RELEASES["supervised"], trunk=small_trunk)
    )
    torch.save({**trunk.state_dict(), "fc.weight": torch.zeros(3, WIDTH), "fc.bias": torch.zeros(3)}, path)
    digest = storage.sha256(path)
    asked: list[str | None] = []

    def fetch(url: str, file: str, *, sha256: str | None, whole: Any) -> Path:
        asked.append(sha256)
        return path

    monkeypatch.setattr(downloads, "fetch", fetch)
    build(f"published:supervised?sha256={digest}")
    assert asked == [digest]
    build(f"published:supervised?weights={path}&sha256={digest}")
    with pytest.raises(EncoderError, match=f"its sha256 is {digest}, expected 00"):
        build(f"published:supervised?weights={path}&sha256={'0' * 64}")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        build("published:supervised?sha256=abc")


def test_a_failed_download_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    with pytest.raises(OSError, match="OFFLINE"):
        build("published:dino")


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="there are simclr, barlow, vicreg, dino, supervised"):
        build("published:moco")


def test_conventions_are_those_of_the_releases() -> None:
    for name in published.RELEASES:
        trunk = "rcdm-supervised" if name == "supervised" else f"rcdm-{name}-trunk"
        assert published.config(name) == zoo.RELEASES[trunk].encoder
        if name != "supervised":
            assert published.config(name, "projector") == zoo.RELEASES[f"rcdm-{name}-head"].encoder
        assert published.config(name).mean == published.config(name).std == (0.5, 0.5, 0.5)


def test_published_shapes() -> None:
    """Names and shapes of the real networks, without making their weights."""
    with torch.device("meta"):
        shapes = {
            name: shapes_of(release.projector()) for name, release in published.RELEASES.items() if release.projector
        }
        trunk = shapes_of(published.resnet50())
    assert shapes["simclr"] == {
        "0.weight": (2048, 2048),
        "0.bias": (2048,),
        "2.weight": (128, 2048),
        "2.bias": (128,),
    }
    assert {key: value for key, value in shapes["barlow"].items() if len(value) == 2} == {
        "0.0.weight": (8192, 2048),
        "1.0.weight": (8192, 8192),
        "2.0.weight": (8192, 8192),
    }
    assert shapes["vicreg"]["6.weight"] == (8192, 8192)
    assert shapes["vicreg"]["3.bias"] == shapes["vicreg"]["4.running_mean"] == (8192,)
    assert "6.bias" not in shapes["vicreg"]
    assert shapes["dino"]["0.weight"] == (4096, 2048)
    assert shapes["dino"]["1.running_var"] == (4096,)
    assert shapes["dino"]["3.weight"] == (256, 4096)
    assert trunk["conv1.weight"] == (64, 3, 7, 7)
    assert trunk["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert len(trunk) == 318


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
