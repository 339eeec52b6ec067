"""`make demo`: real photographs, what the encoder sees of them, and samples from its backbone.

Writes out/demo.png. The photographs are scikit-image's samples, so nothing is downloaded.
"""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image
from skimage import data

import rcdm_fast
from rcdm_fast.images import image_sheet, save_image, to_pil

MODEL = "cifar10-simclr-wide"
PER = 10
STEPS = 25
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


def main() -> None:
    """Sample, time and lay out."""
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
    sheet = image_sheet(rows, cell=72, column_titles=titles, row_titles=list(photos), group_gaps=[2])
    save_image(sheet, OUT)
    print(OUT)


if __name__ == "__main__":
    main()
