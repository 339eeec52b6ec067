"""The playground's page, made with Gradio.

It listens on this machine alone unless told otherwise, answers no other names then (`guard.py`), limits uploads and the
length of the queue, keeps uploads where no other user can read them, sends nothing anywhere and loads nothing from
elsewhere. Uploads are decoded by `rcdm_fast.images` alone. What it consists of is in `parts.py`, how it looks in
`looks.py`, what a press on "Draw" means in `handler.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from rcdm_fast.app import examples, guard, known_world, parts, sharing
from rcdm_fast.app.handler import ERRORS, PLAIN, Given, Handler, Shown
from rcdm_fast.app.looks import ABOUT, DRAW, FROM_LINK, OPENED, SPOKEN, STYLE, TITLE, TO_LINK
from rcdm_fast.app.playground import Abandoned, Playground, magnitudes
from rcdm_fast.config import ConfigError
from rcdm_fast.errors import install

_FONTS = ("system-ui", "sans-serif")
_KEPT_S = 3600  # uploads are deleted after this time
_OUTPUTS = (
    "status",
    "samples",
    "beside samples",
    "seen",
    "second",
    "files",
    "sheet",
    "representation",
    "share",
    "code",
)
_OPENED = (
    "status", "shared", "image", "model", "beside", "per", "steps", "solver", "seed", "guidance", "augmentation",
    "magnitude", "mix", "direction", "strength", "left_out",
)  # fmt: skip


def gradio() -> Any:
    """The gradio module, told to be quiet. Raises `ConfigError` if it is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"the playground needs gradio ({install('app')})") from error
    return gradio


def build(playground: Playground, queue: int = 8, listeners: guard.Listeners | None = None) -> Any:
    """The page as `gradio.Blocks`; at most `queue` requests wait while one is served.

    With `listeners`, a drawing ends when nobody listens for it any more.
    """
    gr = gradio()
    _folder()
    handler = Handler(playground)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)) as blocks:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="give", min_width=280):
                page = parts.giving(gr, list(handler.models))
            with gr.Column(elem_id="drawn", min_width=280):
                page |= parts.drawn(gr)
            with gr.Column(elem_id="more", min_width=280):
                page |= parts.settings(gr, handler)
        page["shared"], page["code"] = gr.Textbox(visible=False), gr.Textbox(visible=False)
        _connect_drawing(gr, handler, page, listeners)
        _connect_choices(gr, handler, page)
        _connect_sharing(gr, handler, page, blocks)
    blocks.queue(max_size=queue, default_concurrency_limit=1)
    return blocks


