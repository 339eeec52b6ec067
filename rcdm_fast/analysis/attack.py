"""Images changed so little that nobody sees it, so that a linear probe fails: what happens to h, and to samples?

The probe is fitted on half of the data, the other half is attacked (`perturb.py`).

Beside the probe's accuracy stands how far h moves, in units of the distance to the nearest other real image, and what
samples of the attacked representation are: the class that the probe gives to them. After Bordes et al. (2021), section
5.2. Knows nothing about how the encoders were trained: which one is self-supervised is in their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig, Progress, interval
from rcdm_fast.analysis.layers import names as names_of
from rcdm_fast.analysis.perturb import against_probe
from rcdm_fast.analysis.recovery import MIN_SOURCES
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.checks import CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.images import fit_images, image_sheet, to_pil
from rcdm_fast.metrics import probes
from rcdm_fast.metrics.nearest import squared_distances
from rcdm_fast.model import Model

METHODS = ("fgsm", "pgd")


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
        kept: fraction of a source's samples that the probe gives the true class, of clean and attacked h,
            float64 [2,S].
        rows: images of the figure, a row for each shown source.
    """

    name: str
    correct: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]
    kept: np.ndarray
    rows: list[list[Tensor]]


@host.guarded(gradients=True, random=True)
def run(
    models: Sequence[Model],
    data: ImageSet,
    config: AttackConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """The models under the same attacks on the same images, each with a probe of its own.

    Args:
        models: one or more, with encoders that have gradients.
        data: labelled images, at least 40; a probe needs many more to be good.
        config: sizes.
        progress: called with (models done, all of them).
        shared: with other experiments.

    Raises:
        ConfigError: no labels, too few images, a model without an encoder, or an encoder without gradients.
    """
    known, attacked = halves(data, config)
    results = []
    for number, (model, name) in enumerate(zip(models, names_of(models), strict=True)):
        results.append(_attack(model, name, data, known, attacked, config, shared))
        if progress is not None:
            progress(number + 1, len(models))
    tables = [_accuracy_table(results, method, config) for method in METHODS]
    tables += [_moved_table(results, method, config) for method in METHODS]
    tables.append(_kept_table(results, config))
    first, *others = results
    largest = f"{config.epsilons[-1]:g}"
    sheet = [[to_pil(each) for each in row] for result in results for row in result.rows]
    per = config.per
    titles = ["image", "samples", *[""] * (per - 1), "attacked", "samples", *[""] * (per - 1)]
    return Analysis(
        name="attack",
        title=f"{common.listed([result.name for result in results])} under attack",
        model=", ".join(map(common.name_of, models)),
        settings={
            **dataclasses.asdict(config),
            "images": len(attacked),
            "fitted_on": len(known),
            "sources": len(_sources(attacked, config)),
            "data": data.fingerprint,
        },
        tables=tuple(tables),
        findings=tuple(finding for other in others for finding in _findings(first, other, config)),
        figures={
            "samples": image_sheet(
                sheet,
                cell=64,
                column_titles=titles,
                row_titles=[name.name for name in results for _ in name.rows],
                group_gaps=[1, 1 + per, 2 + per],
            )
        },
        captions={"samples": f"Images and samples of h, then attacked by PGD with epsilon {largest}; the same noise."},
        method="A linear probe (logistic regression) is fitted on half of the images and attacked on the other half "
        "by FGSM and PGD in the maximum norm, with the gradient of its cross-entropy. Movement: distance of h from the "
        "clean h over the distance of the clean h to its nearest neighbor among the attacked half. Intervals: 95 %, "
        "bootstrap over images. After Bordes et al. (2021), section 5.2.",
    )


def halves(data: ImageSet, config: AttackConfig) -> tuple[Tensor, Tensor]:
    """Places of the images that the probe is fitted on, and of those that are attacked."""
    if data.labels is None:
        raise ConfigError("an attack on a probe needs labelled images: one sub-folder per class")
    if len(data) < 2 * MIN_SOURCES:
        raise ConfigError(f"at least {2 * MIN_SOURCES} images are needed, half of them for the probe; got {len(data)}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))
    known, rest = order[: len(data) // 2].sort().values, order[len(data) // 2 :].sort().values
    classes = data.labels[known].unique()
    if len(classes) < 2 or len(data.labels[rest].unique()) > len(classes):
        raise ConfigError(f"the probe needs at least 2 classes and images of each, got {len(classes)} of them")
    count = config.images or min(500, len(rest))
    if not MIN_SOURCES <= count <= len(rest):
        raise ConfigError(f"{count} images to attack: at least {MIN_SOURCES}, at most the {len(rest)} not used to fit")
    return known, rest[evenly(count, len(rest))]


def _sources(attacked: Tensor, config: AttackConfig) -> Tensor:
    """Places among the attacked images that samples are drawn of."""
    count = config.sources or min(64, len(attacked))
    if not MIN_SOURCES <= count <= len(attacked):
        raise ConfigError(f"{count} sources: at least {MIN_SOURCES}, at most the {len(attacked)} attacked images")
    return evenly(count, len(attacked))


def _attack(
    model: Model,
    name: str,
    data: ImageSet,
    known: Tensor,
    attacked: Tensor,
    config: AttackConfig,
    shared: Shared | None = None,
) -> Attacked:
    encoder = model.encoder
    if encoder is None:
        raise ConfigError(f"{name} has no encoder")
    if not isinstance(encoder, ImageEncoder):
        raise ConfigError(f"{name}: its encoder gives no gradients, so it cannot be attacked")
    assert data.labels is not None
    fitted = encoded(shared, encoder, data, known)
    probe = probes.fit_linear_probe(fitted, data.labels[known]).to(encoder.device)
    labels = data.labels[attacked]
    views = data.floats(attacked)
    if views.shape[-1] != encoder.config.image_size:  # data of the encoder's size are seen as they are, as in training
        views = encoder.view(views)
    clean = encoder.encode(views).cpu()
    apart = squared_distances(clean, clean).fill_diagonal_(torch.inf).min(dim=1).values.sqrt().clamp_min(1e-12)
    sources = _sources(attacked, config)
    correct, moved = {}, {}
    strongest = views
    for method in METHODS:
        right, far = [], []
        for epsilon in config.epsilons:
            steps = config.pgd_steps if method == "pgd" else 0
            changed = against_probe(views, labels, encoder, probe, epsilon, steps, config.seed, config.batch_size)
            h = encoder.encode(changed)
            right.append((probe(h).argmax(dim=1).cpu() == labels).numpy())
            far.append(((h.cpu() - clean).double().norm(dim=1) / apart).numpy())
            strongest = changed
        correct[method], moved[method] = np.stack(right), np.stack(far)
    kept, drawn = [], []
    for seen in (views[sources], strongest[sources]):
        samples = common.draw(model, encoder.encode(seen), sources, config)
        told = probe(encoder.encode(samples.flatten(0, 1))).argmax(dim=1).cpu().view(len(sources), -1)
        kept.append((told == labels[sources, None]).double().mean(dim=1).numpy())
        drawn.append(samples)
    rows = []
    for row in range(min(config.shown, len(sources))):
        pair = (fit_images(each[sources[row]][None], model.image_size)[0].cpu() for each in (views, strongest))
        rows.append([shown for one, samples in zip(pair, drawn, strict=True) for shown in (one, *samples[row])])
    return Attacked(name, correct, moved, np.stack(kept), rows)


def _accuracy_table(results: Sequence[Attacked], method: str, config: AttackConfig) -> Table:
    columns = ("epsilon (8-bit levels)", *(result.name for result in results))
    rows: list[tuple[Cell, ...]] = []
    for place, epsilon in enumerate(config.epsilons):
        rows.append((epsilon, *(interval(result.correct[method][place], config) for result in results)))
    return Table(f"accuracy-{method}", f"Accuracy of the probe under {method.upper()}", columns, tuple(rows))


def _moved_table(results: Sequence[Attacked], method: str, config: AttackConfig) -> Table:
    columns = ("epsilon (8-bit levels)", *(result.name for result in results))
    rows: list[tuple[Cell, ...]] = []
    for place, epsilon in enumerate(config.epsilons):
        rows.append((epsilon, *(interval(result.moved[method][place], config) for result in results)))
    note = "1 is the distance to the nearest other image."
    return Table(f"moved-{method}", f"Movement of h under {method.upper()}", columns, tuple(rows), note)


def _kept_table(results: Sequence[Attacked], config: AttackConfig) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        clean, attacked = result.kept
        rows.append(
            (result.name, interval(clean, config), interval(attacked, config), interval(attacked - clean, config))
        )
    title = f"Samples that the probe gives the true class, PGD with epsilon {config.epsilons[-1]:g}"
    return Table("samples", title, ("model", "of clean h", "of attacked h", "difference"), tuple(rows))


def _findings(first: Attacked, other: Attacked, config: AttackConfig) -> list[Finding]:
    """What the paper says of a self-supervised `first` and a supervised `other`, paired over images."""
    attacks = [(place, f"epsilon {epsilon:g}: ") for place, epsilon in enumerate(config.epsilons) if epsilon > 0]
    apart = [interval(first.moved["pgd"][place] - other.moved["pgd"][place], config) for place, _ in attacks]
    far = "; ".join(said + common.text(each) for (_, said), each in zip(attacks, apart, strict=True))
    found = [
        Finding(
            f"PGD moves h of {first.name} less than h of {other.name}",
            common.all_hold(common.below(each) for each in apart),
            f"difference in distances to the nearest neighbor, {far}",
        )
    ]
    right = [result.correct["pgd"].astype(np.float64) for result in (first, other)]
    clean = [interval(one[0], config) for one in right]
    rates = [
        said + " and ".join(common.percent(interval(one[place], config)) for one in right) for place, said in attacks
    ]
    gap = interval((right[0][1:] - right[1][1:]).mean(axis=0), config)
    found.append(
        Finding(
            f"under PGD the probe of {first.name} is right more often than that of {other.name}",
            common.above(gap),
            f"clean: {common.percent(clean[0])} and {common.percent(clean[1])}; {'; '.join(rates)}; "
            f"difference of the means over epsilons {cell_text(gap)}",
        )
    )
    lost = interval((first.kept[1] - first.kept[0]) - (other.kept[1] - other.kept[0]), config)
    found.append(
        Finding(
            f"samples of attacked images keep their class more often with {first.name} than with {other.name}",
            common.above(lost),
            f"difference of the changes in accuracy {cell_text(lost)}",
        )
    )
    return found
