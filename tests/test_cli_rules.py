"""What commands decide themselves, by hand: which configuration, which settings, which cases, when to fail."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import typer
from PIL import Image

import rcdm_fast
from rcdm_fast import cli, engines, solver_quality
from rcdm_fast.analysis import registry
from rcdm_fast.analysis.registry import Experiment, Job
from rcdm_fast.analysis.result import Analysis, Table
from rcdm_fast.benchmarking import Times
from rcdm_fast.cli import analyze, bench, common, compare, export, generate, main, photos, sampling, training, tune
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion import sampling as diffusion_sampling
from rcdm_fast.engine_comparison import Case, Drift, Settings
from rcdm_fast.evaluation import Faithfulness
from rcdm_fast.exporters.onnx import ExportError
from rcdm_fast.images import ImageError, image_sheet, save_image, to_pil, to_uint8
from rcdm_fast.jobs.ledger import Summary
from rcdm_fast.jobs.local import Progress
from rcdm_fast.jobs.verify import Verdict
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from rcdm_fast.models.zoo import KnownModel
from rcdm_fast.report.build import Task
from rcdm_fast.solver_quality import Quality
from rcdm_fast.storage import StorageError
from rcdm_fast.throughput import Case as Way
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
    ranks = {Case("native"): (Interval(0.9, 0.8, 1.0), Interval(-0.1, -0.2, 0.0))}
    assert compare._mrr_row(ranks, Case("native")) == {
        "mrr": {"value": 0.9, "low": 0.8, "high": 1.0}, "mrr_change": {"value": -0.1, "low": -0.2, "high": 0.0},
    }  # fmt: skip
    assert compare._mrr_row(ranks, Case("eager")) == {"mrr": None, "mrr_change": None}


def test_compare_holds_ranks_against_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has half of the reference's MRR has lost half of it; the reference nothing."""
    ranks, half = {"eager": (1.0, 0.8), "native": (0.5, 0.4)}, Interval(0.5, 0.5, 0.5)

    def evaluate(case: Case, *_: Any) -> Faithfulness:
        return Faithfulness(half, half, half, 0.5, 0.5, 3.5, 6, 2, 1, ranks[case.engine])

    monkeypatch.setattr("rcdm_fast.evaluation.evaluate", evaluate)
    monkeypatch.setattr("rcdm_fast.engine_comparison.with_engine", lambda model, case, encoder: case)
    cases, images = [Case("eager"), Case("native")], ImageSet(torch.zeros(1), None, (), (), "made up")
    found = compare._mrr(small.quick_model(), cases, images, 0, 0, Settings())
    assert [found[case][1].value for case in cases] == pytest.approx([0.0, -0.5])


