"""Shared drawings of the playground, and what its page's values mean: no server, no browser."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast.app import handler, sharing
from rcdm_fast.app.handler import Given, Handler, Shown
from rcdm_fast.app.playground import Drawn, Playground, Settings
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.encoders import EncoderError, build
from rcdm_fast.images import to_pil
from tests import small

H = torch.randn(1, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 256)[None]
SETTINGS = Settings(model="small", per=3, steps=7, solver="deis", guidance=1.5, seed=11, mix=0.5, clip=False)


def never() -> bool:
    return False


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Handler:
    model = small.quick_model()
    monkeypatch.setattr(rcdm_fast, "load", lambda name, **_: model)
    return Handler(Playground(("small", "/home/somebody/other.safetensors")))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    to_pil(small.make_images(1, 40)[0]).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def given(image: str | None, **changes: Any) -> Given:
    values = {"model": "small", "per": 5, "steps": 3, "solver": "ddim", "seed": 4, "augmentation": "none"}
    values |= {"magnitude": 0.0, "other": None, "mix": 0.0, "direction": "none", "strength": 0.0, "guidance": 1.0}
    return Given(image, **{**values, **changes})


def drawn(page: Handler, values: Given) -> tuple[list[Shown], dict[str, bytes]]:
    """All that is shown, and what the files of the last hold, which are gone then."""
    shown, kept, files = [], {}, []
    for each in page.draw(values, never):
        shown.append(each)
        if each.files is not None:
            files = [Path(name) for name in each.files[:3]]
            kept = {file.name: file.read_bytes() for file in files}
    assert not any(file.exists() for file in files)
    return shown, kept


def pixels(shown: Shown) -> dict[str, list[bytes]]:
    return {name: [image.tobytes() for image in images] for name, images in shown.samples.items()}


def test_a_drawing_is_told_exactly(tmp_path: Path) -> None:
    """Settings that h does not hold already, and every number of h, from the text, a file and a link."""
    text = sharing.text(SETTINGS, {"small": H, "other": H[:, :2]})
    (tmp_path / "d.json").write_text(text)
    code = sharing.link(text)
    assert set(code) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    for said in (text, sharing.of_file(tmp_path / "d.json"), sharing.of_link(code)):
        found = sharing.parsed(said)
        assert found.settings == Settings(
            model="small", per=3, steps=7, solver="deis", guidance=1.5, seed=11, clip=False
        )
        assert list(found.h) == ["small", "other"]
        assert torch.equal(found.h["small"], H)
        assert torch.equal(found.h["other"], H[:, :2])
    assert sharing.link(sharing.text(SETTINGS, {"small": torch.randn(1, 8192)})) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: "[]", "no shared drawing"),
        (lambda said: said | {sharing.MARK: 3}, "of version 3; 2 is known"),
        (lambda said: said | {"h": {}}, "no list of finite numbers"),
        (lambda said: said | {"h": {"small": [1.0, float("nan")]}}, "no list of finite numbers"),
        (lambda said: said | {"h": {"small": [[1.0]]}}, "no list of finite numbers"),
        (lambda said: said | {"h": {"small": ["x"]}}, "no shared drawing"),
        (lambda said: said | {"settings": {"steps": 100_000}}, "steps must be in 1..250"),
        (lambda said: said | {"more": "x" * sharing.MAX_BYTES}, "over 1 MiB"),
    ],
)
def test_what_is_no_drawing_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    said = change(json.loads(sharing.text(SETTINGS, {"small": H})))
    text = said if isinstance(said, str) else json.dumps(said)
    with pytest.raises(ConfigError, match=message):
        sharing.parsed(text)


def test_auto_of_the_first_version_was_ddim() -> None:
    said = json.loads(sharing.text(Settings(model="small"), {"small": H}))
    for version, solver, means in ((1, "auto", "ddim"), (1, "heun", "heun"), (2, "auto", "auto")):
        text = json.dumps({**said, sharing.MARK: version, "settings": {**said["settings"], "solver": solver}})
        assert sharing.parsed(text).settings.solver == means


def test_a_drawing_says_what_auto_was(page: Handler, photo: str) -> None:
    """Another playground may mean something else by it."""
    for changes, solver in (({"steps": 3}, "deis"), ({"steps": 2}, "ddim")):
        _, files = drawn(page, given(photo, solver="auto", **changes))
        assert sharing.parsed(files["drawing.json"].decode()).settings.solver == solver


def test_files_and_links_that_hold_none(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b" " * (sharing.MAX_BYTES + 1))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("missing", "long", "bytes"):
        with pytest.raises(ConfigError, match=f"{name}: no shared drawing"):
            sharing.of_file(tmp_path / name)
    code = sharing.link(sharing.text(SETTINGS, {"small": H}))
    bomb = base64.urlsafe_b64encode(zlib.compress(b" " * (64 << 20))).decode()
    for link in (code[: len(code) // 2], "x", "&&&&", bomb, "é"):
        with pytest.raises(ConfigError, match="this link holds no drawing"):
            sharing.of_link(link)


def test_who_opens_a_drawing_sees_the_same_images(page: Handler, photo: str) -> None:
    """Of two models at once, after h was moved; without the photograph."""
    both = given(photo, beside="other.safetensors", direction="as brightness", strength=1.0)
    shown, files = drawn(page, both)
    text = files["drawing.json"].decode()
    settings, model, beside = page.opened(text)
    assert (model, beside, settings.per, settings.seed) == ("small", "other.safetensors", 5, 4)
    again, _ = drawn(page, given(None, beside=beside, shared=text))
    assert again[-1].seen == []
    assert pixels(again[-1]) == pixels(shown[-1])
    assert len(pixels(again[-1])) == 2
    assert sharing.of_link(shown[-1].files.link if shown[-1].files else "") == text
    assert str(Path(photo).parent) not in text
    assert "/home" not in text


def test_files_of_a_drawing(page: Handler, photo: str, tmp_path: Path) -> None:
    shown, files = drawn(page, given(photo))
    assert [each.files is None for each in shown] == [True] * (len(shown) - 1) + [False]
    (tmp_path / "h.npy").write_bytes(files["representation.npy"])
    h = np.load(tmp_path / "h.npy")
    assert (h.dtype, h.shape) == (np.float32, (1, 6))
    assert np.array_equal(h, page.playground.model("small").encode([photo]).numpy())
    (tmp_path / "sheet.png").write_bytes(files["sheet.png"])
    with Image.open(tmp_path / "sheet.png") as sheet:  # what is seen, then five samples
        assert sheet.width > 6 * handler.SHOWN
        assert sheet.height < 2 * handler.SHOWN


def test_what_does_not_fit_a_shared_drawing(page: Handler, photo: str) -> None:
    text = drawn(page, given(photo))[1]["drawing.json"].decode()
    for changes in (
        {"augmentation": "flip"}, {"mix": 0.5}, {"direction": "as flip", "strength": 1.0}, {"left_out": ["hue"]},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="drawn as it is: give a photograph"):
            next(page.draw(given(None, shared=text, **changes), never))
    with pytest.raises(ConfigError, match=r"representation of small, not of other\.safetensors"):
        next(page.draw(given(None, shared=text, beside="other.safetensors"), never))
    with pytest.raises(ConfigError, match=r"of foreign; this playground offers small, other\.safetensors"):
        page.opened(text.replace('"small"', '"foreign"'))


def test_two_models_draw_in_turn(page: Handler, photo: str) -> None:
    """The second one's draft does not wait for the first one's last image."""
    shown, _ = drawn(page, given(photo, beside="other.safetensors", steps=8, per=4))
    counts = [[len(images) for images in each.samples.values()] for each in shown]
    assert counts[0] == [0, 0]
    assert [2, 2] in counts[: len(counts) // 2]
    said = [each.status for each in shown]
    assert said[0] == "Drawing 4 images of each model"
    assert said[2] == "A draft of 4 images of each model; better ones take its place"
    assert said[-1] == "4 of 4 images of each model"
    alone, _ = drawn(page, given(photo, beside="small"))
    assert list(alone[-1].samples) == ["small"]
    assert alone[-1].status == "5 of 5 images, from 6 numbers alone"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("give a photograph first", "Give a photograph first."),
        ("dot.png: 4x4 pixels", "dot.png: 4x4 pixels."),
        ("cifar10-x has no encoder", "cifar10-x has no encoder."),
        ("what now?", "What now?"),
    ],
)
def test_errors_are_sentences(said: str, sentence: str) -> None:
    assert Handler(Playground(("small",))).sentence(ConfigError(said)) == sentence


def test_where_the_code_of_an_encoder_lies_is_not_told() -> None:
    page = Handler(Playground(("small",), encoders={"small": "python:/tmp/secret/nix.py:Net?trust=1"}))
    with pytest.raises(EncoderError) as error:
        build("python:/tmp/secret/nix.py:Net?trust=1")
    assert page.sentence(error.value) == "python:nix.py:Net: no such file."
    assert page.sentence(ConfigError("https://a.example/b/c is no model")) == "https://a.example/b/c is no model."


def test_everything_that_h_does_not_hold_is_shared() -> None:
    settings = Settings(model="small", per=3, steps=7, solver="ddim", guidance=1.5, eta=0.5, seed=11, clip=False)
    assert sharing.parsed(sharing.text(settings, {"small": H})).settings == settings
    fields = {each.name: each.default for each in dataclasses.fields(SamplingConfig)}
    assert not [name for name, usual in fields.items() if getattr(settings, name) == usual], "left as it is by default"


@pytest.mark.parametrize(
    ("value", "setting"),
    [
        ({"model": "other.safetensors"}, {"model": "/home/somebody/other.safetensors"}),
        ({"per": 3.0}, {"per": 3}),
        ({"steps": 9.0}, {"steps": 9}),
        ({"solver": "deis"}, {"solver": "deis"}),
        ({"seed": 12.0}, {"seed": 12}),
        ({"seed": None}, {"seed": 0}),
        ({"guidance": 2.5}, {"guidance": 2.5}),
        ({"augmentation": "brightness", "magnitude": 0.3}, {"augmentation": "brightness", "magnitude": 0.3}),
        ({"mix": 0.25}, {"mix": 0.25}),
        ({"direction": "as flip", "strength": -1.5}, {"direction": "as flip", "strength": -1.5}),
        ({"left_out": ["hue", "x"]}, {"left_out": ("hue", "x")}),
    ],
)
def test_a_value_of_the_page_is_a_setting(page: Handler, value: dict[str, Any], setting: dict[str, Any]) -> None:
    usual = Settings(model="small", per=5, steps=3, solver="ddim", seed=4)
    assert page._settings(given("photo.png")) == usual
    assert page._settings(given("photo.png", **value)) == dataclasses.replace(usual, **setting)


def test_the_second_photograph_of_the_page_is_mixed(page: Handler, photo: str, tmp_path: Path) -> None:
    second = str(tmp_path / "second.png")
    to_pil(small.make_images(2, 40)[1]).save(second)
    mixed, _ = drawn(page, given(photo, other=second, mix=1.0, per=1))
    alone, _ = drawn(page, given(second, per=1))
    assert [len(each[-1].seen) for each in (mixed, alone)] == [2, 1]
    assert pixels(mixed[-1]) == pixels(alone[-1])


def test_a_direction_without_strength_leaves_a_shared_drawing_as_it_is(page: Handler, photo: str) -> None:
    shown, files = drawn(page, given(photo))
    text = files["drawing.json"].decode()
    again, _ = drawn(page, given(None, shared=text, direction="as flip", strength=0.0))
    assert pixels(again[-1]) == pixels(shown[-1])


@pytest.mark.parametrize(
    ("finished", "guided", "asked", "said"),
    [
        ((4, 2), (1.0, 1.0), 1.0, "2 of 4 images of each model"),
        ((4, 0), (1.0, 1.0), 1.0, "A draft of 4 images of each model; better ones take its place"),
        ((4, 4), (1.5, 1.0), 1.5, "4 of 4 images of each model, guidance 1.5 where a model was trained for it"),
        ((4, 4), (1.5, 1.5), 1.5, "4 of 4 images of each model, guidance 1.5"),
        ((3,), (1.5,), 1.5, "3 of 4 images, from 6 numbers alone, guidance 1.5"),
        ((4,), (1.0,), 1.5, "4 of 4 images, from 6 numbers alone, guidance 1 (the model was not trained for it)"),
    ],
)
def test_what_is_said_of_how_far_a_drawing_is(
    finished: tuple[int, ...], guided: tuple[float, ...], asked: float, said: str
) -> None:
    """As far as the slower of two models."""
    image, h = Image.new("RGB", (8, 8)), torch.zeros(1, 6)
    found = {
        str(place): Drawn((image,), (image,) * 4, 4, strength, done, h)
        for place, (done, strength) in enumerate(zip(finished, guided, strict=True))
    }
    assert handler._shown(found, asked).status == said


def test_files_of_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each on the sheet; the representation by itself is the first one's, the file to share has both."""
    sheets: list[Any] = []

    def sheet(rows: Any, **options: Any) -> Image.Image:
        sheets.append(([[image.getpixel((0, 0)) for image in row] for row in rows], options))
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(handler, "image_sheet", sheet)
    grays = [Image.new("L", (8, 8), level) for level in range(5)]
    one = Drawn((grays[0], grays[4]), (grays[1],), 1, h=torch.full((1, 2), 0.5), finished=1)
    two = Drawn((grays[2], grays[4]), (grays[3],), 1, h=torch.full((1, 3), 0.25), finished=1)
    files = handler._files(tmp_path, SETTINGS, {"one": one, "two": two})
    ((rows, options),) = sheets
    assert rows == [[0, 1], [2, 3]]
    assert (options["row_titles"], options["column_titles"]) == (["one", "two"], ["seen", "samples"])
    assert np.load(files.representation).tolist() == [[0.5, 0.5]]
    shared = sharing.parsed(Path(files.drawing).read_text())
    assert {name: row.tolist() for name, row in shared.h.items()} == {"one": [[0.5] * 2], "two": [[0.25] * 3]}


def test_models_of_one_name_are_told_apart() -> None:
    found = handler.labels(("a", "/x/m.pt", "/y/m.pt", "~/m.pt", "org/m"))
    assert found == {"a": "a", "m.pt": "/x/m.pt", "m.pt (2)": "/y/m.pt", "m.pt (3)": "~/m.pt", "org/m": "org/m"}
