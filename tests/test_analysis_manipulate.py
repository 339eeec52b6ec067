"""Changes of h: common dimensions, directions with a known answer, what moves and what is kept, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import common, grounds, manipulate, properties
from rcdm_fast.analysis.directions import class_of, common_dimensions, mean_difference, principal_directions
from rcdm_fast.analysis.manipulate import ManipulateConfig
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from tests import small
from tests.test_analysis import Flat

QUICK = ManipulateConfig(steps=2, resamples=200, sources=24, properties=("brightness",), components=1)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Images of 16 pixels; the classes are dark and light."""
    images = small.make_images(100, 16) * 0.3
    labels = torch.arange(100) % 2
    images[labels == 1] += 0.4
    images[labels == 0] -= 0.4
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return ImageSet(pixels, labels, ("dark", "light"), tuple(Path(f"{n}.png") for n in range(100)), "made-up")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose representation is the image and whose samples are the representation."""
    model = small.quick_model()
    monkeypatch.setattr(model, "_encoder", Flat())

    def draw(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        return h.view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1).clamp(-1, 1)

    monkeypatch.setattr(model, "sample", small.asked(draw))
    return model


def test_common_dimensions() -> None:
    gallery = torch.zeros(40, 4)
    gallery[:20, 0] = 1.0  # near: always there
    gallery[:14, 1] = 1e-3  # in 14 of 20: not more than 14
    gallery[:15, 2] = 1e-3  # in 15
    gallery[20:] = 100.0
    found = common_dimensions(torch.tensor([[1.0, 0, 0, 0]]), gallery, 20, 14)
    assert found.tolist() == [[True, False, True, False]]


def test_directions_with_a_known_answer(generator: torch.Generator) -> None:
    gallery = torch.randn(600, 5, generator=generator) * torch.tensor([1.0, 5.0, 1.0, 0.5, 1.0])
    (first,) = principal_directions(gallery, 1)
    assert abs(float(first[1])) / float(first.norm()) > 0.99
    assert float(first.norm()) == pytest.approx(5, rel=0.1)
    away = gallery + torch.tensor([100.0, 0, 0, 0, 0])  # where the gallery lies says nothing of its directions
    torch.testing.assert_close(principal_directions(away, 1).abs(), first.abs()[None], atol=1e-3, rtol=0)
    values = gallery[:, 3] * 7
    direction = mean_difference(gallery, values)
    assert float(direction[3]) > 0.8
    assert float(direction[[0, 2, 4]].abs().max()) < 0.3


def test_class_by_neighbors() -> None:
    gallery = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 1, 1])
    assert class_of(torch.tensor([[5.0, 1], [1, 5]]), gallery, labels, 2).tolist() == [0, 1]


def test_a_decoder_that_obeys(mirror: Model, data: ImageSet) -> None:
    found = manipulate.run(mirror, data, QUICK)
    bright, component = found.tables[0].rows
    assert (bright[0], bright[1], component[0]) == ("towards more brightness", "brightness", "component 1")
    assert isinstance(bright[2], Interval)
    assert bright[2].value == 1.0
    assert isinstance(component[2], Interval)
    assert component[2].value == 1.0
    assert isinstance(bright[5], Interval)
    assert bright[5].value == pytest.approx(0.5, abs=0.25)  # dark ones became light
    assert found.findings[0].holds is True
    assert found.settings["zeros"] < manipulate.SPARSE


def test_dimensions_are_swapped_where_representations_are_sparse(
    mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manipulate, "SPARSE", 0.0)
    zeroed, swapped, *_ = manipulate.run(mirror, data, QUICK).tables[0].rows
    assert (zeroed[0], swapped[0]) == ("common dimensions zeroed", "common dimensions swapped")
    for cell, value in ((swapped[2], 1.0), (swapped[3], 1.0), (swapped[4], 0.0)):  # all are non-zero: all are swapped
        assert isinstance(cell, Interval)
        assert cell.value == value


def test_a_decoder_that_does_not_listen(mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        return torch.stack([small.make_images(per, 16, seed=item) for item in items.tolist()])

    monkeypatch.setattr(mirror, "sample", small.asked(draw))
    found = manipulate.run(mirror, data, QUICK)
    for row in found.tables[0].rows:
        assert isinstance(row[2], Interval)
        assert row[2].value == 0.5
    assert [finding.holds for finding in found.findings] == [None, None]


def test_without_labels(mirror: Model, data: ImageSet) -> None:
    found = manipulate.run(mirror, dataclasses.replace(data, labels=None), QUICK)
    assert len(found.tables[0].columns) == 5


def test_what_is_refused(mirror: Model, data: ImageSet) -> None:
    with pytest.raises(ConfigError, match="at least 42 images"):
        manipulate.run(mirror, data.subset(torch.arange(30)), QUICK)
    with pytest.raises(ConfigError, match="threshold"):
        ManipulateConfig(threshold=20)
    with pytest.raises(ConfigError, match="no property"):
        ManipulateConfig(properties=("beauty",))
    with pytest.raises(ConfigError, match="is an angle"):
        ManipulateConfig(properties=("hue",))
    mirror._encoder = None
    with pytest.raises(ConfigError, match="encoder"):
        manipulate.run(mirror, data, QUICK)


def _sparse() -> manipulate.Setting:
    """Two groups that have dimensions 0, 1 and 2, 3 in common; dimension 4 is anyone's, 5 nobody's."""
    rows = torch.zeros(60, 6)
    rows[:30, :2] = torch.linspace(4, 5, 60).view(30, 2)
    rows[30:, 2:4] = torch.linspace(6, 7, 60).view(30, 2)
    rows[::3, 4] = 0.25
    gallery, h = rows[torch.arange(60) % 5 != 0], rows[::5]
    images = small.make_images(60)
    labels = (torch.arange(60) >= 30).long()
    chosen = torch.arange(60) % 5 != 0
    return manipulate.Setting(
        gallery, images[chosen], labels[chosen], h, images[~chosen], labels[~chosen], torch.arange(0, 60, 5)
    )


def test_the_dimensions_in_common_are_changed_and_no_others() -> None:
    setting = _sparse()
    config = dataclasses.replace(QUICK, components=2)
    zeroed, swapped, bright, *components = manipulate._changes(setting, config)
    common = setting.h >= 4  # by construction
    assert common.sum(dim=1).tolist() == [2] * 12
    assert torch.equal(zeroed.h, torch.where(common, 0.0, setting.h))
    assert (zeroed.h[:, :4] == 0).all()
    assert torch.equal(zeroed.h[:, 4:], setting.h[:, 4:])
    assert zeroed.target is zeroed.h
    assert swapped.target is not None
    assert torch.equal(swapped.h, torch.where(common, swapped.target, setting.h))
    assert (swapped.target[:, None] == setting.gallery[None]).all(dim=2).any(dim=1).all()  # each an image's own
    assert len(swapped.target.unique(dim=0)) > 3
    for change in (zeroed, swapped):  # as many random dimensions, not the same for every source
        changed = change.control != setting.h
        assert (changed.sum(dim=1) <= 2).all()
        assert len(changed.unique(dim=0)) > 3
    directions = [bright, *components]
    assert len(components) == 2
    for change in directions:
        steps, controls = change.h - setting.h, change.control - setting.h
        torch.testing.assert_close(steps, steps[:1].expand_as(steps))
        torch.testing.assert_close(controls.norm(dim=1), steps.norm(dim=1), rtol=1e-4, atol=1e-5)
        assert len(controls.unique(dim=0)) == len(controls)
    want = mean_difference(setting.gallery, properties.find("brightness")(setting.gallery_images))
    torch.testing.assert_close(bright.h[0] - setting.h[0], config.strength * want)
    assert bright.target is None
    spread = float((setting.gallery @ (components[0].h - setting.h)[0] / (components[0].h - setting.h)[0].norm()).std())
    assert float((components[0].h - setting.h)[0].norm()) == pytest.approx(config.strength * spread, rel=1e-3)


def test_nearer_to_the_target_is_moved_as_wanted(mirror: Model) -> None:
    before = small.make_images(4, 16)[:, None]
    target = small.make_images(8, 16)[4:]
    nearer, further = torch.lerp(before, target[:, None], 0.3), torch.lerp(before, target[:, None], -0.3)
    after = torch.cat([nearer, further], dim=1)
    change = manipulate.Change("it", target.flatten(1), target.flatten(1), "target", target.flatten(1))
    moved = manipulate._moved(mirror, before.expand(-1, 2, -1, -1, -1), after, change)
    assert moved.tolist() == [0.5] * 4
    assert manipulate._moved(mirror, before, nearer, change).tolist() == [1.0] * 4
    assert manipulate._moved(mirror, before, further, change).tolist() == [0.0] * 4
    assert manipulate._moved(mirror, before, before, change).tolist() == [0.5] * 4


def test_classes_are_voted_by_the_gallery(mirror: Model) -> None:
    """Samples that look like class 1 of the gallery have class 1, whatever the sources around them are."""
    images = small.make_images(6, 16)
    gallery = images.flatten(1).repeat(4, 1)
    labels = torch.arange(6).repeat(4) % 2
    sources = torch.ones(6, dtype=torch.int64)  # all sources are of class 1
    setting = manipulate.Setting(
        gallery, images.repeat(4, 1, 1, 1), labels, images.flatten(1), images, sources, torch.arange(6)
    )
    kept = manipulate._kept(mirror, images[:, None], setting, dataclasses.replace(QUICK, knn=4))
    assert kept is not None
    assert kept.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_neighbors_are_looked_for_by_angle() -> None:
    """As the published code does: a neighbor ten times as long is one all the same."""
    along, across = torch.tensor([[0.0, 1, 0, 0]]) * 10, torch.tensor([[1.0, 0, 1, 0]])
    gallery = torch.cat([along.expand(5, -1), across.expand(5, -1)])
    found = common_dimensions(torch.tensor([[0.0, 1, 0.1, 0]]), gallery, 5, 3)
    assert found.tolist() == [[False, True, False, False]]


def test_where_pixels_change() -> None:
    before = small.make_images(4, 16)[:, None].expand(-1, 2, -1, -1, -1) * 0.5
    frame, middle = torch.zeros(16, 16), torch.zeros(16, 16)
    frame[:2] = frame[-2:] = frame[:, :2] = frame[:, -2:] = 0.3
    middle[4:12, 4:12] = 0.3
    assert grounds.lean(before, before + frame).tolist() == [1.0] * 4
    assert grounds.lean(before, before + middle).tolist() == [-1.0] * 4
    assert grounds.lean(before, before).tolist() == [0.0] * 4
    torch.testing.assert_close(grounds.lean(before, before + 0.1), torch.zeros(4).double().numpy(), atol=1e-5, rtol=0)
    one = torch.stack([before[:, 0] + frame, before[:, 1] + middle], dim=1)
    assert grounds.lean(before, one).tolist() == [0.0] * 4  # a mean over samples
    with pytest.raises(ConfigError, match="from 8 pixels"):
        grounds.lean(before[..., :7], before[..., :7])


def _moved(lean: float, control: float, kept: float | None, kept_control: float) -> grounds.Moved:
    wave = torch.linspace(-0.02, 0.02, 40).double().numpy()
    return grounds.Moved(
        "it",
        wave + lean,
        control - wave,
        None if kept is None else wave + kept,
        None if kept is None else wave + kept_control,
    )


@pytest.mark.parametrize(
    ("lean", "control", "kept", "kept_control", "holds"),
    [
        (0.5, 0.0, 0.8, 0.8, True),
        (0.5, 0.0, 0.75, 0.8, True),
        (0.5, 0.0, 0.5, 0.8, False),  # the object goes too
        (-0.1, 0.0, 0.8, 0.8, False),  # the ground stays
        (0.5, 0.5, 0.8, 0.8, None),
        (0.5, 0.0, None, 0.8, None),
    ],
)
def test_the_ground_goes_and_the_object_stays(
    lean: float, control: float, kept: float | None, kept_control: float, holds: bool | None
) -> None:
    assert grounds.finding(_moved(lean, control, kept, kept_control), QUICK).holds is holds


def test_common_dimensions_are_held_against_the_ground(
    mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images black but for a frame that neighbors share: what they have in common is the frame."""
    frame = torch.zeros(3, 16, 16, dtype=torch.bool)
    frame[:, :2] = frame[:, -2:] = frame[:, :, :2] = frame[:, :, -2:] = True
    object_at = torch.randint(4, 12, (100, 2), generator=torch.Generator().manual_seed(3))
    real = torch.zeros(100, 3, 16, 16)
    for number, (y, x) in enumerate(object_at.tolist()):
        real[number, :, y, x] = 0.9 if number % 2 else -0.9
    real += 0.6 * frame
    gallery, chosen, labels = torch.arange(50), torch.arange(50, 80), torch.arange(100) % 2
    setting = manipulate.Setting(
        real[gallery].flatten(1), real[gallery], labels[gallery],
        real[chosen].flatten(1), real[chosen], labels[chosen], chosen,
    )  # fmt: skip
    monkeypatch.setattr(manipulate, "_setting", lambda *_: setting)
    found = manipulate.run(mirror, data, QUICK)
    rows = {str(row[0]): row for row in found.tables[1].rows}
    assert set(rows) == {"common dimensions zeroed", "common dimensions swapped"}
    lean = rows["common dimensions zeroed"][1]
    assert isinstance(lean, Interval)
    assert lean.value == 1.0
    verdict = next(each for each in found.findings if each.claim.startswith("common dimensions zeroed: the ground"))
    assert verdict.holds is True
    assert grounds.METHOD in found.method


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_third_is_never_none_and_never_all(count: int) -> None:
    gallery = torch.arange(count, dtype=torch.float32).flip(0)[:, None] * torch.tensor([[1.0, 2.0]])
    third = max(1, count // 3)
    want = sum(range(count - third, count)) / third - sum(range(third)) / third
    found = mean_difference(gallery, gallery[:, 0] * 3)
    torch.testing.assert_close(found, want * torch.tensor([1.0, 2.0]))


def test_votes_are_by_angle_and_of_no_more_neighbors_than_there_are() -> None:
    gallery = torch.tensor([[1.0, 0.1], [1.0, 0.0], [50.0, 50.0], [0.0, 60.0]])  # longer ones are not nearer
    labels = torch.tensor([2, 2, 0, 0])
    assert class_of(torch.tensor([[1.0, 0.05], [0.1, 1.0]]), gallery, labels, 2).tolist() == [2, 0]
    assert class_of(torch.tensor([[1.0, 0.0]]), gallery[1:], labels[1:], 9).tolist() == [0]


def test_the_table_of_the_ground_has_the_change_its_control_and_what_is_between_them() -> None:
    found = grounds.table([_moved(0.5, 0.2, None, 0.0), _moved(-0.3, 0.1, None, 0.0)], QUICK)
    assert found.columns[1:] == ("ground", "control", "difference")
    values = [[cell.value for cell in row[1:] if isinstance(cell, Interval)] for row in found.rows]
    assert values == [pytest.approx([0.5, 0.2, 0.3]), pytest.approx([-0.3, 0.1, -0.4])]


def test_the_second_direction_is_as_long_as_the_spread_along_it(generator: torch.Generator) -> None:
    gallery = torch.randn(50, 4, generator=generator) * torch.tensor([1.0, 5.0, 2.0, 0.1]) + 3
    values, vectors = np.linalg.eigh(np.cov(gallery.numpy().T))
    found = principal_directions(gallery, 3)
    assert found.norm(dim=1).tolist() == pytest.approx(np.sqrt(values[::-1][:3]).tolist(), rel=1e-4)
    along = np.abs((found.numpy() * vectors.T[::-1][:3]).sum(axis=1)) / found.norm(dim=1).numpy()
    assert along.tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_the_seed_decides_the_halves_and_the_controls(mirror: Model, data: ImageSet) -> None:
    found = {}
    for seed in (1, 2):
        setting = manipulate._setting(mirror, data, dataclasses.replace(QUICK, seed=seed), None)
        gallery, rest = data.halves(seed)
        assert torch.equal(setting.gallery, data.floats(gallery).flatten(1))
        assert torch.equal(setting.h, data.floats(setting.items).flatten(1))
        assert set(setting.items.tolist()) <= set(rest.tolist())
        assert data.labels is not None
        assert setting.labels is not None
        assert torch.equal(setting.labels, data.labels[setting.items])
        found[seed] = manipulate._changes(_sparse(), dataclasses.replace(QUICK, seed=seed))
    for one, other in zip(*found.values(), strict=True):
        assert not torch.equal(one.control, other.control), one.name


def test_lengths_and_neighbors_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def noted(h: Tensor, gallery: Tensor, *given: int) -> Tensor:
        asked.append(given)
        return common_dimensions(h, gallery, *given)

    monkeypatch.setattr(manipulate, "common_dimensions", noted)
    setting = _sparse()
    short, long = (
        manipulate._changes(
            setting, dataclasses.replace(QUICK, strength=strength, neighbors=9, threshold=4, components=2)
        )
        for strength in (1.0, 3.0)
    )
    assert asked == [(9, 4)] * 2
    assert [each.name for each in short[2:]] == ["towards more brightness", "component 1", "component 2"]
    for one, other in zip(short[2:], long[2:], strict=True):
        torch.testing.assert_close(other.h - setting.h, 3 * (one.h - setting.h), rtol=1e-4, atol=1e-5)


def test_changes_controls_and_what_was_before_are_told_apart(
    mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are of one shade: 0 before, 0.1 and 0.2 of the changes, a tenth of that less than 0 of the controls."""
    setting = manipulate._setting(mirror, data, QUICK, None)
    changes = [
        manipulate.Change(f"change {number}", setting.h + number, setting.h - number, "target", setting.h, True)
        for number in (1, 2)
    ]
    sheets: list[list[list[float]]] = []
    done: list[tuple[int, int]] = []

    def drawn(_: Model, h: Tensor, items: Tensor, *__: object) -> Tensor:
        assert torch.equal(items, setting.items)
        step = float((h - setting.h).mean())
        return torch.full((len(h), 2, 3, 16, 16), 0.1 * step if step > 0 else 0.01 * step)

    def shade(samples: Tensor) -> np.ndarray:
        return samples[:, 0, 0, 0, 0].double().numpy()

    def sheet(rows: list[list[Tensor]], **_: object) -> None:
        sheets.append([[round(float(image.mean()), 3) for image in row[1:]] for row in rows])

    monkeypatch.setattr(manipulate, "_setting", lambda *_: setting)
    monkeypatch.setattr(manipulate, "_changes", lambda *_: changes)
    monkeypatch.setattr(common, "draw", drawn)
    monkeypatch.setattr(manipulate, "_moved", lambda _, before, after, __: 0.5 + shade(after) - shade(before))
    monkeypatch.setattr(manipulate, "_kept", lambda _, samples, *__: 0.5 + shade(samples))
    monkeypatch.setattr(grounds, "lean", lambda before, after: shade(after) - shade(before))
    monkeypatch.setattr(manipulate, "to_pil", lambda image: image)
    monkeypatch.setattr(manipulate, "image_sheet", sheet)
    found = manipulate.run(mirror, data, dataclasses.replace(QUICK, shown=2), lambda *each: done.append(each))
    assert done == [(1, 2), (2, 2)]
    assert sheets == [[[0.0, 0.1, 0.2]] * 2]
    values = [[round(cell.value, 3) for cell in row[2:] if isinstance(cell, Interval)] for row in found.tables[0].rows]
    assert values == [[0.6, 0.49, 0.11, 0.6, 0.49], [0.7, 0.48, 0.22, 0.7, 0.48]]
    assert "unchanged h: 50 % [" in found.tables[0].note
    where = [[round(cell.value, 3) for cell in row[1:] if isinstance(cell, Interval)] for row in found.tables[1].rows]
    assert where == [[0.1, -0.01, 0.11], [0.2, -0.02, 0.22]]
    said = found.findings[2].measured
    assert said.startswith("70 % [70, 70] of samples move as wanted, 22 % [22, 22] more than with the control; the ")
    assert said.endswith("class is kept in 70 % [70, 70] (unchanged h: 50 % [50, 50])")
    assert "non-zero in more than 14 of 20 nearest neighbors" in found.method
    assert (found.settings["sources"], found.settings["gallery"]) == (24, 50)


def test_fractions_that_are_all_alike_are_not_sure() -> None:
    """Of 20 sources whose samples all moved and kept their class: a bootstrap would have no width at all."""
    every, some = np.ones(20), np.where(np.arange(20) < 10, 1.0, 0.0)
    change = manipulate.Change("it", torch.zeros(20, 3), torch.zeros(20, 3), "brightness")
    found = manipulate._finding(change, intervals.fraction_difference(every, some), every, every, some)
    assert found.measured.startswith("100 % [84, 100] of samples move as wanted, 50 % [")
    assert found.measured.endswith("the class is kept in 100 % [84, 100] (unchanged h: 50 % [30, 70])")
    assert found.holds is True
    for count, holds in ((20, None), (64, True)):
        lean, kept = np.linspace(0.2, 0.3, count), np.ones(count)
        moved = grounds.Moved("it", lean, -lean, kept, kept)  # as often as with the control: of 20 that says little
        assert grounds.finding(moved, QUICK).holds is holds


def test_a_half_that_one_photograph_fills_is_told(mirror: Model, data: ImageSet) -> None:
    crops = dataclasses.replace(data, photographs=torch.arange(100).clamp_max(14))  # 86 are of the last one
    with pytest.raises(ConfigError, match="20 neighbors need more images in a half of the data than 10"):
        manipulate.run(mirror, crops, QUICK)


def test_more_neighbors_need_more_images(mirror: Model, data: ImageSet) -> None:
    config = dataclasses.replace(QUICK, neighbors=50)
    with pytest.raises(ConfigError, match="at least 102 images are needed, half of them as the gallery; got 100"):
        manipulate.run(mirror, data, config)


def test_votes_are_as_many_as_were_asked_for(mirror: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def voted(again: Tensor, *given: Any) -> Tensor:
        asked.append(given[-1])
        return torch.zeros(len(again), dtype=torch.int64)

    monkeypatch.setattr(manipulate, "class_of", voted)
    setting = _sparse()
    manipulate._kept(mirror, small.make_images(12, 16)[:, None], setting, dataclasses.replace(QUICK, knn=7))
    assert asked == [7]
