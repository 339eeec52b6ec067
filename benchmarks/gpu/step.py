"""`make bench-gpu PART=step`: network evaluations of the published 128-px size, and of the smaller ones, on a GPU.

Every batch is measured in a process of its own (`group.py`), the engine that compiles for minutes in another one, and
so are whole trajectories of small batches (`trajectory.py`); a batch begins only while there is time.

Knows nothing about rivals that have to be tuned (`tune.py`).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import candidates, process
from benchmarks.gpu.machine import Deadline
from benchmarks.gpu.settings import Settings
from benchmarks.rows import Row, RowFile
from rcdm_fast import engines

RESERVE_S = 25.0  # a batch begins only if so much is left


def run(settings: Settings, file: RowFile, shared: Row, machine: Path, deadline: Deadline) -> int:
    """All batches; the number of wrong candidates."""
    slow = [name for name in engines.ENGINES if name in candidates.SLOW_TO_BUILD]
    reserved = settings.compiled_s * len(slow) * len(settings.compiled_groups)
    red = 0
    first = settings.groups[0][0]
    for config, batches in settings.groups:
        for batch in batches:
            names = candidates.quick(fp32=batch <= settings.largest_fp32_batch)
            left = deadline.earlier(reserved if config == first else 0.0)
            if left.left_s < RESERVE_S:
                file.put({**shared, "config": config, "batch": batch, "why_not": "no time left"})
                continue
            red += measure(settings, config, batch, names, file, shared, machine, left)
        if config == first:
            red += measure_trajectories(settings, file, shared, machine, deadline.earlier(reserved))
            for name in slow:
                for slow_config, batch in settings.compiled_groups:
                    left = Deadline.after(min(settings.compiled_s, deadline.left_s))
                    names = [f"{name}-bf16"]
                    # Rivals are measured again in that process: their rows are its own.
                    red += measure(settings, slow_config, batch, names, file, shared, machine, left, part=name)
    return red


def measure_trajectories(settings: Settings, file: RowFile, shared: Row, machine: Path, deadline: Deadline) -> int:
    """Whole trajectories of the native engine; the number of wrong ones."""
    red, precision = 0, settings.trajectory_precision
    for config, batch in settings.trajectories:
        labels = {**shared, "config": config, "batch": batch, "part": "trajectory"}
        if deadline.left_s < RESERVE_S:
            file.put({**labels, "why_not": "no time left"})
            continue
        arguments = ["--config", config, "--batch", str(batch), "--machine", str(machine)]
        arguments += ["--rehearse"] if settings.device == "cpu" else []

        def label(name: str, labels: Row = labels) -> Row:
            return {**labels, "name": name, "precision": precision}

        names = [f"native-{precision}"]
        red += process.run_all("trajectory", arguments, names, lambda: deadline.left_s, file.put, label)
    return red


def measure(
    settings: Settings,
    config: str,
    batch: int,
    names: list[str],
    file: RowFile,
    shared: Row,
    machine: Path,
    deadline: Deadline,
    *,
    part: str = "",
    beside: tuple[str, ...] | None = None,
) -> int:
    """One batch; the number of wrong candidates. Rows of another `part` do not replace each other."""
    labels = {**shared, "config": config, "batch": batch, **({"part": part} if part else {})}
    arguments = ["--config", config, "--batch", str(batch), "--machine", str(machine)]
    arguments += ["--rehearse"] if settings.device == "cpu" else []
    arguments += ["--part", part] if part else []
    arguments += [] if beside is None else ["--beside", *beside]

    def label(name: str) -> Row:
        return {**labels, "name": name, "precision": name.rsplit("-", 1)[1]}

    return process.run_all("group", arguments, names, lambda: deadline.left_s, file.put, label)
