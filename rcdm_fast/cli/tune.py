"""`rcdm tune`: where a solver's steps should lie for one model.

Knows nothing about how that is found (`rcdm_fast/solver_fit.py`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from rcdm_fast.solver_fit import Placed


def tune(
    model: common.ModelArgument,
    data: Annotated[str | None, common.data("Whose representations are drawn, for models that take one")] = None,
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations, separated by commas.")] = "5,6,8,10",
    solver: common.SolverName = "ipndm",
    trajectories: Annotated[int, typer.Option(help="How many are drawn; a quarter of them only to check.")] = 256,
    candidates: Annotated[int, typer.Option(help="Timesteps to choose from; each costs an evaluation.")] = 61,
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
    """Find where the few steps of a solver should lie for a model.

    And check that it helps. Prints, for each number of evaluations, what --steps then takes: timesteps, or the number
    itself where the solver's own placement is as good.

    Example: rcdm tune cifar10-simclr-trunk --data cifar10/test --nfe 5,8 --json steps.json
    """
    import torch

    from rcdm_fast import solver_fit
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data.image_set import evenly
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.training import representations

    common.check_writable(json)
    counts = [common.whole_number(part.strip()) for part in nfe.split(",") if part.strip()]
    config = solver_fit.FitConfig(tuple(counts), solver, candidates, seed, batch_size)  # type: ignore[arg-type]
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
    unet, h, label = loaded.config.unet, None, None
    if unet.representation_dim:
        if data is None or loaded.encoder is None:
            raise ConfigError(
                "the model takes representations: give pictures with --data, and an --encoder if it has none"
            )
        pictures = open_data(data, loaded.image_size)
        if len(pictures) < trajectories:
            raise ConfigError(f"{trajectories} trajectories of {len(pictures)} pictures")
        chosen = evenly(trajectories, len(pictures))
        h = representations.compute(loaded.encoder, pictures.subset(chosen))
    if unet.num_classes:
        label = torch.arange(trajectories) % unet.num_classes
    with common.ProgressBar(100) as progress:
        found = solver_fit.fit(
            loaded, config, h, label, trajectories, lambda done, total: progress(100 * done // total, 100, 0.0)
        )
    common.say("\n".join(table(found)))
    common.write_json(json, {"solver": solver, "placements": [dataclasses.asdict(each) for each in found]})


def table(found: list[Placed]) -> list[str]:
    """Lines for a reader."""
    lines = [f"{'NFE':>4s}  {'distance to the teacher':24s}{'with its own steps':24s}--steps"]
    for each in found:
        error, own = (f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}]" for one in (each.error, each.own_error))
        lines.append(f"{each.nfe:4d}  {error:24s}{own:24s}{each.steps}")
    return lines
