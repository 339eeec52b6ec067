"""Trajectories that cannot be captured, or are no faster as one CUDA graph, on GPUs made of the CPU's memory."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.engines import cuda_graphs, trajectory_graphs
from rcdm_fast.engines.cuda_graphs import GraphCache
from tests.fake_cuda import Machine, fake_cuda
from tests.fake_streams import running
from tests.test_trajectories import Drawn, made


@pytest.fixture
def machine() -> Iterator[Machine]:
    with fake_cuda(2) as found:
        yield found


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not permitted")])
def test_what_cannot_be_captured_is_drawn_step_by_step(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """With one warning, and not tried again; others are captured as ever, and images are what they were."""
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 1)
    released: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(1))
    drawn, tried = Drawn(), []
    drawn.both(made("deis"), [1])  # its bucket is captured

    def failing(self: GraphCache, run: object, warm_runs: int) -> None:
        tried.append(run)
        raise error

    with monkeypatch.context() as patch, caplog.at_level("WARNING"):
        patch.setattr(GraphCache, "record", failing)
        for _ in range(4):
            assert drawn.both(made("ddim"), [1])[1] is None
    assert len(tried) == len(released) == len(caplog.records) == 1
    assert caplog.text.count(f"ddim, 4 evaluations of 1 cannot be captured and is drawn step by step: {error}") == 1
    why = f"{type(error).__name__}: {error}"
    assert drawn.engine.describe().endswith(f"; cannot be captured: ddim, 4 evaluations of 1 ({why})")
    drawn.same(made("deis"), [1])
    assert drawn.both(made("ddim"), [2])[1] is None


def _waits(run: Any, what: Exception | BaseException | None = None) -> Any:
    """A solver that asks what a tensor holds, or raises something when it is asked while it is captured."""

    def solver(predict: Any, x: Tensor, schedule: Schedule, options: SolverOptions, noise: Any) -> Tensor:
        found: Tensor = run(predict, x, schedule, options, noise)
        if torch.cuda.current_stream().stream_id and running[-1].capturing() and what is not None:
            running[-1].captures[0].facts.fault = "what went wrong before"
            raise what
        return found if what is not None or bool(found.isfinite().all()) else x

    return solver


def test_a_capture_that_fails_leaves_nothing_behind(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a lock nor a stream nor memory; and what went wrong first is what is said."""
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 1)
    drawn, plain = Drawn(), made("ddim")
    waits = dataclasses.replace(plain, name="waits", solver=_waits(plain.solver))
    drawn.both(waits, [1])
    gc.collect()
    gc.disable()
    try:
        before, stream = machine.allocated_bytes(), torch.cuda.current_stream()
        assert drawn.both(waits, [1])[1] is None
        assert machine.allocated_bytes() == before
    finally:
        gc.enable()
    assert torch.cuda.current_stream() == stream
    assert not cuda_graphs._capturing.locked()
    assert "cannot be captured: waits, 4 evaluations of 1 (RuntimeError: operation not permitted when" in (
        drawn.engine.describe()
    )
    drawn.both(plain, [1])
    drawn.same(plain, [1])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a mistake of ours")])
def test_what_no_other_way_mends_is_raised(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 1)
    drawn, plain = Drawn(), made("ddim")
    raises = dataclasses.replace(plain, solver=_waits(plain.solver, error))
    drawn.both(raises, [1])
    with pytest.raises(type(error)):
        drawn.both(raises, [1])
    assert not cuda_graphs._capturing.locked()
    assert torch.cuda.current_stream().stream_id == 0


def test_a_slower_one_drops_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory_graphs, "USES_BEFORE", 0)
    monkeypatch.setattr(trajectory_graphs, "MOST_TRAJECTORIES", 1)
    drawn = Drawn()
    drawn.same(made("ddim"), [1])
    with monkeypatch.context() as patch:
        patch.setattr(GraphCache, "time_ms", lambda *_: 1.0)
        assert drawn.both(made("deis"), [1])[1] is None
    assert [key[1].name for key in drawn.graphs()._kept] == ["ddim"]
    drawn.same(made("ipndm"), [1])
    assert [key[1].name for key in drawn.graphs()._kept] == ["ipndm"]
