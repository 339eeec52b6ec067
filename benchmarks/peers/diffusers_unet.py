"""Rival: the same network as diffusers' UNet2DModel, with the same weights.

The mapping is the library's own export; a network that it refuses is not measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast.models import diffusers_unet
from rcdm_fast.models.diffusers_folder import missing_packages
from rcdm_fast.precision import ieee_fp32

NOTE = "UNet2DModel with the same weights"


def reasons_unavailable(workload: Workload) -> list[str]:
    """A missing package, or a network that UNet2DModel cannot be."""
    config = workload.network.config
    given = [] if config.representation_dim else ["measured for networks that take representations only"]
    return [*missing_packages(), *diffusers_unet.reasons_unavailable(config), *given]


def build_fp32(workload: Workload) -> Evaluate:
    """As diffusers gives it."""
    embedding = workload.network.ssl_emb
    model = diffusers_unet.convert(workload.network).to(workload.device)

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        with ieee_fp32(inputs.x.device):
            out: Tensor = model(inputs.x, inputs.t, class_labels=embedding(inputs.h), return_dict=False)[0]
            return out

    return evaluate


def build_bf16(workload: Workload) -> Evaluate:
    """Under autocast, channels-last."""
    embedding = workload.network.ssl_emb
    model = diffusers_unet.convert(workload.network).to(workload.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        with torch.autocast(inputs.x.device.type, torch.bfloat16):
            x = inputs.x.contiguous(memory_format=torch.channels_last)
            out: Tensor = model(x, inputs.t, class_labels=embedding(inputs.h), return_dict=False)[0]
        return out.float()

    return evaluate
