"""The experiments by name, each imported when it is run.

To add one: a function that takes a `Job` and returns an `Analysis`, importing its module inside, and a line in
`EXPERIMENTS`. Importing this file brings in no torch, so that command lines can list the names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rcdm_fast.analysis.adapted import Wanted
    from rcdm_fast.analysis.result import Analysis
    from rcdm_fast.analysis.shared import Shared
    from rcdm_fast.data.image_set import ImageSet
    from rcdm_fast.diffusion.sampling_config import SamplingConfig
    from rcdm_fast.model import Model

Configured = TypeVar("Configured", bound="SamplingConfig")


@dataclass(frozen=True)
class Job:
    """What an experiment is asked to do.

    Attributes:
        model: the model in question.
        data: images; always there if the experiment says `needs_data`.
        photos: photographs to draw samples of; need not be like the data; always there if the experiment says
            `needs_photos`. With `wanted` they are what the figure shows.
        against: other models, for experiments that compare.
        settings: fields of the experiment's own configuration that are not to be its defaults.
        progress: called with (done, in all).
        shared: what the experiments of one report have in common is made once and kept there.
        training: images that the model was trained on, for experiments that say `takes_training`.
        wanted: layers or encoders that the model's decoder is adapted to, in place of `against`, for experiments that
            say `adapts`.
    """

    model: Model
    data: ImageSet | None = None
    photos: ImageSet | None = None
    against: tuple[Model, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None
    shared: Shared | None = None
    training: ImageSet | None = None
    wanted: Wanted | None = None

    def configured(self, cls: type[Configured], name: str) -> Configured:
        """The configuration of the experiment of that name; all models of the job are drawn alike.

        Raises:
            ConfigError: settings that are none, or that the models cannot be asked for.
        """
        from rcdm_fast.config import from_dict
        from rcdm_fast.diffusion import auto

        config = from_dict(cls, self.settings, f"settings of {name}")
        return auto.settled_for_all([each.config for each in (self.model, *self.against)], config)

    @property
    def images(self) -> ImageSet:
        """The data. Raises `ConfigError` if there is none."""
        from rcdm_fast.config import ConfigError

        if self.data is None:
            raise ConfigError("this experiment needs images: name a folder of them with --data")
        return self.data

    @property
    def photographs(self) -> ImageSet:
        """The photos. Raises `ConfigError` if there are none."""
        from rcdm_fast.config import ConfigError

        if self.photos is None:
            raise ConfigError("this experiment needs photographs: name a folder of them with --photos")
        return self.photos


@dataclass(frozen=True)
class Experiment:
    """One entry: what it is for, how it is run, and what has to be there.

    Attributes:
        about: one line.
        run: the job done.
        needs_data: whether it needs a folder of images.
        needs_photos: whether it needs photographs, which it holds against the images.
        takes_photos: whether photographs do in place of images.
        takes_training: whether it says more where it is given the model's training images.
        compares: whether it takes other models (`Job.against`); at least one is then needed.
        adapts: whether it takes layers and encoders in place of those (`Job.wanted`).
        needs_maps: whether the model must be a decoder of maps.
        needs_world: whether the data must be items of a world, whose factors are known.
    """

    about: str
    run: Callable[[Job], Analysis]
    needs_data: bool = True
    needs_photos: bool = False
    takes_photos: bool = False
    takes_training: bool = False
    compares: bool = False
    adapts: bool = False
    needs_maps: bool = False
    needs_world: bool = False

    def lacks(
        self,
        *,
        data: bool,
        photos: bool,
        against: bool,
        wanted: bool = False,
        maps: bool = True,
        world: bool = True,
    ) -> str:
        """Why it cannot be run with what is there, as the end of a sentence; empty if it can."""
        if wanted and not self.adapts:
            return "takes no --layers and no --encoders"
        if wanted and against:
            return "compares models (--against), or layers and encoders (--layers, --encoders), not both"
        if self.compares and not against and not wanted:
            return "compares models: name another with --against" + (", or two --layers" if self.adapts else "")
        if self.needs_data and not data and not (self.takes_photos and photos):
            return "needs a set of images: name one with --data"
        if self.needs_maps and not maps:
            return "is about positions of maps: this is a decoder of vectors"
        if self.needs_world and not world:
            return "is about images whose factors are known: give it a world, --data world:shapes"
        if self.needs_photos and not photos:
            return "needs photographs to hold against the images: name a folder of them with --photos"
        return ""

    def leaves_out(self, *, photos: bool, training: bool, against: bool = False, wanted: bool = False) -> str:
        """What of these it would not look at, as the end of a sentence; empty if there is nothing."""
        if photos and not (self.needs_photos or self.takes_photos or wanted):
            return "takes no photographs (--photos)" + (" without layers or encoders" if self.adapts else "")
        if against and not self.compares:
            return "takes no --against"
        if training and not self.takes_training:
            return "takes no training images (--train-data)"
        return ""


def _faithfulness(job: Job) -> Analysis:
    from rcdm_fast.analysis import faithfulness
    from rcdm_fast.evaluation import EvaluateConfig

    config = job.configured(EvaluateConfig, "faithfulness")
    return faithfulness.run(job.model, job.images, config, job.progress, job.shared)


def _distances(job: Job) -> Analysis:
    from rcdm_fast.analysis import nearness

    config = job.configured(nearness.NearnessConfig, "distances")
    return nearness.run(job.model, job.images, config, job.progress, job.shared)


def _invariance(job: Job) -> Analysis:
    from rcdm_fast.analysis import invariance
    from rcdm_fast.analysis.sweeps import InvarianceConfig

    config = job.configured(InvarianceConfig, "invariance")
    return invariance.run(job.model, job.images, config, job.progress, job.shared)


def _layers(job: Job) -> Analysis:
    from rcdm_fast.analysis import depth, layers
    from rcdm_fast.analysis.layer import LayersConfig

    if job.wanted is not None:
        budget = job.configured(depth.DepthConfig, "layers")
        return depth.run(job.model, job.wanted, job.images, budget, job.progress, job.shared, job.photos)
    config = job.configured(LayersConfig, "layers")
    return layers.run((job.model, *job.against), job.images, config, job.progress, job.shared)


def _photos(job: Job) -> Analysis:
    from rcdm_fast.analysis import photos
    from rcdm_fast.data.image_set import evenly

    config = job.configured(photos.PhotosConfig, "photos")
    shown = job.photos
    if shown is None:  # a set of images is there to be measured on: of thousands a few are drawn
        shown = job.images.subset(evenly(min(photos.SHOWN, len(job.images)), len(job.images)))
    return photos.run(job.model, shown, config, job.progress)


def _attack(job: Job) -> Analysis:
    from rcdm_fast.analysis import attack, robustness

    config = job.configured(robustness.AttackConfig, "attack")
    return attack.run((job.model, *job.against), job.images, config, job.progress, job.shared)


def _manipulate(job: Job) -> Analysis:
    from rcdm_fast.analysis import manipulate

    config = job.configured(manipulate.ManipulateConfig, "manipulate")
    return manipulate.run(job.model, job.images, config, job.progress, job.shared)


def _interpolate(job: Job) -> Analysis:
    from rcdm_fast.analysis import interpolate

    config = job.configured(interpolate.InterpolateConfig, "interpolate")
    return interpolate.run(job.model, job.images, config, job.progress)


def _invert(job: Job) -> Analysis:
    from rcdm_fast.analysis import invert

    named = {key: value for key, value in job.settings.items() if (key, value) != ("solver", "auto")}  # its own
    config = dataclasses.replace(job, settings=named).configured(invert.InvertConfig, "invert")
    return invert.run(job.model, job.images, config, job.progress)


def _unfamiliar(job: Job) -> Analysis:
    from rcdm_fast.analysis import out_of_distribution

    config = job.configured(out_of_distribution.UnfamiliarConfig, "unfamiliar")
    return out_of_distribution.run(job.model, job.images, job.photographs, config, job.progress, job.shared)


def _tokens(job: Job) -> Analysis:
    from rcdm_fast.analysis import tokens

    config = job.configured(tokens.TokensConfig, "tokens")
    return tokens.run(job.model, job.images, config, job.progress, job.shared)


def _factors(job: Job) -> Analysis:
    from rcdm_fast.analysis import factors

    config = job.configured(factors.FactorsConfig, "factors")
    return factors.run(job.model, job.images, config, job.progress, job.shared)


def _neighbors(job: Job) -> Analysis:
    from rcdm_fast.analysis import neighbors

    config = job.configured(neighbors.NeighborsConfig, "neighbors")
    return neighbors.run(job.model, job.images, config, job.progress, job.shared, job.training)


EXPERIMENTS: dict[str, Experiment] = {
    "photos": Experiment("samples of photographs beside them", _photos, takes_photos=True),
    "faithfulness": Experiment("rank of the source image and distances of re-encoded samples", _faithfulness),
    "distances": Experiment("how far from h samples, views, neighbors and images of the class lie", _distances),
    "neighbors": Experiment(
        "real images nearest to samples and to h, and a search for copies of training images",
        _neighbors,
        takes_training=True,
    ),
    "unfamiliar": Experiment(
        "photographs unlike the data beside images of the data: distances, ranks, spread",
        _unfamiliar,
        needs_photos=True,
    ),
    "invariance": Experiment("what samples recover of transformed images, augmentation by augmentation", _invariance),
    "layers": Experiment(
        "representations side by side, of models or of an encoder's layers: what one keeps and another drops",
        _layers,
        compares=True,
        adapts=True,
    ),
    "tokens": Experiment(
        "positions in the middle of a map: what they say of what is drawn there, and around", _tokens, needs_maps=True
    ),
    "factors": Experiment(
        "factors of a known world that samples follow, beside what is read off h", _factors, needs_world=True
    ),
    "manipulate": Experiment("changes of h: what moves in the samples, and whether the class is kept", _manipulate),
    "interpolate": Experiment("samples on the way from one image's h to another's", _interpolate),
    "invert": Experiment("an image's own x_T, and the same x_T with another's h", _invert),
    "attack": Experiment(
        "images changed invisibly against a linear probe: accuracy, movement of h, samples", _attack, compares=True
    ),
}


def find(name: str) -> Experiment:
    """The experiment of that name; `ConfigError` lists the known ones."""
    from rcdm_fast.config import ConfigError

    if name not in EXPERIMENTS:
        known = "; ".join(f"{each} ({what.about})" for each, what in EXPERIMENTS.items())
        raise ConfigError(f"no experiment called {name!r}; known: {known}")
    return EXPERIMENTS[name]
