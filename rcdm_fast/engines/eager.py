"""The eager engine: plain PyTorch, the truth that other engines are compared with.

fp32 runs the network as it is written, in float32 whatever the host program allows (on CPU in groups of one fixed size,
so that an image does not depend on its batch); bf16 and fp16 run it channels-last under autocast (weights stay fp32).
fp8 emulates convolutions in e4m3 with calibrated scales (`models/fp8.py`), which is slower than fp32: it says what fp8
does to images on a machine that has none. The rest of that network is fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcdm_fast import devices
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.engines.groups import in_groups
from rcdm_fast.exporters.fp8 import Calibrated
from rcdm_fast.models import fp8
from rcdm_fast.models.unet import AttentionBlock, ResBlock, UNet
from rcdm_fast.precision import exact

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """Why eager PyTorch cannot run on a device in a precision; empty if it can."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return ["this PyTorch sees no CUDA device"]
    if precision not in ("fp32", "fp8") and not torch.amp.is_autocast_available(device.type):
        return [f"PyTorch has no autocast on {device.type}"]
    return []


class EagerEngine(Engine):
    """See `rcdm_fast.diffusion.engine.Engine`.

    Args:
        network, device, precision: as of `engines.make`.
        calibrated: what fp8 needs, and no other precision.
    """

    name = "eager"

    def __init__(
        self, network: UNet, device: torch.device, precision: str, calibrated: Calibrated | None = None
    ) -> None:
        self.precision = precision
        self.device = devices.placed(device)
        self._computed = "fp32" if precision == "fp8" else precision
        self._layout = torch.contiguous_format if self._computed == "fp32" else torch.channels_last
        self._network = network.to(self.device).to(memory_format=self._layout)
        self._how = "as written" if precision == "fp32" else "autocast, channels-last"
        if precision == "fp8":
            assert calibrated is not None
            self._network = fp8.emulated(network, calibrated.scales)
            self.files, self.digests = (calibrated.file,), (calibrated.digest,)
            self._how = f"emulated, slower than fp32: {calibrated.in_words()}"

    @torch.inference_mode()
    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        film = batch.film(k)
        with exact(self._computed, self.device):
            if self._computed == "fp32" and self.device.type == "cpu":
                return in_groups(self._network.denoise, x, film)
            with torch.autocast(self.device.type, _DTYPES[self._computed], enabled=self._computed != "fp32"):
                return self._network.denoise(x.contiguous(memory_format=self._layout), film).float()

    @torch.inference_mode()
    def first_nonfinite(self, batch: Batch, x: Tensor, k: int) -> str | None:
        """Name of the first layer whose output is not finite for these images at step k, or None."""
        found: list[str] = []

        def look(name: str, output: Tensor) -> None:
            if not found and not bool(output.isfinite().all()):
                found.append(name)

        hooks = [
            module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
            for name, module in self._network.named_modules()
            if isinstance(module, ResBlock | AttentionBlock | nn.Conv2d | fp8.Fp8Convolution)
        ]
        try:
            self.evaluate(batch, x, k)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else None

    def describe(self) -> str:
        scales = "".join(f", scales {digest[:12]}" for digest in self.digests)
        return f"eager PyTorch {torch.__version__}, {self.precision} ({self._how}){scales}, on {self.device}"
