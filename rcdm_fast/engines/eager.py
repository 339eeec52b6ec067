"""The eager engine: plain PyTorch, the truth that other engines are compared with.

fp32 runs the network as it is written; bf16 and fp16 run it channels-last under autocast (weights stay fp32).

Knows nothing about solvers or conditioning beyond the plan it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.conditioning import ConditioningPlan
from rcdm_fast.unet import UNet

# In fp32 on the CPU pictures pass the network in groups of one fixed size, the last one padded. Otherwise a picture
# would depend on its batch: the order in which a convolution or a GroupNorm sums changes with the batch size and the
# number of threads (by up to 1e-6), and the first steps of a trajectory magnify that up to 2e4 times. On two cores
# groups of four 32-pixel pictures are as fast per picture as batches of 32.
GROUP_PIXELS = 4 * 32 * 32
LARGEST_GROUP = 4

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """Why eager PyTorch cannot run on a device in a precision; empty if it can."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return ["this PyTorch sees no CUDA device"]
    if precision != "fp32" and not torch.amp.is_autocast_available(device.type):
        return [f"PyTorch has no autocast on {device.type}"]
    return []


class EagerEngine:
    """See `rcdm_fast.engines.Engine`."""

    name = "eager"

    def __init__(self, network: UNet, device: torch.device, precision: str) -> None:
        self.precision = precision
        self.device = device
        self._layout = torch.contiguous_format if precision == "fp32" else torch.channels_last
        self._network = network.to(device).to(memory_format=self._layout)
        self._plan: ConditioningPlan | None = None

    def prepare(self, plan: ConditioningPlan, batch_size: int) -> None:
        if len(plan.rows) != batch_size:
            raise ValueError(f"the plan has rows for {len(plan.rows)} pictures, the batch {batch_size}")
        self._plan = plan

    @torch.inference_mode()
    def predict(self, x: Tensor, k: int) -> Tensor:
        if self._plan is None:
            raise RuntimeError("predict before prepare")
        film = self._plan.film(k)
        if self.precision == "fp32" and self.device.type == "cpu":
            return self._in_groups(x, film)
        with torch.autocast(self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32"):
            return self._network.denoise(x.contiguous(memory_format=self._layout), film).float()

    def _in_groups(self, x: Tensor, film: Tensor) -> Tensor:
        group = max(1, min(LARGEST_GROUP, GROUP_PIXELS // (x.shape[2] * x.shape[3])))
        out = []
        for start in range(0, len(x), group):
            part, rows = x[start : start + group], film[start : start + group]
            padded = torch.arange(group) % len(part)
            out.append(self._network.denoise(part[padded], rows[padded])[: len(part)])
        return torch.cat(out)

    def describe(self) -> str:
        how = "as written" if self.precision == "fp32" else "autocast, channels-last"
        return f"eager PyTorch {torch.__version__}, {self.precision} ({how}), on {self.device}"
