"""Verdicts beside known truth: counted right, for decoders whose truth is known and for one that follows nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import calibrate as calibration
from rcdm_fast.analysis import error_rates, rules
from rcdm_fast.analysis.calibrate import IDEAL, CalibrateConfig, Calibration, Rate, calibrate
from rcdm_fast.analysis.result import text_table
from rcdm_fast.analysis.world_slopes import DecoderSampler, IdealSampler
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.data.world import World
from rcdm_fast.encoders import factor_reader
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.encoders.oracle_code import subsets
from rcdm_fast.models import checkpoint
from tests import small

CONFIG = CalibrateConfig(subsets=4, sources=400, noises=2, readable=500, steps=2)
DIM = 22  # of masked codes of the world
READOUTS = functools.cache(calibration._readouts)  # the same for every decoder


@pytest.fixture(scope="module")
def reader() -> FactorReader:
    return FactorReader("shapes", 8).eval()


def hand_over(patch: pytest.MonkeyPatch, follows: float, wrong: Sequence[str] = ()) -> None:
    """Nothing is drawn: the ideal decoder and any other hand factors on, the other following with a probability.

    The other takes the factors in `wrong` for kept where they are dropped, and the reverse.
    """
    patch.setattr(calibration, "_readouts", READOUTS)
    patch.setattr(FactorReader, "read", lambda self, drawn: drawn)
    patch.setattr(IdealSampler, "__call__", IdealSampler.factors)

    def decoder(self: DecoderSampler, factors: Tensor, kept: Sequence[str], noise: Sequence[int]) -> Tensor:
        taken = set(kept) ^ set(wrong)
        return IdealSampler(self.world, 5, follows).factors(factors, tuple(taken), noise)

    patch.setattr(DecoderSampler, "__call__", decoder)


def judged(config: CalibrateConfig = CONFIG, names: Sequence[str] = ("mine",)) -> Calibration:
    models = {name: small.model(representation_dim=DIM) for name in names}
    return calibrate(models, FactorReader("shapes", 8).eval(), config)


def test_every_factor_is_kept_in_half_of_any_pairs_and_of_each_half_of_them() -> None:
    for count in (2, 4, 8, 16):
        config = CalibrateConfig(subsets=count)
        numbers = calibration._numbers(config)
        assert len(set(numbers)) == count
        chosen = [subsets()[number] for number in numbers]
        free = [calibration._free(number, config) for number in numbers]
        for name in World().names:
            assert sum(name in subset for subset in chosen) == count // 2
            if count > 2:
                assert sum(free) == count // 2
                assert sum(name in subset for subset, each in zip(chosen, free, strict=True) if each) == count // 4
    assert not any(calibration._free(number, CalibrateConfig(fraction=1)) for number in range(16))
    with pytest.raises(ConfigError, match="come in pairs"):
        CalibrateConfig(subsets=3)


def test_a_decoder_that_follows_is_judged_right(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over(monkeypatch, follows=0.9)
    found = judged()
    assert [each.decoder for each in found.judgments] == [IDEAL, "mine"]
    for each in found.judgments:
        assert len(each.cells) == 32
        assert each.wrong == 0
        assert each.rate(True, True) == Rate(16, 16)
        assert each.rate(True, True, free=False) == Rate(8, 8)
        assert each.rate(True, True, factor="hue") == Rate(2, 2)
        assert each.rate(False, False).count >= 8  # the intervals of numbers are about as wide as is allowed
    read = {cell.cell.kept: [] for cell in found.judgments[0].cells}  # type: ignore[var-annotated]
    for cell in found.judgments[0].cells:
        read[cell.cell.kept].append(cell.readouts)
        assert len(cell.readouts) == 2
    assert min(each.low for pair in read[True] for each in pair) > 0.95
    assert max(each.value for pair in read[False] for each in pair) < 0.01


def test_a_decoder_that_follows_nothing_calls_no_kept_factor_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its samples do not move, and the representation holds the factor all the same."""
    hand_over(monkeypatch, follows=0.0)
    mine = judged().judgments[1]
    assert mine.rate(True, True).count == mine.rate(True, False).count == 0
    assert mine.rate(True, None).count == 16
    assert mine.wrong == 0


def test_wrong_verdicts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over(monkeypatch, follows=1.0, wrong=("hue",))
    mine = judged().judgments[1]
    assert mine.rate(False, True, factor="hue") == Rate(2, 2)
    assert mine.rate(False, True) == Rate(2, 16)
    assert mine.rate(True, False, factor="hue").count == 0  # readouts find it
    assert mine.wrong == 2


