"""Which factors of a known world an encoder keeps: any encoder, and what its representation could be asked for.

Of photographs nobody knows what an encoder should have kept; the images of `data/world.py` are drawn from factors. So
here every verdict stands beside what can be read off the representation itself: how far samples follow a factor (the
slope of `world_slopes.py`, by what a reader reads off them), two readouts of its changes (`world_slopes.readouts`), and
a network that reads the factor off h, judged on items that it was not fitted on (`metrics/mlp_probe.py`). The network
has a say in the verdict, too: changes between items that have nothing in common are too large for the two readouts to
find what h holds in an intricate form, so nothing is called dropped that the network reads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import claims, common, rules, world_slopes
from rcdm_fast.analysis.common import ExperimentConfig, Progress
from rcdm_fast.analysis.readout import BENT, LINEAR
from rcdm_fast.analysis.recovery import check_sources
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.rules import RULES, Verdict
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.checks import Count, CountOrNone, Range
from rcdm_fast.config import ConfigError
from rcdm_fast.data import world as worlds
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.data.world import World
from rcdm_fast.encoders import factor_reader, read_code
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.encoders.oracle_code import Code
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.metrics import mlp_probe, slopes
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model

READERS = {("shapes", 32): "shapes-reader"}  # that ship, by world and size
CALLED = {"x": "x", "y": "y", "hue": "the object's hue", "ground_hue": "the ground's hue"}
NETWORK = "network"
PROBED, ASKED = (
    5000,
    5,
)  # items that the network is fitted or judged on, at most; every fifth is one that it is judged on
SOURCES = 256  # unless said otherwise
SHOWN = 8  # samples of a source in the figure
METHOD = (
    "Samples are drawn from the representations of items of a world, whose factors are known and vary independently of "
    "each other; a network that was trained on rendered images reads all factors off the samples. The slope is that of "
    "the regression of what is read on what is true, 1 where samples follow a factor entirely and 0 where they do not. "
    f"Kept: the slope is surely above {RULES.kept_above:g}. Dropped: it is surely within +-{RULES.dropped_within:g}, "
    f"and R^2 of three readouts is surely below {RULES.readable:g}: of a linear and a non-linear one of the factor's "
    "change from that of h, cross-validated over pairs of items, and of a small network that reads the factor itself, "
    f"on left-out items. Else inconclusive. Verdicts hold for all claims together (Holm). {rules.UNADJUSTED}"
)


@dataclass(frozen=True, kw_only=True)
class FactorsConfig(ExperimentConfig):
    """What is drawn and asked.

    Attributes:
        sources: items whose representations are drawn from, spread evenly over the data; at least 20. 0 means 256, or
            all if there are fewer.
        readable: pairs of items that readouts are cross-validated on, or half of the data if that is fewer; at least
            100.
        reader: what reads factors off samples: the name of a bundled reader, or the file of one; "" for the one that
            ships for the world and the size of the images.
        shown: sources in the figure.
    """

    sources: CountOrNone = 0
    readable: Annotated[int, Range(100, 100_000)] = 1000
    reader: str = ""
    shown: Count = 6


@dataclass(frozen=True)
class Kept:
    """What was measured of one factor.

    Attributes:
        name: of the factor.
        slope: how far samples follow it.
        ceiling: the same of the sources' own images: as far as the reader itself follows it.
        readouts: R^2 of its change from that of h, linear and non-linear; of a network that reads the factor itself.
        verdict: the rule's.
    """

    name: str
    slope: Interval
    ceiling: Interval
    readouts: tuple[Interval, ...]
    verdict: Verdict

    @property
    def called(self) -> str:
        """What readers call the factor."""
        return CALLED.get(self.name, f"the {self.name.replace('_', ' ')}")


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: FactorsConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """The experiment.

    Args:
        model: any model with its encoder.
        data: items of a world, best such that neither encoder nor decoder was trained on (of another `seed`).
        config: sizes and solver.
        progress: called with (parts done, all of them): sources as they are drawn, and one part for the readouts.
        shared: with other experiments.

    Raises:
        ConfigError: images of no world, fewer than 200, a reader of another world or size, or none for them.
    """
    encoder = common.encoder_of(model, "which factors it keeps is asked of")
    world, items = _world(data)
    reader, read_as = _reader(config, world, model)
    sources = common.choose_sources(data, config.sources, SOURCES)
    h, factors = encoded(shared, encoder, data), world.factors(items)
    drawn = _draw(model, h[sources], sources, config, progress)
    found = measure(h, factors, sources, (drawn, data.floats(sources)), reader, config)
    if progress is not None:
        progress(len(sources) + 1, len(sources) + 1)
    name = common.name_of(model)
    return Analysis(
        name="factors",
        title=f"Which factors of {world.world} {name} keeps",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "reader": read_as,
            "sources": len(sources),
            "readable": _pairs(len(data), config),
            "world": world.name,
            "data": data.fingerprint,
            "rules": rules.VERSION,
        },
        tables=(table(found, name, len(sources), _pairs(len(data), config)),),
        findings=claims.together(_finding(each) for each in found),
        figures={"samples": _sheet(model, data, h, sources, config)},
        captions={"samples": f"Items of {world.world}, each beside {SHOWN} samples of what the encoder says of it."},
        method=METHOD,
    )


def _world(data: ImageSet) -> tuple[World, list[int]]:
    found = worlds.behind(data.paths)
    if found is None:
        raise ConfigError("the factors of these images are not known: give items of a world, --data world:shapes")
    if len(data) < 200:
        raise ConfigError(
            f"readouts take at least 200 items of a world, got {len(data)}: --data world:shapes?count=5000"
        )
    return found


def _reader(config: FactorsConfig, world: World, model: Model) -> tuple[FactorReader, str]:
    """The reader, on the model's device, and its name."""
    name = config.reader or READERS.get((world.world, model.image_size), "")
    if not name:
        raise ConfigError(
            f"no reader of world:{world.world} in {model.image_size} px ships: train one (rcdm train-reader) and name "
            "its file with --set reader=FILE"
        )
    reader, _ = factor_reader.load(read_code.file_of(name))
    if (reader.world, reader.size) != (world.world, model.image_size):
        raise ConfigError(
            f"the reader {name} reads world:{reader.world} in {reader.size} px; the images are of world:{world.world} "
            f"and the samples {model.image_size} px"
        )
    return reader.to(model.device), name


