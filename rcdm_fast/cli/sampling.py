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
from rcdm_fast.diffusion.sampling_config import SHEET_WAYS, SamplingConfig

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
    model: common.ModelName = common.DEFAULT_MODEL,
    per: common.Per = SamplingConfig.per,
    steps: common.Steps = str(SamplingConfig.steps),
    solver: common.SolverName = SamplingConfig.solver,
    eta: common.Eta = SamplingConfig.eta,
    guidance: common.Guidance = SamplingConfig.guidance,
    guide: common.GuideName = None,
    seed: common.Seed = SamplingConfig.seed,
    out: Annotated[Path, common.out("The sheet: photo, what the encoder sees, samples.")] = Path("sheet.png"),
    images: Annotated[Path | None, typer.Option(help="Folder for every sample as a PNG of its own.")] = None,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    batch_size: common.BatchSizeIfAny = None,
    json: common.JsonFile = None,
) -> None:
    """Draw samples of each photo's representation on a sheet.

    Interrupting keeps what is finished. Exit code 3: some items could not be read and were left out.

    Example: rcdm sample cat.jpg dog.jpg --model cifar10-simclr-head --per 8 --out sheet.png
    """
    from rcdm_fast import folders, outputs
    from rcdm_fast.images import save_image, to_pil
    from rcdm_fast.jobs import draw

    shown = outputs.rows_of_sheet(out, 2 + per, MAX_SHEET_ROWS, cell=96)
    common.check_writable(json, None if images is None else images / "00000-000.png")
    common.check_alone(precision, [guide] if guide else [])
    if images is not None:
        for photo in photos:
            folders.check_outside(images, photo, "--images")
    paths = given.expand(photos)
    settings = common.sampling(per, steps, solver, seed, eta, guidance)
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256, quiet=True)
    weaker = common.open_guide(guide, loaded, engine, precision)
    draw.check_request(loaded, settings, weaker)  # before anything is read
    found = given.read(loaded, paths, shown)
    items = [row.place for row in found.rows]
    if len(items) > shown:
        kept = f"those of the others are in {images}" if images is not None else "--images FOLDER keeps those of all"
        common.report(f"{out} shows samples of the first {shown} of {len(items)} items; {kept}")
    request = loaded.request(found.h, settings, items=items, guide=weaker)
    finished: list[Tensor] = []
    interrupted = False
    start = time.perf_counter()
    try:
        for place, batch in loaded.batches(request, batch_size, common.interactive(), guide=weaker):
            finished.extend(batch.cpu())
            if images is not None:
                for index, image in zip(range(place.start, place.stop), batch, strict=True):
                    row = found.rows[index // per]
                    ends = f"{row.place:05d}-", f"-{index % per:03d}.png"
                    name = outputs.file_name(_short(row.name), ends[1], ends[0])
                    save_image(to_pil(image), images / name)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - start
    each = seconds / max(1, len(finished))
    evaluations = request.evaluations * (1 if guidance == 1 else 2)
    if finished:
        sheet = _sheet(loaded, found.rows[:shown], finished, per, loaded.config.name or model)
        outputs.write_image(sheet, out)
        of = _counted(len(found.rows), "photo" if any(row.photo for row in found.rows) else "representation")
        drawn = f"{_counted(len(finished), 'sample')} of {of}, {request.chosen.label}, NFE {evaluations}"
        common.report(f"{out}: {drawn}, by {common.runs(loaded, model)}, in {seconds:.3g} s")
    common.write_json(
        json,
        {
            "model": loaded.config.name or str(model),
            "engine": loaded.engine.describe(),
            "nfe": evaluations,
            "images": len(finished),
            "left_out": len(found.left_out),
            "seconds_per_image": each,
            "solver": request.chosen.label,
            "guidance": guidance,
            "guide": guide,
            "seed": seed,
        },
    )
    if interrupted:
        raise KeyboardInterrupt
    found.finish()


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _short(name: str) -> str:
    """Part of a file's name: a path's own name, without what file systems refuse."""
    return re.sub(r"[^\w.+-]", "_", Path(name).stem)[:60]


def _named(name: str, length: int) -> str:
    """A file's name on a sheet, its middle left out if it is longer."""
    name = Path(name).name
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}..{name[1 - half :]}"


def _sheet(model: Model, rows: list[given.Row], samples: list[Tensor], per: int, title: str) -> Image.Image:
    """Photo, the crop that the encoder sees, and the samples that are finished; rows without any are left out."""
    from PIL import Image

    from rcdm_fast.images import image_sheet, to_pil

    seen = any(row.photo is not None for row in rows)
    cells, names = [], []
    for number, row in enumerate(rows):
        own = samples[number * per : (number + 1) * per]
        if not own:
            break
        before = []
        if row.photo is not None:
            before = [row.photo, to_pil(model.view(row.photo)[0])]
        elif seen:
            before = [Image.new("RGB", (96, 96), "white")] * 2
        cells.append([*before, *(to_pil(image) for image in own)])
        names.append(_named(row.name, 24))
    titles = ["photo", "seen"] if seen else []
    return image_sheet(
        cells, cell=96, column_titles=[*titles, f"samples ({title})"], row_titles=names, group_gaps=[2] if seen else []
    )