def test_a_rate_has_wilsons_interval() -> None:
    none = Rate(0, 96).interval
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.03848, abs=1e-4)  # z^2 / (n + z^2)
    some = Rate(10, 20).interval
    assert (some.low, some.high) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert (Rate(0, 0).interval.low, Rate(0, 0).interval.high) == (0, 1)


def test_what_is_written_is_what_error_rates_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: FactorReader, capsys: pytest.CaptureFixture[str]
) -> None:
    hand_over(monkeypatch, follows=1.0, wrong=("hue",))
    factor_reader.save(tmp_path / "reader.safetensors", reader, {"scores": {"x": 0.5}})
    model = small.model(representation_dim=DIM)
    checkpoint.save_model(tmp_path / "m.safetensors", model.config, model.unet.state_dict())
    words = ["calibrate", f"short={tmp_path / 'm.safetensors'}", f"long={tmp_path / 'm.safetensors'}"]
    words += ["--reader", str(tmp_path / "reader.safetensors"), "--json", str(tmp_path / "c.json"), "--steps", "2"]
    words += [*(f"--set={key}={getattr(CONFIG, key)}" for key in ("subsets", "sources", "readable")), "--max-wrong"]
    assert main([*words, "1"]) == 1
    said = capsys.readouterr()
    assert "2 cells are called the opposite of what they are; 1 allowed" in said.err
    found = json.loads((tmp_path / "c.json").read_text())
    assert [each["name"] for each in found["decoders"]] == [IDEAL, "short", "long"]
    assert found["rules"]["version"] == rules.VERSION
    assert found["settings"]["steps"] == 2
    assert found["reader"]["scores"] == {"x": 0.5}
    assert len(found["decoders"][1]["weights"]) == 64
    assert str(tmp_path) not in (tmp_path / "c.json").read_text()
    again = judged(CONFIG, ("short", "long"))
    for table in again.tables():
        assert "\n".join(text_table(table)) in said.out
    known = error_rates.measured(tmp_path / "c.json")
    assert known.decoders == ("short", "long")
    assert known.false_kept.of == known.false_dropped.of == 16  # 8 of each decoder moved no threshold
    assert known.false_dropped.count == 0
    assert known.false_kept.count == sum(each.rate(False, True, free=False).count for each in again.judgments) == 2
    text = error_rates.sentence(True, tmp_path / "c.json")
    assert "decoders: short and long), 2 of 16 dropped factors were called kept [3.5, 36.0 %]" in text
    assert "not measured on photographs" in text
    assert "0 of 16 kept factors were called dropped" in error_rates.sentence(False, tmp_path / "c.json")
    assert error_rates.sentence(None, tmp_path / "c.json") == ""


def test_calibrations_that_say_nothing(tmp_path: Path) -> None:
    good: dict[str, Any] = {"version": 1, "rules": {"version": rules.VERSION}, "decoders": []}
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"rules": {"version": "1999-01-01"}}, "of rules 1999-01-01, not of"),
        ({}, "without cells that moved no threshold"),
        ({"decoders": [{"name": "a", "cells": [{"kept": True, "called": "kept", "free": True}]}]}, "without cells"),
        ({"decoders": 5}, "no calibration"),
    )
    for number, (change, message) in enumerate(wrong):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(good | change))
        with pytest.raises(ConfigError, match=message):
            error_rates.measured(file)
    with pytest.raises(ConfigError, match="no calibration"):
        error_rates.measured(tmp_path / "none.json")


def test_what_cannot_be_calibrated(reader: FactorReader) -> None:
    with pytest.raises(ConfigError, match="draws 16 px, the reader sees 8"):
        calibrate({"m": small.model(image_size=16, representation_dim=DIM)}, reader, CONFIG)
    with pytest.raises(ConfigError, match="the decoder ideal is no name"):
        calibrate({IDEAL: small.model(representation_dim=DIM)}, reader, CONFIG)
    with pytest.raises(ConfigError, match="masked codes of world:shapes have 22"):
        calibrate({"m": small.model()}, reader, CONFIG)


def test_samples_of_a_real_decoder_are_read(reader: FactorReader) -> None:
    """Nothing replaced: a made-up decoder, drawn and read, of which nothing can be said but that it is not kept."""
    config = CalibrateConfig(subsets=2, sources=20, noises=1, readable=100, steps=2)
    found = calibrate({"m": small.model(representation_dim=DIM)}, reader, config)
    cells = found.judgments[1].cells
    assert len(cells) == 16
    assert all(torch.isfinite(torch.tensor([cell.cell.slope.low, cell.cell.slope.high])).all() for cell in cells)
    assert found.judgments[1].about["engine"]
