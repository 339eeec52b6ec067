"""Configurations: what is refused when one is made, in every configuration of the package; limits; JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pkgutil
import time
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

import rcdm_fast
from rcdm_fast import checks
from rcdm_fast import config as configs
from rcdm_fast.checks import Checked, ConfigError, Range
from rcdm_fast.cli.training import _configuration
from rcdm_fast.config import EncoderConfig, FittedSolver, ModelConfig, ScheduleConfig, UNetConfig
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.models.unet import UNet
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.losses import LossConfig
from tests import small

NAMES = ("Config", "Settings", "Options")  # what a configuration's class is called
NEEDED: dict[str, dict[str, Any]] = {  # fields without a default
    "UNetConfig": {"image_size": 32, "num_channels": 32, "channel_mult": (1, 2)},
    "EncoderConfig": {"source": "module"},
    "ModelConfig": {"unet": small.UNET, "schedule": small.SCHEDULE},
    "TrainConfig": {"name": "x", "unet": small.UNET},
    "AdaptConfig": {"name": "x", "model": "y"},
    "DistillConfig": {"name": "x", "model": "y"},
    "TuneConfig": {"name": "x", "model": "y"},
    "PretrainConfig": {"name": "x"},
    "Settings": {"model": "cifar10-simclr-trunk"},
    "Plan": {"cases": ()},
    "FittedSolver": {"nfe": 2, "numbers": (0.0,) * 10, "weights": "0" * 64},
}


def configurations() -> list[type[Any]]:
    """Every frozen dataclass of the package that is called one."""
    found: dict[str, type[Any]] = {}
    training = importlib.import_module("rcdm_fast.training")  # a package without a file of its own
    modules = [*pkgutil.walk_packages(rcdm_fast.__path__, "rcdm_fast.")]
    modules += pkgutil.iter_modules(training.__path__, "rcdm_fast.training.")
    for module in modules:
        if module.name.rpartition(".")[2].startswith("_"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if not (isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.name):
                continue
            if value.__name__.endswith(NAMES) or value.__name__ == "Plan":
                found[f"{value.__module__}.{value.__name__}"] = value
    return list(found.values())


CONFIGURATIONS = configurations()


def made(cls: type[Any], **changes: Any) -> Any:
    needed = NEEDED.get(cls.__name__, {})
    fields = {field.name for field in dataclasses.fields(cls)}
    if cls.__name__ == "Plan":
        needed = {"cases": (importlib.import_module(cls.__module__).Case(),)}
    return cls(**{**{key: value for key, value in needed.items() if key in fields}, **changes})


def test_there_are_as_many_as_there_should_be() -> None:
    names = {cls.__name__ for cls in CONFIGURATIONS}
    assert names >= {"UNetConfig", "TrainConfig", "LossConfig", "PretrainConfig", "JobConfig", "AttackConfig"}
    assert len(CONFIGURATIONS) >= 25


@pytest.mark.parametrize("cls", CONFIGURATIONS, ids=lambda cls: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}")
def test_every_field_of_every_configuration_is_checked(cls: type[Any]) -> None:
    assert issubclass(cls, Checked)
    made(cls)
    for name, hint in typing.get_type_hints(cls).items():
        wrong: list[Any] = []
        if typing.get_origin(hint) is Literal:
            wrong = ["such_a_thing", None, 1, typing.get_args(hint)[0] + "n"]
        elif hint is bool:
            wrong = [1, "yes", None]
        elif hint is int:
            wrong = [1.5, True, "1", None, 1j]
        elif hint is float:
            wrong = [float("nan"), float("inf"), "1", True, 1j, None]
        elif hint is str:
            wrong = [1, None, b"x"]
        elif typing.get_origin(hint) is tuple:
            wrong = ["x", 1, None, ({},)]
        for value in wrong:
            with pytest.raises(ConfigError, match=name):
                made(cls, **{name: value})


# Of these every text takes one.
TEXTS = ("x", "unipc_2", "cifar10-simclr-head", "ancestral", "hue", "data: component 1")
WITH: dict[str, dict[str, Any]] = {name: {"method": name} for name in ("vicreg", "barlow", "byol", "dino")}
WITH["masked_parts"] = {"standardize": False}
WITH["condition_map"] = {"representation_dim": 16, "condition_map": (4, 2, 2)}
ALONE = {"format_version", "observer"}  # has one value; is a function
# Have one value there.
ONE = {
    *((name, "per") for name in ("InterpolateConfig", "SlopesConfig", "CalibrateConfig")),
    *(("InvertConfig", name) for name in ("per", "eta", "guidance")),
}


def others(hint: Any, value: Any) -> Iterator[Any]:
    """Values that a field of that type may have instead, likely ones first."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        yield from (each for each in arguments if each != value)
    elif origin in (typing.Union, types.UnionType):
        yield from (each for inner in arguments if inner is not type(None) for each in others(inner, value))
    elif origin is tuple:
        yield from (value[:-1], value[::-1]) if value else ()
        yield from ((*(value or ())[:-1], each) for each in others(arguments[0], value[-1] if value else None))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield {"a": [1, 2.5, "x", None]}
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        for item in dataclasses.fields(made(kind) if value is None else value):
            yield from variants(kind, made(kind) if value is None else value, item.name)
    elif kind is bool:
        yield not value
    elif kind is str:
        yield from TEXTS
    elif kind in (int, float):
        numbers = [(value or 0) + 1, (value or 0) * 2, (value or 0) - 1, 1, 8, 32, 256]
        yield from map(kind, [*numbers, 0.5, 0.25, 1.5] if kind is float else numbers)


