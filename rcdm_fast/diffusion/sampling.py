"""A sampling request, and how it is run: batch after batch, each with the noise that belongs to its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcdm_fast import arguments
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.diffusion import noise, registry, solvers
from rcdm_fast.diffusion.conditioning import ConditioningPlan
from rcdm_fast.diffusion.engine import Bound, Engine
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.trajectory import Trajectory, away
from rcdm_fast.errors import RcdmError

BAR_AFTER_S = 2.0  # less is not worth a bar
BAR = "{percentage:3.0f}%|{bar}| {n:.0f} of {total} images, {rate_noinv_fmt}, {remaining} left"

Watch = Callable[[slice, Tensor], None]  # places, x_T [n,3,H,W]


class SamplingError(RcdmError, RuntimeError):
    """A request that cannot be sampled, or samples that are not finite."""


@dataclass(frozen=True)
class Request:
    """One checked call of `Model.sample`.

    Attributes:
        representation: float32 [R,D], or None.
        label: int64 [R], or None.
        items: noise keys, one per representation.
        config: what was asked for.
        schedule: kept steps.
        solver, options: the solver and its settings.
        chosen: which solver that is.
        evaluations: how often it asks the network for an image; twice as often with guidance.
        noise: x_T instead of the keyed one, [R,per,3,H,W].
        step_noise: step noise instead of the keyed one, [K,R,per,3,H,W].
        image: shape of one image, (3, H, W).
        pairs: (row, sample) of every image, in order; None: samples 0..per-1 of every row.
        guide: the configuration of the weaker model that guides instead of the null representation, or None.
    """

    representation: Tensor | None
    label: Tensor | None
    items: tuple[int, ...]
    config: SamplingConfig
    schedule: Schedule
    solver: solvers.Solver
    chosen: registry.Chosen
    evaluations: int
    options: solvers.SolverOptions
    noise: Tensor | None
    step_noise: Tensor | None
    image: tuple[int, int, int]
    pairs: tuple[tuple[int, int], ...] | None = None
    guide: ModelConfig | None = None

    @property
    def per(self) -> int:
        """Samples of each representation."""
        return self.config.per

    @property
    def guidance(self) -> float:
        """Strength of guidance; 1 is none."""
        return self.config.guidance

    @property
    def seed(self) -> int:
        """Noise key."""
        return self.config.seed

    @property
    def nulls(self) -> bool:
        """Whether every image is also asked for with the null representation."""
        return self.guidance != 1 and self.guide is None

    @property
    def total(self) -> int:
        return len(self.items) * self.per if self.pairs is None else len(self.pairs)

    def pair(self, index: int) -> tuple[int, int]:
        """Row and sample of the image at that place."""
        return divmod(index, self.per) if self.pairs is None else self.pairs[index]

    @property
    def trajectory(self) -> Trajectory:
        """What leads from x_T to an image."""
        fresh = self.chosen.fresh or self.options.eta > 0
        guidance = self.guidance if self.nulls else None
        return Trajectory(
            self.chosen.label, self.solver, self.schedule, self.options, self.evaluations, fresh, guidance
        )

    @property
    def conditions(self) -> Tensor | None:
        """`representation`, and below it the null one (zeros) if there is guidance."""
        if self.representation is None or not self.nulls:
            return self.representation
        return torch.cat([self.representation, torch.zeros_like(self.representation[:1])])


def request(
    model: ModelConfig,
    device: torch.device,
    h: Any,
    config: SamplingConfig,
    *,
    label: Any,
    items: Any,
    given_noise: Any,
    step_noise: Any,
    pairs: Any,
    guide: ModelConfig | None,
) -> Request:
    """Check the arguments of `Model.sample` and `Model.request` (which see) for a model on a device.

    Raises:
        ConfigError: the model cannot be asked for that.
    """
    if pairs is not None and (given_noise is not None or step_noise is not None):
        raise ConfigError("pairs have keyed noise: noise and step_noise cannot be given with them")
    h, label = arguments.condition(model.unet, h, label, device)
    conditioned = next((len(value) for value in (h, label) if value is not None), None)
    keys = arguments.keys(items, conditioned)
    options = solvers.SolverOptions(config.eta, config.clip)
    strength = arguments.guidance(model, config.guidance, guide)
    asked = registry.choose(model, config.solver, config.steps, options, strength != 1)
    schedule = asked.schedule
    image = (3, model.unet.image_size, model.unet.image_size)
    shape = (len(keys), config.per, *image)
    return Request(
        representation=h,
        label=label,
        items=keys,
        config=config,
        schedule=schedule,
        solver=asked.run,
        evaluations=asked.evaluations,
        options=options,
        noise=None if given_noise is None else arguments.noise(given_noise, "noise", shape),
        step_noise=None if step_noise is None else arguments.noise(step_noise, "step_noise", (len(schedule), *shape)),
        image=image,
        pairs=None if pairs is None else arguments.pairs(pairs, len(keys)),
        guide=guide,
        chosen=asked,
    )


def run(
    engine: Engine,
    plan: ConditioningPlan,
    request: Request,
    batch_size: int,
    progress: bool,
    watch: Watch | None = None,
    guide: tuple[Engine, ConditioningPlan] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (places among the request's images, images float32 [n,3,H,W]) as they are finished.

    `watch` is shown (places, x_T) of every batch before it is drawn; `guide` answers for the request's guide.

    Raises:
        SamplingError: a batch is not finite.
    """
    assert (guide is None) == (request.guide is None)
    bar = _bar(request.total, progress)
    part = 1 / max(1, request.evaluations)  # of an image, that an evaluation is

    def drawn(images: int) -> None:
        bar.update(images * part)

    try:
        for start in range(0, request.total, batch_size):
            place = slice(start, min(start + batch_size, request.total))
            images = _batch(engine, plan, request, place, drawn, watch=watch, guide=guide)
            if not bool(images.isfinite().all()):
                raise SamplingError(f"the samples are not finite{_origin(engine, plan, request, place, guide)}")
            yield place, images
    finally:
        bar.close()


