"""The `rcdm` command: argument parsing, messages and exit codes around the library.

Exit codes: 0 done, 1 failed, 2 wrong input or usage, 130 interrupted. An error is one line; `--debug` adds the
traceback.

Nothing heavy is imported before a command needs it, so that `rcdm --help` answers at once.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from rcdm_fast.cli import (
    about,
    adapt,
    analyze,
    bench,
    calibrate,
    common,
    compare,
    distill,
    encoders,
    evaluate,
    export,
    generate,
    playground,
    report,
    sampling,
    sequence,
    terminal,
    training,
    tune,
)
from rcdm_fast.errors import RcdmError
from rcdm_fast.version import __version__

START = """\
See in images what a vision encoder's representation keeps of a photo. Three commands to start with:

  rcdm sample photo.jpg                        samples of its representation, on a sheet
  rcdm app                                     the same in the browser
  rcdm generate photos/ --per 100 --out job    samples of many photos, resumable

rcdm --help lists all commands, rcdm COMMAND --help what one can do."""
SWITCHES = ("--verbose", "--debug")
EVERYWHERE = "Every command takes --verbose and --debug, too: see rcdm --help."


app = typer.Typer(
    name="rcdm",
    help="See in images what a vision encoder's representation keeps of a photo.\n\n"
    "Example: rcdm sample photo.jpg --model cifar10-simclr-wide --out sheet.png",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _each in (
    sampling.sample,
    sampling.encode,
    sampling.interpolate,
    sequence.sequence,
    generate.generate,
    training.train,
    training.pretrain,
    training.train_reader,
    adapt.adapt,
    distill.distill,
    evaluate.evaluate,
    analyze.analyze,
    report.report,
    playground.app,
    export.export,
    compare.compare,
    calibrate.calibrate,
    bench.bench,
    tune.tune,
    encoders.encoders,
    about.models,
    about.info,
):
    app.command(epilog=EVERYWHERE)(_each)

INTERRUPTED = 130
_debug = False


def _show_version(given: bool) -> None:
    if given:
        common.report(f"rcdm_fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also say what runs the model, and why other engines do not.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and debug logs.")] = False,
) -> None:
    global _debug
    _debug, common.verbose = debug, verbose
    if context.invoked_subcommand is None:
        common.report(START)
        return
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    # Images up to images.MAX_PIXELS are welcome; Pillow warns from about half of that.
    warnings.filterwarnings("ignore", message=".*decompression bomb.*")
    for noisy in ("httpx", "filelock", "urllib3", "PIL", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    with terminal.tolerant() as out:
        code = _run(_in_front(given))
        out.flush()
        if out.lost is not None and code == 0:
            print(f"rcdm: done, but not all of it could be shown ({out.lost.strerror})", file=sys.stderr)
            return 1
        return code


def _in_front(given: list[str]) -> list[str]:
    """The same words, those that concern all commands first: they may stand anywhere."""
    end = given.index("--") if "--" in given else len(given)
    switches = [word for word in given[:end] if word in SWITCHES]
    return [*switches, *(word for word in given[:end] if word not in SWITCHES), *given[end:]]


@functools.cache
def _parser() -> Callable[..., object]:
    """All commands as they parse themselves: made once in a process, which takes a tenth of a second."""
    return typer.main.get_command(app)


def _run(given: list[str]) -> int:
    try:
        _parser()(given, standalone_mode=True, prog_name="rcdm")
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
