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

ADDED = ("map_film.", "ssl_deep.")  # tensors that a network to start from may lack: they begin as zeros


def start_from(run: Run, source: str) -> None:
    """Begin with the weights of another model, which may lack what `ADDED` names.

    A decoder of maps begins with those of a decoder of their channels, hidden layers from h with those of a network
    without: what leads into the network by them is new then, and does nothing yet.

    Raises:
        ConfigError: another network.
    """
    config, tensors = checkpoint.load_model(source)
    network = distributed.bare(run.network)
    own = network.config
    assert isinstance(own, UNetConfig)
    of_vectors = dataclasses.replace(own, condition_map=(), representation_dim=own.summary_dim)
    linear = (dataclasses.replace(each, representation_hidden=0) for each in (own, of_vectors))
    if run.inside(config.unet) not in (own, of_vectors, *linear):
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
    fresh = {name: value for name, value in network.state_dict().items() if name.startswith(ADDED)}
    inside = {**{name: ema.whole(value).cpu() for name, value in fresh.items()}, **inside}
    full_state.set_model_state_dict(run.network, dict(inside), options=WHOLE)
    for average in run.emas:
        average.copy_(inside)
