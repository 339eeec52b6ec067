"""The ADM UNet in plain PyTorch: the readable truth that every engine is held to.

Structure and parameter names follow the published guided-diffusion / RCDM code, so that a published `state_dict`
loads as it is: Dhariwal and Nichol 2021 (section 3), with the representation h added to the time embedding, emb =
time_mlp(t) + W h (Bordes et al. 2021, as released).

Knows nothing about the diffusion process: `timesteps` are whatever numbers the time embedding is to see (see
`Schedule.network_timesteps`), and the output is raw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.config import GROUPS, UNetConfig
from rcdm_fast.models.condition_map import MapFilm, mean_of, resized


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of the timesteps: [N] (any number type) -> float32 [N, dim], cosines first."""
    angles = timesteps.float()[:, None] * timestep_frequencies(dim, max_period, timesteps.device)[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim % 2))


def timestep_frequencies(dim: int, max_period: float = 10000.0, device: torch.device | None = None) -> Tensor:
    """The sinusoids' frequencies, falling from 1 to nearly 1 / max_period; float32 [dim // 2]."""
    half = dim // 2
    return torch.exp(-math.log(max_period) * torch.arange(half, device=device).float() / half)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-5)


def _zeroed(layer: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _deep(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Two hidden layers; begins as zero, so that a network with it begins as the one without."""
    last = nn.Linear(hidden, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)


def summed(layers: Sequence[nn.Module], h: Tensor) -> Tensor:
    """The sum of what layers say of the same h."""
    found: Tensor = functools.reduce(torch.add, (layer(h) for layer in layers))
    return found


class Upsample(nn.Module):
    """Nearest neighbor, twice the resolution, then (`conv`) a 3x3 convolution."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        if conv:
            self.conv: nn.Conv2d | None = nn.Conv2d(channels, channels, 3, padding=1)
        else:
            self.conv = None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Half the resolution: a strided 3x3 convolution, or 2x2 average pooling."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm, conditioned by `film`; optionally halves or doubles the resolution.

    film = emb_layers(emb) = Linear(SiLU(emb)) is computed by the caller, because it does not depend on the image.
    With scale-shift norm (scale, shift) = film and out = conv(SiLU(GN(h) * (1 + scale) + shift)); without, out =
    conv(SiLU(GN(h + film))). The film of a map differs from pixel to pixel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        dropout: float,
        scale_shift: bool,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.film_width = 2 * out_channels if scale_shift else out_channels
        self.in_layers = nn.Sequential(
            _group_norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.resample: nn.Module | None = None
        if up:
            self.resample = Upsample(in_channels, conv=False)
        elif down:
            self.resample = Downsample(in_channels, conv=False)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, self.film_width))
        self.out_layers = nn.Sequential(
            _group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip_connection = nn.Conv2d(in_channels, out_channels, 1)

    @property
    def film_layer(self) -> nn.Linear:
        """The linear layer that gives `film`."""
        layer = self.emb_layers[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """[N,in,H,W], [N,film_width] (of a map [N,film_width,h,w]) -> [N,out,H',W']."""
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        film = film.to(h.dtype)
        film = film[:, :, None, None] if film.ndim == 2 else resized(film, h.shape[-1])
        out_norm, activation, dropout, out_conv = self.out_layers
        if self.scale_shift:
            scale, shift = film.chunk(2, dim=1)
            h = out_norm(h) * (1 + scale) + shift
        else:
            h = out_norm(h + film)
        h = out_conv(dropout(activation(h)))
        out: Tensor = self.skip_connection(x) + h
        return out


class AttentionBlock(nn.Module):
    """Self-attention over all positions, with a residual connection; [N,C,H,W] -> [N,C,H,W].

    `new_order` False: the qkv channels are [head, (q,k,v), width]; True: [(q,k,v), head, width].
    """

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        flat = x.reshape(n, c, height * width)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.reshape(n, 3, self.heads, c // self.heads, -1).unbind(dim=1)
        else:
            q, k, v = qkv.reshape(n, self.heads, 3, c // self.heads, -1).unbind(dim=2)
        h = F.scaled_dot_product_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3))
        out: Tensor = flat + self.proj_out(h.transpose(2, 3).reshape(n, c, -1))
        return out.reshape(n, c, height, width)


class Stage(nn.Sequential):
    """Layers in sequence; each residual block among them takes its own rows off `film`."""

    def forward(self, x: Tensor, film: Iterator[Tensor]) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, next(film)) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """eps (and, with a learned variance, its interpolation value) from a noisy image, a timestep and a condition."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        emb_channels = 4 * config.num_channels
        self.time_embed = nn.Sequential(
            nn.Linear(config.num_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if config.num_classes:
            self.label_emb = nn.Embedding(config.num_classes, emb_channels)
        if config.representation_dim:
            self.ssl_emb = nn.Linear(config.summary_dim, emb_channels)
            if config.representation_hidden:
                self.ssl_deep = _deep(config.summary_dim, config.representation_hidden, emb_channels)

        channels = config.level_channels[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(3, channels, 3, padding=1))])
        skips = [channels]
        last = len(config.level_channels) - 1
        for level, width in enumerate(config.level_channels):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._stage(channels, width, level, upsampling=False))
                channels = width
                skips.append(channels)
            if level != last:
                self.input_blocks.append(Stage(self._down(channels)))
                skips.append(channels)

        self.middle_block = Stage(
            self._block(channels, channels), self._attention(channels, False), self._block(channels, channels)
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(config.level_channels))):
            for index in range(config.num_res_blocks + 1):
                stage = self._stage(channels + skips.pop(), width, level, upsampling=True)
                channels = width
                if level and index == config.num_res_blocks:
                    stage.append(self._up(channels))
                self.output_blocks.append(stage)

        self.out = nn.Sequential(
            _group_norm(channels), nn.SiLU(), _zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )
        if config.condition_map:
            film_width = sum(block.film_width for block in self.residual_blocks())
            self.map_film = MapFilm(config.condition_map, config.num_channels, film_width)

    def _block(self, in_channels: int, out_channels: int, up: bool = False, down: bool = False) -> ResBlock:
        return ResBlock(
            in_channels,
            out_channels,
            4 * self.config.num_channels,
            dropout=self.config.dropout,
            scale_shift=self.config.use_scale_shift_norm,
            up=up,
            down=down,
        )

    def _attention(self, channels: int, upsampling: bool) -> AttentionBlock:
        return AttentionBlock(channels, self.config.heads(channels, upsampling), self.config.use_new_attention_order)

    def _stage(self, in_channels: int, out_channels: int, level: int, upsampling: bool) -> Stage:
        stage = Stage(self._block(in_channels, out_channels))
        if self.config.attends_at(level):
            stage.append(self._attention(out_channels, upsampling))
        return stage

    def _down(self, channels: int) -> nn.Module:
        if self.config.resblock_updown:
            return self._block(channels, channels, down=True)
        return Downsample(channels, self.config.conv_resample)

    def _up(self, channels: int) -> nn.Module:
        if self.config.resblock_updown:
            return self._block(channels, channels, up=True)
        return Upsample(channels, self.config.conv_resample)

    def embed(
        self,
        timesteps: Tensor,  # [N]
        representation: Tensor | None = None,  # [N,D]
        label: Tensor | None = None,  # int64 [N]
    ) -> Tensor:
        """The conditioning vector time_mlp(t) + W h (+ what `condition` adds, + label embedding); float [N,E].

        Of a map, h is its mean. It does not depend on the image, so it can be computed once for a whole trajectory.
        """
        emb: Tensor = self.time_embed(timestep_embedding(timesteps, self.config.num_channels))
        if label is not None:
            emb = emb + self.label_emb(label)
        if representation is not None:
            emb = emb + self.condition(representation)
        return emb

    def condition_layers(self) -> list[nn.Module]:
        """What is called with a vector h, each by itself; the sum stands beside the time embedding."""
        return [self.ssl_emb, self.ssl_deep] if self.config.representation_hidden else [self.ssl_emb]

    def condition(self, representation: Tensor) -> Tensor:
        """What representations [N,D] add to the time embedding; [N,E]."""
        return summed(self.condition_layers(), self.summary(representation))

    def summary(self, representation: Tensor) -> Tensor:
        """What stands beside the time embedding: a vector itself, the mean of a map; [N,D] -> [N,summary_dim]."""
        shape = self.config.condition_map
        return mean_of(representation, shape) if shape else representation

    def residual_blocks(self) -> list[ResBlock]:
        """All residual blocks, in the order in which an image passes them."""
        stages = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return [layer for stage in stages for layer in stage.children() if isinstance(layer, ResBlock)]

    def film(self, emb: Tensor, representation: Tensor | None = None) -> Tensor:
        """What conditions the residual blocks, side by side in their order: float [N,E] -> [N,F].

        With maps it takes the representations, too, and gives [N,F,h,w].
        """
        film = torch.cat([block.emb_layers(emb) for block in self.residual_blocks()], dim=1)
        if not self.config.condition_map:
            return film
        assert representation is not None, "a network of maps is asked with them"
        maps: Tensor = self.map_film(representation)
        return film[:, :, None, None] + maps

    def denoise(self, x: Tensor, film: Tensor) -> Tensor:
        """The network proper: [N,3,H,W], [N,F] or [N,F,h,w] -> [N,3 or 6,H,W] (eps, then the variance value)."""
        rows = iter(film.split([block.film_width for block in self.residual_blocks()], dim=1))
        skips = []
        h = x
        for stage in self.input_blocks:
            h = stage(h, rows)
            skips.append(h)
        h = self.middle_block(h, rows)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), rows)
        out: Tensor = self.out(h)
        return out

    def forward(
        self,
        x: Tensor,  # [N,3,H,W]
        timesteps: Tensor,  # [N]
        representation: Tensor | None = None,  # [N,D]
        label: Tensor | None = None,  # int64 [N]
    ) -> Tensor:
        """`denoise` after `embed` and `film`; [N,3 or 6,H,W]."""
        return self.denoise(x, self.film(self.embed(timesteps, representation, label), representation))
