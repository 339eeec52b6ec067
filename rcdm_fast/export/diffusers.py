"""A folder that diffusers loads: ``UNet2DModel`` and ``DDIMScheduler`` with the same numbers; and reading it back.

UNet2DModel has the same blocks under other names. It takes its class embedding as it is ("identity"), so the folder
also holds the linear layer that makes it of a representation: class_labels = W h + b. What UNet2DModel's
configuration cannot say is refused with the reason: above all it has one width of attention heads for all levels.

Knows nothing about samplers but the scheduler's settings.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import config as configs
from rcdm_fast import storage
from rcdm_fast.config import ConfigError, ModelConfig, ScheduleConfig, UNetConfig
from rcdm_fast.export.job import Job
from rcdm_fast.export.onnx import ExportError
from rcdm_fast.storage import StorageError
from rcdm_fast.unet import AttentionBlock, ResBlock, UNet

PRECISIONS = ("fp32",)
CONFIG = "rcdm_fast.json"
EMBEDDING = "representation_embedding.safetensors"
TOLERANCE = 1e-5


def missing_packages() -> list[str]:
    """Packages that are not installed."""
    there = importlib.util.find_spec("diffusers") is not None
    return [] if there else ["diffusers (pip install 'rcdm_fast[diffusers]')"]


def reasons_unavailable(config: UNetConfig) -> list[str]:
    """What of a network UNet2DModel cannot be; empty if nothing."""
    reasons = []
    if not config.representation_dim or config.num_classes:
        reasons.append("it is mapped for networks that take representations and no labels")
    if not config.use_scale_shift_norm:
        reasons.append("its blocks with resampling need scale-shift norm")
    if not config.resblock_updown:
        reasons.append("it is mapped for networks that resample in residual blocks (resblock_updown)")
    widths = _head_widths(config)
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{width} at {channels} channels" for channels, width in sorted(widths.items()))
        reasons.append(f"it has one width of attention heads for all levels; these have {found}")
    return reasons


def _head_widths(config: UNetConfig) -> dict[int, int]:
    """Channels of an attention layer -> width of its heads, over both halves of the network."""
    levels = [width for level, width in enumerate(config.level_channels) if config.attends_at(level)]
    levels.append(config.level_channels[-1])  # the middle block always attends
    found: dict[int, int] = {}
    for channels in levels:
        for upsampling in (False, True):
            width = channels // config.heads(channels, upsampling)
            if found.setdefault(channels, width) != width:
                found[-channels] = width  # the halves differ: two entries, so it is refused
    return found


def write(out: Path, job: Job) -> list[Path]:
    """Write ``unet/``, ``scheduler/``, the embedding of representations, our configuration and a README.

    Raises:
        ConfigError: a network that UNet2DModel cannot be, with the reasons.
        ExportError: eps differs from ours by more than `TOLERANCE`; nothing is left at `out`.
        StorageError: `out` cannot be written, or holds something else.
    """
    reasons = reasons_unavailable(job.config.unet)
    schedule = job.config.schedule
    if schedule.rescale_timesteps and schedule.diffusion_steps != 1000:
        reasons.append("rescale_timesteps with other than 1000 steps feeds the network timesteps that it does not")
    if reasons:
        raise ConfigError(f"this network cannot be diffusers' UNet2DModel: {'; '.join(reasons)}")
    network = job.network
    job.say("network: converting and checking")
    model = convert(network)
    _check(model, network, schedule)
    if out.exists() and any(out.iterdir()) and not (out / CONFIG).exists():
        raise StorageError(f"{out}: not empty, and no earlier export")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            place = Path(folder)
            model.save_pretrained(place / "unet")
            scheduler(schedule).save_pretrained(place / "scheduler")
            tensors = {name: value.detach().cpu().clone() for name, value in network.ssl_emb.state_dict().items()}
            storage.save_tensors(place / EMBEDDING, tensors, {})
            (place / CONFIG).write_text(configs.to_json(job.config), encoding="utf-8")
            (place / "README.md").write_text(_README, encoding="utf-8")
            files = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
            for file in files:
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(place / file, out / file)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from error
    return [out / file for file in files]


def scheduler(schedule: ScheduleConfig) -> Any:
    """DDIMScheduler with the same betas; it visits the timesteps of our ``steps="ddimN"``.

    Its other spacings do not fit: `step` always goes back by T // N.
    """
    from diffusers import DDIMScheduler

    linear = schedule.noise_schedule == "linear"
    scale = 1000 / schedule.diffusion_steps
    return DDIMScheduler(
        num_train_timesteps=schedule.diffusion_steps,
        beta_start=scale * 1e-4,
        beta_end=scale * 2e-2,
        beta_schedule="linear" if linear else "squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type="epsilon" if schedule.prediction == "eps" else "sample",
        timestep_spacing="leading",
    )


def convert(network: UNet) -> Any:
    """A UNet2DModel that computes what `network` does; called as model(x, t, class_labels=W h + b)."""
    model = _empty(network.config)
    for target, source in _pairs(model, network):
        if isinstance(source, AttentionBlock):
            _split_qkv(target, source)
        else:
            _copy(target, source)
    return model.requires_grad_(False)


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and tensors of an exported folder, bit for bit those that were written.

    Raises:
        ConfigError: diffusers is missing, or the folder is incomplete or damaged.
    """
    if missing_packages():
        raise ConfigError(f"{folder}: reading a diffusers folder needs {missing_packages()[0]}")
    from diffusers import UNet2DModel

    try:
        config = configs.from_json(ModelConfig, (folder / CONFIG).read_text(encoding="utf-8"), str(folder / CONFIG))
        model: Any = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True)
        embedding = storage.read_tensors(folder / EMBEDDING)
        network = UNet(config.unet)
        network.ssl_emb.load_state_dict(embedding)
        for source, target in _pairs(model, network):
            if isinstance(target, AttentionBlock):
                _join_qkv(source, target)
            else:
                _copy(target, source)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ConfigError(f"{folder}: no complete diffusers export ({' '.join(str(error).split())[:300]})") from error
    return config, dict(network.state_dict())


