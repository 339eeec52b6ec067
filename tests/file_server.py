"""A small HTTP server on 127.0.0.1 for tests of downloads; it can misbehave in the ways that servers do."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """One file at every path, and how it is served. Change the fields while it runs.

    Attributes:
        content: the file.
        ranges: whether Range requests are honoured.
        etag: strong validator, or "" for none.
        status: answer this instead of 200.
        cut_at: close the connection after so many bytes of a body.
        silent_s: wait so long before the body.
        send_length: whether Content-Length is sent.
        content_type: of the answer.
        modified: Last-Modified, or "" for none.
        if_range: whether If-Range is honoured.
        encoding: Content-Encoding, or "" for none.
        told_range: Content-Range of a part, instead of the true one.
        requests: headers of the requests seen, oldest first.
    """

    content: bytes
    ranges: bool = True
    etag: str = '"v1"'
    status: int = 200
    cut_at: int | None = None
    silent_s: float = 0.0
    send_length: bool = True
    content_type: str = "application/octet-stream"
    modified: str = ""
    if_range: bool = True
    encoding: str = ""
    told_range: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[FileServer]:
        """Serve until the block ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)


def _handler(files: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            files.requests.append(dict(self.headers))
            start = self._start()
            if start >= len(files.content) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(files.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = files.content[start:]
            self.close_connection = True
            self.send_response(206 if start else files.status)
            self.send_header("Content-Type", files.content_type)
            if files.send_length:
                self.send_header("Content-Length", str(len(body)))
            if files.etag:
                self.send_header("ETag", files.etag)
            if files.modified:
                self.send_header("Last-Modified", files.modified)
            if files.encoding:
                self.send_header("Content-Encoding", files.encoding)
            if start:
                total = len(files.content)
                self.send_header("Content-Range", files.told_range or f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            time.sleep(files.silent_s)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body if files.cut_at is None else body[: files.cut_at])

        def _start(self) -> int:
            asked = self.headers.get("Range")
            if not asked or not files.ranges:
                return 0
            if files.if_range and self.headers.get("If-Range", files.etag) not in (files.etag, files.modified):
                return 0
            return int(asked.removeprefix("bytes=").removesuffix("-"))

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    return Handler
