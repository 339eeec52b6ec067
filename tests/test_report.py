"""The report: what the page says, that it loads nothing, its charts, and what is left out."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from rcdm_fast.analysis import charts, registry
from rcdm_fast.analysis import photos as of_photos
from rcdm_fast.analysis.photos import PhotosConfig
from rcdm_fast.analysis.photos import run as photographs
from rcdm_fast.analysis.registry import Experiment, Job
from rcdm_fast.analysis.result import Analysis, Finding, Table
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.images import to_pil
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.models import checkpoint
from rcdm_fast.report import build, figures, methods, sections
from rcdm_fast.report.page import render
from tests import browser, small, training_process

TABLE = Table(
    "kept",
    "What is <kept>",
    ("property", "backbone", "projector"),
    (("hue", Interval(0.8, 0.7, 0.9), Interval(0.1, -0.1, 0.3)), ("place & size", Interval(0.5, 0.4, 0.6), None)),
    "1 is all",
)
SWEEP = Table("sweep", "Attack", ("epsilon", "accuracy"), tuple((e, Interval(1 / (1 + e), 0, 1)) for e in (0, 2, 4, 8)))
RESULT = Analysis(
    "layers", "Layers", "some <model>", {"seed": 3}, (TABLE, SWEEP),
    (
        Finding("color is dropped", True, "0.8 against 0.1"), Finding("place is dropped", None, "who knows"),
        *(
            Finding(
                f"h keeps {what}", what != "b & c", "so", "h keeps", what,
                otherwise=f"h drops {what}", numbers=(("slope", Interval(0.5, 0.4, 0.6)),),
            )
            for what in ("a", "b & c", "d")
        ),
    ),
    {"rows": Image.new("RGB", (40, 20), "red")}, {"rows": "Images & samples"}, "as told",
    heads=(Image.new("RGB", (90, 30), "blue"),) * 4,
)  # fmt: skip


class Reader(HTMLParser):
    """Every tag closed in turn; sources and links collected; the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.ids: set[str] = set()
        self.meta: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.ids |= {told["id"]} if "id" in told else set()
        if "property" in told:
            self.meta[told["property"]] = told["content"]
        if tag not in ("meta", "img", "br", "line", "circle"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "circle", "polyline", "polygon")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_says_everything_and_loads_nothing() -> None:
    numbers = {"of": "</script><b>"}
    facts = {"torch": "1", "command": "rcdm report <m>"}
    page = render("A title", "A line", [RESULT], {"attack": "needs <labels>"}, facts, "So.", numbers, ["1 of 9"])
    reader = read(page)
    for text in (
        "What is <kept>", "0.8 [0.7, 0.9]", "place & size", "Color is dropped.", "Inconclusive: place is dropped.",
        "H keeps a (slope 0.5 [0.4, 0.6]).", "H drops b & c (slope 0.5 [0.4, 0.6]).", "0.8 against 0.1",
        "Images & samples", "as told", "some <model>", "needs <labels>", '"seed": 3', "1 is all", "rcdm report <m>",
        "How often verdicts are wrong: 1 of 9.", "How to read this",
    ):  # fmt: skip
        assert text in reader.text
    assert "Of 5 claims 3 hold, 1 do not hold, and 1 are inconclusive." in reader.text
    assert "and 1 are inconclusive. H keeps a (slope 0.5" in reader.meta["og:description"]
    assert reader.meta["og:title"] == "A title"
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in reader.sources)
    assert sum(source.startswith("data:") for source in reader.sources) == 3 + 1  # at the top, and the figure
    assert {source.removeprefix("#") for source in reader.sources if source.startswith("#")} <= reader.ids
    stored = page.split('id="numbers">')[1].split("</script>")[0]
    assert json.loads(stored) == numbers


def test_a_page_of_many_figures_stays_short() -> None:
    noise = Image.effect_noise((700, 700), 90).convert("RGB")
    given = [("one", {str(number): noise for number in range(4)})]
    sizes = []
    for most in (10_000_000, 400_000):
        found = figures.stored(given, most)
        assert len(found) == 4
        sizes.append(sum(len(each.content) for each in found.values()))
        assert sizes[-1] <= most
    assert sizes[1] < sizes[0]
    assert found["one", "3"].source.startswith("data:image/webp;base64,")


