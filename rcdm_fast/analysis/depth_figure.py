"""The figure of `depth.py`: samples in columns, one for each representation, and below them what each one keeps.

A panel for each property: slopes with their intervals, in the columns of the samples, and beside each what a readout
explains, which needs no decoder. Verdicts have a color and a form, so that they are told apart without colors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rcdm_fast.analysis import invariance
from rcdm_fast.analysis.layer import Layer
from rcdm_fast.analysis.result import Finding
from rcdm_fast.analysis.rules import RULES, word
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.images import to_pil

CAPTION = (
    "Above: images, and two samples of each representation, the same noise in each row. Below: how far samples follow "
    "a change of each image (slope: 1 entirely, 0 not at all) with 95 % intervals, each by itself; verdicts hold for "
    "all claims together (Holm). Bands: where a whole interval is kept (blue, above "
    f"{RULES.kept_above:g}) and dropped (red, within +-{RULES.dropped_within:g}, if no readout finds the change). "
    "Diamonds: R^2 of the better readout of the change from the representation itself, without a decoder."
)
COLORS = {True: "#0b5fa5", False: "#d1495b", None: "#8a9199"}  # kept, dropped, inconclusive
READOUT = "#9a6700"
COLUMN, CELL, PANEL = 190, 84, 120  # pixels
ASIDE = 36  # of a readout from the middle of its column
LOW, HIGH = -0.4, 1.4  # of the axis of slopes
SIZE = 20  # of letters
SHOWN = 3  # rows of samples, if they are of sources
PAIR = 2  # samples of a representation in a row

Row = tuple[Tensor, Sequence[Tensor]]  # an image [3,H,W], and samples of each representation [P,3,H,W], in [-1,1]


@dataclass(frozen=True)
class Place:
    """A representation on the axis of depth: its layer, its encoder, its width, and what it explains."""

    layer: str
    source: str
    dim: int
    explained: float


def draw(
    measured: Sequence[Layer],
    places: Sequence[Place],
    findings: Sequence[Finding],
    shown: Sequence[Row],
) -> Image.Image:
    """The figure.

    Args:
        measured: what was found for each representation.
        places: the same representations on the axis.
        findings: by property, of each representation whether it is kept, for all claims together.
        shown: rows of images above the panels.
    """
    sweeps = measured[0].invariance.sweeps
    font: Any = ImageFont.load_default(size=SIZE)
    named = [invariance.label(each) for each in sweeps.values()]
    left = int(max(*(font.getlength(name) for name in named), CELL, 150)) + 70
    head, foot = 2 * SIZE + 24, 4 * SIZE + 60
    top = head + len(shown) * (CELL + 6) + 16
    canvas = Image.new("RGB", (left + COLUMN * len(places) + 20, top + (PANEL + 14) * len(named) + foot), "white")
    pen = ImageDraw.Draw(canvas)
    _legend(pen, font)
    _samples(canvas, shown, left, head)
    marks = iter(findings)
    for number, (name, label) in enumerate(zip(sweeps, named, strict=True)):
        slopes = [layer.invariance.sweeps[name].recovery.slope for layer in measured]
        y = top + number * (PANEL + 14)
        _panel(pen, font, label, (left, y), len(places))
        _join(pen, [each.source for each in places], [each.value for each in slopes], (left, y))
        for column, slope in enumerate(slopes):
            _mark(pen, _x(left, column), y, (slope.value, slope.low, slope.high), next(marks).holds)
        for column, layer in enumerate(measured):
            found = layer.invariance.sweeps[name].readout.best
            if found is not None:
                _diamond(pen, _x(left, column) + ASIDE, y, (found.value, found.low, found.high))
    _axis(pen, font, places, left, top + (PANEL + 14) * len(named))
    return canvas


def of_sources(measured: Sequence[Layer], data: ImageSet) -> list[Row]:
    """Some of the sources, which are from the data, with the first samples of each representation."""
    picked = evenly(min(SHOWN, len(measured[0].samples)), len(measured[0].samples)).tolist()
    images = data.floats(measured[0].invariance.sources[picked])
    return [(images[row], [layer.samples[source, :PAIR] for layer in measured]) for row, source in enumerate(picked)]


def _x(left: int, column: int) -> float:
    return left + COLUMN * (column + 0.5)


def _y(top: float, value: float) -> float:
    return top + PANEL * (HIGH - min(max(value, LOW), HIGH)) / (HIGH - LOW)


def _legend(pen: ImageDraw.ImageDraw, font: Any) -> None:
    x = 24.0
    for kept in (True, False, None):
        _sign(pen, x, 14 + SIZE / 2, kept)
        pen.text((x + 18, 10), word(kept), fill="black", font=font)
        x += font.getlength(word(kept)) + 60
    _rhombus(pen, x, 14 + SIZE / 2)
    pen.text((x + 18, 10), "readout", fill="black", font=font)


def _samples(canvas: Image.Image, shown: Sequence[Row], left: int, head: int) -> None:
    """The image at the left of each row, and its samples in every column."""
    for row, (image, drawn) in enumerate(shown):
        y = head + row * (CELL + 6)
        _paste(canvas, to_pil(image), left - CELL - 24, y)
        for column, samples in enumerate(drawn):
            own = samples.clamp(-1, 1)
            start = int(_x(left, column) - len(own) * (CELL + 4) / 2)
            for number, sample in enumerate(own):
                _paste(canvas, to_pil(sample), start + number * (CELL + 4), y)


def _paste(canvas: Image.Image, image: Image.Image, x: int, y: int) -> None:
    method = Image.Resampling.NEAREST if image.width < CELL else Image.Resampling.BICUBIC
    canvas.paste(image.resize((CELL, CELL), method), (x, y))


def _panel(pen: ImageDraw.ImageDraw, font: Any, label: str, corner: tuple[int, int], columns: int) -> None:
    left, top = corner
    right = left + COLUMN * columns
    pen.rectangle((left, top, right, _y(top, RULES.kept_above)), fill="#f0f4f8")
    pen.rectangle((left, _y(top, RULES.dropped_within), right, _y(top, -RULES.dropped_within)), fill="#f8eeee")
    for value in (0.0, 1.0):
        y = _y(top, value)
        pen.line((left, y, right, y), fill="#7a8087" if not value else "#c4c9ce", width=2 if not value else 1)
        text = f"{value:g}"
        pen.text((left - 12 - font.getlength(text), y - SIZE * 0.6), text, fill="#555555", font=font)
    pen.text((20, _y(top, 0.5) - SIZE * 0.6), label, fill="black", font=font)


def _join(pen: ImageDraw.ImageDraw, sources: list[str], values: list[float], corner: tuple[int, int]) -> None:
    """A thin line from layer to layer of one encoder."""
    left, top = corner
    for column in range(1, len(values)):
        if sources[column] == sources[column - 1]:
            ends = ((_x(left, place), _y(top, values[place])) for place in (column - 1, column))
            pen.line([*ends], fill="#c4c9ce", width=2)


def _mark(pen: ImageDraw.ImageDraw, x: float, top: int, found: tuple[float, float, float], kept: bool | None) -> None:
    value, low, high = found
    pen.line((x, _y(top, low), x, _y(top, high)), fill=COLORS[kept], width=4)
    _sign(pen, x, _y(top, value), kept)


def _diamond(pen: ImageDraw.ImageDraw, x: float, top: int, found: tuple[float, float, float]) -> None:
    """What a readout explains."""
    value, low, high = found
    pen.line((x, _y(top, low), x, _y(top, high)), fill=READOUT, width=3)
    _rhombus(pen, x, _y(top, value))


def _rhombus(pen: ImageDraw.ImageDraw, x: float, y: float) -> None:
    pen.polygon([(x, y - 9), (x + 9, y), (x, y + 9), (x - 9, y)], fill="white", outline=READOUT, width=3)


def _sign(pen: ImageDraw.ImageDraw, x: float, y: float, kept: bool | None) -> None:
    """A disk for kept, a square for dropped, a ring for inconclusive."""
    box = (x - 8, y - 8, x + 8, y + 8)
    if kept is False:
        pen.rectangle(box, fill=COLORS[kept])
    else:
        pen.ellipse(box, fill=COLORS[kept] if kept else "white", outline=COLORS[kept], width=3)


def _axis(pen: ImageDraw.ImageDraw, font: Any, places: Sequence[Place], left: int, top: int) -> None:
    """Below the panels: layers with their widths and what they explain, encoders under theirs."""
    small: Any = ImageFont.load_default(size=SIZE - 4)
    for column, place in enumerate(places):
        explained = f"explains {100 * place.explained:.0f} %"
        lines = [(_fitted(place.layer, font), font), (f"{place.dim} numbers", small), (explained, small)]
        for number, (text, letters) in enumerate(lines):
            x = _x(left, column) - letters.getlength(text) / 2
            pen.text((x, top + 4 + number * (SIZE + 4)), text, fill="black", font=letters)
    start = 0
    for column in range(1, len(places) + 1):
        if column == len(places) or places[column].source != places[start].source:
            first, last, y = _x(left, start) - COLUMN * 0.45, _x(left, column - 1) + COLUMN * 0.45, top + 3 * SIZE + 24
            pen.line((first, y, last, y), fill="#555555", width=2)
            text = places[start].source
            pen.text(((first + last - font.getlength(text)) / 2, y + 6), text, fill="black", font=font)
            start = column


def _fitted(text: str, font: Any) -> str:
    """The end of a name that is wider than its column."""
    while font.getlength(text) > COLUMN - 10:
        text = "..." + text.removeprefix("...")[1:]
    return text
