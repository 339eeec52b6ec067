"""The moving parts of an RCDM training run: network, optimizer, averages, and one step of them.

Resumed runs and runs in several processes take the same steps (`batches.py`). On a GPU the images and the noise of the
next step are drawn while it works on this one, and the host waits for it once a step.

Knows nothing about files; `train.py` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as full_state

from rcdm_fast import host, memory
from rcdm_fast.config import ConfigError, UNetConfig
from rcdm_fast.data.image_set import ImageSet, step_generator
from rcdm_fast.diffusion.schedule import Schedule, network_timestep
from rcdm_fast.errors import RunError
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops.candidates import triton_reason
from rcdm_fast.precision import exact
from rcdm_fast.training import distributed, ema, fused_unet, graphed, resume
from rcdm_fast.training.batches import Batch, Batches
from rcdm_fast.training.config import DTYPES, TrainConfig
from rcdm_fast.training.loop import check_finite, learning_rate, set_rate
from rcdm_fast.training.losses import DiffusionLoss

log = logging.getLogger(__name__)

WHOLE = full_state.StateDictOptions(full_state_dict=True, cpu_offload=True)


class Run:
    """See the module.

    Args:
        config: what to train; `unet` is the network with its representation's width filled in.
        data: images.
        bank: their representations in every view, float32 [V,N,D]. Both move to a GPU that has room.
        dist: the processes.

    Raises:
        ConfigError: fp16 without a GPU, or a batch that the processes cannot share.
    """

    def __init__(
        self, config: TrainConfig, unet: UNetConfig, data: ImageSet, bank: Tensor, dist: distributed.Processes
    ) -> None:
        if config.precision == "fp16" and dist.device.type != "cuda":
            raise ConfigError("training in fp16 needs a GPU; use bf16 or fp32")
        if config.precision == "auto":
            config = dataclasses.replace(config, precision=resume.automatic(dist.device))
        dist.fraction(config.batch_size)
        self.config, self.dist, self.unet = config, dist, unet
        self.batches = Batches(config, data, bank, dist)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = UNet(self.inside(unet))
        network = network.to(dist.device).to(memory_format=torch.channels_last)
        network.train()
        self.computed = self._computed(network)
        if config.activation_checkpointing:
            distributed.recompute_blocks(network)
        self.network, self.optimizer = dist.spread(network, self._make_optimizer)
        self.emas = [ema.Ema(self._state_dict(), decay) for decay in (config.ema, *config.ema_decays)]
        self.loss = DiffusionLoss(Schedule.make(config.schedule), config.loss, dist.device)
        self.scaler = torch.amp.GradScaler(dist.device.type, enabled=config.precision == "fp16")
        self.step = 0
        self._micro = config.micro_batch
        self._split_once = False
        self._forward = torch.compile(self.network) if self.computed == "compiled" else self.network
        self._graphed = self._make_graphed()

    def inside(self, unet: UNetConfig) -> UNetConfig:
        """The network that is trained: what it is told about views comes with the representation."""
        return dataclasses.replace(unet, representation_dim=unet.representation_dim + self.batches.views.code_dim)

    def _computed(self, network: UNet) -> str:
        """How steps are computed: ``compiled``, ``fused`` (then the network is changed so) or ``plain``."""
        reasons = fused_unet.reasons_unavailable(self.dist.device)
        if self.dist.sharding == "fully_shard":
            reasons.append("sharded weights go with PyTorch's own operators")
        compile = self.config.compile
        if compile is None:
            compile = self.dist.device.type == "cuda" and bool(reasons) and not triton_reason(self.dist.device)
        if compile or reasons:
            log.info("steps are %s: %s", "compiled" if compile else "plain PyTorch", "; ".join(reasons) or "as asked")
            return "compiled" if compile else "plain"
        fused_unet.attach(network)
        log.info("steps run on fused operators")
        return "fused"

    def _make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        config, passes = self.config, self._passes()
        return torch.optim.AdamW(
            network.parameters(), config.learning_rate, weight_decay=config.weight_decay,
            foreach=passes["foreach"], fused=passes["fused"],
        )  # fmt: skip

    def _passes(self) -> dict[str, bool]:
        """How AdamW goes over its tensors; in a single process each is read and written once."""
        once = self.dist.size == 1 and self.dist.device.type in ("cpu", "cuda")
        return {"foreach": not once, "fused": once}

    def _make_graphed(self) -> graphed.GraphedStep[Batch] | None:
        """The step as a CUDA graph, where every launch of it is known beforehand."""
        config = self.config
        several = self.dist.size > 1 or (config.micro_batch and config.micro_batch < config.batch_size)
        if self.dist.device.type != "cuda" or self.computed != "fused" or several or self.scaler.is_enabled():
            return None
        if config.unet.dropout or config.activation_checkpointing:
            return None
        log.info("steps run as a CUDA graph")
        state = self._state_dict()
        averages = [average.pairs(state) for average in self.emas]
        return graphed.GraphedStep(self._backward, self.network, self.optimizer, averages, config.clip_norm)

    def _state_dict(self) -> dict[str, Tensor]:
        return distributed.bare(self.network).state_dict()

    def advance(self) -> dict[str, float]:
        """One optimizer step; the loss terms of the whole batch and the gradient's norm.

        Raises:
            RunError: a loss or gradient that is not finite (the weights are still those of the step before), or a
                batch that does not fit into memory, even in halves.
        """
        with self._own_dropout():
            return self._advance()

    @contextlib.contextmanager
    def _own_dropout(self) -> Iterator[None]:
        """Dropout draws from PyTorch's default generator: it is set for the step, and put back."""
        if not self.config.unet.dropout:
            yield
            return
        with host.own_random():
            key = step_generator(self.config.seed, self.step, stream=3 + self.dist.rank).initial_seed()
            torch.manual_seed(key)
            yield

    def _advance(self) -> dict[str, float]:
        if self._graphed is not None:
            return self._advance_graphed(self._graphed)
        config = self.config
        batch = self.batches.draw(self.step)
        set_rate(self.optimizer, self._rate())
        with exact(config.precision, self.dist.device):
            sums, losses = self._backward_that_fits(batch)
        self.scaler.unscale_(self.optimizer)
        total = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm, foreach=True)
        if self.dist.device.type == "cuda":
            self.batches.look_ahead(self.step + 1)
        terms, norm, losses = self._read(sums, ema.whole(total), self.dist.gather(losses))
        self._check(terms, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.batches.timesteps.learn(batch.all_t, losses)
        state = self._state_dict()
        for average in self.emas:
            average.update(state, self.step)
        return {**{name: round(value, 6) for name, value in terms.items()}, "gradient_norm": round(norm, 6)}

    def _advance_graphed(self, step: graphed.GraphedStep[Batch]) -> dict[str, float]:
        """`_advance` where the GPU does everything by itself; the weights stay if a loss or gradient is not finite."""
        batch = self.batches.draw(self.step)
        fractions = [average.fraction(self.step + 1) for average in self.emas]
        try:
            with exact(self.config.precision, self.dist.device):
                sums, norm, losses = step(batch, self._rate(), fractions)
        except RuntimeError as error:
            if not _memory_ran_out(error):
                raise
            step.release()
            self._graphed = None
            self._split(len(batch), error)
        if self._graphed is None:  # what the failed try held went with its error
            return self._advance()
        self.batches.look_ahead(self.step + 1)
        terms, length, losses = self._read(sums, norm, losses)
        self._check(terms, length)
        self.step += 1
        self.batches.timesteps.learn(batch.all_t, losses)
        return {**{name: round(value, 6) for name, value in terms.items()}, "gradient_norm": round(length, 6)}

    def _check(self, terms: Mapping[str, float], norm: float) -> None:
        check_finite(terms["loss"], self.step + 1)
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise RunError(f"the gradient is not finite at step {self.step + 1}: {self._where_not_finite()}")

    def _rate(self) -> float:
        config = self.config
        rate = learning_rate(self.step, config.steps, config.warmup, config.learning_rate)
        warm = max(1, int(config.warmup * config.steps))
        return config.learning_rate if config.lr_schedule == "constant" and self.step >= warm else rate

    def _read(self, terms: dict[str, Tensor], norm: Tensor, losses: Tensor) -> tuple[dict[str, float], float, Tensor]:
        """Mean terms of the whole batch, the gradient's norm, the losses [N] of its images: the step's only wait."""
        means = self.dist.mean(torch.stack(list(terms.values())))
        read = torch.cat([means.float(), norm.detach().float().reshape(1), losses.float()]).cpu()
        *numbers, length = read[: len(terms) + 1].tolist()
        return dict(zip(terms, numbers, strict=True)), length, read[len(terms) + 1 :]

    def _backward_that_fits(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        while True:
            try:
                return self._backward(batch)
            except RuntimeError as error:
                if not _memory_ran_out(error):
                    raise
                self._split(len(batch), error)

    def _split(self, count: int, error: RuntimeError) -> None:
        """Halve the parts of a batch, once in a run of one process."""
        now = self._micro or count
        if self._split_once or self.dist.size > 1 or now == 1:
            raise RunError(
                f"out of memory at step {self.step + 1} with {now} images at once; set a smaller micro_batch "
                "(the result stays the same), or activation_checkpointing"
            ) from error
        self._split_once, self._micro = True, math.ceil(now / 2)
        log.warning("out of memory: the batch is computed %d images at a time from here on", self._micro)
        if self.dist.device.type == "cuda":
            torch.cuda.empty_cache()

    def _backward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of the whole batch, in parts; the mean terms and the losses [N] of this process's images."""
        self.optimizer.zero_grad(set_to_none=True)
        size = self._micro or len(batch)
        places = [slice(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]
        sums: dict[str, Tensor] = {}
        losses = []
        for place in places:
            part = batch.part(place)
            with self.dist.without_exchange(self.network, apply=place != places[-1]):
                terms = self._terms(part)
                losses.append(terms.pop("each"))
                fraction = len(part) / len(batch)
                self.scaler.scale(terms["loss"] * fraction).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value.detach())) + fraction * value.detach()
        return sums, torch.cat(losses)

    def _terms(self, part: Batch) -> dict[str, Tensor]:
        config = self.config
        x_t = self.loss.noisy(part.x0, part.eps, part.t).contiguous(memory_format=torch.channels_last)
        seen = part.t.float() * network_timestep(config.schedule, 1)
        dtype, lowered = DTYPES[config.precision], config.precision != "fp32"
        with torch.autocast(self.dist.device.type, dtype, lowered, cache_enabled=self._graphed is None):
            output = self._forward(x_t, seen, part.h)
        return self.loss(output, part.x0, x_t, part.eps, part.t, part.importance)

    def _where_not_finite(self) -> str:
        bad = [
            name
            for name, value in distributed.bare(self.network).named_parameters()
            if value.grad is not None and not bool(ema.whole(value.grad).isfinite().all())
        ]
        return ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")

    def weights(self) -> list[tuple[float, dict[str, Tensor]]]:
        """Every average, (decay, tensors that take raw representations); every process has to ask."""
        return [(average.decay, self.batches.standard.fold(average.whole())) for average in self.emas]

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, whole tensors on the CPU; every process has to ask."""
        network, optimizer = full_state.get_state_dict(self.network, _plain(self.optimizer), options=WHOLE)
        groups: Any = optimizer.get("param_groups", ())  # only the first process is given it
        for group in groups:  # a graph's rate is a tensor
            group.update(lr=float(group["lr"]), capturable=False)
        return {
            "step": self.step,
            "network": network,
            "emas": [average.whole() for average in self.emas],
            "optimizer": optimizer,
            "timesteps": self.batches.timesteps.state(),
            "scaler": self.scaler.state_dict(),
            "micro_batch": self._micro,
            "micro_asked": self.config.micro_batch,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, in any number of processes."""
        self.step = int(state["step"])
        if self._graphed is not None:
            self._graphed.release()
        full_state.set_state_dict(
            self.network,
            _plain(self.optimizer),
            model_state_dict=state["network"],
            optim_state_dict=state["optimizer"],
            options=WHOLE,
        )
        for group in self.optimizer.param_groups:
            group.update(self._passes())  # a state brings those of the processes that wrote it
        device = self.dist.device if self._passes()["fused"] else torch.device("cpu")
        for values in _plain(self.optimizer).state.values():
            values["step"] = values["step"].to(device, torch.float32)
        for average, tensors in zip(self.emas, state["emas"], strict=True):
            average.copy_(tensors)
        self.batches.timesteps.restore(state["timesteps"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if state.get("micro_asked", self.config.micro_batch) == self.config.micro_batch:  # else it was changed since
            self._micro = int(state["micro_batch"])
        if 0 < self._micro < self.config.batch_size:
            self._graphed = None


def _plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _memory_ran_out(error: BaseException | None) -> bool:
    while error is not None:  # leaving a capture that failed raises another error
        if memory.out_of_memory(error):
            return True
        error = error.__context__
    return False