def test_verdicts_come_with_how_often_they_are_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decided = dataclasses.replace(RESULT, findings=(Finding("h keeps a", True, "so", p=0.01),))
    assert build.rates([RESULT]) == []
    monkeypatch.setattr("rcdm_fast.analysis.error_rates.SHIPPED", tmp_path / "none.json")
    assert "ships no calibration" in build.rates([decided])[0]
    (tmp_path / "none.json").touch()
    monkeypatch.setattr("rcdm_fast.analysis.error_rates.sentence", lambda kept: f"rate of {kept}")
    assert build.rates([decided]) == ["rate of True"]


def test_charts_put_numbers_where_they_belong() -> None:
    axis = charts.Axis(-1, 3, 100, 500)
    assert [axis(-1), axis(0), axis(3)] == [100, 200, 500]
    assert axis.ticks() == [-1, 0, 1, 2, 3]
    assert charts.Axis(0.02, 0.11, 0, 1).ticks(4) == [0.05, 0.1]
    lines = charts.chart(TABLE)
    assert lines.count("<circle") == 3 + 2  # three intervals, two in the legend
    whiskers = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="\3"', lines)
    assert len(whiskers) == 3
    widths = [float(right) - float(left) for left, right, _ in whiskers]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)  # 0.4 against 0.2
    curves = charts.chart(SWEEP)
    assert curves.count("<polyline") == curves.count("<polygon") == 1
    ys = [float(y) for _, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3"', curves)]
    assert ys == sorted(ys)  # accuracy falls, and y grows downwards
    plain = Table("x", "x", ("a", "b"), (("c", 1.0),))
    assert charts.chart(plain) == ""
    assert charts.chart(Table("x", "x", TABLE.columns, TABLE.rows, one_unit=False)) == ""


def circles(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="[34]" fill', svg)]


def test_small_charts_go_through_zero_and_to_one() -> None:
    """240 units wide with 8 at each side and 4 % of the range beyond both ends."""
    for values, low, high in (((0.5, 0.25), 0.0, 1.0), ((2.0, 1.5), 0.0, 2.5), ((-1.0, -0.5), -1.5, 1.0)):
        cells = [(f"n{number}", Interval(each, each - 0.5, each + 0.5)) for number, each in enumerate(values)]
        if high == 1 and low == 0:
            cells = [(name, Interval(cell.value, cell.value - 0.1, cell.value + 0.1)) for name, cell in cells]
        pad = 0.04 * (high - low)
        want = [8 + 224 * (each - low + pad) / (high - low + 2 * pad) for each in values]
        found = circles(charts.small(cells))
        assert [x for x, _ in found] == pytest.approx(want, abs=0.1)
        assert found[1][1] - found[0][1] == 30
    assert charts.small([]) == charts.small([("a", Interval(float("nan"), 0, 1))]) == ""
    named = charts.small([("a < b", Interval(0.5, 0.4, 0.6))])
    assert 'aria-label="a &lt; b 0.5 [0.4, 0.6]"' in named


def test_a_value_without_an_interval_is_a_dot() -> None:
    table = Table("x", "x", ("a", "b"), (("c", intervals.alone(0.5)), ("d", Interval(0.8, 0.7, 0.9))))
    lines = charts.chart(table)
    assert len(circles(lines)) == 2
    ends = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="[\d.]+" y2="[\d.]+" stroke=', lines)
    assert [left == right for left, right in ends] == [True, False]


def test_rows_are_named_by_the_column_that_names_them() -> None:
    table = Table("x", "x", ("how", "what", "slope"), (("flip", "side", Interval(0.5, 0.4, 0.6)),), label=1)
    assert ">side</text>" in charts.chart(table)
    assert "flip" not in charts.chart(table)


def test_charts_of_a_file_stand_below_each_other() -> None:
    plain = Table("plain", "Not drawn", ("a", "b"), (("c", 1.0),))
    whole = charts.panels([TABLE, plain, SWEEP, TABLE], 600)
    tops = [(float(y), float(high)) for y, high in re.findall(r'<svg y="(\d+)" width="400" height="(\d+)"', whole)]
    assert len(tops) == 3
    titles = [float(y) for y in re.findall(r'y="(\d+)" font-weight="bold"', whole)]
    end = 0.0
    for title, (top, high) in zip(titles, tops, strict=True):
        assert end < title < top
        end = top + high
    assert re.search(r'viewBox="0 0 400 (\d+)" width="600"', whole)[1] == f"{end + 10:.0f}"  # type: ignore[index]
    assert "Not drawn" not in whole
    assert "font-weight" not in charts.panels([TABLE])  # one chart needs no title of its own


def test_curves_run_from_left_to_right_with_a_band_about_them() -> None:
    values = {4: 0.2, 0: 0.9, 8: 0.1, 2: 0.5}  # rows in any order, one of them without a value
    rows = (*((x, Interval(y, y - 0.05, y + 0.08)) for x, y in values.items()), (6, None))
    drawn = charts.chart(Table("x", "x", ("epsilon", "accuracy"), rows))
    line, band = (
        [tuple(map(float, point.split(","))) for point in re.search(rf'<{kind} points="([^"]*)"', drawn)[1].split()]  # type: ignore[index]
        for kind in ("polyline", "polygon")
    )
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [x for x, _ in line] == pytest.approx([60 + 324 * x / 8 for x in (0, 2, 4, 8)], abs=0.1)
    assert [y for _, y in line] == sorted(y for _, y in line)
    upper, lower = band[:4], band[:3:-1]
    for (x, y), above, below in zip(line, upper, lower, strict=True):
        assert above[0] == below[0] == x
        assert (y - above[1]) / (below[1] - y) == pytest.approx(8 / 5, rel=0.05)


@pytest.mark.parametrize(("values", "zero"), [((0.8, 0.9), False), ((0.3, 0.9), True), ((-0.9, -0.8), False)])
def test_zero_belongs_to_an_axis_that_it_is_near(values: tuple[float, float], zero: bool) -> None:
    rows = tuple((f"r{each}", Interval(each, each - 0.01, each + 0.01)) for each in values)
    assert ('class="zero"' in charts.chart(Table("x", "x", ("a", "b"), rows))) is zero


def test_names_stay_inside_the_chart(tmp_path: Path) -> None:
    """Long names of rows are shortened in the middle, those of columns go on in another line."""
    value = Interval(0.5, 0.4, 0.6)
    heads = ("of", *(f"a model with quite a long name, {number}" for number in range(3)))
    rows = (("n02123045_a_photograph_with_a_very_long_name.JPEG", value, value, value), ("short", value, None, value))
    table = Table("t", "t", heads, rows)
    result = dataclasses.replace(
        RESULT, tables=(table, dataclasses.replace(SWEEP, columns=("epsilon", "runs/folder/" * 9)))
    )
    page = tmp_path / "report.html"
    page.write_text(render("A title", "A line", [result], {}, {}), encoding="utf-8")
    assert "n02123045_a_photog…ame.JPEG" in read(page.read_text()).text
    with browser.chromium(tmp_path / "profile", 390) as driver:
        driver.get(page.as_uri())
        outside = driver.execute_script(
            "return [...document.querySelectorAll('svg text')].filter(e => { const a = e.getBoundingClientRect(),"
            " b = e.closest('svg').getBoundingClientRect();"
            " return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;"
            " }).map(e => e.textContent)"
        )
        assert outside == []


def test_one_interval_without_width_is_drawn() -> None:
    assert "circle" in charts.chart(Table("x", "x", ("a", "b"), (("c", Interval(1.0, 1.0, 1.0)),)))


def test_tables_are_sorted_and_figures_downloaded(tmp_path: Path) -> None:
    many = Table("many", "Many", ("photograph", "far"), tuple((f"{n}", Interval(n % 7, n, n)) for n in range(40)))
    long = Table(
        "long", "Long", ("name", "value"), (("n01440764_" + "x" * 60 + ".JPEG", 2.0), ("b", 10.0), ("c", None))
    )
    page = tmp_path / "report.html"
    result = dataclasses.replace(RESULT, tables=(TABLE, many, long))
    page.write_text(render("A title", "A line", [result], {}, {}, "So.", {"a": 1}), encoding="utf-8")
    with browser.chromium(tmp_path / "profile", 1280) as driver:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        driver.get(page.as_uri())
        cells = "return [...document.querySelectorAll('table')[2].tBodies[0].rows].map(r => r.cells[0].textContent)"
        name = driver.execute_script(cells)[0]
        assert len(name) == 32
        title = driver.execute_script("return document.querySelector('td[title]').title")
        assert title == long.rows[0][0]
        for wanted in (["c", name, "b"], ["b", name, "c"]):  # by number, not by letters
            driver.execute_script("document.querySelectorAll('table')[2].querySelectorAll('th button')[1].click()")
            assert driver.execute_script(cells) == wanted
        folded = driver.execute_script("return document.querySelectorAll('svg')[4].checkVisibility()")
        assert folded is False, "a chart of forty rows"
        for button, file in (
            ("[data-figure]", "layers-rows.png"), ("[data-chart]", "layers-kept.svg"),
            ("[data-table]", "layers-kept.csv"), ("[data-get=numbers]", "report.json"),
            ("[data-get=methods]", "methods.txt"),
        ):  # fmt: skip
            driver.execute_script(f"document.querySelector('{button}').click()")
            end = time.monotonic() + 30
            while not (tmp_path / file).exists():
                assert time.monotonic() < end, file
                time.sleep(0.05)
        assert Image.open(tmp_path / "layers-rows.png").size == (40, 20)
        assert (tmp_path / "layers-kept.svg").read_text().startswith("<svg ")
        assert (tmp_path / "layers-kept.csv").read_text().splitlines()[1] == '"hue","0.8 [0.7, 0.9]","0.1 [-0.1, 0.3]"'
        assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
        assert (tmp_path / "methods.txt").read_text() == "So."


def test_what_cannot_be_run_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(job: Job) -> Analysis:
        raise ConfigError("at least 20 images are needed")

    monkeypatch.setitem(registry.EXPERIMENTS, "few", Experiment("x", few))
    monkeypatch.setitem(registry.EXPERIMENTS, "good", Experiment("x", lambda job: RESULT))
    job, told = Job(small.quick_model()), list[str]()
    tasks = [build.Task("few", job), build.Task("good", job)]
    page = build.build(tasks, tmp_path / "r.html", title="t", about="a", note=told.append)
    assert "at least 20 images" in read(page.read_text()).text
    assert any("left out" in line for line in told)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["left_out"] == {"few": "at least 20 images are needed"}
    assert found["experiments"]["layers"]["tables"][0]["rows"][0][1] == {"value": 0.8, "low": 0.7, "high": 0.9}
    with pytest.raises(ConfigError, match="nothing could be measured: few: at least 20"):
        build.build(tasks[:1], tmp_path / "none.html", title="t", about="a", note=told.append)
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), RuntimeError("the GPU is gone")])
def test_what_was_measured_before_an_error_is_kept(
    ends: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(job: Job) -> Analysis:
        raise ends

    monkeypatch.setitem(registry.EXPERIMENTS, "bad", Experiment("x", bad))
    monkeypatch.setitem(registry.EXPERIMENTS, "good", Experiment("x", lambda job: RESULT))
    job, told = Job(small.quick_model()), list[str]()
    (tmp_path / "r.html").write_text("of another day")
    tasks = [build.Task(name, job) for name in ("good", "bad", "last")]
    with pytest.raises(type(ends)):
        build.build(tasks, tmp_path / "r.html", title="t", about="a", note=told.append)
    found = json.loads((tmp_path / "r-unfinished.json").read_text())
    assert list(found["experiments"]) == ["layers"]
    assert found["left_out"] == {"bad": f"ended by {type(ends).__name__}: {ends}", "last": "not begun"}
    assert "t (unfinished)" in (tmp_path / "r-unfinished.html").read_text()
    assert "r-unfinished.html: what was measured before bad failed" in told[-1]
    assert (tmp_path / "r.html").read_text() == "of another day"
    with pytest.raises(type(ends)):
        build.build(tasks[1:], tmp_path / "none.html", title="t", about="a", note=told.append)
    assert not (tmp_path / "none-unfinished.html").exists()


def test_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    data = training_process.data().subset(torch.arange(5))
    found = photographs(model, data, PhotosConfig(per=3, steps=3))
    assert len(found.tables[0].rows) == len(data)
    assert found.figures["samples"].width > 4 * 72
    spread = [row[2] for row in found.tables[0].rows]
    assert all(isinstance(value, float) and value > 0 for value in spread)
    place = 2  # keys the noise
    h = model.encode(data.floats(torch.tensor([place])))
    drawn = model.sample(h, per=3, steps=3, items=[place])
    assert spread[place] == pytest.approx(float((drawn[0].double() * 127.5).std(dim=0).mean()), rel=1e-4)
    far = (model.encode(drawn[0]) - h).norm(dim=1) / h.norm()
    moved = found.tables[0].rows[place][1]
    assert isinstance(moved, Interval)
    assert moved.value == pytest.approx(float(far.mean()), rel=1e-3)
    monkeypatch.setattr("rcdm_fast.analysis.photos.SHOWN", 3)
    heights = [
        photographs(model, data.subset(torch.arange(count)), PhotosConfig(per=2, steps=1)).figures["samples"].height
        for count in (2, 3, 5)
    ]
    assert heights[0] < heights[1] == heights[2], "a figure shows no more than it says"
    with pytest.raises(ConfigError, match="at least 2"):
        photographs(model, data, PhotosConfig(per=1))
    model._encoder = None
    with pytest.raises(ConfigError, match="encoder"):
        photographs(model, data, PhotosConfig())


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "cifar10-simclr-trunk"
    assert checkpoint.load_model(model)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(small.make_images(3, 40)):
        to_pil(image).save(tmp_path / "photos" / f"{number}.png")
    page = tmp_path / "out" / "report.html"
    arguments = ["report", model, "--photos", str(tmp_path / "photos"), "--out", str(page), "--steps", "2"]
    assert main([*arguments, "--methods"]) == 0
    text = read(page.read_text()).text
    numbers = json.loads(page.with_suffix(".json").read_text())
    shown = capsys.readouterr().out
    assert numbers["methods"] in shown
    assert numbers["methods"] in text
    for said in ("cifar10-simclr-trunk", numbers["made_by"]["models"][0]["weights"][:12], "3 photos", "steps 2"):
        assert said in numbers["methods"]
    assert numbers["made_by"]["data"]["photos"]["images"] == 3
    assert "Samples of photographs" in text
    assert "compares models: name another with --against" in text
    assert "needs a set of images: name one with --data" in text
    assert main([*arguments[:5], str(tmp_path / "x.txt")]) == 2
    assert "an .html file" in capsys.readouterr().err
    assert main(["report", model, "--out", str(page)]) == 2
    assert main([*arguments, "--experiments", "nonsense"]) == 2


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(width: int, tmp_path: Path) -> None:
    """Nothing is wider than the window but what scrolls by itself; images are there; nothing is requested."""
    wide = dataclasses.replace(RESULT, figures={"rows": Image.new("RGB", (2000, 20), "red")})
    page = tmp_path / "report.html"
    page.write_text(render("A title", "A line", [wide], {}, {"torch": "1"}), encoding="utf-8")
    with browser.chromium(tmp_path / "profile", width) as driver:
        driver.get(page.as_uri())
        assert driver.execute_script("return window.innerWidth") == width
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert driver.execute_script("return document.querySelector('figure[id] img').naturalWidth") == 2000
        heights = driver.execute_script("return [...document.querySelectorAll('svg')].map(e => e.clientHeight)")
        assert len(heights) == 2 + 3  # and a small one for each claim with numbers
        assert all(40 < height < 400 for height in heights)
        assert driver.execute_script("return document.querySelector('nav').getBoundingClientRect().height") <= 900
        assert driver.execute_script("return document.getElementById('contents').open") is (width == 1280)
        driver.execute_script("window.scrollTo(0, 1500)")
        assert driver.execute_script("return document.querySelector('nav').getBoundingClientRect().top") == 0
        numbers = "return document.querySelector('details.numbers table').checkVisibility()"
        assert not driver.execute_script(numbers)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert driver.execute_script(numbers), "on paper nothing can be opened"
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        size = driver.execute_script("return parseFloat(getComputedStyle(document.body).fontSize)")
        assert size >= 16
        loaded = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in loaded if not name.startswith("data:")] == []


