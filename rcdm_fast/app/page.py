"""The playground's page, made with Gradio.

It listens on this machine alone unless told otherwise, limits the size of uploads and the length of the queue, sends
nothing anywhere and loads nothing from elsewhere. Knows nothing about how pictures are made (`playground.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from PIL import Image

from rcdm_fast import images
from rcdm_fast.app.playground import MAX_COUNT, MAX_STEPS, MAX_STRENGTH, Playground, Settings, magnitudes
from rcdm_fast.config import ConfigError
from rcdm_fast.sampling import SamplingError
from rcdm_fast.solvers import SOLVERS

TITLE = "What a representation keeps"
SHOWN = 128  # pixels of a picture on the page
_PLAIN = "none"
_FONTS = ("system-ui", "sans-serif")
_KEPT_S = 3600  # uploads are deleted after this time
Shown = tuple[str, Image.Image, Image.Image | None, list[Image.Image]]  # status, the two pictures seen, samples


def gradio() -> Any:
    """The gradio module, told to be quiet. Raises `ConfigError` if it is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("the playground needs gradio (pip install 'rcdm_fast[app]')") from error
    return gradio


def build(playground: Playground, queue: int = 8) -> Any:
    """The page as `gradio.Blocks`; at most `queue` requests wait while one is served."""
    gr = gradio()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)) as blocks:
        gr.Markdown(
            f"# {TITLE}\nAll pictures below the photograph share its representation: what they have in common is in it."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(label="Photograph", type="pil", sources=["upload", "clipboard"], height=220)
                model = gr.Dropdown(list(playground.models), value=playground.models[0], label="Model and layer")
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop", elem_id="stop")
                count = gr.Slider(1, MAX_COUNT, value=8, step=1, label="Pictures")
                with gr.Accordion("Sampling", open=False):
                    steps = gr.Slider(1, MAX_STEPS, value=25, step=1, label="Steps")
                    solver = gr.Dropdown(list(SOLVERS), value="ddim", label="Solver")
                    seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
                with gr.Accordion("Change the photograph", open=False):
                    names = [_PLAIN, *_augmentations()]
                    augmentation = gr.Dropdown(names, value=_PLAIN, label="Augmentation", elem_id="augmentation")
                    magnitude = gr.Slider(0, 1, value=0, label="Magnitude")
                with gr.Accordion("Mix with another", open=False):
                    other = gr.Image(label="Second photograph", type="pil", sources=["upload", "clipboard"], height=180)
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

        def run(*values: Any) -> Iterator[Shown]:
            yield from _run(gr, playground, *values)

        def range_of(name: str) -> Any:
            low, high, neutral = magnitudes("" if name == _PLAIN else name)
            return gr.Slider(low, high, value=neutral, label=_label(name))

        inputs = [picture, model, count, steps, solver, seed, augmentation, magnitude, other, mix, direction, strength]
        outputs = [status, seen, second, samples]
        drawing = {"show_progress": "hidden", "concurrency_id": "draw"}
        events = [draw.click(run, inputs, outputs, concurrency_limit=1, **drawing)]
        events += [
            each.release(run, inputs, outputs, trigger_mode="always_last", **drawing)
            for each in (magnitude, mix, strength)
        ]
        stop.click(None, cancels=events, queue=False)
        augmentation.change(range_of, augmentation, magnitude, queue=False)
    blocks.queue(max_size=queue, default_concurrency_limit=1)
    return blocks


def launch(
    playground: Playground, *, host: str, port: int, queue: int, upload_mib: int, wait: bool = True
) -> tuple[Any, str]:
    """Serve the page; returns (blocks, address) once it answers, or when it is stopped if `wait`."""
    gr = gradio()
    blocks = build(playground, queue)
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=f"{upload_mib}mb",
        prevent_thread_lock=not wait,
        show_error=True,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace")),
    )
    return blocks, str(address)


def _augmentations() -> list[str]:
    from rcdm_fast.analysis.augment import AUGMENTATIONS

    return list(AUGMENTATIONS)


def _label(name: str) -> str:
    from rcdm_fast.analysis.augment import AUGMENTATIONS

    return "Magnitude" if name == _PLAIN else f"Magnitude ({AUGMENTATIONS[name].about})"


def _run(
    gr: Any,
    playground: Playground,
    picture: Image.Image | None,
    model: str,
    count: float,
    steps: float,
    solver: str,
    seed: float | None,
    augmentation: str,
    magnitude: float,
    other: Image.Image | None,
    mix: float,
    direction: str,
    strength: float,
) -> Iterator[Shown]:
    """The handler: values of the page in its order; see `Shown`."""
    changed, towards = ("" if name == _PLAIN else name for name in (augmentation, direction))
    try:
        settings = Settings(
            model, int(steps), solver, int(seed or 0), int(count), changed, magnitude, mix, towards, strength
        )
        for drawn in playground.draw(settings, picture, other):
            done = f"{len(drawn.samples)} of {drawn.wanted} pictures"
            first, *rest = (_large(each) for each in drawn.seen)
            yield done, first, rest[0] if rest else None, [_large(each) for each in drawn.samples]
    except (ConfigError, images.ImageError, SamplingError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _large(picture: Image.Image) -> Image.Image:
    """Small pictures enlarged so that their pixels stay pixels."""
    factor = max(1, SHOWN // picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
