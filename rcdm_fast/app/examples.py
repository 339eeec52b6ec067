"""Images to begin with: three photographs that scikit-image installs, where it is there, and one of the known world.

The photographs are in the public domain (the astronaut, by NASA) or given away under CC0 (the cat, the cup of coffee).
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import io

from PIL import Image

from rcdm_fast.data.world import World
from rcdm_fast.images import from_uint8, to_pil

PHOTOGRAPHS = {"Cat": "chelsea", "Astronaut": "astronaut", "Coffee": "coffee"}
WORLD = "Known world"
SIDE = 320  # pixels at most
_THUMB = 96
_ITEM = 3  # of the world: an object in a color far from its ground's


@functools.cache
def images() -> dict[str, Image.Image]:
    """The images by name, the known world's last and, without scikit-image, alone."""
    found = {}
    if importlib.util.find_spec("skimage") is not None:
        from skimage import data

        found = {name: Image.fromarray(getattr(data, of)()) for name, of in PHOTOGRAPHS.items()}
    for each in found.values():
        each.thumbnail((SIDE, SIDE))
    return {**found, WORLD: to_pil(from_uint8(World(count=_ITEM + 1, size=128).pixels([_ITEM])[0]))}


def style() -> str:
    """CSS that puts a small picture on each button "example-NUMBER"."""
    rules = []
    for number, image in enumerate(images().values()):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        small, buffer = image.crop((left, top, left + side, top + side)).resize((_THUMB, _THUMB)), io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        rules.append(f"#example-{number} {{ background-image: url(data:image/jpeg;base64,{data}); }}")
    return "\n".join(rules)