def _empty(config: UNetConfig) -> Any:
    from diffusers import UNet2DModel

    attends = [config.attends_at(level) for level in range(len(config.level_channels))]
    (width,) = set(_head_widths(config).values())
    model: Any = UNet2DModel(
        sample_size=config.image_size,
        in_channels=3,
        out_channels=config.out_channels,
        down_block_types=tuple("AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attends)),
        block_out_channels=config.level_channels,
        time_embedding_dim=4 * config.num_channels,
        layers_per_block=config.num_res_blocks,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=width,
        norm_num_groups=configs.GROUPS,
        attn_norm_num_groups=configs.GROUPS,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    return model.eval()


def _pairs(model: Any, network: UNet) -> Iterator[tuple[Any, nn.Module]]:
    """Layers of both that hold the same weights, in the order in which a picture passes them."""
    yield model.time_embedding.linear_1, network.time_embed[0]
    yield model.time_embedding.linear_2, network.time_embed[2]
    (first,) = network.input_blocks[0].children()
    yield model.conv_in, first
    yield model.conv_norm_out, network.out[0]
    yield model.conv_out, network.out[2]
    down = [each for block in model.down_blocks for each in _layers(block, "downsamplers")]
    middle = [model.mid_block.resnets[0], model.mid_block.attentions[0], model.mid_block.resnets[1]]
    up = [each for block in model.up_blocks for each in _layers(block, "upsamplers")]
    stages = [*list(network.input_blocks)[1:], network.middle_block, *network.output_blocks]
    own = [layer for stage in stages for layer in stage.children()]
    for left, right in zip([*down, *middle, *up], own, strict=True):
        if isinstance(right, AttentionBlock):
            yield left.group_norm, right.norm
            yield left.to_out[0], right.proj_out
            yield left, right  # q, k and v
        else:
            assert isinstance(right, ResBlock)
            yield left.norm1, right.in_layers[0]
            yield left.conv1, right.in_layers[2]
            yield left.time_emb_proj, right.film_layer
            yield left.norm2, right.out_layers[0]
            yield left.conv2, right.out_layers[3]
            if left.conv_shortcut is not None:
                yield left.conv_shortcut, right.skip_connection


def _layers(block: Any, resamplers: str) -> list[Any]:
    """Residual blocks, each followed by its attention if there is one, and the block that resamples at the end."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    both = [each for pair in zip(block.resnets, attentions, strict=True) for each in pair if each is not None]
    return [*both, *(getattr(block, resamplers) or [])]


def _copy(target: Any, source: Any) -> None:
    """Weights of one layer; a 1x1 convolution over positions has one more axis than a linear layer."""
    own = target.state_dict()
    target.load_state_dict({name: value.reshape(own[name].shape) for name, value in source.state_dict().items()})


def _split_qkv(target: Any, source: AttentionBlock) -> None:
    for name, value in source.qkv.state_dict().items():
        channels = value.shape[0] // 3
        split = (3, source.heads) if source.new_order else (source.heads, 3)
        parts = value.reshape(*split, channels // source.heads, -1).unbind(0 if source.new_order else 1)
        for layer, part in zip((target.to_q, target.to_k, target.to_v), parts, strict=True):
            own = getattr(layer, name)
            own.data.copy_(part.reshape(own.shape))


def _join_qkv(source: Any, target: AttentionBlock) -> None:
    for name, own in target.qkv.state_dict().items():
        width = own.shape[0] // 3 // target.heads
        layers = (source.to_q, source.to_k, source.to_v)
        parts = [getattr(layer, name).detach().reshape(target.heads, width, -1) for layer in layers]
        own.copy_(torch.stack(parts, dim=0 if target.new_order else 1).reshape(own.shape))


@torch.inference_mode()
def _check(model: Any, network: UNet, schedule: ScheduleConfig) -> None:
    config = network.config
    own = UNet(config).eval()
    own.load_state_dict({name: value.cpu() for name, value in network.state_dict().items()})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, config.image_size, config.image_size, generator=generator)
    h = torch.randn(2, config.representation_dim, generator=generator)
    t = torch.tensor([schedule.diffusion_steps - 1, schedule.diffusion_steps // 3])
    want = own(x, t, h)
    got = model(x, t, class_labels=own.ssl_emb(h), return_dict=False)[0]
    error = float((got - want).norm() / want.norm())
    if not error <= TOLERANCE:
        raise ExportError(f"diffusers gives another eps: relative L2 error {error:.1e}, allowed {TOLERANCE:.0e}")


_README = """# An RCDM as diffusers' UNet2DModel

```python
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file

unet = UNet2DModel.from_pretrained("unet")
scheduler = DDIMScheduler.from_pretrained("scheduler")
embedding = load_file("representation_embedding.safetensors")

h = ...  # [N, D]: the encoder's representations
x = torch.randn(len(h), 3, unet.config.sample_size, unet.config.sample_size)
labels = torch.nn.functional.linear(h, embedding["weight"], embedding["bias"])
scheduler.set_timesteps(50)
with torch.inference_mode():
    for t in scheduler.timesteps:
        output = unet(x, t, class_labels=labels).sample[:, :3]  # the rest, if any, is a learned variance
        x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
pictures = x  # [N, 3, H, W] in [-1, 1]
```

These are the pictures of rcdm_fast with `steps="ddim50"` and the same noise. `rcdm_fast.load` reads this folder back;
`rcdm_fast.json` says which encoder belongs to it.
"""
