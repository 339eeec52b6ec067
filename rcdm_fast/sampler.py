"""Sampler: a network, its schedule and the engine that runs it; what of `Model` needs no encoder.

Everything a call needs is decided here (which noise, which rows, which batches) and handed to the stages, none of which
knows the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TypeVar, Unpack

import torch
from torch import Tensor

from rcdm_fast import arguments, host
from rcdm_fast.arguments import Numbers
from rcdm_fast.checks import described
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import conditioning, registry, sampling
from rcdm_fast.diffusion.sampling import Request
from rcdm_fast.diffusion.sampling_config import ONE_WAY, SamplingConfig, SamplingKeywords, chosen
from rcdm_fast.diffusion.schedule import Schedule, network_timestep
from rcdm_fast.exporters.graph import weights_hash
from rcdm_fast.portable import Portable
from rcdm_fast.precision import ieee_fp32

T = TypeVar("T")


class Sampler(Portable):
    """Draws images of representations that are given."""

    @property
    def image_size(self) -> int:
        """Side of the images it makes, in pixels."""
        return self.config.unet.image_size

    @host.guarded()
    def network(
        self,
        x: Tensor,  # [N,3,H,W]
        t: Tensor,  # int64 [N]
        representation: Tensor | None = None,  # [N,D]
        label: Tensor | None = None,  # int64 [N]
    ) -> Tensor:
        """The raw network at base timesteps t in 0..T-1; float32 [N,3 or 6,H,W] (eps, then the variance value).

        Runs the plain PyTorch network in fp32, whatever the engine; applies `rescale_timesteps` itself.
        """
        self._check_process()
        x = arguments.floating(x, "x", f"[N,3,{self.image_size},{self.image_size}]")
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, self.image_size, self.image_size):
            raise ConfigError(f"x must be [N,3,{self.image_size},{self.image_size}], got {list(x.shape)}")
        times = arguments.integers(t, "t")
        steps = self.config.schedule.diffusion_steps
        if len(times) != len(x):
            raise ConfigError(f"t must be int [{len(x)}], got {len(times)} numbers")
        if times and not (0 <= min(times) and max(times) < steps):
            raise ConfigError(f"t must be in 0..{steps - 1}")
        representation, label = arguments.condition(self.config.unet, representation, label, self.device)
        arguments.rows_for(len(x), representation=representation, label=label)
        seen = torch.tensor(times, dtype=torch.float32, device=self.device) * network_timestep(self.config.schedule, 1)
        with torch.inference_mode(), ieee_fp32(self.device):
            out: Tensor = self.unet(x.to(self.device), seen, representation, label)
        return out.clone()

    @host.guarded()
    def sample(
        self,
        h: Numbers | None = None,
        config: SamplingConfig | None = None,
        *,
        label: Numbers | Sequence[int] | None = None,
        items: Numbers | Sequence[int] | None = None,
        guide: Sampler | None = None,
        noise: Numbers | None = None,
        step_noise: Numbers | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Unpack[SamplingKeywords],
    ) -> Tensor:
        """Images that share a representation.

        Args:
            h: representations [R,D], a tensor or array of floats (used as float32); for a model of maps [R,C,h,w] or
                their tokens [R,h w,C], row by row and without class token; None for a class-conditional or
                unconditional model.
            config: how samples are drawn: per, steps, solver, eta, guidance, seed, clip (`SamplingConfig`, which see).
            label: class labels, whole numbers [R], for a class-conditional model.
            items: whole numbers [R] that fit into int64; key the noise of each representation. Default 0..R-1. Rows
                with the same item and the same h give the same images.
            guide: a weaker model of the same kind on the same device (fewer weights, or an earlier state of the same
                training): guide + w (conditional - guide) instead (autoguidance, Karras et al. 2024).
            noise: x_T [R,per,3,H,W] instead of the keyed noise.
            step_noise: [K,R,per,3,H,W], in order of use, instead of the keyed noise.
            batch_size: images per network evaluation; default 32 on CPU, 64 on GPU. Changes the images by
                rounding only.
            progress: show a progress bar.
            settings: fields of `config` as keywords, as in ``sample(h, steps=20)``; they go before those of `config`.

        Returns:
            float32 [R,per,3,H,W] in [-1,1] on the model's device (values may pass the bounds if `clip` is False).

        Raises:
            ConfigError: a wrong shape, width, solver, step count or setting.
            SamplingError: the result is not finite.
        """
        request = self.request(
            h, config, label=label, items=items, guide=guide, noise=noise, step_noise=step_noise, **settings
        )
        size = self.image_size
        out = torch.empty(request.total, 3, size, size, device=self.device)
        for place, images in self.batches(request, batch_size, progress, guide=guide):
            out[place] = images
        return out.view(len(request.items), request.per, 3, size, size)

    @host.guarded()
    def sequence(
        self,
        h: Numbers,
        config: SamplingConfig | None = None,
        *,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Unpack[SamplingKeywords],
    ) -> Tensor:
        """Frames of representations that follow each other in time, as world models and video encoders give them.

        All frames of a sequence start from one x_T (and have the same noise in every step), so that what moves from
        frame to frame is what moves in h.

        Args:
            h: representations of one sequence [T,D], or of several [S,T,D].
            config: how frames are drawn, as in `sample`; without it there is one sample of each sequence, and `per` is
                the number of samples of a sequence, each with its own x_T.
            batch_size, progress, settings: as in `sample`.

        Returns:
            float32 [S,per,T,3,H,W] in [-1,1]; S is 1 for one sequence. `films.write` makes a strip or a film of it.

        Raises:
            ConfigError, SamplingError: as `sample`; h of another rank, or without frames.
        """
        given = arguments.floating(h, "h", "[T,D] or [S,T,D]")
        if given.ndim not in (2, 3) or not all(given.shape[:-1]):
            raise ConfigError(f"h must be [T,D] or [S,T,D], got {list(given.shape)}")
        several = given[None] if given.ndim == 2 else given
        count, frames = several.shape[:2]
        drawn = chosen(config, settings, SamplingConfig(per=ONE_WAY))
        items = [number for number in range(count) for _ in range(frames)]
        images = self.sample(several.flatten(0, 1), drawn, items=items, batch_size=batch_size, progress=progress)
        return images.view(count, frames, *images.shape[1:]).transpose(1, 2)

    def request(
        self,
        h: Numbers | None = None,
        config: SamplingConfig | None = None,
        *,
        label: Numbers | Sequence[int] | None = None,
        items: Numbers | Sequence[int] | None = None,
        guide: Sampler | None = None,
        noise: Numbers | None = None,
        step_noise: Numbers | None = None,
        pairs: Sequence[tuple[int, int]] | None = None,
        **settings: Unpack[SamplingKeywords],
    ) -> Request:
        """Check the arguments of `sample` (which see) before any work is done; run the result with `batches`.

        `pairs` draws just these (row, sample), in this order, instead of samples 0..per-1 of every row.
        """
        drawn = chosen(config, settings)
        self.check_guidance(drawn.guidance, guide)
        with host.apart():
            asked = sampling.request(
                self.config,
                self.device,
                h,
                drawn,
                label=label,
                items=items,
                given_noise=noise,
                step_noise=step_noise,
                pairs=pairs,
                guide=None if guide is None else guide.config,
            )
            if asked.chosen.fitted is not None:
                registry.check_weights(asked.chosen.fitted, self.weights)
            return asked

    @cached_property
    def weights(self) -> str:
        """SHA-256 of network, weights and schedule, which solvers fitted to the model are bound to."""
        return weights_hash(self.unet, self.config.schedule)

    def check_guidance(self, guidance: float, guide: Sampler | None = None) -> None:
        """Raise `ConfigError` unless the model can be guided so (`sample`)."""
        if guide is not None and not isinstance(guide, Sampler):
            raise ConfigError(f"a guide is a model, such as rcdm_fast.load gives; got {described(guide)}")
        if guide is not None and guide.device != self.device:
            raise ConfigError(f"the guide is on {guide.device}, the model on {self.device}")
        if guide is self:
            raise ConfigError("a model cannot guide itself; guidance without a guide is away from no representation")
        arguments.guidance(self.config, guidance, None if guide is None else guide.config)

    def batches(
        self,
        request: Request,
        batch_size: int | None = None,
        progress: bool = False,
        watch: sampling.Watch | None = None,
        guide: Sampler | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Run a request, yielding (places among its images, images [n,3,H,W]) as they are finished.

        Several threads may do so at once: their batches take turns. `watch` is shown (places, x_T) of every batch;
        `guide` is the request's.

        Raises:
            ConfigError: a guide of another kind than the request was checked for.
        """
        size = arguments.batch_size(batch_size, self.device)
        if request.guide != (None if guide is None else guide.config):
            raise ConfigError("give request and batches the same guide")
        with host.apart():
            self._check_process()
            plan = conditioning.make_plan(self.unet, request.schedule, request.conditions, request.label)
            weaker = None
            if guide is not None:
                guide._check_process()
                visited = Schedule(guide.config.schedule, request.schedule.timesteps, request.schedule.asked)
                theirs = conditioning.make_plan(guide.unet, visited, request.conditions, request.label)
                weaker = guide.engine, theirs
        others = () if guide is None else (guide,)
        return self._in_turn(sampling.run(self.engine, plan, request, size, progress, watch, weaker), *others)

    def _in_turn(self, batches: Iterator[T], *others: Sampler) -> Iterator[T]:
        """One after another, while no other thread draws with this model or the others."""
        apart = host.guarded_each(batches)
        models = sorted((self, *others), key=id)  # always in the same order: no two threads wait for each other
        while True:
            self._check_process()
            with contextlib.ExitStack() as held:
                for each in models:
                    held.enter_context(each._turn)
                batch = next(apart, None)
            if batch is None:
                return
            yield batch
