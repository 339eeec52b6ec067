"""Which implementation of an operator runs on a device: native, Triton, the library's, or the reference.

An order of preference holds until `measure` has timed the candidates there; engines do that while they warm up. What
was found is kept for the process and reported by `describe`.

Knows nothing about models: a caller brings the inputs that matter to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.ops import library, reference

WriteNorm = Callable[..., None]  # (out, then film_group_norm's inputs in the schema's order)
Attend = Callable[[Tensor, int, bool], Tensor]

_chosen: dict[tuple[str, str], str] = {}  # (operator, device type) -> implementation
_times_ms: dict[tuple[str, str], dict[str, float]] = {}


def triton_reason(device: torch.device) -> str:
    """Why Triton kernels cannot run on a device; empty if they can."""
    if device.type != "cuda":
        return f"Triton kernels do not run on {device.type}"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def film_group_norm_candidates(device: torch.device) -> dict[str, WriteNorm]:
    """Implementations that can run on a device, preferred first; the last one always works."""
    found: dict[str, WriteNorm] = {}
    if library.has_native(device.type):
        found["native"] = torch.ops.rcdm_fast.film_group_norm_out
    if not triton_reason(device):
        found["triton"] = importlib.import_module("rcdm_fast.kernels.film_group_norm").film_group_norm_out
    found["reference"] = _reference_norm
    return found


def attention_candidates(device: torch.device) -> dict[str, Attend]:
    """The same for attention; "sdpa" is PyTorch's own."""
    found: dict[str, Attend] = {}
    if device.type == "cpu" and library.has_native("cpu"):
        found["native"] = torch.ops.rcdm_fast.attention
    found["sdpa"] = _sdpa
    if not triton_reason(device):
        found["triton"] = importlib.import_module("rcdm_fast.kernels.attention").attention
    return found


def film_group_norm(device: torch.device) -> WriteNorm:
    """The implementation that runs on a device."""
    candidates = film_group_norm_candidates(device)
    return candidates[_chosen.get(("film_group_norm", device.type)) or next(iter(candidates))]


def film_group_norm_visible(device: torch.device) -> Callable[..., Tensor]:
    """An implementation that torch.compile can place in a graph; takes the schema's inputs, returns a new tensor."""
    if device.type == "cuda" and not triton_reason(device):
        found: Callable[..., Tensor] = importlib.import_module("rcdm_fast.kernels.film_group_norm").film_group_norm
        return found
    if library.has_native(device.type):
        native: Callable[..., Tensor] = torch.ops.rcdm_fast.film_group_norm
        return native
    return reference.film_group_norm


def attention(device: torch.device) -> Attend:
    """The implementation that runs on a device."""
    candidates = attention_candidates(device)
    return candidates[_chosen.get(("attention", device.type)) or next(iter(candidates))]


def measure(operator: str, device: torch.device, inputs: list[tuple[Any, ...]], repeats: int = 10) -> dict[str, float]:
    """Time every candidate on inputs that matter, keep the fastest for this device; name -> milliseconds in all.

    Args:
        operator: "film_group_norm" (inputs begin with `out`) or "attention".
        device: where; all tensors of `inputs` must lie there.
        inputs: argument tuples; every candidate runs all of them.
        repeats: runs, of which the median counts.

    Raises:
        KeyError: another operator.
    """
    tables: dict[str, Callable[[torch.device], dict[str, Callable[..., object]]]] = {
        "film_group_norm": lambda place: {**film_group_norm_candidates(place)},
        "attention": lambda place: {**attention_candidates(place)},
    }
    candidates = tables[operator](device)
    if len(candidates) > 1:
        candidates.pop("reference", None)
    times = {name: _median_ms(partial(_run_all, run, inputs), device, repeats) for name, run in candidates.items()}
    _times_ms[operator, device.type] = times
    _chosen[operator, device.type] = min(times, key=lambda name: times[name])
    return times


def forget() -> None:
    """Go back to the order of preference."""
    _chosen.clear()
    _times_ms.clear()


def describe(device: torch.device) -> dict[str, str]:
    """Operator -> the implementation that runs on a device, with the measured times where there are some."""
    order = {
        "film_group_norm": next(iter(film_group_norm_candidates(device))),
        "attention": next(iter(attention_candidates(device))),
    }
    lines = {}
    for operator, first in order.items():
        times = _times_ms.get((operator, device.type), {})
        measured = ", ".join(f"{name} {value:.3f} ms" for name, value in times.items())
        chosen = _chosen.get((operator, device.type), first)
        lines[operator] = f"{chosen} (measured: {measured})" if measured else f"{chosen} (not measured)"
    return lines


def _run_all(run: Callable[..., object], inputs: list[tuple[Any, ...]]) -> None:
    for arguments in inputs:
        run(*arguments)


def _median_ms(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)[len(times) // 2]


def _reference_norm(out: Tensor, *inputs: Any) -> None:
    out.copy_(reference.film_group_norm(*inputs))


def _sdpa(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    q, k, v = reference.split_heads(qkv, heads, new_order)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
