"""What commands decide themselves, by hand: which configuration, which settings, which cases, when to fail."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast import engines, images
from rcdm_fast.analysis import registry
from rcdm_fast.benchmarking import Times
from rcdm_fast.cli import bench, common, compare, export, generate, main, training
from rcdm_fast.config import ConfigError
from rcdm_fast.drift import Case, Drift
from rcdm_fast.jobs.ledger import Summary
from rcdm_fast.jobs.verify import Verdict
from rcdm_fast.pipeline import Model
from rcdm_fast.sampling_rate import Case as Way
from rcdm_fast.training.evaluate import Interval
from tests import small


def drift(psnr_db: float, engine: str = "native") -> Drift:
    return Drift(Case(engine), "", (0.0,), (0.0,), psnr_db, Times(1.0, 1.0, 1.0, 1), 1.0, None, 0, torch.zeros(1))


def test_compare_fails_below_a_psnr_and_beyond_a_loss_of_mrr() -> None:
    def failures(psnr_db: float, change: float, *limits: float) -> list[str]:
        ranks = {Case("native"): (Interval(0.9, 0.8, 1.0), Interval(change, change - 0.1, change + 0.1))}
        return compare._failures([drift(math.inf, "eager"), drift(psnr_db)], ranks, *limits)

    assert failures(30.0, -0.05, 30.0, 5.0) == []  # the limits themselves are allowed
    assert failures(29.9, -0.04, 30.0, 5.0) == ["native fp32: PSNR 29.9 dB is below 30"]
    (told,) = failures(40.0, -0.06, 30.0, 5.0)
    assert told == "native fp32: MRR 0.9000 changed by -6.0 % [-16.0, +4.0]; 5 % allowed"
    assert failures(40.0, 0.5, 30.0, 5.0) == []  # a gain is no loss


def test_compare_shows_eight_times_the_distance(tmp_path: Path) -> None:
    """A row for each case, and below all but the first their difference from it around grey."""
    first, other = (drift(40.0, name) for name in ("eager", "native"))
    object.__setattr__(first, "pictures", torch.full((1, 3, 96, 96), -0.5))
    object.__setattr__(other, "pictures", torch.full((1, 3, 96, 96), -0.45))
    compare._sheet([first, other], tmp_path / "a.png")
    levels = set(Image.open(tmp_path / "a.png").convert("RGB").get_flattened_data())
    expected = [round((value + 1) * 127.5) for value in (-0.5, -0.45, 8 * 0.05)]
    assert {(level, level, level) for level in expected} <= levels


def test_calibration_takes_files_from_all_over() -> None:
    files = [Path(f"{number:03d}.png") for number in range(100)]
    found = export._spread(files)
    assert len(found) == export.CALIBRATED == 32
    assert [int(each.stem) for each in found] == [number * 100 // 32 for number in range(32)]
    assert export._spread(files[:5]) == files[:5]


def test_bench_measures_every_combination_quick_ones_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench._cases("cpu", "eager, native", "fp32,bf16", "ddim,ancestral", "2,3")
    pairs = [("eager", "fp32"), ("eager", "bf16"), ("native", "fp32"), ("native", "bf16")]
    assert found == tuple(Way(*pair, how, n) for n in ("2", "3") for how in ("ddim", "ancestral") for pair in pairs)
    asked = []

    def reasons(name: str, device: Any, precision: str) -> list[str]:
        asked.append((name, device, precision))
        return [] if name == "native" else ["it is not here"]

    monkeypatch.setattr(engines, "reasons_unavailable", reasons)
    assert bench._cases("cpu", "all", "auto,bf16", "ddim", "2") == (
        Way("native", "fp32", "ddim", "2"), Way("native", "bf16", "ddim", "2"),
    )  # fmt: skip
    assert asked == [(name, "cpu", precision) for name in engines.ENGINES for precision in ("fp32", "bf16")]
    assert capsys.readouterr().out.count("it is not here") == 2 * (len(engines.ENGINES) - 1)


def test_a_configuration_by_name_by_file_or_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME alone means a shipped one, --config a file, then a shipped one."""
    monkeypatch.chdir(tmp_path)
    Path("starter").write_text('{"name": "of the file"}')
    assert training._configuration("starter", None)["name"] == "starter"
    assert training._configuration("mine", "starter") == {"name": "of the file"}
    Path("starter").unlink()
    assert training._configuration("mine", "starter")["name"] == "starter"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("batch_size=64", {"batch_size": 64, "loss": {"gamma": 5}}),
        ("loss.gamma=3.5", {"loss": {"gamma": 3.5}}),
        ("loss.weighting=min_snr", {"loss": {"gamma": 5, "weighting": "min_snr"}}),
        ("unet.a.b=true", {"loss": {"gamma": 5}, "unet": {"a": {"b": True}}}),
        (" name =a=b", {"loss": {"gamma": 5}, "name": "a=b"}),
        ("encoder=null", {"loss": {"gamma": 5}, "encoder": None}),
        ('kinds=["hue", 2]', {"loss": {"gamma": 5}, "kinds": ["hue", 2]}),
    ],
)
def test_changes_of_a_configuration(change: str, wanted: dict[str, Any]) -> None:
    assert training.changed({"loss": {"gamma": 5}}, [change]) == wanted
    assert training.changed({"loss": {"gamma": 5}}, ["loss=0", "loss=1"]) == {"loss": 1}  # the last one counts
    for wrong in ("loss", "=3", "loss.gamma.x=3", "loss.=3"):
        with pytest.raises(ConfigError, match="expected KEY=VALUE"):
            training.changed({"loss": {"gamma": 5}}, [wrong])


