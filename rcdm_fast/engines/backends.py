"""Convolutions, norms and attention as the fast engines run them; see `program.Backend`.

`OneDnnBackend` (CPU): weights packed once, bias and residual inside the convolution, results of norms in buffers that
the backend keeps; 3x3 convolutions of float32 are ours (`ops/winograd.py`). `TorchBackend` (any device): PyTorch's, in
channels-last memory. `ModuleBackend`: the same for the compiler, without anything that it could not see.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.engines.program import Convolution, upsampled
from rcdm_fast.models.condition_map import resized, weights
from rcdm_fast.ops import schema, selection, winograd
from rcdm_fast.ops.schema import NormInputs


class _OneDnnConvolution:
    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dtype: torch.dtype) -> None:
        self._plain: Tensor | None = weight.detach().to("cpu", dtype).contiguous()
        self._bias = None if bias is None else bias.detach().to("cpu", dtype)
        self._geometry = ([padding] * 2, [stride] * 2, [1, 1], 1)
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor, add: Tensor | None = None, overwrite: bool = False) -> Tensor:
        run = torch.ops.mkldnn
        if self._packed is None:
            # The first image's size decides the layout; oneDNN chooses the same one for other batches.
            self._packed = run._reorder_convolution_weight(self._plain, *self._geometry, list(x.shape))
            self._plain = None
        weight, bias, geometry = self._packed, self._bias, self._geometry
        out: Tensor
        if add is None:
            out = run._convolution_pointwise(x, weight, bias, *geometry, "none", [], "")
        elif overwrite:
            out = run._convolution_pointwise_.binary(add, x, weight, bias, *geometry, "add", 1.0, None, [], None)
        else:
            out = run._convolution_pointwise.binary(x, add, weight, bias, *geometry, "add", 1.0, None, [], None)
        return out


class _WinogradConvolution:
    def __init__(self, weight: Tensor, bias: Tensor | None, upsampled: bool = False) -> None:
        self._weight = winograd.packed(weight.detach())
        self._bias = None if bias is None else bias.detach().contiguous()
        self._small = _OneDnnConvolution(weight, bias, 1, 1, torch.float32)
        self._upsampled = upsampled

    def __call__(self, x: Tensor, add: Tensor | None = None, overwrite: bool = False) -> Tensor:
        if winograd.large_enough(x, self._upsampled):
            return winograd.convolution(x, self._weight, self._bias, add, overwrite, self._upsampled)
        return self._small(upsampled(x) if self._upsampled else x, add, overwrite)


class OneDnnBackend:
    """On the CPU, in float32 or bfloat16."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers: dict[tuple[int, ...], Tensor] = {}

    def convolution(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Convolution:
        if winograd.serves(weight, stride, padding, self._dtype, weight.device):
            return _WinogradConvolution(weight, bias)
        return _OneDnnConvolution(weight, bias, stride, padding, self._dtype)

    def upsampling(self, weight: Tensor, bias: Tensor | None) -> Convolution | None:
        if not winograd.serves(weight, 1, 1, self._dtype, weight.device):
            return None
        return _WinogradConvolution(weight, bias, upsampled=True)

    def norm(self, inputs: NormInputs) -> Tensor:
        shape = schema.film_group_norm_shape(inputs)
        out = self._buffers.get(shape)
        if out is None:
            out = self._buffers[shape] = schema.film_group_norm_result(inputs)
        torch.ops.rcdm_fast.film_group_norm_out(out, *inputs)
        return out

    def map_film(self, x: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        torch.ops.rcdm_fast.map_film(x, film, rows, *_sides(x, film))
        return x

    def attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        out: Tensor = torch.ops.rcdm_fast.attention(qkv, heads, new_order)
        return out

    def forget_buffers(self) -> None:
        """Give back the norms' buffers; for another batch size."""
        self._buffers.clear()


def _sides(x: Tensor, film: Tensor) -> tuple[Tensor, Tensor]:
    """What each line and each column of images takes of a map's."""
    down, across = (
        weights(of, to, torch.float32, x.device) for to, of in zip(x.shape[2:], film.shape[2:], strict=True)
    )
    return down, across


class TorchConvolution(nn.Module):
    """PyTorch's; its bias is a pass of its own on CUDA."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        packed = weight.detach().to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device, dtype), requires_grad=False)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor, add: Tensor | None = None, overwrite: bool = False) -> Tensor:
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return out if add is None else out + add


class ModuleBackend:
    """On any device, in any float dtype; `made` lists the convolutions. Nothing is written in place.

    What runs is settled here, before anything is traced: the compiler refuses questions about what is installed.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.made: list[nn.Module] = []
        self._dtype, self._device = dtype, device
        self._norm = selection.film_group_norm_visible(device)
        self._attention = selection.attention(device)

    def convolution(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Convolution:
        made = TorchConvolution(weight, bias, stride, padding, self._dtype, self._device)
        self.made.append(made)
        return made

    def upsampling(self, weight: Tensor, bias: Tensor | None) -> Convolution | None:
        return None

    def norm(self, inputs: NormInputs) -> Tensor:
        return self._norm(*inputs)

    def map_film(self, x: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        # The weights of `resized` sum to one, so that one is added to the small map.
        scale, shift = film.index_select(0, rows).chunk(2, dim=1)
        scale, shift = resized(torch.cat([scale + 1, shift], dim=1), x.shape[-1]).to(x.dtype).chunk(2, dim=1)
        return F.silu(torch.addcmul(shift, x, scale))

    def attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        return self._attention(qkv, heads, new_order)


class TorchBackend(ModuleBackend):
    """The same, writing norms into buffers; `choices` says which implementations run, and measures them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self.choices = selection.Choices(device)

    def norm(self, inputs: NormInputs) -> Tensor:
        out = schema.film_group_norm_result(inputs)
        self.choices.film_group_norm(out, inputs)
        return out

    def norm_before(self, before: Tensor, inputs: NormInputs) -> Tensor:
        """`reference.film_group_norm_before`."""
        out = schema.film_group_norm_result(inputs)
        self.choices.film_group_norm_before(out, before, inputs)
        return out

    def norm_given(
        self, moments: Tensor, skip_moments: Tensor | None, before: Tensor | None, inputs: NormInputs
    ) -> Tensor:
        """`reference_moments.film_group_norm_given`."""
        out = schema.film_group_norm_result(inputs)
        self.choices.film_group_norm_given(out, moments, skip_moments, before, inputs)
        return out

    def map_film(self, x: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        self.choices.map_film(x, film, rows, *_sides(x, film))
        return x

    def attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        return self.choices.attention(qkv, heads, new_order)
