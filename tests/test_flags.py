"""Published flags to configurations and back."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rcdm_fast.config import ConfigError, ScheduleConfig, UNetConfig
from rcdm_fast.models.flags import DEFAULTS, FlagValue, configs_from_flags, flags_from_configs, read_flags
from tests import reference_weights

SMALL = UNetConfig(32, 32, (1, 2, 2), num_res_blocks=1, attention_resolutions=(16,), representation_dim=7)

VARIANTS = {
    "plain": SMALL,
    "unconditional": dataclasses.replace(SMALL, representation_dim=0),
    "classes": dataclasses.replace(SMALL, num_classes=10, representation_dim=0),
    "both conditions": dataclasses.replace(SMALL, num_classes=1000),
    "learned sigma, residual resampling": dataclasses.replace(SMALL, learn_sigma=True, resblock_updown=True),
    "additive norm": dataclasses.replace(SMALL, use_scale_shift_norm=False),
    "pooling instead of convolutions": dataclasses.replace(SMALL, conv_resample=False),
    "one level": dataclasses.replace(SMALL, channel_mult=(1,), attention_resolutions=(32,)),
    "no attention": dataclasses.replace(SMALL, attention_resolutions=()),
    "attention everywhere, three blocks": dataclasses.replace(
        SMALL, attention_resolutions=(32, 16, 8), num_res_blocks=3
    ),
    "half width": dataclasses.replace(SMALL, num_channels=64, channel_mult=(0.5, 1, 1.5)),
    "heads": dataclasses.replace(
        SMALL, num_head_channels=16, num_heads_upsample=2, use_new_attention_order=True, dropout=0.25
    ),
}


def schedule_for(config: UNetConfig) -> ScheduleConfig:
    return ScheduleConfig(variance="learned_range" if config.learn_sigma else "fixed_large")


@pytest.mark.parametrize("case", reference_weights.CASES)
def test_reference_flags(case: str) -> None:
    path = reference_weights.flags_path(case)
    unet, schedule = configs_from_flags(path)
    assert unet.image_size == 32
    assert unet.representation_dim == {"rcdm_32": 512, "rcdm_32_plain": 128}[case]
    assert schedule.variance == {"rcdm_32": "learned_range", "rcdm_32_plain": "fixed_large"}[case]
    assert flags_from_configs(unet, schedule) == json.loads(path.read_text())


def test_command_line_values_mean_the_same_as_plain_data() -> None:
    text = {
        "image_size": "128",
        "num_channels": "256",
        "attention_resolutions": "32, 16,8",
        "channel_mult": "",
        "num_head_channels": "-1",
        "resblock_updown": "True",
        "learn_sigma": "yes",
        "class_cond": "False",
        "use_fp16": "0",
        "dropout": "0.1",
    }
    data = {
        "image_size": 128,
        "num_channels": 256.0,
        "attention_resolutions": [32, 16, 8],
        "channel_mult": (1, 1, 2, 3, 4),
        "resblock_updown": 1,
        "learn_sigma": True,
        "dropout": 0.1,
    }
    unet, schedule = configs_from_flags(text)
    assert (unet, schedule) == configs_from_flags(data)
    assert list(unet.channel_mult) == [1, 1, 2, 3, 4]
    assert list(unet.attention_resolutions) == [32, 16, 8]


def test_missing_flags_take_the_published_defaults() -> None:
    unet, schedule = configs_from_flags({})
    assert unet == UNetConfig(64, 128, (1, 2, 3, 4), attention_resolutions=(16, 8))
    assert schedule == ScheduleConfig()


def test_conditions() -> None:
    assert configs_from_flags({"feat_cond": True})[0].representation_dim == 2048
    assert configs_from_flags({"ssl_dim": 5})[0].representation_dim == 5
    assert configs_from_flags({"ssl_dim": 5, "feat_cond": False})[0].representation_dim == 0
    assert configs_from_flags({"class_cond": "true"})[0].num_classes == 1000
    assert configs_from_flags({"num_classes": 10})[0].num_classes == 10


def test_diffusion_flags() -> None:
    flags = {"diffusion_steps": 4000, "noise_schedule": "cosine", "predict_xstart": True, "rescale_timesteps": True}
    assert configs_from_flags(flags | {"sigma_small": True})[1] == ScheduleConfig(
        4000, "cosine", "x0", "fixed_small", True
    )
    assert configs_from_flags({"learn_sigma": True, "sigma_small": True})[1].variance == "learned_range"


def test_attention_falls_where_the_published_code_puts_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        unet, _ = configs_from_flags({"image_size": 16, "channel_mult": "1,2", "attention_resolutions": "32,16,7"})
    assert unet.attention_resolutions == (16, 8)  # 16 // 7 is 2, the second level
    assert "32" in caplog.text


def test_flags_that_are_no_part_of_the_model_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert configs_from_flags({"use_kl": True, "G_shared": True, "use_checkpoint": True}) == configs_from_flags({})
        assert not caplog.records
        configs_from_flags({"timestep_respacing": "ddim25", "use_fp16": True})
    assert "steps=" in caplog.text
    assert "precision=" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_chanels": 64}, "num_chanels.*did you mean num_channels"),
        ({"lr": 1, "image_size": 64}, "unknown flag 'lr'"),
        ({"image_size": "big"}, "image_size='big'"),
        ({"image_size": 64.5}, "whole number"),
        ({"image_size": True}, "image_size=True"),
        ({"image_size": None}, "image_size=None"),
        ({"image_size": "inf"}, "image_size='inf'"),
        ({"learn_sigma": "maybe"}, "learn_sigma='maybe'"),
        ({"channel_mult": "1,x"}, "channel_mult='1,x'"),
        ({"channel_mult": "1,nan"}, "channel_mult"),
        ({"channel_mult": "1,-2"}, "positive"),
        ({"attention_resolutions": "16,0"}, "positive"),
        ({"attention_resolutions": "1.5"}, "whole numbers"),
        ({"noise_schedule": "sqrt"}, "noise_schedule must be one of"),
        ({"image_size": 32}, "channel_mult must be given for image_size 32"),
        ({"image_size": 0, "channel_mult": "1"}, r"image_size must be in 1\.\.2048, got 0"),
        ({"num_channels": 100}, "not a multiple of 32"),
        ({"num_heads": 5}, "do not split into 5 heads"),
        ({"feat_cond": True, "ssl_dim": 0}, "ssl_dim must be positive"),
        ({"diffusion_steps": 0}, "diffusion_steps"),
    ],
)
def test_bad_flags(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configs_from_flags(flags)


def test_flags_files(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    with pytest.raises(ConfigError, match="no such flags file"):
        read_flags(path)
    path.write_text('{"image_size": "64"}')
    assert read_flags(str(path)) == {"image_size": 64}
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        read_flags(path)
    path.write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ConfigError, match="cannot be read as a JSON file"):
        read_flags(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_flags(tmp_path)
    path.write_text(json.dumps({"num_heads": "x" * 10_000}))
    with pytest.raises(ConfigError, match=r"flags\.json: flag num_heads='xxx") as raised:
        read_flags(path)
    assert len(str(raised.value)) < 1000
    for wrong in ({"num_channels": -1}, {"dropout": 1e9}, {"num_heads": 3}, {"ssl_dim": 0}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ConfigError, match=r"flags\.json: "):
            configs_from_flags(path)


BASE: dict[str, FlagValue] = {
    "image_size": 64, "num_channels": 64, "channel_mult": "1,2,3,4", "attention_resolutions": "32,16", "ssl_dim": 7,
}  # fmt: skip
# Every flag with another value than in BASE or its default, and what that makes of the network and the process.
EACH: dict[str, tuple[FlagValue, dict[str, Any]]] = {
    "image_size": (128, {"image_size": 128}),
    "num_channels": (96, {"num_channels": 96}),
    "num_res_blocks": (3, {"num_res_blocks": 3}),
    "num_heads": (2, {"num_heads": 2}),
    "num_heads_upsample": (2, {"num_heads_upsample": 2}),
    "num_head_channels": (16, {"num_head_channels": 16}),
    "attention_resolutions": ("16", {"attention_resolutions": (16,)}),
    "channel_mult": ("1,2,2,4", {"channel_mult": (1, 2, 2, 4)}),
    "dropout": (0.25, {"dropout": 0.25}),
    "class_cond": (True, {"num_classes": 1000}),
    "use_checkpoint": (True, {}),
    "use_scale_shift_norm": (False, {"use_scale_shift_norm": False}),
    "resblock_updown": (True, {"resblock_updown": True}),
    "use_fp16": (True, {}),
    "use_new_attention_order": (True, {"use_new_attention_order": True}),
    "learn_sigma": (True, {"learn_sigma": True, "variance": "learned_range"}),
    "diffusion_steps": (500, {"diffusion_steps": 500}),
    "noise_schedule": ("cosine", {"noise_schedule": "cosine"}),
    "timestep_respacing": ("ddim25", {}),
    "use_kl": (True, {}),
    "predict_xstart": (True, {"prediction": "x0"}),
    "rescale_timesteps": (True, {"rescale_timesteps": True}),
    "rescale_learned_sigmas": (True, {}),
    "feat_cond": (False, {"representation_dim": 0}),
    "ssl_dim": (9, {"representation_dim": 9}),
    "G_shared": (True, {}),
    "pretrained": (True, {}),
    "sigma_small": (True, {"variance": "fixed_small"}),
    "num_classes": (10, {"num_classes": 10}),
    "conv_resample": (False, {"conv_resample": False}),
}


def test_every_flag_says_one_thing_and_comes_back() -> None:
    assert EACH.keys() == DEFAULTS.keys()
    unet, schedule = configs_from_flags(BASE)
    plain = {**dataclasses.asdict(unet), **dataclasses.asdict(schedule)}
    said: set[str] = set()
    for name, (value, changes) in EACH.items():
        for given in (value, str(value), str(value).lower()):
            own = configs_from_flags(BASE | {name: given})
            found = {**dataclasses.asdict(own[0]), **dataclasses.asdict(own[1])}
            assert {key: found[key] for key in plain if found[key] != plain[key]} == changes, name
        flags = flags_from_configs(*own)
        assert configs_from_flags(json.loads(json.dumps(flags))) == own, name
        assert not changes or str(flags[name]) == str(value), name
        said |= changes.keys()
    fields = {item.name for cls in (UNetConfig, ScheduleConfig) for item in dataclasses.fields(cls)}
    assert said == fields - {"clamp_variance", "condition_map", "representation_hidden"}
    for beyond in ({"prediction": "v"}, {"clamp_variance": True}):
        with pytest.raises(ConfigError, match="published flags cannot describe"):
            flags_from_configs(unet, dataclasses.replace(schedule, **beyond))
    maps = dataclasses.replace(unet, representation_dim=12, condition_map=(3, 2, 2))
    with pytest.raises(ConfigError, match="published flags cannot describe"):
        flags_from_configs(maps, schedule)


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(name: str) -> None:
    unet = VARIANTS[name]
    flags = flags_from_configs(unet, schedule_for(unet))
    assert configs_from_flags(json.loads(json.dumps(flags))) == (unet, schedule_for(unet))


def test_published_default_widths_stay_the_default() -> None:
    unet = configs_from_flags({"image_size": 512, "num_channels": 256})[0]
    flags = flags_from_configs(unet, ScheduleConfig())
    assert flags["channel_mult"] == ""  # "0.5,1,..." cannot be said on the published command line
    assert configs_from_flags(flags)[0] == unet


def test_sampling_flags_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sampling = {"batch_size": 16, "num_samples": 100, "use_ddim": True, "clip_denoised": True, "model_path": "a.pt"}
    flags = {"image_size": 64, "timestep_respacing": "ddim25", **sampling}
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(flags), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert read_flags(path) == {"image_size": 64, "timestep_respacing": "ddim25"}
    for name in sampling:
        assert name in caplog.text
    assert configs_from_flags(path) == configs_from_flags({"image_size": 64})
    with pytest.raises(ConfigError, match="unknown flag 'num_sample'"):
        read_flags({**flags, "num_sample": 3})


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"image_size": ' + "9" * 5000 + "}", "\0", "", "nul"]
)
def test_flags_files_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"flags\.json: ") as raised:
        read_flags(path)
    assert len(str(raised.value)) < 1000
    with pytest.raises(ConfigError):
        read_flags("~nosuchuser/flags.json")
