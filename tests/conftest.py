"""What every test can rely on: the `gpu` marker, seeds, the `short` flag of long tests, the checkout's folder."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SEED = 20210

# Files whose tests export the same networks: one worker runs them, and each network is exported once in it.
EXPORTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "export_onnx", "onnx_only", "openvino", "export_truth",
        "export_timesteps", "engines", "tensorrt", "runtimes_cuda", "nfe", "maps_export",
    )
)  # fmt: skip
# Files of more than 15 s on one core, the longest first, so that no worker is left alone with one at the end.
LONGEST = (
    *EXPORTS,
    *(
        f"tests/test_{name}.py"
        for name in (
            "cuda_on_host", "cuda_moments_on_host", "reference", "graphs", "app", "kernels_numbers", "distill",
            "jobs_damage", "cli", "trajectories",
            "diffusers", "solver_learning", "training_options", "kernels_gradients", "graphs_lines", "analysis_layers",
            "host", "kernels_aot", "encoders_layout", "pipeline", "bench", "report", "ops_native", "app_http",
            "training", "encoders_processors", "cli_options", "analysis", "encoders_views", "portable",
            "bench_gpu", "solver_fit", "adapt", "packaging", "jobs", "views", "guidance", "ssl_methods", "cli_photos",
            "analysis_depth", "fp8", "kernels_fp8", "kernels_fp8_aot", "fp8_program",
        )
    ),
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--short", action="store_true", help="tests marked long do a small part of their work")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """No garbage is looked for while files are imported, nor later among what the imports have made, which stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; skip what the short form leaves out, and tests marked `gpu` where there is no GPU."""
    place = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(_file(item.nodeid), len(place)))
    if items and items[0].config.getoption("--short"):
        for item in items:
            if any(mark.kwargs.get("short") is False for mark in item.iter_markers("long")):
                item.add_marker(pytest.mark.skip(reason="left out of the short form"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch has no CUDA"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device ({built})"))


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files to one worker, in the order above, and those that share exports to the same one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = _file(nodeid)
            return EXPORTS[0] if file in EXPORTS else file

    config.option.loadscopereorder = False  # not by numbers of tests
    return Scheduling(config, log)


@pytest.fixture(scope="module")
def shared_exports() -> Iterator[None]:
    """Networks that were exported before in this process are not exported again."""
    from tests import exports

    with exports.shared():
        yield


@pytest.fixture(scope="session", autouse=True)
def _unflushed() -> Iterator[None]:
    """Files and folders of tests need not outlive a power cut: thousands of flushes, each a wait for the disk.

    What cannot be flushed (a pipe, a device) says so as ever; processes that tests start flush all.
    """
    real = os.fsync

    def fsync(handle: int) -> None:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            real(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random numbers for a test whether it runs alone or after others; torch's state is put back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        if torch.cuda.is_available():
            torch.manual_seed(SEED)
        else:  # which would write down the whole stack for devices that may come
            torch.default_generator.manual_seed(SEED)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of its own."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def short(request: pytest.FixtureRequest) -> bool:
    """Whether a test marked `long` should do a small part of its work."""
    return bool(request.config.getoption("--short"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The project's root folder."""
    return Path(__file__).resolve().parent.parent
