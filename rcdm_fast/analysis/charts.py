"""Dots with intervals, and histograms row by row, drawn with Pillow: what a table looks like at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcdm_fast.metrics.intervals import Floats, Interval

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


BINS = 60


def histograms(rows: Sequence[tuple[str, Floats]], title: str, plot: int = 900) -> Image.Image:
    """A histogram of each row's values over one axis from 0, each of the same height; a line at its median.

    Args:
        rows: names and values, at least 0, float64 [N] of any N from 1.
        title: over all.
        plot: width of the axis, pixels. It ends at the largest 99th percentile; what lies beyond is in the last bin.

    Raises:
        ValueError: no row, or one without values.
    """
    if not rows or any(not len(values) for _, values in rows):
        raise ValueError("a chart of histograms needs rows with values")
    font: Any = ImageFont.load_default(size=SIZE)
    most = max(float(np.quantile(values, 0.99)) for _, values in rows) or 1.0
    left, top, lane = int(max(font.getlength(name) for name, _ in rows)) + 40, 2 * SIZE + 30, 84
    bottom = top + lane * len(rows)
    width = max(left + plot + 60, int(font.getlength(title)) + 40)
    canvas = Image.new("RGB", (width, bottom + 60), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((20, 14), title, fill="black", font=font)
    step = _round_step(most)
    for number in range(int(most / step + 1e-9) + 1):
        x, text = left + plot * number * step / most, f"{number * step:g}"
        draw.line((x, top, x, bottom), fill="#c4c9ce", width=2)
        draw.text((x - font.getlength(text) / 2, bottom + 10), text, fill="black", font=font)
    for number, (name, values) in enumerate(rows):
        base, color = top + lane * (number + 1) - 8, COLORS[number % len(COLORS)]
        counts, _ = np.histogram(np.minimum(values, most), bins=BINS, range=(0.0, most))
        for index, count in enumerate(counts.tolist()):
            if count:
                x, height = left + plot * index / BINS, (lane - 18) * count / counts.max()
                draw.rectangle((x, base - height, x + plot / BINS - 1, base), fill=color)
        draw.line((left, base, left + plot, base), fill="#555555")
        median = left + plot * min(float(np.median(values)), most) / most
        draw.line((median, base - lane + 14, median, base), fill="black", width=3)
        draw.text((20, base - lane / 2 - SIZE * 0.4), name, fill="black", font=font)
    return canvas


def _round_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, such that 4 to 10 of it make `most`."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    return max(factor * power for factor in (1, 2, 5) if most / (factor * power) >= 4)
