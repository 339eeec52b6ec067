"""A real image's own x_T, and what the same x_T gives with another representation.

DDIM inversion with h finds an x_T from which DDIM leads back near the image. It does so with any h: the round trip
stands there with the next image's h as well, says how good the inversion is, and nothing about what h lacks. Drawn
with another image's h, x_T shows which parts of an image follow h and which stay with x_T. Numbers: the errors of the
round trips beside that of a sample from fresh noise, and, for exchanged pairs, whether samples are nearer to the image
that gave h or to the one that gave x_T, in pixels and in representations. After Bordes et al. (2021) and Song et
al. (2021).

Knows nothing about how inversion works (`Model.invert`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig, Progress, interval
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table
from rcdm_fast.checks import Count, CountOrNone, Range
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling_config import INVERSION_STEPS
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.model import Model


@dataclass(frozen=True, kw_only=True)
class InvertConfig(ExperimentConfig):
    """What to invert.

    Attributes:
        sources: images, spread evenly over the data; 0 means 64, or all there are. Each takes the next one's h.
        per: samples of each; one.
        steps: of inversion and of sampling; more bring the round trip nearer.
        iterations: of every step of inversion; see `Model.invert`.
        seed: of the fresh noise that the round trip is compared with.
        shown: images in the figure.
    """

    sources: CountOrNone = 0
    per: Annotated[int, Range(1, 1)] = 1
    steps: Count | str = INVERSION_STEPS
    solver: str = "ddim"  # inversion leads back along it
    iterations: CountOrNone = 1
    shown: Count = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_invertible()


@host.guarded(gradients=True, random=True)
def run(model: Model, data: ImageSet, config: InvertConfig, progress: Progress | None = None) -> Analysis:
    """Round trips and exchanges.

    Args:
        model: a model with an encoder.
        data: images of the model's size.
        config: sizes.
        progress: called with (parts done, all of them).

    Raises:
        ConfigError: too few images, or a model without an encoder.
    """
    encoder = common.encoder_of(model, "inversion needs")
    sources = common.choose_sources(data, config.sources)
    images = data.floats(sources)
    count = len(images)
    told = progress if progress is not None else _silent
    h = encoder.encode(data.seen(sources, encoder))
    other = h.roll(-1, 0)
    x_t, x_other = (
        model.invert(images, given, config, iterations=config.iterations, batch_size=config.batch_size)
        for given in (h, other)
    )
    told(1, 5)
    drawn = []
    for number, (given, noise) in enumerate(((h, x_t), (h, None), (other, x_t), (other, x_other))):
        x_T = None if noise is None else noise[:, None]
        samples = model.sample(given, config, noise=x_T, batch_size=config.batch_size)
        drawn.append(samples[:, 0].cpu())
        told(number + 2, 5)
    back, fresh, exchanged, wrong = drawn
    again = encoder.encode(exchanged).cpu()
    errors = {
        "own h, own x_T": _error(back, images),
        "own h, fresh noise": _error(fresh, images),
        "the next one's h, x_T found with it": _error(wrong, images),
    }
    to_h = (again - other.cpu()).double().norm(dim=1).numpy()
    to_x = (again - h.cpu()).double().norm(dim=1).numpy()
    pixels_h, pixels_x = _error(exchanged, images.roll(-1, 0)), _error(exchanged, images)
    name = common.name_of(model)
    sheet = [
        [to_pil(each[row].cpu()) for each in (images, back, fresh, exchanged, images.roll(-1, 0))]
        for row in range(min(config.shown, count))
    ]
    titles = ["image", "its x_T", "fresh noise", "next one's h", "next one"]
    return Analysis(
        name="invert",
        title=f"Images inverted with {name}",
        model=name,
        settings={**dataclasses.asdict(config), "sources": count, "data": data.fingerprint},
        tables=(_error_table(errors, config), _exchange_table(to_h < to_x, pixels_h < pixels_x)),
        findings=(
            _majority("with another h, samples take its representation", to_h < to_x),
            _majority("with another h, samples take its image's pixels", pixels_h < pixels_x),
        ),
        figures={"exchange": image_sheet(sheet, cell=96, column_titles=titles)},
        captions={
            "exchange": "An image; back from its x_T; a sample of its h; the next image's h from the same x_T; that "
            "image."
        },
        method="DDIM inversion with the image's h, then DDIM with as many steps; every step is solved backwards by "
        "fixed-point iteration, so the round trip is close, not exact. Inverted and drawn with another h an image "
        "comes back, too: how near says nothing about h. Error: root mean square over pixels "
        "and colors in 8-bit levels. Exchange: each x_T with the next image's h. Intervals: 95 %, bootstrap over "
        "images, of fractions by Wilson's score.",
    )


def _silent(done: int, total: int) -> None:
    return


def _error(drawn: Tensor, images: Tensor) -> np.ndarray:
    """Root mean square difference of every image in 8-bit levels, float64 [N]."""
    difference = (drawn.clamp(-1, 1).double() - images.double().cpu()).flatten(1) * 127.5
    return difference.square().mean(dim=1).sqrt().numpy()


def _error_table(errors: dict[str, np.ndarray], config: InvertConfig) -> Table:
    rows: list[tuple[Cell, ...]] = [(name, interval(each, config)) for name, each in errors.items()]
    note = "A round trip leads back with any h, also with one that knows nothing of the image."
    return Table("round-trip", "Difference from the image", ("drawn from", "error (8-bit levels)"), tuple(rows), note)


def _exchange_table(representation: np.ndarray, pixels: np.ndarray) -> Table:
    rows: list[tuple[Cell, ...]] = [
        ("representation", common.fraction(representation)),
        ("pixels", common.fraction(pixels)),
    ]
    note = "Samples from one image's x_T with another's h; 1: always nearer to the image of h, 0: to that of x_T."
    return Table("exchange", "Nearer to the image that gave h", ("in", "fraction"), tuple(rows), note)


def _majority(claim: str, values: np.ndarray) -> Finding:
    fraction = common.fraction(values)
    told = f"in a fraction of {common.text(fraction)}"
    return Finding(claim, common.above(fraction, 0.5), told, numbers=(("fraction", fraction),))
