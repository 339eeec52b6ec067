"""A run that begins with the weights of another model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

from torch.distributed.checkpoint import state_dict as full_state

from rcdm_fast.config import ConfigError, UNetConfig
from rcdm_fast.models import checkpoint
from rcdm_fast.training import distributed, ema
from rcdm_fast.training.run import WHOLE, Run

log = logging.getLogger(__name__)


def start_from(run: Run, source: str) -> None:
    """Begin with the weights of another model; a decoder of maps also with those of a decoder of their channels.

    What leads from maps into the network is new then, and does nothing yet.

    Raises:
        ConfigError: another network.
    """
    config, tensors = checkpoint.load_model(source)
    network = distributed.bare(run.network)
    own = network.config
    assert isinstance(own, UNetConfig)
    of_vectors = dataclasses.replace(own, condition_map=(), representation_dim=own.summary_dim)
    if run.inside(config.unet) not in (own, of_vectors):
        raise ConfigError(f"init {source}: its network is {config.unet}, this run's is {run.unet}")
    before = config.info.get("run")
    seed = before.get("seed") if isinstance(before, Mapping) else None
    if seed == run.config.seed and config.info.get("data") == run.batches.data.fingerprint:
        log.warning(
            "%s was trained on the same images with seed %d too: this run draws the same batches again; "
            "give another with --set seed=N",
            source,
            run.config.seed,
        )
    inside = run.batches.standard.unfold(tensors)
    if config.unet.condition_map != own.condition_map:
        fresh = {name: value for name, value in network.state_dict().items() if name.startswith("map_film.")}
        inside = {**{name: ema.whole(value).cpu() for name, value in fresh.items()}, **inside}
    full_state.set_model_state_dict(run.network, dict(inside), options=WHOLE)
    for average in run.emas:
        average.copy_(inside)
