"""`rcdm tune`: solvers for one model, and where the steps of others should lie for it.

Knows nothing about how either is found (`rcdm_fast/solver_learning.py`, `rcdm_fast/solver_fit.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rcdm_fast.config import FittedSolver
    from rcdm_fast.metrics.intervals import Interval
    from rcdm_fast.model import Model
    from rcdm_fast.solver_fit import Placed
    from rcdm_fast.solver_learning import Learned


def tune(
    model: common.ModelArgument,
    data: Annotated[str | None, common.data("Whose representations are drawn, for models that take one")] = None,
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations, separated by commas.")] = "4,5,6,8,10",
    out: Annotated[Path | None, common.out("Model file for the model with a learned solver for each of them.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Of learning for each of them, with --out.  [default: 20]", show_default=False)
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="With --out: model whose learned solvers to begin with, such as that which MODEL was adapted from.",
            show_default=False,
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="Without --out: the solver that is to be placed.  [default: ipndm]", show_default=False),
    ] = None,
    trajectories: Annotated[
        int, typer.Option(help="How many are drawn; a quarter of them only to check; at least 80, to learn 160.")
    ] = 256,
    candidates: Annotated[int, typer.Option(help="Timesteps of the teacher; each costs an evaluation.")] = 61,
    masked_parts: Annotated[
        str | None,
        typer.Option(
            help="Widths of the parts of representations that the model was trained to do without (masked_parts of its "
            "training), such as 4,1,2: half of the trajectories are drawn with some hidden. Default: those of a "
            "world's masked codes, otherwise none.",
            show_default=False,
        ),
    ] = None,
    seed: common.Seed = SamplingConfig.seed,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    batch_size: common.BatchSize = 32,
    json: common.JsonFile = None,
) -> None:
    """Learn solvers of few evaluations, or place their steps.

    With --out the model is written with the solvers that come nearer to many evaluations than any other solver does in
    as few; steps=5 then uses its own for 5. What was learned is kept beside that file until it is written, so that the
    same command goes on after an interruption. Without --out nothing is written: it prints what --steps then takes,
    timesteps, or the number itself where the solver's own placement is as good.

    Example: rcdm tune cifar10-simclr-trunk --data cifar10/test --nfe 5,8 --out tuned.safetensors
    """
    from rcdm_fast.config import ConfigError

    common.check_writable(json, out)
    counts = [common.whole_number(part.strip()) for part in nfe.split(",") if part.strip()]
    if out is None and minutes is not None:
        raise ConfigError(
            "--minutes are for learning solvers; name the file that they are to be written into with --out"
        )
    if out is None and init is not None:
        raise ConfigError("--init is where learning begins; name the file to write into with --out")
    if out is not None and solver is not None:
        raise ConfigError("--solver is placed where no --out is given; with it solvers are learned")
    if out is not None and out.suffix != ".safetensors":
        raise ConfigError(f"{out}: a model is written as .safetensors")
    options = (model, flags, encoder, device, engine, precision, sha256)
    from rcdm_fast import provenance

    if out is None:
        from rcdm_fast import solver_fit

        fit = solver_fit.FitConfig(tuple(counts), solver or "ipndm", candidates, seed, batch_size)  # type: ignore[arg-type]
        loaded = common.open_model(*options)
        h, label = _conditions(loaded, data, trajectories, masked_parts, seed)
        with common.ProgressBar(100, fraction=True) as progress:
            placed = solver_fit.fit(
                loaded, fit, h, label, trajectories, lambda done, total: progress(100 * done // total, 100, 0.0)
            )
        common.report("\n".join(table(placed)))
        found = [dataclasses.asdict(each) for each in placed]
        common.write_json(json, {"solver": fit.solver, "placements": found, "made_by": provenance.made_by([loaded])})
        return
    from rcdm_fast import solver_learning

    learning = solver_learning.LearnConfig(
        tuple(counts), 20.0 if minutes is None else minutes, 0, candidates, evaluation_batch=batch_size, seed=seed
    )
    loaded = common.open_model(*options)
    begin: tuple[FittedSolver, ...] = ()
    if init is not None:
        begin = solver_learning.beginnings(loaded, init, counts)
    h, label = _conditions(loaded, data, trajectories, masked_parts, seed)
    state = out.with_name(out.name + ".learning")
    with common.ProgressBar(100 * len(counts), fraction=True) as progress:

        def told(count: int, fraction: float, least: float) -> None:
            progress(int(100 * (counts.index(count) + fraction)), 100 * len(counts), 0.0)

        learned = solver_learning.learn(loaded, learning, loaded.weights, h, label, trajectories, state, told, begin)
    common.report("\n".join(learned_table(learned)))
    found = [dataclasses.asdict(each) for each in learned]
    common.write_json(json, {"solvers": found, "made_by": provenance.made_by([loaded])})
    if not any(each.solver for each in learned):
        raise ConfigError(f"no learned solver is better than the best of the others: {out} is not written")
    solver_learning.save(out, loaded, learned)
    state.unlink(missing_ok=True)
    fitted = ", ".join(str(each.nfe) for each in learned if each.solver)
    common.report(f"{out}: solvers fitted for {fitted} evaluations")


def _conditions(
    model: Model, data: str | None, trajectories: int, masked_parts: str | None = None, seed: int = 0
) -> tuple[Tensor | None, Tensor | None]:
    """Representations and labels, one for each trajectory; None where the model takes none."""
    import torch

    from rcdm_fast.checks import Range, whole
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data.image_set import evenly
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.training import masks, representations

    whole(trajectories, "trajectories", Range(1))
    unet, h, label = model.config.unet, None, None
    if unet.representation_dim:
        if data is None or model.encoder is None:
            raise ConfigError(
                "the model takes representations: give images with --data, and an --encoder if it has none"
            )
        images = open_data(data, model.image_size)
        if len(images) < trajectories:
            raise ConfigError(f"{trajectories} trajectories of {len(images)} images")
        chosen = evenly(trajectories, len(images))
        h = representations.compute(model.encoder, images.subset(chosen))
        if masked_parts is not None:
            parts: tuple[int, ...] = tuple(common.whole_number(part.strip()) for part in masked_parts.split(","))
        else:
            parts = masks.parts_of(model.encoder)
        if parts:
            h = masks.hidden(h, parts, seed)
            common.report(
                f"in half of the trajectories, parts of h ({', '.join(map(str, parts))}) are hidden at random"
            )
    elif masked_parts is not None:
        raise ConfigError("--masked-parts are parts of representations, and the model takes none")
    if unet.num_classes:
        label = torch.arange(trajectories) % unet.num_classes
    return h, label


def table(found: list[Placed]) -> list[str]:
    """Lines for a reader."""
    lines = [f"{'NFE':>4s}  {'distance to the teacher':32s}{'with its own steps':32s}--steps"]
    for each in found:
        error, own = map(_said, (each.error, each.own_error))
        lines.append(f"{each.nfe:4d}  {error:32s}{own:32s}{each.steps}")
    return lines


def learned_table(found: list[Learned]) -> list[str]:
    """Lines for a reader."""
    lines = [f"{'NFE':>4s}  {'distance to the teacher':32s}{'the best other solver':32s}{'which':22s}kept"]
    for each in found:
        error, other = map(_said, (each.error, each.other_error))
        kept = f"yes ({each.solver.digest})" if each.solver else "no: not better beyond doubt"
        lines.append(f"{each.nfe:4d}  {error:32s}{other:32s}{' '.join(each.other):22s}{kept}")
    return lines


def _said(one: Interval) -> str:
    return one.text()
