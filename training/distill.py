"""A student: a network of the same kind that makes its teacher's images from the same noise in two to five evaluations.

After SFD (Zhou et al. 2024, arXiv 2409.19681): the student begins with the teacher's weights and walks by DDIM at a few
fixed timesteps; after every step it is drawn to where the teacher's trajectory from the same x_T is then, by the mean
absolute difference of x / alpha, and the next step begins where the student itself has come to. As the whole trajectory
is the teacher's, the map from noise to images is kept. The paper's first step without the network is the way down to
the student's first timestep (`trajectories.py`), so the evaluations that are counted are all there are.

What comes out is a model file like any other, with the timesteps in it that it is to be used with.

Knows nothing about commands and engines: all is PyTorch in float32, as differences at high noise need it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import encoders as encoder_room
from rcdm_fast import host
from rcdm_fast.checks import Count, CountOrNone, LearningRate, Range
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.data.image_set import ImageSet, step_generator
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.schedule import AT, Placement, Schedule
from rcdm_fast.diffusion.solvers import Solver, ddim
from rcdm_fast.exporters.graph import hash_of
from rcdm_fast.metrics.intervals import Interval, bootstrap
from rcdm_fast.models import checkpoint, networks
from rcdm_fast.models.unet import UNet
from rcdm_fast.precision import ieee_fp32
from rcdm_fast.training import fused_unet, loop, masks, representations, trajectories, trust
from rcdm_fast.training.config import DTYPES
from rcdm_fast.training.state import RunFolder
from rcdm_fast.training.trajectories import Conditions
from rcdm_fast.training.tuning import FREE, TuneConfig, Tuned
from rcdm_fast.training.views import Views

log = logging.getLogger(__name__)

_JUDGED = 1  # stream of the trajectories that judge; 0 draws those that are learned from
_RESAMPLES = 2000


@dataclass(frozen=True)
class DistillConfig(TuneConfig):
    """How a student of `model` is made; see also `TuneConfig`.

    Attributes:
        nfe: network evaluations that the student has.
        placement: where the student's timesteps lie (`trajectories.student_steps`).
        between: timesteps of the teacher between two of the student's; each costs an evaluation per trajectory.
        trajectories: how many are learned from in all, each seen once; batches of `batch_size`.
        judged: representations whose images judge the student, two of each, from noise that had no part in learning.
        masked_parts: widths of the parts of representations that the teacher was trained to do without, as in its
            `TrainConfig`: in half of the trajectories some are hidden. Empty: those of a world's masked codes, or none.
    """

    learning_rate: LearningRate = 5e-5
    nfe: Annotated[int, Range(2, 5)] = 4
    placement: Placement = "logsnr"
    between: CountOrNone = 3
    trajectories: Count = 32_000
    judged: Annotated[int, Range(2)] = 64
    masked_parts: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trajectories < self.batch_size:
            raise ConfigError(f"trajectories ({self.trajectories}) must make at least one batch of {self.batch_size}")

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.trajectories // self.batch_size


@dataclass(frozen=True)
class Judged:
    """What a student is worth, from noise that it has not learned from.

    Attributes:
        distance: relative L2 distance of its images to its teacher's.
        teacher_distances: of the teacher itself in as few evaluations, with each training-free solver and with DDIM at
            the student's timesteps.
        variance: mean variance of two samples of a representation, as a fraction of the teacher's.
    """

    distance: Interval
    teacher_distances: dict[str, Interval]
    variance: float


@host.guarded(gradients=True, random=True)
def distill(
    config: DistillConfig,
    data: ImageSet | None,
    out: str | Path,
    device: str = "cpu",
    progress: loop.Progress | None = None,
    trusted: Collection[str] = (),
    minutes: float | None = None,
) -> tuple[Path, Judged]:
    """Distill, or resume a run that `out` holds unfinished: the file `out`/NAME.safetensors, and what it is worth.

    Args:
        config: see `DistillConfig`.
        data: images whose representations are drawn, for a model that takes some; any size that its encoder takes.
        out: the run's folder.
        device: where to run.
        progress: called with (steps done, steps in all, loss).
        trusted: as for `adapt`.
        minutes: stop once this call has worked for so long, with a state to go on from; at least one step is done.

    Raises:
        Paused: `minutes` ended before the run.
        ConfigError: a teacher that is a student itself or a decoder of maps, or one that takes representations and
            there are no data or no encoder.
        RunError: the folder holds another run, or one that is under way; the loss is not finite.
        CheckpointError, EncoderError: a model or an encoder that cannot be loaded.
        StorageError: a file cannot be written; the last state that was stays.
    """
    deadline = loop.Deadline(minutes)
    model, tensors = checkpoint.load_model(config.model)
    if model.student_steps:
        raise ConfigError(f"{config.model} is a student itself; distill the model that it learned from")
    if model.unet.condition_map:
        raise ConfigError(f"{config.model} is a decoder of maps, which cannot be distilled")
    encoder = _encoder(config, model, data)
    folder = RunFolder(out)
    with folder.locked():
        target = config.target(folder)
        identity = {
            "teacher": hash_of(model.unet, tensors, model.schedule),
            "data": None if data is None or encoder is None else data.fingerprint,
        }
        built, answers = None, dict[str, str]()
        if encoder is not None and data is not None:
            known = encoder.source in trust.remembered(folder.path, trusted)
            built = encoder_room.build(encoder, device, trust_repo=known)
            answers = representations.identity(built, data, False, folder=folder.path)
        identity |= answers
        state = loop.begin(
            folder, {**dataclasses.asdict(config), **identity}, FREE, added={**answers, "masked_parts": []}
        )
        bank = None
        if built is not None and data is not None:
            bank = representations.cached(built, data, folder.path, Views(config.random_flip))
            representations.check_width(bank, model.unet, "the encoder", config.model)
        parts = config.masked_parts or masks.parts_of(built)
        if parts and bank is not None:
            masks.check(parts, bank)
        run = Run(config, model, tensors, bank, device, parts)
        loop.restored(run, state, config)
        loop.walk(run, folder, config, progress, logged=20, deadline=deadline)
        judged = run.judge()
        info = {
            "distilled_from": model.name or config.model,
            "trajectories": run.step * config.batch_size,
            "teacher_evaluations": len(run.grid),
            **dataclasses.asdict(judged),
            "run": dataclasses.asdict(config),
            **identity,
        }
        finished = dataclasses.replace(
            model, name=config.name, info=info, fitted=(), student_steps=run.own, encoder=encoder or model.encoder
        )
        return checkpoint.save_model(target, finished, run.average.whole(), DTYPES[config.weights]), judged


def _encoder(config: DistillConfig, model: ModelConfig, data: ImageSet | None) -> EncoderConfig | None:
    """What gives the representations that trajectories are drawn for; None for a model that takes none."""
    if not model.unet.representation_dim:
        return None
    found = config.encoder or model.encoder
    if data is None or found is None or found.source == "module":
        raise ConfigError(
            f"{config.model} takes representations: give images with --data, and an --encoder if its file names none"
        )
    return found


class Run(Tuned):
    """The moving parts: the teacher, and the student that learns from it.

    Attributes:
        own: the student's timesteps, ascending.
        grid: those of the teacher.

    Args:
        config: how.
        model: the teacher's configuration, and `tensors`, its weights.
        bank: representations [V,N,D], for a model that takes some.
        device: where to run.
        parts: widths of the parts of representations, if some are to be hidden (`masks.py`).
    """

    def __init__(
        self,
        config: DistillConfig,
        model: ModelConfig,
        tensors: Mapping[str, Tensor],
        bank: Tensor | None,
        device: str,
        parts: Sequence[int] = (),
    ) -> None:
        self.config, self.device, self.bank, self._unet = config, torch.device(device), bank, model.unet
        self._parts = parts
        self.own = trajectories.student_steps(model.schedule, config.nfe, config.placement)
        self.grid = trajectories.teacher_schedule(model.schedule, self.own, config.between)
        self._walk = Schedule(model.schedule, self.own)
        self.teacher, self.student = (networks.from_tensors(model.unet, tensors, device) for _ in range(2))
        for each in (self.teacher, self.student):
            each.to(memory_format=torch.channels_last)
            if not fused_unet.reasons_unavailable(self.device):
                fused_unet.attach(each)
        self.student.requires_grad_(True)
        super().__init__(
            config,
            config.steps,
            dict(self.student.named_parameters()),
            lambda trained: torch.optim.Adam(trained, config.learning_rate),
        )

    def draw(self, generator: torch.Generator, count: int, per: int = 1) -> tuple[Tensor, Conditions]:
        """x_T [count * per,3,H,W] and what they are drawn for, `per` in a row for the same."""
        h = label = None
        if self.bank is not None:
            views, images = self.bank.shape[:2]
            view = torch.randint(views, (count,), generator=generator)
            index = torch.randint(images, (count,), generator=generator)
            h = self.bank[view, index]
            if self._parts:
                h = h * masks.drawn(self._parts, count, generator, masks.WHOLE)
            h = h.repeat_interleave(per, dim=0).to(self.device)
        if self._unet.num_classes:
            label = torch.randint(self._unet.num_classes, (count,), generator=generator)
            label = label.repeat_interleave(per).to(self.device)
        size = self._unet.image_size
        x = torch.randn(count * per, 3, size, size, generator=generator).to(self.device)
        return x, Conditions(h, label)

    def advance(self) -> dict[str, float]:
        """One optimizer step on a batch of trajectories; the loss of every student's step, and the gradient's norm."""
        config = self.config
        x, given = self.draw(step_generator(config.seed, self.step), config.batch_size)
        wanted = trajectories.teacher_states(self.teacher, self.grid, self.own, x, given)
        predict = trajectories.predict_with(self.student, self._walk, given)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, k in enumerate(reversed(range(config.nfe))):
            with ieee_fp32(self.device):
                after = trajectories.student_step(x, predict(x, k), self._walk, k)
                apart = (after - wanted[i]).abs().mean() / math.sqrt(float(self._walk.alpha_bar_prev[k]))
                (apart / config.nfe).backward()
            x = after.detach()
            losses.append(float(apart.detach()))
        terms = {"loss": sum(losses) / len(losses), "last": losses[-1], "gradient_norm": self.learn()}
        return {name: round(value, 6) for name, value in terms.items()}

    def judge(self) -> Judged:
        """What the averaged student is worth; intervals are over representations, two samples each."""
        config = self.config
        x, given = self.draw(step_generator(config.seed, 0, _JUDGED), config.judged, per=2)
        found: dict[str, list[Tensor]] = {}
        ways: dict[str, tuple[UNet, Solver, Schedule]] = {"student": (self._averaged(), ddim, self._walk)}
        ways[f"ddim {AT}{','.join(map(str, self.own))}"] = self.teacher, ddim, self._walk
        for name, known in registry.SOLVERS.items():
            if not known.fresh:
                try:
                    made = registry.schedule(self._walk.config, name, config.nfe)
                except ConfigError:  # fewer than it needs, or an even number
                    continue
                ways[name] = self.teacher, known.run, made
        for place in torch.arange(len(x), device=self.device).split(config.batch_size):
            part = Conditions(*(None if value is None else value[place] for value in given))
            truth = trajectories.teacher_states(self.teacher, self.grid, self.own, x[place], part)[-1]
            found.setdefault("teacher", []).append(truth.cpu())
            for name, (network, solver, schedule) in ways.items():
                found.setdefault(name, []).append(trajectories.images(network, solver, schedule, x[place], part).cpu())
        made_by = {name: torch.cat(parts) for name, parts in found.items()}
        truth = made_by.pop("teacher")
        distances = {name: self._interval(made, truth) for name, made in made_by.items()}
        own = distances.pop("student")
        if own.value >= min(each.value for each in distances.values()):
            log.warning("the student is no nearer to its teacher than the teacher in as few evaluations: train longer")
        return Judged(own, distances, _variance(made_by["student"]) / _variance(truth))

    def _averaged(self) -> UNet:
        return networks.from_tensors(self._unet, self.average.whole(), self.device)

    def _interval(self, made: Tensor, truth: Tensor) -> Interval:
        each = (made - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        of_representation = each.view(-1, 2).mean(dim=1).double().numpy()
        return bootstrap(of_representation, _RESAMPLES, np.random.default_rng(self.config.seed))


def _variance(images: Tensor) -> float:
    """Mean over pixels and pairs of the variance of two samples [2N,3,H,W]."""
    first, second = images.double().view(-1, 2, *images.shape[1:]).unbind(1)
    return float((first - second).square().mean() / 2)
