"""`rcdm bench`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import PER_VARIANCE, SamplingConfig

if TYPE_CHECKING:
    from rcdm_fast.metrics.intervals import Interval
    from rcdm_fast.solver_quality import Quality, SolverCase
    from rcdm_fast.throughput import Case


def bench(
    model: common.ModelArgument,
    steps: Annotated[str, typer.Option(help="Step counts, with commas or semicolons between.")] = "10,25,50,100",
    solver: Annotated[
        str, typer.Option(help="Solvers, separated by commas: ddim, ancestral, dpmpp_2m...; all.")
    ] = SamplingConfig.solver,
    engine: Annotated[
        str, typer.Option(help="Engines, separated by commas; all: every one that can run here.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="Precisions, separated by commas: fp32, bf16, fp16, auto, fp8=FILE (rcdm export); int8: rcdm compare."
        ),
    ] = "auto",
    batch_size: common.BatchSize = 16,
    images: Annotated[int, typer.Option(help="Images per timed run, a multiple of the batch. Default: one batch.")] = 0,
    rounds: Annotated[int, typer.Option(help="At most so many timed runs of each.")] = 5,
    budget: Annotated[float, typer.Option(help="Seconds after which nothing more is begun.")] = 60.0,
    published: Annotated[bool, typer.Option(help="Measure the published recipe beside it.")] = True,
    data: Annotated[str | None, common.data("Also measure what solvers do to samples, on these")] = None,
    sources: Annotated[int, typer.Option(help="With --data: source images; 0: 256, or all there are.")] = 64,
    per: common.Per = PER_VARIANCE,
    gallery: Annotated[int, typer.Option(help="With --data: real images to rank among; 0: all.")] = 0,
    references: Annotated[
        int, typer.Option(help="With --data: sources whose samples are held against the end of the flow.")
    ] = 20,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="With --data: solver and steps that the others are held against, such as ancestral:100, those of the "
            "published recipe.  [default: ddim:50]",
            show_default=False,
        ),
    ] = None,
    seed: common.Seed = SamplingConfig.seed,
    plot: Annotated[Path | None, typer.Option(help="With --data: an SVG of the numbers against evaluations.")] = None,
    flags: common.Flags = None,
    encoder: common.EncoderSpec = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Measure images per second, beside the published recipe.

    Both in the same run, from representation to image. With --data also what solvers and steps do to samples, beside
    DDIM with 50 steps (--baseline) from the same noise: the distance from where the flow leads, the MRR of the source,
    variance over samples, and the Fréchet distance.

    The published recipe is plain PyTorch in fp32, 100 ancestral steps, one representation at a time. "sampler" is the
    fraction of the time that is not spent in network evaluations.

    Example: rcdm bench cifar10-simclr-trunk --steps 10,50 --engine all --precision fp32,bf16 --json rates.json
    Example: rcdm bench cifar10-simclr-trunk --solver all --steps 5,10,25 --data cifar10/test --plot solvers.svg
    """
    from rcdm_fast import engines, provenance, solver_quality, storage, throughput
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.report import solver_plot

    if plot is not None and data is None:
        raise ConfigError("--plot shows what is measured with --data; give both")
    if baseline is not None and data is None:
        raise ConfigError("--baseline is for what is measured with --data; give both")
    for each in _listed(precision):
        engines.parse_with_file(each)
    common.check_writable(json, plot)
    loaded = common.open_model(model, flags, encoder, device, "auto", "auto", sha256)
    counts = [common.whole_number(each) for each in _listed(steps)]
    ways, left_out = solver_quality.cases(loaded, _listed(solver), counts)
    for line in left_out:
        common.report(f"left out    {line}")
    first = None if baseline is None else solver_quality.baseline(loaded, baseline)
    timed = _cases(loaded.device, engine, precision, ways)
    plan = throughput.Plan(timed, batch_size, images, budget, rounds, published)
    real = None if data is None else open_data(data, loaded.image_size)
    if real is not None:
        quality = solver_quality.QualityConfig(sources, per, gallery, references, seed)
        solver_quality.check(loaded, real, quality)

    from tqdm import tqdm

    made_by = provenance.made_by([loaded], {"data": real})
    with tqdm(total=100, unit="%", disable=not common.interactive(), leave=False) as bar:

        def report(rows: list[dict[str, Any]], fraction: float) -> None:
            common.write_json(json, {"rows": rows, "made_by": made_by})
            bar.update(round(100 * fraction) - bar.n)

        rows = throughput.measure(loaded, plan, report)
    common.report("\n".join(table(rows)))
    if real is not None:
        with common.ProgressBar(100, fraction=True) as progress:

            def done(found: list[Quality], fraction: float) -> None:
                common.write_json(
                    json, {"rows": rows, "quality": [_numbers(each) for each in found], "made_by": made_by}
                )
                progress(round(100 * fraction), 100, 0.0)

            found = solver_quality.measure(loaded, real, ways, quality, done, first)
        common.report("\n".join(quality_table(found)))
        common.report(f"images of these drawn by {loaded.engine.describe()}")
        if plot is not None:
            storage.write_text(plot, solver_plot.svg(found))
    if any(row.get("red") for row in rows):
        raise typer.Exit(1)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as lines of text."""
    title = f"{'engine':18s} {'precision':9s} {'solver':12s} {'steps':>11s}"
    lines = [f"{title} {'images/s':>10s}  {'p50 s':>7s} {'sampler':>8s}  times published"]
    for row in rows:
        head = f"{row['engine']:18s} {row['precision']:9s} {row['solver']:12s} {row['steps']:>11s}"
        if "why_not" in row:
            lines.append(f"{head} not measured: {row['why_not']}")
            continue
        fraction = f"{row['sampler_percent']:7.2f}%" if "sampler_percent" in row else " " * 8
        ratio = f"{row['times_published']:8.2f}" if "times_published" in row else ""
        lines.append(f"{head} {row['images_per_s']:10.3f}  {row['p50_ms'] / 1e3:7.3f} {fraction}  {ratio}")
    if rows:
        versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
        lines.append(f"batch {rows[0]['batch']}, {rows[0]['threads']} threads, {rows[0]['device']}; {versions}")
    return lines


def _numbers(row: Quality) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(row).items() if name != "found"}


def quality_table(rows: list[Quality]) -> list[str]:
    """Rows as lines of text."""

    def said(value: Interval | None) -> str:
        return "" if value is None else value.text()

    wide = max([12, *(len(row.steps) for row in rows)])
    title = f"{'solver':12s} {'steps':>{wide}s} {'NFE':>4s}  {'distance from the flow':24s}{'MRR':24s}"
    lines = [f"{title}{'change of MRR':26s}{'variance, first = 1':24s}Fréchet"]
    for row in rows:
        head = f"{row.solver:12s} {row.steps:>{wide}s} {row.nfe:4d}  {said(row.error):24s}{said(row.mrr):24s}"
        frechet = "" if row.frechet is None else f"{row.frechet:.3g}"
        lines.append(f"{head}{said(row.mrr_change):26s}{said(row.variance):24s}{frechet}")
    return lines


def _cases(device: Any, engine: str, precision: str, ways: list[SolverCase]) -> tuple[Case, ...]:
    """Every combination of the lists, the quick ones first. ``all`` leaves out engines that cannot run here."""
    from rcdm_fast import engines
    from rcdm_fast.throughput import Case

    precisions = _listed(precision)
    listed = _listed(engine)
    pairs = [(name, each) for name in listed if name != "all" for each in precisions]
    if "all" in listed:
        wanted = [each if each != "auto" else "fp32" for each in precisions]
        for name in engines.ENGINES:
            for each in wanted:
                reasons = engines.reasons_unavailable(name, device, engines.parse(each)[0])  # type: ignore[arg-type]
                if not reasons:
                    pairs += [(name, each)] if (name, each) not in pairs else []
                else:
                    common.report(f"left out    {name} {each}: {'; '.join(reasons)}")
    return tuple(Case(*pair, way.solver, way.steps) for way in ways for pair in pairs)


def _listed(text: str) -> list[str]:
    """Parts between commas, or between semicolons if there are any.

    Raises:
        ConfigError: timesteps that are named one by one among others, between commas.
    """
    from rcdm_fast.config import ConfigError

    if ";" not in text and "at:" in text:
        if not text.strip().startswith("at:") or text.count("at:") > 1:
            raise ConfigError(f"{text!r}: separate timesteps that are named from others by semicolons")
        return [text.strip()]
    return [part.strip() for part in text.split(";" if ";" in text else ",") if part.strip()]
