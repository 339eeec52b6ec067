"""What an attack has done: how far h moves and in which unit, and accuracy beside what there was to lose.

A probe that is right more often to begin with has more to lose, and less robust accuracy may be a larger part of it.
So two probes are compared by the part of their clean accuracy that is left, and on the images that both have right,
in pairs. Nearest neighbors are near in one representation and far in another: movement stands there in distances to the
nearest other image and in median distances between two images. Knows nothing about how images were changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig, fraction, interval
from rcdm_fast.analysis.result import Cell, Finding, Table, cell_text
from rcdm_fast.checks import CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval

METHODS = ("fgsm", "pgd")
UNITS = {"moved": "distances to the nearest other image", "moved-pairs": "median distances between two images"}


@dataclass(frozen=True, kw_only=True)
class AttackConfig(ExperimentConfig):
    """What to attack and sample.

    Attributes:
        images: attacked, spread evenly over their half of the data; 0 means 500, or all there are if fewer.
        sources: of these, drawn from (with the largest epsilon and with none); 0 means 64, or all if fewer.
        epsilons: largest change of a pixel, in 8-bit levels.
        pgd_steps: gradient steps of PGD, each of 2.5 epsilon / steps.
        shown: sources in the figure.
    """

    images: CountOrNone = 0
    sources: CountOrNone = 0
    epsilons: tuple[float, ...] = (0, 1, 2, 4, 8, 16)
    pgd_steps: int = 10
    shown: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.epsilons) < 2 or self.epsilons[0] != 0 or list(self.epsilons) != sorted(set(self.epsilons)):
            raise ConfigError(f"epsilons begin with 0 and grow, got {self.epsilons}")
        if self.pgd_steps < 1 or self.shown < 1:
            raise ConfigError("pgd_steps and shown must be at least 1")


@dataclass(frozen=True)
class Attacked:
    """One model under attack; P images, E epsilons.

    Attributes:
        name: of the model.
        correct: by method, whether the probe is right, bool [E,P].
        moved: by method, distance of h from where it was over that to the nearest other image, float64 [E,P].
        moved_pairs: the same over the median distance between two images.
        kept: fraction of a source's samples that the probe gives the true class, of clean and attacked h,
            float64 [2,S].
        rows: images of the figure, a row for each shown source.
    """

    name: str
    correct: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]
    moved_pairs: dict[str, np.ndarray]
    kept: np.ndarray
    rows: list[list[Tensor]]


def tables(results: Sequence[Attacked], config: AttackConfig) -> list[Table]:
    """Accuracy, what is left of it, movement, and the class of samples."""
    found = []
    for method in METHODS:
        cells = {result.name: [fraction(each) for each in result.correct[method]] for result in results}
        found.append(_by_epsilon(f"accuracy-{method}", f"Accuracy of the probe under {method.upper()}", cells, config))
    if all(result.correct["pgd"][0].any() for result in results):
        places = range(len(config.epsilons))
        cells = {result.name: [kept_part(result, place, config) for place in places] for result in results}
        note = "Under PGD, over the probe's own accuracy on clean images."
        found.append(_by_epsilon("left-pgd", "Part of the clean accuracy that is left", cells, config, note))
    right = both_right(results)
    if len(results) > 1 and right.any():
        cells = {result.name: [fraction(each[right]) for each in result.correct["pgd"]] for result in results}
        note = f"Under PGD, of the {right.sum()} clean images that all probes have right."
        found.append(_by_epsilon("both-pgd", "Accuracy where all probes were right", cells, config, note))
    for name, unit in UNITS.items():
        for method in METHODS:
            cells = {each.name: [interval(far, config) for far in _moved(each, name)[method]] for each in results}
            title = f"Movement of h under {method.upper()}, in {unit}"
            found.append(_by_epsilon(f"{name}-{method}", title, cells, config))
    return [*found, _kept_table(results, config)]


def kept_part(result: Attacked, place: int, config: AttackConfig) -> Interval:
    """Accuracy under PGD over accuracy on clean images, in pairs over images."""
    clean, robust = (result.correct["pgd"][at].astype(np.float64) for at in (0, place))
    return intervals.ratio(robust, clean, config.resamples, np.random.default_rng(config.seed))


def both_right(results: Sequence[Attacked]) -> np.ndarray:
    """Which clean images all probes have right, bool [P]."""
    return np.asarray(np.stack([result.correct["pgd"][0] for result in results]).all(axis=0))


def _moved(result: Attacked, name: str) -> dict[str, np.ndarray]:
    return result.moved if name == "moved" else result.moved_pairs


def _by_epsilon(name: str, title: str, cells: dict[str, list[Interval]], config: AttackConfig, note: str = "") -> Table:
    """A row for each epsilon, a column for each model."""
    rows = tuple(
        (epsilon, *row) for epsilon, row in zip(config.epsilons, zip(*cells.values(), strict=True), strict=True)
    )
    return Table(name, title, ("epsilon (8-bit levels)", *cells), rows, note)


def _kept_table(results: Sequence[Attacked], config: AttackConfig) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        clean, attacked = result.kept
        rows.append((result.name, fraction(clean), fraction(attacked), intervals.fraction_difference(attacked, clean)))
    title = f"Samples that the probe gives the true class, PGD with epsilon {config.epsilons[-1]:g}"
    return Table("samples", title, ("model", "of clean h", "of attacked h", "difference"), tuple(rows))


def findings(first: Attacked, other: Attacked, config: AttackConfig) -> list[Finding]:
    """What the paper says of a self-supervised `first` and a supervised `other`, paired over images."""
    lost = interval((first.kept[1] - first.kept[0]) - (other.kept[1] - other.kept[0]), config)
    kept = Finding(
        f"samples of attacked images keep their class more often with {first.name} than with {other.name}",
        common.above(lost),
        f"difference of the changes in accuracy {cell_text(lost)}",
    )
    return [_movement(first, other, config), _part(first, other, config), _among(first, other, config), kept]


def _attacks(config: AttackConfig) -> list[tuple[int, str]]:
    return [(place, f"epsilon {epsilon:g}: ") for place, epsilon in enumerate(config.epsilons) if epsilon > 0]


def _movement(first: Attacked, other: Attacked, config: AttackConfig) -> Finding:
    told, apart = [], []
    for name, unit in UNITS.items():
        a, b = (_moved(result, name)["pgd"] for result in (first, other))
        each = [(said, interval(a[place] - b[place], config)) for place, said in _attacks(config)]
        apart += [found for _, found in each]
        told.append(f"difference in {unit}, " + "; ".join(said + common.text(found) for said, found in each))
    claim = f"PGD moves h of {first.name} less than h of {other.name}"
    return Finding(claim, common.all_hold(common.below(each) for each in apart), "; ".join(told))


def _part(first: Attacked, other: Attacked, config: AttackConfig) -> Finding:
    """The part of the clean accuracy that PGD leaves, averaged over epsilons."""
    right = [result.correct["pgd"].astype(np.float64) for result in (first, other)]
    claim = f"PGD leaves the probe of {first.name} a larger part of its accuracy than that of {other.name}"
    if not all(each[0].any() for each in right):
        return Finding(claim, None, "a probe has no clean image right: there is no part of that")
    of_first, of_other = [(each[1:].mean(axis=0), each[0]) for each in right]
    gap = intervals.ratio_difference(of_first, of_other, config.resamples, np.random.default_rng(config.seed))
    clean = " and ".join(common.percent(fraction(each[0])) for each in right)
    rates = [
        said + " and ".join(common.percent(kept_part(result, place, config)) for result in (first, other))
        for place, said in _attacks(config)
    ]
    measured = (
        f"clean: {clean}; left of that, {'; '.join(rates)}; difference of the means over epsilons {cell_text(gap)}"
    )
    return Finding(claim, common.above(gap), measured)


def _among(first: Attacked, other: Attacked, config: AttackConfig) -> Finding:
    """Accuracy under PGD of the images that both have right, averaged over epsilons."""
    right = both_right((first, other))
    claim = f"of images that both have right, PGD leaves {first.name} more than {other.name}"
    if not right.any():
        return Finding(claim, None, "there is no such image")
    a, b = (result.correct["pgd"][1:, right].astype(np.float64).mean(axis=0) for result in (first, other))
    gap = intervals.fraction_difference(a, b)
    measured = (
        f"{common.percent(fraction(a))} and {common.percent(fraction(b))} of {right.sum()} images, over epsilons; "
        f"difference in pairs {cell_text(gap)}"
    )
    return Finding(claim, common.above(gap), measured)
