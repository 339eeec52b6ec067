"""A step as one graph: what it computes, on a CPU without a capture and on a GPU with one; what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from typing import Any

import pytest
import torch

from rcdm_fast.errors import RunError
from rcdm_fast.ops import library
from rcdm_fast.training import distributed
from rcdm_fast.training.batches import Batch
from rcdm_fast.training.graphed import GraphedStep
from rcdm_fast.training.run import Run
from tests import small, training_process

DATA = training_process.data()
RATE = 1 / 1024  # exactly a float32, as the graph reads it


def make_run(device: str = "cpu", graphed: bool = True, **changes: Any) -> Run:
    changes = {"learning_rate": RATE, "lr_schedule": "constant", "warmup": 0.0, "ema_decays": (0.9,), **changes}
    config = training_process.config("none", random_flip=True, representation_dropout=0.3, **changes)
    bank = torch.randn(2, len(DATA), small.DIM, generator=torch.Generator().manual_seed(0))
    run = Run(config, small.UNET, DATA, bank, distributed.Processes(device))
    if device == "cpu":
        assert run._graphed is None
        if graphed:
            state = run._state_dict()
            pairs = [average.pairs(state) for average in run.emas]
            run._graphed = GraphedStep(run._backward, run.network, run.optimizer, pairs, config.clip_norm)
    elif not graphed:
        run._graphed = None
    return run


def everything(run: Run) -> dict[str, torch.Tensor]:
    """Weights and averages."""
    found = {name: value.detach().cpu().clone() for name, value in run._state_dict().items()}
    for index, average in enumerate(run.emas):
        found |= {f"{index} {name}": value for name, value in average.whole().items()}
    return {name: value.clone() for name, value in found.items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


@pytest.mark.parametrize("timesteps", ["uniform", "loss_aware"])
def test_the_same_steps_as_without(timesteps: str) -> None:
    ours, theirs = make_run(timesteps=timesteps), make_run(graphed=False, timesteps=timesteps)
    begin = everything(ours)
    for _ in range(6):
        assert ours.advance() == theirs.advance()
    assert ours.step == 6
    assert distance(everything(ours), everything(theirs)) < 1e-6
    assert distance(everything(ours), begin) > 1e-3


def test_the_rate_moves() -> None:
    changes: dict[str, Any] = {"lr_schedule": "cosine", "warmup": 0.3, "images": 160}
    ours, theirs = make_run(**changes), make_run(graphed=False, **changes)
    for _ in range(8):
        assert ours.advance()["loss"] == pytest.approx(theirs.advance()["loss"], rel=1e-5)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    run.advance()
    before, counts = everything(run), [int(values["step"]) for values in run.optimizer.state.values()]
    right = run.batches.draw
    if what == "loss":
        wrong = dataclasses.replace(right(1), x0=torch.full_like(right(1).x0, float("nan")))
        monkeypatch.setattr(run.batches, "draw", lambda step: wrong)
    else:
        weight = next(run.network.parameters())
        hook = weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(RunError, match=f"the {what} is.*at step 2"):
        run.advance()
    assert distance(everything(run), before) == 0
    assert [int(values["step"]) for values in run.optimizer.state.values()] == counts
    assert run.step == 1
    if what == "loss":
        monkeypatch.setattr(run.batches, "draw", right)
    else:
        hook.remove()
    other = make_run(graphed=False)
    other.advance()
    assert run.advance() == other.advance()


def test_gradients_are_cut_before_the_step() -> None:
    """A first step leaves a tenth of the gradient as its mean."""
    run = make_run(clip_norm=1e-3)
    assert run.advance()["gradient_norm"] > 0.01  # that of before
    means = [values["exp_avg"].flatten() for values in run.optimizer.state.values()]
    assert float(torch.cat(means).norm()) == pytest.approx(1e-4, rel=1e-3)


def test_states_go_both_ways() -> None:
    """A run goes on from another's state, with a graph or without, as if it had not been interrupted."""
    ours = make_run()
    for _ in range(3):
        ours.advance()
    state = copy.deepcopy(ours.state())
    for group in state["optimizer"]["param_groups"]:
        assert type(group["lr"]) is float
        assert group["capturable"] is False
    want = [ours.advance() for _ in range(2)]
    for graphed in (True, False):
        other = make_run(graphed=graphed)
        other.advance()  # a graph of weights that are replaced
        other.restore(copy.deepcopy(state))
        assert [other.advance() for _ in range(2)] == want
        assert distance(everything(other), everything(ours)) < 1e-6
    ours.restore(state)
    assert [ours.advance() for _ in range(2)] == want


