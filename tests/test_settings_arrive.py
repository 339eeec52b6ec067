"""Whatever draws takes every field of how samples are drawn: another value of any gives other images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import evaluation, unranked
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.evaluation import EvaluateConfig
from rcdm_fast.images import ImageError, to_uint8
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.model import Model
from tests import small

H = torch.randn(3, small.DIM, generator=torch.Generator().manual_seed(3))
IMAGES = small.make_images(24)
DATA = ImageSet(to_uint8(IMAGES), None, (), (), "made up")
PLAIN: dict[str, Any] = {"per": 2, "steps": 4, "solver": "ddim"}
OTHER: dict[str, Any] = {
    "per": 3, "steps": 3, "solver": "ancestral", "eta": 0.5, "guidance": 2.0, "seed": 7, "clip": False,
}  # fmt: skip


def generated(model: Model, drawn: dict[str, Any]) -> Tensor:
    return torch.cat([torch.as_tensor(batch.images) for batch in rcdm_fast.generate(model, H.numpy(), **drawn)])


def ranked(model: Model, drawn: dict[str, Any]) -> Tensor:
    return evaluation.draw(model, DATA, EvaluateConfig(sources=3, **drawn)).images


def without_encoder(model: Model, drawn: dict[str, Any]) -> Tensor:
    h = torch.randn(24, small.DIM, generator=torch.Generator().manual_seed(1))
    return unranked.draw(model, DATA, h, EvaluateConfig(sources=3, **drawn)).images


DOORS: dict[str, Callable[[Model, dict[str, Any]], Tensor]] = {
    "sample": lambda model, drawn: model.sample(H, **drawn),
    "interpolate": lambda model, drawn: model.interpolate(H[0], H[1], 3, **drawn),
    "sequence": lambda model, drawn: model.sequence(H[:, None], **drawn),
    "show": lambda model, drawn: torch.from_numpy(np.array(model.show(H, cell=8, **drawn))),
    "generate": generated,
    "evaluate": ranked,
    "evaluate without an encoder": without_encoder,
}


@pytest.fixture(scope="module")
def model() -> Model:
    made = small.quick_model()
    made.config = dataclasses.replace(made.config, representation_dropout=0.1)
    return made


def test_no_field_is_left_out() -> None:
    assert set(OTHER) == {each.name for each in dataclasses.fields(SamplingConfig)}
    assert set(OTHER) <= {each.name for each in dataclasses.fields(EvaluateConfig)}
    assert set(OTHER) <= {each.name for each in dataclasses.fields(JobConfig)}


@pytest.mark.parametrize("door", DOORS)
def test_every_field_changes_what_is_drawn(door: str, model: Model) -> None:
    before = DOORS[door](model, PLAIN)
    assert torch.equal(DOORS[door](model, PLAIN), before)
    for name, value in OTHER.items():
        if name == "clip" and door in ("evaluate", "show"):  # what this network then makes is no image, and is refused
            with pytest.raises(ImageError, match=r"expected images in \[-1,1\]"):
                DOORS[door](model, {**PLAIN, name: value})
            continue
        after = DOORS[door](model, {**PLAIN, name: value})
        assert after.shape != before.shape or not torch.equal(after, before), name


def test_every_field_that_an_inversion_has_changes_it(model: Model) -> None:
    before = model.invert(IMAGES[:2], H[:2], steps=4)
    assert torch.equal(model.invert(IMAGES[:2], H[:2], steps=4), before)
    changes: tuple[dict[str, Any], ...] = (
        {"steps": 3},
        {"steps": "quadratic4"},
        {"solver": "unipc_2"},
        {"clip": False},
    )
    for changed in changes:
        assert not torch.equal(model.invert(IMAGES[:2], H[:2], **{"steps": 4, **changed}), before), changed


def test_a_job_on_disk_is_drawn_as_its_configuration_says(model: Model, tmp_path: Path) -> None:
    def pixels(name: str, **changes: Any) -> list[bytes]:
        folder = tmp_path / name
        local.run(model, H, folder, JobConfig(format="folder", **{**PLAIN, **changes}))
        return [path.read_bytes() for path in sorted(folder.rglob("*.png"))]

    before = pixels("plain")
    assert before == pixels("again")
    assert len(before) == 6
    for name, value in OTHER.items():
        assert pixels(name, **{name: value}) != before, name
