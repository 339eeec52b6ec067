"""The playground's page, made with Gradio.

It listens on this machine alone unless told otherwise, answers no other names then (`guard.py`), limits uploads and the
length of the queue, keeps uploads where no other user can read them, sends nothing anywhere and loads nothing from
elsewhere. Uploads are decoded by `rcdm_fast.images` alone. Knows nothing about how images are made (`playground.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rcdm_fast import doors
from rcdm_fast.app import guard
from rcdm_fast.app.playground import MAX_COUNT, MAX_STEPS, MAX_STRENGTH, Abandoned, Playground, Settings, magnitudes
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.registry import AUTO, SOLVERS
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.images import ImageError

TITLE = "What a representation keeps"
SHOWN = 128  # pixels of an image on the page
_PLAIN = "none"
_FONTS = ("system-ui", "sans-serif")
_KEPT_S = 3600  # uploads are deleted after this time
Shown = tuple[str, Image.Image, Image.Image | None, list[Image.Image]]  # status, the two images seen, samples


def gradio() -> Any:
    """The gradio module, told to be quiet. Raises `ConfigError` if it is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("the playground needs gradio (pip install 'rcdm_fast[app]')") from error
    return gradio


def build(playground: Playground, queue: int = 8, listeners: guard.Listeners | None = None) -> Any:
    """The page as `gradio.Blocks`; at most `queue` requests wait while one is served.

    With `listeners`, a drawing ends when nobody listens for it any more.
    """
    gr = gradio()
    _folder()
    models = _labels(playground.models)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)) as blocks:
        gr.Markdown(
            f"# {TITLE}\nAll images below the photograph share its representation: what they have in common is in it."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = _upload(gr, label="Photograph", height=220)
                model = gr.Dropdown(list(models), value=next(iter(models)), label="Model and layer")
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop", elem_id="stop")
                count = gr.Slider(1, MAX_COUNT, value=Settings.per, step=1, label="Images")
                with gr.Accordion("Sampling", open=False):
                    steps = gr.Slider(1, MAX_STEPS, value=Settings.steps, step=1, label="Steps")
                    solver = gr.Dropdown([AUTO, *SOLVERS], value=Settings.solver, label="Solver")
                    guidance = gr.Slider(1, 3, value=Settings.guidance, step=0.05, label="Guidance", elem_id="guidance")
                    seed = gr.Number(value=Settings.seed, precision=0, minimum=0, label="Seed")
                with gr.Accordion("Change the photograph", open=False):
                    names = [_PLAIN, *_augmentations()]
                    augmentation = gr.Dropdown(names, value=_PLAIN, label="Augmentation", elem_id="augmentation")
                    magnitude = gr.Slider(0, 1, value=0, label="Magnitude")
                with gr.Accordion("Mix with another", open=False):
                    other = _upload(gr, label="Second photograph", height=180)
                    mix = gr.Slider(0, 1, value=0, label="Share of the second representation")
                with gr.Accordion("Move the representation", open=False, elem_id="move"):
                    named = [_PLAIN, *playground.directions]
                    direction = gr.Dropdown(named, value=_PLAIN, label="Direction", elem_id="direction")
                    strength = gr.Slider(
                        -MAX_STRENGTH, MAX_STRENGTH, value=0, step=0.1, label="Strength", elem_id="strength"
                    )
            with gr.Column(scale=2, min_width=280):
                status = gr.Markdown("Give a photograph and press Draw.", elem_id="status")
                with gr.Row():
                    options = {"height": 170, "interactive": False, "buttons": []}
                    seen = gr.Image(label="As the encoder sees it", elem_id="seen", **options)
                    second = gr.Image(label="The second photograph", **options)
                samples = gr.Gallery(label="Samples", columns=4, height="auto", elem_id="samples")

        def run(request: Any, image: str | None, model: str, *values: Any) -> Iterator[Shown]:
            session, begun = str(request.session_hash), time.monotonic()

            def abandoned() -> bool:
                return listeners is not None and listeners.gone(session, begun)

            yield from _run(gr, playground, abandoned, image, models.get(model, model), *values)

        def halt(request: Any) -> None:
            if listeners is not None:
                listeners.stop(str(request.session_hash))

        run.__annotations__ = halt.__annotations__ = {"request": gr.Request}  # Gradio gives it by its type

        def range_of(name: str) -> Any:
            low, high, neutral = magnitudes("" if name == _PLAIN else name)
            return gr.Slider(low, high, value=neutral, label=_label(name))

        inputs = [image, model, count, steps, solver, seed, augmentation, magnitude, other, mix, direction, strength]
        inputs.append(guidance)
        outputs = [status, seen, second, samples]
        drawing = {"show_progress": "hidden", "concurrency_id": "draw"}
        events = [draw.click(run, inputs, outputs, concurrency_limit=1, **drawing)]
        events += [
            each.release(run, inputs, outputs, trigger_mode="always_last", **drawing)
            for each in (magnitude, mix, strength)
        ]
        stop.click(None, cancels=events, queue=False)
        stop.click(halt, queue=False)
        augmentation.change(range_of, augmentation, magnitude, queue=False)
    blocks.queue(max_size=queue, default_concurrency_limit=1)
    return blocks


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


def _upload(gr: Any, **options: Any) -> Any:
    """A place for a photograph that hands on the path of what was uploaded.

    Gradio would decode it, with every format that Pillow knows, fetch addresses, and open files of this machine that
    a request names without saying that they are files.
    """
    photo = gr.Image(type="filepath", sources=["upload", "clipboard"], **options)
    folder = Path(photo.GRADIO_CACHE).resolve()
    move = photo.async_move_resource_to_block_cache

    def path_of(payload: Any) -> str | None:
        if payload is None:
            return None
        path = Path(payload.path or "").resolve() if not (payload.url or "").startswith("data:") else folder
        if folder not in path.parents:
            raise gr.Error("give a photograph as an upload", print_exception=False)
        return str(path)

    async def moved(given: Any) -> Any:
        if not isinstance(given, str | os.PathLike) or "://" in str(given):
            raise gr.Error("give a photograph as an upload", print_exception=False)
        return await move(given)

    photo.preprocess, photo.async_move_resource_to_block_cache = path_of, moved
    return photo


def _labels(models: Sequence[str]) -> dict[str, str]:
    """What the page calls the models: files by their name without the folders of this machine."""
    found: dict[str, str] = {}
    for model in models:
        name = label = Path(model).name if Path(model).is_absolute() or model.startswith(("~", ".")) else model
        while label in found:
            label = f"{name} ({sum(each.startswith(name) for each in found) + 1})"
        found[label] = model
    return found


def _augmentations() -> list[str]:
    from rcdm_fast.analysis.augment import AUGMENTATIONS

    return list(AUGMENTATIONS)


def _label(name: str) -> str:
    from rcdm_fast.analysis.augment import AUGMENTATIONS

    return "Magnitude" if name == _PLAIN else f"Magnitude ({AUGMENTATIONS[name].about})"


def _run(
    gr: Any,
    playground: Playground,
    abandoned: Callable[[], bool],
    image: str | None,
    model: str,
    count: float,
    steps: float,
    solver: str,
    seed: float | None,
    augmentation: str,
    magnitude: float,
    other: str | None,
    mix: float,
    direction: str,
    strength: float,
    guidance: float,
) -> Iterator[Shown]:
    """The handler: values of the page in its order; see `Shown`."""
    changed, towards = ("" if name == _PLAIN else name for name in (augmentation, direction))
    try:
        settings = Settings(
            model=model,
            per=int(count),
            steps=int(steps),
            solver=solver,
            guidance=guidance,
            seed=int(seed or 0),
            augmentation=changed,
            magnitude=magnitude,
            mix=mix,
            direction=towards,
            strength=strength,
        )
        for drawn in playground.draw(settings, image, other, abandoned=abandoned):
            done = f"{len(drawn.samples)} of {drawn.wanted} images"
            if guidance != 1:
                done += f", guidance {drawn.guidance:g}"
            if drawn.guidance != guidance:
                done += " (the model was not trained for it)"
            first, *rest = (_large(each) for each in drawn.seen)
            yield done, first, rest[0] if rest else None, [_large(each) for each in drawn.samples]
    except Abandoned:
        return
    except (ConfigError, ImageError, SamplingError, OSError) as error:
        raise gr.Error(_message(error, playground), print_exception=False) from error


def _message(error: Exception, playground: Playground) -> str:
    """What an error says, without the folders of this machine."""
    text = doors.said(error)
    names = {source: label for label, source in _labels(playground.models).items()}
    if playground.data is not None:
        names[playground.data] = Path(playground.data).name
    for source, label in names.items():
        text = text.replace(source, label)
    return re.sub(r"(?<![\w.~:/])~?/(?:[^\s/:'\"]+/)+", "", text)


def _large(image: Image.Image) -> Image.Image:
    """Small images enlarged so that their pixels stay pixels."""
    factor = max(1, SHOWN // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
