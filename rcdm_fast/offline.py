"""RCDM_FAST_OFFLINE, kept by other libraries too: inside `enforced` nothing reaches the network.

Libraries that fetch models and data have switches of their own, or none. Inside, those of the Hugging Face libraries
are on (what is in their caches is found, and nothing is tried again and again), and this thread opens no connection.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from rcdm_fast import downloads
from rcdm_fast.errors import RcdmError

FORBIDDEN = "RCDM_FAST_OFFLINE forbids the network"

_SWITCHES = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
}
_NOT_CACHED = {"OfflineError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
_LOCK = threading.Lock()
_INSIDE: list[int] = []  # threads
_BEFORE: list[tuple[Any, str, Any]] = []  # what was there, to be put back


class OfflineError(RcdmError, OSError):
    """A connection that RCDM_FAST_OFFLINE forbids."""


@contextlib.contextmanager
def enforced() -> Iterator[None]:
    """If RCDM_FAST_OFFLINE is set, nothing inside reaches the network; connections raise `OfflineError`."""
    if not downloads.offline():
        yield
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("huggingface_hub.constants")
    thread = threading.get_ident()
    with _LOCK:
        if not _INSIDE:
            _close()
        _INSIDE.append(thread)
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE.remove(thread)
            if not _INSIDE:
                while _BEFORE:
                    setattr(*_BEFORE.pop())


def caused(error: BaseException) -> bool:
    """Whether an error comes from a connection that was not made."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if type(cause).__name__ in _NOT_CACHED or FORBIDDEN in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _close() -> None:
    for module, names in _SWITCHES.items():
        for name in names if module in sys.modules else ():
            _replace(sys.modules[module], name, True)
    _replace(socket, "getaddrinfo", _guarded(socket.getaddrinfo))
    for name in ("connect", "connect_ex"):
        _replace(socket.socket, name, _guarded_method(getattr(socket.socket, name)))


def _replace(place: Any, name: str, new: Any) -> None:
    _BEFORE.append((place, name, getattr(place, name)))
    setattr(place, name, new)


def _guarded(call: Any) -> Any:
    def look_up(*arguments: Any, **keywords: Any) -> Any:
        if threading.get_ident() in _INSIDE:
            raise OfflineError(FORBIDDEN)
        return call(*arguments, **keywords)

    return look_up


def _guarded_method(call: Any) -> Any:
    def connect(self: socket.socket, *arguments: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and threading.get_ident() in _INSIDE:
            raise OfflineError(FORBIDDEN)
        return call(self, *arguments)

    return connect
