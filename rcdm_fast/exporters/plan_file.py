"""TensorRT plans in a container of our own, whose header says what a plan is before any runtime is asked.

A runtime rejects a plan of another version, device or damage with a message about magic numbers, or not at all. The
header names library and version, weights, precision, batches and GPU generations, and has the plan's checksum. It is
read without TensorRT.

Layout: 8 bytes of magic, the header's length (8 bytes, little endian), the header as JSON, the plan.

Knows nothing about building or running plans.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rcdm_fast import config as configs
from rcdm_fast import storage
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.doors import door, printable, regular
from rcdm_fast.exporters.onnx import GraphError

MAGIC = b"RCDMPLN1"
LARGEST_HEADER = 2**20


@dataclass(frozen=True)
class PlanHeader:
    """What a plan is.

    Attributes:
        version: of rcdm_fast.
        library, library_version: "tensorrt" or "tensorrt_rtx", and its version.
        precision: "fp32", "fp16" or "bf16".
        weights: `graph.weights_hash` of the model.
        config: network and schedule.
        batches: smallest, preferred and largest number of pictures per evaluation.
        targets: GPU generations such as "sm89".
        refittable: whether it can take other weights.
        size_bytes, sha256: of the plan itself; filled in by `write`.
    """

    version: str
    library: str
    library_version: str
    precision: str
    weights: str
    config: ModelConfig
    batches: tuple[int, int, int]
    targets: tuple[str, ...]
    refittable: bool
    size_bytes: int = 0
    sha256: str = ""

    def batch_for(self, size: int, where: str) -> int:
        """The batch to run for so many pictures, filled up to the smallest; `GraphError` if the plan takes fewer."""
        low, _, high = self.batches
        if size > high:
            raise GraphError(
                f"{where}: built for at most {high} pictures per evaluation, not {size}; "
                f"sample with batch_size={high}, or export it with --batch {size}"
            )
        return max(size, low)

    def check_network(self, config: ModelConfig, precision: str, where: str) -> None:
        """`GraphError` if the plan is of another version, precision, structure or schedule."""
        version = importlib.metadata.version("rcdm_fast")
        if self.version != version:
            raise GraphError(
                f"{where}: exported by rcdm_fast {printable(self.version)}, this is {version}; export it again"
            )
        if self.precision != precision:
            raise GraphError(f"{where}: built in {printable(self.precision)}, asked for is {precision}")
        if self.config.unet != config.unet or self.config.schedule != config.schedule:
            raise GraphError(f"{where}: built from a network of another structure or schedule")

    def needs_refit(self, weights: str, where: str) -> bool:
        """Whether the plan has other weights than a model; `GraphError` if it has and cannot take the model's."""
        if self.weights == weights:
            return False
        if not self.refittable:
            weights = printable(self.weights[:12])
            raise GraphError(
                f"{where}: built from other weights (sha256 {weights}) and not refittable; export it again"
            )
        return True

    def check_place(self, library: str, library_version: str, target: str, where: str) -> None:
        """`GraphError` if the plan was built by another library or version, or for other GPUs."""
        if (self.library, self.library_version) != (library, library_version):
            built = printable(f"{self.library} {self.library_version}")
            raise GraphError(
                f"{where}: built by {built}, here is {library} {library_version}; "
                "plans are not portable between versions, export it again"
            )
        if target not in self.targets:
            targets = printable(", ".join(self.targets))
            raise GraphError(f"{where}: built for {targets}, this GPU is {target}; export it again")


def write(path: str | os.PathLike[str], header: PlanHeader, plan: bytes | memoryview) -> Path:
    """Write a plan under its header, atomically.

    Raises:
        StorageError: no space, or a folder that cannot be written; nothing is left.
    """
    target = Path(path)
    full = dataclasses.replace(header, size_bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest())
    values = {field.name: getattr(full, field.name) for field in dataclasses.fields(full)}
    text = json.dumps({**values, "config": json.loads(configs.to_json(full.config))}).encode()
    with storage.atomic(target) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + struct.pack("<Q", len(text)) + text)
        file.write(plan)
    return target


def read_header(path: str | os.PathLike[str]) -> PlanHeader:
    """The header alone.

    Raises:
        GraphError: no plan of rcdm_fast's, or a damaged header.
    """
    with _opened(path) as file, door(GraphError, f"{path}: cannot be read"):
        return _header(file, str(path))


def read(path: str | os.PathLike[str]) -> tuple[PlanHeader, bytes]:
    """Header and plan.

    Raises:
        GraphError: no plan of rcdm_fast's, cut short, or damaged.
    """
    with _opened(path) as file, door(GraphError, f"{path}: cannot be read"):
        header = _header(file, str(path))
        plan = file.read()
    if len(plan) != header.size_bytes:
        raise GraphError(f"{path}: the plan has {len(plan)} bytes of {header.size_bytes}; export it again")
    if hashlib.sha256(plan).hexdigest() != header.sha256:
        raise GraphError(f"{path}: the plan is damaged (its checksum differs); export it again")
    return header, plan


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        regular(path)
        return Path(path).open("rb")
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def _understood(where: str) -> Iterator[None]:
    """A configuration that describes no model is a damaged header, too."""
    try:
        yield
    except ConfigError as error:
        raise GraphError(f"{where}: its header is damaged ({error}); export it again") from error


def _header(file: BinaryIO, where: str) -> PlanHeader:
    if file.read(len(MAGIC)) != MAGIC:
        raise GraphError(f"{where}: no plan exported by rcdm_fast")
    with _understood(where), door(GraphError, f"{where}: its header is damaged; export it again"):
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        found = json.loads(file.read(length))
        found["config"] = configs.from_dict(ModelConfig, found["config"], where)
        low, usual, high = (int(size) for size in found["batches"])
        if not 0 < low <= usual <= high:
            raise ValueError(f"batches of {low}, {usual} and {high}")
        found["batches"] = (low, usual, high)
        found["targets"] = tuple(str(target) for target in found["targets"])
        return PlanHeader(**found)
