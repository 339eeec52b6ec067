"""`rcdm generate`: many images into shards with a manifest, resumable; and the check of what is there.

Exit codes beside the usual ones: 3, finished but some items were quarantined; 1, verification found faults; 4, it found
none, and the job is not finished.

Knows nothing about how jobs are run (`jobs/`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from rcdm_fast.jobs.ledger import Summary
    from rcdm_fast.jobs.local import Progress, Report

QUARANTINED = 3
UNFINISHED = 4


def generate(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Images, representations or labels: a folder, shards (.tar), .npy, .npz, .safetensors, .parquet, "
            ".arrow, hf:NAME_OR_FOLDER, world:shapes?count=100; or a number of items, for an unconditional model.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, common.out("The job's folder; resumed if it is there.")] = Path("job"),
    model: common.ModelName = common.DEFAULT_MODEL,
    per: common.Per = SamplingConfig.per,
    steps: common.Steps = str(SamplingConfig.steps),
    solver: common.SolverName = SamplingConfig.solver,
    eta: common.Eta = SamplingConfig.eta,
    guidance: common.Guidance = SamplingConfig.guidance,
    seed: common.Seed = SamplingConfig.seed,
    format: Annotated[str, typer.Option("--format", help="webdataset, folder, npz or parquet.")] = "webdataset",
    encoding: Annotated[str, typer.Option(help="Of single images: png, jpeg or webp.")] = "png",
    quality: Annotated[int, typer.Option(help="Of jpeg and webp; webp at 100 is lossless.")] = 95,
    shard_images: Annotated[int, typer.Option(help="Most images in a shard.")] = 1024,
    batch_size: common.BatchSizeIfAny = None,
    threads: Annotated[int, typer.Option(help="Threads that read, and as many that encode images.")] = 4,
    retry: Annotated[bool, typer.Option("--retry", help="Draw the shards of quarantined items again.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only check what is there: checksums, every image.")] = False,
    ray: Annotated[str | None, typer.Option(help="Run on Ray: a cluster's address, or local.")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray actors; default one for each GPU.")] = None,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    json: common.JsonFile = None,
) -> None:
    """Draw samples of many items into shards with a manifest.

    Stop it at any time, the same command goes on. Exit code 3: finished, but some items could not be read or drawn
    (quarantine.jsonl says why).

    Example: rcdm generate photos/ --model cifar10-simclr-wide --per 100 --out job
    """
    from rcdm_fast.config import ConfigError

    common.check_writable(json)
    if verify:
        _verify(out, json)
        return
    if source is None:
        raise ConfigError("generate needs items: a folder, a file or a number (or --verify to check a job)")
    if workers is not None and ray is None:
        raise ConfigError("--workers are Ray's: give --ray, too (--threads read and encode images without it)")
    from rcdm_fast.jobs.settings import JobConfig, RunOptions

    config = JobConfig(
        **vars(common.sampling(per, steps, solver, seed, eta, guidance)),
        format=format,  # type: ignore[arg-type]
        encoding=encoding,  # type: ignore[arg-type]
        quality=quality,
        shard_images=shard_images,
    )
    options = RunOptions(batch_size, threads, retry)
    with _progress() as report:
        if ray is None:
            from rcdm_fast.jobs import local

            loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
            summary = local.run(loaded, source, out, config, options, report)
        else:
            from rcdm_fast.jobs import cluster

            spec = cluster.ModelSpec(model, str(flags) if flags else None, encoder, device, engine, precision, sha256)
            summary = cluster.run(spec, source, out, config, options, address=ray, workers=workers, report=report)
    _tell(summary, out, json)


def _tell(summary: Summary, out: Path, json: Path | None) -> None:
    common.report(
        f"{out}: {summary.images} of {summary.wanted} images in {summary.shards} shards, "
        f"{summary.quarantined} items quarantined"
    )
    common.write_json(json, {**vars(summary), "complete": summary.complete})
    if summary.quarantined:
        common.report(f"{out / 'quarantine.jsonl'} says why; --retry draws their shards again")
        raise typer.Exit(QUARANTINED)


def _verify(out: Path, json: Path | None) -> None:
    from rcdm_fast.jobs.verify import verify

    with common.ProgressBar(1) as progress:
        found = verify(out, lambda done, total: progress(done, total, 0.0))
    if found.complete:
        state = "complete"
    elif found.missing_shards:
        state = f"{found.missing_shards} shards not drawn yet"
    elif not found.sound:
        state = "all shards drawn, but not all as they were"
    else:
        state = "all shards are drawn; the job run again writes manifest.jsonl and what else is made of all of them"
    common.report(f"{out}: {found.images} of {found.wanted} images with true checksums, {state}")
    common.report(f"{found.quarantined} items quarantined, {found.faults} faults")
    for line in found.examples:
        common.report(f"  {line}")
    common.write_json(json, {**vars(found), "sound": found.sound, "complete": found.complete})
    if not found.sound:
        raise typer.Exit(1)
    if not found.complete:
        raise typer.Exit(UNFINISHED)


@contextmanager
def _progress() -> Iterator[Report]:
    """A live line on a terminal; elsewhere a line whenever another tenth is done."""
    if not common.interactive():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: tuple[Any, ...] = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=None)

        def report(now: Any) -> None:
            bar.update(task, completed=now.images, total=now.wanted, description=_rates(now))

        yield report


class _Lines:
    def __init__(self) -> None:
        self._tenths = -1

    def __call__(self, now: Progress) -> None:
        tenths = now.images * 10 // max(1, now.wanted)
        if tenths > self._tenths:
            self._tenths = tenths
            left = (now.wanted - now.images) * now.seconds / max(1, now.drawn)
            common.report(f"{now.images} of {now.wanted}, {_rates(now)}, {left:.0f} s left")


def _rates(now: Progress) -> str:
    text = f"{now.drawn / max(now.seconds, 1e-9):.3g} images/s"
    if now.busy:
        text += f", device busy {100 * now.busy:.0f} %"
    return text + (f", {now.quarantined} quarantined" if now.quarantined else "")
