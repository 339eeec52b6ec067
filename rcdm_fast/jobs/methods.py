"""What `Model` offers of jobs: pictures of many items, as they are finished.

Knows nothing about how they are made (`stream.py`, which is imported when it is asked for).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, cast

from rcdm_fast import host
from rcdm_fast.inputs import OnBad

if TYPE_CHECKING:
    from rcdm_fast.jobs.sources import Given
    from rcdm_fast.jobs.stream import Generated
    from rcdm_fast.pipeline import Model


class JobMethods:
    """Methods of `Model`."""

    def generate(
        self,
        source: Given,
        *,
        per: int = 8,
        steps: int | str = 50,
        solver: str = "ddim",
        eta: float = 0.0,
        guidance: float = 1.0,
        seed: int = 0,
        batch_size: int | None = None,
        threads: int = 4,
        on_bad: OnBad | None = None,
    ) -> Iterator[Generated]:
        """Pictures of many items as they are finished; items are read and encoded ahead.

        Several threads may generate at once with one model: their batches take turns. `rcdm generate` (or
        `rcdm_fast.jobs.local.run`) does the same into files, resumably.

        Args:
            source: a folder of pictures, WebDataset shards, .npy, .npz, .safetensors, Parquet or Arrow files of
                pictures or representations; the arrays, pictures or paths themselves; labels for a class-conditional
                model, a number of items for an unconditional one. See `rcdm_fast.jobs.sources.find`.
            per: samples of each item. The noise of a picture depends on (seed, place of its item, sample) alone.
            steps, solver, eta, guidance, seed: as in `sample`.
            batch_size: pictures per network evaluation, packed across items; halved when memory does not suffice.
            threads: that read pictures.
            on_bad: told (item, reason) of an item that cannot be read or drawn, and the others go on; without it the
                first such item is an error.

        Returns:
            batches: item and sample int64 [N], ids, pictures uint8 [N,3,H,W] on the CPU; in order.

        Raises:
            ConfigError, ImageError, StorageError: at once, if the source or the settings cannot be used.
        """
        from rcdm_fast.jobs import stream
        from rcdm_fast.jobs.settings import JobConfig, RunOptions

        config = JobConfig(per, steps, solver, eta, guidance, seed)  # type: ignore[arg-type]  # checked there
        with host.apart():
            found = stream.generate(cast("Model", self), source, config, RunOptions(batch_size, threads), on_bad)
        return host.guarded_each(found)

    def agenerate(self, source: Given, **settings: Any) -> AsyncIterator[Generated]:
        """`generate` for asyncio (``async for batch in model.agenerate(...)``): each batch is drawn in a thread.

        Takes and raises the same. Leaving the loop early stops the reading ahead.
        """
        from rcdm_fast.jobs import stream

        return stream.agenerate(self.generate(source, **settings))
