"""Memory that did not suffice: telling it from other errors, and giving back what is kept."""

from __future__ import annotations

import torch

# As PyTorch, CUDA's libraries, onnxruntime, OpenVINO and C++ say it.
_WORDS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "failed to allocate memory",
    "bad_alloc", "bad allocation",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return any(word in said for word in _WORDS)


def release() -> None:
    """Give back what PyTorch keeps of a GPU's memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
