"""Engines: the ways to evaluate the network, behind one protocol; one file per runtime.

An engine is chosen when a model is made ready. Each runtime says why it cannot be used here
(`reasons_unavailable`), and a request that cannot be met lists every runtime's reasons.

Knows nothing about solvers, encoders or files.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from rcdm_fast.conditioning import ConditioningPlan
from rcdm_fast.config import ConfigError
from rcdm_fast.engines import eager
from rcdm_fast.unet import UNet

Precision = Literal["fp32", "bf16", "fp16"]

ENGINES = ("eager",)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


class Engine(Protocol):
    """Evaluates the network along a trajectory."""

    name: str
    precision: str

    def prepare(self, plan: ConditioningPlan, batch_size: int) -> None:
        """Make ready for batches of `batch_size` pictures whose conditions are `plan.rows`."""

    def predict(self, x: Tensor, k: int) -> Tensor:
        """One network evaluation: x [batch,3,H,W] float32 at kept step k -> raw output [batch,3 or 6,H,W] float32."""

    def describe(self) -> str:
        """One line: what runs, in which precision, on which device."""


def reasons_unavailable(name: str, device: torch.device, precision: Precision) -> list[str]:
    """Why an engine cannot be used; empty if it can. `ConfigError` for a name that is no engine."""
    if name == "eager":
        return eager.reasons_unavailable(device, precision)
    raise ConfigError(f"no engine called {name!r}; known: auto, {', '.join(ENGINES)}")


def make(name: str, network: UNet, device: torch.device, precision: str) -> Engine:
    """Build an engine. ``auto`` is eager, and precision ``auto`` is fp32.

    Raises:
        ConfigError: unknown name or precision, or an engine that cannot run here (with its reasons).
    """
    if precision not in (*PRECISIONS, "auto"):
        raise ConfigError(f"no precision called {precision!r}; known: auto, {', '.join(PRECISIONS)}")
    chosen: Precision = "fp32" if precision == "auto" else precision  # type: ignore[assignment]
    kind = "eager" if name == "auto" else name
    reasons = reasons_unavailable(kind, device, chosen)
    if reasons:
        raise ConfigError(f"engine {kind} cannot run here: {'; '.join(reasons)}")
    return eager.EagerEngine(network, device, chosen)