def variants(cls: type[Any], base: Any, name: str) -> Iterator[Any]:
    """The configuration with one field changed."""
    hint = typing.get_type_hints(cls, include_extras=True)[name]
    for value in others(hint, getattr(base, name)):
        with contextlib.suppress(ConfigError):
            config = dataclasses.replace(base, **{name: value})
            if getattr(config, name) != getattr(base, name):
                yield config


@pytest.mark.parametrize("cls", CONFIGURATIONS, ids=lambda cls: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}")
def test_every_field_of_every_configuration_comes_back_from_json(cls: type[Any]) -> None:
    for item in dataclasses.fields(cls):
        if item.name in ALONE or (cls.__name__, item.name) in ONE:
            continue
        needed = {name: value for name, value in WITH.get(item.name, {}).items() if hasattr(cls, name)}
        config = next(variants(cls, made(cls, **needed), item.name), None)
        assert config is not None, item.name
        again = configs.from_json(cls, configs.to_json(config))
        assert again == config, item.name
        assert repr(again) == repr(config), item.name  # 1 is not 1.0


def test_near_misses_are_offered() -> None:
    for cls, name, value, offered in (
        (LossConfig, "weighting", "clamped_srn", "clamped_snr"),
        (TrainConfig, "timesteps", "loss-aware", "loss_aware"),
        (TrainConfig, "lr_schedule", "const", "constant"),
        (TrainConfig, "weights", "float16", None),
        (TrainConfig, "sharding", "fsdp", None),
        (ScheduleConfig, "noise_schedule", "Linear", "linear"),
    ):
        with pytest.raises(ConfigError, match=f"{name} must be one of .*; got '{value}'") as raised:
            made(cls, **{name: value})
        assert (f"did you mean {offered}?" in str(raised.value)) == (offered is not None)
    with pytest.raises(ConfigError, match=r"unknown key learning_rat; did you mean learning_rate\?"):
        configs.from_dict(TrainConfig, {"name": "x", "unet": dataclasses.asdict(small.UNET), "learning_rat": 1})


def test_what_loses_nothing_is_taken() -> None:
    config = UNetConfig(np.int64(32), torch.tensor(32), [np.float32(1), 2], dropout=np.float64(0.5))  # type: ignore[arg-type]
    assert config == UNetConfig(32, 32, (1.0, 2), dropout=0.5)
    assert [type(value) for value in (config.image_size, config.num_channels, config.dropout)] == [int, int, float]
    assert configs.from_json(UNetConfig, configs.to_json(config)) == config
    assert str(Range(0, below=1)) == "at least 0 and less than 1"


