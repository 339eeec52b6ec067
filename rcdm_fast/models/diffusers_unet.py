"""The network as diffusers' UNet2DModel, and back: the same blocks under other names, the same weights bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rcdm_fast import config as configs
from rcdm_fast.config import UNetConfig
from rcdm_fast.models.diffusers_pipeline import build_unet
from rcdm_fast.models.unet import AttentionBlock, Downsample, ResBlock, UNet, Upsample


def reasons_unavailable(config: UNetConfig) -> list[str]:
    """What of a network UNet2DModel cannot be; empty if nothing."""
    reasons = []
    if config.representation_dim and config.num_classes:
        reasons.append("it has one class embedding, this network takes representations and labels")
    if config.condition_map:
        reasons.append("it has one condition for a whole image, this network one for each position (condition_map)")
    if config.representation_hidden:
        reasons.append("its pipeline has one linear layer from h, this network hidden ones (representation_hidden)")
    if not config.resblock_updown and not config.conv_resample:
        reasons.append("it has no average pooling between levels (conv_resample=False)")
    if config.level_channels[0] != config.num_channels:
        reasons.append(
            f"its sinusoids are as many as the first level's channels ({config.level_channels[0]}), "
            f"here they are {config.num_channels}"
        )
    return reasons


def convert(network: UNet) -> Any:
    """A UNet2DModel with the weights of `network`, on the CPU.

    Called as model(x, t, class_labels=W h + b), or with class labels, or without; see `RcdmPipeline.class_labels`.
    """
    model = build_unet(settings(network.config))
    for target, source in _pairs(model, network):
        if isinstance(source, AttentionBlock):
            _split_qkv(target, source)
        else:
            _copy(target, source)
    return model.requires_grad_(False)


def convert_back(model: Any, network: UNet) -> None:
    """The weights of a UNet2DModel into a `network` of the same structure."""
    for source, target in _pairs(model, network):
        if isinstance(target, AttentionBlock):
            _join_qkv(source, target)
        else:
            _copy(target, source)


def settings(config: UNetConfig) -> dict[str, Any]:
    """The configuration of the UNet2DModel; `build_unet` explains ``attention_head_dim``."""
    plain = "Resnet{}sampleBlock2D" if config.resblock_updown else "{}Block2D"
    attends = [config.attends_at(level) for level in range(len(config.level_channels))]
    resample = "resnet" if config.resblock_updown else "conv"
    return {
        "sample_size": config.image_size,
        "in_channels": 3,
        "out_channels": config.out_channels,
        "down_block_types": ["AttnDownBlock2D" if here else plain.format("Down") for here in attends],
        "up_block_types": ["AttnUpBlock2D" if here else plain.format("Up") for here in reversed(attends)],
        "block_out_channels": list(config.level_channels),
        "time_embedding_dim": 4 * config.num_channels,
        "layers_per_block": config.num_res_blocks,
        "downsample_type": resample,
        "upsample_type": resample,
        "dropout": config.dropout,
        "attention_head_dim": _head_widths(config),
        "norm_num_groups": configs.GROUPS,
        "attn_norm_num_groups": configs.GROUPS,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
        "class_embed_type": "identity" if config.representation_dim else None,
        "num_class_embeds": config.num_classes or None,
    }


def _head_widths(config: UNetConfig) -> int | dict[str, Any]:
    """The one width of attention heads, or a table of them; a level without attention has its neighbors'."""

    def width(channels: int, upsampling: bool) -> int:
        return channels // config.heads(channels, upsampling)

    middle = width(config.level_channels[-1], False)
    halves: dict[bool, list[int]] = {}
    for upsampling in (False, True):
        halves[upsampling] = [
            width(channels, upsampling) if config.attends_at(level) else middle
            for level, channels in enumerate(config.level_channels)
        ]
    if set(halves[False] + halves[True]) == {middle}:
        return middle
    return {"down": halves[False], "mid": middle, "up": halves[True][::-1]}


def _pairs(model: Any, network: UNet) -> Iterator[tuple[Any, nn.Module]]:
    """Layers of both that hold the same weights, in the order in which an image passes them."""
    yield model.time_embedding.linear_1, network.time_embed[0]
    yield model.time_embedding.linear_2, network.time_embed[2]
    if network.config.num_classes:
        yield model.class_embedding, network.label_emb
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
        elif isinstance(right, Downsample):
            yield left.conv, right.op
        elif isinstance(right, Upsample):
            assert right.conv is not None
            yield left.conv, right.conv
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
    """Residual blocks, each followed by its attention if there is one, and what resamples at the end."""
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
