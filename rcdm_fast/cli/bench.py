"""`rcdm bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.cli import common

if TYPE_CHECKING:
    from rcdm_fast.sampling_rate import Case


def bench(
    model: Annotated[str, typer.Argument(help="Bundled or published name, file, folder or hub id.")],
    steps: Annotated[str, typer.Option(help="Step counts, separated by commas.")] = "10,25,50,100",
    solver: Annotated[str, typer.Option(help="Solvers, separated by commas: ddim, ancestral, dpmpp_2m...")] = "ddim",
    engine: Annotated[
        str, typer.Option(help="Engines, separated by commas; all: every one that can run here.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="Precisions, separated by commas: fp32, bf16, fp16, auto.")] = "auto",
    batch: Annotated[int, typer.Option(help="Pictures per network evaluation.")] = 16,
    pictures: Annotated[
        int, typer.Option(help="Pictures per timed run, a multiple of the batch. Default: one batch.")
    ] = 0,
    rounds: Annotated[int, typer.Option(help="At most so many timed runs of each.")] = 5,
    budget: Annotated[float, typer.Option(help="Seconds after which nothing more is begun.")] = 60.0,
    published: Annotated[bool, typer.Option(help="Measure the published recipe beside it.")] = True,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Measure pictures per second from representation to picture, beside the published recipe in the same run.

    The published recipe is plain PyTorch in fp32, 100 ancestral steps, one representation at a time. "sampler" is the
    share of the time that is not spent in network evaluations.

    Example: rcdm bench cifar10-simclr-trunk --steps 10,50 --engine all --precision fp32,bf16 --json rates.json
    """
    from rcdm_fast import sampling_rate

    common.check_writable(json)
    loaded = common.open_model(model, flags, None, device, "auto", "auto", sha256)
    plan = sampling_rate.Plan(
        _cases(loaded.device, engine, precision, solver, steps), batch, pictures, budget, rounds, published
    )

    from tqdm import tqdm

    with tqdm(total=100, unit="%", disable=not common.interactive(), leave=False) as bar:

        def report(rows: list[dict[str, Any]], share: float) -> None:
            common.write_json(json, {"rows": rows})
            bar.update(round(100 * share) - bar.n)

        rows = sampling_rate.measure(loaded, plan, report)
    common.say("\n".join(table(rows)))
    if any(row.get("red") for row in rows):
        raise typer.Exit(1)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as lines of text."""
    title = f"{'engine':18s} {'precision':9s} {'solver':12s} {'steps':>11s}"
    lines = [f"{title} {'pictures/s':>10s}  {'p50 s':>7s} {'sampler':>8s}  times published"]
    for row in rows:
        head = f"{row['engine']:18s} {row['precision']:9s} {row['solver']:12s} {row['steps']:>11s}"
        if "why_not" in row:
            lines.append(f"{head} not measured: {row['why_not']}")
            continue
        share = f"{row['sampler_percent']:7.2f}%" if "sampler_percent" in row else " " * 8
        ratio = f"{row['times_published']:8.2f}" if "times_published" in row else ""
        lines.append(f"{head} {row['pictures_per_s']:10.3f}  {row['p50_ms'] / 1e3:7.3f} {share}  {ratio}")
    if rows:
        versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
        lines.append(f"batch {rows[0]['batch']}, {rows[0]['threads']} threads, {rows[0]['device']}; {versions}")
    return lines


def _cases(device: Any, engine: str, precision: str, solver: str, steps: str) -> tuple[Case, ...]:
    """Every combination of the lists, the quick ones first. ``all`` leaves out engines that cannot run here."""
    from rcdm_fast import engines
    from rcdm_fast.sampling_rate import Case

    precisions = _listed(precision)
    pairs = [(name, each) for name in _listed(engine) if name != "all" for each in precisions]
    if engine.strip() == "all":
        wanted = [each if each != "auto" else "fp32" for each in precisions]
        for name in engines.ENGINES:
            for each in wanted:
                reasons = engines.reasons_unavailable(name, device, each)  # type: ignore[arg-type]
                if not reasons:
                    pairs.append((name, each))
                else:
                    common.say(f"left out    {name} {each}: {'; '.join(reasons)}")
    return tuple(Case(*pair, how, count) for count in _listed(steps) for how in _listed(solver) for pair in pairs)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
