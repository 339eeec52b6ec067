"""Sheets and texts for a reader: what is on them, in which order, with which names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast import ConfigError, images, showing
from rcdm_fast.cli import main
from rcdm_fast.images import ImageError, save_image, to_pil, to_uint8
from tests import small


def grays(*shape: int) -> torch.Tensor:
    """Images of one gray each, from black to white in their order; [*shape,3,8,8]."""
    count = int(np.prod(shape))
    return torch.linspace(-1, 1, count).reshape(*shape, 1, 1, 1).expand(*shape, 3, 8, 8).contiguous()


def levels(sheet: Image.Image) -> list[list[int]]:
    """The grays of a sheet without names, cell by cell."""
    rows, columns = (sheet.height - 2) // 98, (sheet.width - 2) // 98
    return [[sheet.getpixel((50 + 98 * x, 50 + 98 * y))[0] for x in range(columns)] for y in range(rows)]  # type: ignore[index]


def same(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images have the same pixels."""
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_rows_of_any_kind(tmp_path: Path) -> None:
    wanted = to_uint8(grays(2, 3))[..., 0, 0, 0].tolist()
    pairs = grays(2, 3)
    pixels = to_uint8(pairs)
    for given in (
        pairs, pairs.numpy(), list(pairs), [list(map(to_pil, row)) for row in pairs], pixels,
        [list(row.permute(0, 2, 3, 1).numpy()) for row in pixels],
    ):  # fmt: skip
        assert levels(rcdm_fast.sheet(given)) == wanted
    batch = grays(11)
    many = to_uint8(batch)[:, 0, 0, 0].tolist()
    for number, image in enumerate(batch):
        save_image(to_pil(image), tmp_path / "folder" / f"{number:02}.png")
    for flat in (batch, to_uint8(batch), to_uint8(batch).permute(0, 2, 3, 1).numpy(), tmp_path / "folder"):
        found = levels(rcdm_fast.sheet(flat))
        assert [level for row in found for level in row][:11] == many
        assert [len(row) for row in found] == [8, 8]
    assert rcdm_fast.sheet(batch[:1], cell=20).size == (24, 24)
    assert rcdm_fast.sheet(torch.zeros(1, 3, 300, 300)).size == (196, 196)


def test_names_on_a_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, object] = {}
    real = images.image_sheet

    def noted(rows: list[list[Image.Image]], **options: object) -> Image.Image:
        drawn.update(options)
        return real(rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(showing, "image_sheet", noted)
    bare = rcdm_fast.sheet(grays(2, 3))
    named = rcdm_fast.sheet(grays(2, 3), ["a cat", "x" * 40])
    assert named.width > bare.width
    assert drawn["row_titles"] == ["a cat", f"{'x' * 12}...{'x' * 9}"]
    assert rcdm_fast.sheet(grays(2, 3), "above all").height > bare.height
    assert drawn["column_titles"] == ["above all"]
    for titles in (["one"], ["one", "two", "three"]):
        with pytest.raises(ConfigError, match="titles for 2 rows"):
            rcdm_fast.sheet(grays(2, 3), titles)
    with pytest.raises(ConfigError, match="4 titles for 3 columns"):
        rcdm_fast.sheet(grays(2, 3), columns=list("abcd"))
    with pytest.raises(ConfigError, match="'above all' and titles of columns have one place"):
        rcdm_fast.sheet(grays(2, 3), "above all", columns=list("abc"))
    none: list[torch.Tensor] = []
    for nothing in (none, torch.zeros(0, 3, 8, 8), torch.zeros(0, 2, 3, 8, 8)):
        with pytest.raises(ImageError):
            rcdm_fast.sheet(nothing)
    with pytest.raises(ImageError, match="201 rows"):
        rcdm_fast.sheet(grays(201, 1))


def test_a_model_shows_what_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, h = small.model(), torch.randn(2, small.DIM)
    sheet = model.show(h, per=3, steps=2, seed=4)
    assert same(sheet, rcdm_fast.sheet(model.sample(h, per=3, steps=2, seed=4)))
    assert same(model.show(h[0].numpy(), per=3, steps=2, seed=4), sheet.crop((0, 0, sheet.width, 100)))
    for number, image in enumerate(small.make_images(2, 16)):
        save_image(to_pil(image), tmp_path / f"{number}.png")
    seen: dict[str, object] = {}
    monkeypatch.setattr(
        showing, "sheet", lambda rows, titles, **options: seen.update(rows=rows, titles=titles, **options)
    )
    model.show(tmp_path, per=3, steps=2)
    rows = seen["rows"]
    assert isinstance(rows, list)
    assert [len(row) for row in rows] == [5, 5]
    assert seen["titles"] == ["0.png", "1.png"]
    assert seen["columns"] == ["photo", "seen", "samples"]
    photo = Image.open(tmp_path / "1.png")
    assert same(rows[1][0], photo)
    assert same(rows[1][1], to_pil(model.view(photo)[0]))
    drawn = model.sample(model.encode(tmp_path), per=3, steps=2)
    assert same(rows[1][4], to_pil(drawn[1, 2]))
    model.show(list(small.make_images(2, 16)), ["a", "b"], per=1, steps=1)
    assert seen["titles"] == ["a", "b"]


def test_what_a_model_says_of_itself() -> None:
    model = small.model()
    assert repr(model) == (
        "<rcdm_fast.Model (unnamed): 8 px of representations [6], "
        f"{sum(p.numel() for p in model.unet.parameters()) / 1e6:.1f} M parameters, eager fp32 on cpu, "
        "encoder module (backbone)>"
    )
    assert "8 px of 4 classes" in repr(small.model(representation_dim=0, num_classes=4))
    assert "8 px of nothing" in repr(small.model(representation_dim=0))
    model._encoder = rcdm_fast.EncoderConfig("timm:resnet<18>", image_size=8)  # the one that is used is told
    assert model.describe().splitlines()[-1] == "encoder  timm:resnet<18> (backbone)"
    html = model._repr_html_()
    assert html.startswith("<pre>model ")
    assert "resnet&lt;18&gt;" in html


def test_sheets_of_commands_bear_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.model())
    titles: list[dict[str, object]] = []
    real = images.image_sheet

    def noted(rows: Any, **options: Any) -> Image.Image:
        titles.append(options)
        return real(rows, **options)

    monkeypatch.setattr(images, "image_sheet", noted)
    for name, image in zip(("cat.png", "a-very-long-name-of-a-dog.png"), small.make_images(2, 16), strict=True):
        save_image(to_pil(image), tmp_path / name)
    paths = [str(tmp_path / "cat.png"), str(tmp_path / "a-very-long-name-of-a-dog.png")]
    out = ["--steps", "1", "--per", "1", "--out", str(tmp_path / "sheet.png")]
    assert main(["sample", *paths, *out]) == 0
    assert titles[-1]["row_titles"] == ["cat.png", "a-very-long..f-a-dog.png"]
    assert main(["interpolate", *paths, "--frames", "3", *out]) == 0
    assert titles[-1]["column_titles"] == ["cat.png", "", "", "", "a-ver..g.png"]
    assert titles[-1]["group_gaps"] == [1, 4]
    np.savez(tmp_path / "h.npz", h=np.zeros((2, small.DIM), np.float32), ids=np.array(["x", "y"]))
    assert main(["interpolate", paths[0], f"{tmp_path}/h.npz:y", "--frames", "3", *out]) == 0
    assert titles[-1]["column_titles"] == ["cat.png", "", "", "h.npz:y"]


