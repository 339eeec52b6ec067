"""How often a verdict is wrong where the truth is known: what `rcdm calibrate` measured and the library ships.

Of the cells that moved no threshold, over all decoders but the ideal one: whoever asks has a decoder that is good or
not so good. Nobody knows the truth about photographs, and the sentence says so.

Knows nothing about how cells are judged (`calibrate.py`).
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from rcdm_fast import doors
from rcdm_fast.analysis import rules
from rcdm_fast.analysis.calibrate import IDEAL, VERSION, Rate
from rcdm_fast.analysis.common import listed
from rcdm_fast.checks import ConfigError
from rcdm_fast.encoders import native

SHIPPED = native.BUNDLED / "calibration.json"


@dataclass(frozen=True)
class Measured:
    """What was counted.

    Attributes:
        decoders: their names.
        false_kept: dropped factors that were called kept.
        false_dropped: kept factors that were called dropped.
    """

    decoders: tuple[str, ...]
    false_kept: Rate
    false_dropped: Rate


@functools.cache
def measured(file: Path = SHIPPED) -> Measured:
    """The counts of a calibration.

    Raises:
        ConfigError: no such file, one that is no calibration, or one of other rules than these.
    """
    with doors.door(ConfigError, f"{doors.printable(file)}: no calibration"):
        doors.regular(file)
        found = json.loads(file.read_text(encoding="utf-8"))
        form, version = found["version"], found["rules"]["version"]
        decoders = [each for each in found["decoders"] if each["name"] != IDEAL]
        names = tuple(str(each["name"]) for each in decoders)
        cells = [(cell["kept"], cell["called"]) for each in decoders for cell in each["cells"] if not cell["free"]]
    if (form, version) != (VERSION, rules.VERSION):
        raise ConfigError(
            f"{doors.printable(file)}: a calibration of rules {doors.printable(str(version))}, not of {rules.VERSION}; "
            "rcdm calibrate makes one"
        )
    wrong = [
        Rate(cells.count((truth, rules.word(not truth))), sum(kept is truth for kept, _ in cells))
        for truth in (False, True)
    ]
    if not all(each.of for each in wrong):
        raise ConfigError(f"{doors.printable(file)}: a calibration without cells that moved no threshold")
    return Measured(names, wrong[0], wrong[1])


def sentence(kept: bool | None, file: Path = SHIPPED) -> str:
    """The error rate of a verdict, for readers; empty for an inconclusive one. Raises `ConfigError` (`measured`)."""
    if kept is None:
        return ""
    known = measured(file)
    rate = known.false_kept if kept else known.false_dropped
    span = rate.interval
    return (
        f"in the known world (decoders: {listed(known.decoders)}), {rate.count} of {rate.of} {rules.word(not kept)} "
        f"factors were called {rules.word(kept)} [{100 * span.low:.1f}, {100 * span.high:.1f} %]; "
        "not measured on photographs"
    )
