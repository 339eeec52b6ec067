"""A step of training as one CUDA graph: thousands of launches cost as much as one.

The graph holds everything between a batch and the next weights: loss, gradients, their norm, AdamW, averages. What
changes from step to step is read from tensors that are filled before it is replayed. A step whose loss or gradient is
not finite changes nothing, by the optimizer's own `found_inf`; so do the steps that are run before the capture, in
which kernels are loaded and cuDNN times its algorithms.

On a CPU nothing is captured and every call runs the same code: that is for tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn

from rcdm_fast import devices

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WARM_STEPS = 3  # before the capture

Terms = dict[str, Tensor]


B = TypeVar("B", bound="DataclassInstance")


class GraphedStep(Generic[B]):
    """See the module.

    Args:
        gradients: of a batch: the mean terms and the losses [N] of its images; leaves gradients in the parameters.
        network: whose parameters are trained, on one device.
        optimizer: AdamW with `fused` steps over those parameters.
        averages: for each average its tensors, and the network's that they follow.
        clip_norm: the gradient is scaled down to this norm.
    """

    def __init__(
        self,
        gradients: Callable[[B], tuple[Terms, Tensor]],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        averages: Sequence[tuple[list[Tensor], list[Tensor]]],
        clip_norm: float,
    ) -> None:
        self._gradients, self._optimizer, self._averages = gradients, optimizer, averages
        self._parameters = [each for each in network.parameters() if each.requires_grad]
        self._clip_norm = clip_norm
        self._device = self._parameters[0].device
        self._rate = torch.zeros((), device=self._device)
        self._fractions = [torch.zeros((), device=self._device) for _ in averages]  # how far each average moves
        self._held = torch.ones((), device=self._device)  # 1: nothing changes
        self._batch: B | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: tuple[Terms, Tensor, Tensor] | None = None

    def __call__(self, batch: B, rate: float, fractions: Sequence[float]) -> tuple[Terms, Tensor, Tensor]:
        """One step; the mean terms, the gradient's norm and the losses [N], valid until the next call.

        Every batch has the shapes of the first. Waits for nothing on a GPU but in the first call.

        Args:
            batch: tensors on the device; those on the CPU are kept from the first batch.
            rate: learning rate.
            fractions: in 0..1, how far each average moves towards the new weights.
        """
        if self._batch is None:
            self._prepare(batch)
        assert self._batch is not None
        for name in _on(self._device, self._batch):
            getattr(self._batch, name).copy_(getattr(batch, name))
        self._rate.fill_(rate)
        for own, fraction in zip(self._fractions, fractions, strict=True):
            own.fill_(fraction)
        self._held.fill_(0.0)
        if self._graph is None:
            return self._step()
        self._graph.replay()
        assert self._found is not None
        return self._found

    def release(self) -> None:
        """Leave the optimizer as others know it; the next call captures again."""
        for group in self._optimizer.param_groups:
            group.update(lr=float(group["lr"]), capturable=False)
        for name in ("found_inf", "grad_scale"):
            self._optimizer.__dict__.pop(name, None)
        self._batch = self._graph = self._found = None

    def _prepare(self, batch: B) -> None:
        own = {name: getattr(batch, name).clone() for name in _on(self._device, batch)}
        self._batch = dataclasses.replace(batch, **own)
        for group in self._optimizer.param_groups:
            group.update(lr=self._rate, capturable=self._device.type == "cuda")
        self._held.fill_(1.0)
        if self._device.type != "cuda":
            return
        with devices.current(self._device):
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream())
            with devices.timed_convolutions():
                with torch.cuda.stream(stream):
                    for _ in range(WARM_STEPS):
                        self._step()
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._found = self._step()
            self._graph = graph

    def _step(self) -> tuple[Terms, Tensor, Tensor]:
        assert self._batch is not None
        terms, losses = self._gradients(self._batch)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm, foreach=True)
        finite = norm.isfinite() & terms["loss"].isfinite()
        stays = torch.maximum(self._held, 1.0 - finite.float())
        self._optimizer.found_inf = stays  # type: ignore[attr-defined]
        self._optimizer.grad_scale = None  # type: ignore[attr-defined]
        self._optimizer.step()
        with torch.no_grad():
            for (average, state), fraction in zip(self._averages, self._fractions, strict=True):
                apart = torch._foreach_sub(state, average)
                torch._foreach_mul_(apart, fraction * (1.0 - stays))
                torch._foreach_add_(average, apart)
        return terms, norm.detach(), losses


def _on(device: torch.device, batch: DataclassInstance) -> list[str]:
    """The fields of a batch whose tensors are on a device."""
    fields = [field.name for field in dataclasses.fields(batch)]
    return [name for name in fields if getattr(batch, name).device.type == device.type]
