"""How far results differ between encoders and decoders that were trained with other seeds. Texts only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean, variance
from typing import Any

from benchmarks.documents.known_world import FACTORS
from benchmarks.documents.models import interval
from benchmarks.documents.speed import Found

Cell = tuple[dict[str, float], str, dict[str, float]]  # slope, verdict, R^2 of a network


def trainings(founds: Mapping[str, Found], called: Mapping[str, str]) -> str:
    """Of every factor what an encoder of each training keeps: slope, verdict, and what a network reads off h.

    `called` says what readers call the encoders, by those of the files.
    """
    lines = [f"| | {' | '.join(called.values())} |", f"|---|{'---|' * len(called)}"]
    cells = {name: dict(_factors(founds[name])) for name in called}
    for factor in cells[next(iter(called))]:
        shown = []
        for name in called:
            slope, word, network = cells[name][factor]
            shown.append(f"{interval(slope, '.2f')} {word}; {network['value']:.2f}")
        lines.append(f"| {FACTORS.get(factor, factor)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def world(founds: Mapping[str, Found]) -> str:
    """Slopes of every factor over encoders of several seeds with several decoders each, files called ENCODER-DECODER.

    Standard deviations: of decoders about the mean of their encoder; of encoders what is left of the spread of these
    means when the decoders' part of it is taken off; and of a slope itself, by its interval over items.
    """
    cells = {name: {factor: cell[0] for factor, cell in _factors(found)} for name, found in founds.items()}
    lines = [
        "| | slope, mean of all | least and largest | sd of encoders | sd of decoders | sd by items |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for factor in next(iter(cells.values())):
        groups: dict[str, list[float]] = {}
        for name, each in cells.items():
            groups.setdefault(name.rsplit("-", 1)[0], []).append(each[factor]["value"])
        slopes = [slope for group in groups.values() for slope in group]
        within = mean(variance(group) for group in groups.values())
        between = variance([mean(group) for group in groups.values()]) - within / min(map(len, groups.values()))
        items = mean((each[factor]["high"] - each[factor]["low"]) / (2 * 1.96) for each in cells.values())
        shown = [f"{mean(slopes):.2f}", f"{min(slopes):.2f}..{max(slopes):.2f}"]
        shown += [f"{value:.2f}" for value in (max(0.0, between) ** 0.5, within**0.5, items)]
        lines.append(f"| {' | '.join((FACTORS.get(factor, factor), *shown))} |")
    return "\n".join(lines)


def verdicts(founds: Mapping[str, Found]) -> str:
    """How many of the runs say what of every factor."""
    words = ("kept", "dropped", "inconclusive")
    counts: dict[str, dict[str, int]] = {}
    for found in founds.values():
        for factor, (_, word, _) in _factors(found):
            counts.setdefault(factor, dict.fromkeys(words, 0))[word] += 1
    lines = [f"| | {' | '.join(words)} |", "|---|---:|---:|---:|"]
    for factor, said in counts.items():
        lines.append(f"| {FACTORS.get(factor, factor)} | {' | '.join(str(said[word]) for word in words)} |")
    return "\n".join(lines)


def images(founds: Mapping[str, Found]) -> str:
    """Slopes of augmentations over encoders of several seeds, whose decoders were adapted from one."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in founds.items():
        (table,) = (each for each in found["tables"] if each["name"] == "recovered")
        for row in table["rows"]:
            line = dict(zip(table["columns"], row, strict=True))
            rows.setdefault(f"{line['property']} ({line['augmentation']})", {})[name] = line
    heads = " | ".join(f"encoder {number}" for number in range(1, len(founds) + 1))
    lines = [f"| | {heads} |", f"|---|{'---|' * len(founds)}"]
    for what, of in rows.items():
        shown = [f"{interval(of[name]['slope'], '.2f')} {of[name]['verdict']}" for name in founds]
        lines.append(f"| {what} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _factors(found: Found) -> Iterator[tuple[str, Cell]]:
    (table,) = (each for each in found["tables"] if each["name"] == "factors")
    for row in table["rows"]:
        line = dict(zip(table["columns"], row, strict=True))
        yield line["factor"], (line["slope"], line["verdict"], line["network R^2"])