def test_facts_are_of_the_models_of_all_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that only the second experiment compares with; each once."""
    first, second = small.quick_model(), small.quick_model()
    with torch.no_grad():
        next(second.unet.parameters()).add_(1)

    def named(name: str) -> Experiment:
        return dataclasses.replace(registry.find(name), run=lambda job: dataclasses.replace(RESULT, name=name))

    known = {name: named(name) for name in ("faithfulness", "layers")}
    monkeypatch.setattr(registry, "find", known.__getitem__)
    tasks = [build.Task("faithfulness", Job(first)), build.Task("layers", Job(first, against=(second,)))]
    page = build.build(tasks, tmp_path / "r.html", title="t", about="a", note=lambda _: None)
    facts = json.loads(page.with_suffix(".json").read_text())["made_by"]
    assert [each["weights"] for each in facts["models"]] == [first.weights, second.weights]
    assert first.weights != second.weights
    assert second.weights in page.read_text()


def test_a_paragraph_for_a_paper_by_hand() -> None:
    """A method that experiments share is told once, and of settings what each of them has."""
    made = {"engine": "native", "precision": "bf16"}
    facts = {
        "rcdm_fast": "9.1",
        "models": [
            {"name": "one", "weights": "0123456789abcdef", **made, "encoder": {"source": "simclr", "hash": "h"}},
            {"name": "", "weights": "fedcba9876543210", **made},
        ],
        "data": {"data": {"images": 12345, "fingerprint": "f1"}, "photos": {"images": 3, "fingerprint": "f2"}},
    }
    first = Analysis("a", "First", "m", {"solver": "heun", "steps": 7, "per": 2, "sources": 20}, method="As told.")
    second = Analysis("b", "Second", "m", {"seed": 4}, method="As told.")
    said = methods.paragraph([first, second], facts)
    assert said.endswith(
        "as implemented in rcdm_fast 9.1. "
        "Decoder one (weights 0123456789ab; native engine, bf16), representations from simclr. "
        "Decoder (unnamed) (weights fedcba987654; native engine, bf16). "
        "12,345 images (fingerprint f1). 3 photos (fingerprint f2). "
        "First. Settings: sources 20, per 2, steps 7, solver heun. As told. Second."
    )


def test_a_report_tells_what_runs_how_far_it_is_and_how_long_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    told, paper, entered = list[str](), list[str](), list[int]()

    def good(job: Job) -> Analysis:
        assert job.progress is not None
        job.progress(1, 2)
        return RESULT

    def few(job: Job) -> Analysis:
        raise ConfigError("too few")

    @contextmanager
    def progress() -> Iterator[Callable[[int, int], None]]:
        entered.append(len(steps))
        yield lambda *each: steps.append(each)

    for name, run in (("good", good), ("few", few)):
        monkeypatch.setitem(registry.EXPERIMENTS, name, Experiment("x", run))
    monkeypatch.setattr(build, "time", SimpleNamespace(monotonic=iter((10.0, 12.5, 20.0, 20.2)).__next__))
    photos = dataclasses.replace(training_process.data().subset(torch.arange(3)), fingerprint="shown")
    tasks = [build.Task(name, Job(small.quick_model(), photos=photos)) for name in ("good", "few")]
    page = build.build(
        tasks, tmp_path / "r.html", title="t", about="a", left_out={"attack": "no labels"}, note=told.append,
        methods=paper.append, progress=progress,
    )  # fmt: skip
    found = json.loads((tmp_path / "r.json").read_text())
    assert told == ["1 of 2: good", "2 of 2: few", "left out: too few"]
    assert (steps, entered) == ([(1, 2)], [0, 1])
    assert found["left_out"] == {"attack": "no labels", "few": "too few"}
    assert found["made_by"]["seconds"] == {"good": 2.5, "few": 0.2}
    assert found["made_by"]["data"] == {"photos": {"fingerprint": "shown", "images": 3}}
    assert found["title"] == "t"
    assert paper == [found["methods"]]
    assert "attack: no labels" in read(page.read_text()).text


def test_rates_are_told_of_the_verdicts_that_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of claims by a rule alone, which have a p-value; those of the other kind have no rate."""
    (tmp_path / "rates.json").touch()
    monkeypatch.setattr("rcdm_fast.analysis.error_rates.SHIPPED", tmp_path / "rates.json")
    monkeypatch.setattr("rcdm_fast.analysis.error_rates.sentence", lambda kept: f"rate of {kept}")

    def rates(*given: tuple[bool | None, float | None]) -> list[str]:
        findings = tuple(Finding("it", holds, "so", p=p) for holds, p in given)
        return build.rates([dataclasses.replace(RESULT, findings=(each,)) for each in findings])

    assert rates((False, 0.01), (True, 0.02)) == ["rate of True", "rate of False"]
    assert rates((False, 0.01), (True, None)) == ["rate of False"]
    assert rates((None, 0.5)) == []


