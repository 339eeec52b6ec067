"""Forms of a program on GPUs made of the CPU's memory: each is captured and timed, the fastest one is kept."""

from __future__ import annotations

import pytest
import torch

from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines.cuda_graphs import TIMED_RUNS, GraphCache
from rcdm_fast.engines.native import NativeEngine
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
