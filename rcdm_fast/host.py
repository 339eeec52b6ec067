"""The program around the library: left as it is found, and without a say in the library's numbers.

A host may have autocast on, gradients off, another default dtype or device, or float32 products in fewer bits. Inside
`apart` PyTorch computes as it does when freshly imported, and on the way out everything is put back. What belongs to a
thread is set for the calling thread alone. What belongs to the whole process is touched only where the host has changed
it, and put back when the last call that needs it plain has ended, however calls of several threads overlap.

A host's number of threads, its deterministic algorithms and its devices' own switches are its own decisions: they are
respected. The number of threads may change the last bits of a result.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")


class _Switch(NamedTuple):
    """A setting of the whole process; `plain` lists the values that leave numbers alone, the one to set first."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    plain: tuple[Any, ...]


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the host uses the switches of single backends, which PyTorch does not put into one word
        return None


def _onednn(operation: str) -> _Switch:
    """Float32 products of oneDNN: an own value, or "none" for that of everything above it."""
    place = getattr(torch.backends.mkldnn, operation)

    def write(value: str) -> None:
        place.fp32_precision = "none"
        if place.fp32_precision != value:  # it was not inherited
            place.fp32_precision = value

    return _Switch(lambda: place.fp32_precision, write, ("ieee", "none"))


def _attention(name: str) -> _Switch:
    backends = torch.backends.cuda  # despite its name for every device
    return _Switch(getattr(backends, f"{name}_sdp_enabled"), getattr(backends, f"enable_{name}_sdp"), (True,))


@functools.cache
def _switches() -> tuple[_Switch, ...]:
    return (
        _Switch(torch.get_default_dtype, torch.set_default_dtype, (torch.float32,)),
        _Switch(_matmul_precision, torch.set_float32_matmul_precision, ("highest", None)),
        _onednn("matmul"),
        _onednn("conv"),
        *(_attention(name) for name in _ATTENTION),
    )


class _ProcessWide:
    """Puts the switches of the process back when the last of overlapping calls has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept: dict[int, Any] = {}

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            for number, switch in enumerate(_switches()):
                value = switch.read()
                if value not in switch.plain:
                    self._kept[number] = value
                    switch.write(switch.plain[0])

    def leave(self) -> None:
        with self._lock:
            self._inside = max(0, self._inside - 1)  # 0 already in a child that was forked inside
            if not self._inside:
                self._put_back()

    def _put_back(self) -> None:
        for number, value in reversed(self._kept.items()):
            switch = _switches()[number]
            if switch.read() in switch.plain:  # otherwise the host has decided anew
                switch.write(value)
        self._kept.clear()

    def forked(self) -> None:
        """In the child: the other threads, and what they were doing, are gone."""
        self._lock = threading.Lock()
        self._inside = 0
        self._put_back()


_process = _ProcessWide()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _process.forked())


def _within_autocast() -> bool:
    """Whether the host is inside a block of autocast, on or off: casts of weights are then kept until that block ends.

    Own blocks of autocast would find the casts of weights from before a step of training.
    """
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth > 1


@contextlib.contextmanager
def apart(gradients: bool = False) -> Iterator[None]:
    """Compute as a freshly imported PyTorch does, on the CPU unless a device is named; the host's settings come back.

    Tensors made inside are ordinary ones, also where the host is in inference mode. Gradients are recorded only if
    asked for.
    """
    with contextlib.ExitStack() as stack:
        _process.enter()
        stack.callback(_process.leave)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_autocast_cache_enabled() and _within_autocast():
            stack.callback(torch.set_autocast_cache_enabled, True)
            torch.set_autocast_cache_enabled(False)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def own_random() -> Iterator[None]:
    """Whatever draws from the default generators of PyTorch, NumPy and Python leaves them where they were.

    For building networks, which fill themselves with random numbers before they are given weights.
    """
    python, state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(state)


def guarded(*, gradients: bool = False, random: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of functions and methods that people call: they run `apart`, and with `own_random` if asked for."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with apart(gradients), own_random() if random else contextlib.nullcontext():
                return function(*args, **kwargs)

        return run

    return decorate


def guarded_each(items: Iterator[T]) -> Iterator[T]:
    """The items of a generator, each made `apart` from the host; between them the host has its own settings.

    Closing it closes the generator.
    """
    try:
        while True:
            with apart():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            with apart():
                close()


def forked_from(process: int) -> bool:
    """Whether this process is a fork of `process` in which PyTorch would hang.

    The pool of threads that OpenMP made does not survive a fork, but is believed to be there; work of one thread does
    not ask for it.
    """
    return os.getpid() != process and torch.get_num_threads() > 1
