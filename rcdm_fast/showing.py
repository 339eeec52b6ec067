"""What a model is and what it draws, for a reader: a line, some lines, sheets of images with their names.

Sheets are PIL images, which notebooks show by themselves.

Knows nothing about how samples are made.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import engines
from rcdm_fast.arguments import Numbers
from rcdm_fast.checks import Range, described, whole
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data import inputs
from rcdm_fast.data.inputs import Images
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.sampling_config import SamplingConfig, SamplingKeywords, chosen
from rcdm_fast.encoders import Encoder
from rcdm_fast.images import ImageError, ImageSource, from_uint8, image_sheet, open_image, to_pil
from rcdm_fast.sampler import Sampler

WIDE = 8  # images in a row where nothing says how many
MAX_ROWS = 200
CELL = 96  # pixels; smaller images are enlarged, so that pixels can be seen
LARGEST_CELL = 192
NAME = 24  # characters of a row's name

Rows = Images | Iterable[Images]


def sheet(
    images: Rows, titles: Sequence[str] | str = (), *, columns: Sequence[str] = (), cell: int | None = None
) -> Image.Image:
    """Images on one sheet, with names beside or above them.

    Args:
        images: what `Model.sample` and `interpolate` give, float [R,P,3,H,W] in [-1,1]; a batch [N,3,H,W] (or uint8
            [N,H,W,3]), a folder or a list of images, in rows of eight; or a list of rows. An image is anything that
            `Model.encode` takes.
        titles: of the rows, one each; a single text is the sheet's, above all: there are no `columns` then.
        columns: titles of the columns; an empty one leaves its place to its left neighbor.
        cell: side of an image on the sheet, in pixels; by default that of the images, but 96 at least and 192 at most.

    Raises:
        ImageError: nothing, more than 200 rows, or something that is no image.
        ConfigError: another number of titles than of rows, or a single text beside `columns`.
    """
    rows = _rows(images)
    if not rows or not all(rows):
        raise ImageError("no images given")
    if len(rows) > MAX_ROWS:
        raise ImageError(f"{len(rows)} rows are too many for a sheet, {MAX_ROWS} at most: pick some")
    above = list(columns)
    if isinstance(titles, str):
        if titles and above:
            raise ConfigError(f"{described(titles)} and titles of columns have one place: give titles of rows, or none")
        above, titles = above or [titles], []
    elif titles and len(titles) != len(rows):
        raise ConfigError(f"{len(titles)} titles for {len(rows)} rows")
    if len(above) > max(map(len, rows)):
        raise ConfigError(f"{len(above)} titles for {max(map(len, rows))} columns")
    if cell is None:
        cell = min(LARGEST_CELL, max(CELL, *(max(each.size) for row in rows for each in row)))
    side = whole(cell, "cell", Range(8, 2048))
    return image_sheet(rows, cell=side, column_titles=above, row_titles=[short(each) for each in titles])


def short(name: str) -> str:
    """A name of a row that leaves room for the row."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]}...{name[-NAME // 2 + 3 :]}"


def _rows(images: Any) -> list[list[Image.Image]]:
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 5:
        return [_each(row) for row in images]
    if isinstance(images, list | tuple) and images and all(_several(each) for each in images):
        return [_each(row) for row in images]
    found = _each(images)
    return [found[start : start + WIDE] for start in range(0, len(found), WIDE)]


def _several(given: Any) -> bool:
    """Whether that is a row of images, and no image."""
    return isinstance(given, list | tuple) or (isinstance(given, Tensor | np.ndarray) and given.ndim == 4)


def _each(images: Any) -> list[Image.Image]:
    """Every image of a batch, a folder or a list; uint8 [N,3,H,W], as `generate` gives them, too."""
    return _opened(_found(images))


def _found(images: Any) -> Tensor | list[Any]:
    """What `inputs.several` makes of it, once: what is gone through may be gone afterwards."""
    is_array = isinstance(images, Tensor | np.ndarray) and images.ndim == 4
    if is_array and images.dtype in (torch.uint8, np.uint8) and images.shape[1] == 3 and images.shape[3] != 3:
        images = from_uint8(images if isinstance(images, Tensor) else torch.from_numpy(images.copy()))
    return inputs.several(images)


