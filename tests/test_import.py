"""Importing the package is cheap, starts no CUDA and changes no setting of torch."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys

HEAVY = (
    "torch",
    "triton",
    "diffusers",
    "huggingface_hub",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "timm",
    "torchvision",
    "transformers",
)
OPTIONAL = tuple(name for name in HEAVY if name != "torch")

SETTINGS = """
import json, os, random, sys, warnings
import numpy as np
import torch

def settings():
    return dict(
        dtype=str(torch.get_default_dtype()), device=str(torch.get_default_device()),
        threads=[torch.get_num_threads(), torch.get_num_interop_threads()],
        grad=torch.is_grad_enabled(), inference=torch.is_inference_mode_enabled(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        matmul=torch.get_float32_matmul_precision(),
        tf32=[torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        cudnn=[torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        mkldnn=torch.backends.mkldnn.enabled,
        sdp=[torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()],
        fill=torch.utils.deterministic.fill_uninitialized_memory, anomaly=torch.is_anomaly_enabled(),
        print=repr(torch._tensor_str.PRINT_OPTS), sharing=torch.multiprocessing.get_sharing_strategy(),
        random=[hash(torch.random.get_rng_state().numpy().tobytes()), hash(random.getstate()),
                hash(np.random.get_state()[1].tobytes())],
        warnings=len(warnings.filters), environment=hash(tuple(sorted(os.environ.items()))),
    )

before = settings()
import importlib, pkgutil
import rcdm_fast
OWN_SETTINGS = ("app", "jobs", "report", "training", "kernels", "_C", "_C_cuda", "__main__")
for module in pkgutil.walk_packages(rcdm_fast.__path__, "rcdm_fast."):
    if module.name.split(".")[1] not in OWN_SETTINGS:
        importlib.import_module(module.name)
for name in getattr(rcdm_fast, "__all__", ()):
    getattr(rcdm_fast, name)
after = settings()
print(json.dumps(dict(
    changed={key: [before[key], after[key]] for key in before if before[key] != after[key]},
    cuda=torch.cuda.is_initialized(),
    modules=sorted(sys.modules),
)))
"""


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavy_along() -> None:
    found = _python("-c", f"import sys, rcdm_fast; print([n for n in {HEAVY!r} if n in sys.modules])")
    assert found.strip() == "[]"


def test_all_of_the_library_changes_no_setting_and_needs_no_extra() -> None:
    result = json.loads(_python("-c", SETTINGS))
    assert result["changed"] == {}
    assert result["cuda"] is False
    assert sorted(set(result["modules"]) & set(OPTIONAL)) == []


def test_public_names_are_listed_before_they_are_loaded() -> None:
    found = _python("-c", "import rcdm_fast; print(sorted(set(rcdm_fast.__all__) - set(dir(rcdm_fast))))")
    assert found.strip() == "[]"


def _cpu_s(*arguments: str) -> float:
    """Processor time of a command: on a machine that is busy with other things the clock says little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _python(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_answers_at_once() -> None:
    command = ("-c", "import sys; sys.argv = ['rcdm', '--help']; from rcdm_fast.cli import main; main()")
    _cpu_s(*command)  # fills the file cache and writes bytecode
    extra_s = [_cpu_s(*command) - _cpu_s("-c", "pass") for _ in range(7)]
    assert statistics.median(extra_s) < 0.5, extra_s


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import atexit, sys; sys.argv = ['rcdm', '--help'];"
        f"atexit.register(lambda: print('HEAVY', [n for n in {HEAVY!r} if n in sys.modules]));"
        "from rcdm_fast.cli import main; main()"
    )
    assert "HEAVY []" in _python("-c", code)
