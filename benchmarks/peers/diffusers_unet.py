"""Rival: the same network as diffusers' UNet2DModel, with the same weights.

UNet2DModel has the same blocks under other names; the mapping is exact. Two things its configuration cannot say are
set on the finished model: its `class_embedding` becomes the linear layer of the representation, and every attention
gets the number of heads (UNet2DModel fixes their width, the published network their number). Levels without attention
use the blocks that resample with a residual block, which UNet2DModel's plain blocks do not.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast.unet import AttentionBlock, ResBlock, UNet

NOTE = "UNet2DModel with the same weights"


def reasons_unavailable(workload: Workload) -> list[str]:
    """A missing package, or a network that UNet2DModel cannot be."""
    config = workload.network.config
    reasons = []
    if importlib.util.find_spec("diffusers") is None:
        reasons.append("not installed: diffusers (pip install 'rcdm_fast[bench]')")
    if not (config.use_scale_shift_norm and config.resblock_updown and config.representation_dim):
        reasons.append("mapped for scale-shift norm, resampling residual blocks and representations only")
    if config.num_head_channels != -1 or config.num_heads_upsample != -1 or config.num_classes:
        reasons.append("mapped for a fixed number of heads and no classes only")
    return reasons


def build_fp32(workload: Workload) -> Evaluate:
    """As diffusers gives it."""
    model = convert(workload.network).to(workload.device)

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        with torch.backends.cudnn.flags(allow_tf32=False):
            out: Tensor = model(inputs.x, inputs.t, class_labels=inputs.h, return_dict=False)[0]
            return out

    return evaluate


def build_bf16(workload: Workload) -> Evaluate:
    """Under autocast, channels-last."""
    model = convert(workload.network).to(workload.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        with torch.autocast(inputs.x.device.type, torch.bfloat16):
            x = inputs.x.contiguous(memory_format=torch.channels_last)
            out: Tensor = model(x, inputs.t, class_labels=inputs.h, return_dict=False)[0]
        return out.float()

    return evaluate


def convert(network: UNet) -> nn.Module:
    """A UNet2DModel that computes what `network` does; called as model(x, t, class_labels=h)."""
    from diffusers import UNet2DModel

    config = network.config
    levels = len(config.level_channels)
    attends = [config.attends_at(level) for level in range(levels)]
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
        attention_head_dim=None,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    ).eval()
    model.class_embedding = nn.Linear(config.representation_dim, 4 * config.num_channels)
    model.class_embedding.load_state_dict(network.ssl_emb.state_dict())
    _fill(model, network)
    finished: nn.Module = model.requires_grad_(False)
    return finished


def _fill(model: Any, network: UNet) -> None:
    """Copy the weights, walking through both networks in the order in which a picture passes them."""
    _copy(model.time_embedding.linear_1, network.time_embed[0])
    _copy(model.time_embedding.linear_2, network.time_embed[2])
    (first,) = network.input_blocks[0].children()
    _copy(model.conv_in, first)
    _copy(model.conv_norm_out, network.out[0])
    _copy(model.conv_out, network.out[2])
    down = [each for block in model.down_blocks for each in _layers(block, "downsamplers")]
    middle = [model.mid_block.resnets[0], model.mid_block.attentions[0], model.mid_block.resnets[1]]
    up = [each for block in model.up_blocks for each in _layers(block, "upsamplers")]
    stages = [*list(network.input_blocks)[1:], network.middle_block, *network.output_blocks]
    own = [layer for stage in stages for layer in stage.children()]
    for target, source in zip([*down, *middle, *up], own, strict=True):
        if isinstance(source, ResBlock):
            _copy_block(target, source)
        else:
            assert isinstance(source, AttentionBlock)
            _copy_attention(target, source)


def _layers(block: Any, resamplers: str) -> list[Any]:
    """Residual blocks, each followed by its attention if there is one, and the block that resamples at the end."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    both = [each for pair in zip(block.resnets, attentions, strict=True) for each in pair if each is not None]
    return [*both, *(getattr(block, resamplers) or [])]


def _copy(target: Any, source: nn.Module) -> None:
    target.load_state_dict(
        {name: value.reshape(target.state_dict()[name].shape) for name, value in source.state_dict().items()}
    )


def _copy_block(target: Any, source: ResBlock) -> None:
    pairs = [
        (target.norm1, source.in_layers[0]),
        (target.conv1, source.in_layers[2]),
        (target.time_emb_proj, source.film_layer),
        (target.norm2, source.out_layers[0]),
        (target.conv2, source.out_layers[3]),
    ]
    if target.conv_shortcut is not None:
        pairs.append((target.conv_shortcut, source.skip_connection))
    for left, right in pairs:
        _copy(left, right)


def _copy_attention(target: Any, source: AttentionBlock) -> None:
    _copy(target.group_norm, source.norm)
    _copy(target.to_out[0], source.proj_out)
    channels = source.proj_out.in_channels
    split = (3, source.heads) if source.new_order else (source.heads, 3)
    axis = 0 if source.new_order else 1
    weight = source.qkv.weight.reshape(*split, channels // source.heads, channels).unbind(axis)
    assert source.qkv.bias is not None
    bias = source.qkv.bias.reshape(*split, channels // source.heads).unbind(axis)
    for index, layer in enumerate((target.to_q, target.to_k, target.to_v)):
        layer.load_state_dict({"weight": weight[index].reshape(channels, channels), "bias": bias[index].reshape(-1)})
    target.heads = source.heads
    target.scale = (channels // source.heads) ** -0.5
