"""A command run with its work left out: what it would have called, and with which arguments.

The functions that a command hands its work to are replaced by ones that take the same arguments (by their own
signatures) and give something small. What they were given is spread out: one entry for each argument, and one for each
field of a configuration.

Knows nothing about which options there are (`test_cli_options.py`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor

import rcdm_fast
from rcdm_fast import evaluation, unranked
from rcdm_fast import model as pipeline
from rcdm_fast.analysis import registry
from rcdm_fast.analysis.calibrate import CalibrateConfig, Calibration, Judgment
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.benchmarking import Times
from rcdm_fast.class_accuracy import ClassAccuracy
from rcdm_fast.cli import app
from rcdm_fast.config import EncoderConfig, FittedSolver
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling import Request
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.engine_comparison import Case, Drift
from rcdm_fast.images import to_uint8
from rcdm_fast.jobs.ledger import Summary
from rcdm_fast.jobs.verify import Verdict
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from rcdm_fast.report.build import Task
from rcdm_fast.solver_learning import Learned
from rcdm_fast.throughput import Case as SampleCase
from rcdm_fast.training.distill import Judged
from tests import small

Seen = dict[str, Any]
COMMANDS: Any = typer.main.get_command(app)  # the parser of `rcdm`, made once
UNSAID = inspect.Parameter.empty


class Calls:
    """What was called since the last `clear`.

    Attributes:
        seen: value of every argument, or of every field of one, by ``call.argument.field``; of a second call of the
            same function ``call#2``.
        defaults: what the library takes where nothing is given, by the same names.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: Seen = {}
        self.defaults: Seen = {}
        self._patch = patch
        self._count: dict[str, int] = {}

    def clear(self) -> None:
        """Forget what was seen."""
        self.seen, self._count = {}, {}

    def watch(self, place: str, name: str, gives: Callable[..., Any] | None = None) -> None:
        """Note the calls of MODULE:NAME or MODULE:CLASS.NAME as `name`; with `gives` that is called in its place."""
        module, _, path = place.partition(":")
        *outer, last = path.split(".")
        owner: Any = importlib.import_module(module)
        for each in outer:
            owner = getattr(owner, each)
        real = getattr(owner, last)
        signature = inspect.signature(real)

        def called(*given: Any, **named: Any) -> Any:
            bound = signature.bind(*given, **named)
            bound.apply_defaults()
            self._count[name] = self._count.get(name, 0) + 1
            label = name if self._count[name] == 1 else f"{name}#{self._count[name]}"
            for key, value in bound.arguments.items():
                if key not in ("self", "args", "kwargs"):
                    self._note(f"{label}.{key}", value, signature.parameters[key].default)
            return real(*given, **named) if gives is None else gives(**bound.arguments)

        self._patch.setattr(owner, last, called)

    def _note(self, key: str, value: Any, default: Any) -> None:
        for at, (each, usual) in spread(key, value, default):
            self.seen[at] = each
            if usual is not UNSAID:
                self.defaults[at] = usual


def spread(key: str, value: Any, default: Any = UNSAID) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """A value's parts, by name, with what each is by default; functions are left out."""
    if isinstance(value, _UNSEEN):
        return
    if isinstance(value, ImageSet):
        yield key, (f"images of {value.paths[0]}", default)
    elif isinstance(value, Model):
        yield key, (f"model {value.config.name}", default)
    elif isinstance(getattr(value, "config", None), EncoderConfig):
        yield key, (f"encoder {value.config.source}", default)
    elif isinstance(value, Tensor):
        yield key, (list(value.shape), UNSAID)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            if item.name.startswith("_"):
                continue
            usual = UNSAID if item.default is dataclasses.MISSING else item.default
            if item.default_factory is not dataclasses.MISSING:
                usual = item.default_factory()
            yield from spread(f"{key}.{item.name}", getattr(value, item.name), usual)
    elif isinstance(value, Mapping):
        for name, inside in value.items():
            yield from spread(f"{key}.{name}", inside)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Model | Case | SampleCase | Task):
        for place, each in enumerate(value):
            yield from spread(f"{key}[{place}]", each)
    elif not callable(value) and not (isinstance(value, list) and value and isinstance(value[0], _UNSEEN)):
        yield key, (value, default)


_UNSEEN = (Image.Image, Request, Shared)  # told by what they are made from


def run(calls: Calls, arguments: list[str], folder: Path) -> Seen:
    """Run a command in an empty folder: what it called, the files that it wrote, and its exit code.

    `folder` may hold what the command is given, below ``given``. Numbers in ``numbers.json`` are spread out, too, and
    the shapes of an .npz file.
    """
    before = {path for path in folder.rglob("*") if path.is_file()}
    calls.clear()
    with pytest.raises(SystemExit) as stop:
        COMMANDS(arguments, prog_name="rcdm")
    written = sorted(path for path in folder.rglob("*") if path.is_file() and path not in before)
    found = {**calls.seen, "exit code": stop.value.code, "files": [str(path.relative_to(folder)) for path in written]}
    for path in written:
        if path.name == "numbers.json":
            numbers = json.loads(path.read_text())
            numbers.pop("made_by", None)  # differs from run to run: tests/test_provenance.py
            found |= {at: value for at, (value, _) in spread("numbers", numbers) if not isinstance(value, float)}
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found |= {f"arrays.{name}": list(array.shape) for name, array in arrays.items()}
        path.unlink()
    return found


