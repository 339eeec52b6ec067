"""Class accuracies of encoders, as documents show them, from what `rcdm encoders --test-data` wrote. Texts only."""

from __future__ import annotations

from benchmarks.documents.models import interval
from benchmarks.documents.speed import Found


def accuracies(*found: Found) -> str:
    """kNN and linear-probe accuracies of an encoder's layers, in percent."""
    lines = ["| layer | dimensions | kNN, % | linear probe, % |", "|---|---:|---|---|"]
    for each in found:
        values = (interval(each["accuracy"][kind], ".1f", 100) for kind in ("knn", "linear"))
        lines.append(f"| {each['layer']} | {each['dim']} | {' | '.join(values)} |")
    return "\n".join(lines)


def accuracy(found: Found, kind: str) -> str:
    """One of them, ``knn`` or ``linear``, without its interval."""
    return f"{100 * found['accuracy'][kind]['value']:.1f} %"
