"""How faithful samples are to the representation they were drawn from (Bordes et al. 2021, section 4.1).

A wrapping of `rcdm_fast.evaluation`, which measures: every sample is re-encoded and the source image's rank among real
representations is counted; the distance to h stands beside that of real nearest neighbors. Adds a figure only.
Beside both stands what the sources themselves would have, blurred by one pixel, with the same encoder.
"""

from __future__ import annotations

import dataclasses

import torch
from PIL import Image

from rcdm_fast import evaluation, host
from rcdm_fast.analysis.common import Progress
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.evaluation import Drawn, EvaluateConfig, Faithfulness
from rcdm_fast.images import from_uint8, image_sheet, to_pil
from rcdm_fast.metrics.intervals import LEAST
from rcdm_fast.model import Model

SHOWN = 6  # sources in the figure
HEADS = 3  # of them at the top of a page
CEILING = (
    "The source, blurred by one pixel, is what samples would have that are perfect but for that. It depends on the "
    "encoder: ranks compare samples of one encoder, and do not say which of two encoders keeps more."
)


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: EvaluateConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """Ranks and distances as an `Analysis`.

    Args:
        model: a model with an encoder.
        data: gallery and source images.
        config: sizes and solver.
        progress: called with (sources done, all of them).

    Raises:
        ConfigError: fewer images than asked for, under 20 sources, or a model without an encoder.
    """
    _, sources = evaluation.counts(data, config)
    if sources < LEAST:
        raise ConfigError(f"an interval over source images needs at least {LEAST} of them, got {sources}")
    gallery = None
    if shared is not None and model.encoder is not None:
        size, _ = evaluation.counts(data, config)
        gallery = encoded(shared, model.encoder, data, data.spread(size))
    drawn = evaluation.draw(model, data, config, progress, gallery=gallery)
    found = evaluation.faithfulness(drawn, config)
    name = model.config.name or "(unnamed)"
    return Analysis(
        name="faithfulness",
        title=f"How faithful the samples of {name} are",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "sources": found.sources,
            "gallery": found.gallery,
            "data": data.fingerprint,
        },
        tables=(_ranks(found), _distances(found)),
        findings=(_better_than_chance(found), _near(found)),
        figures={
            "samples": image_sheet(_rows(drawn, SHOWN), cell=96, column_titles=("image", "samples"), group_gaps=(1,))
        },
        heads=tuple(image_sheet([row[:4]], cell=96) for row in _rows(drawn, HEADS)),
        captions={"samples": "Source images at the left, samples of their representations beside them."},
        method="Every sample is re-encoded; all gallery representations are ranked by squared distance to it, and the "
        "rank of the source image's own is counted (1 is best, ties count half). Intervals: 95 %, bootstrap over "
        "sources, of ranks on a logarithmic scale, of reciprocal ranks by Wilson's score. After Bordes et al. (2021), "
        "section 4.1.",
    )


def _ranks(found: Faithfulness) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = (
        ("mean reciprocal rank", found.mrr, found.blurred_mrr, found.chance_mrr),
        ("mean rank", found.mean_rank, found.blurred_mean_rank, found.chance_mean_rank),
    )
    note = (
        f"{found.sources} sources, {found.samples} samples of each, ranked among {found.gallery} real images. {CEILING}"
    )
    columns = ("measure", "samples", "the source, blurred by 1 px", "chance")
    return Table("ranks", "Rank of the source image", columns, rows, note, False)


def _distances(found: Faithfulness) -> Table:
    rows: list[tuple[Cell, ...]] = [
        ("a sample", found.distance),
        ("the source, blurred by 1 px", found.blurred_distance),
    ]
    rows += [(f"real neighbor number {k}", each) for k, each in found.nearest_real.items()]
    return Table("distances", "Squared distance to h", ("of", "value"), tuple(rows))


def _better_than_chance(found: Faithfulness) -> Finding:
    held = True if found.mrr.low > found.chance_mrr else False if found.mrr.high < found.chance_mrr else None
    text = (
        f"MRR {cell_text(found.mrr)}, of the source blurred by 1 px {cell_text(found.blurred_mrr)}, "
        f"chance {found.chance_mrr:.3g}"
    )
    ceiling = () if found.blurred_mrr is None else (("of sources blurred by 1 px", found.blurred_mrr),)
    numbers = (("MRR of samples", found.mrr), *ceiling)
    return Finding(
        "samples lead back to the image they were drawn from, better than chance", held, text, numbers=numbers
    )


def _near(found: Faithfulness) -> Finding:
    nearest = found.nearest_real[1]
    held = True if found.distance.high < nearest.low else False if found.distance.low > nearest.high else None
    text = f"squared distance {cell_text(found.distance)}, nearest real neighbor {cell_text(nearest)}"
    numbers = (("squared distance of a sample", found.distance), ("of the nearest real neighbor", nearest))
    return Finding("samples are nearer to h than its nearest real neighbor", held, text, numbers=numbers)


def _rows(drawn: Drawn, count: int) -> list[list[Image.Image]]:
    """Of so many sources each, spread evenly: the image and its samples."""
    picked = evenly(min(count, len(drawn.sources)), len(drawn.sources)).tolist()
    rows = []
    for number in picked:
        pixels = torch.cat([drawn.real.pixels[drawn.sources[number]][None], drawn.images[number]])
        rows.append([to_pil(image) for image in from_uint8(pixels)])
    return rows