def first_screen(page: str) -> list[str]:
    """The claims beside the summary, as the page says them."""
    return re.findall(r"<li class=\"\w+\">(\w+)", page.split('<ul class="claims">')[1].split("</ul>")[0])


def test_decided_claims_with_numbers_come_first_and_of_those_that_do_not_hold_two() -> None:
    number = (("slope", Interval(0.5, 0.4, 0.6)),)
    given = {
        "a": (None, ()), "b": (None, number), "c": (True, ()), "d": (False, ()), "e": (False, number),
        "f": (False, number), "g": (True, number), "h": (True, ()), "i": (True, ()),
    }  # fmt: skip

    def page(names: str, numbers: object = None) -> str:
        claims = tuple(
            Finding(name, holds, "so", otherwise=name, numbers=decide) for name, (holds, decide) in given.items()
            if name in names
        )  # fmt: skip
        claims = tuple(
            dataclasses.replace(each, claim=f"{each.claim} it is", otherwise=f"{each.claim} it is") for each in claims
        )
        result = dataclasses.replace(RESULT, findings=claims)
        return render("t", "a", [result], {}, {}, numbers=numbers)  # type: ignore[arg-type]

    whole, few = page("abcdefghi", {"a": 1}), page("abc")
    assert first_screen(whole) == ["G", "C", "H", "E", "F"]
    assert first_screen(few) == ["C", "Inconclusive", "Inconclusive"]
    assert few.index("Inconclusive: b it is") < few.index("Inconclusive: a it is")
    link, button = '<p><a href="#claims">All claims</a></p>', 'data-get="numbers"'
    assert (link in whole, link in few) == (True, False)
    assert (button in whole, button in few) == (True, False)
    every = whole.split('id="claims">')[1].split("</section>")[0]
    decided, unsure = every.split("<details>")
    assert "<summary>2 inconclusive</summary>" in unsure
    assert (decided.count("<li"), unsure.count("<li")) == (7, 2)
    assert "Inconclusive" not in decided


