"""Samples from an exported diffusers folder; a copy of this file lies in the folder as ``rcdm_pipeline.py``.

    pipeline = RcdmPipeline.load(".")
    images = pipeline(h, steps=50)  # h: representations [N,D] of the encoder that rcdm_fast.json names

UNet2DModel has one width of attention heads for all levels. Where the network has several, ``attention_head_dim`` of
``unet/config.json`` is a table of them; UNet2DModel.from_pretrained stops at it with a TypeError, `load_unet` reads it.

Knows nothing about rcdm_fast: torch, safetensors and diffusers are all it needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

EMBEDDING = "representation_embedding.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def build_unet(settings: dict[str, Any]) -> Any:
    """A UNet2DModel without weights; ``attention_head_dim`` may be {"down": [...], "mid": n, "up": [...]}."""
    from diffusers import UNet2DModel

    widths = settings["attention_head_dim"]
    if not isinstance(widths, dict):
        return UNet2DModel.from_config(settings).eval()
    model: Any = UNet2DModel.from_config({**settings, "attention_head_dim": None})
    blocks = [*zip(model.down_blocks, widths["down"], strict=True), (model.mid_block, widths["mid"])]
    for block, width in [*blocks, *zip(model.up_blocks, widths["up"], strict=True)]:
        for layer in getattr(block, "attentions", []):
            layer.heads = layer.to_q.out_features // width
            layer.scale = width**-0.5
    model.register_to_config(attention_head_dim=widths)
    return model.eval()


def load_unet(folder: str | os.PathLike[str]) -> Any:
    """The network of an exported folder."""
    from diffusers import UNet2DModel

    place = Path(folder) / "unet"
    model = build_unet(UNet2DModel.load_config(place, local_files_only=True))
    model.load_state_dict(load_file(place / WEIGHTS), strict=True)
    return model.requires_grad_(False)


class RcdmPipeline:
    """A network, its scheduler, and the linear layer that makes class embeddings of representations.

    Args:
        unet: a UNet2DModel.
        scheduler: a DDIMScheduler.
        embedding: ``weight`` [E,D] and ``bias`` [E]; empty for a network without representations.
    """

    def __init__(self, unet: Any, scheduler: Any, embedding: dict[str, Tensor]) -> None:
        self.unet = unet
        self.scheduler = scheduler
        self.embedding = embedding

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> RcdmPipeline:
        """Everything from an exported folder, on the CPU."""
        from diffusers import DDIMScheduler

        file = Path(folder) / EMBEDDING
        scheduler = DDIMScheduler.from_pretrained(Path(folder) / "scheduler", local_files_only=True)
        return cls(load_unet(folder), scheduler, load_file(file) if file.exists() else {})

    def class_labels(self, h: Tensor | None) -> Tensor | None:
        """What UNet2DModel takes as class_labels: W h + b for representations [N,D]; labels int64 [N] as they are."""
        if h is None or not self.embedding:
            return h
        return torch.nn.functional.linear(h, self.embedding["weight"], self.embedding["bias"])

    @torch.inference_mode()
    def __call__(
        self, h: Tensor | None = None, steps: int = 50, noise: Tensor | None = None, count: int | None = None
    ) -> Tensor:
        """DDIM samples.

        Args:
            h: representations [N,D], labels [N], or None for a network that takes neither.
            steps: network evaluations; a divisor of the number of training timesteps gives those of rcdm_fast's
                ``steps="ddimN"``.
            noise: x_T [N,3,S,S]; drawn by torch if left out.
            count: N, where neither `h` nor `noise` tells it.

        Returns:
            Images [N,3,S,S] in [-1,1].
        """
        size = self.unet.config.sample_size
        if noise is None:
            noise = torch.randn(len(h) if h is not None else count or 1, 3, size, size)
        labels, x = self.class_labels(h), noise
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            output = self.unet(x, t, class_labels=labels).sample[:, :3]  # a learned variance, if any, comes after it
            x = self.scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
        return x