def test_arrays_of_any_memory_are_shown() -> None:
    """Turned around, of the other byte order; a tensor cannot be made of them as they are."""
    model, h = small.quick_model(), np.random.default_rng(0).normal(size=(2, small.DIM)).astype(np.float32)
    want = model.show(h[::-1].copy(), per=1, steps=2)
    assert same(model.show(h[::-1], per=1, steps=2), want)
    assert same(model.show(h[::-1].astype(">f4"), per=1, steps=2), want)
    pixels = to_uint8(grays(2, 3)).numpy()[0]
    assert same(rcdm_fast.sheet(pixels[::-1]), rcdm_fast.sheet(pixels[::-1].copy()))


def test_photographs_that_can_be_gone_through_once() -> None:
    """And images in 8 bits, colors first, as `generate` gives them."""
    model, batch = small.quick_model(), small.make_images(2, 16)
    want = model.show(list(map(to_pil, batch)), per=1, steps=2)
    assert same(model.show(map(to_pil, batch), per=1, steps=2), want)
    assert same(model.show(to_uint8(batch), per=1, steps=2), want)
    with pytest.raises(ConfigError, match=r"cell must be in 8\.\.2048, got 0"):
        model.show(batch, per=1, steps=2, cell=0)


def test_cells_of_photographs_are_as_large_as_the_models_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """But 96 at least and 192 at most, unless it is said."""
    model, cells = small.quick_model(), list[int]()
    monkeypatch.setattr(showing, "sheet", lambda rows, titles, cell, **_: cells.append(cell))
    monkeypatch.setattr(model, "sample", lambda h, config: torch.zeros(len(h), 1, 3, 8, 8))
    photo = list(small.make_images(1, 16))
    for size in (8, 128, 512):
        unet = dataclasses.replace(model.config.unet, image_size=size)
        model.config = dataclasses.replace(model.config, unet=unet)
        model.show(photo)
    model.show(photo, cell=20)
    assert cells == [96, 128, 192, 20]


def test_a_model_without_its_encoder_tells_the_one_of_its_file() -> None:
    model = small.quick_model()
    model.config = dataclasses.replace(model.config, encoder=rcdm_fast.EncoderConfig("timm:a", "layer4"), name="kept")
    model._encoder = None
    assert model.describe().splitlines()[-1] == "encoder  timm:a (layer4)"
    assert repr(model).endswith("encoder timm:a (layer4)>")
    assert repr(model).startswith("<rcdm_fast.Model kept: ")
    unet = dataclasses.replace(model.config.unet, condition_map=(2, 3, 1))
    model.config = dataclasses.replace(model.config, unet=unet)
    assert "8 px of representations [2,3,1], " in repr(model)
