"""How samples are drawn is said once: one definition, one default of each field, whoever draws."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

import rcdm_fast
from rcdm_fast import engine_comparison
from rcdm_fast.analysis import (
    calibrate,
    common,
    depth,
    factors,
    interpolate,
    invert,
    layer,
    manipulate,
    nearness,
    neighbors,
    out_of_distribution,
    photos,
    robustness,
    sweeps,
    tokens,
    world_slopes,
)
from rcdm_fast.app import playground
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.sampling_config import InversionKeywords, SamplingConfig, SamplingKeywords
from rcdm_fast.evaluation import EvaluateConfig
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.model import Model
from rcdm_fast.solver_quality import BASELINE, QualityConfig
from tests import small
from tests.command_calls import COMMANDS

FIELDS = {item.name: item.default for item in dataclasses.fields(SamplingConfig)}
# Everything that is drawn otherwise than by default; `diffusion/sampling_config.py` says why.
OTHER: dict[type, dict[str, Any]] = {
    JobConfig: {},
    EvaluateConfig: {"per": 4},
    engine_comparison.Settings: {"per": 4},
    playground.Settings: {},
    common.ExperimentConfig: {"per": 2},
    robustness.AttackConfig: {"per": 2},
    manipulate.ManipulateConfig: {"per": 2},
    neighbors.NeighborsConfig: {"per": 4},
    out_of_distribution.UnfamiliarConfig: {"per": 4},
    sweeps.InvarianceConfig: {"per": 1},
    layer.LayersConfig: {"per": 1},
    depth.DepthConfig: {"per": 1},
    interpolate.InterpolateConfig: {"per": 1},
    invert.InvertConfig: {"per": 1, "steps": 50, "solver": "ddim"},
    photos.PhotosConfig: {},
    world_slopes.SlopesConfig: {"per": 1},
    nearness.NearnessConfig: {"per": 4},
    tokens.TokensConfig: {"per": 2},
    factors.FactorsConfig: {"per": 2},
    calibrate.CalibrateConfig: {"per": 1, "solver": "dpmpp_2m"},
}
COMMAND_OTHER: dict[str, dict[str, Any]] = {
    "interpolate": {"per": 4}, "sequence": {"per": 1}, "evaluate": {"per": 4}, "compare": {"per": 4},
    "bench": {"per": 2, "steps": "10,25,50,100"}, "tune": {"solver": None},
    "analyze": {"per": None, "steps": None, "solver": None}, "calibrate": {"steps": None, "solver": None},
    "report": {"steps": None, "solver": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return small.model()


@pytest.fixture(scope="module")
def h() -> torch.Tensor:
    return torch.randn(2, small.DIM, generator=torch.Generator().manual_seed(3))


def _below(cls: type) -> set[type]:
    direct: list[type] = cls.__subclasses__()
    return {each for one in direct for each in (one, *_below(one))}


def test_the_defaults() -> None:
    assert FIELDS == {
        "per": 8, "steps": 10, "solver": "auto", "eta": 0.0, "guidance": 1.0, "seed": 0, "clip": True,
    }  # fmt: skip
    for keywords in (SamplingKeywords, InversionKeywords):
        hints, taken = (typing.get_type_hints(each) for each in (SamplingConfig, keywords))
        assert {name: hints[name] for name in taken} == taken
    assert set(SamplingKeywords.__annotations__) == set(FIELDS)


def test_every_configuration_has_these_defaults_unless_it_is_listed() -> None:
    assert _below(SamplingConfig) == set(OTHER)
    for cls, other in OTHER.items():
        found = {item.name: item.default for item in dataclasses.fields(cls) if item.name in FIELDS}
        assert found == {**FIELDS, **other}, cls
    assert (BASELINE.solver, BASELINE.steps) == ("ddim", 50)
    assert QualityConfig.per == 2
    assert vars(QualityConfig().of(BASELINE)) == vars(EvaluateConfig(per=2, sources=64, solver="ddim", steps=50))


def test_every_command_has_these_defaults_unless_it_is_listed() -> None:
    seen = 0
    for name, command in COMMANDS.commands.items():
        for option in command.params:
            if option.name in FIELDS and "--" + option.name in option.opts:
                usual = FIELDS[option.name] if option.name != "steps" else str(FIELDS["steps"])
                assert option.default == COMMAND_OTHER.get(name, {}).get(option.name, usual) or (
                    option.default is None and option.name in COMMAND_OTHER.get(name, {})
                ), (name, option.name)
                seen += 1
    assert seen > 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per": 0}, "per must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"solver": "dim"}, r"no solver called 'dim'.*did you mean ddim\?"),
        ({"eta": -0.5}, "eta must be at least 0"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"seed": 2**64}, "seed must be in 0.."),
        ({"clip": 1}, "clip must be True or False, got 1"),
    ],
)
def test_what_no_model_can_be_asked_for(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**values)
    with pytest.raises(ConfigError, match=message):
        JobConfig(**values)


def test_a_configuration_and_keywords_draw_the_same(model: Model, h: torch.Tensor) -> None:
    asked = {"per": 3, "steps": 2, "eta": 0.5, "seed": 7, "clip": False}
    want = model.sample(h, **asked)  # type: ignore[arg-type]
    assert torch.equal(model.sample(h, SamplingConfig(**asked)), want)  # type: ignore[arg-type]
    said = SamplingConfig(per=3, steps=9, eta=0.5, seed=8, clip=False)
    assert torch.equal(model.sample(h, said, steps=2, seed=7), want)  # keywords go before a configuration
    more = EvaluateConfig(sources=5, **asked)  # type: ignore[arg-type]
    assert torch.equal(model.sample(h, more), want)
    assert model.request(h, more).config == SamplingConfig(**asked)  # type: ignore[arg-type]  # and no more of it
    assert more.changed(per=1) == SamplingConfig(**{**asked, "per": 1})  # type: ignore[arg-type]
    for name, value in (("per", 2), ("steps", 3), ("eta", 0.0), ("seed", 1), ("clip", True), ("solver", "dpmpp_2m")):
        changed = {**asked, name: value, **({"eta": 0.0} if name == "solver" else {})}
        got = model.sample(h, SamplingConfig(**changed))  # type: ignore[arg-type]
        assert got.shape != want.shape or not torch.equal(got, want), name
    given = [batch.images for batch in rcdm_fast.generate(model, h, SamplingConfig(**asked))]  # type: ignore[arg-type]
    images = model.sample(h, **asked).flatten(0, 1)  # type: ignore[arg-type]
    assert torch.equal(torch.cat(given), ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def test_what_is_no_configuration(model: Model, h: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="is a SamplingConfig, or keywords; got 25"):
        model.sample(h, 25)  # type: ignore[arg-type]
    calls: tuple[Any, ...] = (model.sample, model.request, lambda h, **each: rcdm_fast.generate(model, h, **each))
    for call in calls:
        with pytest.raises(TypeError, match=r"unexpected keyword argument, 'step'; did you mean steps\?"):
            call(h, step=3)
    with pytest.raises(TypeError, match="unexpected keyword argument, 'seed'; known: steps, solver, clip"):
        model.invert(small.make_images(2), h, seed=3)  # type: ignore[call-arg]


def test_an_interpolation_takes_one_too(model: Model, h: torch.Tensor) -> None:
    drawn = SamplingConfig(per=2, steps=3, solver="dpmpp_2m", seed=5)
    got = model.interpolate(h[0], h[1], 3, drawn)
    ends = model.sample(h, drawn, items=[0, 0])
    torch.testing.assert_close(got[:, [0, 2]], ends.transpose(0, 1), atol=1e-5, rtol=0)
    assert model.interpolate(h[0], h[1], 3, steps=2).shape == (1, 3, 3, 8, 8)


def test_an_inversion_is_that_of_ddim(model: Model, h: torch.Tensor) -> None:
    views = small.make_images(2)
    want = model.invert(views, h, steps=4, clip=False)
    assert torch.equal(model.invert(views, h, SamplingConfig(per=1, steps=4, clip=False, seed=9)), want)
    assert not torch.equal(model.invert(views, h, steps=4), want)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"solver": "heun"}, "solver of an inversion must be one of ddim, unipc_2"),
        ({"eta": 0.5}, "eta must be 0, got 0.5"),
        ({"guidance": 2.0}, "guidance must be 1, got 2.0"),
    )
    for values, message in wrong:
        with pytest.raises(ConfigError, match=message):
            model.invert(views, h, SamplingConfig(**values))
        with pytest.raises(ConfigError, match=message):
            invert.InvertConfig(**values)


def test_a_job_of_before_is_resumed(model: Model, h: torch.Tensor, tmp_path: Path) -> None:
    """Its file says nothing of clipping: it was clipped, so it goes on clipped, and is another job if not."""
    config = JobConfig(per=2, steps=1, shard_images=2)
    assert local.run(model, h, tmp_path, config).complete
    file = tmp_path / "job.json"
    job = json.loads(file.read_text())
    assert job["settings"].pop("clip") is True
    file.write_text(json.dumps(job))
    (tmp_path / "manifest" / "000001.jsonl").unlink()
    kept = (tmp_path / "shards" / "000000.tar").stat().st_mtime_ns
    assert local.run(model, h, tmp_path, config).complete
    assert (tmp_path / "shards" / "000000.tar").stat().st_mtime_ns == kept
    with pytest.raises(ConfigError, match=r"settings.clip was true, is false"):
        local.run(model, h, tmp_path, dataclasses.replace(config, clip=False))
