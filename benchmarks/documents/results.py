"""The results by name: which file each is read from, and what it says.

Files are JSON in `benchmarks/results/`, as the commands wrote them (numbers of single sources may be rounded), the
bundled models with their cards, and `rcdm_fast/bundled/calibration.json`. What a command measured says in `made_by`
how; older files of the benchmarks, `OLDER`, have facts of the machine at most.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.documents import encoders, experiments, known_world, models, runtimes, seeds, solvers, speed
from benchmarks.documents.speed import Found
from rcdm_fast.analysis.error_rates import SHIPPED
from rcdm_fast.analysis.registry import EXPERIMENTS
from rcdm_fast.diffusion.registry import USUAL
from rcdm_fast.diffusion.sampling_config import STEPS
from rcdm_fast.models import zoo

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results"
ENCODERS = ("cifar10-simclr", "cifar10-simclr-wide", "cifar10-supervised", "cifar10-supervised-wide")
ADAPTED = {  # rows of the table, and the evaluation of each
    "supervised backbone, closed form alone (`steps=0`)": "adapted_supervised",
    "supervised backbone, then 800 steps: `cifar10-supervised`": "evaluate_cifar10-supervised",
    "SimCLR projector, then 800 steps: `cifar10-simclr-head`": "evaluate_cifar10-simclr-head",
}
DRAWN = (  # what the usual solver was held against DDIM in
    *("usual_cifar10-simclr-wide", "solvers_cifar10-simclr-trunk", "usual_cifar10-simclr-head"),
    *("usual_cifar10-supervised", "usual_cifar10-simclr-map"),
)
TRAININGS = {  # of encoders in the known world, and what they are called there
    "color0-0": "colors changed",
    "crop0-0": "cropped",
    "both0-0": "both",
}
SEEDS = tuple(f"color{encoder}-{decoder}" for encoder in range(3) for decoder in range(3))
# Models that ship with solvers.
FITTED = (
    *("cifar10-simclr-wide", "cifar10-simclr-trunk", "cifar10-simclr-head", "cifar10-supervised", "cifar10-simclr-map"),
)
CALIBRATION = "calibration"  # the name of `SHIPPED`
OLDER = (
    *("step_s_2cores", "step_m_2cores", "sampling_s_2cores", "profile_s_2cores", "profile_m_2cores"),
    *("training_s_2cores", "generate_2cores", "guidance_wide_h100"),
)


@dataclass(frozen=True)
class Result:
    """What is written into texts under a name.

    Attributes:
        sources: names of files in `FOLDER` that it is read from, without their ending.
        text: makes it.
    """

    sources: tuple[str, ...]
    text: Callable[[], str]


@functools.cache
def read(name: str) -> Found:
    """A file of `FOLDER`, or the calibration that ships.

    Raises:
        ValueError: it does not say what made it.
        OSError: there is none.
    """
    path = SHIPPED if name == CALIBRATION else FOLDER / f"{name}.json"
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    if name not in OLDER and "made_by" not in found:
        raise ValueError(f"{path.name} does not say what made it (made_by)")
    return found


def known(prefix: str) -> dict[str, Found]:
    """The files of a kind, by the models they are of: ``evaluate_NAME.json``, ``ceiling_NAME.json``."""
    names = (path.stem for path in sorted(FOLDER.glob(f"{prefix}_*.json")))
    return {name.removeprefix(f"{prefix}_"): read(name) for name in names}


def _of(form: Callable[..., str], *names: str, **more: Any) -> Result:
    return Result(names, lambda: form(*(read(name) for name in names), **more))


def _cards() -> dict[str, str]:
    return {name: zoo.bundled_path(name).with_suffix(".md").read_text(encoding="utf-8") for name in models.ENCODERS}


def _models(long: bool) -> str:
    return models.table(_cards(), known("evaluate"), known("ceiling"), long)


def _calibration() -> str:
    return known_world.calibration(json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else None)


def _speed() -> dict[str, Result]:
    step, generate, training = "step_s_2cores", "generate_2cores", "training_s_2cores"
    fused = "training_s_avx2"
    found = {
        "first image": _of(speed.first_image, "first_image_2cores"),
        "end to end 4": _of(speed.times_published, "end_to_end_trunk_avx2", engine="native", nfe=4),
        "end to end 5": _of(speed.times_published, "end_to_end_trunk_avx2", engine="native", nfe=5),
        "end to end s": _of(speed.times_published, "end_to_end_s_avx2", engine="native", nfe=4),
        "rivals": _of(speed.rivals, step),
        "step s": _of(speed.step, step),
        "step avx2": _of(speed.step_fp32, "step_s_avx2"),
        "step m": _of(speed.step, "step_m_2cores"),
        "sampling": _of(speed.sampling, "sampling_s_2cores"),
        "profile": _of(speed.profiles, "profile_s_2cores", "profile_m_2cores"),
        "training step": _of(speed.training_step, training),
        "compiled training step": _of(speed.compiled_step, training),
        "fused training step": _of(speed.fused_step, fused),
        "training convolutions": _of(speed.convolutions, fused),
        "parts above floor": _of(speed.parts_above_floor, "profile_s_2cores"),
        "runtimes": _of(runtimes.drift, "compare_trunk"),
        "int8": _of(runtimes.int8, "compare_int8"),
        "fp8": _of(runtimes.fp8, *sorted(f"compare_fp8_{name}" for name in known("compare_fp8"))),
    }
    for name in ("s", "m"):
        found[f"rates {name}"] = _of(speed.ceilings, f"profile_{name}_2cores")
        found[f"above floor {name}"] = _of(speed.above_floor, f"profile_{name}_2cores")
    for name in ("webdataset", "folder", "npz", "parquet"):
        found[f"job {name}"] = _of(speed.job, generate, name=name)
    found["maps"] = _of(speed.maps, "maps_trunk_2cores")
    found |= _gpu_model("gpu_model_h100")
    found["job spread"] = _of(speed.job_spread, generate, name="webdataset")
    return found


def _gpu_model(file: str) -> dict[str, Result]:
    ours = "native, moments in convolutions"
    return {
        "gpu model": _of(speed.gpu_model, file),
        "modeled biases": _of(speed.modeled, file, name="native", key="bias_ms"),
        "modeled residuals": _of(speed.modeled, file, name="native", key="residual_ms"),
        "modeled norms": _of(speed.modeled, file, name="native", key="norm_ms"),
        "modeled norms given": _of(speed.modeled, file, name=ours, key="norm_ms"),
        "modeled convolutions": _of(speed.modeled, file, name=ours, key="convolution_ms", fraction_of="ms"),
        "modeled by library": _of(speed.modeled, file, name="native, moments given", key="of_compile"),
    }


def _bundled() -> dict[str, Result]:
    found = {
        "models": Result((), lambda: _models(long=False)),
        "models in full": Result((), lambda: _models(long=True)),
        "guidance": _of(models.guidance, "guidance_wide_h100"),
        "calibration": Result((), _calibration),
        "denoising": _of(models.denoising, "denoising_train", "denoising_test"),
        "adapted": _of(models.adapted, *ADAPTED.values(), names=tuple(ADAPTED)),
    }
    for timestep in (150, 980):
        found[f"error of shapes-oracle {timestep}"] = _of(models.error_of_x0, "denoising_shapes", timestep=timestep)
    for name in zoo.list_bundled():
        found[f"parameters {name}"] = Result((), functools.partial(models.parameters, name))
        found[f"evaluation {name}"] = _of(models.evaluation, f"evaluate_{name}")
        found[f"mrr {name}"] = _of(models.mrr, f"evaluate_{name}")
        found[f"blurred {name}"] = _of(models.blurred, f"ceiling_{name}")
    for name in ENCODERS:
        files = [f"accuracy_{name}-{layer}" for layer in ("backbone", "projector")]
        found[f"accuracies {name}"] = _of(encoders.accuracies, *files)
        for kind in ("knn", "linear"):
            found[f"{kind} {name}"] = _of(encoders.accuracy, files[0], kind=kind)
    for path in sorted(zoo.bundled_folder().glob("*.safetensors")):
        found[f"size {path.stem}"] = Result((), functools.partial(models.stored, path))
    return found


def _known_world() -> dict[str, Result]:
    whole, oracle = CALIBRATION, "shapes-oracle"
    return {
        "followed": _of(known_world.followed, whole, name=oracle),
        "kept called kept": _of(known_world.counted, whole, name=oracle, kept=True, called=True),
        "kept called dropped": _of(known_world.counted, whole, name=oracle, kept=True, called=False),
        "dropped called kept": _of(known_world.counted, whole, name=oracle, kept=False, called=True),
        "reader scores": _of(known_world.read, whole),
        "budgets": _of(known_world.budgets, "calibration_budgets"),
        "spread": _of(known_world.spread, "calibration_budgets"),
        "textured": _of(known_world.calibration, "calibration_textured"),
    }


def _seeds() -> dict[str, Result]:
    def each(form: Callable[..., str], kind: str, names: Iterable[str], **more: Any) -> Result:
        files = tuple(f"{kind}_{name}" for name in names)
        return Result(files, lambda: form({file.partition("_")[2]: read(file) for file in files}, **more))

    return {
        "trainings": each(seeds.trainings, "factors", TRAININGS, called=TRAININGS),
        "seeds": each(seeds.world, "factors", SEEDS),
        "verdicts of seeds": each(seeds.verdicts, "factors", SEEDS),
        "seeds of encoders": each(seeds.images, "invariance", [f"seed{number}" for number in range(3)]),
        "command of seeds": _of(experiments.command, "invariance_seed0"),
    }


def _experiments() -> dict[str, Result]:
    report = "report_cifar10"
    found = {
        "report": _of(experiments.command, report),
        "slopes": _of(experiments.slopes, report),
        "readouts": _of(experiments.readouts, report),
        "depth": _of(experiments.depth, "layers_depth"),
        "command of depth": _of(experiments.command, "layers_depth"),
        "positions": _of(experiments.positions, "tokens_map"),
        "found by tokens": _of(experiments.findings, "tokens_map"),
        "command of positions": _of(experiments.command, "tokens_map"),
    }
    return {f"found by {each}": _of(experiments.findings, report, experiment=each) for each in EXPERIMENTS} | found


def _solvers() -> dict[str, Result]:
    trunk = "solvers_cifar10-simclr-trunk"
    found = {"solvers": _of(solvers.distances, trunk), "faithful": _of(solvers.faithful, trunk, nfe=(5, 10))}
    placed = [f"placement_{name}" for name in ("ddim", "dpmpp_2m", "ipndm")]
    found |= {
        "own solvers": _of(solvers.own, *(f"own_solvers_{name}" for name in FITTED)),
        "placements": _of(solvers.placements, *placed),
    }
    found["faithful fitted"] = _of(solvers.faithful, "fitted_cifar10-simclr-trunk", nfe=(4, 5, 6, 8, 10))
    four = (f"four_evaluations_cifar10-simclr-{name}" for name in ("wide", "trunk", "map"))
    found["four evaluations"] = _of(solvers.ranks, *four, solver="fitted", nfe=4)
    found["usual"] = _of(solvers.usual, *DRAWN, solver=USUAL, nfe=STEPS)
    for solver, nfe in (("ipndm", 10), ("ddim", 50)):
        found[f"distance {solver} {nfe}"] = _of(solvers.distance, trunk, solver=solver, nfe=nfe)
    return found


RESULTS: dict[str, Result] = {**_speed(), **_bundled(), **_known_world(), **_seeds(), **_experiments(), **_solvers()}
