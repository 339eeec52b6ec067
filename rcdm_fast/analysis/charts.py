"""Dots with intervals, drawn with Pillow: what a table of correlations looks like at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from rcdm_fast.metrics.intervals import Interval

COLORS = ("#0b5fa5", "#d1495b", "#3a7d44", "#8a5a9e", "#b8860b")
SIZE = 26  # of letters, pixels


@dataclass(frozen=True)
class Bar:
    """One row of a chart.

    Attributes:
        label: at the left.
        intervals: one for each series.
        chance: half-width of the gray band of each series' chance level; 0 for none.
    """

    label: str
    intervals: tuple[Interval, ...]
    chance: tuple[float, ...] = ()


def intervals(
    bars: Sequence[Bar], series: Sequence[str], title: str, low: float = -0.5, high: float = 1.0, plot: int = 900
) -> Image.Image:
    """A dot and a line for every interval, row by row, from `low` to `high` (values beyond are cut off)."""
    if not bars or any(len(bar.intervals) != len(series) for bar in bars):
        raise ValueError("a chart needs rows with one interval for each series")
    font: Any = ImageFont.load_default(size=SIZE)
    left = int(max(font.getlength(bar.label) for bar in bars)) + 40
    lane, top = 26, 2 * SIZE + 50 + (SIZE + 12) * (len(series) > 1)
    row = lane * len(series) + 26
    width = max(left + plot + 60, int(font.getlength(title)) + 40)
    canvas = Image.new("RGB", (width, top + row * len(bars) + 70), "white")
    draw = ImageDraw.Draw(canvas)

    def place(value: float) -> float:
        return left + plot * (min(max(value, low), high) - low) / (high - low)

    draw.text((20, 14), title, fill="black", font=font)
    if len(series) > 1:
        x = 20.0
        for number, name in enumerate(series):
            draw.ellipse((x, SIZE + 36, x + 16, SIZE + 52), fill=COLORS[number % len(COLORS)])
            draw.text((x + 26, SIZE + 28), name, fill="black", font=font)
            x += font.getlength(name) + 70
    bottom = top + row * len(bars)
    for number, bar in enumerate(bars):
        middle = top + row * number + row / 2
        if number % 2:
            draw.rectangle((0, top + row * number, width, top + row * (number + 1)), fill="#f4f6f8")
        for index in range(len(series)):
            y = middle + lane * (index - (len(series) - 1) / 2)
            if index < len(bar.chance) and bar.chance[index]:
                band = (place(-bar.chance[index]), y - lane / 2 + 2, place(bar.chance[index]), y + lane / 2 - 2)
                draw.rectangle(band, fill="#d9dee3")
        draw.text((20, middle - SIZE * 0.6), bar.label, fill="black", font=font)
    tick = low
    while tick <= high + 1e-9:
        zero = abs(tick) < 1e-9
        draw.line(
            (place(tick), top, place(tick), bottom), fill="#555555" if zero else "#c4c9ce", width=2 if zero else 1
        )
        text = f"{0.0 if zero else tick:g}"
        draw.text((place(tick) - font.getlength(text) / 2, bottom + 10), text, fill="black", font=font)
        tick += (high - low) / 6
    for number, bar in enumerate(bars):
        for index, each in enumerate(bar.intervals):
            y = top + row * number + row / 2 + lane * (index - (len(series) - 1) / 2)
            color = COLORS[index % len(COLORS)]
            draw.line((place(each.low), y, place(each.high), y), fill=color, width=5)
            draw.ellipse((place(each.value) - 9, y - 9, place(each.value) + 9, y + 9), fill=color)
    return canvas
