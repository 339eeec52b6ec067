"""Models in other processes: pickled, copied, sent to workers, forked.

What travels is the description, the weights and the encoder; the engine is made again where they arrive. Threads do not
survive a fork, and code that waits for them waits for ever: a forked model says so.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch

from rcdm_fast import arguments, engines, host
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.encoders import Encoder
from rcdm_fast.models import networks
from rcdm_fast.models.unet import UNet


class Portable:
    """What lets `Model` leave its process."""

    config: ModelConfig
    unet: UNet
    engine: Engine
    device: torch.device
    _encoder: Encoder | EncoderConfig | None

    def _settle(self, engine_file: str | os.PathLike[str] | None = None) -> None:
        """Belong to this process from now on."""
        self._engine_file = engine_file
        self._process = os.getpid()
        self._turn = threading.Lock()  # an engine draws one batch at a time

    def _check_process(self) -> None:
        """Raises `SamplingError` in a forked process where PyTorch would hang."""
        if os.getpid() == self._process:
            return
        if host.forked_from(self._process) or self._own_threads() or self.device.type != "cpu":
            raise SamplingError(
                f"this model was loaded in process {self._process}, and this is a fork of it, in which its threads are "
                "gone: start workers with the 'spawn' method, load the model in each of them, or call "
                "torch.set_num_threads(1) there first (on the CPU, engines native, compiled and eager)"
            )
        self._settle(self._engine_file)

    def _own_threads(self) -> bool:
        """Whether the engine has threads that are not PyTorch's."""
        spec = engines.SPECS.get(self.engine.name)  # a program may bring an engine of its own
        return spec is not None and spec.exported

    def __getstate__(self) -> dict[str, Any]:
        file = None if self._engine_file is None else Path(self._engine_file).absolute()
        return {
            "config": self.config,
            "tensors": {name: value.detach().cpu() for name, value in self.unet.state_dict().items()},
            "encoder": self._encoder,
            "device": self.device,
            "engine": (self.engine.name, self.engine.precision, file),
        }

    @host.guarded()
    def __setstate__(self, state: dict[str, Any]) -> None:
        """Raises `ConfigError` where the device or the engine is missing."""
        self.config, self.device, self._encoder = state["config"], state["device"], state["encoder"]
        name, precision, file = state["engine"]
        self.unet = networks.from_tensors(self.config.unet, state["tensors"])
        try:
            self.device = arguments.device(self.device)
            self.engine = engines.make(name, self.unet, self.config, self.device, precision, file)
        except ConfigError as error:
            raise ConfigError(f"the model cannot run in this process as it did in its own: {error}") from error
        self._settle(file)
