"""What a solver and its number of steps do to samples: what `rcdm bench --data` measures.

All cases draw the same sources with the same noise. Each is measured by

* its distance from where the flow leads, x0 clipped: the relative L2 distance of an image to the reference, a
  second-order solver (`REFERENCE`) in as many evaluations as the schedule has timesteps, from the same noise;
* the MRR of the source, and its change from the first case, in pairs: `BASELINE` (or as many steps as there are) unless
  another one is named;
* the variance over samples of one representation, as a fraction of the first case's, in pairs;
* the Fréchet distance to real images in the model's own encoder.

Solvers with fresh noise in every step do not follow the flow, so they have no distance from it.

Knows nothing about how numbers are shown, or about engines (`throughput.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rcdm_fast import evaluation, host
from rcdm_fast.checks import Checked, ConfigError, Count, CountOrNone, Resamples, Seed
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.registry import SOLVERS
from rcdm_fast.diffusion.sampling_config import PER_VARIANCE, SamplingConfig
from rcdm_fast.evaluation import Drawn, EvaluateConfig, Faithfulness
from rcdm_fast.images import from_uint8, to_uint8
from rcdm_fast.metrics import distances, distributions, intervals
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model

REFERENCE = "dpmpp_2m"


class SolverCase(NamedTuple):
    """A solver and its steps, as `Model.sample` takes them."""

    solver: str
    steps: int | str


BASELINE = SolverCase("ddim", 50)


@dataclass(frozen=True)
class QualityConfig(Checked):
    """What to measure on.

    Attributes:
        sources, per, gallery: as in `EvaluateConfig`; at least two samples of each, for their variance.
        references: sources, the first samples of which are held against the reference; it is costly. At most all.
        seed, batch_size, resamples: as there.
    """

    sources: CountOrNone = 64
    per: Count = PER_VARIANCE
    gallery: CountOrNone = 0
    references: Count = 20
    seed: Seed = SamplingConfig.seed
    batch_size: Count = 64
    resamples: Resamples = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per < PER_VARIANCE:
            raise ConfigError("variance over samples needs at least 2 of each source")

    def of(self, case: SolverCase) -> EvaluateConfig:
        """How a case is drawn and ranked."""
        own = {name: value for name, value in vars(self).items() if name != "references"}
        return EvaluateConfig(steps=case.steps, solver=case.solver, **own)


@dataclass(frozen=True)
class Quality:
    """What was measured of a case.

    Attributes:
        solver, steps: the case.
        nfe: network evaluations of an image.
        error: relative L2 distance to the reference; None for solvers with fresh noise.
        mrr: of the source.
        mrr_change: from the first case; -0.02 is 2 % less.
        variance: over the samples of a source, divided by the first case's.
        frechet: distance to the gallery in the model's encoder; None for too few images.
    """

    solver: str
    steps: str
    nfe: int
    error: Interval | None
    mrr: Interval
    mrr_change: Interval
    variance: Interval
    frechet: float | None
    found: Faithfulness = field(repr=False)


def cases(model: Model, solvers: Sequence[str], steps: Sequence[int | str]) -> tuple[list[SolverCase], list[str]]:
    """All combinations that there are, and why others are not. ``all`` among the solvers means every one.

    Raises:
        ConfigError: a combination that was asked for by name is none.
    """
    every = "all" in solvers
    own = (*[registry.FITTED] * bool(model.config.fitted), *[registry.STUDENT] * bool(model.config.student_steps))
    known, left_out = [], []
    for count in steps:
        for solver in (*SOLVERS, *own) if every else solvers:
            try:
                chosen = registry.choose(model.config, solver, count)
            except ConfigError as error:
                if not every:
                    raise
                left_out.append(f"{solver} {count}: {error}")
            else:
                known.append(SolverCase(chosen.name, count))
    return known, left_out


def check(model: Model, data: ImageSet, config: QualityConfig) -> None:
    """Raise `ConfigError` if these cannot be measured on."""
    if model.encoder is None:
        raise ConfigError("the quality of samples is measured by the model's encoder; give one with --encoder")
    evaluation.counts(data, config.of(BASELINE))


def baseline(model: Model, text: str | None = None) -> SolverCase:
    """What the others are held against: what `text` says, such as ``ancestral:100``, or `BASELINE`.

    Raises:
        ConfigError: not SOLVER:STEPS, or none that the model can be asked for.
    """
    if text is None:
        return SolverCase(BASELINE.solver, min(int(BASELINE.steps), model.config.schedule.diffusion_steps))
    solver, _, steps = (part.strip() for part in text.partition(":"))
    if not solver or not steps:
        raise ConfigError(f"a baseline is a solver and its steps, such as ancestral:100, got {text!r}")
    chosen = registry.choose(model.config, solver, steps)
    return SolverCase(chosen.name, int(steps) if steps.isdecimal() else steps)


@host.guarded(gradients=True, random=True)
def measure(
    model: Model,
    data: ImageSet,
    wanted: Sequence[SolverCase],
    config: QualityConfig,
    report: Callable[[list[Quality], float], None] | None = None,
    first_case: SolverCase | None = None,
) -> list[Quality]:
    """Draw and measure every case, the one that the others are held against first.

    Args:
        model: a model with an encoder.
        data: sources and gallery, of the size that the model makes.
        wanted: cases.
        config: sizes.
        report: called with all rows so far and the fraction of the evaluations that is done, in [0,1].
        first_case: what the others are held against; None: `baseline`.

    Raises:
        ConfigError: no encoder, too few images, or a case that the model cannot be asked for.
    """
    check(model, data, config)
    first_case = first_case or baseline(model)
    everything = [first_case, *(case for case in wanted if case != first_case)]
    schedule = model.config.schedule
    counts = [registry.choose(model.config, solver, steps).evaluations for solver, steps in everything]
    _, sources = evaluation.counts(data, config.of(BASELINE))
    references = min(config.references, sources)
    costs = [references * schedule.diffusion_steps, *(count * sources * config.per for count in counts)]
    gallery, reference = None, None
    done, rows, first = 0, list[Quality](), None
    for case, nfe, cost in zip(everything, counts, costs[1:], strict=True):
        drawn = evaluation.draw(model, data, config.of(case), gallery=gallery)
        gallery = drawn.gallery
        if reference is None:
            reference = _reference(model, drawn, references, config)
            done += costs[0]
        row = _row(case, nfe, drawn, reference, first, config)
        first = first or (row.found, evaluation.variances(drawn.images))
        rows.append(row)
        done += cost
        if report is not None:
            report(rows, done / sum(costs))
    return rows


def _reference(model: Model, drawn: Drawn, count: int, config: QualityConfig) -> Tensor:
    """Where the flow leads from the first noise of some sources; uint8 [count,3,H,W]."""
    chosen = drawn.sources[evenly(count, len(drawn.sources))]
    made = model.sample(
        drawn.gallery[chosen],
        items=chosen,
        per=1,
        steps=f"uniform{model.config.schedule.diffusion_steps}",
        solver=REFERENCE,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    return to_uint8(made[:, 0]).cpu()


def _row(
    case: SolverCase,
    nfe: int,
    drawn: Drawn,
    reference: Tensor,
    first: tuple[Faithfulness, np.ndarray] | None,
    config: QualityConfig,
) -> Quality:
    found = evaluation.faithfulness(drawn, config.of(case))
    variances = evaluation.variances(drawn.images)
    base, usual = first or (found, variances)
    error = None
    if case.solver in registry.OF_MODELS or not SOLVERS[case.solver].fresh:
        chosen = drawn.images[evenly(len(reference), len(drawn.sources)), 0]
        want = from_uint8(reference).flatten(1)
        apart = (from_uint8(chosen).flatten(1) - want).norm(dim=1) / want.norm(dim=1)
        error = intervals.bootstrap(apart.double().numpy(), config.resamples, np.random.default_rng(config.seed))
    return Quality(
        case.solver,
        str(case.steps),
        nfe,
        error,
        found.mrr,
        evaluation.mrr_change(found, base, config.resamples, config.seed),
        intervals.ratio(variances, usual, config.resamples, np.random.default_rng(config.seed)),
        _frechet(drawn),
        found,
    )


def _frechet(drawn: Drawn) -> float | None:
    samples = drawn.representations.flatten(0, 1)
    try:
        distributions.check_counts(len(drawn.gallery), len(samples))
    except ConfigError:
        return None
    return distances.frechet_distance(drawn.gallery, samples)
