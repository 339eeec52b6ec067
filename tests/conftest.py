"""What every test can rely on: the `gpu` marker, seeds, the `short` flag of long tests, the checkout's folder.

Knows nothing about single modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SEED = 20210


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--short", action="store_true", help="tests marked long do a small part of their work")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu`, saying why, where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch has no CUDA"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device ({built})"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random numbers for a test whether it runs alone or after others; torch's state is put back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED)
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