def encode(
    photos: Photos,
    model: common.ModelName = common.DEFAULT_MODEL,
    out: Annotated[Path, common.out("Where the representations go: .npy, or .npz or .safetensors with names.")] = Path(
        "representations.npy"
    ),
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
) -> None:
    """Write the representations of photos, float32 [N,D].

    Maps are [N,C,h,w]. They are in the order of the photos. Exit code 3: some could not be read and were left out;
    then NAME.paths.json beside an .npy lists the photos of the rows.

    Example: rcdm encode photos/ --model cifar10-simclr-wide --out h.npy
    """
    import json

    import numpy as np

    from rcdm_fast import doors, maps, storage
    from rcdm_fast.config import ConfigError
    from rcdm_fast.encoders.base import map_shape

    if out.suffix not in (".npy", ".npz", ".safetensors"):
        raise ConfigError(f"{out}: representations are written as .npy, .npz or .safetensors")
    beside = out.with_suffix(".paths.json")
    common.check_writable(out, beside if out.suffix == ".npy" else None)
    paths = given.expand(photos)
    loaded = common.open_model(model, flags, encoder, device, "auto", "auto", sha256, quiet=True)
    found = given.read(loaded, paths)
    h = maps.shaped(found.h, map_shape(loaded.encoder))
    names = [doors.escaped(row.name) for row in found.rows]
    if out.suffix == ".npy":
        try:
            beside.unlink(missing_ok=True)  # a list of before would name other photos
        except OSError as error:
            raise storage.StorageError(f"{beside}: cannot be removed ({error.strerror})") from error
    if out.suffix == ".safetensors":
        storage.save_tensors(out, {"representations": h}, {"paths": json.dumps(names)})
    else:
        with storage.atomic(out) as temporary, open(temporary, "wb") as file:
            if out.suffix == ".npz":
                np.savez(file, representations=h.numpy(), paths=np.array(names))
            else:
                np.save(file, h.numpy())
    if out.suffix == ".npy" and found.left_out:
        storage.write_json(beside, names)
        common.report(f"{beside}: the photos of its rows")
    common.report(f"{out}: {_counted(len(h), 'representation')} of {' x '.join(map(str, h.shape[1:]))} dimensions")
    found.finish()


def interpolate(
    a: Annotated[Path, typer.Argument(help="First photo, or a row of representations: h.npy:0.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Second photo, or a row of representations: h.npy:1.", show_default=False)],
    model: common.ModelName = common.DEFAULT_MODEL,
    frames: Annotated[int, typer.Option(help="Images along the way, both ends included.")] = 8,
    per: common.Per = SHEET_WAYS,
    mode: Annotated[Mode, typer.Option(help="linear or spherical.")] = Mode.linear,
    steps: common.Steps = str(SamplingConfig.steps),
    solver: common.SolverName = SamplingConfig.solver,
    seed: common.Seed = SamplingConfig.seed,
    out: Annotated[Path, common.out("The sheet.")] = Path("interpolation.png"),
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
) -> None:
    """Draw samples on the way from one photo to another.

    Or from one representation to another (h.npy:0 h.npy:5, or by the ids of an .npz: h.npz:cat.jpg).

    Example: rcdm interpolate cat.jpg dog.jpg --model cifar10-simclr-wide --frames 10 --out way.png
    """
    from torch import Tensor

    from rcdm_fast import outputs
    from rcdm_fast.images import ImageError, image_sheet, to_pil

    if outputs.rows_of_sheet(out, frames + 2, per, cell=96) < per:
        raise ImageError(f"{out}: {per} paths of {frames} frames are too much for a sheet in this format")
    (name_a, end_a), (name_b, end_b) = given.end(a), given.end(b)
    settings = common.sampling(per, steps, solver, seed)
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256, quiet=True)
    start = time.perf_counter()
    photos = [each for each in (end_a, end_b) if not isinstance(each, Tensor)]
    encoded = iter(loaded.encode(photos)) if photos else iter(())
    from_h, to_h = (each if isinstance(each, Tensor) else next(encoded) for each in (end_a, end_b))
    images = loaded.interpolate(from_h, to_h, frames, settings, mode=mode.value, progress=common.interactive())
    seconds = time.perf_counter() - start
    first, last = ([] if isinstance(each, Tensor) else [each] for each in (end_a, end_b))
    sheet = [[*first, *(to_pil(image) for image in way), *last] for way in images]
    columns = [_named(name_a, 12), *[""] * (len(sheet[0]) - 2), _named(name_b, 12)]
    gaps = [len(first), frames + len(first)]
    outputs.write_image(image_sheet(sheet, cell=96, column_titles=columns, group_gaps=gaps), out)
    drawn = f"{_counted(per, f'{mode.value} path')} of {frames} frames"
    common.report(f"{out}: {drawn}, by {common.runs(loaded, model)}, in {seconds:.3g} s")
