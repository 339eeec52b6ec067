"""`make demo`: real photographs, what the encoder sees of them, and samples from its backbone.

Below them the known world: items of it, and samples of what three oracles say of each, which know all of an item, all
but the object's hue, and all but the ground's. What an oracle leaves out differs from sample to sample; what it keeps
does not.

Writes out/demo.png. The photographs are scikit-image's samples, so nothing is downloaded.
"""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image
from skimage import data

import rcdm_fast
from rcdm_fast.data.world import World
from rcdm_fast.images import from_uint8, image_sheet, save_image, to_pil

MODEL, DECODER = "cifar10-simclr-wide", "shapes-oracle"
PER = 10
STEPS = 25
CELL = 72
WORLD = World(count=50)
ITEMS = (3, 16, 21, 30, 43)  # every shape, and colors far apart
LEFT_OUT = {"all is known": (), "all but its hue": ("hue",), "all but the ground's hue": ("ground_hue",)}
OUT = Path("out/demo.png")


def photographs() -> dict[str, Image.Image]:
    """Six photographs that scikit-image installs."""
    arrays = {
        "cat": data.chelsea(),
        "astronaut": data.astronaut(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "Hubble": data.hubble_deep_field(),
        "motorcycle": data.stereo_motorcycle()[0],
    }
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def photo_sheet() -> Image.Image:
    """Photographs, views and samples; says what drew them, and how fast."""
    photos = photographs()
    model = rcdm_fast.load(MODEL)
    h = model.encode(list(photos.values()))
    start = time.perf_counter()
    samples = model.sample(h, per=PER, steps=STEPS, seed=0)
    seconds = (time.perf_counter() - start) / (len(photos) * PER)
    rows = [
        [photo, to_pil(model.view(photo)[0]), *(to_pil(image) for image in images)]
        for photo, images in zip(photos.values(), samples, strict=True)
    ]
    print(model.describe())
    print(f"NFE      {STEPS}, {seconds:.3g} s per image\n")
    titles = ["photo", "seen", "samples from the backbone", *[""] * (PER - 1)]
    return image_sheet(rows, cell=CELL, column_titles=titles, row_titles=list(photos), group_gaps=[2])


def world_sheet() -> Image.Image:
    """Items of the known world, and samples of what each oracle says of them."""
    items = from_uint8(WORLD.pixels(ITEMS))
    rows = [[to_pil(item)] for item in items]
    titles, gaps = ["item"], []
    for title, left_out in LEFT_OUT.items():
        kept = ",".join(name for name in WORLD.names if name not in left_out)
        oracle = f"oracle:shapes?count={WORLD.count}&factors={kept}&masked=1"
        model = rcdm_fast.load(DECODER, encoder=oracle)
        per = 4 if left_out else 3
        for row, images in zip(rows, model.sample(model.encode(items), per=per, steps=STEPS, seed=0), strict=True):
            row += [to_pil(image) for image in images]
        gaps.append(len(titles))
        titles += [title, *[""] * (per - 1)]
    return image_sheet(rows, cell=CELL, column_titles=titles, group_gaps=gaps)


def main() -> None:
    """Draw both sheets, one below the other."""
    sheets = [photo_sheet(), world_sheet()]
    whole = Image.new(
        "RGB", (max(sheet.width for sheet in sheets), sum(sheet.height + 16 for sheet in sheets)), "white"
    )
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (whole.width - sheet.width, top))
        top += sheet.height + 16
    save_image(whole, OUT)
    print(OUT)


if __name__ == "__main__":
    main()
