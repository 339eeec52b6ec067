"""What `rcdm calibrate` found, for the documentation: verdicts beside the truth. Texts only."""

from __future__ import annotations

from typing import Any

from benchmarks.documents.speed import Found
from rcdm_fast.analysis import rules
from rcdm_fast.analysis.calibrate import Rate

NOT_YET = (
    "**The whole of it has not been run yet**, so no result ships, and no verdict names its error rate:\n"
    "`rcdm_fast.analysis.error_rates.sentence` quotes `rcdm_fast/bundled/calibration.json` once that is there, and\n"
    "refuses one of other rules. What the quick form gave stands in the card of `shapes-oracle`."
)
FACTORS = {"ground_hue": "ground's hue"}


def _rate(cells: list[dict[str, Any]], kept: bool, called: str) -> Rate:
    chosen = [cell for cell in cells if cell["kept"] is kept]
    return Rate(sum(cell["called"] == called for cell in chosen), len(chosen))


def calibration(found: Found | None) -> str:
    """Of each decoder the cells that moved no threshold (all, where none did), or that there is no result yet."""
    if found is None:
        return NOT_YET
    settings, held = found["settings"], any(not cell["free"] for cell in found["decoders"][0]["cells"])
    which = "cells that moved no threshold" if held else "all cells"
    lines = [
        f"Rules of {found['rules']['version']}, {settings['sources']} items, {settings['subsets']} subsets; {which}:",
        "",
        "| decoder | truth | cells | called kept | called dropped | inconclusive | wrong, % | right, % |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for decoder in found["decoders"]:
        cells = [cell for cell in decoder["cells"] if not (held and cell["free"])]
        for kept in (True, False):
            said = {word: _rate(cells, kept, rules.word(word)) for word in (True, False, None)}
            counts = [str(each.count) for each in said.values()]
            shown = [said[each].interval.text(".1f", 100) for each in (not kept, kept)]
            row = (decoder["name"], rules.word(kept), str(said[kept].of), *counts, *shown)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _decoder(found: Found, name: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = next(each["cells"] for each in found["decoders"] if each["name"] == name)
    return cells


def followed(found: Found, name: str) -> str:
    """The mean slope of every factor that is kept, the most followed first."""
    slopes: dict[str, list[float]] = {}
    for cell in _decoder(found, name):
        if cell["kept"]:
            slopes.setdefault(cell["factor"], []).append(cell["slope"]["value"])
    means = sorted(((sum(each) / len(each), factor) for factor, each in slopes.items()), reverse=True)
    heads = " | ".join(FACTORS.get(factor, factor) for _, factor in means)
    values = " | ".join(f"{mean:.2f}" for mean, _ in means)
    return f"| {heads} |\n|{'---|' * len(means)}\n| {values} |"


def counted(found: Found, name: str, kept: bool, called: bool) -> str:
    """How many cells of one truth are called so."""
    rate = _rate(_decoder(found, name), kept, rules.word(called))
    return f"{rate.count} of {rate.of}"


def read(found: Found) -> str:
    """The scores of the reader."""
    names = ("shape", "x", "y", "size", "angle", "hue", "ground_hue", "light")
    scores = found["reader"]["scores"]
    heads = " | ".join(FACTORS.get(name, name) for name in names)
    return f"| {heads} |\n|{'---|' * len(names)}\n| {' | '.join(f'{scores[name]:.4f}' for name in names)} |"
