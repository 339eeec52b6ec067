"""The playground: what it draws, its limits, and the page driven in a browser."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib.util
import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import rcdm_fast
from rcdm_fast.analysis.augment import AUGMENTATIONS
from rcdm_fast.analysis.properties import PROPERTIES
from rcdm_fast.app import directions, examples, guard, known_world, page
from rcdm_fast.app.handler import Files, Handler, Shown
from rcdm_fast.app.playground import Drawn, Playground, Settings, magnitudes
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import ImageError, to_pil, to_uint8
from rcdm_fast.model import Model
from tests import browser, small

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


@pytest.fixture
def playground(monkeypatch: pytest.MonkeyPatch) -> Playground:
    model = small.quick_model()
    monkeypatch.setattr(rcdm_fast, "load", lambda name, **_: model)
    return Playground(("small", "other"))


@pytest.fixture
def photos() -> list[Image.Image]:
    return [to_pil(image) for image in small.make_images(2, 40)]


def same(one: tuple[Image.Image, ...], two: tuple[Image.Image, ...]) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in two]


def last(playground: Playground, photos: list[Image.Image], **changes: Any) -> Drawn:
    *_, found = playground.draw(Settings(model="small", steps=3, per=6, **changes), *photos)
    return found


def test_samples_appear_bit_by_bit(playground: Playground, photos: list[Image.Image]) -> None:
    found = list(playground.draw(Settings(model="small", steps=3, per=6), photos[0]))
    assert [len(each.samples) for each in found] == [0, 4, 6]
    assert all(len(each.seen) == 1 and each.wanted == 6 for each in found)
    assert found[0].seen[0].size == (8, 8)
    model = playground.model("small")
    want = model.sample(model.encode([photos[0]]), per=6, steps=3)[0]
    assert same(found[-1].samples, tuple(to_pil(image) for image in want))


def test_a_draft_comes_first_and_gives_way(playground: Playground, photos: list[Image.Image]) -> None:
    """Where there are steps to spare. A finished image takes the place of its draft, from the same noise."""
    found = list(playground.draw(Settings(model="small", steps=8, per=6), photos[0]))
    assert [(len(each.samples), each.finished) for each in found] == [(0, 0), (2, 0), (4, 0), (6, 0), (6, 4), (6, 6)]
    model = playground.model("small")
    h = model.encode([photos[0]])
    draft = tuple(to_pil(image) for image in model.sample(h, per=6, steps=4, solver="dpmpp_2m")[0])
    final = tuple(to_pil(image) for image in model.sample(h, per=6, steps=8)[0])
    assert same(found[3].samples, draft)
    assert same(found[4].samples, (*final[:4], *draft[4:]))
    assert same(found[5].samples, final)
    assert all(each.h is not None and torch.equal(each.h, h) for each in found[1:])


def test_students_have_no_draft(playground: Playground, photos: list[Image.Image]) -> None:
    """They were made for one number of steps."""
    model = playground.model("small")
    own = tuple(range(10))
    model.config = dataclasses.replace(model.config, student_steps=own)
    try:
        found = list(playground.draw(Settings(model="small", steps=10, per=2), photos[0]))
        assert [(len(each.samples), each.finished) for each in found] == [(0, 0), (2, 2)]
    finally:
        model.config = dataclasses.replace(model.config, student_steps=())


def test_what_is_refused_is_refused_before_the_draft(playground: Playground, photos: list[Image.Image]) -> None:
    drawing = playground.draw(Settings(model="small", steps=8, solver="fitted"), photos[0])
    assert next(drawing).samples == ()
    with pytest.raises(ConfigError, match="no fitted solver"):
        next(drawing)


def test_a_representation_is_drawn_as_it_is(playground: Playground, photos: list[Image.Image]) -> None:
    first = last(playground, photos)
    *_, again = playground.draw(Settings(model="small", steps=3, per=6), None, h=first.h)
    assert again.seen == ()
    assert same(again.samples, first.samples)
    with pytest.raises(ConfigError, match=r"h must be \[R,6\]"):
        list(playground.draw(Settings(model="small"), None, h=torch.zeros(1, 3)))


def test_factors_of_the_known_world_are_left_out() -> None:
    """What is drawn from is what an encoder says that does not read them; photographs' encoders say no."""
    playground = Playground(("shapes-oracle", "cifar10-simclr-head"))
    image = examples.images()[examples.WORLD]
    settings = Settings(model="shapes-oracle", per=1, steps=1)

    def h(**changes: Any) -> Tensor:
        *_, found = playground.draw(dataclasses.replace(settings, **changes), image)
        assert found.h is not None
        return found.h

    whole, without = h(), h(left_out=("hue", "light"))
    code = "shape,x,y,size,angle,ground_hue"
    wanted = rcdm_fast.load("shapes-oracle", encoder=f"reader:shapes-reader?factors={code}&masked=1").encode([image])
    torch.testing.assert_close(without, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, wanted, atol=1e-2)
    moved = h(left_out=("hue", "light"), direction="as brightness", strength=1.0)
    same_parts = wanted == 0
    assert torch.equal(moved[same_parts], wanted[same_parts])
    with pytest.raises(ConfigError, match="something must be left"):
        h(left_out=known_world.NAMES)
    with pytest.raises(ConfigError, match="a factor that is left out"):
        Settings(model="shapes-oracle", left_out=("weight",))
    with pytest.raises(ConfigError, match="only of the known world"):
        h(model="cifar10-simclr-head", left_out=("hue",))