def watched(patch: pytest.MonkeyPatch) -> Calls:
    """Every command's calls, each giving something small."""
    for name in rcdm_fast.__all__:
        getattr(rcdm_fast, name)  # looked up once and kept: what is watched now would stay in its place
    calls = Calls(patch)
    for place, name, gives in CALLS:
        calls.watch(place, name, gives)
    patch.setattr(rcdm_fast, "load", pipeline.load)
    for name, each in registry.EXPERIMENTS.items():
        run = functools.partial(lambda job, name: _experiment(job, name), name=name)  # looked up when it is run
        patch.setitem(registry.EXPERIMENTS, name, dataclasses.replace(each, run=run))
    return calls


def _load(source: str, **_: Any) -> Model:
    """A small model of that name, which can be guided."""
    config = dataclasses.replace(_MODEL.config, name=str(source), representation_dropout=0.1)
    unet = _WEAKER if source in ("weak", "other") else _MODEL.unet
    return Model(config, unet, _MODEL.engine, None if source == "bare" else _MODEL.encoder, _MODEL.device)


def _images(source: str, **_: Any) -> ImageSet:
    """Six images that know where they are from."""
    pixels = to_uint8(small.make_images(6))
    return ImageSet(pixels, torch.arange(6), tuple("abcdef"), tuple(Path(source) for _ in range(6)), "made-up")


def _build(source: str, **_: Any) -> Any:
    config = EncoderConfig(source.removesuffix("?trust=1"), image_size=8, dim=small.DIM)
    return SimpleNamespace(config=config, dim=small.DIM, device=torch.device("cpu"), view=lambda x: x[..., :8, :8])


def _batches(request: Any, **_: Any) -> Iterator[tuple[slice, Tensor]]:
    yield slice(0, request.total), torch.zeros(request.total, 3, 8, 8)


def _experiment(job: registry.Job, name: str) -> Analysis:
    return Analysis(name, name, job.model.config.name, {})


def _calibrated(config: CalibrateConfig, **_: Any) -> Calibration:
    return Calibration("world:shapes", config, (Judgment("ideal", {}, ()),))


def _draw(data: ImageSet, **_: Any) -> evaluation.Drawn:
    images = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    return evaluation.Drawn(small.encoder(), data, torch.zeros(6, 6), torch.arange(2), images, torch.zeros(2, 1, 6))


def drift(engine: str) -> Drift:
    """What a comparison finds of an engine."""
    times = Times(1.0, 1.0, 1.0, 1)
    return Drift(Case(engine), "", (0.0,), (0.0,), 50.0, times, 1.0, None, 0, torch.zeros(2, 3, 8, 8))


def _measure(report: Callable[[list[dict[str, Any]], float], None], **_: Any) -> list[dict[str, Any]]:
    report([], 1.0)
    return []


_MODEL = small.model()
_WEAKER = copy.deepcopy(_MODEL.unet)
with torch.no_grad():
    next(_WEAKER.parameters()).add_(1)
