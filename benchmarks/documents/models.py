"""What is known of the bundled models: sizes off their files, measurements off results, or off their cards.

Texts only; nothing is measured and no weights are read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.documents.speed import Found
from rcdm_fast import size, storage
from rcdm_fast.config import ModelConfig, from_json
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.models import zoo

ENCODERS = {  # of the models in tables, in their order
    "cifar10-simclr-wide": "SimCLR, twice as wide, backbone",
    "cifar10-simclr-trunk": "SimCLR, backbone",
    "cifar10-simclr-head": "SimCLR, projector",
    "cifar10-supervised": "supervised, backbone",
}
MRR, RANK = "MRR of the source image", "mean rank of the source image"


def stored(path: Path) -> str:
    """The size of a file."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def described(name: str) -> ModelConfig:
    """The configuration in a bundled model's file."""
    path = zoo.bundled_path(name)
    return from_json(ModelConfig, storage.read_metadata(path)[zoo.MODEL_KEY], str(path))


def parameters(name: str) -> str:
    """How many numbers a bundled model's network has."""
    return f"{size.parameters(described(name).unet) / 1e6:.2f} M"


def of_card(card: str, row: str) -> str:
    """What a card's table says in a row.

    Raises:
        ValueError: no such row.
    """
    found = re.search(rf"(?m)^\| {re.escape(row)} \| ([^|]+) \|", card)
    if found is None:
        raise ValueError(f"the card has no row {row!r}")
    return found[1].strip()


def interval(value: dict[str, Any], form: str, scale: float = 1.0, unit: str = "") -> str:
    """An interval as JSON has it, for readers."""
    ends = (value["value"], value["low"], value["high"])
    return Interval(*ends).text(form, scale, unit)


def evaluation(found: Found) -> str:
    """A card's table of what `rcdm evaluate` measured."""
    near = found["nearest_real"]
    by = found.get("ranked_by", "")
    rows = [
        (MRR, interval(found["mrr"], ".3f"), f"chance {found['chance_mrr']:.2g}" + (f"; ranked by {by}" if by else "")),
        *_blurred(found),
        (RANK, interval(found["mean_rank"], ".1f"), f"chance {found['chance_mean_rank']:.1f}"),
        ("squared distance of a sample to the source", interval(found["distance"], ".2f"), ""),
        (
            "squared distance of the nearest other real image to the source",
            interval(near["1"], ".2f"),
            f"of the 5th: {near['5']['value']:.2f}, the 10th: {near['10']['value']:.2f}",
        ),
        *_recognized(found),
        ("variance of a pixel over samples", interval(found["variance"], ".3f"), ""),
    ]
    return "\n".join(["| | value | |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)])


def _recognized(found: Found) -> list[tuple[str, str, str]]:
    read = found.get("recognized")
    if read is None:
        return []
    of_sources = interval(read["sources"], ".1f", 100)
    return [
        ("class of the source, read off samples, %", interval(read["samples"], ".1f", 100), f"sources: {of_sources}")
    ]


def _blurred(found: Found) -> list[tuple[str, str, str]]:
    if found.get("blurred_mrr") is None:
        return []
    return [("the same of the source, blurred by one pixel", interval(found["blurred_mrr"], ".3f"), "")]


def ranks(name: str, card: str, measured: Found | None) -> tuple[str, str]:
    """MRR and mean rank: of a result if there is one, else of the card."""
    if measured is None:
        return of_card(card, MRR), of_card(card, RANK)
    return interval(measured["mrr"], ".3f"), interval(measured["mean_rank"], ".1f")


def table(cards: dict[str, str], measured: dict[str, Found], ceilings: dict[str, Found], long: bool) -> str:
    """All bundled models of photographs.

    Args:
        cards: texts by name.
        measured: what `rcdm evaluate` measured, by name, where that is committed.
        ceilings: an evaluation of each, of which the blurred sources are taken.
        long: with dimensions and mean ranks, and chance below; else with samples of one photograph, and sizes.
    """
    last = "mean rank" if long else "size"
    lines = [
        f"|{'' if long else ' |'} name | encoder | MRR of the source among 10,000 "
        f"| of the source itself, blurred by 1 px | {last} |",
        "|---|---|---|---|" + ("---|" if long else "---|---:|"),
    ]
    for name, encoder in ENCODERS.items():
        mrr, rank = ranks(name, cards[name], measured.get(name))
        dim = f" ({described(name).unet.representation_dim})" if long else ""
        end = rank if long else stored(zoo.bundled_path(name))
        of_blurred = blurred(ceilings[name]) if name in ceilings else ""
        shown = "" if long else f"| ![samples](docs/of-{name}.png) "
        lines.append(f"{shown}| `{name}` | {encoder}{dim} | {mrr} | {of_blurred} | {end} |")
    if long and ceilings:
        some = next(iter(ceilings.values()))
        lines.append(f"| chance | | {some['chance_mrr']:.2g} | | {some['chance_mean_rank']:.1f} |")
    return "\n".join(lines)


def mrr(found: Found) -> str:
    """The MRR of the source."""
    return interval(found["mrr"], ".3f")


def blurred(found: Found) -> str:
    """The MRR of sources that are blurred by a pixel."""
    return f"{found['blurred_mrr']['value']:.3f}"


def denoising(training: Found, test: Found) -> str:
    """Errors of x0 on images that a decoder was trained on and on others, by timestep."""
    lines = ["| t | images of the training set | test images |", "|---:|---|---|"]
    for timestep in sorted(training["x0_errors"], key=int):
        cells = [interval(each["x0_errors"][timestep], ".3f") for each in (training, test)]
        lines.append(f"| {timestep} | {' | '.join(cells)} |")
    return "\n".join(lines)


def error_of_x0(found: Found, timestep: int) -> str:
    """The error at one timestep."""
    return interval(found["x0_errors"][str(timestep)], ".5f")


def adapted(*found: Found, names: tuple[str, ...]) -> str:
    """Decoders beside one another: what each is, its MRR and its distance to h."""
    lines = ["| | MRR of the source image | squared distance of a sample to the source |", "|---|---|---|"]
    for name, each in zip(names, found, strict=True):
        lines.append(f"| {name} | {interval(each['mrr'], '.3f')} | {interval(each['distance'], '.2f')} |")
    return "\n".join(lines)


def guidance(found: Found) -> str:
    """What guidance does."""
    lines = [
        "| guidance | MRR | mean rank | squared distance to h | class read off samples | variance over samples "
        "| Fréchet |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for strength in sorted(found, key=float):
        row = found[strength]
        cells = (
            strength,
            interval(row["mrr"], ".3f"),
            f"{row['mean_rank']['value']:.1f}",
            interval(row["distance"], ".2f"),
            interval(row["recognized"]["samples"], ".1f", 100, " %"),
            interval(row["variance"], ".4f"),
            f"{row['distribution']['frechet_distance']:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
