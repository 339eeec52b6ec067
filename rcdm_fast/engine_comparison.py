"""How far engines and precisions drift from eager fp32 on the same noise, and what they cost: `rcdm compare`.

For every case the network is evaluated on the reference's own trajectory, which shows the error of single steps, and
a trajectory of its own is drawn from the same noise, which shows what becomes of those errors. It is the gate that a
reduced precision has to pass before it is used.

Knows nothing about how engines work, or about ranks (`rcdm_fast/evaluation.py`, which the command adds).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast import benchmarking, engines
from rcdm_fast.benchmarking import Times
from rcdm_fast.checks import Count
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine, EngineWrapper
from rcdm_fast.diffusion.sampling import Request
from rcdm_fast.diffusion.sampling_config import PER_SOURCE, SamplingConfig
from rcdm_fast.encoders import Encoder
from rcdm_fast.model import Model


@dataclass(frozen=True)
class Case:
    """An engine in a precision, with an exported file for it if it is not to take the cache's."""

    engine: str
    precision: engines.Precision = "fp32"
    file: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Case:
        """ENGINE[:PRECISION[=FILE]], such as ``native:bf16`` or ``openvino:int8=exported/network.xml``."""
        name, _, rest = text.strip().partition(":")
        precision, file = engines.parse(rest or "fp32")
        if precision == "auto":
            raise ConfigError("precision auto is no case: name one of " + ", ".join(engines.PRECISIONS))
        return cls(name, precision, None if file is None else Path(file))

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}" + ("" if self.file is None else f"={self.file}")


REFERENCE = Case("eager", "fp32")


@dataclass(frozen=True, kw_only=True)
class Settings(SamplingConfig):
    """What is drawn, in batches; each case is timed in `rounds` rounds."""

    per: Count = PER_SOURCE
    batch_size: Count = 8
    rounds: Count = 5


@dataclass(frozen=True)
class Drift:
    """One case beside the reference; errors are relative L2 norms.

    Attributes:
        case: engine and precision.
        runs: what the engine says about itself.
        step_errors: of the network's output at the reference's own x, step by step from the noisy end.
        path_errors: of x along a trajectory of its own, step by step; the last entry is the final image's.
        psnr_db: of the final images against the reference's, for a range of 2 ([-1,1]); inf if they are equal.
        times: of one network evaluation, in ms.
        speedup: of the reference over this case, median of the ratios of rounds in which both were timed.
        memory_bytes: by which this process grew while the engine was made and run once; None where it is not known.
        file_bytes: of the exported files that the engine runs; 0 if it runs the model itself.
        images: float32 [R x per,3,H,W].
        digests: SHA-256 of the files that the engine was calibrated in.
    """

    case: Case
    runs: str
    step_errors: tuple[float, ...]
    path_errors: tuple[float, ...]
    psnr_db: float
    times: Times
    speedup: float
    memory_bytes: int | None
    file_bytes: int
    images: Tensor = field(repr=False, compare=False)
    digests: tuple[str, ...] = ()

    def row(self) -> dict[str, object]:
        """What can be written as JSON."""
        return {
            "engine": self.case.engine,
            "precision": self.case.precision,
            "runs": self.runs,
            "step_errors": list(self.step_errors),
            "path_errors": list(self.path_errors),
            "psnr_db": self.psnr_db if math.isfinite(self.psnr_db) else None,
            "p50_ms": self.times.p50_ms,
            "p20_ms": self.times.p20_ms,
            "p80_ms": self.times.p80_ms,
            "speedup": self.speedup,
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            **({"calibrated": list(self.digests)} if self.digests else {}),
        }


class RecordingEngine(EngineWrapper):
    """An engine that keeps every input and output of its evaluations."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seen: list[tuple[Batch, int, Tensor, Tensor]] = []

    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        out = super().evaluate(batch, x, k)
        self.seen.append((batch, k, x.clone(), out.clone()))
        return out


@dataclass
class _Drawn:
    """A case's trajectory, and a network evaluation of it that can be timed."""

    engine: Engine
    recorded: list[tuple[Batch, int, Tensor, Tensor]]
    images: Tensor
    memory_bytes: int | None

    def evaluate(self) -> Tensor:
        batch, k, x, _ = self.recorded[0]
        return self.engine.bound(batch).predict(x, k)


def with_engine(model: Model, case: Case, encoder: Encoder | None = None) -> Model:
    """The same model on another engine, with weights of its own (an engine may lay them out anew).

    Raises:
        ConfigError: no such engine or precision, it cannot run here, or needs a file.
        GraphError, StorageError: the file is damaged, missing or another model's.
    """
    network = copy.deepcopy(model.unet)
    runner = engines.make(case.engine, network, model.config, model.device, case.precision, case.file)
    return Model(model.config, network, runner, encoder, model.device, case.file)