PUBLISHED_512 = UNetConfig(512, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (32, 16, 8), resblock_updown=True, learn_sigma=True,
    representation_dim=8192, num_classes=1000)  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        small.UNET,
        PUBLISHED_512,
        UNetConfig(64, 64, (1, 2, 3, 4), 3, (32, 16), use_scale_shift_norm=False, conv_resample=False, num_classes=7),
        UNetConfig(32, 32, (1, 1), 1, (), num_head_channels=16, num_heads_upsample=2),
    ],
)
def test_parameters_are_counted_without_a_network(config: UNetConfig) -> None:
    with torch.device("meta"):
        assert config.parameters == sum(tensor.numel() for tensor in UNet(config).state_dict().values())


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (UNetConfig, "num_res_blocks", 10**9),
        (UNetConfig, "image_size", 10**6),
        (UNetConfig, "num_classes", 10**12),
        (UNetConfig, "representation_dim", 10**12),
        (UNetConfig, "channel_mult", (1e9, 1)),
        (UNetConfig, "channel_mult", (1.0,) * 100_000),
        (UNetConfig, "num_channels", 2**40),
        (UNetConfig, "attention_resolutions", (1,) * 10**6),
        (UNetConfig, "num_head_channels", 0),
        (UNetConfig, "num_channels", 16_384),  # in all: some 50 billion parameters
        (ScheduleConfig, "diffusion_steps", 10**9),
        (EncoderConfig, "resize_to", 20_000),
        (EncoderConfig, "image_size", 10**6),
        (EncoderConfig, "dim", 10**12),
        (EncoderConfig, "mean", (0.5, 0.5)),
        (ModelConfig, "representation_dropout", 2.0),
    ],
)
def test_one_number_cannot_ask_for_everything(cls: type[Any], name: str, value: Any) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        made(cls, **{name: value})
    assert time.monotonic() - start < 2
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "not valid JSON"),
        ('{"diffusion_steps": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[1]", "expected an object, got list"),
        ('{"diffusion_steps": "1000"}', "expected int, got '1000'"),
        ('{"diffusion_steps": true}', "expected int, got True"),
        ('{"diffusion_steps": null}', "expected int, got None"),
        ('{"diffusion_steps": 1e3}', "expected int, got 1000.0"),
        ('{"noise_schedule": ["linear"]}', "noise_schedule must be one of linear, cosine; got "),
        ('{"noise_schedule": {}}', "noise_schedule must be one of linear, cosine; got {}"),
        ('{"format_version": "x"}', "unknown key format_version"),
        ('{"format_version": 99}', "update rcdm_fast"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_is_no_schedule(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        configs.from_json(ScheduleConfig, text, "file")
    assert message in str(raised.value)


def test_json_with_nan_or_wrong_types_deep_inside() -> None:
    config = ModelConfig(small.UNET, small.SCHEDULE, EncoderConfig("module"))
    data = json.loads(configs.to_json(config))
    for place, value in (
        (("unet", "dropout"), float("nan")),
        (("unet", "channel_mult"), [1, None]),
        (("unet", "channel_mult"), {"0": 1}),
        (("encoder", "std"), [0, 1, 1]),
        (("encoder", "std"), "111"),
        (("encoder", "architecture"), [1]),
        (("encoder",), 5),
        (("info",), "text"),
        (("name",), None),
        (("schedule",), None),
    ):
        changed = json.loads(json.dumps(data))
        inside = changed
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value
        with pytest.raises(ConfigError, match=place[-1]):
            configs.from_json(ModelConfig, json.dumps(changed), "file")


def test_whatever_is_wrong_in_a_file_its_name_is_told_and_nothing_is_repeated_at_length() -> None:
    for text, message in (
        ('{"diffusion_steps": 0}', "diffusion_steps"),
        ('{"prediction": "epsilon"}', "prediction"),
        (json.dumps({"x" * 3000: 1}), "unknown key"),
        ('{"a\\nb": 1}', r"unknown key a\\nb"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            configs.from_json(ScheduleConfig, text, "my.json")
        assert str(raised.value).startswith("my.json")
        assert len(str(raised.value)) < 700
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b'{"name": "\xe1"}', b"[" * 200_000, b'{"images": ' + b"9" * 5000 + b"}", b"", b"[1]", None]
)
def test_damaged_configuration_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.json"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.json"):
        _configuration("anything", str(file))
    with pytest.raises(ConfigError, match="no configuration"):
        _configuration("x" * 200, None)
    assert _configuration("starter", None)["name"] == _configuration("anything", "starter")["name"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "32 channels do not split into 3 heads"),  # of the middle, which always attends
        ({"num_heads_upsample": 3}, "32 channels do not split into 3 heads"),
        ({"num_head_channels": 48}, "32 channels do not split into heads of 48"),
        ({"channel_mult": (1, 2), "num_heads": 64, "attention_resolutions": (32,)}, "32 channels do not split into 64"),
        ({"representation_dim": 200, "condition_map": (1, 200, 1)}, "more than 128 positions"),
        ({"representation_dim": 200, "condition_map": (1, 1, 200)}, "more than 128 positions"),
    ],
)
def test_networks_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UNetConfig(
            **{"image_size": 32, "num_channels": 32, "channel_mult": (1,), "attention_resolutions": (), **changes}
        )


