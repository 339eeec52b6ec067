"""The `rcdm` command: argument parsing, messages and exit codes around the library.

Exit codes: 0 done, 1 failed, 2 wrong input or usage, 130 interrupted. An error is one line; `--debug` adds the
traceback.

Nothing heavy is imported before a command needs it, so that `rcdm --help` answers at once. Knows nothing about how
things are computed.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated

import typer

from rcdm_fast.cli import (
    about,
    adapt,
    analyze,
    bench,
    compare,
    evaluate,
    export,
    generate,
    playground,
    report,
    sampling,
    terminal,
    training,
    tune,
)
from rcdm_fast.errors import RcdmError

app = typer.Typer(
    name="rcdm",
    help="See in pictures what a vision encoder's representation keeps of a photo.\n\n"
    "Example: rcdm sample photo.jpg --model cifar10-simclr-wide --out sheet.png",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(sampling.sample)
app.command()(sampling.encode)
app.command()(sampling.interpolate)
app.command()(generate.generate)
app.command()(training.train)
app.command()(training.pretrain)
app.command()(adapt.adapt)
app.command()(evaluate.evaluate)
app.command()(analyze.analyze)
app.command()(report.report)
app.command()(playground.app)
app.command()(export.export)
app.command()(compare.compare)
app.command()(bench.bench)
app.command()(tune.tune)
app.command()(about.models)
app.command()(about.info)

INTERRUPTED = 130
_debug = False


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and debug logs.")] = False,
) -> None:
    global _debug
    _debug = debug
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    # Pictures up to images.MAX_PIXELS are welcome; Pillow warns from about half of that.
    warnings.filterwarnings("ignore", message=".*decompression bomb.*")
    for noisy in ("httpx", "filelock", "urllib3", "PIL", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    with terminal.tolerant() as out:
        code = _run(given)
        out.flush()
        if out.lost is not None and code == 0:
            print(f"rcdm: done, but not all of it could be shown ({out.lost.strerror})", file=sys.stderr)
            return 1
        return code


def _run(given: list[str]) -> int:
    try:
        app(given, standalone_mode=True, prog_name="rcdm")
    except (SystemExit, KeyboardInterrupt) as stop:
        code = stop.code if isinstance(stop, SystemExit) else INTERRUPTED
        if code == INTERRUPTED:  # typer's, which says nothing
            print("rcdm: interrupted", file=sys.stderr)
        return code if isinstance(code, int) else 1
    except Exception as error:
        if _debug or "--debug" in given:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, RcdmError | OSError) or not text:  # nothing that anybody foresaw
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        print(f"rcdm: {text}", file=sys.stderr)
        return _exit_code(error)
    return 0


def _exit_code(error: Exception) -> int:
    """2 for what was given and what the system refuses; 1 for what failed, as a ValueError that is no RcdmError."""
    given = isinstance(error, RcdmError) and isinstance(error, ValueError)
    return 2 if given or isinstance(error, OSError) else 1
