"""Crops of one photograph: one source, and never on both sides of a probe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rcdm_fast import evaluation, unranked
from rcdm_fast.analysis import attack, common, faithfulness, interpolate, manipulate, neighbors, sweeps
from rcdm_fast.analysis.interpolate import InterpolateConfig
from rcdm_fast.analysis.neighbors import NeighborsConfig
from rcdm_fast.analysis.robustness import AttackConfig
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.analysis.sweeps import InvarianceConfig
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.evaluation import EvaluateConfig
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


def test_ranks_are_among_one_image_of_each_photograph(data: ImageSet) -> None:
    model, config = small.quick_model(), EvaluateConfig(sources=20, per=1, steps=1, resamples=100)
    assert evaluation.counts(data, config) == (50, 20)
    drawn = evaluation.draw(model, data, config)
    assert len(set(photographs(drawn.real, torch.arange(len(drawn.real))))) == len(drawn.real) == 50
    assert evaluation.counts(data, EvaluateConfig(gallery=30)) == (30, 30)
    with pytest.raises(ConfigError, match="30 sources in a gallery of 60 images: the data has 50"):
        evaluation.counts(data, EvaluateConfig(sources=30, gallery=60))
    alone, shared = (faithfulness.run(model, data, config, None, each) for each in (None, Shared()))
    assert alone.settings["gallery"] == shared.settings["gallery"] == 50
    assert alone.tables[0].rows == shared.tables[0].rows
    given = unranked.draw(model, data, data.floats(slice(None)).flatten(1)[:, : small.DIM], config)
    assert torch.equal(given.real.pixels, drawn.real.pixels)


def test_readouts_are_judged_on_other_photographs_than_they_are_fitted_on(data: ImageSet) -> None:
    config = InvarianceConfig(sources=20, per=1, steps=1)
    reader = sweeps._Sources.drawn(small.quick_model(), data, config).reader
    assert torch.equal(reader.images, data.floats(torch.arange(0, COUNT * EACH, EACH)))
    assert reader.fits
    few = data.subset(torch.arange(49 * EACH))
    assert not sweeps._Sources.drawn(small.quick_model(), few, config).reader.fits


def test_a_way_leads_to_another_photograph_and_each_is_in_one_pair(data: ImageSet) -> None:
    pairs = interpolate._pairs(data, InterpolateConfig())
    assert pairs.shape == (25, 2)
    assert len(set(photographs(data, pairs.flatten()))) == 50


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
