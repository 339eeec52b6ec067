"""Forms of a program on GPUs made of the CPU's memory: each is captured and timed, the fastest one is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.engine import Bound
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines.cuda_graphs import TIMED_RUNS, GraphCache
from rcdm_fast.engines.folded import FoldedProgram
from rcdm_fast.engines.native import NativeEngine
from rcdm_fast.engines.program import Program
from rcdm_fast.engines.summed import SummedProgram
from tests import small
from tests.fake_cuda import fake_cuda


@pytest.mark.parametrize(
    ("times_ms", "form"),
    [
        (None, "biases folded"),
        ([1.0, 2.0, 3.0], "as written"),
        ([2.0, 1.0, 2.0], "biases folded"),
        ([2.0, 2.0, 1.0], "moments given"),
        ([1.0, 1.0, 1.0], "as written"),
    ],
)
def test_the_fastest_form_is_kept(times_ms: list[float] | None, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of its graph; the fakes' kernels take equally long, and in fp32 the second form has the fewest."""
    network = small.network().eval().requires_grad_(False)
    h, x = torch.randn(2, small.DIM), torch.randn(2, 3, 8, 8)
    plan = conditioning.make_plan(network, Schedule.make(small.SCHEDULE, 3), h, None)
    on_cpu = NativeEngine(network, torch.device("cpu"), "fp32").bind(plan, torch.arange(2)).predict(x, 1)
    with fake_cuda() as machine:
        if times_ms is not None:
            left = list(times_ms)
            monkeypatch.setattr(GraphCache, "_time_ms", lambda self, graph: left.pop(0))
        engine = NativeEngine(network, torch.device("cuda"), "fp32")
        plan = conditioning.make_plan(network, Schedule.make(small.SCHEDULE, 3), h.to("cuda"), None)
        got = engine.bind(plan, torch.arange(2)).predict(x.to("cuda"), 1)
        assert f"the fastest of 3 forms each (2: {form})" in engine.describe()
        assert "(1 captured" in engine.describe()
        if times_ms is None:
            assert sorted(facts.replays for facts in machine.graphs)[-3:] == [
                TIMED_RUNS + 1,
                TIMED_RUNS + 1,
                TIMED_RUNS + 2,
            ]
        torch.testing.assert_close(got.cpu(), on_cpu, atol=1e-4, rtol=1e-4)


def _bound(count: int = 2) -> tuple[NativeEngine, Tensor, Bound]:
    network = small.network().eval().requires_grad_(False)
    engine = NativeEngine(network, torch.device("cuda"), "fp32")
    plan = conditioning.make_plan(network, Schedule.make(small.SCHEDULE, 3), torch.ones(2, small.DIM).to("cuda"), None)
    return engine, torch.ones(count, 3, 8, 8).to("cuda"), engine.bind(plan, torch.arange(count))


def _broken(monkeypatch: pytest.MonkeyPatch, kinds: tuple[type[Program], ...], error: Exception) -> None:
    """No form of these kinds can be run."""

    def denoise(*_: object) -> Tensor:
        raise error

    for kind in kinds:
        monkeypatch.setattr(kind, "denoise", denoise)


def test_a_form_that_cannot_run_is_left_out_and_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _broken(monkeypatch, (SummedProgram,), RuntimeError("at 1:2:\n no such instruction"))
    with fake_cuda(), caplog.at_level("WARNING"):
        engine, x, bound = _bound()
        bound.predict(x, 1)
        assert torch.cuda.current_stream().stream_id == 0
        said = engine.describe()
    assert (
        "the fastest of 3 forms each (2: biases folded); form 'moments given' cannot run: batches of 2: Runtime" in said
    )
    assert "RuntimeError: at 1:2: no such instruction" in said
    assert "form 'moments given' cannot run for batches of 2 and is left out: at 1:2:\n no such" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("kinds", "error"),
    [
        ((Program, FoldedProgram, SummedProgram), RuntimeError("nothing runs")),
        ((SummedProgram,), torch.OutOfMemoryError("CUDA out of memory")),
        ((SummedProgram,), ValueError("a mistake of ours")),
    ],
)
def test_what_leaving_a_form_out_does_not_mend_is_raised(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[type[Program], ...], error: Exception
) -> None:
    """No form is left, memory is out, or the call is wrong; what was broken can be mended and tried again."""
    with fake_cuda():
        with monkeypatch.context() as patch:
            _broken(patch, kinds, error)
            with pytest.raises(type(error), match=str(error)):
                _bound()
        engine, x, bound = _bound()
        bound.predict(x, 1)
        assert "cannot run" not in engine.describe()


def test_every_candidate_is_called_as_it_is_declared(caplog: pytest.LogCaptureFixture) -> None:
    """None is left out in any form in 16 bits, where convolutions of ours sum what blocks read, too."""
    network = small.network().eval().requires_grad_(False)
    with fake_cuda(), caplog.at_level("WARNING"):
        engine = NativeEngine(network, torch.device("cuda"), "fp16")
        engine.warmup((1,))
        assert "convolution_residual, few pixels of float16" in engine.describe()
        assert "cannot run" not in engine.describe()
    assert not caplog.records