@pytest.mark.parametrize(("holds", "kind"), [(True, "holds"), (False, "fails"), (None, "open")])
def test_a_verdict_has_its_own_look(holds: bool | None, kind: str) -> None:
    found = Finding("it", holds, "so")
    assert sections.line(found).startswith(f'<li class="{kind}">')
    page = sections.section(dataclasses.replace(RESULT, findings=(found,), figures={}), {})
    assert f'<div class="finding {kind}">' in page


def test_only_adjusted_claims_are_counted_as_such() -> None:
    found = [Finding("a", True, "so", p=0.01, adjusted=0.02), Finding("b", None, "so")]
    assert sections.adjusted(found).startswith("1 have a p-value")
    assert sections.adjusted(found[1:]) == ""


@pytest.mark.parametrize(
    ("cell", "sorted_by"),
    [(Interval(0.5, 0.1, 0.6), "0.5"), (2.25, "2.25"), (7, "7"), (None, None), ("hue", None), (float("inf"), None)],
)
def test_a_cell_is_sorted_by_its_value(cell: Any, sorted_by: str | None) -> None:
    found = re.findall(r'data-v="([^"]*)"', sections._cell(cell))
    assert found == ([] if sorted_by is None else [sorted_by])


def test_long_tables_and_charts_are_folded_and_curves_are_not() -> None:
    def shown(rows: int, value: object, name: Callable[[int], object] = str) -> str:
        body = tuple((name(row), value) for row in range(rows))
        table = Table("t", "T", ("of", "value"), body)  # type: ignore[arg-type]
        return sections.section(dataclasses.replace(RESULT, tables=(table,), figures={}, findings=()), {})

    one = Interval(0.5, 0.4, 0.6)
    assert "Table of 13 rows" in shown(13, 0.5)
    assert "Table of" not in shown(12, 0.5)
    assert "Chart of 13 rows" in shown(13, one)
    assert "Chart of" not in shown(12, one)
    assert "<polyline" in shown(13, one, int)
    assert "Chart of" not in shown(13, one, int)


