"""Images changed so little that nobody sees it, so that a linear probe fails: what happens to h, and to samples?

The probe is fitted on half of the data, the other half is attacked (`perturb.py`).

Beside the probe's accuracy stands how far h moves, and what samples of the attacked representation are: the class that
the probe gives to them (`robustness.py` says what two models' numbers tell about each other). After Bordes et al.
(2021), section 5.2. Knows nothing about how the encoders were trained: which one is self-supervised is in their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common, robustness
from rcdm_fast.analysis.common import Progress
from rcdm_fast.analysis.layers import names as names_of
from rcdm_fast.analysis.perturb import against_probe
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.analysis.robustness import METHODS, AttackConfig, Attacked
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.images import fit_images, image_sheet, to_pil
from rcdm_fast.metrics import nearest, probes
from rcdm_fast.metrics.intervals import LEAST
from rcdm_fast.metrics.nearest import squared_distances
from rcdm_fast.model import Model


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
        tables=tuple(robustness.tables(results, config)),
        findings=tuple(finding for other in others for finding in robustness.findings(first, other, config)),
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
        "clean h, in two units: the distance of the clean h to that of the nearest other attacked image, and the "
        "median distance between two of them. Probes start with different accuracy: they are compared by the part of "
        "it that is left, and on the images that both have right. Intervals: 95 %, bootstrap over images, of "
        "accuracies by Wilson's score, of differences of two in pairs by Newcombe's. After Bordes et al. (2021), "
        "section 5.2.",
    )


def halves(data: ImageSet, config: AttackConfig) -> tuple[Tensor, Tensor]:
    """Places of the images that the probe is fitted on, and of those that are attacked, one of each photograph.

    No photograph is in both.
    """
    if data.labels is None:
        raise ConfigError("an attack on a probe needs labelled images: one sub-folder per class")
    if len(data) < 2 * LEAST:
        raise ConfigError(f"at least {2 * LEAST} images are needed, half of them for the probe; got {len(data)}")
    known, rest = data.halves(config.seed)
    rest = data.one_of_each(rest)
    classes = data.labels[known].unique()
    if len(classes) < 2:
        raise ConfigError(f"the probe needs at least 2 classes and images of each, got {len(classes)} of them")
    unknown = [int(label) for label in data.labels[rest].unique() if label not in classes]
    if unknown:
        raise ConfigError(
            f"the probe's half of the images has none of {len(unknown)} classes of the other half, "
            f"{data.classes[unknown[0]]} among them: it needs images of each; leave out classes of so few"
        )
    count = config.images or min(500, len(rest))
    if not LEAST <= count <= len(rest):
        raise ConfigError(f"{count} images to attack: at least {LEAST}, at most the {len(rest)} not used to fit")
    return known, rest[evenly(count, len(rest))]


def _sources(attacked: Tensor, config: AttackConfig) -> Tensor:
    """Places among the attacked images that samples are drawn of."""
    count = config.sources or min(64, len(attacked))
    if not LEAST <= count <= len(attacked):
        raise ConfigError(f"{count} sources: at least {LEAST}, at most the {len(attacked)} attacked images")
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
    views = data.seen(attacked, encoder)
    if views.shape[-1] != encoder.config.image_size:  # data of the encoder's size are seen as they are, as in training
        views = encoder.view(views)
    clean = encoder.encode(views).cpu()
    pairs = squared_distances(clean, clean)
    pair = pairs[torch.triu(torch.ones_like(pairs, dtype=torch.bool), 1)].sqrt().median().clamp_min(1e-12)
    apart = nearest.apart(clean, clean)  # a copy of an image is no other one
    sources = _sources(attacked, config)
    correct, moved, moved_pairs = {}, {}, {}
    strongest = views
    for method in METHODS:
        right, far = [], []
        for epsilon in config.epsilons:
            steps = config.pgd_steps if method == "pgd" else 0
            changed = against_probe(views, labels, encoder, probe, epsilon, steps, config.seed, config.batch_size)
            h = encoder.encode(changed)
            right.append((probe(h).argmax(dim=1).cpu() == labels).numpy())
            far.append((h.cpu() - clean).double().norm(dim=1))
            strongest = changed
        lengths = torch.stack(far)
        correct[method] = np.stack(right)
        moved[method], moved_pairs[method] = (lengths / apart).numpy(), (lengths / pair).numpy()
    kept, drawn = [], []
    for seen in (views[sources], strongest[sources]):
        samples = common.draw(model, encoder.encode(seen), sources, config)
        told = probe(encoder.encode(samples.flatten(0, 1))).argmax(dim=1).cpu().view(len(sources), -1)
        kept.append((told == labels[sources, None]).double().mean(dim=1).numpy())
        drawn.append(samples)
    rows = []
    for row in range(min(config.shown, len(sources))):
        both = [fit_images(each[sources[row]][None], model.image_size)[0].cpu() for each in (views, strongest)]
        rows.append([shown for one, samples in zip(both, drawn, strict=True) for shown in (one, *samples[row])])
    return Attacked(name, correct, moved, moved_pairs, np.stack(kept), rows)
