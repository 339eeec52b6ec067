"""`rcdm compare`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import PER_SOURCE, STEPS, SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rcdm_fast.data.image_set import ImageSet
    from rcdm_fast.engine_comparison import Case, Drift, Settings
    from rcdm_fast.metrics.intervals import Interval
    from rcdm_fast.model import Model

SHOWN = 8  # images of each case on the sheet


def compare(
    model: common.ModelArgument,
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos whose representations are drawn.")] = None,
    engines: Annotated[
        str,
        typer.Option("--engines", help="ENGINE[:PRECISION[=FILE]], as native:bf16,eager:fp8=FILE."),
    ] = "native:fp32,native:bf16",
    out: Annotated[Path | None, common.out("Sheet of the same images by every engine.")] = None,
    steps: common.Steps = str(STEPS),
    solver: common.SolverName = SamplingConfig.solver,
    per: common.Per = PER_SOURCE,
    seed: common.Seed = SamplingConfig.seed,
    batch_size: common.BatchSize = 8,
    rounds: Annotated[int, typer.Option(help="Rounds in which one evaluation of each is timed.")] = 5,
    data: Annotated[str | None, common.data("Also the MRR of the source, on these")] = None,
    sources: Annotated[int, typer.Option(help="Source images for the MRR; 0: 256, or all there are.")] = 0,
    gallery: Annotated[int, typer.Option(help="Images that a sample is ranked among; 0: all.")] = 0,
    min_psnr: Annotated[float, typer.Option(help="Fail below this PSNR of the final images, in dB.")] = 0.0,
    max_mrr_loss: Annotated[float, typer.Option(help="Fail if the MRR falls by more than this, in percent.")] = 100.0,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Compare engines and precisions with plain PyTorch in fp32.

    On the same noise: drift, speed, memory, size. Without photos the representations are drawn from a normal
    distribution, which a trained model has not seen.

    Example: rcdm compare cifar10-simclr-trunk photo.jpg --engines native:bf16,openvino:bf16 --out compare.png
    """
    import torch

    import rcdm_fast
    from rcdm_fast import engine_comparison, outputs, provenance
    from rcdm_fast.data.sources import open_data

    cases = [engine_comparison.Case.parse(text) for text in engines.split(",")]
    common.check_writable(json)
    if out is not None:
        outputs.rows_of_sheet(out, SHOWN, 2 * len(cases), cell=96)
    drawing = common.sampling(per, steps, solver, seed)
    settings = engine_comparison.Settings(batch_size=batch_size, rounds=rounds, **vars(drawing))
    loaded = rcdm_fast.load(model, flags, encoder, device, "eager", "fp32", sha256=sha256)
    images = None if data is None else open_data(data, loaded.image_size)
    h, label = _conditions(loaded, photos or [])
    with torch.random.fork_rng(devices=[]):
        found = engine_comparison.compare(loaded, cases, h, settings, label=label, report=common.report)
    mrr = {} if images is None else _mrr(loaded, [each.case for each in found], images, sources, gallery, settings)
    common.report("\n".join(table(found, mrr)))
    rows = [{**each.row(), **_mrr_row(mrr, each.case)} for each in found]
    common.write_json(json, {"rows": rows, "made_by": provenance.made_by([loaded], {"data": images})})
    if out is not None:
        _sheet(found, out)
    failures = list(_failures(found, mrr, min_psnr, max_mrr_loss))
    if failures:
        raise RuntimeError("; ".join(failures))


def _conditions(model: Model, photos: list[Path]) -> tuple[Tensor | None, Tensor | None]:
    import torch

    unet = model.config.unet
    if photos:
        return model.encode(photos).flatten(1), None
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(min(2, unet.num_classes), device=model.device) if unet.num_classes else None
    if not unet.representation_dim:
        return None, label
    rows = 2 if label is None else len(label)
    return torch.randn(rows, unet.representation_dim, generator=generator).to(model.device), label


