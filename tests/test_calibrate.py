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
from rcdm_fast.analysis import error_rates, rules, world_slopes
from rcdm_fast.analysis.calibrate import IDEAL, CalibrateConfig, Calibration, Judged, Judgment, Rate, calibrate
from rcdm_fast.analysis.result import text_table
from rcdm_fast.analysis.rules import Verdict
from rcdm_fast.analysis.world_slopes import Cell, DecoderSampler, IdealSampler
from rcdm_fast.cli import main
from rcdm_fast.cli.calibrate import named
from rcdm_fast.config import ConfigError
from rcdm_fast.data.world import World
from rcdm_fast.encoders import factor_reader
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.encoders.oracle_code import subsets
from rcdm_fast.metrics import left_out
from rcdm_fast.metrics.intervals import Interval
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


def test_a_file_with_an_equals_sign_has_no_label(tmp_path: Path) -> None:
    file = tmp_path / "lr=0.1" / "m.safetensors"
    file.parent.mkdir()
    file.touch()
    assert named(["oracle", f"mine={file}", str(file)]) == {"oracle": "oracle", "mine": str(file), str(file): str(file)}


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


def _judged(factor: str, kept: bool, called: bool | None, slope: float, free: bool) -> Judged:
    found = Interval(slope, slope - 0.1, slope + 0.1)
    read = (Interval(0.6, 0.5, 0.7), Interval(0.4, 0.3, 0.5))
    return Judged(Cell((factor,), factor, kept, found), free, read, Verdict(called, found, 0.3, 0.02, "so"))


BY_HAND = (
    *(_judged("hue", True, called, slope, False) for called, slope in ((True, 0.9), (True, 0.5), (None, 0.4))),
    _judged("hue", True, False, 0.0, True),
    _judged("hue", False, True, 0.3, False),
    *(_judged("hue", False, called, -0.1, True) for called in (False, False, False, None)),
    _judged("size", True, True, 0.8, False),
    _judged("size", False, False, 0.2, False),
)


def test_tables_count_verdicts_by_truth_and_by_factor() -> None:
    """Of five kept ones three are called so and one is called dropped; of six dropped ones four and one."""
    found = Calibration("shapes", CONFIG, (Judgment("mine", {}, BY_HAND),)).tables()
    tables = {each.name: [tuple(getattr(cell, "value", cell) for cell in row) for row in each.rows] for each in found}
    assert [each.name for each in found] == ["held", "all", "factors"]
    assert tables["all"] == [
        ("mine: kept", 5, 3, 1, 1, pytest.approx(1 / 5), pytest.approx(3 / 5)),
        ("mine: dropped", 6, 1, 4, 1, pytest.approx(1 / 6), pytest.approx(4 / 6)),
    ]
    assert tables["held"] == [
        ("mine: kept", 4, 3, 0, 1, 0, pytest.approx(3 / 4)),
        ("mine: dropped", 2, 1, 1, 0, pytest.approx(1 / 2), pytest.approx(1 / 2)),
    ]
    assert tables["factors"] == [
        ("mine: hue", pytest.approx(0.45), "2 of 4", pytest.approx(-0.02), "3 of 5"),
        ("mine: size", pytest.approx(0.8), "1 of 1", pytest.approx(0.2), "1 of 1"),
    ]


def test_a_cell_is_written_with_its_truth_and_its_verdict() -> None:
    written = json.loads(json.dumps(Calibration("w", CONFIG, (Judgment("a", {"x": 1}, BY_HAND[4:]),)).as_json()))
    assert written["world"] == "w"
    assert written["decoders"][0]["name"] == "a"
    assert written["decoders"][0]["x"] == 1
    assert written["decoders"][0]["cells"][0] == {
        "factor": "hue", "subset": ["hue"], "kept": False, "free": False, "called": "kept",
        "detectable": 0.3, "p": 0.02, "slope": {"value": 0.3, "low": pytest.approx(0.2), "high": pytest.approx(0.4)},
        "readouts": [{"value": 0.6, "low": 0.5, "high": 0.7}, {"value": 0.4, "low": 0.3, "high": 0.5}],
    }  # fmt: skip
    assert [each["free"] for each in written["decoders"][0]["cells"]] == [False, *[True] * 4, False, False]