def _origin(
    engine: Engine,
    plan: ConditioningPlan,
    request: Request,
    place: slice,
    guide: tuple[Engine, ConditioningPlan] | None,
) -> str:
    """Where the first number that is not finite came from, found by drawing the batch once more."""

    def look(asked: Bound, x: Tensor, k: int, output: Tensor) -> None:
        if not bool(x.isfinite().all()):
            raise _Found(f" from the noise on (step {k})")
        if not bool(output.isfinite().all()):
            layer = asked.first_nonfinite(x, k) or "the output"
            whose, runs = "" if asked.engine is engine else " of the guide", asked.engine
            raise _Found(f": first in layer {layer}{whose}, at step {k} ({runs.precision}, {runs.name})")

    try:
        _batch(engine, plan, request, place, lambda _: None, look, guide=guide)
    except _Found as found:
        return f"{found}; the representation or the weights are out of range"
    return ": the solver's own arithmetic overflowed"


class _Found(Exception):
    pass


def _batch(
    engine: Engine,
    plan: ConditioningPlan,
    request: Request,
    place: slice,
    drawn: Callable[[int], None],
    look: Callable[[Bound, Tensor, int, Tensor], None] | None = None,
    watch: Watch | None = None,
    guide: tuple[Engine, ConditioningPlan] | None = None,
) -> Tensor:
    flat = range(place.start, place.stop)
    pairs = [request.pair(index) for index in flat]
    keys = [(request.items[row], sample) for row, sample in pairs]
    unconditional = request.representation is None and request.label is None
    rows = torch.tensor([0 if unconditional else row for row, _ in pairs])
    weak = None if guide is None else guide[0].bind(guide[1], rows)
    if request.nulls:
        rows = torch.cat([rows, torch.full_like(rows, len(request.items))])  # the null representation
    bound = engine.bind(plan, rows)
    device = plan.condition.device

    def step_noise(i: int) -> Tensor:
        if request.step_noise is not None:
            return request.step_noise[i].flatten(0, 1)[place].to(device, torch.float32)
        return noise.keyed_noise(request.seed, keys, i + 1, request.image, device)

    def evaluate(x: Tensor, k: int) -> Tensor:
        drawn(len(flat))
        output = bound.predict(x, k)
        if look is not None:
            look(bound, x, k, output)
        if weak is None:
            return output
        weaker = weak.predict(x, k)
        if look is not None:
            look(weak, x, k, weaker)
        return away(output, weaker, request.guidance)

    if request.noise is not None:
        x = request.noise.flatten(0, 1)[place].to(device, torch.float32)
    else:
        x = noise.keyed_noise(request.seed, keys, 0, request.image, device)
    if watch is not None:
        watch(place, x)
    trajectory = request.trajectory
    with torch.inference_mode():
        # Who looks sees every evaluation, and a guide's are another engine's.
        whole = bound.trajectory(trajectory, x, step_noise) if look is None and weak is None else None
        if whole is not None:
            drawn(len(flat) * request.evaluations)
        images = trajectory(evaluate, x, step_noise) if whole is None else whole
    return images.clone()


def _bar(total: int, progress: bool) -> Any:
    """A bar over images, which evaluations fill bit by bit; drawings of under two seconds have none."""
    from tqdm import tqdm

    return tqdm(total=total, disable=not progress, unit=" images", leave=False, delay=BAR_AFTER_S, bar_format=BAR)


def interpolation_path(a: Tensor, b: Tensor, frames: int, mode: str) -> Tensor:
    """Points from a to b, float32 [D], both ends included; float32 [frames,D].

    Raises:
        ConfigError: different widths, an unknown mode, or a spherical path from zero or to the opposite direction.
    """
    if a.shape != b.shape:
        raise ConfigError(f"the two representations have different widths: {len(a)} and {len(b)}")
    weight = torch.linspace(0, 1, frames, dtype=torch.float32, device=a.device)[:, None]
    if mode == "linear":
        return torch.lerp(a[None], b[None], weight)
    if mode != "spherical":
        raise ConfigError(f"mode must be linear or spherical, got {mode!r}")
    length_a, length_b = a.norm(), b.norm()
    if not (length_a > 0 and length_b > 0):
        raise ConfigError("a spherical path needs two representations that are not zero")
    unit_a, unit_b = a / length_a, b / length_b
    angle = torch.arccos((unit_a @ unit_b).clamp(-1, 1))
    if float(angle.sin()) < 1e-4:
        if float(unit_a @ unit_b) < 0:
            raise ConfigError(
                "the two representations are opposite: every way along the sphere is as short; use linear"
            )
        return torch.lerp(a[None], b[None], weight)
    direction: Tensor = ((1 - weight) * angle).sin() * unit_a + (weight * angle).sin() * unit_b
    path = direction / angle.sin() * torch.lerp(length_a, length_b, weight)
    path[0], path[-1] = a, b  # not up to rounding
    return path
