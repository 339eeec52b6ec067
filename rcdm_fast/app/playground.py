"""What the playground does: an image and settings in, images out as they are finished.

Two models are loaded at a time, for two may be drawn beside each other, and one drawing runs at a time; the queue in
front of it belongs to the page. Knows nothing about pages.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from PIL import Image
from torch import Tensor

import rcdm_fast
from rcdm_fast.analysis.augment import AUGMENTATIONS
from rcdm_fast.app import directions, known_world
from rcdm_fast.checks import Range, choice
from rcdm_fast.config import ConfigError
from rcdm_fast.data.sources import open_data
from rcdm_fast.diffusion.sampling import Request
from rcdm_fast.diffusion.sampling_config import STEPS, SamplingConfig
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import Predict, SolverOptions, StepNoise
from rcdm_fast.encoders import Encoder
from rcdm_fast.images import ImageSource, load_image, to_pil
from rcdm_fast.model import Model

MAX_STEPS, MAX_COUNT = 250, 32
MAX_STRENGTH = 2.0
STREAMED = 4  # images that appear together
DRAFT_STEPS, DRAFT_SOLVER = 4, "dpmpp_2m"  # of the first images: in four steps DDIM is blurred, this one is not
DRAFTED = 2  # images of a draft that appear together: the first must not wait for many
LOADED = 2  # models that are kept
MAX_PIXELS = 60_000_000  # of a photograph; phones have up to 50


class Abandoned(Exception):
    """Nobody waits for the drawing any more."""


@dataclass(frozen=True, kw_only=True)
class Settings(SamplingConfig):
    """What to draw.

    Attributes:
        model: a name or file that the playground was opened with.
        per: images, 1..32; steps: 1..250, a number; the rest as in `SamplingConfig`. Models that were not trained for
            guidance draw without.
        augmentation: a name in `analysis.augment.AUGMENTATIONS`, or "" for none.
        magnitude: of the augmentation, in its unit.
        mix: 0..1, how far h goes on the straight line from the first image's to the second's.
        direction: a name in `Playground.directions`, or "" for none.
        strength: -2..2, how far h then goes along it, in lengths of the direction.
        left_out: factors that the encoder of the known world is told to leave out (`known_world.NAMES`).
    """

    model: str
    per: Annotated[int, Range(1, MAX_COUNT)] = SamplingConfig.per
    steps: Annotated[int, Range(1, MAX_STEPS)] = STEPS
    augmentation: str = ""
    magnitude: float = 0.0
    mix: float = 0.0
    direction: str = ""
    strength: float = 0.0
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mix <= 1:
            raise ConfigError(f"mix must be in 0..1, got {self.mix}")
        if self.augmentation and self.augmentation not in AUGMENTATIONS:
            raise ConfigError(f"no augmentation called {self.augmentation}; known: {', '.join(AUGMENTATIONS)}")
        if not -MAX_STRENGTH <= self.strength <= MAX_STRENGTH:
            raise ConfigError(f"strength must be in {-MAX_STRENGTH:g}..{MAX_STRENGTH:g}, got {self.strength}")
        known = (*directions.OF_PHOTOGRAPH, *directions.OF_DATA)
        if self.direction and self.direction not in known:
            raise ConfigError(f"no direction called {self.direction}; known: {', '.join(known)}")
        for each in self.left_out:
            choice(each, "a factor that is left out", known_world.NAMES)


@dataclass(frozen=True)
class Drawn:
    """What there is so far.

    Attributes:
        seen: the images as the encoder sees them.
        samples: finished ones, then those of the draft.
        wanted, finished: how many there will be, and are.
        guidance: that they are drawn with.
        h: the representation, float32 [1,D]; None before it is known.
    """

    seen: tuple[Image.Image, ...]
    samples: tuple[Image.Image, ...]
    wanted: int
    guidance: float = 1.0
    finished: int = 0
    h: Tensor | None = None


@dataclass
class Playground:
    """See the module.

    Attributes:
        models: names or files to choose from, the first one at the start.
        device, engine, precision: as in `rcdm_fast.load`.
        data: images for directions, as `rcdm train --data` takes them; without them there are those of the
            photograph alone.
        encoders: specifications of other encoders than their own, by the models' names.
    """

    models: Sequence[str]
    device: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    data: str | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    _loaded: dict[str, Model] = field(default_factory=dict, init=False, repr=False)  # the last used at the end
    _from_data: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def model(self, name: str) -> Model:
        """The model of that name, loaded if it is not among those that were used last.

        Raises:
            ConfigError: the playground was not opened with it, or it has no encoder.
        """
        if name not in self.models:
            raise ConfigError(f"{name!r} is not among the models of this playground: {', '.join(self.models)}")
        model = self._loaded.pop(name, None)
        if model is None:
            while len(self._loaded) >= LOADED:
                del self._loaded[next(iter(self._loaded))]  # first, so that there never are more
            other = self.encoders.get(name)
            model = rcdm_fast.load(
                name, encoder=other, device=self.device, engine=self.engine, precision=self.precision
            )
            if model.encoder is None:
                raise ConfigError(f"{name} has no encoder, so a photograph cannot be given to it")
        self._loaded[name] = model
        return model

    @property
    def directions(self) -> tuple[str, ...]:
        """Names of the directions along which h can be moved."""
        return directions.OF_PHOTOGRAPH if self.data is None else (*directions.OF_PHOTOGRAPH, *directions.OF_DATA)

    def from_data(self, name: str) -> dict[str, Tensor]:
        """The directions of the data for a model, float32 [1,D] each; computed once.

        Raises:
            ConfigError, ImageError: no data, too few images, or none that can be read.
        """
        if self.data is None:
            raise ConfigError(f"directions from data need images (rcdm app --data); here: {', '.join(self.directions)}")
        if name not in self._from_data:
            model = self.model(name)
            assert model.encoder is not None
            self._from_data[name] = directions.of_data(model.encoder, open_data(self.data, model.image_size))
        return self._from_data[name]

    def direction(self, settings: Settings, view: Tensor) -> Tensor:
        """The direction that the settings name, float32 [1,D]; `view` is the photograph, float32 [1,3,s,s].

        Raises:
            ConfigError, ImageError: as `from_data`, or a component that a narrow representation lacks.
        """
        if settings.direction in directions.OF_PHOTOGRAPH:
            return directions.of_photograph(self._encoder(settings), view, settings.direction)
        found = self.from_data(settings.model)
        if settings.direction not in found:
            raise ConfigError(f"{settings.model} has no {settings.direction}; known: {', '.join(found)}")
        return found[settings.direction]

    def draw(
        self,
        settings: Settings,
        image: ImageSource | None,
        other: ImageSource | None = None,
        *,
        h: Tensor | None = None,
        abandoned: Callable[[], bool] | None = None,
    ) -> Iterator[Drawn]:
        """Samples of the image's representation, or of `h`, float32 [1,D], as it is.

        Yields the images seen at once, then a draft of few steps where more are wanted, then more and more samples in
        place of it. The same settings give the same images; another magnitude, mix or strength changes h alone and
        keeps the noise. `abandoned` is asked before every network evaluation.

        Raises:
            ConfigError, ImageError: no image, a bad setting, or an image that cannot be used.
            Abandoned: `abandoned` said so.
        """
        if image is None and h is None:
            raise ConfigError("give a photograph first")
        if settings.mix > 0 and other is None and h is None:
            raise ConfigError("mixing needs a second photograph")
        with self._lock:
            model = self.model(settings.model)
            seen: list[Tensor] = []
            if h is None and image is not None:
                seen.append(self._seen(model, image, settings))
                seen += [self._view(model, other)] if other is not None else []
        shown = tuple(to_pil(each[0]) for each in seen)
        guidance = settings.guidance if model.config.representation_dropout else 1.0
        now = Drawn(shown, (), settings.per, guidance)
        yield now
        # The lock is not kept while a page looks at what it got: a drawing that nobody fetches would keep others out.
        with self._lock:
            now = dataclasses.replace(now, h=self._moved(seen, settings) if h is None else h.to(model.device))
            final = model.request(now.h, settings, guidance=guidance)  # before the draft: settings may be refused
            few = dataclasses.replace(settings, steps=DRAFT_STEPS, solver=DRAFT_SOLVER, eta=0.0)
            drafts = (
                settings.steps >= 2 * DRAFT_STEPS and not model.config.student_steps
            )  # they have one number of steps
            request = model.request(now.h, few, guidance=guidance) if drafts else None
        draft: list[Image.Image] = []
        if request is not None:
            for images in _images(model, request, DRAFTED, abandoned):
                draft += images
                yield dataclasses.replace(now, samples=tuple(draft))
        samples: list[Image.Image] = []
        for images in _images(model, final, STREAMED, abandoned):
            samples += images
            there = (*samples, *draft[len(samples) :])
            yield dataclasses.replace(now, samples=there, finished=len(samples))

    def _view(self, model: Model, image: ImageSource) -> Tensor:
        name = "photograph" if not isinstance(image, str | os.PathLike) else os.path.basename(image)
        loaded = load_image(image, name=name, max_pixels=MAX_PIXELS)
        assert model.encoder is not None
        return model.encoder.view(loaded.to(model.device))

    def _seen(self, model: Model, image: ImageSource, settings: Settings) -> Tensor:
        view = self._view(model, image)
        if not settings.augmentation:
            return view
        return AUGMENTATIONS[settings.augmentation](view, settings.magnitude)

    def _encoder(self, settings: Settings) -> Encoder:
        encoder = self.model(settings.model).encoder
        assert encoder is not None
        return known_world.without(encoder, settings.left_out)

    def _moved(self, seen: Sequence[Tensor], settings: Settings) -> Tensor:
        """h of the first image, mixed with that of the second, then moved; [1,D]."""
        encoder = self._encoder(settings)
        h = encoder.encode(seen[0])
        if settings.mix:
            h = torch.lerp(h, encoder.encode(seen[1]), settings.mix)
        if settings.direction and settings.strength:
            h = h + settings.strength * self.direction(settings, seen[0])
        return h


def _images(
    model: Model, request: Request, together: int, abandoned: Callable[[], bool] | None
) -> Iterator[list[Image.Image]]:
    """Samples of a request, `together` at a time."""
    wanted = request if abandoned is None else _while_wanted(request, abandoned)
    for _, images in model.batches(wanted, together):
        yield [to_pil(each) for each in images.cpu()]


def _while_wanted(request: Request, abandoned: Callable[[], bool]) -> Request:
    """The request with a solver that gives up when nobody waits for its images."""
    wanted = request.solver

    def solver(
        predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise
    ) -> Tensor:
        def predicted(x: Tensor, k: int) -> Tensor:
            if abandoned():
                raise Abandoned
            return predict(x, k)

        return wanted(predicted, x, schedule, options, step_noise)

    return dataclasses.replace(request, solver=solver)


def magnitudes(augmentation: str) -> tuple[float, float, float]:
    """Least, greatest and neutral magnitude of an augmentation's slider; (0, 1, 0) for none."""
    if not augmentation:
        return 0.0, 1.0, 0.0
    neutral = directions.NEUTRAL.get(augmentation, 0.0)
    values = (*AUGMENTATIONS[augmentation].magnitudes, neutral)
    return min(values), max(values), neutral
