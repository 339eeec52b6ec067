"""A figure of histograms, row by row over one axis, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcdm_fast.metrics.intervals import Floats

BINS = 60
COLORS = ("#0b5fa5", "#d1495b", "#3a7d44", "#8a5a9e", "#b8860b")
SIZE = 26  # of letters, pixels


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
