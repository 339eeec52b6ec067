"""Run experiments one after the other and write the page, and all numbers as JSON beside it.

An experiment that cannot be run with what there is (too few images, no labels, a missing package) is left out, and
the page says why; everything else that goes wrong is an error. What was measured before one, or before an
interruption, is kept in a page of its own.

Knows nothing about single experiments (`analysis/registry.py`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdm_fast import outputs, provenance, storage
from rcdm_fast.analysis import claims, error_rates, registry, rules
from rcdm_fast.analysis.registry import Job
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.config import ConfigError
from rcdm_fast.report.methods import paragraph
from rcdm_fast.report.page import render

Note = Callable[[str], None]
Progress = Callable[[int, int], None] | None


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
    progress: Callable[[], AbstractContextManager[Progress]] = nullcontext,
) -> Path:
    """Run the tasks and write `file` (HTML) and the JSON beside it.

    Args:
        tasks: what to run, in the order of the page.
        file: the page; the numbers go to the same name with .json.
        title, about: heading and first sentence.
        left_out: experiments that the caller already knows cannot be run, with the reason.
        note: told what begins, and what is left out.
        progress: entered for every task, gives what its job tells its progress.
        methods: told the paragraph for a paper, which stands on the page in any case.

    Returns:
        The path of the page. A run that ends in an error leaves what it has measured in NAME-unfinished.html and .json.

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
            with progress() as told:
                results.append(registry.find(task.name).run(dataclasses.replace(task.job, progress=told)))
        except ConfigError as error:
            missing[task.name] = str(error)
            note(f"left out: {error}")
        except BaseException as error:  # whatever ends it: hours may be behind what was measured
            if results:
                missing[task.name] = f"ended by {type(error).__name__}: {error}"
                missing |= {each.name: "not begun" for each in tasks[number + 1 :]}
                kept = page.with_name(f"{page.stem}-unfinished{page.suffix}")
                _write(tasks, results, missing, took, kept, f"{title} (unfinished)", about)
                note(f"{kept}: what was measured before {task.name} failed")
            raise
        took[task.name] = round(time.monotonic() - since, 1)
    if not results:
        raise ConfigError("nothing could be measured: " + "; ".join(f"{key}: {why}" for key, why in missing.items()))
    how = _write(tasks, results, missing, took, page, title, about)
    if methods is not None:
        methods(how)
    return page


def _write(
    tasks: Sequence[Task],
    found: Sequence[Analysis],
    missing: Mapping[str, str],
    took: Mapping[str, float],
    page: Path,
    title: str,
    about: str,
) -> str:
    """Write the page and its numbers; the paragraph for a paper."""
    results = claims.of_report(found)
    job = tasks[0].job
    models = {id(each): each for task in tasks for each in (task.job.model, *task.job.against)}
    facts = provenance.made_by(list(models.values()), {"data": job.data, "photos": job.photos})
    facts |= {"rules": rules.VERSION, "seconds": dict(took)}
    how = paragraph(results, facts)
    numbers = as_json(title, results, missing, facts) | {"methods": how}
    text = render(title, about, results, missing, facts, how, numbers, rates(results))
    outputs.keep(page, lambda file: storage.write_text(file, text))
    outputs.keep(page.with_suffix(".json"), lambda file: storage.write_json(file, numbers))
    return how


def rates(results: Sequence[Analysis]) -> list[str]:
    """How often verdicts on slopes are wrong, as sentences; none where there is no such verdict."""
    verdicts = {each.holds for result in results for each in result.findings if each.p is not None}
    if not verdicts:
        return []
    if not error_rates.SHIPPED.exists():
        return [f"not stated, for this version ships no calibration of its rules ({rules.VERSION})"]
    return [said for each in (True, False) if each in verdicts and (said := error_rates.sentence(each))]


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