def _opened(found: Tensor | list[Any]) -> list[Image.Image]:
    return [to_pil(each) for each in found] if isinstance(found, Tensor) else [open_image(each) for each in found]


class Shown(Sampler):
    """What `Model` says of itself, and the sheets that it draws."""

    _encoder: Encoder | EncoderConfig | None

    if TYPE_CHECKING:

        def encode(self, images: Images) -> Tensor: ...

        def view(self, image: ImageSource) -> Tensor: ...

    def __repr__(self) -> str:
        unet, encoder = self.config.unet, self._used()
        shape = unet.condition_map or (unet.representation_dim,)
        of = f"representations [{','.join(map(str, shape))}]" if unet.representation_dim else ""
        of = f"{unet.num_classes} classes" if unet.num_classes and not of else of or "nothing"
        parts = [
            f"{unet.image_size} px of {of}",
            f"{self._parameters() / 1e6:.1f} M parameters",
            f"{self.engine.name} {self.engine.precision} on {self.device}",
            *([f"encoder {encoder.source} ({encoder.layer})"] if encoder is not None else []),
        ]
        return f"<rcdm_fast.Model {self.config.name or '(unnamed)'}: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.describe())}</pre>"

    def describe(self) -> str:
        """A few lines: name, network, engine, encoder."""
        unet, encoder = self.config.unet, self._used()
        lines = [
            f"model    {self.config.name or '(unnamed)'}: {unet.image_size} px, "
            f"{self._parameters() / 1e6:.1f} M parameters",
            f"engine   {self.engine.describe()}",
            *(f"         not {name}: {why}" for name, why in engines.not_chosen(self.engine, self.device).items()),
            f"encoder  {encoder.source} ({encoder.layer})" if encoder is not None else "encoder  none",
        ]
        return "\n".join([*lines, *registry.describe(self.config)])

    def _used(self) -> EncoderConfig | None:
        """The encoder that is used, or else the one that the file names."""
        if self._encoder is None:
            return self.config.encoder
        return self._encoder if isinstance(self._encoder, EncoderConfig) else self._encoder.config

    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.unet.parameters())

    def show(
        self,
        what: Numbers | Images,
        titles: Sequence[str] = (),
        config: SamplingConfig | None = None,
        *,
        cell: int | None = None,
        **settings: Unpack[SamplingKeywords],
    ) -> Image.Image:
        """Samples on a sheet, a row for each representation or image; a notebook shows it.

        Args:
            what: representations [R,D] (or [D]); or images, as `encode` takes them: then the image, what the encoder
                sees of it, and samples.
            titles: of the rows; by default the names of image files.
            config: how samples are drawn, as in `sample`.
            cell: side of an image on the sheet, in pixels.
            settings: per, steps, seed... as in `sample`.

        Raises:
            ConfigError, SamplingError, ImageError: as `encode`, `sample` and `sheet`.
        """
        drawn = chosen(config, settings)
        if _is_representations(what):
            h: Any = what
            return sheet(self.sample(h[None] if h.ndim == 1 else h, drawn), titles, cell=cell)
        found = _found(what)
        if len(found) > MAX_ROWS:
            raise ImageError(f"{len(found)} rows are too many for a sheet, {MAX_ROWS} at most: pick some")
        names = [Path(each).name if isinstance(each, str | os.PathLike) else "" for each in found]
        photos = _opened(found)
        samples = self.sample(self.encode(photos), drawn)
        seen = [to_pil(self.view(photo)[0]) for photo in photos]
        rows: list[Any] = [
            [photo, crop, *map(to_pil, row)] for photo, crop, row in zip(photos, seen, samples, strict=True)
        ]
        side = min(LARGEST_CELL, max(CELL, self.config.unet.image_size)) if cell is None else cell
        return sheet(rows, titles or (names if any(names) else ()), columns=["photo", "seen", "samples"], cell=side)


def _is_representations(given: Any) -> bool:
    floating = isinstance(given, Tensor) and given.is_floating_point()
    floating |= isinstance(given, np.ndarray) and given.dtype.kind == "f"
    return floating and given.ndim <= 2
