"""Run experiments one after the other and write the page, and all numbers as JSON beside it.

An experiment that cannot be run with what there is (too few images, no labels, a missing package) is left out, and
the page says why; everything else that goes wrong is an error.

Knows nothing about single experiments (`analysis/registry.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdm_fast import outputs, provenance, storage
from rcdm_fast.analysis import claims, registry, rules
from rcdm_fast.analysis.registry import Job
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.config import ConfigError
from rcdm_fast.report.methods import paragraph
from rcdm_fast.report.page import render

Note = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """One experiment of a report: its name in the registry, and the job."""

    name: str
    job: Job


def build(
    tasks: Sequence[Task],
    file: str | Path,
    *,
    title: str,
    about: str,
    left_out: Mapping[str, str] | None = None,
    note: Note = print,
    methods: Note | None = None,
) -> Path:
    """Run the tasks and write `file` (HTML) and the JSON beside it.

    Args:
        tasks: what to run, in the order of the page.
        file: the page; the numbers go to the same name with .json.
        title, about: heading and first sentence.
        left_out: experiments that the caller already knows cannot be run, with the reason.
        note: told what begins, and what is left out.
        methods: told the paragraph for a paper, which stands on the page in any case.

    Returns:
        The path of the page.

    Raises:
        ConfigError: nothing could be run.
        StorageError: a file cannot be written.
    """
    page = Path(file)
    for each in (page, page.with_suffix(".json")):
        storage.check_writable(each)
    results: list[Analysis] = []
    missing = dict(left_out or {})
    took: dict[str, float] = {}
    for number, task in enumerate(tasks):
        note(f"{number + 1} of {len(tasks)}: {task.name}")
        since = time.monotonic()
        try:
            results.append(registry.find(task.name).run(task.job))
        except ConfigError as error:
            missing[task.name] = str(error)
            note(f"left out: {error}")
        took[task.name] = round(time.monotonic() - since, 1)
    if not results:
        raise ConfigError("nothing could be measured: " + "; ".join(f"{key}: {why}" for key, why in missing.items()))
    results = claims.of_report(results)
    job = tasks[0].job
    models = {id(each): each for task in tasks for each in (task.job.model, *task.job.against)}
    facts = provenance.made_by(list(models.values()), {"data": job.data, "photos": job.photos})
    facts |= {"rules": rules.VERSION, "seconds": took}
    how = paragraph(results, facts)
    outputs.keep(page, lambda file: storage.write_text(file, render(title, about, results, missing, facts, how)))
    numbers = as_json(title, results, missing, facts) | {"methods": how}
    outputs.keep(page.with_suffix(".json"), lambda file: storage.write_json(file, numbers))
    if methods is not None:
        methods(how)
    return page


def as_json(
    title: str, results: Sequence[Analysis], left_out: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """All numbers of a report as plain JSON values."""
    return {
        "title": title,
        "experiments": {each.name: each.as_json() for each in results},
        "left_out": dict(left_out),
        "made_by": dict(facts),
    }
