"""`make demo`: the known world, whose truth is known, and real photographs, as an encoder sees them.

Above, items of the world, and samples of what oracles say of each: all of an item, or all but one thing. What an oracle
leaves out differs from sample to sample; what it keeps does not. Below, photographs, and samples from the backbone of a
small self-supervised encoder, to be read the same way.

Writes out/demo.png; out/followed.png: one item in six hues, and what two encoders make of it; out/sheet.png: what
README's five lines give for two of the photographs; out/of-NAME.png: three samples of each model in README's table;
out/maps.png: samples of a vector and of a feature map of one encoder. The photographs are scikit-image's samples, so
nothing is downloaded.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from PIL import Image
from skimage import data

import rcdm_fast
from rcdm_fast.data.world import World
from rcdm_fast.images import from_uint8, image_sheet, save_image, to_pil

MODEL, DECODER = "cifar10-simclr-wide", "shapes-oracle"
MODELS = ("cifar10-simclr-wide", "cifar10-simclr-trunk", "cifar10-simclr-head", "cifar10-supervised")
PER = 10
STEPS = rcdm_fast.SamplingConfig.steps
CELL, WORLD_CELL = 72, 61  # pixels: both sheets are about as wide
WORLD = World(count=50)
ITEMS = (3, 16, 21, 30, 43)  # every shape, and colors far apart
LEFT_OUT = {
    "all is known": (),
    "not its hue": ("hue",),
    "not the ground's hue": ("ground_hue",),
    "not its shape": ("shape",),
    "not how it is turned": ("angle",),
}
OUT, FOLLOWED, SHEET, MAPS = (Path(f"out/{name}.png") for name in ("demo", "followed", "sheet", "maps"))
HUES = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)  # degrees that the hue of one item is turned by


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
    samples = model.sample(h, per=PER, seed=0)
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
        per = 3 if left_out else 2
        for row, images in zip(rows, model.sample(model.encode(items), per=per, seed=0), strict=True):
            row += [to_pil(image) for image in images]
        gaps.append(len(titles))
        titles += [title, *[""] * (per - 1)]
    return image_sheet(rows, cell=WORLD_CELL, column_titles=titles, group_gaps=gaps)


def followed_sheet() -> Image.Image:
    """One item in six hues, and what is drawn, from one noise, of encoders that keep the hue and that drop it."""
    factors = WORLD.factors([ITEMS[0]] * len(HUES))
    factors[:, WORLD.names.index("hue")] += torch.tensor(HUES, dtype=factors.dtype)
    seen = from_uint8(WORLD.render(factors))
    rows = {"the image": [to_pil(image) for image in seen]}
    for title, left_out in {"keeps hue": (), "drops hue": ("hue",)}.items():
        kept = ",".join(name for name in WORLD.names if name not in left_out)
        model = rcdm_fast.load(DECODER, encoder=f"reader:shapes-reader?factors={kept}&masked=1")
        samples = model.sample(model.encode(seen), per=1, seed=0, items=[0] * len(seen))
        rows[title] = [to_pil(images[0]) for images in samples]
    return image_sheet(list(rows.values()), cell=WORLD_CELL, row_titles=list(rows))


def readme_sheet() -> Image.Image:
    """What `Model.show` gives for two photographs."""
    photos = photographs()
    return rcdm_fast.load(MODEL).show([photos["coffee"], photos["rocket"]], ["coffee.jpg", "rocket.jpg"], per=8, seed=0)


def maps_sheet() -> Image.Image:
    """Samples of the vector and of the feature map that one encoder gives of each photograph."""
    photos = photographs()
    both = [rcdm_fast.load(name) for name in ("cifar10-simclr-trunk", "cifar10-simclr-map")]
    rows = [[photo, to_pil(both[0].view(photo)[0])] for photo in photos.values()]
    for model in both:
        samples = model.sample(model.encode(list(photos.values())), per=4, seed=0)
        for row, images in zip(rows, samples, strict=True):
            row += [to_pil(image) for image in images]
    titles = ["photo", "seen", "of the vector", "", "", "", "of the 8x8 map", "", "", ""]
    return image_sheet(rows, cell=CELL, column_titles=titles, row_titles=list(photos), group_gaps=[2, 6])


def samples_of(name: str) -> Image.Image:
    """Three samples of a photograph, small."""
    model = rcdm_fast.load(name)
    h = model.encode([photographs()["rocket"]])
    return rcdm_fast.sheet(model.sample(h, per=3, seed=0), cell=40)


def main() -> None:
    """Draw both sheets, one below the other, and the others."""
    sheets = [world_sheet(), photo_sheet()]
    whole = Image.new(
        "RGB", (max(sheet.width for sheet in sheets), sum(sheet.height + 16 for sheet in sheets)), "white"
    )
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (whole.width - sheet.width, top))
        top += sheet.height + 16
    few = [(samples_of(name), Path(f"out/of-{name}.png")) for name in MODELS]
    for image, path in (
        (whole, OUT),
        (followed_sheet(), FOLLOWED),
        (readme_sheet(), SHEET),
        (maps_sheet(), MAPS),
        *few,
    ):
        save_image(image, path)
        print(path)


if __name__ == "__main__":
    main()
