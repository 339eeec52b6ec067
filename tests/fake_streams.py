"""Streams, events and CUDA graphs of the fake GPUs of `fake_cuda.py`, which see. Use them through `torch.cuda`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

running: list[Any] = []  # the `fake_cuda.Machine` that is on, the last one


class Stream:
    """A queue of a device; number 0 is its default one."""

    def __init__(self, device: Any = None, priority: int = 0, *, number: int | None = None) -> None:
        machine = running[-1]
        self.device = machine.place(device)
        self.device_index = self.device.index
        self.stream_id = machine.next_number() if number is None else number
        self.cuda_stream = 0 if self.stream_id == 0 else 0x1000 + self.stream_id
        self.clock_ms = 0.0
        self.waited_for: list[Stream] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self.device, self.stream_id) == (other.device, other.stream_id)

    def __hash__(self) -> int:
        return hash((self.device, self.stream_id))

    def wait_stream(self, other: Stream) -> None:
        running[-1].unsafe("wait_stream", lambda facts: other != facts.stream and self == facts.stream)
        self.waited_for.append(other)

    def synchronize(self) -> None:
        running[-1].sync("Stream.synchronize")


class Event:
    """A point in a stream's time."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self._at_ms = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._at_ms = (stream or running[-1].current_stream()).clock_ms

    def synchronize(self) -> None:
        running[-1].sync("Event.synchronize")

    def elapsed_time(self, end: Event) -> float:
        return end._at_ms - self._at_ms


@dataclass
class Kernel:
    func: Any
    args: Any
    kwargs: Any
    outputs: list[Tensor]
    cost_ms: float


@dataclass
class Facts:
    """Of a graph: where, how and by whom it was captured, what went wrong, how often it ran."""

    stream: Stream
    mode: str
    thread: int
    fault: str = ""
    replays: int = 0


class Graph:
    """What was launched on a stream between begin and end; see `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self.facts: Facts | None = None

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        machine = running[-1]
        self.facts = Facts(machine.current_stream(), capture_error_mode, threading.get_ident())
        if self.facts.stream.stream_id == 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        if machine.captures:
            machine.captures[0].facts.fault = "another capture in this process"
            raise RuntimeError("another capture is going on in this process")
        machine.captures.append(self)
        machine.graphs.append(self.facts)

    def capture_end(self) -> None:
        assert self.facts is not None
        running[-1].captures.remove(self)
        if self.facts.fault:
            raise RuntimeError(f"the capture was invalidated by {self.facts.fault}")

    def replay(self) -> None:
        assert self.facts is not None
        stream = running[-1].current_stream(self.facts.stream.device)
        self.facts.replays += 1
        with torch.inference_mode():
            for kernel in self.kernels:
                got = kernel.func(*kernel.args, **kernel.kwargs)
                # What writes in place returns what it was given.
                for old, new in zip(kernel.outputs, tensors_of(got) if kernel.outputs else (), strict=True):
                    old.copy_(new)
                stream.clock_ms += kernel.cost_ms


class OnStream:
    """See `torch.cuda.stream`: where it is entered and never left, as after a failed capture, its stream stays."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        machine, stream = running[-1], self._stream
        if stream is not None:
            self._before = machine.current_device(), machine.current_stream(stream.device)
            machine.exchange_device(stream.device_index)
            machine.streams[stream.device_index] = stream

    def __exit__(self, *error: Any) -> None:
        machine, stream = running[-1], self._stream
        if stream is not None:
            device, machine.streams[stream.device_index] = self._before
            machine.exchange_device(device)


class Capture:
    """See `torch.cuda.graph`, whose own stream is made once, on the device that is current then."""

    default_stream: ClassVar[Stream | None] = None

    def __init__(
        self, graph: Graph, pool: object = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> None:
        if stream is None and Capture.default_stream is None:
            Capture.default_stream = Stream()
        self._graph, self._pool, self._mode = graph, pool, capture_error_mode
        self._context = OnStream(stream or Capture.default_stream)

    def __enter__(self) -> None:
        running[-1].sync("torch.cuda.graph")
        self._context.__enter__()
        self._graph.capture_begin(self._pool, self._mode)

    def __exit__(self, *error: Any) -> None:
        self._graph.capture_end()
        self._context.__exit__(*error)


def tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(Tensor, found.append, value)
    return found


def mapped(kind: type, change: Callable[[Any], Any], value: Any) -> Any:
    """An operator's argument or result, with all of a kind in its lists, tuples and dictionaries changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([mapped(kind, change, each) for each in value])
    if isinstance(value, dict):
        return {key: mapped(kind, change, each) for key, each in value.items()}
    return value