def test_step_counts() -> None:
    given = ("50", "ddim25", "10,5", None, "", " 7")
    assert [common.whole_number(text) for text in given] == [50, "ddim25", "10,5", None, "", " 7"]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Verdict(8, 8, 0, 0, 0, ()), None),
        (Verdict(8, 8, 1, 0, 0, ()), None),
        (Verdict(4, 8, 0, 1, 0, ()), 4),
        (Verdict(7, 8, 0, 0, 1, ("a picture",)), 1),
        (Verdict(3, 8, 0, 1, 1, ("a picture",)), 1),
    ],
)
def test_verifying_ends_with_what_it_found(
    found: Verdict, code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcdm_fast.jobs.verify.verify", lambda folder, report: found)
    assert main(["generate", "--verify", "--json", str(tmp_path / "a.json")]) == (code or 0)
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["sound"], written["complete"], written["faults"]) == (not found.faults, code is None, found.faults)


@pytest.mark.parametrize("quarantined", [0, 2])
def test_a_job_tells_how_it_stands(
    quarantined: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = Summary(pictures=6, wanted=8, quarantined=quarantined, shards=3, shards_wanted=3)
    monkeypatch.setattr("rcdm_fast.jobs.local.run", lambda *_: summary)
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.model())
    code = main(["generate", "2", "--out", "job", "--json", str(tmp_path / "a.json")])
    assert code == (generate.QUARANTINED if quarantined else 0) == (3 if quarantined else 0)
    assert f"job: 6 of 8 pictures in 3 shards, {quarantined} items quarantined" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text()) == {**vars(summary), "complete": True}


def test_interpolation_goes_from_the_first_photo_to_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small.model(), []

    def interpolate(self: Model, a: torch.Tensor, b: torch.Tensor, frames: int, **_: Any) -> torch.Tensor:
        seen.extend([a, b])
        return torch.linspace(0, 1, frames).view(1, frames, 1, 1, 1).expand(2, frames, 3, 96, 96)

    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: model)
    monkeypatch.setattr(Model, "interpolate", interpolate)
    for name, value in (("a", -1.0), ("b", -0.5)):
        images.save(images.to_pil(torch.full((3, 96, 96), value)), tmp_path / f"{name}.png")
    photos = [str(tmp_path / f"{name}.png") for name in "ab"]
    assert main(["interpolate", *photos, "--frames", "3", "--per", "2", "--out", str(tmp_path / "way.png")]) == 0
    for found, photo in zip(seen, photos, strict=True):
        torch.testing.assert_close(found, model.encode(photo)[0])
    sheet = Image.open(tmp_path / "way.png").convert("L")
    middle = [sheet.getpixel((x, sheet.height * 3 // 4)) for x in range(sheet.width)]
    order = [
        level for place, level in enumerate(middle) if level != middle[place - 1] and level in (0, 128, 191, 255, 64)
    ]
    assert [level for level in order if level != 255][:4] == [0, 128, 191, 64]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("analyze photos m --data D --against other", "takes no --against"),
        ("analyze layers m --data D", "compares models: name another with --against"),
        ("analyze invariance m --photos P --data D", "takes no --photos"),
        ("analyze unfamiliar m --data D", "needs photographs"),
        ("analyze invariance m", "needs a set of pictures"),
        ("evaluate m --data D --features none --inception i.pth", "both name a feature space"),
        ("report m --out r.txt --data D", "is an .html file"),
        ("report m --out r.html", "a report needs pictures"),
        ("generate", "generate needs items"),
    ],
)
def test_what_does_not_go_together(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before a model is loaded."""
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert main([*words.split(), *(["--out", "o"] if words.startswith("analyze") else [])]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("text"), 2), (ValueError("text"), 2), (FileNotFoundError("text"), 2), (RuntimeError("text"), 1),
        (KeyError("text"), 1), (KeyboardInterrupt(), 130), (SystemExit(7), 7),
    ],
)  # fmt: skip
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(registry, "find", fails)
    assert main(["analyze", "layers", "m", "--out", "o"]) == code
