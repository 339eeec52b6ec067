"""`make bench-gpu PART=tune`: torch.compile with max-autotune on the published 128-px size, the rival on GPUs.

Tuning takes minutes, so a call measures the batches it is given (`BATCHES`, one by default) in their order, and the
first one gets all the time there is. What the compiler has found is kept in out/compiled: where a call ran out of time,
the next one on the same machine goes on. Our engine is timed beside the rival, in the same process.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.gpu import process, step
from benchmarks.gpu.machine import Deadline
from benchmarks.gpu.settings import Settings
from benchmarks.rows import Row, RowFile
from rcdm_fast import engines

DEFAULT_BATCHES = (64,)
RIVAL = "rival-tuned-bf16"


def run(
    settings: Settings,
    file: RowFile,
    shared: Row,
    machine: Path,
    deadline: Deadline,
    batches: tuple[int, ...] = DEFAULT_BATCHES,
) -> int:
    """The batches; the number of wrong candidates."""
    cache = process.ROOT / "out" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(32, os.cpu_count() or 1)))
    names = [RIVAL, *(f"{name}-bf16" for name in engines.ENGINES if name == "native")]
    red = 0
    for batch in batches:
        red += step.measure(
            settings, settings.tuned, batch, names, file, shared, machine, deadline, part="tune", beside=(RIVAL,)
        )
    return red
