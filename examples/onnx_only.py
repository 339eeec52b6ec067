"""Samples from a photograph without torch: numpy, Pillow and onnxruntime run what `rcdm export --to onnx` wrote.

    rcdm export cifar10-simclr-trunk --to onnx --out exported
    python examples/onnx_only.py PHOTO exported OUT.png --steps 50 --count 8 --seed 0

The ONNX files say everything about themselves in their metadata. The image written shows the photograph as the
encoder sees it, then the samples; they are those of `rcdm sample --solver ddim --steps 50`, up to rounding.

Knows nothing about rcdm_fast: this file may be copied anywhere.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

Floats = NDArray[np.float32]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow starts programs for some others
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "box_bicubic": Image.Resampling.BICUBIC,
}


def open_session(path: Path) -> Any:
    """An ONNX file, ready to run on the CPU."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def metadata(session: Any, key: str) -> Any:
    """A JSON entry that the export left in a file."""
    return json.loads(session.get_modelmeta().custom_metadata_map[f"rcdm_fast.{key}"])


def open_photo(path: Path) -> Image.Image:
    """An image as RGB: turned as its EXIF entry says, transparency over white."""
    photo = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
    if "A" in photo.getbands() or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    return photo.convert("RGB")


def view(photo: Image.Image, convention: dict[str, Any]) -> Image.Image:
    """What the encoder sees of a photo: resized and cropped as its convention says."""
    size, target = convention["image_size"], convention["resize_to"] or convention["image_size"]
    rounding = convention.get("rounding", "nearest")
    if photo.size == (size, size) and rounding == "nearest":
        return photo
    if convention["resize"] == "squash":
        wanted = (target, target)
    elif rounding == "nearest":
        scale = target / min(photo.size)
        wanted = (round(photo.width * scale), round(photo.height * scale))
    elif photo.width <= photo.height:
        wanted = (target, int(target * photo.height / photo.width))
    else:
        wanted = (int(target * photo.width / photo.height), target)
    if convention["interpolation"] == "box_bicubic":
        while min(photo.size) >= 2 * min(wanted):
            photo = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BOX)
    box: list[float] = []  # the part of the photo that is cut out; resized whole, a strip would take gigabytes
    for side, resized in zip(photo.size, wanted, strict=True):
        first = round((resized - size) / 2) if rounding == "torchvision" else (resized - size) // 2
        box += [side * first / resized, min(side, side * (first + size) / resized)]
    return photo.resize((size, size), FILTERS[convention["interpolation"]], box=(box[0], box[2], box[1], box[3]))


def to_array(image: Image.Image) -> Floats:
    """RGB -> float32 [1,3,H,W] in [-1,1]."""
    array = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(array)


def to_image(array: Floats) -> Image.Image:
    """float32 [3,H,W] in [-1,1] -> RGB."""
    return Image.fromarray(np.rint((array + 1) * 127.5).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def alpha_bars(schedule: dict[str, Any]) -> NDArray[np.float64]:
    """alpha_bar at every base timestep; float64 [T]."""
    steps = schedule["diffusion_steps"]
    if schedule["noise_schedule"] == "linear":
        betas = np.linspace(0.1 / steps, 20 / steps, steps)
    else:
        curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    return np.cumprod(1 - betas)


def spread(base: int, count: int) -> list[int]:
    """`count` timesteps from 0 to base - 1, both included, evenly spread; one is the last."""
    if count == 1:
        return [base - 1]
    gap = (base - 1) / (count - 1)
    steps, position = [], 0.0
    for _ in range(count):
        steps.append(round(position))
        position += gap
    return steps


def keyed_noise(seed: int, sample: int, count: int) -> Floats:
    """The normals that rcdm_fast starts sample number `sample` of its first image from; float32 [count]."""
    counter, key = np.array([0, 0, sample, 0], dtype=np.uint64), np.array([seed, 0], dtype=np.uint64)
    raw = np.random.Philox(counter=counter, key=key).random_raw(2 * (-(-count // 2)))
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(1 - uniform[0::2])), 2 * np.pi * uniform[1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].astype(np.float32)


def ddim(session: Any, schedule: dict[str, Any], h: Floats, x: Floats, steps: int) -> Floats:
    """DDIM without fresh noise, every estimate of the image clipped.

    Args:
        session: the network.
        schedule: from its metadata.
        h: representations [N,D].
        x: x_T, float32 [N,3,H,W].
        steps: network evaluations.

    Returns:
        Images, float32 [N,3,H,W] in [-1,1].
    """
    kept = spread(schedule["diffusion_steps"], steps)
    alpha_bar = alpha_bars(schedule)[kept]
    before = np.append(1.0, alpha_bar[:-1])
    for k in reversed(range(steps)):
        timestep, fraction = np.full(len(x), kept[k], dtype=np.int64), np.zeros(len(x), dtype=np.float32)
        feeds = {"sample": x, "timestep": timestep, "fraction": fraction, "representation": h}
        output = session.run(None, feeds)[0][:, :3]  # a learned variance, which DDIM does not use, comes after it
        signal, noise = math.sqrt(alpha_bar[k]), math.sqrt(1 - alpha_bar[k])
        if schedule["prediction"] == "v":
            x0 = signal * x - noise * output
        else:
            x0 = output if schedule["prediction"] == "x0" else (x - noise * output) / signal
        x0 = x0.clip(-1, 1)
        eps = (x - signal * x0) / noise
        x = math.sqrt(before[k]) * x0 + math.sqrt(1 - before[k]) * eps
    return x


def main() -> None:
    """Encode, sample, lay out."""
    parser = argparse.ArgumentParser(description="Samples from a photograph, without torch.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("export_dir", type=Path, help="written by `rcdm export MODEL --to onnx --out EXPORT_DIR`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    encoder, network = (open_session(options.export_dir / f"{name}.onnx") for name in ("encoder", "network"))
    seen = view(open_photo(options.photo), metadata(encoder, "encoder"))
    h = encoder.run(None, {"image": to_array(seen)})[0].repeat(options.count, axis=0)

    config = metadata(network, "config")
    size = config["unet"]["image_size"]
    x = np.stack([keyed_noise(options.seed, sample, 3 * size * size) for sample in range(options.count)])
    images = ddim(network, config["schedule"], h, x.reshape(-1, 3, size, size), options.steps)

    cell = 96 if size < 96 else size
    sheet = Image.new("RGB", ((cell + 2) * (options.count + 1), cell), "white")
    for column, image in enumerate([seen, *map(to_image, images)]):
        sheet.paste(image.resize((cell, cell), Image.Resampling.NEAREST), (column * (cell + 2), 0))
    sheet.save(options.out)
    print(f"{options.out}: {options.count} samples of {config['name']}, {options.steps} steps")


if __name__ == "__main__":
    main()