def test_guidance_of_models_that_can_be_guided(playground: Playground, photos: list[Image.Image]) -> None:
    plain, asked = last(playground, photos), last(playground, photos, guidance=2.0)
    assert (plain.guidance, asked.guidance) == (1.0, 1.0)  # a small model was not trained for it
    assert same(asked.samples, plain.samples)
    model = playground.model("small")
    model.config = dataclasses.replace(model.config, representation_dropout=0.1)
    try:
        guided = last(playground, photos, guidance=2.0)
        assert guided.guidance == 2.0
        want = model.sample(model.encode([photos[0]]), per=6, steps=3, guidance=2.0)[0]
        assert same(guided.samples, tuple(to_pil(image) for image in want))
    finally:
        model.config = dataclasses.replace(model.config, representation_dropout=0.0)


def test_settings_decide(playground: Playground, photos: list[Image.Image]) -> None:
    first = last(playground, photos)
    assert same(last(playground, photos).samples, first.samples)
    assert not same(last(playground, photos, seed=1).samples, first.samples)
    second = last(playground, photos[::-1])
    mixed = last(playground, photos, mix=1.0)
    assert same(mixed.samples, second.samples)
    assert len(mixed.seen) == 2
    flipped = last(playground, photos, augmentation="flip", magnitude=1.0)
    assert same(flipped.seen[:1], (first.seen[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT),))


def test_neutral_magnitudes_change_nothing() -> None:
    images = small.make_images(2, 16)
    for name, augmentation in AUGMENTATIONS.items():
        low, high, neutral = magnitudes(name)
        assert low <= neutral <= high
        assert low < high
        assert float((augmentation(images, neutral) - images).abs().max()) < 1e-5, name


def drawn_from(playground: Playground, photos: list[Image.Image], **changes: Any) -> Tensor:
    """The representation that a drawing of these settings is made of."""
    model, asked = playground.model("small"), []
    request = model.request
    model.request = lambda h, *each, **rest: asked.append(h) or request(h, *each, **rest)  # type: ignore[method-assign, func-returns-value]
    try:
        last(playground, photos, **changes)
    finally:
        model.request = request  # type: ignore[method-assign]
    found: Tensor = asked[0]
    return found


def direction_of(name: str, playground: Playground, photos: list[Image.Image]) -> Tensor:
    return playground.direction(Settings(model="small", direction=name), playground.model("small").view(photos[0]))


def test_h_moves_by_strength_times_direction(playground: Playground, photos: list[Image.Image]) -> None:
    first, h = last(playground, photos), drawn_from(playground, photos)
    for name in playground.directions:
        assert same(last(playground, photos, direction=name).samples, first.samples)
        direction = direction_of(name, playground, photos)
        assert direction.shape == h.shape
        for strength in (-2.0, 0.5):
            moved = drawn_from(playground, photos, direction=name, strength=strength)
            assert torch.equal(moved, h + strength * direction)
    bright = last(playground, photos, direction="as brightness", strength=1.0)
    assert same(bright.seen, first.seen)
    assert not same(bright.samples, first.samples)
    mixed = drawn_from(playground, photos, mix=1.0, direction="as brightness", strength=1.0)
    assert torch.allclose(
        mixed - drawn_from(playground, photos[::-1]), direction_of("as brightness", playground, photos)
    )


