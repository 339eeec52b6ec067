"""CUDA graphs of a program, one per batch bucket: launching some hundred kernels costs as much as one.

A batch is padded to the next bucket. A graph reads images, FiLM rows and row numbers from tensors of its own, which
are filled before each replay, so that it never has to be captured again; results are copied out. All graphs share one
memory pool, and the least recently used one is dropped when there are more than `MOST_GRAPHS`, never the one that was
filled last. Where there are several forms of a program, each is captured and timed for every bucket, and the fastest
one kept; a form that cannot run is left out. Other threads may use the GPU during a capture, but there is one capture
at a time in a process.

Not used on CPU.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast import devices, memory
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.program import Program
from rcdm_fast.ops import selection
from rcdm_fast.precision import ieee_fp32

log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MOST_GRAPHS = 4
TIMED_RUNS = 5  # of each form's graph, of which the least time counts
WARM_RUNS = 3  # before a capture: cuDNN times its algorithms, kernels are loaded

_capturing = threading.Lock()  # PyTorch follows one capture at a time, whatever the number of models


def bucket_for(batch_size: int) -> int:
    """The smallest bucket that holds a batch; batches beyond the largest are their own bucket."""
    return next((bucket for bucket in BUCKETS if bucket >= batch_size), batch_size)


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    x: Tensor  # float32 [B,3,H,W]
    film: Tensor  # float32 [B,F] or [B,F,h,w]
    rows: Tensor  # int64 [B]
    out: Tensor  # [B,3 or 6,H,W]
    form: str  # of the program


class GraphCache:
    """Captured graphs of one program, by bucket.

    Args:
        forms: the program, by name, as often as there are ways to run it.
        backend: theirs.
        image_size: of images, in pixels.
        film: makes as many rows as it is told, of zeros, on the device: [B,F], or of maps [B,F,h,w].
        device: a GPU.
    """

    def __init__(
        self,
        forms: Mapping[str, Program],
        backend: TorchBackend,
        image_size: int,
        film: Callable[[int], Tensor],
        device: torch.device,
    ) -> None:
        self._forms, self._backend, self._device = dict(forms), backend, device
        self._size, self._film = image_size, film
        self._graphs: OrderedDict[int, _Captured] = OrderedDict()
        with devices.current(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._side = torch.cuda.Stream(device)  # graphs that share a pool are captured on one stream
        self._captures = 0
        self._unable: dict[str, str] = {}  # form -> the last batch size for which it could not run, and why
        self._filled: tuple[Batch, _Captured] | None = None  # the last batch, and the graph that has its rows
        self._stream: torch.cuda.Stream | None = None  # on which a graph's tensors were used last

    def describe(self) -> str:
        """Which buckets are captured, by which forms, and which forms could not run."""
        said = (
            f"CUDA graphs for batches of {list(self._graphs)} ({self._captures} captured, at most {MOST_GRAPHS} kept)"
        )
        if len(self._forms) == 1:
            return said
        forms = ", ".join(f"{size}: {captured.form}" for size, captured in self._graphs.items())
        unable = "".join(f"; form {form!r} cannot run: {why}" for form, why in self._unable.items())
        return f"{said}, the fastest of {len(self._forms)} forms each ({forms}){unable}"

    @torch.inference_mode()
    def prepare(self, batch: Batch) -> None:
        """Make ready for a batch: capture its bucket if need be, and tell the graph each image's row."""
        with devices.current(self._device):
            self._fill(batch)

    @torch.inference_mode()
    def replay(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        """One network evaluation; float32 [batch,3 or 6,H,W], a copy. Waits for nothing where the batch is the last."""
        count = len(batch)
        with devices.current(self._device):
            captured = self._fill(batch)
            self.follow()
            captured.x[:count].copy_(x)
            batch.film_of_distinct(k, out=captured.film[: len(batch.distinct)])
            captured.graph.replay()
            return captured.out[:count].to(torch.float32, memory_format=torch.contiguous_format, copy=True)

    def warm(self, batch_size: int) -> None:
        """Capture the graph for a batch size if it is not there; what is prepared stays prepared."""
        with devices.current(self._device):
            self._bucket(batch_size)

    def fastest(self, batch_size: int) -> tuple[int, Program]:
        """The bucket of a batch size, and the form that is the fastest there; captured if need be."""
        with devices.current(self._device):
            captured = self._bucket(batch_size)
        return len(captured.x), self._forms[captured.form]

    def follow(self) -> None:
        """Let the current stream wait for what the last one does with the tensors of a graph, and be the last one."""
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream

    def wait(self) -> None:
        """Until no graph is running."""
        if self._stream is not None:
            self._stream.synchronize()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The only capture in the process inside, as all are made: float32 is float32, cuDNN times its algorithms."""
        with _capturing, torch.inference_mode(), ieee_fp32(self._device), devices.timed_convolutions():
            yield

    def record(self, run: Callable[[], Tensor], warm_runs: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph of what `run` launches, after some runs without one, and where its result will be; for `alone`.

        Memory that is made inside is of the pool that all graphs share: it holds until another graph is replayed.
        """
        with self._aside():
            for _ in range(warm_runs):
                run()
        graph = torch.cuda.CUDAGraph()
        with devices.capturing(graph, self._side, self._pool):
            out = run()
        return graph, out

    def time_ms(self, run: Callable[[], object], runs: int = TIMED_RUNS) -> float:
        """The least time of some runs on the stream of captures; the first one is not counted."""
        stream, times = self._side, []
        with self._aside():
            run()
            for _ in range(runs):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record(stream)
                run()
                end.record(stream)
                end.synchronize()
                times.append(float(start.elapsed_time(end)))
        return min(times)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of captures, which follows the current one; that one follows it afterwards, on errors too."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        try:
            with torch.cuda.stream(self._side):
                yield
        finally:
            current.wait_stream(self._side)  # or memory that is freed now would be used again while kernels write to it

    def _fill(self, batch: Batch) -> _Captured:
        """The graph of a batch's bucket, with its rows."""
        if self._filled is not None and self._filled[0] is batch:
            return self._filled[1]
        captured = self._bucket(len(batch))
        self.follow()
        captured.rows.zero_()
        captured.rows[: len(batch)].copy_(batch.inverse)
        captured.x.zero_()
        self._filled = batch, captured
        return captured

    def _bucket(self, batch_size: int) -> _Captured:
        size = bucket_for(batch_size)
        if size not in self._graphs:
            self._make_room()
            self._graphs[size] = self._capture(size)
        self._graphs.move_to_end(size)
        return self._graphs[size]

    def _make_room(self) -> None:
        """Drop graphs, the least recently used first, until one more may be kept."""
        used = self._filled[1] if self._filled is not None else None
        unused = [size for size, captured in self._graphs.items() if captured is not used]
        for size in unused[: max(0, len(self._graphs) - MOST_GRAPHS + 1)]:
            self.wait()
            del self._graphs[size]

    def _capture(self, size: int) -> _Captured:
        device = self._device
        with torch.inference_mode(False):  # tensors that may be written anywhere
            x = torch.linspace(-1, 1, size * 3 * self._size**2, device=device).view(size, 3, self._size, self._size)
            film = self._film(size)
            rows = torch.zeros(size, dtype=torch.int64, device=device)
        best, least_ms = None, math.inf
        *_, last = self._forms
        with self.alone():
            for form, program in self._forms.items():
                try:
                    graph, out = self._capture_form(program, x, film, rows)
                    took_ms = self._time_ms(graph) if len(self._forms) > 1 else 0.0
                except selection.MISTAKES:
                    raise
                except Exception as error:
                    if memory.out_of_memory(error) or (best is None and form == last):
                        raise
                    self._unable[form] = f"batches of {size}: {selection.in_short(error)}"
                    log.warning("form %r cannot run for batches of %d and is left out: %s", form, size, str(error))
                    continue
                if took_ms < least_ms:
                    best, least_ms = _Captured(graph, x, film, rows, out, form), took_ms
                del graph, out  # the next one may have the memory of a slower one
        assert best is not None
        self._captures += 1
        return best

    def _capture_form(
        self, program: Program, x: Tensor, film: Tensor, rows: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        with self._aside(), self._backend.choices.measuring():
            program.denoise(x, film, rows)
        return self.record(lambda: program.denoise(x, film, rows), WARM_RUNS)

    def _time_ms(self, graph: torch.cuda.CUDAGraph) -> float:
        return self.time_ms(graph.replay)
