"""Which implementation of an operator runs on a device, of its `candidates`.

An order of preference holds for whoever calls an operator by itself. An engine has `Choices` of its own, which time the
candidates for every shape and dtype that it meets while it warms up: what one model found never changes what another
one computes.

Knows nothing about models: a caller brings the inputs that matter to it.
"""

from __future__ import annotations

import contextlib
import logging
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from rcdm_fast import devices, memory
from rcdm_fast.ops import candidates, library, products, reference
from rcdm_fast.ops.candidates import Attend, WriteNorm
from rcdm_fast.ops.schema import NormInputs

log = logging.getLogger(__name__)

CALLS = 10  # in one timed run: one alone is too short for the clock
ALWAYS = ("film_group_norm", "attention")  # every program has these
RUNS = 5  # of which the median counts
# Errors of a wrong call, which no other way to run it would mend. Triton's are none of these: its compiler wraps them.
MISTAKES = (TypeError, ValueError, AssertionError, NotImplementedError)


def film_group_norm(device: torch.device) -> WriteNorm:
    """The preferred implementation on a device."""
    return next(iter(candidates.film_group_norm_candidates(device).values()))


def film_group_norm_visible(device: torch.device) -> Callable[..., Tensor]:
    """An implementation that torch.compile can place in a graph; takes `*NormInputs`, returns a new tensor."""
    if device.type == "cuda" and not candidates.triton_reason(device):
        from rcdm_fast.kernels import film_group_norm as kernel  # needs triton

        found: Callable[..., Tensor] = kernel.film_group_norm
        return found
    if library.has_native(device.type):
        native: Callable[..., Tensor] = torch.ops.rcdm_fast.film_group_norm
        return native
    return reference.film_group_norm


def attention(device: torch.device) -> Attend:
    """The preferred implementation on a device."""
    return next(iter(candidates.attention_candidates(device).values()))


@dataclass
class _Measured:
    times_ms: dict[str, float]  # one call of every candidate
    chosen: str
    calls: int = 0  # in the passes that were measured


