"""The GPU that is measured on, what it could do at most, and how much time is left.

python -m benchmarks.gpu.machine --seconds 60 --json FILE    facts of the machine, and the ceilings as rows
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline, timing
from benchmarks.gpu.settings import chosen
from rcdm_fast import benchmarking, storage

# Dense bf16 and fp16 matrix products, TFLOP/s, as the maker states them; the first that a device is called by.
PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("H200", 989.4),
    ("GH200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
)


def reason_missing() -> str:
    """Why there is no GPU to measure on; empty if there is one."""
    if torch.version.cuda is None:
        return f"no CUDA device: torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return f"no CUDA device: torch {torch.__version__} was built for CUDA {torch.version.cuda} but finds none"
    return ""


def peak_tflops(device_name: str) -> float | None:
    """The stated peak of a device, or None for one that is not in the table."""
    return next((peak for name, peak in PEAK_TFLOPS if roofline.is_named(name, device_name)), None)


@dataclass(frozen=True)
class Deadline:
    """A moment by which a part wants to be done, so that it never has to be killed."""

    end: float  # of time.monotonic()

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    def earlier(self, seconds: float) -> Deadline:
        """One that leaves so many seconds for something else."""
        return Deadline(self.end - seconds)

    @property
    def left_s(self) -> float:
        """Seconds left, not negative."""
        return max(0.0, self.end - time.monotonic())


@dataclass(frozen=True)
class Ceilings:
    """What was measured of a device: rows to report, matrix products per precision (FLOP/s), copying (bytes/s)."""

    rows: list[dict[str, Any]]
    flop_per_s: dict[str, float]
    bytes_per_s: float

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Ceilings:
        """From the rows that `timing.ceilings` gives."""
        products = {row["precision"]: row["gflop_per_s"] * 1e9 for row in rows if "gflop_per_s" in row}
        (copying,) = (row["bytes_per_s"] for row in rows if "bytes_per_s" in row)
        return cls(rows, products, copying)


def read(path: Path) -> tuple[dict[str, Any], Ceilings]:
    """Facts and ceilings from the file that `main` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return data["facts"], Ceilings.of(data["rows"])


def answers(device: torch.device) -> bool:
    """Whether a device still works: after an illegal access it does not, for this process."""
    try:
        return int(torch.ones(1, device=device).add(1).item()) == 2
    except RuntimeError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the ceilings, in a second or two, and write them."""
    parser = argparse.ArgumentParser(description="Facts and ceilings of the machine.")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--keep", type=Path, help="write the same file here too")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    settings = chosen(options.rehearse)
    device = torch.device(settings.device)
    found = {"facts": benchmarking.facts(device), "rows": timing.ceilings(device, settings.ceiling)}
    for path in (options.json, options.keep):
        if path is not None:
            storage.write_json(path, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
