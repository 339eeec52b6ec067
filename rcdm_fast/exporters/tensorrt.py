"""TensorRT plans, by `tensorrt` or by `tensorrt_rtx` (for RTX cards), which have one API.

The exported ONNX network, whose types are its precision (strongly typed), is parsed and built: by default one static
plan for every batch size, which is faster than one with a dynamic batch. TensorRT-RTX compiles for GPU generations that
are not there, so that a machine without a GPU can build. A plan that takes other weights later (refit) is only built
for the GPU that is here: without one TensorRT-RTX 1.7 fails while compiling such a plan.

fp8 is not here: it needs scales of every product in the graph.

Knows nothing about running a plan (`engines/tensorrt_runtime.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rcdm_fast import storage
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.downloads import cache_dir
from rcdm_fast.errors import install
from rcdm_fast.exporters import onnx, plan_file
from rcdm_fast.exporters.graph import input_names, weights_hash
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import ExportError
from rcdm_fast.exporters.plan_file import PlanHeader
from rcdm_fast.models.unet import UNet

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "bf16")
LIBRARIES = ("tensorrt", "tensorrt_rtx")
Report = Callable[[str], None]


def missing_packages() -> list[str]:
    """Packages that are not installed: one library, and those that write ONNX."""
    there = any(importlib.util.find_spec(name) is not None for name in LIBRARIES)
    return ([] if there else [f"tensorrt or tensorrt_rtx ({install('tensorrt-rtx')})"]) + onnx.missing_packages()


def library() -> Any:
    """The TensorRT module that is installed; `ConfigError` with the reasons if none can be imported."""
    reasons = []
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise ConfigError(f"no TensorRT ({'; '.join(reasons)})")


def current_target() -> str:
    """The generation of torch's current GPU, such as "sm89"; "" if there is none."""
    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def write(out: Path, job: Job) -> list[Path]:
    """Build plans and write them: ``network-PRECISION-bN.plan``, each with its description beside it (`plan_file`).

    Raises:
        ConfigError: no GPU and no targets, or targets that the library cannot compile for.
        ExportError: the network cannot be parsed or built, with TensorRT's own words.
        StorageError: a plan cannot be written.
    """
    sizes = sorted(set(job.batches))
    if not sizes or sizes[0] < 1:
        raise ConfigError(f"batches must be at least 1, got {list(job.batches)}")
    targets = check_targets(job.targets)
    with tempfile.TemporaryDirectory() as folder:
        job.report("network: exporting to ONNX and checking")
        graph = onnx.export_network(Path(folder) / "network.onnx", job.network, job.config, job.precision)
        profiles = [(1, sizes[-1], sizes[-1])] if job.dynamic else [(size, size, size) for size in sizes]
        files: list[Path] = []
        for profile in profiles:
            name = f"b1to{profile[2]}" if job.dynamic else f"b{profile[0]}"
            job.report(f"{name}: building for {', '.join(targets)}")
            plan = build(graph, job.config, profile, targets, job.report)
            header = describe(job.network, job.config, job.precision, profile, targets)
            file = plan_file.write(out / f"network-{job.precision}-{name}.plan", header, plan)
            files += [file, plan_file.described_in(file)]
    return files


