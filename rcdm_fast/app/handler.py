"""What the playground's page does when "Draw" is pressed: its values in; images, files and sentences out.

Knows nothing about how the page looks (`parts.py`, `looks.py`) or what serves it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.app import sharing
from rcdm_fast.app.playground import Drawn, Playground, Settings
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import auto
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.images import ImageError, image_sheet

SHOWN = 128  # pixels of an image on the page
PLAIN = "none"
ERRORS = (ConfigError, ImageError, SamplingError, OSError)


class Given(NamedTuple):
    """Values of the page, in its order. Images are paths, `shared` is a text of `sharing` or empty."""

    image: str | None
    model: str
    per: float
    steps: float
    solver: str
    seed: float | None
    augmentation: str
    magnitude: float
    other: str | None
    mix: float
    direction: str
    strength: float
    guidance: float
    beside: str = PLAIN
    left_out: Sequence[str] = ()
    shared: str | None = None


class Files(NamedTuple):
    """Of a finished drawing: a sheet, h and the file to share, as paths, and what a link holds (`sharing.link`)."""

    sheet: str
    representation: str
    drawing: str
    link: str


@dataclass(frozen=True)
class Shown:
    """What the page gets: a sentence, the images that the first model sees, samples by model, and files at the end."""

    status: str
    seen: list[Image.Image]
    samples: dict[str, list[Image.Image]]
    files: Files | None = None


@dataclass
class Handler:
    """Draws for a page.

    Attributes:
        playground: what draws.
        models: names and files of models by what the page calls them.
    """

    playground: Playground
    models: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.models = labels(self.playground.models)

    def draw(self, given: Given, abandoned: Callable[[], bool]) -> Iterator[Shown]:
        """What there is so far, again and again; the last one has files, which are there until it is asked to go on.

        Two models draw in turn, so that neither has to wait for all of the other's images.

        Raises:
            ConfigError, ImageError, SamplingError, OSError: as `Playground.draw`, or a shared drawing
                that is none or not of these models.
            Abandoned: nobody waits any more.
        """
        settings = self._settings(given)
        names = list(dict.fromkeys([given.model, given.model if given.beside == PLAIN else given.beside]))
        held = _held(given, settings, names)
        ways = [
            self.playground.draw(
                replace(settings, model=self.models.get(name, name)),
                None if held else given.image,
                None if held else given.other,
                h=held.get(name),
                abandoned=abandoned,
            )
            for name in names
        ]
        for drawn in _in_turn(ways):
            found = dict(zip(names, drawn, strict=True))
            yield _shown(found, given.guidance)
        with tempfile.TemporaryDirectory(prefix="rcdm-app-") as folder:
            files = _files(Path(folder), self._named(settings, names), found)
            yield replace(_shown(found, given.guidance), files=files)

    def _settings(self, given: Given) -> Settings:
        changed, towards = ("" if name == PLAIN else name for name in (given.augmentation, given.direction))
        return Settings(
            model=self.models.get(given.model, given.model),
            per=int(given.per),
            steps=int(given.steps),
            solver=given.solver,
            guidance=given.guidance,
            seed=int(given.seed or 0),
            augmentation=changed,
            magnitude=given.magnitude,
            mix=given.mix,
            direction=towards,
            strength=given.strength,
            left_out=tuple(given.left_out),
        )

    def _named(self, settings: Settings, names: Sequence[str]) -> Settings:
        """Settings with the solver that the models were drawn by in place of ``auto``, where it is one."""
        configs = [self.playground.model(self.models.get(name, name)).config for name in names]
        solvers = {auto.settled(each, settings).solver for each in configs}
        return replace(settings, solver=solvers.pop()) if len(solvers) == 1 else settings

    def opened(self, text: str) -> tuple[Settings, str, str]:
        """Settings of a shared drawing, and what the page calls its model and the one beside it.

        Raises:
            ConfigError: it is none, or of a model that is not offered here.
        """
        shared = sharing.parsed(text)
        for name in shared.h:
            if name not in self.models:
                raise ConfigError(
                    f"this drawing is of {doors.printable(name)}; this playground offers {', '.join(self.models)}"
                )
        first, *others = shared.h
        return shared.settings, first, others[0] if others else PLAIN

    def sentence(self, error: Exception) -> str:
        """An error as a sentence, without the folders of this machine."""
        said = message(error, self.playground)
        first = said.split(" ", 1)[0]
        named = any(mark in first for mark in ".:'-_/") or any(sign.isdigit() for sign in first)  # it keeps its case
        return (said[:1] if named else said[:1].upper()) + said[1:] + ("" if said.endswith((".", "!", "?")) else ".")


def _held(given: Given, settings: Settings, names: list[str]) -> dict[str, Tensor]:
    """h of a shared drawing by model; empty if none is open. Raises `ConfigError`: not of these, or to be changed."""
    if not given.shared:
        return {}
    h = sharing.parsed(given.shared).h
    if settings.augmentation or settings.mix or (settings.direction and settings.strength) or settings.left_out:
        raise ConfigError("a shared drawing is drawn as it is: give a photograph to change something")
    for name in names:
        if name not in h:
            raise ConfigError(
                f"the shared drawing holds the representation of {' and '.join(map(doors.printable, h))}, not of "
                f"{name}: choose that model, or give a photograph"
            )
    return h


def _in_turn(ways: list[Iterator[Drawn]]) -> Iterator[list[Drawn]]:
    """What all have drawn so far, whenever one has drawn more."""
    now = [next(way) for way in ways]
    yield list(now)
    going = list(range(len(ways)))
    while going:
        for place in tuple(going):
            more = next(ways[place], None)
            if more is None:
                going.remove(place)
            else:
                now[place] = more
                yield list(now)


def _shown(found: dict[str, Drawn], guidance: float) -> Shown:
    drawn = list(found.values())
    first, done = drawn[0], min(each.finished for each in drawn)
    of = f"{first.wanted} images{' of each model' if len(drawn) > 1 else ''}"
    if not first.samples:
        said = f"Drawing {of}"
    elif not done:
        said = f"A draft of {of}; better ones take its place"
    else:
        said = f"{done} of {of}"
        if first.h is not None and len(drawn) == 1:
            said += f", from {first.h.numel()} numbers alone"
    if guidance != 1:
        said += f", guidance {first.guidance:g}"
    if any(each.guidance != guidance for each in drawn):
        said += " (the model was not trained for it)" if len(drawn) == 1 else " where a model was trained for it"
    samples = {name: [_large(image) for image in each.samples] for name, each in found.items()}
    return Shown(said, [_large(each) for each in first.seen], samples)


def _files(folder: Path, settings: Settings, found: dict[str, Drawn]) -> Files:
    """Written into a folder; of two models' representations only the first is written by itself."""
    rows = [[_large(each) for each in (*drawn.seen[:1], *drawn.samples)] for drawn in found.values()]
    seen = bool(next(iter(found.values())).seen)
    titles = ["seen", "samples"] if seen else ["samples"]
    image = image_sheet(rows, cell=SHOWN, column_titles=titles, row_titles=list(found), group_gaps=[1] if seen else [])
    image.save(folder / "sheet.png")
    h: dict[str, Tensor] = {name: drawn.h for name, drawn in found.items() if drawn.h is not None}
    np.save(folder / "representation.npy", next(iter(h.values())).float().cpu().numpy())
    text = sharing.text(settings, h)
    (folder / "drawing.json").write_text(text, encoding="utf-8")
    first, second, third = (str(folder / name) for name in ("sheet.png", "representation.npy", "drawing.json"))
    return Files(first, second, third, sharing.link(text))


def labels(models: Sequence[str]) -> dict[str, str]:
    """What the page calls the models: files by their name without the folders of this machine."""
    found: dict[str, str] = {}
    for model in models:
        name = label = Path(model).name if Path(model).is_absolute() or model.startswith(("~", ".")) else model
        while label in found:
            label = f"{name} ({sum(each.startswith(name) for each in found) + 1})"
        found[label] = model
    return found


def message(error: Exception, playground: Playground) -> str:
    """What an error says, without the folders of this machine."""
    text = doors.said(error)
    names = {source: label for label, source in labels(playground.models).items()}
    if playground.data is not None:
        names[playground.data] = Path(playground.data).name
    for source, label in names.items():
        text = text.replace(source, label)
    return re.sub(r"(?<![\w.~/])~?/(?:[^\s/:'\"]+/)+", "", text)


def _large(image: Image.Image) -> Image.Image:
    """Small images enlarged so that their pixels stay pixels."""
    factor = max(1, SHOWN // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
