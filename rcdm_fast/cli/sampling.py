"""`rcdm sample`, `rcdm encode` and `rcdm interpolate`."""

from __future__ import annotations

import enum
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.cli import common
from rcdm_fast.cli import photos as given

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from rcdm_fast.model import Model

Photos = Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.", show_default=False)]
Items = Annotated[
    list[Path],
    typer.Argument(
        help="Photographs, folders of them, or representations (.npy, .npz, .safetensors).", show_default=False
    ),
]
MAX_SHEET_ROWS = 200


class Mode(enum.Enum):
    """Kinds of way between two representations."""

    linear = "linear"
    spherical = "spherical"


def sample(
    photos: Items,
    model: common.ModelName = "cifar10-simclr-wide",
    per: Annotated[int, typer.Option(help="Samples of each photo.")] = 8,
    steps: common.Steps = "50",
    solver: common.SolverName = "auto",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    guidance: Annotated[float, typer.Option(help="Strength of guidance, for models trained for it; 1: none.")] = 1.0,
    guide: common.GuideName = None,
    seed: common.Seed = 0,
    out: Annotated[Path, typer.Option(help="The sheet: photo, what the encoder sees, samples.")] = Path("sheet.png"),
    pictures: Annotated[Path | None, typer.Option(help="Folder for every sample as a PNG of its own.")] = None,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Pictures per network evaluation.")] = None,
    json: common.JsonFile = None,
) -> None:
    """Draw pictures from each photo's representation and put them on a sheet.

    Interrupting keeps what is finished. Exit code 3: some items could not be read and were left out.

    Example: rcdm sample cat.jpg dog.jpg --model cifar10-simclr-head --per 8 --out sheet.png
    """
    from rcdm_fast import images, outputs
    from rcdm_fast.jobs import draw
    from rcdm_fast.jobs.settings import JobConfig

    shown = outputs.rows_of_sheet(out, 2 + per, MAX_SHEET_ROWS, cell=96)
    common.check_writable(json, None if pictures is None else pictures / "00000-000.png")
    paths = given.expand(photos)
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
    settings = JobConfig(per, common.whole_number(steps), solver, eta, guidance, seed)  # type: ignore[arg-type]
    weaker = common.open_guide(guide, loaded, engine, precision)
    draw.check_request(loaded, settings, weaker)  # before anything is read
    found = given.read(loaded, paths, shown)
    items = [row.place for row in found.rows]
    request = loaded.request(
        found.h,
        items=items,
        per=per,
        steps=settings.steps,
        solver=solver,
        eta=eta,
        guidance=guidance,
        guide=weaker,
        seed=seed,
    )
    finished: list[Tensor] = []
    interrupted = False
    start = time.perf_counter()
    try:
        for place, batch in loaded.batches(request, batch_size, common.interactive(), guide=weaker):
            finished.extend(batch.cpu())
            if pictures is not None:
                for index, picture in zip(range(place.start, place.stop), batch, strict=True):
                    row = found.rows[index // per]
                    ends = f"{row.place:05d}-", f"-{index % per:03d}.png"
                    name = outputs.file_name(_short(row.name), ends[1], ends[0])
                    images.save(images.to_pil(picture), pictures / name)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - start
    if finished:
        sheet = _sheet(loaded, found.rows[:shown], finished, per, loaded.config.name or model)
        outputs.save_picture(sheet, out)
        what = "photos" if any(row.photo for row in found.rows) else "representations"
        common.say(f"{out}: {len(finished)} pictures of {len(found.rows)} {what}")
    each = seconds / max(1, len(finished))
    evaluations = request.evaluations * (1 if guidance == 1 else 2)
    common.say(f"{request.chosen.label}, NFE {evaluations}, {each:.3g} s per picture")
    common.write_json(
        json,
        {
            "model": loaded.config.name or str(model),
            "engine": loaded.engine.describe(),
            "nfe": evaluations,
            "pictures": len(finished),
            "left_out": len(found.left_out),
            "seconds_per_picture": each,
            "solver": request.chosen.label,
            "guidance": guidance,
            "guide": guide,
            "seed": seed,
        },
    )
    if interrupted:
        raise KeyboardInterrupt
    found.finish()


def _short(name: str) -> str:
    """Part of a file's name: a path's own name, without what file systems refuse."""
    return re.sub(r"[^\w.+-]", "_", Path(name).stem)[:60]


def _sheet(model: Model, rows: list[given.Row], samples: list[Tensor], per: int, title: str) -> Image.Image:
    """Photo, the crop that the encoder sees, and the samples that are finished; rows without any are left out."""
    from PIL import Image

    from rcdm_fast import images

    seen = any(row.photo is not None for row in rows)
    cells, names = [], []
    for number, row in enumerate(rows):
        own = samples[number * per : (number + 1) * per]
        if not own:
            break
        before = []
        if row.photo is not None:
            before = [row.photo, images.to_pil(model.view(row.photo)[0])]
        elif seen:
            before = [Image.new("RGB", (96, 96), "white")] * 2
        cells.append([*before, *(images.to_pil(picture) for picture in own)])
        names.append("" if seen else _short(row.name))
    titles = ["photo", "seen"] if seen else []
    return images.sheet(
        cells, cell=96, column_titles=[*titles, f"samples ({title})"], row_titles=names, group_gaps=[2] if seen else []
    )


def encode(
    photos: Photos,
    model: common.ModelName = "cifar10-simclr-wide",
    out: Annotated[
        Path, typer.Option(help="Where the representations go: .npy, or .npz or .safetensors with names.")
    ] = Path("representations.npy"),
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
) -> None:
    """Write the representations of photos, float32 [N,D], in the order of the photos.

    Exit code 3: some could not be read and were left out; then NAME.paths.json beside an .npy lists the photos of the
    rows.

    Example: rcdm encode photos/ --model cifar10-simclr-wide --out h.npy
    """
    import json

    import numpy as np

    from rcdm_fast import doors, storage
    from rcdm_fast.config import ConfigError

    if out.suffix not in (".npy", ".npz", ".safetensors"):
        raise ConfigError(f"{out}: representations are written as .npy, .npz or .safetensors")
    beside = out.with_suffix(".paths.json")
    common.check_writable(out, beside if out.suffix == ".npy" else None)
    paths = given.expand(photos)
    loaded = common.open_model(model, flags, encoder, device, "auto", "auto", sha256)
    found = given.read(loaded, paths)
    h, names = found.h, [doors.escaped(row.name) for row in found.rows]
    if out.suffix == ".safetensors":
        storage.save_tensors(out, {"representations": h}, {"paths": json.dumps(names)})
    else:
        with storage.atomic(out) as temporary, open(temporary, "wb") as file:
            if out.suffix == ".npz":
                np.savez(file, representations=h.numpy(), paths=np.array(names))
            else:
                np.save(file, h.numpy())
    if found.left_out and out.suffix == ".npy":
        storage.write_json(beside, names)
        common.say(f"{beside}: the photos of its rows")
    common.say(f"{out}: {len(h)} representations of {h.shape[1]} numbers")
    found.finish()


def interpolate(
    a: Annotated[Path, typer.Argument(help="First photo.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Second photo.", show_default=False)],
    model: common.ModelName = "cifar10-simclr-wide",
    frames: Annotated[int, typer.Option(help="Pictures along the way, both ends included.")] = 8,
    per: Annotated[int, typer.Option(help="Ways, each from its own noise.")] = 4,
    mode: Annotated[Mode, typer.Option(help="linear or spherical.")] = Mode.linear,
    steps: common.Steps = "50",
    seed: common.Seed = 0,
    out: Annotated[Path, typer.Option(help="The sheet.")] = Path("interpolation.png"),
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
) -> None:
    """Draw pictures along the way from one photo's representation to another's.

    Example: rcdm interpolate cat.jpg dog.jpg --model cifar10-simclr-wide --frames 10 --out way.png
    """
    from rcdm_fast import images, outputs

    if outputs.rows_of_sheet(out, frames + 2, per, cell=96) < per:
        raise images.ImageError(f"{out}: {per} ways of {frames} pictures are too much for a sheet in this format")
    opened = [images.open_image(a), images.open_image(b)]
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
    h = loaded.encode(opened)
    nfe, bar = common.whole_number(steps), common.interactive()
    pictures = loaded.interpolate(h[0], h[1], frames, per=per, mode=mode.value, steps=nfe, seed=seed, progress=bar)
    sheet = [[opened[0], *(images.to_pil(picture) for picture in way), opened[1]] for way in pictures]
    outputs.save_picture(images.sheet(sheet, cell=96, column_titles=["A"], group_gaps=[1, frames + 1]), out)
    common.say(f"{out}: {per} ways of {frames} pictures, {mode.value}")
