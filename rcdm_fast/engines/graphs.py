"""CUDA graphs of a program, one per batch bucket: launching some hundred kernels costs as much as one.

A batch is padded to the next bucket. A graph reads pictures, FiLM rows and row numbers from tensors of its own, which
are filled before each replay, so that it never has to be captured again; results are copied out. All graphs share one
memory pool, and the least recently used one is dropped when there are more than `MOST_GRAPHS`.

Not used on CPU. Knows nothing about solvers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.conditioning import ConditioningPlan
from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.program import Program
from rcdm_fast.ops import selection

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MOST_GRAPHS = 4
WARM_RUNS = 3  # before a capture: cuDNN chooses its algorithms, kernels are loaded


def bucket_for(batch_size: int) -> int:
    """The smallest bucket that holds a batch; batches beyond the largest are their own bucket."""
    return next((bucket for bucket in BUCKETS if bucket >= batch_size), batch_size)


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    x: Tensor  # float32 [B,3,H,W]
    film: Tensor  # float32 [B,F]
    rows: Tensor  # int64 [B]
    out: Tensor  # [B,3 or 6,H,W]


class GraphCache:
    """Captured graphs of one program, by bucket."""

    def __init__(
        self, program: Program, backend: TorchBackend, image_size: int, film_width: int, device: torch.device
    ) -> None:
        self._program, self._backend, self._device = program, backend, device
        self._size, self._width = image_size, film_width
        self._graphs: OrderedDict[int, _Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self._captures = 0
        self._measured = False
        self._plan: ConditioningPlan | None = None
        self._distinct = torch.zeros(0, dtype=torch.int64, device=device)
        self._count = 0

    def describe(self) -> str:
        """Which buckets are captured."""
        return (
            f"CUDA graphs for batches of {list(self._graphs)} ({self._captures} captured, at most {MOST_GRAPHS} kept)"
        )

    def prepare(self, plan: ConditioningPlan, batch_size: int) -> None:
        """Make ready for a batch: capture its bucket if need be, and tell the graph each picture's row."""
        captured = self.bucket(batch_size)
        distinct, place = plan.rows.to(self._device).unique(return_inverse=True)
        captured.rows.zero_()
        captured.rows[:batch_size].copy_(place)
        captured.x.zero_()
        self._plan, self._distinct, self._count = plan, distinct, batch_size

    def replay(self, x: Tensor, k: int) -> Tensor:
        """One network evaluation; float32 [batch,3 or 6,H,W], a copy."""
        assert self._plan is not None
        captured = self.bucket(self._count)
        captured.x[: self._count].copy_(x)
        if self._plan.table is not None:
            torch.index_select(self._plan.table[k], 0, self._distinct, out=captured.film[: len(self._distinct)])
        else:
            captured.film[: len(self._distinct)].copy_(self._plan.film_rows(k)[0])
        captured.graph.replay()
        return captured.out[: self._count].to(torch.float32, memory_format=torch.contiguous_format, copy=True)

    def bucket(self, batch_size: int) -> _Captured:
        """The graph for a batch size, captured now if it is not there."""
        size = bucket_for(batch_size)
        if size in self._graphs:
            self._graphs.move_to_end(size)
            return self._graphs[size]
        while len(self._graphs) >= MOST_GRAPHS:
            self._graphs.popitem(last=False)
        self._graphs[size] = self._capture(size)
        return self._graphs[size]

    @torch.inference_mode()
    def _capture(self, size: int) -> _Captured:
        device = self._device
        x = torch.zeros(size, 3, self._size, self._size, device=device)
        film = torch.zeros(size, self._width, device=device)
        rows = torch.zeros(size, dtype=torch.int64, device=device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            x.normal_()
            if not self._measured:
                self._backend.calls = {}
                self._program.denoise(x, film, rows)
                calls, self._backend.calls = self._backend.calls, None
                for operator, inputs in calls.items():
                    selection.measure(operator, device, inputs)
                self._measured = True
            for _ in range(WARM_RUNS):
                self._program.denoise(x, film, rows)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = self._program.denoise(x, film, rows)
        self._captures += 1
        return _Captured(graph, x, film, rows, out)
