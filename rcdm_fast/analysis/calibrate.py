"""How often the rule that says "kept" or "dropped" is wrong, in a world whose truth is known.

Oracles that keep known subsets of a world's factors stand for representations: eight factors, kept in half of the
subsets each, make a cell of known truth with every subset. Of each cell there are, as of a representation that nobody
knows, a slope of samples (`world_slopes.py`), readouts of the factor from the representation, and the verdict that
`rules.py` makes of these. It is counted beside the truth.

Subsets come in pairs that have no factor in common, so every factor is kept in half of any number of pairs. Half of
the pairs are free: thresholds may be moved until their verdicts are right. What is claimed of a rule is claimed of the
others.

Before the decoders stands an ideal one, which draws what is kept as it is and everything else anew: where it falls
short, the reader, the rule or the number of samples does, not a decoder. Cells of one decoder share items and weights,
so their intervals are narrower than those over decoders would be.

Knows nothing about files (`cli/calibrate.py` writes the result, `error_rates.py` reads what ships).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from rcdm_fast.analysis import rules, world_slopes
from rcdm_fast.analysis.result import Table
from rcdm_fast.analysis.rules import Verdict
from rcdm_fast.analysis.world_slopes import Cell, DecoderSampler, IdealSampler, Sampler, SlopesConfig
from rcdm_fast.checks import ConfigError, Count, Range, Seed
from rcdm_fast.data.world import World
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.encoders.oracle_code import Code, subsets
from rcdm_fast.exporters.graph import weights_hash
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model

VERSION = 1  # of what `Calibration.as_json` gives
IDEAL = "ideal"
_PAIRS = tuple((number, 15 - number) for number in range(8))


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(SlopesConfig):
    """Settings; see `SlopesConfig`.

    Attributes:
        subsets: how many of the 16 subsets of the fraction; an even number.
        fraction: which subsets (`oracle_code.subsets`); rules may be fitted to the first one, 0, alone.
        readable: pairs of items that readouts are cross-validated on; at least 100.
        world_seed: of the items. No reader or decoder that ships has seen items of the usual one.
    """

    steps: Count | str = 10  # with these the rules' error rates were measured
    solver: str = "dpmpp_2m"
    subsets: Annotated[int, Range(2, 16)] = 16
    fraction: Annotated[int, Range(0, 6)] = 0
    readable: Annotated[int, Range(100, 100_000)] = 2000
    world_seed: Seed = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subsets % 2:
            raise ConfigError(f"subsets come in pairs, so their number is even; got {self.subsets}")


QUICK: Mapping[str, int] = {"subsets": 4, "sources": 128}  # of a run in minutes


@dataclass(frozen=True)
class Judged:
    """A cell, and what the rule says of it.

    Attributes:
        cell: with the truth.
        free: whether thresholds may be moved on it.
        readouts: R^2 of the factor's changes from those of the representation, linear and non-linear.
        verdict: the rule's.
    """

    cell: Cell
    free: bool
    readouts: tuple[Interval, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Rate:
    """How many of the cells of one truth got a verdict."""

    count: int
    of: int

    @property
    def interval(self) -> Interval:
        """The fraction with its 95 % score interval; 0..1 without cells."""
        return intervals.score(self.count / max(1, self.of), self.of)


@dataclass(frozen=True)
class Judgment:
    """All cells of one decoder.

    Attributes:
        decoder: its name.
        about: weights hash, images seen, engine; empty for the ideal one.
        cells: judged.
    """

    decoder: str
    about: Mapping[str, Any]
    cells: tuple[Judged, ...]

    def rate(self, kept: bool, called: bool | None, free: bool | None = None, factor: str | None = None) -> Rate:
        """Of the cells whose truth is `kept`, those that are called so; of one half, of one factor, if given."""
        chosen = [
            each
            for each in self.cells
            if each.cell.kept == kept and free in (None, each.free) and factor in (None, each.cell.factor)
        ]
        return Rate(sum(each.verdict.kept is called for each in chosen), len(chosen))

    @property
    def wrong(self) -> int:
        """Cells that are called the opposite of what they are."""
        return self.rate(True, False).count + self.rate(False, True).count


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        world: name of the world.
        config: settings.
        judgments: of the ideal decoder, then of each given one.
    """

    world: str
    config: CalibrateConfig
    judgments: tuple[Judgment, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values, with versions and rules."""
        return {
            "version": VERSION,
            "rules": {"version": rules.VERSION, **dataclasses.asdict(rules.RULES)},
            "world": self.world,
            "settings": dataclasses.asdict(self.config),
            "decoders": [
                {"name": each.decoder, **each.about, "cells": [_as_json(cell) for cell in each.cells]}
                for each in self.judgments
            ],
        }

    def tables(self) -> list[Table]:
        """For readers: verdicts beside the truth, of the cells that moved no threshold and of all; then by factor."""
        columns = ("decoder: truth", "cells", "kept", "dropped", "inconclusive", "wrong, of all", "right, of all")
        found = [Table("all", "Verdicts, all cells", columns, tuple(self._rows(None)))]
        if {each.free for each in self.judgments[0].cells} == {False, True}:
            title = "Verdicts, cells that moved no threshold"
            found.insert(0, Table("held", title, columns, tuple(self._rows(False))))
        rows = [row for judgment in self.judgments for row in _by_factor(judgment)]
        heads = ("decoder: factor", "slope, kept", "called kept", "slope, dropped", "called dropped")
        found.append(Table("factors", "By factor (mean slopes)", heads, tuple(rows)))
        return found

    def _rows(self, free: bool | None) -> Iterator[tuple[str, int, int, int, int, Interval, Interval]]:
        for each in self.judgments:
            for truth in (True, False):
                said = [each.rate(truth, called, free) for called in (True, False, None)]
                counts = (said[0].count, said[1].count, said[2].count)
                right, wrong = (said[0], said[1]) if truth else (said[1], said[0])
                name = f"{each.decoder}: {rules.word(truth)}"
                yield name, said[0].of, *counts, wrong.interval, right.interval


def calibrate(
    decoders: Mapping[str, Model],
    reader: FactorReader,
    config: CalibrateConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Judge all cells by each decoder.

    Args:
        decoders: by their names; trained on masked codes of the reader's world (configuration ``shapes-oracle``).
        reader: reads factors off samples, of the decoders' size.
        config: settings.
        progress: called with (subsets done, subsets in all), all decoders together.

    Raises:
        ConfigError: a decoder that takes other representations or draws images of another size, or too few sources.
    """
    config = config or CalibrateConfig()
    world = World(reader.world, max(config.sources, 2 * config.readable), reader.size, config.world_seed)
    samplers: dict[str, Sampler] = {IDEAL: IdealSampler(world, config.seed)}
    for name, model in decoders.items():
        if name == IDEAL or model.image_size != reader.size:
            wrong = f"draws {model.image_size} px, the reader sees {reader.size}" if name != IDEAL else "is no name"
            raise ConfigError(f"the decoder {name} {wrong}")
        samplers[name] = DecoderSampler(model, world, config)
    chosen = [subsets(config.fraction, reader.world)[number] for number in _numbers(config)]
    readouts = {subset: _readouts(world, subset, config) for subset in chosen}
    free = {subset: _free(number, config) for number, subset in zip(_numbers(config), chosen, strict=True)}
    judgments = []
    for place, (name, sampler) in enumerate(samplers.items()):
        before, total = place * len(chosen), len(samplers) * len(chosen)

        def told(done: int, _: int, before: int = before, total: int = total) -> None:
            if progress is not None:
                progress(before + done, total)

        found = world_slopes.cells(sampler, reader.read, world, chosen, config, told)
        judged = []
        for cell in found:
            read = readouts[cell.subset][cell.factor]
            judged.append(Judged(cell, free[cell.subset], read, rules.verdict(cell.slope, read)))
        about = _about(decoders[name]) if name in decoders else {}
        judgments.append(Judgment(name, about, tuple(judged)))
    return Calibration(world.name, config, tuple(judgments))


def _numbers(config: CalibrateConfig) -> list[int]:
    return [number for pair in _PAIRS[: config.subsets // 2] for number in pair]


def _free(number: int, config: CalibrateConfig) -> bool:
    """Of the first fraction those with an even number of ones, among which every factor is kept in half, too."""
    return config.fraction == 0 and number.bit_count() % 2 == 0


def _readouts(world: World, subset: Sequence[str], config: CalibrateConfig) -> dict[str, tuple[Interval, ...]]:
    """R^2 of a change of every factor from that of what an oracle of a subset says."""
    factors = world.factors(range(2 * config.readable))
    h = Code(world.world, tuple(subset), masked=True)(factors)
    return world_slopes.readouts(h, factors, world.about[:8], config.seed)


def _about(model: Model) -> dict[str, Any]:
    info = model.config.info
    return {
        "weights": weights_hash(model.unet, model.config.schedule),
        "images_seen": info.get("images_seen"),
        "engine": model.engine.name,
        "precision": model.engine.precision,
        "device": str(model.device),
    }


def _by_factor(judgment: Judgment) -> Iterator[tuple[str, float, str, float, str]]:
    for factor in dict.fromkeys(each.cell.factor for each in judgment.cells):
        row: list[Any] = [f"{judgment.decoder}: {factor}"]
        for kept in (True, False):
            chosen = [x.cell.slope.value for x in judgment.cells if (x.cell.factor, x.cell.kept) == (factor, kept)]
            rate = judgment.rate(kept, kept, factor=factor)
            row += [sum(chosen) / len(chosen), f"{rate.count} of {rate.of}"]
        yield row[0], row[1], row[2], row[3], row[4]


def _as_json(judged: Judged) -> dict[str, Any]:
    return {
        "factor": judged.cell.factor,
        "subset": list(judged.cell.subset),
        "kept": judged.cell.kept,
        "free": judged.free,
        "slope": dataclasses.asdict(judged.cell.slope),
        "readouts": [dataclasses.asdict(each) for each in judged.readouts],
        "called": judged.verdict.word,
        "detectable": judged.verdict.detectable,
        "p": judged.verdict.p,
    }