def test_figures_are_kept_as_well_as_they_fit_in_the_order_of_ways() -> None:
    noise = Image.effect_noise((80, 40), 90).convert("RGB")
    given = [("one", {"a": noise}), ("two", {"a": noise.rotate(180)})]
    plain = figures.stored(given)
    assert plain.keys() == {("one", "a"), ("two", "a")}
    assert {(each.kind, each.width, each.height) for each in plain.values()} == {("png", 80, 40)}
    size = sum(len(each.content) for each in plain.values())
    assert figures.stored(given, size) == plain  # at most so many
    less = figures.stored(given, size - 1)
    assert {(each.kind, each.width, each.height) for each in less.values()} == {("webp", 80, 40)}
    best = sum(len(each.content) for each in less.values())
    worse = figures.stored(given, best - 1)
    assert sum(len(each.content) for each in worse.values()) < best
    last = figures.stored(given, 1)["two", "a"]
    assert (last.width, last.height) == (20, 10)
    page = sections.section(dataclasses.replace(RESULT, name="two", figures={"a": noise}, captions={"a": "As <it> is"}),
                            figures.stored(given, 1))  # fmt: skip
    assert 'width="20" height="10" alt="As &lt;it&gt; is"' in page
    assert 'data-figure="two-a.webp"' in page


