"""The GPU that is measured on, what it could do at most, and how much time is left.

Knows nothing about what is measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import timing

# Dense bf16 and fp16 matrix products, TFLOP/s, as the maker states them; the first name that occurs in the device's.
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
    return next((peak for name, peak in PEAK_TFLOPS if name in device_name), None)


@dataclass(frozen=True)
class Deadline:
    """A moment by which a part wants to be done, so that it never has to be killed."""

    end: float  # of time.monotonic()

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

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
    def measure(cls, device: torch.device, size: int = 4096) -> Ceilings:
        """In a second or two."""
        rows = timing.ceilings(device, size)
        products = {row["precision"]: row["gflop_per_s"] * 1e9 for row in rows if "gflop_per_s" in row}
        (copying,) = (row["bytes_per_s"] for row in rows if "bytes_per_s" in row)
        return cls(rows, products, copying)
