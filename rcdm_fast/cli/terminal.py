"""Standard output and error that end no work: what cannot be shown is escaped or left out, and the command goes on.

A terminal whose encoding lacks a character gets an escape for it. A reader that has gone (`| head`), a terminal that
was closed and a full disk behind a redirection are noticed once; then nothing more is shown.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

_READER_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.ECONNRESET, errno.EBADF})


class Stream:
    """A text stream that can be written to whatever becomes of it.

    Attributes:
        fault: why nothing is shown any more; None while all is well.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Show text; returns its length."""
        if self.fault is None:
            try:
                self._write(text)
            except OSError as error:
                self._forget(error)
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        """Show what was written."""
        if self.fault is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._forget(error)

    def _forget(self, error: OSError) -> None:
        """Let what is still in buffers go nowhere, so that the end of the process does not stumble over it."""
        self.fault = error
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    @property
    def lost(self) -> OSError | None:
        """Why something that somebody still wanted to read was not shown; None if nobody did."""
        return None if self.fault is None or self.fault.errno in _READER_GONE else self.fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant() -> Iterator[Stream]:
    """Inside, `sys.stdout` and `sys.stderr` are such streams; yields the former."""
    before = sys.stdout, sys.stderr
    out, err = (Stream(_Nowhere() if stream is None else stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


class _Nowhere(io.StringIO):
    """In place of a stream that was closed before the process began."""

    def write(self, text: str) -> int:
        """Forget the text; returns its length."""
        return len(text)