def test_items_and_subsets_are_those_of_the_settings_and_progress_goes_through_all_decoders(
    monkeypatch: pytest.MonkeyPatch, reader: FactorReader
) -> None:
    asked, done = list[Any](), list[tuple[int, int]]()

    def cells(sampler: Any, read: Any, world: World, chosen: Any, config: Any, told: Any) -> list[Cell]:
        asked.append((sampler, world, chosen))
        for number in range(len(chosen)):
            told(number + 1, len(chosen))
        return []

    monkeypatch.setattr(calibration, "_readouts", lambda *_: {})
    monkeypatch.setattr(world_slopes, "cells", cells)
    config = CalibrateConfig(subsets=4, fraction=1, sources=300, readable=120, world_seed=7, seed=5)
    model = small.model(representation_dim=DIM)
    found = calibrate({"m": model}, reader, config, lambda *each: done.append(each))
    assert [each.decoder for each in found.judgments] == [IDEAL, "m"]
    assert done == [(number, 8) for number in range(1, 9)]
    (ideal, world, chosen), (decoder, _, again) = asked
    assert (world.seed, len(world)) == (7, 300)
    assert (ideal.seed, decoder.config, decoder.model) == (5, config, model)
    assert chosen == again == [subsets(1)[number] for number in (0, 15, 1, 14)]
    assert len(asked) == 2
    calibrate({}, reader, CalibrateConfig(sources=20, readable=150))
    assert len(asked[-1][1]) == 300, "a pair of items for each readout"


def test_the_second_readout_sees_waves_of_the_seed_beside_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def errors(inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((inputs, target))
        spread = torch.linspace(1, 2, len(inputs)).double()
        return 0.25 * spread, spread

    monkeypatch.setattr(left_out, "errors", errors)
    world = World("shapes", 200, 8, 2)
    found = calibration._readouts(world, ("hue", "size"), CalibrateConfig(sources=20, readable=100, seed=1))
    assert list(found) == list(world.names[:8])
    assert [each.value for pair in found.values() for each in pair] == pytest.approx([0.75] * 16)
    changes, bent = seen[0][0], seen[1][0]
    assert (changes.shape, bent.shape) == ((100, 1, DIM), (100, 1, DIM + world_slopes.WAVES))
    assert torch.equal(bent[..., :DIM], changes)
    size = world.names.index("size")
    items = world.factors(range(200))[:, size]
    torch.testing.assert_close(seen[2 * size][1].flatten(), items[100:] - items[:100])
    calibration._readouts(world, ("hue", "size"), CalibrateConfig(sources=20, readable=100, seed=2))
    assert not torch.equal(seen[17][0], bent)


def _file(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"version": 1, "rules": {"version": rules.VERSION}, "decoders": [], **changes}))
    return file


def test_a_calibration_of_another_form_is_not_read(tmp_path: Path) -> None:
    cells = [{"kept": kept, "called": "kept", "free": False} for kept in (True, False)]
    decoders = [{"name": "a", "cells": cells}]
    assert error_rates.measured(_file(tmp_path, decoders=decoders)).false_kept == Rate(1, 1)
    error_rates.measured.cache_clear()
    with pytest.raises(ConfigError, match="rcdm calibrate makes one"):
        error_rates.measured(_file(tmp_path, decoders=decoders, version=2))


@pytest.mark.parametrize("kept", [True, False])
def test_cells_of_one_truth_say_nothing_of_the_other(tmp_path: Path, kept: bool) -> None:
    decoders = [{"name": "a", "cells": [{"kept": kept, "called": "kept", "free": False}]}]
    with pytest.raises(ConfigError, match="without cells"):
        error_rates.measured(_file(tmp_path, decoders=decoders))
