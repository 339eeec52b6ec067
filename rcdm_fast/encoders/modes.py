"""A module in evaluation mode for a while; afterwards every sub-module is as it was."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator

from torch import nn

_LOCK = threading.Lock()
_HELD: weakref.WeakKeyDictionary[nn.Module, _Held] = weakref.WeakKeyDictionary()


class _Held:
    """How many are inside, and which sub-modules were training when the first one came."""

    def __init__(self, module: nn.Module) -> None:
        self.inside = 0
        self.training = [part for part in module.modules() if part.training]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, all of a module is in evaluation mode. The last of several threads that leaves puts the modes back."""
    with _LOCK:
        held = _HELD.get(module)
        if held is None:
            held = _HELD[module] = _Held(module)
        held.inside += 1
        for part in held.training:  # one by one: `eval` of some classes refuses to go back
            part.training = False
    try:
        yield
    finally:
        with _LOCK:
            held.inside -= 1
            if not held.inside:
                _HELD.pop(module, None)
                for part in held.training:
                    part.training = True