def _connect_drawing(gr: Any, handler: Handler, page: dict[str, Any], listeners: guard.Listeners | None) -> None:
    """Draw, Stop, and sliders that draw again when they are let go."""

    def run(request: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        session, begun = str(request.session_hash), time.monotonic()

        def abandoned() -> bool:
            return listeners is not None and listeners.gone(session, begun)

        with _told(gr, handler):
            for shown in handler.draw(Given(*values), abandoned):
                yield _updates(gr, shown)

    def halt(request: Any) -> None:
        if listeners is not None:
            listeners.stop(str(request.session_hash))

    run.__annotations__ = halt.__annotations__ = {"request": gr.Request}  # Gradio gives it by its type
    inputs, outputs = [page[name] for name in Given._fields], [page[name] for name in _OUTPUTS]
    drawing = {"show_progress": "hidden", "concurrency_id": "draw"}
    events = [page["draw"].click(run, inputs, outputs, concurrency_limit=1, api_name="run", **drawing)]
    events += [
        page[each].release(run, inputs, outputs, trigger_mode="always_last", **drawing)
        for each in ("magnitude", "mix", "strength")
    ]
    page["stop"].click(None, cancels=events, queue=False)
    page["stop"].click(halt, queue=False, api_name="halt")


def _connect_choices(gr: Any, handler: Handler, page: dict[str, Any]) -> None:
    """What of the page depends on what was chosen."""
    world = next((name for name, source in handler.models.items() if source == known_world.DECODER), None)

    def range_of(name: str) -> Any:
        low, high, neutral = magnitudes("" if name == PLAIN else name)
        return gr.Slider(low, high, value=neutral, label=parts.magnitude_of(name))

    def chosen(model: str) -> tuple[Any, Any]:
        return gr.Accordion(visible=model == world), gr.skip() if model == world else []

    def example(name: str, model: str) -> tuple[Any, ...]:
        """The image and no shared drawing; images of the known world go to its model, photographs to another."""
        others = [each for each in handler.models if each != world]
        if name == examples.WORLD and world is not None:
            model = world
        elif name != examples.WORLD and model == world and others:
            model = others[0]
        return examples.images()[name], None, model

    page["augmentation"].change(range_of, page["augmentation"], page["magnitude"], queue=False)
    page["model"].change(chosen, page["model"], [page["world"], page["left_out"]], queue=False)
    page["image"].upload(lambda: None, None, page["shared"], queue=False)
    for button, name in zip(page["examples"], examples.images(), strict=True):
        taken = [page["image"], page["shared"], page["model"]]
        button.click(functools.partial(example, name), page["model"], taken, queue=False)


def _connect_sharing(gr: Any, handler: Handler, page: dict[str, Any], blocks: Any) -> None:
    """Shared drawings come as a file or in the page's address, and leave so."""

    def opened(text: str) -> tuple[Any, ...]:
        if not text:
            return tuple(gr.skip() for _ in _OPENED)
        found, model, beside = handler.opened(text)
        how = (found.per, found.steps, found.solver, found.seed, found.guidance)
        return (OPENED, text, None, model, beside, *how, PLAIN, 0, 0, PLAIN, 0, [])

    def of_file(file: str | None) -> tuple[Any, ...]:
        with _told(gr, handler):
            return opened("" if file is None else sharing.of_file(file))

    def of_link(code: str) -> tuple[Any, ...]:
        with _told(gr, handler):
            return opened(sharing.of_link(code) if code else "")

    filled = [page[name] for name in _OPENED]
    from_file = page["file"].upload(of_file, page["file"], filled, queue=False)
    from_link = blocks.load(of_link, page["code"], filled, queue=False, js=FROM_LINK)
    for event in (from_file, from_link):
        event.success(None, page["shared"], None, queue=False, js=DRAW)
    page["link"].click(None, page["code"], page["status"], queue=False, js=TO_LINK)


def _updates(gr: Any, shown: Shown) -> tuple[Any, ...]:
    """The values of `_OUTPUTS`; what has nothing to show is hidden."""
    (name, samples), *others = shown.samples.items()
    beside = gr.Gallery(visible=False, value=[])
    if others:
        beside = gr.Gallery(visible=True, label=f"Samples: {others[0][0]}", value=others[0][1])
    seen = [gr.Image(value=image, visible=True) for image in shown.seen] + [gr.Image(visible=False, value=None)] * 2
    of = shown.files
    return (
        shown.status,
        gr.Gallery(label=f"Samples: {name}", value=samples),
        beside,
        *seen[:2],
        gr.Row(visible=of is not None),
        *((None,) * 4 if of is None else of),
    )


@contextlib.contextmanager
def _told(gr: Any, handler: Handler) -> Iterator[None]:
    """What goes wrong inside becomes a sentence on the page; a drawing that nobody waits for just ends."""
    try:
        yield
    except Abandoned:
        return
    except ERRORS as error:
        raise gr.Error(handler.sentence(error), print_exception=False) from error


def launch(
    playground: Playground,
    *,
    host: str,
    port: int,
    queue: int,
    upload_mib: int,
    quota_mib: int = 1024,
    allow_hosts: Sequence[str] = (),
    wait: bool = True,
) -> tuple[Any, str]:
    """Serve the page; returns (blocks, address) once it answers, or when it is stopped if `wait`.

    Args:
        playground: what draws.
        host, port: where to listen.
        queue: requests that may wait.
        upload_mib: size of one upload.
        quota_mib: size of all uploads and drawings that are kept, in a folder that only this user can read and that
            goes with the page.
        allow_hosts: names, beside this machine's, by which it may be reached where it listens on this machine alone
            (behind a proxy); elsewhere any name may be used unless some are given.
        wait: return only when it is stopped.
    """
    gr = gradio()
    hosts = (*guard.THIS_MACHINE, host.strip("[]"), *allow_hosts) if guard.is_loopback(host) or allow_hosts else None
    listeners = guard.Listeners()
    folder = _folder()

    @contextlib.asynccontextmanager
    async def guarded(app: Any) -> AsyncIterator[None]:
        # Around all of Gradio's own middleware, which otherwise answers strangers before anything else is asked.
        app.middleware_stack = guard.Guard(app.middleware_stack, hosts, folder, quota_mib << 20, listeners)
        yield

    blocks = build(playground, queue, listeners)
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=f"{upload_mib}mb",
        prevent_thread_lock=True,
        show_error=False,  # what is not said on purpose may name files of this machine
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace")),
        css=f"{STYLE}{examples.style()}",
        js=SPOKEN,
        app_kwargs={"lifespan": guarded},
    )
    if wait:
        blocks.block_thread()
    return blocks, str(address)


@functools.cache
def _folder() -> Path:
    """Where Gradio keeps uploads and drawings: a folder for this process, open to this user alone, gone with it.

    Gradio asks the environment for it at every request, so it is set as long as the process lasts.
    """
    name = "GRADIO_TEMP_DIR"
    folder = tempfile.mkdtemp(prefix="rcdm-app-", dir=os.environ.get(name))  # made with mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[name] = folder
    return Path(folder)
