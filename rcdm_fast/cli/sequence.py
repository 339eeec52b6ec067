"""`rcdm sequence`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import ONE_WAY, SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor


def sequence(
    representations: Annotated[
        list[Path],
        typer.Argument(help="Files of sequences (.npy): [T,D] is one, [S,T,D] are several.", show_default=False),
    ],
    model: common.ModelName = common.DEFAULT_MODEL,
    out: Annotated[
        Path, common.out("A strip (.png and other images), an animation (.gif) or a film (.mp4; needs ffmpeg).")
    ] = Path("sequence.gif"),
    fps: Annotated[int, typer.Option(help="Frames a second, of an animation or film.")] = 8,
    per: common.Per = ONE_WAY,
    steps: common.Steps = str(SamplingConfig.steps),
    solver: common.SolverName = SamplingConfig.solver,
    seed: common.Seed = SamplingConfig.seed,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
) -> None:
    """Draw representations that follow each other in time.

    World models and video encoders give such. All frames of a sequence start from one x_T, so that what moves is what
    moves in them.

    Example: rcdm sequence h.npy --model runs/h/h.safetensors --out film.gif
    """
    import torch

    from rcdm_fast import films
    from rcdm_fast.config import ConfigError

    found = [(name, each) for file in representations for name, each in _read(file)]
    settings = common.sampling(per, steps, solver, seed)
    longest = max(len(each) for _, each in found)
    films.check(out, (len(found), per, longest), fps)
    if any(len(each) < longest for _, each in found):
        counts = ", ".join(f"{name}: {len(each)}" for name, each in found)
        raise ConfigError(f"sequences beside each other have equally many frames ({counts})")
    if len({each.shape[1] for _, each in found}) > 1:
        raise ConfigError("the sequences have representations of different widths")
    loaded = common.open_model(model, None, None, device, engine, precision, sha256, quiet=True)
    start = time.perf_counter()
    images = loaded.sequence(torch.stack([each for _, each in found]), settings, progress=common.interactive())
    names = tuple(name for name, _ in found) if len(found) > 1 else ()
    films.write(images.cpu(), out, names=names, fps=fps)
    seconds = time.perf_counter() - start
    drawn = f"{len(found)} {'sequence' if len(found) == 1 else 'sequences'} of {longest} frames"
    common.report(f"{out}: {drawn}, by {common.runs(loaded, model)}, in {seconds:.3g} s")


def _read(file: Path) -> list[tuple[str, Tensor]]:
    """The sequences [T,D] of a file, with names. Raises `ConfigError`, `StorageError`."""
    import numpy as np
    import torch

    from rcdm_fast.config import ConfigError
    from rcdm_fast.data.readers import arrays
    from rcdm_fast.storage import StorageError

    wanted = f"{file}: expected sequences of representations, float [T,D] or [S,T,D] in an .npy file"
    if file.suffix.lower() != ".npy":
        raise ConfigError(wanted)
    rows = arrays.read(file, StorageError).get("")
    if rows is None or rows.ndim not in (2, 3) or rows.dtype.kind != "f" or not all(rows.shape):
        raise ConfigError(wanted if rows is None else f"{wanted}; this is {rows.dtype} {list(rows.shape)}")
    with np.errstate(over="ignore"):
        h = torch.from_numpy(np.stack(list(rows)).astype(np.float32))
    if not bool(h.isfinite().all()):
        raise ConfigError(f"{file}: contains NaN, infinity, or numbers beyond float32's range")
    if h.ndim == 2:
        return [(file.stem, h)]
    return [(f"{file.stem}-{number}", each) for number, each in enumerate(h)]