def test_the_second_photograph_is_mixed_as_it_is(playground: Playground, photos: list[Image.Image]) -> None:
    """What is done to an image is done to the first alone; h comes all from the second where the mix says so."""
    changed = {"augmentation": "brightness", "magnitude": 0.3}
    plain, dark = last(playground, photos), last(playground, photos, **changed)
    assert not same(dark.seen[:1], plain.seen[:1])
    assert same(dark.seen[1:], plain.seen[1:])
    second = drawn_from(playground, photos[::-1])
    assert torch.equal(drawn_from(playground, photos, mix=1.0, **changed), second)
    first = drawn_from(playground, photos, **changed)
    assert torch.allclose(drawn_from(playground, photos, mix=0.25, **changed), 0.75 * first + 0.25 * second)


def test_every_model_is_its_own(monkeypatch: pytest.MonkeyPatch, photos: list[Image.Image]) -> None:
    """The one that is named is loaded and draws; of those that were used last two are kept, and no third one."""
    models = {name: small.quick_model() for name in ("one", "other", "third")}
    with torch.no_grad():
        for parameter in models["other"].unet.parameters():
            parameter.mul_(0.5)
    asked: list[str] = []

    def load(name: str, **_: Any) -> Model:
        asked.append(name)
        return models[name]

    monkeypatch.setattr(rcdm_fast, "load", load)
    playground = Playground(tuple(models), data="d")
    for name in ("one", "one", "other", "one", "third", "one", "other"):
        assert playground.model(name) is models[name]
    assert asked == ["one", "other", "third", "other"]
    drawn = {name: list(playground.draw(Settings(model=name, per=1, steps=1), photos[0]))[-1] for name in asked[:2]}
    assert not same(drawn["one"].samples, drawn["other"].samples)
    monkeypatch.setattr("rcdm_fast.app.playground.open_data", lambda *_: None)
    whose: list[Any] = []
    monkeypatch.setattr(directions, "of_data", lambda encoder, _: whose.append(encoder) or {"d": encoder})  # type: ignore[func-returns-value]
    found: list[Any] = [playground.from_data(name)["d"] for name in ("one", "other", "one")]
    encoders: list[Any] = [models[name].encoder for name in ("one", "other", "one")]
    assert all(each is encoder for each, encoder in zip(found, encoders, strict=True))
    assert len(whose) == 2  # each is computed once


def test_a_direction_follows_its_augmentation() -> None:
    """Mean colors as h: brightness raises them; magnitudes on the other side of neutral do not count."""
    gray = torch.full((1, 3, 16, 16), -0.2)
    up = directions.of_photograph(small.encoder(), gray, "as brightness")
    assert torch.allclose(up[0, :3], torch.full((3,), 0.8 * 0.375), atol=1e-5)  # (0.25 + 0.5) / 2 of 0.8 above black
    assert directions.magnitudes_of(AUGMENTATIONS["shift-x"]) == (0.125, 0.25)
    assert directions.magnitudes_of(AUGMENTATIONS["solarize"]) == (0.8, 0.6, 0.4)


def test_directions_from_data(playground: Playground, photos: list[Image.Image], tmp_path: Path) -> None:
    for number, image in enumerate(small.make_images(24, 12, seed=3)):
        to_pil(image).save(tmp_path / f"{number:02}.png")
    playground.data = str(tmp_path)
    found = playground.from_data("small")
    assert tuple(found) == directions.OF_DATA == playground.directions[len(directions.OF_PHOTOGRAPH) :]
    assert playground.from_data("small") is found
    assert float(found["data: more brightness"][0, :3].mean()) > 0.05
    h = drawn_from(playground, photos)
    for name, direction in found.items():
        assert torch.equal(drawn_from(playground, photos, direction=name, strength=1.0), h + direction)
    assert {name.removeprefix("data: more ") for name in found if "more" in name} == {
        each.name for each in PROPERTIES.values() if each.period is None
    }
    for path in sorted(tmp_path.iterdir())[19:]:
        path.unlink()
    with pytest.raises(ConfigError, match="at least 20 images, got 19"):
        Playground(("small",), data=str(tmp_path)).from_data("small")


def test_models_are_loaded_as_the_playground_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, **told: Any) -> Model:
        asked.append((name, told))
        return small.quick_model()

    monkeypatch.setattr(rcdm_fast, "load", load)
    playground = Playground(("a", "b"), "cpu", "eager", "bf16", encoders={"b": "file:net.pt2"})
    how = {"device": "cpu", "engine": "eager", "precision": "bf16"}
    for name, encoder in (("b", "file:net.pt2"), ("a", None)):
        playground.model(name)
        assert asked.pop() == (name, {**how, "encoder": encoder})


