"""Images of many items, batch after batch, for programs that take them as they come: `rcdm_fast.generate`.

The same reading ahead, packing and noise as a job, and no files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from rcdm_fast import arguments, host
from rcdm_fast.data import random_access
from rcdm_fast.data.inputs import OnBad
from rcdm_fast.data.random_access import Given
from rcdm_fast.diffusion.sampling_config import SamplingConfig, SamplingKeywords, chosen
from rcdm_fast.images import ImageError
from rcdm_fast.jobs import draw, feed
from rcdm_fast.jobs.draw import Artist
from rcdm_fast.jobs.layout import Layout
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.model import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """A batch of finished images, N of them.

    Attributes:
        item: place of each one's item in the source, int64 [N].
        sample: number of each among the samples of its item, int64 [N].
        ids: what the source calls the items.
        images: uint8 [N,3,H,W] on the CPU.
    """

    item: Tensor
    sample: Tensor
    ids: tuple[str, ...]
    images: Tensor


def generate(
    model: Model,
    source: Given,
    config: SamplingConfig | None = None,
    *,
    batch_size: int | None = None,
    threads: int = RunOptions.threads,
    on_bad: OnBad | None = None,
    **settings: Unpack[SamplingKeywords],
) -> Iterator[Generated]:
    """Images of many items as they are finished; items are read and encoded ahead.

    Several threads may generate at once with one model: their batches take turns. `rcdm generate` (or
    `rcdm_fast.jobs.local.run`) does the same into files, resumably.

    Args:
        model: what draws.
        source: a folder of images, WebDataset shards, .npy, .npz, .safetensors, Parquet or Arrow files of
            images or representations; the arrays, images or paths themselves; labels for a class-conditional
            model, a number of items for an unconditional one. See `rcdm_fast.data.random_access.find`.
        config: how samples are drawn, as in `Model.sample`; per is of each item. The noise of an image depends on
            (seed, place of its item, sample) alone.
        batch_size: images per network evaluation, packed across items; halved when memory does not suffice.
        threads: that read images.
        on_bad: told (item, reason) of an item that cannot be read or drawn, and the others go on; without it the
            first such item is an error.
        settings: fields of `config` as keywords, as in ``generate(model, source, steps=20)``.

    Returns:
        batches: item and sample int64 [N], ids, images uint8 [N,3,H,W] on the CPU; in order.

    Raises:
        ConfigError, ImageError, StorageError: at once, if the source or the settings cannot be used.
    """
    model, job = arguments.loaded(model), JobConfig(**vars(chosen(config, settings)))
    with host.apart():
        found = _generated(model, source, job, RunOptions(batch_size, threads), on_bad)
    return host.guarded_each(found)


def agenerate(model: Model, source: Given, **settings: Any) -> AsyncIterator[Generated]:
    """`generate` for asyncio (``async for batch in rcdm_fast.agenerate(model, ...)``): each batch is drawn in a thread.

    Takes and raises the same. Leaving the loop early stops the reading ahead.
    """
    return _in_a_thread(generate(model, source, **settings))


def _generated(
    model: Model, source: Given, config: JobConfig, options: RunOptions, on_bad: OnBad | None = None
) -> Iterator[Generated]:
    """`config.format` and the like have no effect."""
    found = random_access.find(source, feed.wanted_kinds(model))
    feed.check_kind(model, found)
    draw.check_request(model, config)
    return _batches(model, found, config, options, on_bad)


def _batches(
    model: Model, source: random_access.Source, config: JobConfig, options: RunOptions, on_bad: OnBad | None
) -> Iterator[Generated]:
    layout = Layout(len(source), config.per, config.shard_images)
    artist = Artist(model, config, options.batch_size or draw.default_bucket(model), _smaller)
    reported: set[int] = set()

    def report(bad: dict[int, str]) -> None:
        for item in sorted(bad.keys() - reported):
            if on_bad is None:
                raise ImageError(bad[item])
            reported.add(item)
            on_bad(item, bad[item])

    for ready in feed.ready_units(model, source, map(layout.unit, range(layout.units)), options.threads):
        report(ready.bad)
        for drawn in artist.draw(ready):
            item, sample = torch.tensor(drawn.pairs, dtype=torch.int64).T
            ids = tuple(source.id(place) for place, _ in drawn.pairs)
            yield Generated(item, sample, ids, drawn.levels.permute(0, 3, 1, 2))
        report(ready.bad)


def _smaller(bucket: int) -> None:
    log.warning("out of memory: %d images at once from here on", bucket)


async def _in_a_thread(batches: Iterator[Generated]) -> AsyncIterator[Generated]:
    """The same batches without blocking the event loop: each is drawn in a thread."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, "rcdm-agenerate")  # one, so that closing waits for the batch under way
    try:
        while (batch := await loop.run_in_executor(thread, next, batches, None)) is not None:
            yield batch
    finally:
        close = getattr(batches, "close", None)
        try:
            if close is not None:
                await asyncio.shield(loop.run_in_executor(thread, close))
        finally:
            thread.shutdown(wait=False)