def check_targets(targets: tuple[str, ...]) -> tuple[str, ...]:
    """The generations to build for: those named, or the GPU that is here.

    Raises:
        ConfigError: none named and no GPU, or one that the library cannot compile for.
    """
    trt = library()
    here = current_target()
    if not targets and not here:
        raise ConfigError("no GPU to build a plan for; name GPU generations: --target sm89,sm120")
    wanted = tuple(targets) or (here,)
    if not hasattr(trt, "ComputeCapability"):
        if wanted != (here,):
            found = here or "none"
            raise ConfigError(f"{trt.__name__} builds only for the GPU that is here ({found}), not {', '.join(wanted)}")
        return wanted
    names = (name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    able = sorted(names, key=lambda name: int(name[2:]))
    for target in wanted:
        if target not in able:
            raise ConfigError(f"{trt.__name__} cannot compile for {target!r}; it can for {', '.join(able)}")
    return wanted


def describe(
    network: UNet, config: ModelConfig, precision: str, profile: tuple[int, int, int], targets: tuple[str, ...]
) -> PlanHeader:
    """What a plan built here and now is."""
    trt = library()
    return PlanHeader(
        version=importlib.metadata.version("rcdm_fast"),
        library=trt.__name__,
        library_version=trt.__version__,
        precision=precision,
        weights=weights_hash(network, config.schedule),
        config=config,
        batches=profile,
        targets=targets,
        refittable=refittable(targets),
    )


def refittable(targets: tuple[str, ...]) -> bool:
    """Whether plans built here for some GPUs can take other weights: they are built for the one that is here."""
    return targets == (current_target(),)


def build(
    graph: Path,
    config: ModelConfig,
    profile: tuple[int, int, int],
    targets: tuple[str, ...],
    report: Report = lambda _: None,
) -> memoryview:
    """Parse an exported network and build a plan.

    Args:
        graph: an ONNX file of `onnx.export_network`.
        config: its configuration.
        profile: smallest, preferred and largest batch.
        targets: GPU generations, checked by `check_targets`.
        report: takes a line about every phase.

    Raises:
        ExportError: with TensorRT's own words.
    """
    trt = library()
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise ExportError(f"TensorRT cannot parse the network: {errors}")
    settings = builder.create_builder_config()
    settings.clear_flag(trt.BuilderFlag.TF32)  # what is float32 in the graph is computed in float32
    if hasattr(trt, "ComputeCapability"):
        settings.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            settings.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    if refittable(targets):
        settings.set_flag(trt.BuilderFlag.REFIT)
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        shapes.set_shape(tensor.name, *((size, *rest) for size in profile))
    settings.add_optimization_profile(shapes)
    timing = None if hasattr(trt, "ComputeCapability") else _use_timings(trt, settings)  # TensorRT-RTX times nothing
    monitor = _monitor(trt, report)
    settings.progress_monitor = monitor
    plan = builder.build_serialized_network(network, settings)
    if not plan:
        names = ", ".join(input_names(config.unet))
        raise ExportError(f"TensorRT cannot build the network ({names}): {logger.last or 'it does not say why'}")
    if timing is not None:
        try:
            with storage.atomic(_timing_file(trt)) as temporary:
                temporary.write_bytes(timing.serialize())
        except OSError as error:  # the plan is what matters
            log.warning("the next build will measure again: %s; RCDM_FAST_CACHE names another folder", error)
    return memoryview(plan)


def refit(engine: Any, graph: Path) -> None:
    """Give an engine that was built for it the weights of another export of the same structure.

    Raises:
        ExportError: the structures differ, or the engine cannot be refitted.
    """
    trt = library()
    logger = make_logger(trt)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise ExportError(f"TensorRT cannot refit the engine: {logger.last or 'it does not say why'}")


def _use_timings(trt: Any, settings: Any) -> Any:
    """What earlier builds measured, which makes this one faster."""
    known = b""
    with contextlib.suppress(OSError):  # none yet, or no cache
        known = _timing_file(trt).read_bytes()
    timings = settings.create_timing_cache(known)
    settings.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def _timing_file(trt: Any) -> Path:
    return cache_dir() / "engines" / f"timing-{trt.__name__}-{trt.__version__}.bin"


def make_logger(trt: Any) -> Any:
    """Keeps the last error; TensorRT reports errors here, not as exceptions."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = " ".join(message.split())[:500]

    return Logger()


def _monitor(trt: Any, report: Report) -> Any:
    """Reports phases that belong to no other phase, or directly to the first."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.top: list[str] = []

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None or parent in self.top[:1]:
                self.top.append(phase)
                report(f"TensorRT: {phase.lower()} ({steps} steps)")

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            return True

    return Monitor()
