"""Who may speak to the playground, how much may be uploaded, and whether anybody still waits for a drawing.

A web page elsewhere can point its own name at 127.0.0.1 and speak to a server there as if it were its own (DNS
rebinding), or send it forms. So where the playground listens on this machine alone, requests must name this machine,
and pages that send some must come from it.

Knows nothing about images, models or Gradio, only about HTTP (ASGI).
"""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_GRACE_S = 5.0  # a page that reconnects is away for a moment
_REMEMBERED = 1000  # sessions
_MAX_BODY = 1 << 20  # bytes of a request that is no upload
_THROWN = 1 << 28  # bytes of a refused request that are read


def is_loopback(host: str) -> bool:
    """Whether an address to listen on lets nobody in but this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass
class Listeners:
    """Sessions, and whether a page still listens for their results. Threads may ask while requests come and go."""

    grace_s: float = _GRACE_S
    _open: Counter[str] = field(default_factory=Counter, init=False)
    _left: dict[str, float] = field(default_factory=dict, init=False)
    _stopped: dict[str, float] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def enter(self, session: str) -> None:
        """A page listens."""
        with self._lock:
            self._open[session] += 1

    def leave(self, session: str) -> None:
        """It does not any more."""
        with self._lock:
            self._open[session] -= 1
            if self._open[session] <= 0:
                del self._open[session]
            _remember(self._left, session)

    def stop(self, session: str) -> None:
        """What is being drawn for a session is not wanted any more."""
        with self._lock:
            _remember(self._stopped, session)

    def gone(self, session: str, since: float) -> bool:
        """Whether nobody waits for a drawing that began at `since` (`time.monotonic`)."""
        with self._lock:
            if self._stopped.get(session, -1.0) >= since:
                return True
            last = max(self._left.get(session, since), since)
            return not self._open[session] and time.monotonic() - last > self.grace_s


def _remember(times: dict[str, float], session: str) -> None:
    times.pop(session, None)
    times[session] = time.monotonic()
    while len(times) > _REMEMBERED:
        del times[next(iter(times))]


class Guard:
    """An ASGI application before another one.

    Args:
        app: what answers requests that are let through.
        hosts: names that requests and pages may have; None for any.
        folder: where uploads lie.
        quota_bytes: how much may lie there before further uploads are refused.
        listeners: told of pages that listen for results.
    """

    def __init__(
        self, app: App, hosts: Collection[str] | None, folder: Path, quota_bytes: int, listeners: Listeners
    ) -> None:
        self.app = app
        self.hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self.folder = folder
        self.quota_bytes = quota_bytes
        self.listeners = listeners
        self._arriving = 0  # bytes of uploads that are not all there yet

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            await _refuse(scope, receive, send, *refusal)
            return
        path = str(scope["path"])
        session = "".join(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])[:1])
        listens = bool(session) and path.endswith("/queue/data")
        arriving = int(headers["content-length"]) if _is_upload(scope) else 0
        self._arriving += arriving
        if listens:
            self.listeners.enter(session)
        try:
            await self.app(scope, receive, send)
        finally:
            self._arriving -= arriving
            if listens:
                self.listeners.leave(session)

    def _refusal(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        if self.hosts is not None:
            if _name(headers.get("host", "")) not in self.hosts:
                return 403, "this host name is not one of the playground's (rcdm app --allow-host NAME adds it)"
            origin = headers.get("origin")
            if origin is not None and _name(origin.partition("://")[2]) not in self.hosts:
                return 403, "pages from elsewhere may not use the playground"
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        length = headers.get("content-length", "" if _is_upload(scope) or "transfer-encoding" in headers else "0")
        if not length.isdecimal():
            return 411, "a request must say how long it is"
        if not _is_upload(scope):
            return (413, "this request is too long") if int(length) > _MAX_BODY else None
        if size_of(self.folder) + self._arriving + int(length) > self.quota_bytes:
            return 413, f"uploads take more than {self.quota_bytes >> 20} MiB; they are deleted after an hour"
        return None


def _is_upload(scope: MutableMapping[str, Any]) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and str(scope["path"]).rstrip("/").endswith("/upload")


def _name(host: str) -> str:
    """The name in a Host header, without a port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, as far as they can be seen."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # deleted meanwhile
                continue
    return total


async def _refuse(scope: MutableMapping[str, Any], receive: Receive, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    # A browser that is cut off while it sends never reads why; so what comes is thrown away for a while.
    thrown, more = 0, status == 413
    while more and thrown < _THROWN:
        message = await receive()
        thrown += len(message.get("body", b""))
        more = message["type"] == "http.request" and bool(message.get("more_body"))
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})
