"""What the pages of the documentation take from the library when they are built."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

MARK = "<!-- every command, as its --help says it: docs/build.py -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the help of all commands where it is wanted (called by MkDocs)."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """The help of every command of `rcdm`, each under a heading."""
    from rcdm_fast.cli import app

    names = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
    return "\n\n".join(f"## rcdm {name}\n\n```text\n{_help(name)}\n```" for name in names)


def _help(name: str) -> str:
    words = [sys.executable, "-m", "rcdm_fast", name, "--help"]
    wide = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    return subprocess.run(words, check=True, capture_output=True, text=True, env=wide).stdout.strip()