_ONE = Interval(0.5, 0.5, 0.5)
_LEARNED = Learned(2, FittedSolver(2, (0.0,) * 10, "0" * 64), _ONE, ("ddim", "2"), _ONE, _ONE, 1)
_RANKED = evaluation.Faithfulness(_ONE, _ONE, _ONE, 0.5, 0.5, 3.5, 6, 2, 1, (0.5, 0.5))
_STANDS = Summary(1, 1, 0, 1, 1)
CALLS: tuple[tuple[str, str, Callable[..., Any] | None], ...] = (
    ("rcdm_fast.model:load", "load", _load),
    ("rcdm_fast.models.checkpoint:load_model", "load_model", lambda **_: (small.model().config, {})),
    ("rcdm_fast.encoders:build", "build", _build),
    ("rcdm_fast.data.sources:open_data", "open_data", _images),
    ("rcdm_fast.data.aligned:read", "aligned", lambda **_: torch.zeros(6, small.DIM)),
    (
        "rcdm_fast.unranked:draw",
        "unranked",
        lambda data, h, **_: unranked.Samples(
            data, torch.arange(2), torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8), h[:2]
        ),
    ),
    ("rcdm_fast.unranked:measure", "measured", lambda **_: unranked.Unranked(2, 1)),
    ("rcdm_fast.data.image_set:ImageSet.cut_from", "cut_from", None),
    ("rcdm_fast.images:open_image", "open_image", None),
    ("rcdm_fast.jobs.draw:check_request", "check", lambda **_: 1),
    ("rcdm_fast.model:Model.encode", "encode", None),
    ("rcdm_fast.model:Model.request", "request", None),
    ("rcdm_fast.model:Model.batches", "batches", _batches),
    (
        "rcdm_fast.model:Model.interpolate",
        "interpolate",
        lambda frames, config, **_: torch.zeros(config.per, frames, 3, 8, 8),
    ),
    ("rcdm_fast.cli.sequence:_read", "read_sequence", lambda **_: [("h", torch.zeros(3, small.DIM))]),
    (
        "rcdm_fast.model:Model.sequence",
        "sequence",
        lambda h, config, **_: torch.zeros(len(h), config.per, h.shape[1], 3, 8, 8),
    ),
    ("rcdm_fast.films:check", "film_check", None),
    ("rcdm_fast.films:write", "film", lambda path, **_: path.write_bytes(b"frames")),
    ("rcdm_fast:export", "export", lambda **_: []),
    ("rcdm_fast.jobs.local:run", "job", lambda **_: _STANDS),
    ("rcdm_fast.jobs.cluster:run", "cluster", lambda **_: _STANDS),
    ("rcdm_fast.jobs.verify:verify", "verify", lambda **_: Verdict(1, 1, 0, 0, 0, ())),
    ("rcdm_fast.training.train:train", "train", lambda **_: Path("done")),
    ("rcdm_fast.training.pretrain:pretrain", "pretrain", lambda **_: (Path("done"), {"knn": 0.5})),
    ("rcdm_fast.training.adapt:adapt", "adapt", lambda **_: Path("done")),
    ("rcdm_fast.training.reader:train", "reader", lambda **_: (Path("done"), {"x": 0.5})),
    ("rcdm_fast.encoders.read_code:file_of", "file_of", lambda **_: Path(__file__)),
    ("rcdm_fast.encoders.factor_reader:load", "read", lambda **_: (FactorReader("shapes", 8), {})),
    ("rcdm_fast.analysis.calibrate:calibrate", "calibrate", _calibrated),
    ("rcdm_fast.training.distill:distill", "distill", lambda **_: (Path("done"), Judged(_ONE, {"ddim": _ONE}, 1.0))),
    ("rcdm_fast.evaluation:draw", "draw", _draw),
    ("rcdm_fast.evaluation:evaluate", "evaluate", lambda **_: _RANKED),
    ("rcdm_fast.evaluation:mrr_change", "mrr_change", lambda **_: _ONE),
    ("rcdm_fast.evaluation:faithfulness", "faithfulness", lambda **_: _RANKED),
    ("rcdm_fast.evaluation:compare", "distribution", lambda **_: None),
    ("rcdm_fast.data.image_set:check_classes", "check_classes", lambda **_: None),
    ("rcdm_fast.data.image_set:check_unseen", "check_unseen", lambda **_: None),
    ("rcdm_fast.class_accuracy:measure", "class_accuracy", lambda **_: ClassAccuracy(_ONE, _ONE, 2, 6, 6)),
    ("rcdm_fast.denoising:x0_errors", "x0_errors", lambda **_: {1: _ONE}),
    ("rcdm_fast.evaluation:recognition", "recognized", lambda **_: evaluation.Recognized("probe", _ONE, _ONE)),
    ("rcdm_fast.encoders.features:of_encoder", "of_encoder", lambda **_: "features of an encoder"),
    ("rcdm_fast.encoders.features:of_inception", "of_inception", lambda **_: "features of Inception"),
    ("rcdm_fast.evaluation:check_distribution", "check_distribution", lambda **_: None),
    ("rcdm_fast.data.sample_files:read_npz", "read_npz", lambda **_: torch.zeros(9, 3, 8, 8, dtype=torch.uint8)),
    ("rcdm_fast.engine_comparison:compare", "compare", lambda **_: [drift("eager"), drift("native")]),
    ("rcdm_fast.engine_comparison:with_engine", "with_engine", lambda model, **_: model),
    ("rcdm_fast.cli.compare:_failures", "failures", lambda **_: []),
    ("rcdm_fast.throughput:measure", "measure", _measure),
    ("rcdm_fast.training.masks:hidden", "hide", lambda h, **_: h),
    ("rcdm_fast.solver_fit:fit", "fit", lambda **_: []),
    ("rcdm_fast.solver_learning:learn", "learn", lambda **_: [_LEARNED]),
    ("rcdm_fast.solver_learning:beginnings", "begin", lambda name, **_: (f"solvers of {name}",)),
    ("rcdm_fast.solver_learning:save", "tuned", lambda **_: None),
    ("rcdm_fast.solver_quality:check", "can", lambda **_: None),
    ("rcdm_fast.solver_quality:measure", "quality", lambda **_: []),
    ("rcdm_fast.report.build:build", "page", lambda file, **_: Path(file)),
    ("rcdm_fast.app.playground:Playground.model", "open_model", lambda **_: None),
    ("rcdm_fast.app.playground:Playground.from_data", "from_data", lambda **_: None),
    ("rcdm_fast.app.playground:Playground", "playground", None),
    ("rcdm_fast.app.page:launch", "launch", lambda **_: None),
    ("rcdm_fast.benchmarking:facts", "facts", lambda **_: {}),
    ("rcdm_fast.info:report", "info", lambda **_: {}),
    ("rcdm_fast.info:lines", "lines", lambda **_: []),
    ("tests.command_calls:_experiment", "experiment", None),
)
