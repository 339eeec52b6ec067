"""What a learned solver is taught with: trajectories of a model, and how far from the teacher's images it leads.

The gradient for a solver's numbers goes back through the whole trajectory; what the network computed is computed again
instead of kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.diffusion import fitted
from rcdm_fast.diffusion.schedule import Floats, Schedule, network_timestep
from rcdm_fast.diffusion.solvers import Solver
from rcdm_fast.model import Model
from rcdm_fast.models import networks
from rcdm_fast.precision import ieee_fp32
from rcdm_fast.solver_fit import HELD_OUT, Asked, distances


class Lesson:
    """The trajectories, and how far from the teacher a solver leads.

    Attributes:
        base: the model's schedule.
        device: where the network is.
        choosing, judged: places of the trajectories that choices are made by, and of those that judge; int64.
    """

    def __init__(
        self, model: Model, ask: Asked, wanted: Tensor, h: Tensor | None, label: Tensor | None, seed: int
    ) -> None:
        self.base = model.config.schedule
        self._ask, self._wanted, self._seed, self.device = ask, wanted, seed, model.device
        self._network = networks.copy_of(model.unet, model.device)
        self._h = None if h is None else h.detach().float().clone()
        self._label = None if label is None else label.clone()
        self._noise = ask.noise()
        places = torch.arange(len(wanted))
        held = places[places % HELD_OUT == 0]
        self._learning = places[places % HELD_OUT != 0]
        self.choosing, self.judged = held[0::2], held[1::2]

    def errors(self, schedule: Schedule, solver: Solver, places: Tensor) -> Floats:
        """Relative L2 distances of a solver's images to the teacher's, of some trajectories; [n]."""
        return distances(self._ask.images(schedule, solver, places), self._wanted[places])

    def validate(self, nfe: int, numbers: Tensor) -> float:
        """Mean distance where choices are made."""
        with torch.no_grad(), ieee_fp32(self.device):
            images = [self._unrolled(nfe, numbers, part).cpu() for part in self.choosing.split(32)]
        return float(distances(torch.cat(images), self._wanted[self.choosing]).mean())

    def loss(self, nfe: int, numbers: Tensor, step: int, batch_size: int) -> Tensor:
        """The mean distance of a batch at three sizes, with gradients; which batch depends on seed and step alone."""
        generator = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(repr((self._seed, nfe, step)).encode()).digest()[:7], "little")
        )
        order = torch.randperm(len(self._learning), generator=generator)[:batch_size]
        part = self._learning[order]
        images, wanted = self._unrolled(nfe, numbers, part), self._wanted[part].to(self.device)
        total = torch.zeros((), device=self.device)
        sizes = [size for size in (1, 2, 4) if size < images.shape[-1]]
        for size in sizes:
            a, b = F.avg_pool2d(images, size).flatten(1), F.avg_pool2d(wanted, size).flatten(1)
            total = total + ((a - b).norm(dim=1) / b.norm(dim=1)).mean()
        return total / len(sizes)

    def _unrolled(self, nfe: int, numbers: Tensor, part: Tensor) -> Tensor:
        """Images of some trajectories, [n,3,H,W], as `fitted.solver` makes them, with gradients for the numbers."""
        found = fitted.resolve(self.base, nfe, numbers)
        weights, seen = found.weights.float().to(self.device), network_timestep(self.base, 1) * found.asked
        factors = fitted.x0_factors(self.base, found.alpha_bar).float().to(self.device)
        given = [None if value is None else value[part].to(self.device) for value in (self._h, self._label)]
        x = self._noise[part].to(self.device)
        known = [x]
        for i in range(nfe):
            time_seen = seen[i].float().to(self.device).expand(len(x))
            output = _Recomputed.apply(x, time_seen, lambda x, t: self._network(x, t, *given))
            known.append((factors[i, 0] * x + factors[i, 1] * output[:, :3]).clamp(-1, 1))
            x = torch.einsum("j,jnchw->nchw", weights[i, : i + 2], torch.stack(known))
        return x.clamp(-1, 1)


class _Recomputed(torch.autograd.Function):
    """A network's answer, of which nothing is kept but x [N,3,H,W] and t [N]: it is computed again on the way back.

    `torch.utils.checkpoint` does that too, for anything, and loads torch's compiler first, which takes seconds.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x, t)
        ctx.network = network
        return network(x, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, t = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        with torch.enable_grad():
            of_x, of_t = torch.autograd.grad(ctx.network(x, t), (x, t), grad)
        return of_x, of_t, None
