"""What a training step waits for on a GPU made of the CPU's memory, which has no gradients: they are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast.training import batches, distributed
from rcdm_fast.training.batches import Batch
from rcdm_fast.training.graphed import GraphedStep
from rcdm_fast.training.run import Run
from tests import small, training_process
from tests.fake_cuda import CudaTensor, fake_cuda

DATA = training_process.data()
STEPS = 3


def _run(device: str, **changes: object) -> Run:
    config = training_process.config("none", random_flip=True, representation_dropout=0.3, **changes)
    bank = torch.randn(2, len(DATA), small.DIM, generator=torch.Generator().manual_seed(0))
    return Run(config, small.UNET, DATA, bank, distributed.Processes(device))


def _watched(run: Run) -> list[Batch]:
    """Leave the gradients out; gives the batches that steps worked on."""
    seen: list[Batch] = []

    def backward(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        seen.append(batch)
        losses = batch.x0.mean(dim=(1, 2, 3)) + batch.t / 1000
        return {"loss": losses.mean(), "mse": losses.mean()}, losses

    run._backward = backward  # type: ignore[method-assign]
    return seen


def _as_graph(run: Run) -> Callable[..., tuple[dict[str, Tensor], Tensor, Tensor]]:
    """What a graph would do of this: nothing else waits."""

    def step(batch: Batch, rate: float, fractions: list[float]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        assert rate == run._rate()
        assert fractions == [average.fraction(run.step + 1) for average in run.emas]
        terms, losses = run._backward(batch)
        return terms, torch.zeros((), device="cuda"), losses

    return step


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("graphed", [True, False])
@pytest.mark.parametrize("timesteps", ["uniform", "loss_aware"])
def test_a_step_waits_once(timesteps: str, graphed: bool, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And works on the batches that a CPU would; those of the next step are drawn before it waits."""
    on_cpu = _run("cpu", timesteps=timesteps)
    wanted = _watched(on_cpu)
    terms = [on_cpu.advance() for _ in range(STEPS)]
    with fake_cuda(1) as machine:
        monkeypatch.setattr(batches, "fits", lambda *_: resident)
        run = _run("cuda", timesteps=timesteps)
        assert run.computed == "fused"
        assert isinstance(run._graphed, GraphedStep)
        monkeypatch.setattr(run, "_graphed", _as_graph(run) if graphed else None)
        monkeypatch.setattr(run.optimizer, "step", lambda *_: None)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.zeros((), device="cuda"))
        for average in run.emas:
            monkeypatch.setattr(average, "update", lambda *_: None)
        seen = _watched(run)
        for step in range(STEPS):
            machine.syncs.clear()
            drawn: list[int] = []
            images = run.batches._drawn

            def look(of: int, drawn: list[int] = drawn, images=images) -> object:  # type: ignore[no-untyped-def]
                assert not machine.syncs
                drawn.append(of)
                return images(of)

            with monkeypatch.context() as patch:
                patch.setattr(run.batches, "_drawn", look)
                got = run.advance()
            assert machine.syncs == ["a copy to the host"]
            assert drawn == ([0, 1] if step == 0 else [step + 1])
            assert got["loss"] == pytest.approx(terms[step]["loss"], rel=1e-5)
    for got_batch, want in zip(seen, wanted, strict=True):
        for name in ("x0", "eps", "t", "importance", "h"):
            there = getattr(got_batch, name)
            assert isinstance(there, CudaTensor)
            assert torch.equal(there.numbers, getattr(want, name)), name
    if timesteps == "loss_aware":
        assert torch.allclose(run.batches.timesteps.state()["losses"], on_cpu.batches.timesteps.state()["losses"])
        assert int(run.batches.timesteps.state()["counts"].sum()) == STEPS * run.config.batch_size


@pytest.mark.parametrize(
    "changes",
    [
        {"compile": True},
        {"micro_batch": 4},
        {"activation_checkpointing": True},
        {"precision": "fp16"},
        {"unet": dataclasses.replace(small.UNET, representation_dim=0, dropout=0.1)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_graph_cannot_hold_runs_without_one(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    with fake_cuda(1):
        assert _run("cuda", micro_batch=training_process.config("none").batch_size)._graphed is not None
        assert _run("cuda", **changes)._graphed is None
