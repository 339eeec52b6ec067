"""Which GPU a call works on: named exactly when something is placed, made the current one while it is used, sent to.

PyTorch's own operators find their device themselves. Streams, CUDA graphs, Triton and other libraries take the current
one, which on a machine with two GPUs may be another than the tensors': then nothing fails, and numbers are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def placed(device: torch.device | str) -> torch.device:
    """The device itself; "cuda" without a number is the GPU that is current now, and stays it.

    Where there is no GPU "cuda" stays what it is: it is for engines to say so.
    """
    found = torch.device(device)
    if str(found) == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return found


def best(given: str | torch.device | None = None) -> str:
    """The device that is given; where none is, a GPU if there is one."""
    return str(given or ("cuda" if torch.cuda.is_available() else "cpu"))


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one inside, and restores the one before; nothing for other devices."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def timed_convolutions() -> Iterator[None]:
    """cuDNN times its algorithms at every new shape inside, instead of guessing; the host's setting is restored."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any = None) -> Iterator[None]:
    """Captures what this thread launches inside as a CUDA graph, on a stream that is current meanwhile.

    Where that fails the error of the body is raised: PyTorch's own, from ending a capture that is void, would hide it,
    even a KeyboardInterrupt. The stream of before is current again, which `torch.cuda.graph` alone forgets then.
    """
    first: BaseException | None = None
    try:
        # In the mode "global" another thread that allocates memory meanwhile, to encode an image, would end this.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            try:
                yield
            except BaseException as error:
                first = error
                raise
    except Exception:
        if first is None:
            raise
    if first is not None:
        raise first  # not in `except`: PyTorch's error, chained to it, would hold it and all memory of its frames


def sent(value: Tensor, device: torch.device) -> Tensor:
    """The value on a device; on its way to a GPU, which is not waited for."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