def test_compare_opens_the_data_before_it_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What had been drawn and timed was lost with a name that was wrong; and the file did not say which data it was."""
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    drawn: list[object] = []

    def draw(*_: object, **__: object) -> list[object]:
        drawn.append(1)
        return []

    monkeypatch.setattr("rcdm_fast.engine_comparison.compare", draw)
    assert main(["compare", "m", "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not drawn
    data = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, (), (), "made up")
    monkeypatch.setattr("rcdm_fast.data.sources.open_data", lambda *_: data)
    monkeypatch.setattr(compare, "_mrr", lambda *_: {})
    assert main(["compare", "m", "--data", "D", "--json", str(tmp_path / "rows.json")]) == 0
    assert json.loads((tmp_path / "rows.json").read_text())["made_by"]["data"]["data"]["images"] == 2


def test_export_takes_sizes_and_targets_with_spaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    monkeypatch.setattr(rcdm_fast, "export", lambda *_, **options: given.update(options) or [])
    words = ["export", "m", "--to", "tensorrt", "--out", str(tmp_path / "e")]
    assert main([*words, "--batch-size", "1, 8", "--target", "sm89, sm120"]) == 0
    assert (given["batches"], given["targets"]) == ((1, 8), ("sm89", "sm120"))
    for wrong in ("a", "1,", "-1", "1.5"):
        assert main([*words, "--batch-size", wrong]) == 2
        assert "--batch-size takes whole numbers separated by commas" in capsys.readouterr().err


def test_compare_shows_eight_times_the_distance(tmp_path: Path) -> None:
    """A row for each case, and below all but the first their difference from it around gray."""
    first, other = (drift(40.0, name) for name in ("eager", "native"))
    object.__setattr__(first, "images", torch.full((1, 3, 96, 96), -0.5))
    object.__setattr__(other, "images", torch.full((1, 3, 96, 96), -0.46))
    compare._sheet([first, other], tmp_path / "a.png")
    shown = Counter(Image.open(tmp_path / "a.png").convert("L").get_flattened_data())
    cells = [round((value + 1) * 127.5) for value in (-0.5, -0.46, 8 * 0.04)]
    assert [shown[level] // 96**2 for level in cells] == [1, 1, 1]


def test_calibration_takes_images_from_all_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a hundred, which may lie by class, the first, the last and 30 between; of five, all."""
    given: list[list[int]] = []

    def exported(*_: Any, calibrate: torch.Tensor, **__: Any) -> list[Path]:
        given.append(to_uint8(calibrate)[:, 0, 0, 0].tolist())
        return []

    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    monkeypatch.setattr(rcdm_fast, "export", exported)
    for count in (100, 5):
        pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 8, 8)
        data = ImageSet(pixels, None, (), (), "made up")
        monkeypatch.setattr("rcdm_fast.data.sources.open_data", lambda *_, data=data: data)
        assert main(["export", "m", "--to", "openvino", "--out", str(tmp_path / "e"), "--data", "D"]) == 0
    assert len(given[0]) == export.CALIBRATED == 32
    assert given == [[round(number * 99 / 31) for number in range(32)], [0, 1, 2, 3, 4]]


def test_bench_measures_every_combination_quick_ones_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways, left_out = solver_quality.cases(small.quick_model(), ["ddim", "ancestral"], [2, 3])
    assert left_out == []
    found = bench._cases("cpu", "eager, native", "fp32,bf16", ways)
    pairs = [("eager", "fp32"), ("eager", "bf16"), ("native", "fp32"), ("native", "bf16")]
    assert found == tuple(Way(*pair, how, n) for n in (2, 3) for how in ("ddim", "ancestral") for pair in pairs)
    asked = []

    def reasons(name: str, device: Any, precision: str) -> list[str]:
        asked.append((name, device, precision))
        return [] if name == "native" else ["it is not here"]

    monkeypatch.setattr(engines, "reasons_unavailable", reasons)
    assert bench._cases("cpu", "all", "auto,bf16", ways[:1]) == (
        Way("native", "fp32", "ddim", 2), Way("native", "bf16", "ddim", 2),
    )  # fmt: skip
    assert asked == [(name, "cpu", precision) for name in engines.ENGINES for precision in ("fp32", "bf16")]
    assert capsys.readouterr().out.count("it is not here") == 2 * (len(engines.ENGINES) - 1)


def test_bench_fails_where_an_engine_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"engine": "native", "precision": "fp32", "solver": "ddim", "steps": "2", "batch": 1, "threads": 1}
    row |= {"device": "cpu", "versions": {}, "why_not": "a wrong result"}
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    for red in (False, True):
        monkeypatch.setattr("rcdm_fast.throughput.measure", lambda *_, red=red: [{**row, "red": red}])
        assert main(["bench", "m"]) == int(red)


