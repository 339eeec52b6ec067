"""A model, not a measurement: how long an evaluation takes on a GPU by the rates that its maker states.

Every kernel takes a launch, and then the longer of its arithmetic and its memory traffic. `ASSUMPTIONS` says the rest.

Knows nothing about networks (`traced.py`) or which kernels there are (`launches.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from benchmarks import launches, traced
from benchmarks.launches import KINDS, Kernel
from benchmarks.rows import Row
from rcdm_fast.config import ConfigError, UNetConfig

TILES = ((128, 256), (128, 128), (64, 128))  # rows and columns of a product that one multiprocessor makes at a time
PRODUCT_FRACTION = 0.78  # of the stated peak, within tiles
ATTENTION_FRACTION = 0.5
MEMORY_FRACTION = 0.9

ASSUMPTIONS = (
    "every kernel reads and writes each of its tensors once, from and to memory: no cache keeps anything between "
    "kernels; norms, biases and FiLM rows have no parameters to read",
    f"matrix products and convolutions reach {PRODUCT_FRACTION:.0%} of the stated peak within tiles of "
    f"{', '.join(f'{rows}x{columns}' for rows, columns in TILES)} (the best of these for each), one tile on a "
    "multiprocessor at a time, tiles and rounds of multiprocessors filled up; nothing is split along the inner length",
    f"attention reaches {ATTENTION_FRACTION:.0%} of the peak, copies {MEMORY_FRACTION:.0%} of the memory's stated rate",
    "kernels follow one another in a CUDA graph, one at a time",
    "a norm takes one kernel where its slab of an image fits on the chip, else two (three in Triton)",
    "torch.compile launches the same convolutions (whole ones where the program has four phases) and attention; "
    "biases, activations, sums, concatenation and resampling are free parts of its other kernels",
)


@dataclass(frozen=True)
class Device:
    """Numbers of a GPU, as its maker states them, but for the launch.

    Attributes:
        name: words of the name that its driver gives.
        tflops: dense 16-bit matrix products, TFLOP/s.
        bytes_per_s: of its memory.
        multiprocessors: how many there are.
        launch_us: from the end of a kernel in a graph to the beginning of the next one.
    """

    name: str
    tflops: float
    bytes_per_s: float
    multiprocessors: int
    launch_us: float = 2.0


DEVICES = (  # the first that a device is called by
    Device("H200", 989.4, 4.8e12, 132),
    Device("H100 PCIe", 756.0, 2.0e12, 114),
    Device("H100 NVL", 835.0, 3.9e12, 132),
    Device("H100", 989.4, 3.35e12, 132),
    Device("A100-SXM4-40GB", 312.0, 1.555e12, 108),
    Device("A100-PCIE-40GB", 312.0, 1.555e12, 108),
    Device("A100", 312.0, 2.039e12, 108),
    Device("L40S", 362.0, 0.864e12, 142),
    Device("L4", 121.0, 0.3e12, 58),
    Device("RTX 5090", 209.5, 1.792e12, 170),
    Device("RTX 4090", 165.2, 1.008e12, 128),
)


def is_named(known: str, name: str) -> bool:
    """Whether a GPU's name says that it is a known one: in whole words (an L40 is no L4), not its form for laptops."""
    return re.search(rf"\b{re.escape(known)}\b(?! Laptop| D\b)", name) is not None


def device_named(name: str) -> Device | None:
    """The numbers of a GPU by its name, or None where they are not known."""
    return next((device for device in DEVICES if is_named(device.name, name)), None)


def read_device(path: Path) -> Device:
    """Numbers from a JSON file with the attributes of `Device`; `ConfigError` for others."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        device = Device(**values)
        numbers = [float(value) for key, value in dataclasses.asdict(device).items() if key != "name"]
    except (OSError, ValueError, TypeError) as error:
        wanted = ", ".join(field.name for field in dataclasses.fields(Device))
        raise ConfigError(f"{path}: no device ({error}); a JSON object has {wanted}") from error
    if min(numbers[:-1]) <= 0 or numbers[-1] < 0:
        raise ConfigError(f"{path}: a device's numbers must be positive; got {values}")
    return device


def kernel_ms(kernel: Kernel, device: Device) -> float:
    """One launch, in milliseconds."""
    memory_s = kernel.moved / (MEMORY_FRACTION * device.bytes_per_s)
    peak = device.tflops * 1e12
    work_s = kernel.flop / (ATTENTION_FRACTION * peak)
    if kernel.product is not None:
        work_s = min(_product_s(*kernel.product, tile, device) for tile in TILES)
    return device.launch_us * 1e-3 + 1e3 * max(memory_s, work_s)


def _product_s(rows: int, columns: int, inner: int, tile: tuple[int, int], device: Device) -> float:
    tiles = ceil(rows / tile[0]) * ceil(columns / tile[1])
    one_s = 2 * tile[0] * tile[1] * inner * device.multiprocessors / (PRODUCT_FRACTION * device.tflops * 1e12)
    return ceil(tiles / device.multiprocessors) * one_s


def summary(kernels: Sequence[Kernel], device: Device) -> Row:
    """Milliseconds of every kind and of all, their number, and what they move."""
    times = dict.fromkeys(KINDS, 0.0)
    for kernel in kernels:
        times[kernel.kind] += kernel_ms(kernel, device)
    return {
        **{f"{kind}_ms": value for kind, value in times.items()},
        "ms": sum(times.values()),
        "kernels": len(kernels),
        "bytes": sum(kernel.moved for kernel in kernels),
        "flop": sum(kernel.flop for kernel in kernels),
    }


@functools.cache
def kernels_of(unet: UNetConfig, batch: int, way: str) -> tuple[Kernel, ...]:
    """The kernels of one evaluation in one of the `WAYS`."""
    return tuple(WAYS[way](unet, batch))


WAYS = {
    "native": lambda unet, batch: launches.of_engine(traced.of_program(unet, batch)),
    "native, biases folded": lambda unet, batch: launches.of_engine(traced.of_program(unet, batch, "folded")),
    "native, residuals in convolutions": lambda unet, batch: launches.of_engine(
        traced.of_program(unet, batch, "folded", epilogue=True)
    ),
    "native, moments given": lambda unet, batch: launches.of_engine(traced.of_program(unet, batch, "summed")),
    "native, moments in convolutions": lambda unet, batch: launches.of_engine(
        traced.of_program(unet, batch, "summed", epilogue=True)
    ),
    "torch.compile": lambda unet, batch: launches.of_compiler(traced.of_plain(unet, batch)),
}


def predict(unet: UNetConfig, batch: int, device: Device) -> list[Row]:
    """A row for every way to evaluate a batch; `of_compile` is how many times as fast as torch.compile it is."""
    rows = [{"name": way, "batch": batch, **summary(kernels_of(unet, batch, way), device)} for way in WAYS]
    rival = next(row["ms"] for row in rows if row["name"] == "torch.compile")
    for row in rows:
        row["of_compile"] = rival / row["ms"]
        row["mfu_percent"] = 100 * row["flop"] / (row["ms"] * 1e-3) / (device.tflops * 1e12)
    return rows
