"""What `rcdm calibrate` found, for the documentation: verdicts beside the truth. Texts only."""

from __future__ import annotations

from typing import Any

from benchmarks.documents.speed import Found
from rcdm_fast.analysis import rules
from rcdm_fast.analysis.calibrate import IDEAL, Rate

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


def budgets(found: Found) -> str:
    """Verdicts by how many images decoders had seen, those of all seeds of one budget together."""
    lines = [
        "| images seen | decoders | kept: called kept | dropped | inconclusive | dropped: called kept | dropped "
        "| inconclusive | kept, found, % |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for images, decoders in _by_budget(found):
        cells = [cell for decoder in decoders for cell in decoder["cells"] if not cell["free"]]
        rates = [_rate(cells, kept, rules.word(word)) for kept in (True, False) for word in (True, False, None)]
        counts = [f"{rates[0].count} of {rates[0].of}", *(str(each.count) for each in rates[1:3])]
        counts += [f"{rates[3].count} of {rates[3].of}", *(str(each.count) for each in rates[4:])]
        row = (f"{images:,d}", str(len(decoders)), *counts, rates[0].interval.text(".1f", 100))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def spread(found: Found) -> str:
    """The mean slope of every kept factor by budget, with the least and the largest over the decoders of one budget."""
    groups = _by_budget(found)
    factors = list(dict.fromkeys(cell["factor"] for cell in groups[0][1][0]["cells"]))
    heads = " | ".join(FACTORS.get(factor, factor) for factor in factors)
    lines = [f"| images seen | {heads} |", f"|---:|{'---:|' * len(factors)}"]
    for images, decoders in groups:
        shown = []
        for factor in factors:
            means = [_mean(decoder["cells"], factor) for decoder in decoders]
            least = f" ({min(means):.2f}..{max(means):.2f})" if len(means) > 1 else ""
            shown.append(f"{sum(means) / len(means):.2f}{least}")
        lines.append(f"| {images:,d} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _by_budget(found: Found) -> list[tuple[int, list[dict[str, Any]]]]:
    """All decoders but the ideal one, by the images that they had seen; the fewest first."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for decoder in found["decoders"]:
        if decoder["name"] != IDEAL:
            groups.setdefault(decoder["images_seen"], []).append(decoder)
    return sorted(groups.items())


def _mean(cells: list[dict[str, Any]], factor: str) -> float:
    slopes: list[float] = [cell["slope"]["value"] for cell in cells if cell["kept"] and cell["factor"] == factor]
    return sum(slopes) / len(slopes)


def _decoder(found: Found, name: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = next(each["cells"] for each in found["decoders"] if each["name"] == name)
    return cells


def followed(found: Found, name: str) -> str:
    """The mean slope of every factor that is kept, the most followed first."""
    cells = _decoder(found, name)
    factors = dict.fromkeys(cell["factor"] for cell in cells if cell["kept"])
    means = sorted(((_mean(cells, factor), factor) for factor in factors), reverse=True)
    heads = " | ".join(FACTORS.get(factor, factor) for _, factor in means)
    values = " | ".join(f"{mean:.2f}" for mean, _ in means)
    return f"| {heads} |\n|{'---|' * len(means)}\n| {values} |"


def counted(found: Found, name: str, kept: bool, called: bool) -> str:
    """How many cells of one truth are called so, of those that moved no threshold."""
    rate = _rate([cell for cell in _decoder(found, name) if not cell["free"]], kept, rules.word(called))
    return f"{rate.count} of {rate.of}"


def read(found: Found) -> str:
    """The scores of the reader."""
    names = ("shape", "x", "y", "size", "angle", "hue", "ground_hue", "light")
    scores = found["reader"]["scores"]
    heads = " | ".join(FACTORS.get(name, name) for name in names)
    return f"| {heads} |\n|{'---|' * len(names)}\n| {' | '.join(f'{scores[name]:.4f}' for name in names)} |"
