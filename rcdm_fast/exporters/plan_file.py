"""TensorRT plans as TensorRT wrote them, each with a JSON file beside it that says what the plan is.

``NAME.plan`` (or ``NAME.engine``) is the plan and nothing else, so that trtexec and Triton Inference Server load it.
``NAME.plan.json`` names library and version, weights, precision, batches and GPU generations, and has the plan's size
and checksum: a runtime rejects a plan of another version, device or damage with a message about magic numbers, or not
at all. It is read without TensorRT.

The plan gets its name before its description does, and both are compared with each other when they are read: what an
export that was stopped in between leaves is recognized.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdm_fast import config as configs
from rcdm_fast import storage
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.doors import door, printable, regular
from rcdm_fast.exporters.onnx import GraphError

FORMAT = "rcdm_fast TensorRT plan 1"  # what the description begins with
CONTAINER = b"RCDMPLN1"  # how plans began that had their description inside
LARGEST_DESCRIPTION = 2**20


@dataclass(frozen=True)
class PlanHeader:
    """What a plan is.

    Attributes:
        version: of rcdm_fast.
        library, library_version: "tensorrt" or "tensorrt_rtx", and its version.
        precision: "fp32", "fp16" or "bf16".
        weights: `graph.weights_hash` of the model.
        config: network and schedule.
        batches: smallest, preferred and largest number of images per evaluation.
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
        """The batch to run for so many images, filled up to the smallest; `GraphError` if the plan takes fewer."""
        low, _, high = self.batches
        if size > high:
            raise GraphError(
                f"{where}: built for at most {high} images per evaluation, not {size}; "
                f"sample with batch_size={high}, or export it with --batch-size {size}"
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

    def check_target(self, library: str, library_version: str, target: str, where: str) -> None:
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


def described_in(path: str | os.PathLike[str]) -> Path:
    """The description that belongs to a plan."""
    return Path(f"{os.fspath(path)}.json")


def write(path: str | os.PathLike[str], header: PlanHeader, plan: bytes | memoryview) -> Path:
    """Write a plan, and its description beside it; returns the plan's path.

    Raises:
        StorageError: no space, or a folder that cannot be written; nothing is left.
    """
    target = Path(path)
    full = dataclasses.replace(header, size_bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest())
    values = {field.name: getattr(full, field.name) for field in dataclasses.fields(full)}
    text = json.dumps({"format": FORMAT, **values, "config": json.loads(configs.to_json(full.config))}, indent=1)
    with storage.atomic(described_in(target)) as description:
        description.write_text(text + "\n", encoding="utf-8")
        storage.flush(description)  # what is left to do when the plan has its name cannot want for space
        with storage.atomic(target) as temporary:
            temporary.write_bytes(plan)
    return target


def read_header(path: str | os.PathLike[str]) -> PlanHeader:
    """What the file beside a plan says; the plan itself is not read.

    Raises:
        GraphError: no plan of rcdm_fast's, or a damaged description.
    """
    _check_kind(path)
    description = described_in(path)
    if not description.exists():
        raise GraphError(
            f"{path}: {description.name} is not beside it (the export was stopped, or one file was copied "
            "without the other); export it again"
        )
    with door(GraphError, f"{description}: cannot be read"):
        regular(description)
        size = description.stat().st_size
        if size > LARGEST_DESCRIPTION:
            raise ValueError(f"a description of {size} bytes")
        text = description.read_bytes()
    return _header(text, str(description))


def read(path: str | os.PathLike[str]) -> tuple[PlanHeader, bytes]:
    """The description and the plan.

    Raises:
        GraphError: no plan of rcdm_fast's, cut short, damaged, or not the one that is described.
    """
    header = read_header(path)
    with door(GraphError, f"{path}: cannot be read"):
        plan = Path(path).read_bytes()
    name = described_in(path).name
    if len(plan) != header.size_bytes:
        raise GraphError(
            f"{path}: {len(plan)} bytes, but {name} is of a plan of {header.size_bytes} (cut short, or the export was "
            "stopped between the two files); export it again"
        )
    if hashlib.sha256(plan).hexdigest() != header.sha256:
        raise GraphError(
            f"{path}: damaged, or not the plan that {name} is of (its checksum differs; the export may have been "
            "stopped between the two files); export it again"
        )
    return header, plan


def _check_kind(path: str | os.PathLike[str]) -> None:
    """`GraphError` for what can be no plan, or is one in the container of before."""
    with door(GraphError, f"{path}: cannot be read"):
        regular(path)
        with Path(path).open("rb") as file:
            start = file.read(len(CONTAINER))
    if start == CONTAINER:
        raise GraphError(
            f"{path}: a plan inside a container, as rcdm_fast wrote them before TensorRT's own tools could load them; "
            "export it again"
        )
    if Path(path).suffix == ".json" and start[:1] == b"{":
        raise GraphError(f"{path}: describes a plan and is none; name the plan beside it")


@contextlib.contextmanager
def _understood(where: str) -> Iterator[None]:
    """A configuration that describes no model is damage, too."""
    try:
        yield
    except ConfigError as error:
        raise GraphError(f"{where}: damaged ({error}); export it again") from error


def _header(text: bytes, where: str) -> PlanHeader:
    with _understood(where), door(GraphError, f"{where}: damaged; export it again"):
        found: dict[str, Any] = json.loads(text)
        kind = found.pop("format")
        if kind != FORMAT:
            raise GraphError(f"{where}: {printable(repr(kind))} where {FORMAT!r} was expected; export it again")
        found["config"] = configs.from_dict(ModelConfig, found["config"], where)
        low, usual, high = (int(size) for size in found["batches"])
        if not 0 < low <= usual <= high:
            raise ValueError(f"batches of {low}, {usual} and {high}")
        found["batches"] = (low, usual, high)
        found["targets"] = tuple(str(target) for target in found["targets"])
        for name in ("version", "library", "library_version", "precision", "weights", "sha256"):
            if not isinstance(found[name], str):
                raise TypeError(f"{name} is no text")
        return PlanHeader(**found)