def _draw(model: Model, h: Tensor, sources: Tensor, config: FactorsConfig, progress: Progress | None) -> Tensor:
    """Samples of all sources, float32 [S,P,3,H,W]."""
    found: list[Tensor] = []
    for part in torch.arange(len(h)).split(max(1, config.batch_size // config.per)):
        found.append(common.draw(model, h[part], sources[part], config))
        if progress is not None:
            progress(sum(map(len, found)), len(h) + 1)
    return torch.cat(found)


def measure(
    h: Tensor,
    factors: Tensor,
    sources: Tensor,
    seen: tuple[Tensor, Tensor],
    reader: FactorReader,
    config: FactorsConfig,
) -> list[Kept]:
    """What is kept of every factor of the reader's world.

    Args:
        h: representations of all items, float32 [N,D].
        factors: of all items, float64 [N,F].
        sources: places of those that were drawn from, int64 [S].
        seen: samples of them, [S,P,3,H,W], and their own images, [S,3,H,W]; in [-1,1].
        reader: reads factors off samples.
        config: settings.

    Raises:
        ConfigError: fewer than 20 sources.
    """
    check_sources(len(sources), len(factors))
    about, (drawn, images) = reader.about, seen
    answer = reader.read(drawn.flatten(0, 1).clamp(-1, 1)).view(*drawn.shape[:2], len(about))
    own = reader.read(images.cpu())[:, None]
    pairs = _pairs(len(factors), config)
    chosen = evenly(2 * pairs, len(factors))
    readouts = world_slopes.readouts(h[chosen], factors[chosen], about, config.seed)
    probed = probe(h, factors, about, reader.world, config.seed)
    found = []
    for column, factor in enumerate(about):
        true = world_slopes.place(factors[sources, column], factor)
        slope, ceiling = (
            world_slopes.slope(
                true, torch.stack([world_slopes.place(one, factor) for one in each[..., column].T]).mean(dim=0)
            )
            for each in (answer, own)
        )
        read = *readouts[factor.name], probed[factor.name]
        found.append(Kept(factor.name, slope, ceiling, read, rules.verdict(slope, read)))
    return found


def probe(h: Tensor, factors: Tensor, about: tuple[worlds.Factor, ...], world: str, seed: int) -> dict[str, Interval]:
    """R^2 of what a network reads of every factor off h [N,D]; fitted on four fifths of items, judged on one."""
    chosen = evenly(min(PROBED, len(h)), len(h))
    h, factors = h[chosen], factors[chosen]
    asked = torch.arange(len(h)) % ASKED == 0
    code = Code(world, tuple(factor.name for factor in about))
    wanted = code(factors).double()
    read = mlp_probe.read(h[~asked], wanted[~asked], h[asked], seed)
    left, spread = ((wanted[asked] - each).square() for each in (read, wanted[~asked].mean(dim=0)))
    found = {}
    for factor, own, alone in zip(about, left.split(code.widths, dim=1), spread.split(code.widths, dim=1), strict=True):
        error, whole = (each.sum(dim=1).numpy() for each in (own, alone))
        found[factor.name] = slopes.slope(whole - error, whole)
    return found


def _pairs(count: int, config: FactorsConfig) -> int:
    return min(config.readable, count // 2)


def table(found: list[Kept], name: str, sources: int, pairs: int) -> Table:
    """A row for each factor."""
    rows: list[tuple[Cell, ...]] = [
        (each.name, each.slope, each.verdict.word, each.verdict.detectable, *each.readouts, each.ceiling)
        for each in found
    ]
    note = (
        f"{sources} sources. Verdicts are on slopes and readouts, each by itself (rules of {rules.VERSION}). R^2: "
        f"{LINEAR} and {BENT}, of a factor's change read off that of h, over {pairs} pairs of items; {NETWORK}, of the "
        "factor itself, off h of left-out items. None depends on the decoder. Detectable: a slope that such a run "
        f"calls kept in {100 * RULES.detected_power:.0f} %. Of images: the slope of what is read off the sources' own "
        f"images; samples cannot have more. {rules.UNADJUSTED}"
    )
    read = [f"{each} R^2" for each in (LINEAR, BENT, NETWORK)]
    heads = ("factor", "slope", "verdict", "detectable slope", *read, "slope of images")
    return Table("factors", f"{name}: how far samples follow each factor", heads, tuple(rows), note)


def _finding(each: Kept) -> Finding:
    group, what, found = "the representation keeps", each.called, each.verdict
    names = (LINEAR, BENT, NETWORK)
    read = ", ".join(f"{name} {cell_text(got)}" for name, got in zip(names, each.readouts, strict=True))
    parts = [f"slope {cell_text(each.slope)}: {found.reason}", f"R^2 of readouts: {read}"]
    if found.kept is None:
        parts.append(f"such a run calls a slope of {found.detectable:.2f} kept in 80 %")
    return Finding(
        f"{group} {what}",
        found.kept,
        "; ".join(parts),
        group,
        what,
        found.p,
        otherwise=f"the representation drops {what}",
        numbers=(("slope", each.slope),),
    )


def _sheet(model: Model, data: ImageSet, h: Tensor, sources: Tensor, config: FactorsConfig) -> Image.Image:
    chosen = sources[evenly(min(config.shown, len(sources)), len(sources))]
    samples = common.draw(model, h[chosen], chosen, config, SHOWN)
    images = data.floats(chosen).cpu()
    rows = [[to_pil(image), *map(to_pil, row)] for image, row in zip(images, samples, strict=True)]
    return image_sheet(rows, cell=64, column_titles=["source", "samples"], group_gaps=[1])