@dataclass(frozen=True)
class _Made:
    """A case's model, and by how many bytes the process grew while it was made; None where it is not known."""

    model: Model
    grown: int | None


def _made(model: Model, case: Case) -> _Made:
    before = _resident_bytes(model.device)
    made = with_engine(model, case)
    return _Made(made, _grown(before, _resident_bytes(model.device)))


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def compare(
    model: Model,
    cases: Sequence[Case],
    h: Tensor | None = None,
    settings: Settings | None = None,
    *,
    label: Tensor | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[Drift]:
    """Measure cases beside eager fp32, which comes first in the result.

    Args:
        model: any model; its own engine does not matter.
        cases: what to compare.
        h: float32 [R,D], or None for an unconditional network.
        settings: what to draw.
        label: int64 [R] for a class-conditional model.
        report: takes one line about progress.

    Raises:
        ConfigError: a case that cannot run here or lacks its file, or settings that make no sense.
        GraphError, StorageError: a case's file is damaged, missing or another model's; nothing was drawn.
    """
    settings = settings or Settings()
    if settings.rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {settings.rounds}")
    for case in cases:
        reasons = engines.reasons_unavailable(case.engine, model.device, case.precision)
        if reasons:
            raise ConfigError(f"{case} cannot run here: {'; '.join(reasons)}")
    listed = [REFERENCE, *(case for case in cases if case != REFERENCE)]
    files = (case for case in listed if case.file is not None or case.precision in engines.CALIBRATED)
    made = {case: _made(model, case) for case in files}
    drawn = {}
    for case in listed:
        report(f"{case}: drawing")
        drawn[case] = _draw(model, case, h, label, settings, made.get(case))
    report(f"timing {len(listed)} cases in turn")
    runs = {str(index): drawn[case].evaluate for index, case in enumerate(listed)}
    times = benchmarking.in_turn(runs, model.device, rounds=settings.rounds, warmup=1, settle_s=0.1)
    truth = drawn[REFERENCE]
    return [_measure(case, drawn[case], truth, times[str(i)], times["0"]) for i, case in enumerate(listed)]


def _draw(
    model: Model, case: Case, h: Tensor | None, label: Tensor | None, settings: Settings, made: _Made | None = None
) -> _Drawn:
    before = _resident_bytes(model.device)
    drawing = with_engine(model, case) if made is None else made.model
    request: Request = drawing.request(h, settings, label=label)
    own = drawing.engine
    plan = conditioning.make_plan(drawing.unet, request.schedule, request.representation, request.label)
    size = min(settings.batch_size, request.total)
    bound = own.bind(plan, torch.zeros(size, dtype=torch.int64))
    bound.predict(torch.zeros(size, *request.image, device=model.device), 0)
    grown = _grown(before, _resident_bytes(model.device))
    if made is not None:
        grown = None if grown is None or made.grown is None else made.grown + grown
    recorder = RecordingEngine(own)
    drawing.engine = recorder
    images = torch.empty(request.total, *request.image)
    for place, part in drawing.batches(request, settings.batch_size):
        images[place] = part.cpu()
    return _Drawn(own, recorder.seen, images, grown)


@torch.inference_mode()
def _measure(case: Case, got: _Drawn, truth: _Drawn, times_ms: list[float], truth_ms: list[float]) -> Drift:
    steps: dict[int, list[tuple[Tensor, Tensor]]] = {}
    paths: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for (batch, k, x, out), (_, _, own_x, _) in zip(truth.recorded, got.recorded, strict=True):
        steps.setdefault(k, []).append((got.engine.bound(batch).predict(x, k).cpu(), out.cpu()))
        paths.setdefault(k, []).append((own_x.cpu(), x.cpu()))
    order = sorted(steps, reverse=True)
    path_errors = [_relative(paths[k]) for k in order][1:]  # the first x is the noise itself
    final = benchmarking.relative_l2(got.images, truth.images)
    return Drift(
        case=case,
        runs=got.engine.describe(),
        step_errors=tuple(_relative(steps[k]) for k in order),
        path_errors=(*path_errors, final),
        psnr_db=benchmarking.psnr_db(got.images, truth.images),
        times=Times.of(times_ms),
        speedup=benchmarking.pair_ratio(truth_ms, times_ms),
        memory_bytes=got.memory_bytes,
        file_bytes=sum(file.stat().st_size for file in got.engine.files),
        images=got.images,
        digests=got.engine.digests,
    )


def _relative(pairs: list[tuple[Tensor, Tensor]]) -> float:
    return benchmarking.relative_l2(torch.cat([got for got, _ in pairs]), torch.cat([want for _, want in pairs]))


def _resident_bytes(device: torch.device) -> int | None:
    """Memory of this process on the host, or of torch on a GPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
