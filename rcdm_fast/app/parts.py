"""What the playground's page consists of, column by column, and uploads that nothing but this package reads.

Knows nothing about what happens when something is pressed (`page.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rcdm_fast.analysis.augment import AUGMENTATIONS
from rcdm_fast.app import examples, known_world
from rcdm_fast.app.handler import PLAIN, Handler
from rcdm_fast.app.looks import BEGIN, KNOWN_WORLD, OPEN, SHARED
from rcdm_fast.app.playground import MAX_COUNT, MAX_STEPS, MAX_STRENGTH, Settings
from rcdm_fast.diffusion.registry import AUTO, SOLVERS

_FILES = {"sheet": "Sheet (.png)", "representation": "h (.npy)", "share": "To share (.json)"}
_PHOTO = {"type": "filepath", "format": "png", "sources": ["upload", "clipboard"]}
_SEEN = {"height": 174, "interactive": False, "buttons": [], "visible": False, "min_width": 140}
_GALLERY = {
    "columns": 4,
    "fit_columns": False,
    "height": "auto",
    "object_fit": "contain",
    "format": "png",
    "buttons": [],
}
_REFUSED = "Give a file as an upload."


def giving(gr: Any, models: list[str]) -> dict[str, Any]:
    """Photograph, examples, model, and the buttons."""
    found = {"image": upload(gr, gr.Image, **_PHOTO, label="Photograph", height=200, elem_id="photo")}
    with gr.Row(elem_id="examples"):
        found["examples"] = [
            gr.Button(name, elem_id=f"example-{number}", min_width=64) for number, name in enumerate(examples.images())
        ]
    found["model"] = gr.Dropdown(models, value=models[0], label="Model and layer", elem_id="model")
    with gr.Row():
        found["draw"] = gr.Button("Draw", variant="primary", elem_id="draw", min_width=80)
        found["stop"] = gr.Button("Stop", elem_id="stop", min_width=80)
    return found


def drawn(gr: Any) -> dict[str, Any]:
    """What a drawing fills."""
    found: dict[str, Any] = {"status": gr.Markdown(BEGIN, elem_id="status")}
    with gr.Row(elem_id="both"):
        found["samples"] = gr.Gallery(label="Samples", elem_id="samples", **_GALLERY)
        found["beside samples"] = gr.Gallery(label="Samples", elem_id="beside-samples", visible=False, **_GALLERY)
    with gr.Row(elem_id="views"):
        found["seen"] = gr.Image(label="As the encoder sees it", elem_id="seen", **_SEEN)
        found["second"] = gr.Image(label="The second photograph", elem_id="second", **_SEEN)
    with gr.Row(elem_id="files", visible=False) as found["files"]:
        for of, name in _FILES.items():
            found[of] = gr.DownloadButton(name, size="sm", elem_id=of, min_width=150)
        found["link"] = gr.Button("Copy a link", size="sm", elem_id="link", min_width=150)
    return found


def settings(gr: Any, handler: Handler) -> dict[str, Any]:
    """Everything else that a drawing depends on."""
    found: dict[str, Any] = {}
    world = next(iter(handler.models.values())) == known_world.DECODER
    with gr.Accordion("The known world", elem_id="world", visible=world) as found["world"]:
        gr.Markdown(KNOWN_WORLD)
        names = [(name.replace("_", " "), name) for name in known_world.NAMES]
        found["left_out"] = gr.CheckboxGroup(names, label="Left out of the representation", elem_id="left-out")
    found["per"] = gr.Slider(1, MAX_COUNT, value=Settings.per, step=1, label="Images", elem_id="count")
    choices = [PLAIN, *handler.models]
    found["beside"] = gr.Dropdown(choices, value=PLAIN, label="Model beside it", elem_id="beside")
    with gr.Accordion("Sampling", open=False):
        found["steps"] = gr.Slider(1, MAX_STEPS, value=Settings.steps, step=1, label="Steps", elem_id="steps")
        found["solver"] = gr.Dropdown([AUTO, *SOLVERS], value=Settings.solver, label="Solver")
        guidance = {"value": Settings.guidance, "step": 0.05, "label": "Guidance", "elem_id": "guidance"}
        found["guidance"] = gr.Slider(1, 3, **guidance)
        found["seed"] = gr.Number(value=Settings.seed, precision=0, minimum=0, label="Seed", elem_id="seed")
    with gr.Accordion("Change the photograph", open=False):
        changes = [PLAIN, *AUGMENTATIONS]
        found["augmentation"] = gr.Dropdown(changes, value=PLAIN, label="Augmentation", elem_id="augmentation")
        found["magnitude"] = gr.Slider(0, 1, value=0, label="Magnitude")
    with gr.Accordion("Mix with a second photograph", open=False, elem_id="mix"):
        found["other"] = upload(gr, gr.Image, **_PHOTO, label="Second photograph", height=180, elem_id="other")
        found["mix"] = gr.Slider(0, 1, value=0, label="Share of the second representation")
    with gr.Accordion("Move the representation", open=False, elem_id="move"):
        named = [PLAIN, *handler.playground.directions]
        found["direction"] = gr.Dropdown(named, value=PLAIN, label="Direction", elem_id="direction")
        strength = {"value": 0, "step": 0.1, "label": "Strength", "elem_id": "strength"}
        found["strength"] = gr.Slider(-MAX_STRENGTH, MAX_STRENGTH, **strength)
    with gr.Accordion(OPEN, open=False, elem_id="open"):
        gr.Markdown(SHARED)
        found["file"] = upload(gr, gr.File, type="filepath", height=120, label="Shared drawing", elem_id="shared")
    return found


def magnitude_of(augmentation: str) -> str:
    """The label of an augmentation's slider."""
    return "Magnitude" if augmentation == PLAIN else f"Magnitude ({AUGMENTATIONS[augmentation].about})"


def upload(gr: Any, kind: Any, **options: Any) -> Any:
    """A place for a file that hands on the path of what was uploaded.

    Gradio would decode a photograph, with every format that Pillow knows, fetch addresses, and open files of this
    machine that a request names without saying that they are files.

    Args:
        gr: the module.
        kind: a component of it.
        options: of the component.
    """
    place = kind(**options)
    folder = Path(place.GRADIO_CACHE).resolve()
    move = place.async_move_resource_to_block_cache

    def path_of(payload: Any) -> str | None:
        if payload is None:
            return None
        path = Path(payload.path or "").resolve() if not (payload.url or "").startswith("data:") else folder
        if folder not in path.parents:
            raise gr.Error(_REFUSED, print_exception=False)
        return str(path)

    async def moved(given: Any) -> Any:
        if not isinstance(given, str | os.PathLike) or "://" in str(given):
            raise gr.Error(_REFUSED, print_exception=False)
        return await move(given)

    place.preprocess, place.async_move_resource_to_block_cache = path_of, moved
    return place
