"""Worlds of known truth: what is drawn is what the factors say, the same in any block, and a source like any other."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access, world_shapes
from rcdm_fast.data.sources import open_data
from rcdm_fast.data.world import FACTORS, SHAPES, World
from rcdm_fast.images import ImageError, to_pil

PLAIN = {"x": 0.0, "y": 0.0, "size": 0.25, "light": 1.0, "stripe_period": 0.25, "back_size": 0.25}


def row(world: World, **changes: float) -> Tensor:
    """Factors of one image, zeros and `PLAIN` but for the changes; float64 [1,F]."""
    known = {**PLAIN, **changes}
    return torch.tensor([[known.get(name, 0.0) for name in world.names]], dtype=torch.float64)


def coverage(world: World, **changes: float) -> Tensor:
    """How much of every pixel the object covers: red object (1.0, 0.49, 0.49) on cyan ground (0.18, 0.48, 0.48)."""
    red = world.render(row(world, hue=0.0, ground_hue=180.0, **changes))[0, 0].double() / 255
    return (red - 0.18) / (1.0 - 0.18)


@pytest.mark.parametrize("shape", range(4))
def test_area_and_center_of_mass_are_what_the_factors_say(shape: int) -> None:
    world = World(size=128)
    covered = coverage(world, shape=shape, x=0.1, y=-0.07, size=0.3, angle=77.0)
    assert float(covered.mean()) == pytest.approx(0.3**2, rel=0.01)
    place = (torch.arange(128) + 0.5) / 128 - 0.5
    mass = covered / covered.sum()
    assert float((mass.sum(dim=0) * place).sum()) == pytest.approx(0.1, abs=0.002)
    assert float((mass.sum(dim=1) * place).sum()) == pytest.approx(-0.07, abs=0.002)


@pytest.mark.parametrize("shape", range(4))
def test_a_quarter_turn_is_clockwise_and_no_turn_looks_like_none(shape: int) -> None:
    world = World()
    still = coverage(world, shape=shape)
    assert float((coverage(world, shape=shape, angle=90.0) - still.rot90(-1)).abs().mean()) < 1e-3
    for turn in range(20, 341, 10):
        assert float((coverage(world, shape=shape, angle=turn) - still).abs().sum() / still.sum()) > 0.2, turn


def test_every_object_lies_inside_the_image_and_shapes_differ_by_more_than_a_turn() -> None:
    world, larger = World(), World(size=64)
    for shape, name in enumerate(SHAPES):
        small = coverage(world, shape=shape, size=0.19)
        for turn in range(0, 360, 15):
            whole = coverage(larger, shape=shape, x=0.13, y=-0.13, size=0.31, angle=turn)
            assert float(whole.mean()) == pytest.approx(0.31**2, rel=0.015), (name, turn)  # nothing is cut off
            for other in range(shape):
                turned = coverage(world, shape=other, size=0.19, angle=turn)
                assert float((turned - small).abs().sum() / small.sum()) > 0.25, (name, SHAPES[other], turn)


def test_colors_are_those_of_the_formula() -> None:
    world = World()
    for hue, light in ((0.0, 1.0), (250.0, 0.5)):
        drawn = world.render(row(world, hue=hue, ground_hue=hue + 40, light=light, shape=3))[0]
        turns = (0, 120, 240)
        ground = [255 * light * (0.38 + 0.2 * math.cos(math.radians(hue + 40 - turn))) for turn in turns]
        thing = [255 * light * (0.66 + 0.34 * math.cos(math.radians(hue - turn))) for turn in turns]
        assert drawn[:, 0, 0].tolist() == [round(level) for level in ground]
        assert drawn[:, 16, 15].tolist() == [round(level) for level in thing]  # inside the larger disc


@pytest.mark.parametrize("name", FACTORS)
def test_an_item_has_the_same_bits_in_any_block_and_in_a_larger_world(name: str) -> None:
    world = World(name, count=70, seed=5)  # type: ignore[arg-type]
    whole = world.pixels(range(70))
    places = [69, 3, 41, 3]
    assert torch.equal(world.pixels(places), whole[places])
    assert torch.equal(torch.cat([world.pixels([place]) for place in range(70)]), whole)
    assert torch.equal(World(name, count=9000, seed=5).pixels(range(70)), whole)  # type: ignore[arg-type]
    for other in (World(name, count=70, seed=6), World("textured" if name == "shapes" else "shapes", 70, 32, 5)):  # type: ignore[arg-type]
        assert not torch.equal(other.factors([0])[0, :8], world.factors([0])[0, :8])


def test_factors_are_uniform_and_independent() -> None:
    world = World("textured", count=4000)
    factors = world.factors(range(4000))
    for place, factor in enumerate(world.about):
        column = factors[:, place]
        assert factor.low <= float(column.min())
        assert float(column.max()) < factor.high
        middle = (factor.low + factor.high - (factor.kind == "choice")) / 2
        spread = (factor.high - factor.low) / math.sqrt(12)
        assert float(column.mean()) == pytest.approx(middle, abs=4 * spread / math.sqrt(4000))
    together = torch.corrcoef(factors.T) - torch.eye(len(world.about))
    assert float(together.abs().max()) < 4.5 / math.sqrt(4000)
    assert torch.bincount(factors[:, 0].long()).tolist() == pytest.approx([1000] * 4, abs=120)


def test_the_front_object_hides_the_other_and_stripes_darken_the_ground() -> None:
    world = World("textured")
    there = {"shape": 2.0, "back_shape": 2.0, "size": 0.3, "back_size": 0.3}
    hidden = [world.render(row(world, **there, back_hue=hue)) for hue in (0.0, 200.0)]
    assert torch.equal(hidden[0], hidden[1])
    shown = [world.render(row(world, **there, back_x=0.25, back_hue=hue)) for hue in (0.0, 200.0)]
    assert not torch.equal(shown[0], shown[1])
    ground = world.render(row(world, back_x=-0.25, ground_hue=0.0))[0, 0, :, 24:].double() / 255
    assert float(ground.mean()) == pytest.approx((0.38 + 0.14) * 0.75, abs=0.003)  # a whole period
    darkest, lightest = (1 - 0.5 * (1 - 1 / 8)) * 0.52, (1 - 0.5 / 8) * 0.52  # a pixel is an eighth of a period
    assert float(ground.min()) == pytest.approx(darkest, abs=0.003)
    assert float(ground.max()) == pytest.approx(lightest, abs=0.003)


def test_a_world_is_a_source_like_any_other(tmp_path: Path) -> None:
    name = "world:shapes?count=300&seed=3"
    world = World(count=300, seed=3)
    pixels, factors = world.pixels(range(300)), world.factors(range(300))
    found = open_data(name, 32)
    assert torch.equal(found.pixels, pixels)
    assert found.labels is not None
    assert [found.classes[label] for label in found.labels] == [SHAPES[int(shape)] for shape in factors[:, 0]]
    assert open_data(name, 32, store=tmp_path / "store").fingerprint == found.fingerprint
    by_place = random_access.find(name)
    assert len(by_place) == 300
    assert by_place.name == world.name == "world:shapes?count=300&seed=3&size=32"
    assert np.array_equal(np.asarray(by_place.read(299)), pixels[299].permute(1, 2, 0).numpy())
    assert open_data(f"{name}&size=48", 32).pixels.shape == (300, 3, 32, 32)
    prints = {random_access.fingerprint(random_access.find(f"{name}{more}")) for more in ("", "&size=16", "&size=32")}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("world:shape", "world must be one of shapes, textured; got 'shape'; did you mean shapes"),
        ("world:", "world must be one of"),
        ("world:shapes?color=1", "option must be one of count, size, seed"),
        ("world:shapes?count=1e9", "count must be a whole number"),
        ("world:shapes?count=0", "count must be in 1..10000000"),
        ("world:shapes?size=4", "size must be in 8..512"),
        ("world:shapes?seed=", "seed must be a whole number"),
    ],
)
def test_names_of_no_world(name: str, message: str) -> None:
    for find in (random_access.find, lambda name: open_data(name, 32)):
        with pytest.raises(ImageError, match=message):
            find(name)


def test_a_file_of_that_name_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    to_pil(torch.zeros(3, 8, 8)).save("world:shapes", format="png")
    assert len(open_data("world:shapes", 8)) == len(random_access.find("world:shapes")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 0.2}, "x must be in -0.13..0.13, got 0.2"),
        ({"shape": 4.0}, r"shape must be in 0..3 \(a whole number\), got 4"),
        ({"shape": 0.5}, "shape must be in"),
        ({"light": math.nan}, "must be finite"),
        ({"y": -0.2}, "y must be in -0.13..0.13, got -0.2"),
        ({"size": 0.1}, "size must be in 0.19..0.31, got 0.1"),
        ({"light": 0.25}, "light must be in 0.5..1, got 0.25"),
        ({"shape": -1.0}, r"shape must be in 0..3 \(a whole number\), got -1"),
    ],
)
def test_factors_outside_the_world(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        World().render(row(World(), **change))


def test_other_wrong_factors() -> None:
    world = World(count=5)
    assert torch.equal(world.render(row(world, hue=-30.0)), world.render(row(world, hue=330.0)))
    with pytest.raises(ConfigError, match=r"float \[N,8\]"):
        world.render(torch.zeros(1, 7))
    with pytest.raises(ConfigError, match=r"in 0\.\.4"):
        world.factors([5])


RANGES = {
    "shape": (0, 4), "x": (-0.13, 0.13), "y": (-0.13, 0.13), "size": (0.19, 0.31), "angle": (0, 360), "hue": (0, 360),
    "ground_hue": (0, 360), "light": (0.5, 1),
    "back_shape": (0, 4), "back_x": (-0.25, 0.25), "back_y": (-0.25, 0.25), "back_size": (0.19, 0.31),
    "back_angle": (0, 360), "back_hue": (0, 360), "stripe_angle": (0, 360), "stripe_period": (0.15, 0.3),
}  # fmt: skip


@pytest.mark.parametrize("name", ["shapes", "textured"])
def test_ranges_are_those_that_are_promised(name: str) -> None:
    known = {factor.name: (factor.low, factor.high) for factor in FACTORS[name]}
    assert known == dict(list(RANGES.items())[: {"shapes": 8, "textured": 16}[name]])
    assert World().name == "world:shapes?count=20000&seed=0&size=32"


def test_a_world_is_told_from_others_by_all_that_it_is_drawn_from() -> None:
    names = ("shapes?", "textured?", "shapes?seed=1", "shapes?size=16", "shapes?seed=0&size=32")
    prints = [random_access.fingerprint(random_access.find(f"world:{name}&count=3")) for name in names]
    assert len(set(prints)) == 4
    assert prints[0] == prints[4]


@pytest.mark.parametrize(("hue", "place"), [(0.0, 0), (120.0, 1), (240.0, 2)])
def test_colors_of_the_front_and_of_the_back_object(hue: float, place: int) -> None:
    world = World("textured")
    wedges = {"shape": 2.0, "back_shape": 2.0, "x": -0.13, "back_x": 0.25, "hue": hue, "back_hue": hue}
    front, back = world.render(row(world, **wedges))[0, :, 16, [11, 24]].T.tolist()  # their centers of mass
    assert front == [255 if color == place else 140 for color in range(3)]  # 0.7 + 0.3, 0.7 - 0.3 / 2
    assert back == [204 if color == place else 59 for color in range(3)]  # 0.42 + 0.38, 0.42 - 0.38 / 2


@pytest.mark.parametrize("period", [0.15, 0.25])
def test_stripes_turn_clockwise_and_keep_their_period(period: float) -> None:
    world = World("textured", size=64)
    size = 14  # pixels of a corner that no object reaches

    def corner(angle: float) -> Tensor:
        factors = row(world, size=0.19, back_size=0.19, stripe_angle=angle, stripe_period=period)
        return world.render(factors)[0, 0, :size, :size].double()

    upright = corner(0.0)
    assert float(upright.std(dim=0).max()) == 0
    assert float(upright[0].std()) > 10
    assert float((corner(90.0) - upright.T).abs().max()) <= 1
    aslant = corner(45.0)  # the same where one goes down and to the left
    assert float((aslant[1:, :-1] - aslant[:-1, 1:]).abs().max()) <= 1
    assert float((aslant[1:, 1:] - aslant[:-1, :-1]).abs().max()) > 10


def test_factors_that_are_given_stay_as_they_are() -> None:
    world = World()
    given = row(world, hue=-30.0, angle=400.0)
    before = given.clone()
    world.render(given)
    assert torch.equal(given, before)


def test_items_are_called_by_their_places() -> None:
    world = World(count=5, size=8, seed=7)
    paths = [item.path.as_posix() for item in world.items()]
    assert paths == [f"world:shapes?count=5&seed=7&size=8/{place}" for place in range(5)]


def test_light_is_that_of_each_image_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(size=8)
    lights = [0.5, 0.7, 0.8, 0.9, 1.0]
    factors = torch.cat([row(world, light=light) for light in lights])
    monkeypatch.setattr(world_shapes, "_BLOCK", 2 * (4 * 8) ** 2)  # two images at once
    assert torch.equal(world.render(factors), torch.cat([world.render(each[None]) for each in factors]))
    ground = world.render(factors)[:, 0, 0, 0].tolist()
    assert ground == [int(0.58 * light * 255 + 0.5) for light in lights]