def _mrr(
    model: Model, cases: list[Case], images: ImageSet, sources: int, gallery: int, drawn: Settings
) -> dict[Case, tuple[Interval, Interval]]:
    """MRR of the source image for every case, and its change from the first one's, from the same noise."""
    from rcdm_fast import engine_comparison
    from rcdm_fast.evaluation import EvaluateConfig, evaluate, mrr_change

    config = EvaluateConfig(sources=sources, gallery=gallery, **vars(drawn.changed()))
    found = {}
    for case in cases:
        common.report(f"{case}: ranking")
        found[case] = evaluate(engine_comparison.with_engine(model, case, model.encoder), images, config)
    return {case: (each.mrr, mrr_change(each, found[cases[0]])) for case, each in found.items()}


def _mrr_row(mrr: Mapping[Case, tuple[Interval, Interval]], case: Case) -> dict[str, object]:
    value, change = mrr.get(case, (None, None))
    names = (("mrr", value), ("mrr_change", change))
    return {name: None if each is None else dataclasses.asdict(each) for name, each in names}


def table(found: list[Drift], mrr: Mapping[Case, tuple[Interval, Interval]]) -> list[str]:
    """One line per case, the reference first."""
    rows = [
        (
            "engine",
            "precision",
            "step error",
            "first step",
            "trajectory",
            "PSNR dB",
            "MRR",
            "change",
            "ms",
            "times",
            "MB",
        )
    ]
    for each in found:
        rank, change = mrr.get(each.case, (None, None))
        rows.append(
            (
                each.case.engine,
                _precision(each),
                f"{max(each.step_errors):.1e}",
                f"{each.step_errors[0]:.1e}",
                f"{each.path_errors[-1]:.1e}",
                "equal" if math.isinf(each.psnr_db) else f"{each.psnr_db:.1f}",
                "" if rank is None else f"{rank.value:.4f}",
                "" if change is None or each is found[0] else _percent(change),
                f"{each.times.p50_ms:.1f}",
                f"{each.speedup:.2f}",
                _sizes(each),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def _precision(each: Drift) -> str:
    """With 12 hex digits of the digest of the file that it was calibrated in, for there may be several."""
    return " ".join([each.case.precision, *(digest[:12] for digest in each.digests[:1])])


def _percent(change: Interval) -> str:
    return change.text("+.1f", 100, " %")


def _sizes(each: Drift) -> str:
    """Memory that the engine took, and its files."""
    memory = "" if each.memory_bytes is None else f"{each.memory_bytes / 1e6:.0f}"
    return f"{memory} + {each.file_bytes / 1e6:.1f} of files" if each.file_bytes else memory


def _failures(
    found: list[Drift], mrr: Mapping[Case, tuple[Interval, Interval]], min_psnr: float, max_mrr_loss: float
) -> list[str]:
    failures = [
        f"{each.case}: PSNR {each.psnr_db:.1f} dB is below {min_psnr:g}" for each in found if each.psnr_db < min_psnr
    ]
    for case, (value, change) in mrr.items():
        if -100 * change.value > max_mrr_loss:
            failures.append(f"{case}: MRR {value.value:.4f} changed by {_percent(change)}; {max_mrr_loss:g} % allowed")
    return failures


def _sheet(found: list[Drift], out: Path) -> None:
    """A row of images per case; below each but the first, eight times its distance from the first, around gray."""
    from rcdm_fast import outputs
    from rcdm_fast.images import image_sheet, to_pil

    rows, titles = [], []
    for each in found:
        rows.append([to_pil(image) for image in each.images[:SHOWN]])
        titles.append(f"{each.case.engine} {_precision(each)}")
        if each is not found[0]:
            apart = (8 * (each.images[:SHOWN] - found[0].images[:SHOWN])).clamp(-1, 1)
            rows.append([to_pil(image) for image in apart])
            titles.append("difference x8")
    outputs.write_image(image_sheet(rows, cell=96, row_titles=titles), out)