def test_a_draft_does_not_stumble_over_settings_of_the_drawing(
    playground: Playground, photos: list[Image.Image]
) -> None:
    """Its solver takes no fresh noise, and this model no guidance."""
    asked = Settings(model="small", steps=8, per=2, solver="ddim", eta=0.5, guidance=2.0)
    found = list(playground.draw(asked, photos[0]))
    model = playground.model("small")
    h = model.encode([photos[0]])
    draft = model.sample(h, per=2, steps=4, solver="dpmpp_2m")[0]
    final = model.sample(h, per=2, steps=8, solver="ddim", eta=0.5)[0]
    assert same(found[1].samples, tuple(map(to_pil, draft)))
    assert same(found[-1].samples, tuple(map(to_pil, final)))


def test_directions_look_at_images_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many, which may lie by class, the first, the last and those between; as many as there must be are enough."""
    seen: list[list[int]] = []
    subset = ImageSet.subset

    def noted(self: ImageSet, places: Tensor) -> ImageSet:
        seen.append(places.tolist())
        return subset(self, places)

    monkeypatch.setattr(ImageSet, "subset", noted)
    monkeypatch.setattr(directions, "MAX_IMAGES", 20)
    for count in (58, 20):
        directions.of_data(small.encoder(), ImageSet(to_uint8(small.make_images(count)), None, (), (), str(count)))
    assert seen[0] == [3 * number for number in range(20)]
    assert list(range(20)) in seen


def test_what_is_refused(playground: Playground, photos: list[Image.Image]) -> None:
    for changes, message in (
        ({"steps": 0}, "steps must be in 1..250"), ({"per": 33}, "per must be in 1..32"), ({"mix": 1.5}, "mix"),
        ({"augmentation": "x"}, "augmentation"), ({"solver": "euler"}, "solver"),
        ({"strength": 2.5}, "strength"), ({"strength": float("nan")}, "strength"),
        ({"direction": "x"}, "known: as flip, .*data: component 1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Settings(model="small", **changes)
    with pytest.raises(ConfigError, match="give a photograph"):
        next(playground.draw(Settings(model="small"), None))
    with pytest.raises(ConfigError, match="second photograph"):
        next(playground.draw(Settings(model="small", mix=0.5), photos[0]))
    with pytest.raises(ConfigError, match=r"--data.*as flip"):
        list(playground.draw(Settings(model="small", direction="data: component 1", strength=1.0), photos[0]))
    with pytest.raises(ConfigError, match="not among the models"):
        next(playground.draw(Settings(model="/etc/passwd"), photos[0]))
    with pytest.raises(ImageError, match="at least 8"):
        next(playground.draw(Settings(model="small"), Image.new("RGB", (4, 4))))


def gray(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def made(kind: str, *given: Any, **options: Any) -> dict[str, Any]:
    """In place of a component of the page: what it is made with."""
    return {"kind": kind, "given": given, **options}


COMPONENTS: dict[str, Any] = {
    name: functools.partial(made, name) for name in ("Gallery", "Image", "Row", "Slider", "Accordion")
}


def test_every_part_of_a_page_gets_its_own_of_a_drawing() -> None:
    gr = SimpleNamespace(**COMPONENTS)
    files = Files("a.png", "h.npy", "d.json", "code")
    samples = {"one": [gray(1), gray(2)], "two": [gray(3)]}
    found = dict(zip(page._OUTPUTS, page._updates(gr, Shown("said", [gray(4), gray(5)], samples, files)), strict=True))
    assert found["status"] == "said"
    assert (found["samples"]["label"], found["samples"]["value"]) == ("Samples: one", samples["one"])
    assert (found["beside samples"]["label"], found["beside samples"]["value"]) == ("Samples: two", samples["two"])
    assert [found[name]["value"] for name in ("seen", "second")] == [gray(4), gray(5)]
    assert [found[name] for name in ("sheet", "representation", "share", "code")] == list(files)
    assert found["files"]["visible"]
    found = dict(zip(page._OUTPUTS, page._updates(gr, Shown("", [gray(4)], {"one": []})), strict=True))
    hidden = {name: found[name]["visible"] for name in ("beside samples", "seen", "second", "files")}
    assert hidden == {"beside samples": False, "seen": True, "second": False, "files": False}
    assert [found[name] for name in ("sheet", "representation", "share", "code")] == [None] * 4


class Part:
    """A component whose events are noted."""

    def __init__(self) -> None:
        self.heard: dict[str, Any] = {}

    def __getattr__(self, event: str) -> Any:
        return lambda called, *_, **__: self.heard.setdefault(event, called)


def test_choices_of_a_page_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the known world go to its model, photographs to another; sliders have their augmentation's range."""
    monkeypatch.setattr(examples, "images", lambda: {"Cat": gray(1), examples.WORLD: gray(2)})
    parts: dict[str, Any] = {name: Part() for name in ("augmentation", "magnitude", "model", "image")}
    parts |= {"world": None, "left_out": None, "shared": None, "examples": [Part(), Part()]}
    gr = SimpleNamespace(skip=lambda: "as it is", **COMPONENTS)
    page._connect_choices(gr, Handler(Playground(("first", known_world.DECODER, "third"))), parts)
    photograph, world = (each.heard["click"] for each in parts["examples"])
    assert photograph("third") == (gray(1), None, "third")
    assert photograph(known_world.DECODER) == (gray(1), None, "first")
    assert world("third") == (gray(2), None, known_world.DECODER)
    chosen = parts["model"].heard["change"]
    assert chosen(known_world.DECODER) == (made("Accordion", visible=True), "as it is")
    assert chosen("third") == (made("Accordion", visible=False), [])
    slider = parts["augmentation"].heard["change"]("brightness")
    assert (*slider["given"], slider["value"]) == magnitudes("brightness")
    assert slider["label"] == f"Magnitude ({AUGMENTATIONS['brightness'].about})"
    assert parts["augmentation"].heard["change"]("none")["label"] == "Magnitude"
    assert parts["image"].heard["upload"]() is None, "a photograph takes the place of a shared drawing"


