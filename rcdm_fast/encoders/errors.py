"""The one error that encoders raise beside `ConfigError`, and the import of optional libraries."""

from __future__ import annotations

import importlib
from typing import Any

from rcdm_fast.doors import printable
from rcdm_fast.errors import RcdmError, install


class EncoderError(RcdmError, ValueError):
    """An encoder that cannot be loaded or does not do what its configuration says; the message names it."""


class Untrusted(EncoderError):
    """An encoder that comes with code, which nobody has allowed to run."""


def reason(error: BaseException) -> str:
    """What another library's error says, in one line of reasonable length."""
    return printable(" ".join(str(error).split()) or type(error).__name__)


def need(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        EncoderError: it is not installed; the message says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise EncoderError(f"this encoder needs {name} ({error}): {install(extra)}") from error