def test_models_that_are_not_there_yet_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {name: KnownModel(name, "bundled", "a model", "", there) for name, there in (("a", True), ("b", False))}
    monkeypatch.setattr("rcdm_fast.models.zoo.model_names", lambda: known)
    assert main(["models"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["a bundled a model", "b bundled a model *", "", "* downloaded at first use"]


def test_photographs_with_bad_ones_among_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every item keeps its place and name; as many photographs are kept as are shown."""
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, image in zip(paths, small.make_images(4, size=16), strict=True):
        save_image(to_pil(image), path)
    for path in (paths[0], paths[2]):
        path.write_bytes(b"no image")
    model = small.quick_model()
    found = photos.read(model, paths, photos=1)
    assert [(row.place, row.name) for row in found.rows] == [(1, str(paths[1])), (3, str(paths[3]))]
    assert found.rows[0].photo is not None
    assert found.rows[1].photo is None
    for h, path in zip(found.h, (paths[1], paths[3]), strict=True):
        torch.testing.assert_close(h, model.encode(path)[0])
    assert capsys.readouterr().err.count("left out: ") == len(found.left_out) == 2
    with pytest.raises(typer.Exit) as stop:
        found.finish()
    assert stop.value.exit_code == 3
    photos.Rows().finish()
    with pytest.raises(ImageError, match=r"none of the 2 items can be read; the first: .*0\.png"):
        photos.read(model, [paths[0], paths[2]])
    capsys.readouterr()
    photos.read(model, [paths[0]] * (photos._LISTED + 3) + [paths[1]])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == photos._LISTED + 1
    assert lines[-1] == "left out: 3 more"


def test_a_sheet_has_photo_view_and_samples() -> None:
    """Rows in order; the last one has those that are finished, and a row without any is left out."""
    model, samples = small.quick_model(), list(small.make_images(5))
    rows = [photos.Row(n, f"photos/{n} ?.png", Image.new("RGB", (16, 16), (90 * n, 0, 0))) for n in range(4)]
    rows[1].photo = None
    found = sampling._sheet(model, rows, samples, 2, "a model")
    drawn = [to_pil(image) for image in samples]
    seen = {n: to_pil(model.view(rows[n].photo)[0]) for n in (0, 2)}  # type: ignore[arg-type]
    white = Image.new("RGB", (96, 96), "white")
    cells = [
        [rows[0].photo, seen[0], *drawn[:2]], [white, white, *drawn[2:4]], [rows[2].photo, seen[2], drawn[4]],
    ]  # fmt: skip
    titles, names = ["photo", "seen", "samples (a model)"], [f"{n} ?.png" for n in range(3)]
    wanted = image_sheet(cells, cell=96, column_titles=titles, row_titles=names, group_gaps=[2])  # type: ignore[arg-type]
    assert found == wanted
    bare = sampling._sheet(model, [rows[1]], samples[:2], 2, "a model")
    titles, names = ["samples (a model)"], ["1 ?.png"]
    assert bare == image_sheet([drawn[:2]], cell=96, column_titles=titles, row_titles=names, group_gaps=[])


def test_lines_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """One for every tenth: what is there, how fast this run is, what is left at that pace."""
    report = generate._Lines()
    for images, drawn in ((0, 0), (45, 5), (49, 9), (60, 20), (100, 60)):
        report(Progress(images, 100, drawn, seconds=10.0, busy=0.5 if drawn > 5 else 0.0, quarantined=drawn // 60))
    assert capsys.readouterr().out.splitlines() == [
        "0 of 100, 0 images/s, 1000 s left",
        "45 of 100, 0.5 images/s, 110 s left",
        "60 of 100, 2 images/s, device busy 50 %, 20 s left",
        "100 of 100, 6 images/s, device busy 50 %, 1 quarantined, 0 s left",
    ]
    with common.ProgressBar(20) as show:
        for done in (1, 2, 3, 10, 20):
            show(done, 20, 0.25 if done > 5 else 0.0)
    assert capsys.readouterr().out.splitlines() == ["2 of 20", "10 of 20, loss 0.2500", "20 of 20, loss 0.2500"]


def test_a_bar_of_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal, of what takes a while: images, how many a second, and the time left."""
    bars: list[Any] = []
    make = diffusion_sampling._bar

    def kept(*given: Any) -> Any:
        bars.append(make(*given))
        return bars[-1]

    monkeypatch.setattr(diffusion_sampling, "_bar", kept)
    assert diffusion_sampling.BAR_AFTER_S == 2
    monkeypatch.setattr(diffusion_sampling, "BAR_AFTER_S", 600.0)  # however busy the machine is
    small.quick_model().sample(torch.zeros(1, small.DIM), per=4, steps=3, batch_size=2, progress=True)
    assert "images" not in capsys.readouterr().err  # it took less
    assert bars[0].delay == 600
    shape = r"\|.*\| {} of 4 {}, .* {}/s, \d\d:\d\d left"
    assert re.search("100%" + shape.format(4, "images", "images"), str(bars[0]))
    monkeypatch.setattr(common, "interactive", lambda: True)
    with common.bar(4, "parts") as shown:
        monkeypatch.setattr(common, "bar", lambda *_: contextlib.nullcontext(shown))
        with common.parts() as told:
            told(3, 4)
        assert re.search("75%" + shape.format(3, "parts", "parts"), str(shown))


def test_files_of_an_experiment(tmp_path: Path) -> None:
    small_one, large = Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))
    tables = (
        Table(
            "kept",
            "Kept <so>, said at length " * 4,
            ("of", "slope"),
            (("hue", Interval(0.5, 0.4, 0.6)), ("size", None)),
        ),
        Table("words", "Without numbers", ("of", "verdict"), (("hue", "kept"),)),
    )
    figures = {"rows": small_one, "maps": large}
    found = Analysis("layers", "t", "m", {"seed": 3}, tables, figures=figures)
    files = analyze.write(found, tmp_path, {"git": "abc"})
    assert [file.name for file in files] == ["layers.json", "layers-rows.png", "layers-maps.png", "layers-charts.svg"]
    assert [Image.open(file).size for file in files[1:3]] == [(8, 8), (9, 9)]
    drawn = ElementTree.fromstring(files[3].read_text())
    parts = [(each.tag.rpartition("}")[2], each.text or "") for each in drawn.iter()]
    assert [name for name, _ in parts].count("circle") == 1
    assert max(len(text) for name, text in parts if name == "text") < 58  # the view box is no wider
    numbers = json.loads(files[0].read_text())
    assert numbers["settings"] == {"seed": 3}
    assert numbers["made_by"] == {"git": "abc"}
    assert len(analyze.write(dataclasses.replace(found, tables=tables[1:]), tmp_path, {})) == 3


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
        (Verdict(7, 8, 0, 0, 1, ("an image",)), 1),
        (Verdict(3, 8, 0, 1, 1, ("an image",)), 1),
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
    summary = Summary(images=6, wanted=8, quarantined=quarantined, shards=3, shards_wanted=3)
    monkeypatch.setattr("rcdm_fast.jobs.local.run", lambda *_: summary)
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    code = main(["generate", "2", "--out", "job", "--json", str(tmp_path / "a.json")])
    assert code == (generate.QUARANTINED if quarantined else 0) == (3 if quarantined else 0)
    assert f"job: 6 of 8 images in 3 shards, {quarantined} items quarantined" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text()) == {**vars(summary), "complete": True}


