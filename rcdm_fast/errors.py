"""The root of all errors that the package documents, and what several parts of it raise.

Every public error is a `RcdmError` and keeps its built-in base (ValueError for what is given, OSError for what lies
outside, RuntimeError for what fails on the way), so that both kinds of `except` find it. Each is defined where it
belongs: `ConfigError` in `checks.py`, `StorageError` in `storage.py`, `ImageError` in `decoding.py`, and so on.
"""

from __future__ import annotations


class RcdmError(Exception):
    """Whatever rcdm_fast says is wrong with what it was given, found or computed."""


class RunError(RcdmError, RuntimeError):
    """A training run that cannot start, resume or go on."""


def install(extra: str) -> str:
    """What to type for an optional part of the package, which is installed from a clone."""
    return f'pip install ".[{extra}]" in a clone of rcdm_fast'