@pytest.mark.parametrize(
    ("host", "allowed", "names"),
    [
        ("127.0.0.1", (), guard.THIS_MACHINE),
        ("[::1]", ("Cats.Example",), (*guard.THIS_MACHINE, "cats.example")),
        ("0.0.0.0", (), None),
        ("192.168.3.4", ("cats.example",), (*guard.THIS_MACHINE, "192.168.3.4", "cats.example")),
    ],
)
def test_a_page_is_served_and_guarded_as_it_was_told(
    host: str, allowed: tuple[str, ...], names: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, Any] = {}

    class Blocks:
        def launch(self, **options: Any) -> tuple[None, str, None]:
            served.update(options)
            return None, "http://there", None

        def block_thread(self) -> None:
            served["waited"] = True

    def build(playground: Playground, queue: int, listeners: Any) -> Blocks:
        served.update(playground=playground, queue=queue, listeners=listeners)
        return Blocks()

    gr = SimpleNamespace(themes=SimpleNamespace(Default=lambda **_: None))
    for name, value in {"gradio": lambda: gr, "build": build, "_folder": lambda: tmp_path}.items():
        monkeypatch.setattr(page, name, value)
    monkeypatch.setattr(examples, "style", str)
    playground = Playground(("small",))
    page.launch(playground, host=host, port=7, queue=3, upload_mib=5, quota_mib=6, allow_hosts=allowed)
    assert {name: served[name] for name in ("server_name", "server_port", "max_file_size", "queue", "waited")} == {
        "server_name": host, "server_port": 7, "max_file_size": "5mb", "queue": 3, "waited": True,
    }  # fmt: skip
    assert served["playground"] is playground
    assert served["share"] is served["show_error"] is False
    app = SimpleNamespace(middleware_stack="what answers")

    async def begin() -> None:
        async with served["app_kwargs"]["lifespan"](app):
            pass

    asyncio.run(begin())
    found: Any = app.middleware_stack
    assert (found.app, found.folder, found.quota_bytes) == ("what answers", tmp_path, 6 * 2**20)
    assert found.listeners is served["listeners"]
    assert found.hosts == (None if names is None else set(names))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@needs_gradio