def test_what_did_not_fit_goes_on_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    run, want = make_run(), make_run(graphed=False)
    assert run._graphed is not None

    held: list[weakref.ref[torch.Tensor]] = []

    def full(batch: Batch) -> None:
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation not permitted when stream is capturing")  # as a capture ends that failed

    again = run._backward

    def halves(batch: Batch) -> Any:
        assert held[0]() is None  # what the failed try computed is gone before the next one
        return again(batch)

    monkeypatch.setattr(run._graphed, "_gradients", full)
    monkeypatch.setattr(run, "_backward", halves)
    first = run.advance()
    assert vars(run)["_graphed"] is None
    assert run._micro == 8
    assert first["loss"] == pytest.approx(want.advance()["loss"], rel=1e-5)
    assert all(type(group["lr"]) is float for group in run.optimizer.param_groups)
    state = copy.deepcopy(run.state())
    resumed = make_run()
    resumed.restore(state)
    assert resumed._graphed is None  # as the run that goes on without an interruption
    assert resumed._micro == 8
    run.advance()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_it_is_the_cpus_run(precision: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        has = library.has_native
        monkeypatch.setattr(library, "has_native", lambda kind: kind != "cuda" and has(kind))
    changes: dict[str, Any] = {"lr_schedule": "cosine", "warmup": 0.3, "images": 160}  # a rate that moves at every step
    run, without = (make_run("cuda", graphed, precision=precision, **changes) for graphed in (True, False))
    truth = make_run(**changes)
    assert run.computed == "fused"
    assert run._graphed is not None
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for _ in range(6):
        got, eager, want = run.advance(), without.advance(), truth.advance()
        for name in want:
            assert got[name] == pytest.approx(eager[name], rel=tolerance, abs=1e-5)
            assert got[name] == pytest.approx(want[name], rel=tolerance, abs=tolerance)
    assert run._graphed._graph is not None
    begin, ours, theirs = (everything(each) for each in (make_run("cuda", False, **changes), run, without))
    for prefix in ("0 ", "1 ", ""):  # the averages, and all of them with the weights
        names = [name for name in ours if name.startswith(prefix)]
        apart = sum(float((ours[name] - theirs[name]).norm()) for name in names)
        moved = sum(float((theirs[name] - begin[name]).norm()) for name in names)
        assert apart < 0.3 * moved  # what has no gradient but rounding moves by its sign
    state = copy.deepcopy(run.state())
    want_next = [run.advance() for _ in range(2)]
    other = make_run("cuda", precision=precision, **changes)
    other.advance()
    other.restore(state)
    found = [other.advance() for _ in range(2)]
    assert [each["loss"] for each in found] == pytest.approx([each["loss"] for each in want_next], rel=tolerance)


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_step_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("cuda")
    run.advance()
    before, right = everything(run), run.batches.draw
    wrong = dataclasses.replace(right(1), x0=torch.full_like(right(1).x0, float("nan")))
    monkeypatch.setattr(run.batches, "draw", lambda step: wrong)
    with pytest.raises(RunError, match="the loss is nan at step 2"):
        run.advance()
    assert distance(everything(run), before) == 0
