"""Crops of one photograph: one source, and never on both sides of a probe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rcdm_fast.analysis import attack, common, manipulate, neighbors
from rcdm_fast.analysis.neighbors import NeighborsConfig
from rcdm_fast.analysis.robustness import AttackConfig
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import to_uint8
from tests import small

EACH, COUNT = 4, 50  # crops of each photograph, photographs


@pytest.fixture(scope="module")
def data() -> ImageSet:
    pixels = to_uint8(small.make_images(COUNT * EACH))
    paths = tuple(Path(f"photos/p{number:02}/crop{crop}.png") for number in range(COUNT) for crop in range(EACH))
    labels = torch.arange(COUNT * EACH) // EACH % 2
    return ImageSet(pixels, labels, ("a", "b"), paths, "made-up").cut_from(r"/p\d+/")


def photographs(data: ImageSet, places: torch.Tensor) -> list[int]:
    assert data.photographs is not None
    found: list[int] = data.photographs[places].tolist()
    return found


def test_paths_say_what_was_cut_from_one_photograph(data: ImageSet) -> None:
    assert photographs(data, torch.tensor([0, 3, 4, 199])) == [0, 0, 1, 49]
    assert photographs(data.subset(torch.tensor([5, 6, 190])), torch.arange(3)) == [1, 1, 47]
    some = dataclasses.replace(data, photographs=None).cut_from("p0[0-4]/")
    assert len(set(photographs(some, torch.arange(200)))) == 5 + 180  # where nothing is found an image is by itself
    with pytest.raises(ConfigError, match="no regular expression"):
        data.cut_from("(")
    with pytest.raises(ConfigError, match="finds nothing in the paths of the 200 images"):
        data.cut_from("nowhere")


def test_a_photograph_is_one_source(data: ImageSet) -> None:
    for asked in (0, 20, 50):
        places = photographs(data, common.choose_sources(data, asked))
        assert len(places) == len(set(places)) == (asked or 50)
    with pytest.raises(ConfigError, match="the data has 50"):
        common.choose_sources(data, 51)
    with pytest.raises(ConfigError, match="at least 20"):
        common.choose_sources(data.subset(torch.arange(60)), 0)  # of fifteen photographs
    plain = dataclasses.replace(data, photographs=None)
    assert len(common.choose_sources(plain, 51)) == 51


@pytest.mark.parametrize("seed", range(4))
def test_a_photograph_is_not_in_both_halves(data: ImageSet, seed: int) -> None:
    first, second = data.halves(seed)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(200))
    assert abs(len(first) - 100) <= EACH
    assert not set(photographs(data, first)) & set(photographs(data, second))
    known, attacked = attack.halves(data, AttackConfig(seed=seed))
    assert not set(photographs(data, known)) & set(photographs(data, attacked))
    assert len(attacked) == len(set(photographs(data, attacked))) == 25
    setting = manipulate._setting(small.model(), data, manipulate.ManipulateConfig(seed=seed), None)
    gallery = {tuple(row.flatten().tolist()) for row in setting.gallery_images}
    assert len(setting.items) == len(set(photographs(data, setting.items)))
    assert data.photographs is not None
    crops = torch.isin(data.photographs, torch.tensor(photographs(data, setting.items)))
    assert not gallery & {tuple(row.flatten().tolist()) for row in data.floats(crops.nonzero().flatten())}
    with pytest.raises(ConfigError, match="of one photograph"):
        data.subset(torch.arange(EACH)).halves(seed)


def test_no_neighbor_is_another_crop_of_the_source(data: ImageSet) -> None:
    sources, rest = neighbors.split(data, NeighborsConfig(sources=20))
    assert len(sources) == len(set(photographs(data, sources))) == 20
    assert not set(photographs(data, sources)) & set(photographs(data, rest))
    assert len(rest) == 30 * EACH


def test_a_probe_that_knows_photographs_is_found_out(data: ImageSet) -> None:
    """Classes are dealt to photographs at random: nothing can be learned, but other crops of a photograph tell it."""
    rng = np.random.default_rng(0)
    own = torch.from_numpy(rng.standard_normal((COUNT, 40)))
    h = own.repeat_interleave(EACH, dim=0) + 0.1 * torch.from_numpy(rng.standard_normal((COUNT * EACH, 40)))
    labels = torch.from_numpy(rng.integers(0, 2, COUNT)).repeat_interleave(EACH)
    right = {}
    for name, each in (("told", data), ("not told", dataclasses.replace(data, photographs=None))):
        accuracy = []
        for seed in range(3):
            known, tested = each.halves(seed)
            x, wanted = h[known], 2.0 * labels[known] - 1
            weight = torch.linalg.solve(x.T @ x + torch.eye(40), x.T @ wanted.double())
            accuracy.append(float(((h[tested] @ weight > 0) == (labels[tested] == 1)).double().mean()))
        right[name] = np.mean(accuracy)
    assert right["not told"] > 0.8
    assert right["told"] < 0.65