def test_photographs_are_named_and_those_at_the_top_are_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_process.data().subset(torch.arange(5))
    data = dataclasses.replace(data, paths=tuple(Path(f"folder/{name}.png") for name in "abcde"))
    model, sheets = small.quick_model(), list[list[list[Any]]]()
    done: list[tuple[int, int]] = []

    def sheet(rows: list[list[Any]], **_: object) -> Image.Image:
        sheets.append(rows)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(of_photos, "image_sheet", sheet)
    monkeypatch.setattr(of_photos, "to_pil", lambda image: image)
    drawn = small.asked(lambda h, *, items, per, **_: small.make_images(per, seed=int(items[0]))[None])
    monkeypatch.setattr(model, "sample", drawn)
    config = PhotosConfig(per=20, steps=1, resamples=100)
    found = photographs(model, data, config, lambda *each: done.append(each))
    assert done == [(number, 5) for number in range(1, 6)]
    assert [row[0] for row in found.tables[0].rows] == [f"{name}.png" for name in "abcde"]
    assert [row[0] for row in photographs(model, dataclasses.replace(data, paths=()), config).tables[0].rows] == [
        *range(5)
    ]
    whole, *heads = sheets[:4]
    assert (len(whole), len(found.heads)) == (5, 3)
    for number, (head,) in enumerate(heads):
        assert len(head) == 4
        assert torch.equal(head[0], data.floats(torch.tensor([number]))[0])
        assert all(torch.equal(*each) for each in zip(head, whole[number], strict=False))
    other = photographs(model, data, dataclasses.replace(config, resamples=101)).tables[0].rows[0][1]
    assert other != found.tables[0].rows[0][1]
