"""`rcdm evaluate`: ranks, distances and distributions of a model's samples.

Knows nothing about formulas (`rcdm_fast/evaluation.py` and the modules it names).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import PER_SOURCE, SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rcdm_fast.data.image_set import ImageSet
    from rcdm_fast.encoders import Encoder
    from rcdm_fast.encoders.features import FeatureSpace
    from rcdm_fast.evaluation import EvaluateConfig, Faithfulness
    from rcdm_fast.model import Model
    from rcdm_fast.unranked import Unranked

FeatureSpec = Annotated[
    str | None,
    typer.Option(
        help="Where distributions are compared: model (its own encoder), an encoder as --encoder takes, or none. "
        "Default: model, if there are enough images."
    ),
]
InceptionFile = Annotated[
    Path | None, typer.Option(help="Inception weights (pt_inception-2015-12-05-6726825d.pth): FID and Inception Score.")
]
RankBy = Annotated[
    str | None,
    typer.Option(
        "--rank-by",
        help="Encoder in whose space sources are ranked, as --encoder takes. Default: the model's own; one for all "
        "compares models of several encoders.",
    ),
]
ProbeSpec = Annotated[
    str | None,
    typer.Option(
        "--probe", help="Read the sources' classes off samples, by a linear probe on this encoder (as --encoder takes)."
    ),
]
ProbeData = Annotated[
    str | None, typer.Option("--probe-data", help="Labeled images that the probe is fitted on, as --data takes.")
]
Denoising = Annotated[
    bool,
    typer.Option(
        "--denoising",
        help="Also the error of x0 predicted from one noisy image, by noise level. Higher than on training images "
        "means that those were memorized.",
    ),
]
NpzFile = Annotated[Path | None, typer.Option("--npz", help="Write the samples to this file, for ADM's evaluation.")]
ReferenceFile = Annotated[
    Path | None,
    typer.Option("--reference-npz", help="Real images (arr_0) for distributions, instead of the gallery."),
]


def evaluate(
    model: common.ModelArgument,
    data: Annotated[str, common.data("Sources and gallery")],
    sources: Annotated[int, typer.Option(help="Source images; 0: 256, or all there are.")] = 0,
    per: common.Per = PER_SOURCE,
    gallery: Annotated[int, typer.Option(help="Real representations that a sample is ranked among; 0: all.")] = 0,
    steps: common.Steps = str(SamplingConfig.steps),
    solver: common.SolverName = SamplingConfig.solver,
    eta: common.Eta = SamplingConfig.eta,
    guidance: common.Guidance = SamplingConfig.guidance,
    guide: common.GuideName = None,
    seed: common.Seed = SamplingConfig.seed,
    encoder: common.EncoderSpec = None,
    representations: common.Representations = None,
    rank_by: RankBy = None,
    probe: ProbeSpec = None,
    probe_data: ProbeData = None,
    features: FeatureSpec = None,
    inception: InceptionFile = None,
    reference_npz: ReferenceFile = None,
    npz: NpzFile = None,
    denoising: Denoising = False,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    json: common.JsonFile = None,
) -> None:
    """Measure how well samples keep their representation.

    And how like real images they are: mean rank and MRR of the source image beside chance and beside a blurred
    source, distances beside those of real neighbors, variance over samples, and distances of distributions
    (Fréchet, kernel, precision and recall, density and coverage) in a stated feature space. A model of representations
    without an encoder is measured with --representations, as far as that goes, and by ranks with --rank-by.

    Example: rcdm evaluate cifar10-simclr-wide --data cifar10/test --per 4 --gallery 10000 --json mrr.json
    """
    from rcdm_fast import encoders, outputs, storage, unranked
    from rcdm_fast import evaluation as measures
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data import sample_files
    from rcdm_fast.data.image_set import check_classes, evenly
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.denoising import x0_errors

    if inception is not None and features is not None:
        raise ConfigError("--inception and --features both name a feature space; give one")
    if (probe is None) != (probe_data is None):
        raise ConfigError("--probe names an encoder and --probe-data what the probe is fitted on; give both or neither")
    drawing = common.sampling(per, steps, solver, seed, eta, guidance)
    settings = measures.EvaluateConfig(sources=sources, gallery=gallery, **vars(drawing))
    common.check_writable(json, npz)
    common.check_alone(precision, [guide] if guide else [])
    reference = sample_files.read_npz(reference_npz) if reference_npz is not None else None
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
    weaker = common.open_guide(guide, loaded, engine, precision)
    loaded.check_guidance(guidance, weaker)
    space = _space(loaded, features, inception)
    if reference is not None and space is None:
        raise ConfigError(
            "--reference-npz is what distributions are compared with, and no space to compare them in is named: give "
            "one with --features or --inception"
        )
    images = open_data(data, loaded.image_size)
    if probe is not None and probe_data is not None:
        reader, known = encoders.build(probe, loaded.device), open_data(probe_data, loaded.image_size)
        check_classes(images, known)
    judge = None if rank_by is None else encoders.build(rank_by, loaded.device)
    given = _without_encoder(loaded, representations, features, images)
    h = given if judge is None else None  # what nobody ranks
    size, count = measures.counts(images, settings)
    if npz is not None:
        storage.check_writable(npz, count * per * 3 * loaded.image_size**2)
    if space is not None:
        try:
            measures.check_distribution(size, count, None if reference is None else len(reference))
        except ConfigError as error:
            if features is not None or inception is not None or reference is not None:
                raise
            common.report(f"left out: {error}")
            space = None
    with common.ProgressBar(count) as progress:
        shown = lambda done, total: progress(done, total, 0.0)  # noqa: E731
        if h is not None:
            alone = unranked.draw(loaded, images, h, settings, shown, weaker)
        else:
            own = None if given is None else given[evenly(size, len(images))]
            drawn = measures.draw(loaded, images, settings, shown, weaker, own, judge)
    if npz is not None:
        made = alone if h is not None else drawn
        outputs.keep(npz, lambda file: sample_files.write_npz(file, made.images.flatten(0, 1), made.labels))
        common.report(f"{npz}: {count * per} samples")
    if h is not None:
        read = None if probe is None else (reader, known)
        found = unranked.measure(
            loaded, alone, settings, space=space, reference=reference, probe=read, denoising=denoising
        )
        common.report("\n".join(_table_without(found)))
        common.write_json(json, {**dataclasses.asdict(found), **_about(loaded, images, settings, judge)})
        return
    result = measures.faithfulness(drawn, settings)
    if space is not None:
        result = dataclasses.replace(result, distribution=measures.compare(drawn, space, seed, reference))
    if probe is not None:
        result = dataclasses.replace(result, recognized=measures.recognition(drawn, reader, known))
    if denoising:
        of_sources = None if own is None else own[drawn.sources]
        errors = x0_errors(loaded, drawn.real, drawn.sources, seed=seed, h=of_sources)
        result = dataclasses.replace(result, x0_errors=errors)
    common.report("\n".join(table(result)))
    common.write_json(json, {**dataclasses.asdict(result), **_about(loaded, images, settings, judge)})


def _about(model: Model, images: ImageSet, settings: EvaluateConfig, judge: Encoder | None) -> dict[str, Any]:
    """What a file of numbers says of how they were made."""
    from rcdm_fast import provenance
    from rcdm_fast.diffusion import auto

    made_by = provenance.made_by([model], {"data": images})
    if judge is not None:
        made_by["ranked_by"] = {"source": judge.config.source, "hash": provenance.encoder_hash(judge)}
    return {"settings": dataclasses.asdict(auto.settled(model.config, settings)), "made_by": made_by}


def table(result: Faithfulness) -> list[str]:
    """Lines for a reader: ranks, distances, distributions."""
    from rcdm_fast.metrics import distributions

    rows = [("MRR", result.mrr)]
    if result.blurred_mrr is not None:
        rows.append(("  of the source, blurred by 1 px", result.blurred_mrr))
    rows.append(("mean rank", result.mean_rank))
    if result.blurred_mean_rank is not None:
        rows.append(("  of the source, blurred by 1 px", result.blurred_mean_rank))
    rows.append(("squared distance to the source", result.distance))
    if result.blurred_distance is not None:
        rows.append(("  of the source, blurred by 1 px", result.blurred_distance))
    for k, interval in result.nearest_real.items():
        rows.append((f"  of its real neighbor number {k}", interval))
    if result.variance is not None:
        rows.append(("variance of a pixel over samples", result.variance))
    rows += [(f"squared error of x0 at t = {t}", each) for t, each in result.x0_errors.items()]
    if result.recognized is not None:
        rows.append(("class read off samples", result.recognized.samples))
        rows.append(("  off the sources themselves", result.recognized.sources))
    lines = [f"{label:34s} {each.text('.4g')}" for label, each in rows]
    chance = f"MRR {result.chance_mrr:.3g}, mean rank {result.chance_mean_rank:.6g} of {result.gallery}"
    lines.append(f"{'chance':34s} {chance}")
    lines.append(f"{'ranked by':34s} {result.ranked_by}")
    if result.blurred_mrr is not None:
        lines.append("MRR depends on the encoder that ranks: numbers of different ones are not to be compared")
    if result.recognized is not None:
        lines.append(f"{'classes are read by a probe on':34s} {result.recognized.encoder}")
    return lines if result.distribution is None else lines + distributions.table(result.distribution)


def _without_encoder(
    model: Model, representations: Path | None, features: str | None, images: ImageSet
) -> Tensor | None:
    """The representations of the images, if the model has no encoder. Raises `ConfigError`."""
    from rcdm_fast.config import ConfigError

    if representations is None:
        return None
    if model.encoder is not None:
        raise ConfigError("--representations are for a model without an encoder; this one has its own")
    if features == "model":
        raise ConfigError("--features model needs the model's encoder; give one with --encoder")
    return common.aligned(representations, images)


def _table_without(result: Unranked) -> list[str]:
    from rcdm_fast.metrics import distributions

    rows = [("variance of a pixel over samples", result.variance)]
    rows += [(f"squared error of x0 at t = {t}", each) for t, each in result.x0_errors.items()]
    if result.recognized is not None:
        rows.append(("class read off samples", result.recognized.samples))
        rows.append(("  off the sources themselves", result.recognized.sources))
    lines = [f"{label:34s} {each.value:.4g}  [{each.low:.4g}, {each.high:.4g}]" for label, each in rows if each]
    if result.recognized is not None:
        lines.append(f"{'classes are read by a probe on':34s} {result.recognized.encoder}")
    if result.distribution is not None:
        lines += distributions.table(result.distribution)
    return lines + [
        f"left out, for it needs the encoder, or another one to --rank-by: {each}" for each in result.left_out
    ]


def _space(model: Model, features: str | None, inception: Path | None) -> FeatureSpace | None:
    from rcdm_fast import encoders
    from rcdm_fast.encoders import features as spaces

    if inception is not None:
        return spaces.of_inception(inception, model.device)
    if features == "none":
        return None
    if features in (None, "model"):
        return None if model.encoder is None else spaces.of_encoder(model.encoder)
    return spaces.of_encoder(encoders.build(features, model.device))