def test_interpolation_goes_from_the_first_photo_to_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small.quick_model(), []

    def interpolate(self: Model, a: torch.Tensor, b: torch.Tensor, frames: int, *_: Any, **__: Any) -> torch.Tensor:
        seen.extend([a, b])
        return torch.linspace(0, 1, frames).view(1, frames, 1, 1, 1).expand(2, frames, 3, 96, 96)

    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: model)
    monkeypatch.setattr(Model, "interpolate", interpolate)
    for name, value in (("a", -1.0), ("b", -0.5)):
        save_image(to_pil(torch.full((3, 96, 96), value)), tmp_path / f"{name}.png")
    ends = [str(tmp_path / f"{name}.png") for name in "ab"]
    assert main(["interpolate", *ends, "--frames", "3", "--per", "2", "--out", str(tmp_path / "way.png")]) == 0
    for found, photo in zip(seen, ends, strict=True):
        torch.testing.assert_close(found, model.encode(photo)[0])
    sheet = Image.open(tmp_path / "way.png").convert("L")
    middle = [sheet.getpixel((x, sheet.height * 3 // 4)) for x in range(sheet.width)]
    order = [
        level for place, level in enumerate(middle) if level != middle[place - 1] and level in (0, 128, 191, 255, 64)
    ]
    assert [level for level in order if level != 255][:4] == [0, 128, 191, 64]


def test_encoders_go_to_the_models_in_the_same_place() -> None:
    pairs = common.with_encoders(["a", "b", "c"], ["", "onnx:x"], "--model")
    assert pairs == [("a", None), ("b", "onnx:x"), ("c", None)]
    assert common.with_encoders([], [], "--against") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("analyze m photos --data D --against other", "takes no --against"),
        ("analyze m layers --data D", "compares models: name another with --against"),
        ("analyze m invariance --photos P --data D", "takes no photographs"),
        ("analyze m unfamiliar --data D", "needs photographs"),
        ("analyze m invariance", "needs a set of images"),
        ("evaluate m --data D --features none --inception i.pth", "both name a feature space"),
        ("evaluate m --data D --features none --reference-npz r.npz", "there is none: name one with --features"),
        ("calibrate a=x b=y a=z", "two decoders are called a: give each a label"),
        ("report m --out r.txt --data D", "is an .html file"),
        ("report m --out r.html", "a report needs images"),
        ("generate", "generate needs items"),
        (
            "analyze m layers --data D --against other --against-encoder a --against-encoder b",
            "2 encoders for 1 models: each --against has at most one",
        ),
        ("report m --out r.html --data D --against-encoder a", "1 encoders for 0 models"),
        ("app --model m --encoder a --encoder b", "2 encoders for 1 models: each --model has at most one"),
        ("app --model m --model m", "a model is offered once"),
        ("app --encoder a", "and none is given"),
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
    ("error", "code", "said"),
    [
        (ConfigError("text"), 2, "rcdm: text"), (FileNotFoundError("text"), 2, "rcdm: text"),
        (StorageError("text"), 2, "rcdm: text"), (ExportError("text"), 1, "rcdm: text"),
        (ValueError("text"), 1, "rcdm: ValueError: text"), (RuntimeError("text"), 1, "rcdm: RuntimeError: text"),
        (KeyError("text"), 1, "rcdm: KeyError: 'text'"), (AssertionError(), 1, "rcdm: AssertionError"),
        (KeyboardInterrupt(), 130, "rcdm: interrupted"), (SystemExit(7), 7, ""),
    ],
)  # fmt: skip
def test_exit_codes(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was given or refused is 2; a failure is 1, and so is a ValueError of nobody's, which names its type."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(registry, "find", fails)
    assert main(["analyze", "m", "layers", "--out", "o"]) == code
    assert capsys.readouterr().err.rstrip() == said


def test_timesteps_that_are_named_are_one_item() -> None:
    assert bench._listed("10, 25") == ["10", "25"]
    assert bench._listed("at:0,250,999") == ["at:0,250,999"]
    assert bench._listed("10;at:0,250,999; karras10") == ["10", "at:0,250,999", "karras10"]
    for wrong in ("10,at:0,999", "at:0,5,at:1,9"):
        with pytest.raises(ConfigError, match="by semicolons"):
            bench._listed(wrong)


def test_a_guide_that_is_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    with pytest.raises(ConfigError, match="--guide m: these are the model's own weights"):
        common.open_guide("m", model, "auto", "auto")
    assert common.open_guide(None, model, "auto", "auto") is None


def test_compare_tells_the_largest_error_of_a_step_and_the_last_of_a_path() -> None:
    errors: dict[str, Any] = {"step_errors": (0.1, 0.3, 0.2), "path_errors": (0.01, 0.05, 0.04)}
    first = dataclasses.replace(drift(math.inf, "eager"), **errors)
    other = dataclasses.replace(drift(30.0), **errors, speedup=2.5, memory_bytes=3_000_000, file_bytes=1_500_000)
    ranks = {each.case: (Interval(0.5, 0.4, 0.6), Interval(-0.1, -0.2, 0.0)) for each in (first, other)}
    lines = [re.split(" {2,}", line.strip()) for line in compare.table([first, other], ranks)]
    assert lines[1] == ["eager", "fp32", "3.0e-01", "1.0e-01", "4.0e-02", "equal", "0.5000", "1.0", "1.00"]
    change = "-10.0 % [-20.0, +0.0]"
    assert lines[2] == [
        "native", "fp32", "3.0e-01", "1.0e-01", "4.0e-02", "30.0", "0.5000", change, "1.0", "2.50", "3 + 1.5 of files",
    ]  # fmt: skip
    assert lines[0][2:] == [
        "step error", "first step", "trajectory", "PSNR dB", "MRR", "change", "ms", "times", "MB",
    ]  # fmt: skip


def test_placing_takes_images_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each trajectory: the first image, the last, and those between."""
    model, images = small.quick_model(), small.make_images(25)
    data = ImageSet(to_uint8(images), None, (), (), "made up")
    monkeypatch.setattr("rcdm_fast.data.sources.open_data", lambda *_: data)
    h, label = tune._conditions(model, "D", 5)
    assert label is None
    assert h is not None
    torch.testing.assert_close(h.cpu(), model.encode(data.floats(torch.tensor([0, 6, 12, 18, 24]))).cpu())


def test_what_a_sample_took_is_told_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve seconds for six samples of two photographs; guidance asks the network twice."""
    model = small.quick_model()
    model.config = dataclasses.replace(model.config, representation_dropout=0.1)
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: model)
    clock = iter([100.0, 112.0])
    monkeypatch.setattr(sampling, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for number, image in enumerate(small.make_images(2, size=16)):
        save_image(to_pil(image), tmp_path / "photos" / f"{number}.png")
    words = ["sample", str(tmp_path / "photos"), "--per", "3", "--steps", "1", "--guidance", "2.5", "--eta", "0.5"]
    numbers = tmp_path / "a.json"
    assert main([*words, "--seed", "4", "--out", str(tmp_path / "a.png"), "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())
    assert found["seconds_per_image"] == 2.0
    assert (found["nfe"], found["guidance"], found["guide"], found["seed"]) == (2, 2.5, None, 4)
    assert "6 samples of 2 photos, " in capsys.readouterr().out


def made_up(data: str, *_: Any, **__: Any) -> ImageSet:
    """Six images that are told apart by where they are from."""
    return ImageSet(to_uint8(small.make_images(6)), None, (), (), f"of {data}")


def weighted(name: str, *_: Any, **__: Any) -> Model:
    """A small model whose weights depend on its name."""
    model = small.quick_model()
    with torch.no_grad():
        next(model.unet.parameters()).add_(len(name))
    return model


def test_an_experiment_is_written_with_all_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models, the data and the photographs."""
    run = lambda job: Analysis("held", "t", "m", dict(job.settings))  # noqa: E731
    held = Experiment("x", run, needs_photos=True, compares=True)
    monkeypatch.setitem(registry.EXPERIMENTS, "held", held)
    monkeypatch.setattr(rcdm_fast, "load", weighted)
    monkeypatch.setattr("rcdm_fast.data.sources.open_data", made_up)
    words = ["analyze", "m", "held", "--data", "D", "--photos", "P", "--against", "other", "--out", str(tmp_path)]
    assert main(words) == 0
    found = json.loads((tmp_path / "held.json").read_text())["made_by"]
    sets = {name: each["fingerprint"] for name, each in found["data"].items()}
    assert sets == {"data": "of D", "photos": "of P"}
    assert [each["weights"] for each in found["models"]] == [weighted(name).weights for name in ("m", "other")]


def test_experiments_of_a_report_share_what_they_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each is given what it takes: others to compare with, training images, sources unless it is photographs."""
    built: list[tuple[list[Task], dict[str, Any]]] = []

    def build(tasks: list[Task], out: Path, **told: Any) -> Path:
        built.append((tasks, told))
        return out

    monkeypatch.setattr(rcdm_fast, "load", weighted)
    monkeypatch.setattr("rcdm_fast.data.sources.open_data", made_up)
    monkeypatch.setattr("rcdm_fast.report.build.build", build)
    words = ["report", "m", "--data", "D", "--photos", "P", "--train-data", "T", "--against", "other", "--sources", "4"]
    names = ["neighbors", "layers", "photos", "unfamiliar"]
    assert main([*words, "--experiments", ", ".join(names), "--out", str(tmp_path / "r.html")]) == 0
    ((tasks, told),) = built
    jobs: dict[str, Job] = {each.name: each.job for each in tasks}
    assert list(jobs) == names
    assert told["left_out"] == {}
    assert jobs["photos"].shared is not None
    assert len({id(each.shared) for each in jobs.values()}) == 1
    assert [len(each.against) for each in jobs.values()] == [0, 1, 0, 0]
    assert [each.training is not None for each in jobs.values()] == [True, False, False, False]
    assert [each.settings.get("sources") for each in jobs.values()] == [4, 4, None, 4]


def test_bench_keeps_rates_and_quality_with_what_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Interval(0.5, 0.4, 0.6)
    seen: list[dict[str, Any]] = []
    out = tmp_path / "b.json"

    def rates(model: Model, plan: Any, report: Any) -> list[dict[str, Any]]:
        report([{"rate": 1}], 0.5)
        seen.append(json.loads(out.read_text()))
        return []

    def quality(model: Model, data: ImageSet, ways: Any, config: Any, done: Any, first: Any) -> list[Quality]:
        found = [Quality("ddim", "2", 2, one, one, one, one, None, None)]  # type: ignore[arg-type]
        done(found, 1.0)
        return found

    monkeypatch.setattr(rcdm_fast, "load", weighted)
    monkeypatch.setattr("rcdm_fast.data.sources.open_data", made_up)
    monkeypatch.setattr("rcdm_fast.throughput.measure", rates)
    monkeypatch.setattr(solver_quality, "check", lambda *_: None)
    monkeypatch.setattr(solver_quality, "measure", quality)
    assert main(["bench", "m", "--steps", "2", "--data", "D", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert seen[0]["rows"] == [{"rate": 1}]
    for written in (seen[0], found):
        assert written["made_by"]["data"]["data"]["fingerprint"] == "of D"
        assert [each["weights"] for each in written["made_by"]["models"]] == [weighted("m").weights]
    (row,) = found["quality"]
    assert row["mrr"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert "found" not in row


def test_lines_of_a_bench() -> None:
    row = {"engine": "native", "precision": "bf16", "solver": "ddim", "steps": "10", "batch": 4, "threads": 2}
    row |= {"device": "a cpu", "versions": {"torch": "2"}, "images_per_s": 12.5, "p50_ms": 2500.0}
    slow = {**row, "sampler_percent": 1.25, "times_published": 3.5}
    lines = [" ".join(line.split()) for line in bench.table([row, slow, {**row, "why_not": "it is not here"}])]
    assert lines[1:] == [
        "native bf16 ddim 10 12.500 2.500",
        "native bf16 ddim 10 12.500 2.500 1.25% 3.50",
        "native bf16 ddim 10 not measured: it is not here",
        "batch 4, 2 threads, a cpu; torch 2",
    ]
    names = ("error", "mrr", "mrr_change", "variance")
    numbers = {name: Interval(place, place, place) for place, name in enumerate(names, 1)}
    shown = bench.quality_table([Quality("ddim", "10", 9, **numbers, frechet=7.25, found=None)])  # type: ignore[arg-type]
    assert shown[1].split() == ["ddim", "10", "9", *(part for n in "1234" for part in (n, f"[{n},", f"{n}]")), "7.25"]


def test_words_of_all_commands_stand_anywhere_but_behind_two_dashes() -> None:
    given = ["sample", "a", "--debug", "--per", "2", "--verbose", "--", "--verbose", "--debug"]
    assert cli._in_front(given) == ["--debug", "--verbose", "sample", "a", "--per", "2", "--", "--verbose", "--debug"]
    assert cli._in_front(["--debug"]) == ["--debug"]


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    common.write_json(tmp_path / "a.json", {"interval": Interval(0.5, -math.inf, math.inf), "nan": [math.nan, 1.5]})
    common.write_json(tmp_path / "b.json", Interval(0.5, -math.inf, math.inf))
    assert json.loads((tmp_path / "a.json").read_text())["nan"] == [None, 1.5]
    assert json.loads((tmp_path / "b.json").read_text()) == {"value": 0.5, "low": None, "high": None}
