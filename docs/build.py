"""What the pages of the documentation take from the library when they are built."""

from __future__ import annotations

from typing import Any

MARK = "<!-- every command, as its --help says it: docs/build.py -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the help of all commands where it is wanted (called by MkDocs)."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """The help of every command of `rcdm`, each under a heading."""
    import typer

    from rcdm_fast.cli import app

    parts = []
    for name, command in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]
        context = command.make_context(f"rcdm {name}", [], resilient_parsing=True, terminal_width=100)
        parts.append(f"## rcdm {name}\n\n```text\n{command.get_help(context).strip()}\n```")
    return "\n\n".join(parts)