@pytest.mark.long
def test_in_a_browser(tmp_path: Path, playground: Playground, photos: list[Image.Image]) -> None:
    """See an error, drop a photo, draw it with two models, change h, open the link; nothing comes from elsewhere."""
    photos[0].save(tmp_path / "photo.png")
    with browser.chromium(tmp_path / "profile", 390) as driver:
        script = driver.execute_script
        blocks, address = page.launch(playground, host="127.0.0.1", port=free_port(), queue=2, upload_mib=1, wait=False)
        try:
            assert address.startswith("http://127.0.0.1:")
            driver.get(address)
            until(driver, "return !!document.querySelector('#draw')")
            script("document.querySelector('#draw').click()")
            until(driver, "return document.body.innerText.includes('Give a photograph first.')")
            driver.find_element("css selector", "#photo input[type=file]").send_keys(str(tmp_path / "photo.png"))
            until(driver, "return !!document.querySelector('#photo img')")
            choose(driver, "#beside", "other")
            script("document.querySelector('#draw').click()")
            until(
                driver, "return document.querySelector('#status').innerText.startsWith('8 of 8 images of each model')"
            )
            until(
                driver,
                "return document.querySelectorAll('#beside-samples img').length >= 8"
                " && !!document.querySelector('#link')",
            )
            before = sources(driver)
            assert len(before) >= 8
            top, bottom = (
                script(f"return document.querySelector('{each}').getBoundingClientRect().y")
                for each in ("#samples", "#draw")
            )
            assert 0 < top - bottom < 120  # right below Draw on a phone
            assert script("return document.documentElement.scrollWidth") <= 390
            assert nameless(driver) == []
            script("document.querySelector('#link').click()")
            until(driver, "return location.hash.startsWith('#drawing=')")
            shared = script("return location.href")
            move(driver, "as brightness", 2)
            kept = f"{json.dumps(before)}.includes(e.src)"
            until(driver, f"return [...document.querySelectorAll('#samples img')].filter(e => !({kept})).length >= 8")
            until(
                driver, "return document.querySelector('#status').innerText.startsWith('8 of 8 images of each model')"
            )
            driver.get("about:blank")
            driver.get(shared)
            until(
                driver,
                f"return [...document.querySelectorAll('#samples img')].filter(e => {name_kept(before)}).length >= 8",
            )
            assert not script("return !!document.querySelector('#photo img')")
            names = script("return performance.getEntriesByType('resource').map(e => e.name)")
            assert [name for name in names if not name.startswith((address, "data:", "blob:"))] == []
            driver.save_screenshot(str(tmp_path / "page.png"))
        finally:
            blocks.close()


def nameless(driver: Any) -> list[str]:
    """What can be pressed or filled, and has no name for those who do not see it; images without a text."""
    found: list[str] = driver.execute_script("""
        const named = e => e.innerText?.trim() || e.getAttribute("aria-label") || e.title || e.alt
            || [...(e.labels || [])].some(label => label.innerText.trim()) || e.querySelector("img")?.alt;
        return [...document.querySelectorAll("button, input:not([type=file]), select, textarea, img")]
            .filter(e => e.offsetParent && !named(e)).map(e => e.outerHTML.slice(0, 200))""")
    return found


def sources(driver: Any) -> list[str]:
    """Addresses of the samples; Gradio names an image's file by a hash of its content."""
    found: list[str] = driver.execute_script("return [...document.querySelectorAll('#samples img')].map(e => e.src)")
    return found


def name_kept(before: list[str]) -> str:
    """Whether `e` shows one of these images: Gradio's addresses end in a hash of the content and a name."""
    return f"{json.dumps([each.rsplit('/', 2)[-2] for each in before])}.includes(e.src.split('/').at(-2))"


def choose(driver: Any, where: str, choice: str) -> None:
    """Choose something that ends so in a list."""
    driver.find_element("css selector", f"{where} input").click()
    until(driver, "return document.querySelectorAll('[role=option]').length > 0")
    options = driver.find_elements("css selector", "[role=option]")
    next(option for option in options if option.text.endswith(choice)).click()


def move(driver: Any, direction: str, strength: float) -> None:
    """Open "Move the representation", choose a direction, set its strength and draw."""
    driver.execute_script("[...document.querySelectorAll('#move button')][0].click()")
    until(driver, "return !!document.querySelector('#direction input') && !!document.querySelector('#strength input')")
    choose(driver, "#direction", direction)
    number = driver.find_element("css selector", "#strength input[type=number]")
    driver.execute_script("arguments[0].select()", number)
    number.send_keys(f"{strength}\t")
    driver.execute_script("document.querySelector('#draw').click()")


def until(driver: Any, script: str, seconds: float = 60) -> None:
    """Wait for a script to be true."""
    end = time.monotonic() + seconds
    while not driver.execute_script(script):
        if time.monotonic() > end:
            text = driver.execute_script("return document.body.innerText")
            raise AssertionError(f"{script}: not within {seconds} s; the page says {text[-500:]}")
        time.sleep(0.2)