def test_heads_of_both_halves() -> None:
    config = UNetConfig(32, 32, (1, 1), num_heads=4, num_heads_upsample=2)
    assert [config.heads(64, half) for half in (False, True)] == [4, 2]
    config = dataclasses.replace(config, num_head_channels=16)
    assert [config.heads(64, half) for half in (False, True)] == [4, 4]


def test_fitted_solvers_are_told_apart_by_all_that_they_are() -> None:
    numbers = tuple(float(each) for each in range(10))
    weights = "0" * 64
    solvers = [
        FittedSolver(2, numbers, weights),
        FittedSolver(2, numbers[::-1], weights),
        FittedSolver(2, numbers, weights, version=2),
        FittedSolver(3, numbers, weights, version=2),
    ]
    assert len({each.digest for each in solvers}) == 4
    assert FittedSolver(2, numbers, "1" * 64, info={"a": 1}).digest == solvers[0].digest
    for count in (9, 11):
        with pytest.raises(ConfigError, match=f"has 10 numbers, got {count}"):
            FittedSolver(2, (0.0,) * count, weights)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "said"),
    [
        (Range(1, 3), (1, 3), (0, 4), "in 1..3"),
        (Range(0, below=1), (0, 0.5), (-0.1, 1), "at least 0 and less than 1"),
        (Range(above=0), (1e-300,), (0, -1), "greater than 0"),
        (Range(most=2.5), (2.5, -9), (2.6,), "at most 2.5"),
        (Range(), (-1e300, 0), (), ""),
    ],
)
def test_bounds_of_a_range(limits: Range, inside: tuple[float, ...], outside: tuple[float, ...], said: str) -> None:
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)
    assert str(limits) == said


def test_what_may_be_one_of_several_is_told_with_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"^x must be a whole number, got 1\.5 or a text$"):
        checks._fitted(int | str, 1.5, "x")
    assert [checks._fitted(int | str | None, value, "x") for value in (2, "2", None)] == [2, "2", None]


def test_only_names_that_are_near_are_offered() -> None:
    known = ("ancestral", "ddim")
    given = ("anc", "an", "DDIM ", "dimm", "heun")
    offered = [checks.meant(text, known).removeprefix("; did you mean ").rstrip("?") for text in given]
    assert offered == ["ancestral", "", "ddim", "ddim", ""]


def test_limits_themselves_are_allowed() -> None:
    assert SamplingConfig(seed=2**64 - 1).seed == 2**64 - 1
    least = dataclasses.replace(made(EncoderConfig), image_size=32, resize_to=32)
    assert least.resize_to == 32
    with pytest.raises(ConfigError, match="is smaller than image_size"):
        dataclasses.replace(least, resize_to=31)
    assert dataclasses.replace(least, resize_to=31, border="black").resize_to == 31
    longest = tuple(range(checks.LONGEST))
    last = {"student_steps": longest, "schedule": ScheduleConfig(1000, variance="learned_range")}
    assert made(ModelConfig, **last).student_steps == longest
    with pytest.raises(ConfigError, match="at most 1000 values, got 1001"):
        made(ModelConfig, student_steps=(*longest, 1000))
