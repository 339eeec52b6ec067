"""Many claims at once: what is decided one by one may be chance, and is not decided when all are asked together.

Knows nothing about how claims were measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rcdm_fast.analysis import rules
from rcdm_fast.analysis.result import Analysis, Finding


def together(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings with p-values adjusted by Holm's method, and those at 0.05 and above inconclusive.

    Findings without a p-value are left as they are and do not count. A further claim can only make others inconclusive,
    so this may be asked of an analysis and then of a report of several.
    """
    given = list(findings)
    adjusted = iter(rules.holm([each.p for each in given if each.p is not None]))
    return tuple(each if each.p is None else _adjusted(each, next(adjusted)) for each in given)


def _adjusted(finding: Finding, p: float) -> Finding:
    if finding.holds is None or p < rules.LEVEL:
        return dataclasses.replace(finding, adjusted=p)
    said = f"{finding.measured}; decided by itself, but not among all claims (p = {p:.2f} by Holm's method)"
    return dataclasses.replace(finding, holds=None, measured=said, adjusted=p)


def of_report(results: Sequence[Analysis]) -> list[Analysis]:
    """The analyses of one report with all their findings adjusted together."""
    found = iter(together(finding for result in results for finding in result.findings))
    return [dataclasses.replace(each, findings=tuple(next(found) for _ in each.findings)) for each in results]