class Choices:
    """What one engine runs on a device, by operator and kind of input: shapes, dtypes and settings.

    The order of preference holds until a call is seen inside `measuring`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._candidates: dict[str, dict[str, Callable[..., Any]]] = {
            "film_group_norm": {**candidates.film_group_norm_candidates(device)},
            "attention": {**candidates.attention_candidates(device)},
            "film_group_norm_before": {**candidates.film_group_norm_before_candidates(device)},
            "film_group_norm_given": {**candidates.film_group_norm_given_candidates(device)},
            "map_film": {**candidates.map_film_candidates(device)},
            "product": {**products.CANDIDATES},
            "add_product": {**products.ADDING},
        }
        self._measured: dict[tuple[object, ...], _Measured] = {}
        self._measuring = False

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, the first call of every kind times all candidates on its own inputs, which are not kept."""
        self._measuring = True
        try:
            yield
        finally:
            self._measuring = False

    def film_group_norm(self, out: Tensor, inputs: NormInputs) -> None:
        """`reference.film_group_norm` written to `out`."""
        self._run("film_group_norm", out, *inputs)

    def attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        """`reference.attention`."""
        found: Tensor = self._run("attention", qkv, heads, new_order)
        return found

    def film_group_norm_before(self, out: Tensor, before: Tensor, inputs: NormInputs) -> None:
        """`reference.film_group_norm_before` written to `out`."""
        self._run("film_group_norm_before", out, before, *inputs)

    def film_group_norm_given(
        self,
        out: Tensor,
        moments: Tensor,
        skip_moments: Tensor | None,
        before: Tensor | None,
        inputs: NormInputs,
    ) -> None:
        """`reference_moments.film_group_norm_given` written to `out`."""
        self._run("film_group_norm_given", out, moments, skip_moments, before, *inputs)

    def convolution_moments(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        add: Tensor | None = None,
        resample: int = 0,
        *sides: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`reference_moments.convolution_moments`."""
        operator = f"convolution_moments of {str(x.dtype)[6:]}"
        if operator not in self._candidates:
            self._candidates[operator] = candidates.convolution_moments_candidates(self._device, x.dtype)
        found: tuple[Tensor, Tensor] = self._run(operator, x, weight, bias, add, resample, *sides)
        return found

    def convolution_residual(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, resample: int, *sides: Tensor | None
    ) -> Tensor:
        """`reference.convolution_residual`."""
        few = len(x) * x.shape[2] * x.shape[3] <= candidates.FEW
        operator = f"convolution_residual, {'few' if few else 'many'} pixels of {str(x.dtype)[6:]}"
        if operator not in self._candidates:
            self._candidates[operator] = candidates.convolution_residual_candidates(self._device, x.dtype, few)
        found: Tensor = self._run(operator, x, weight, bias, add, resample, *sides)
        return found

    def map_film(self, x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> None:
        """`reference.map_film`."""
        self._run("map_film", x, film, rows, down, across)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`products.product`."""
        found: Tensor = self._run("product", x, weight, bias)
        return found

    def add_product(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """`products.add_product`."""
        self._run("add_product", out, x, weight)

    def times_ms(self, operator: str) -> dict[tuple[object, ...], dict[str, float]]:
        """What was measured: kind of input -> candidate -> time of one call."""
        return {kind[1:]: found.times_ms for kind, found in self._measured.items() if kind[0] == operator}

    def describe(self) -> dict[str, str]:
        """Operator -> what runs, with the measured times of all its calls."""
        met = {kind[0] for kind in self._measured}
        return {name: self._line(name) for name in self._candidates if name in met or name in ALWAYS}

    def _line(self, operator: str) -> str:
        found = [measured for kind, measured in self._measured.items() if kind[0] == operator]
        if not found:
            return f"{next(iter(self._candidates[operator]))} (not measured)"
        calls: dict[str, int] = {}
        for measured in found:
            calls[measured.chosen] = calls.get(measured.chosen, 0) + measured.calls
        fraction = ", ".join(f"{name} {count}" for name, count in sorted(calls.items(), key=lambda each: -each[1]))
        names = found[0].times_ms
        sums = {name: sum(measured.times_ms[name] * measured.calls for measured in found) for name in names}
        times = ", ".join(
            f"{name} cannot run" if value == inf else f"{name} {value:.3f} ms" for name, value in sums.items()
        )
        return f"{fraction} calls (measured, all of them: {times})"

    def _run(self, operator: str, *arguments: Any) -> Any:
        ways = self._candidates[operator]
        kind = (operator, *map(_kind, arguments))
        if self._measuring:
            if kind not in self._measured:
                self._measured[kind] = _measure(operator, ways, arguments, self._device)
            self._measured[kind].calls += 1
        found = self._measured.get(kind)
        return ways[next(iter(ways)) if found is None else found.chosen](*arguments)


def _kind(argument: Any) -> object:
    return (tuple(argument.shape), argument.dtype) if isinstance(argument, Tensor) else argument


def _measure(
    operator: str, ways: dict[str, Callable[..., object]], arguments: tuple[Any, ...], device: torch.device
) -> _Measured:
    """Time every candidate; the reference only where there is nothing else.

    One that cannot run is reported and counts as endless. The error is raised where none can, where memory was out, and
    where it is one of `MISTAKES`.
    """
    timed = {name: run for name, run in ways.items() if name != "reference" or len(ways) == 1}
    clock = _time_in_a_graph_ms if device.type == "cuda" else _time_ms
    times: dict[str, float] = {}
    failure: Exception | None = None
    for name, run in timed.items():
        try:
            times[name] = clock(partial(run, *arguments))
        except MISTAKES:
            raise
        except Exception as error:
            if memory.out_of_memory(error):
                raise
            times[name], failure = inf, error
            log.warning("%s by %s cannot run here and is left out: %s", operator, name, str(error))
    if failure is not None and min(times.values()) == inf:
        raise failure
    return _Measured(times, min(times, key=lambda name: times[name]))


def _time_in_a_graph_ms(run: Callable[[], object]) -> float:
    """One call as it will run: captured in a CUDA graph, on the current stream, without what Python takes to launch it.

    The current stream must not be a device's default one, and no other capture may be going on.
    """
    run()  # kernels are loaded and compiled
    stream = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    with devices.capturing(graph, stream):
        for _ in range(CALLS):
            run()
    graph.replay()
    times = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        graph.replay()
        end.record(stream)
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / CALLS)
    return sorted(times)[RUNS // 2]


def in_short(error: BaseException) -> str:
    """An error in one line, of at most some 200 characters."""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200, placeholder=' ...')}"


def _time_ms(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(CALLS):
            run()
        times.append((time.perf_counter() - start) * 1e3 / CALLS)
    return sorted(times)[RUNS // 2]
