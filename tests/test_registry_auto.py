"""What ``auto`` is, and what is taken where nobody says how samples are drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from tests import small


@pytest.mark.parametrize(
    ("given", "solver", "evaluations"),
    [
        ({}, "deis", 10),
        ({"steps": "10"}, "deis", 10),
        ({"steps": " 12 "}, "deis", 12),
        ({"steps": 3}, "deis", 3),
        ({"steps": "at:0,400,999"}, "deis", 3),
        ({"steps": "quadratic5"}, "deis", 5),
        ({"steps": "uniform3"}, "deis", 3),
        ({"clip": False}, "deis", 10),
        ({"steps": 2}, "ddim", 2),
        ({"steps": "1"}, "ddim", 1),
        ({"steps": "at:0,999"}, "ddim", 2),
        ({"steps": "karras2"}, "ddim", 2),
        ({"eta": 0.5}, "ddim", 10),
        ({"steps": "ddim10"}, "ddim", 10),
        ({"steps": "3,2,1"}, "ddim", 6),
        ({"steps": ""}, "ddim", 1000),
    ],
    ids=str,
)
def test_what_auto_is(given: dict[str, Any], solver: str, evaluations: int) -> None:
    model, h = small.quick_model(), torch.zeros(1, small.DIM)
    chosen = model.request(h, **given).chosen
    assert (chosen.name, chosen.evaluations) == (solver, evaluations)
    if evaluations < 20:
        assert torch.equal(model.sample(h, per=1, **given), model.sample(h, per=1, **{**given, "solver": solver}))


@pytest.mark.parametrize("steps", ["quadratc5", "0", "1001", "1e1", "at:", "at:5,5", "ddim999", "10,", ","])
def test_steps_that_are_none_are_refused(steps: str) -> None:
    """With the message that a named solver has."""
    with pytest.raises(ConfigError) as named:
        registry.schedule(small.SCHEDULE, "deis" if steps[:4] != "ddim" and "," not in steps[:3] else "ddim", steps)
    with pytest.raises(ConfigError) as found:
        small.quick_model().request(torch.zeros(1, small.DIM), steps=steps)
    assert str(found.value) == str(named.value)


def test_inversion_has_a_default_of_its_own() -> None:
    """DDIM in 50 steps, which leads back; a configuration says how many it has, and keywords say otherwise."""
    model, images = small.quick_model(), small.make_images(2)
    h = model.encode(images)
    usual = model.invert(images, h)
    assert torch.equal(usual, model.invert(images, h, steps=50, solver="ddim"))
    few = model.invert(images, h, SamplingConfig())
    assert torch.equal(few, model.invert(images, h, steps=10))
    assert not torch.equal(few, usual)
