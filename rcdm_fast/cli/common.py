"""Options that several commands share, and how commands report numbers and progress."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from rcdm_fast.data.image_set import ImageSet
    from rcdm_fast.diffusion.sampling_config import SamplingConfig
    from rcdm_fast.model import Model

DEFAULT_MODEL = "cifar10-simclr-wide"  # of every command that takes its inputs first
_MODEL = "Bundled or published name, file, folder or hub id."
_IMAGES = (
    "folder of images (sub-folders are classes), .npy, .npz, shards ({000..099}.tar), hf:NAME?split=train, "
    "or world:shapes"
)


def data(purpose: str) -> Any:
    """The option that names a set of images; what is said of it begins with the purpose."""
    return typer.Option("--data", help=f"{purpose}: {_IMAGES}.")


def out(what: str) -> Any:
    """The option that says where the result goes."""
    return typer.Option("--out", "-o", help=what)


def usual(kind: Any) -> Any:
    """An option as another command has it, without which the experiment's own default counts."""
    option = copy.copy(kind.__metadata__[0])
    option.help = f"{option.help} Default: the experiment's."
    return option


ModelName = Annotated[str, typer.Option("--model", "-m", help=_MODEL)]
ModelArgument = Annotated[str, typer.Argument(help=_MODEL, show_default=False)]
Against = Annotated[
    list[str] | None, typer.Option("--against", help="Another model, for experiments that compare; repeatable.")
]
AgainstEncoder = Annotated[
    list[str] | None,
    typer.Option(
        "--against-encoder",
        help="Other encoder of the --against in the same place, '' for its own; repeatable.",
    ),
]
TrainData = Annotated[
    str | None,
    typer.Option(
        "--train-data", help=f"What the model was trained on, to look for copies (the data is not that): {_IMAGES}."
    ),
]
Photograph = Annotated[
    str | None,
    typer.Option(
        "--photograph",
        help="Regular expression: images of the data in whose paths it finds the same text were cut from one "
        "photograph. They count as one source, and a probe is fitted on all of them or on none.",
    ),
]
Flags = Annotated[Path | None, typer.Option(help="JSON file of published flags, for a .pt file.")]
EncoderSpec = Annotated[
    str | None, typer.Option("--encoder", help="Other encoder, such as timm:resnet50?layer=layer3.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        "--trust-repo",
        help="Run the code that comes with the encoder (torchhub:, python:); the run remembers it.",
    ),
]
Representations = Annotated[
    Path | None,
    typer.Option(
        "--representations",
        help="Representations of --data computed elsewhere (.npy, .npz, .safetensors, a table), instead of an encoder: "
        "by ids where there are some, else in the images' order.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1... Default: CUDA if there is one.")]
EngineName = Annotated[str, typer.Option("--engine", help="What runs the network.")]
Precision = Annotated[
    str,
    typer.Option(
        help="fp32, bf16, fp16, auto; or, with a file of rcdm export, int8=FILE (for --engine openvino) or fp8=FILE "
        "(on a CPU with --engine eager)."
    ),
]
Per = Annotated[int, typer.Option("--per", help="Samples of each representation.")]
Steps = Annotated[
    str,
    typer.Option(
        help="Network evaluations: 10; uniform10, quadratic10, logsnr10, karras10; at:0,250,999; or a published text "
        "such as ddim25 or 10,10,5."
    ),
]
SolverName = Annotated[
    str,
    typer.Option(
        "--solver",
        help="auto: the model's own for so many evaluations where it has one (fitted, see rcdm tune; student, see rcdm "
        "distill), else deis, but ddim for an eta, one or two steps, published texts. Or fitted, student, ddim, "
        "ancestral, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, unipc_2, unipc_3, unipc_2_bh1, unipc_3_bh1, deis, ipndm or heun.",
    ),
]
Eta = Annotated[float, typer.Option(help="DDIM's fraction of fresh noise, 0 to 1.")]
Guidance = Annotated[float, typer.Option(help="Strength of guidance, for models trained for it; 1: none.")]
GuideName = Annotated[
    str | None,
    typer.Option("--guide", help="Guide by this weaker model of the same kind, not away from no representation."),
]
Seed = Annotated[int, typer.Option(help="Seed of all noise.")]
_BATCH_SIZE = typer.Option("--batch-size", help="Images per network evaluation.")
BatchSize = Annotated[int, _BATCH_SIZE]
BatchSizeIfAny = Annotated[int | None, _BATCH_SIZE]
Sha256 = Annotated[
    str | None, typer.Option("--sha256", help="Digest that the model's file must have, such as that of a download.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")]

verbose = False  # whether a command says all that it knows; set by `--verbose`, anew in every run


def open_model(
    name: str,
    flags: Path | None,
    encoder: str | None,
    device: str | None,
    engine: str,
    precision: str,
    sha256: str | None = None,
    quiet: bool = False,
) -> Model:
    """Load the model that the options name, and say in a line what runs, unless the command does so at its end."""
    import rcdm_fast

    model = rcdm_fast.load(name, flags, encoder, device, engine, precision, sha256=sha256)
    if verbose:
        report(model.describe())
    elif not quiet:
        report(runs(model, name))
    return model


def with_encoders(models: Sequence[str], encoders: Sequence[str], option: str) -> list[tuple[str, str | None]]:
    """Each model with the other encoder in the same place, if there is one.

    Args:
        models: names, in the order in which they were given.
        encoders: specifications; "" stands for the model's own.
        option: which gives models.

    Raises:
        ConfigError: more encoders than models.
    """
    from rcdm_fast.config import ConfigError

    if len(encoders) > len(models):
        raise ConfigError(f"{len(encoders)} encoders for {len(models)} models: each {option} has at most one")
    return [(name, spec.strip() or None) for name, spec in itertools.zip_longest(models, encoders, fillvalue="")]


def open_others(
    pairs: Sequence[tuple[str, str | None]], device: str | None, engine: str, precision: str
) -> tuple[Model, ...]:
    """The models of `with_encoders`, for experiments that compare."""
    import rcdm_fast

    return tuple(rcdm_fast.load(name, None, spec, device, engine, precision) for name, spec in pairs)


def check_alone(precision: str, others: Sequence[str]) -> None:
    """Raise `ConfigError` if a precision names a file, which is that of one model, and others shall run in it."""
    from rcdm_fast.config import ConfigError

    name, _, file = precision.partition("=")
    if file and others:
        raise ConfigError(
            f"{file} is calibrated for one model, so {', '.join(others)} cannot run in --precision {name}; "
            "give one that needs no file"
        )


def runs(model: Model, name: str) -> str:
    """Model, engine, precision and device; for a line of text."""
    return f"{model.config.name or name}, {model.engine.name} {model.engine.precision} on {model.device}"


def open_guide(name: str | None, model: Model, engine: str, precision: str) -> Model | None:
    """The model that guides another, on its device, by the engine that the options name; None without a name.

    Raises:
        ConfigError: it is the model itself.
    """
    import torch

    import rcdm_fast
    from rcdm_fast.config import ConfigError

    if name is None:
        return None
    guide = rcdm_fast.load(name, None, None, str(model.device), engine, precision)
    ours, theirs = model.unet.state_dict(), guide.unet.state_dict()
    if ours.keys() == theirs.keys() and all(torch.equal(ours[each], theirs[each]) for each in ours):
        raise ConfigError(f"--guide {name}: these are the model's own weights; a guide is a weaker model")
    return guide


def sampling(
    per: int, steps: str, solver: str, seed: int, eta: float | None = None, guidance: float | None = None
) -> SamplingConfig:
    """How the options say that samples are drawn. Raises `ConfigError`."""
    from rcdm_fast.diffusion.sampling_config import SamplingConfig

    given: dict[str, Any] = {"per": per, "steps": whole_number(steps), "solver": solver, "seed": seed}
    given |= {name: value for name, value in (("eta", eta), ("guidance", guidance)) if value is not None}
    return SamplingConfig(**given)


def whole_number(given: str | None) -> Any:
    """A number of steps where the text is one, as `Model.sample` takes it."""
    return int(given) if given is not None and given.isdecimal() else given


def check_one(encoder: str | None, representations: Path | None) -> None:
    """Raise `ConfigError` if both are given."""
    from rcdm_fast.config import ConfigError

    if encoder is not None and representations is not None:
        raise ConfigError("--representations stand in place of an --encoder: give one of them")


def aligned(representations: Path | None, images: ImageSet) -> Tensor | None:
    """The representations that the option names, one for each image. Raises `ConfigError`, `StorageError`."""
    from rcdm_fast.data import aligned as reader

    return None if representations is None else reader.read(representations, images)


def report(text: str) -> None:
    """One message to the user, on standard output."""
    print(text, flush=True)


def interactive() -> bool:
    """Whether progress bars make sense."""
    return sys.stderr is not None and sys.stderr.isatty()


def write_json(path: Path | None, data: Any) -> None:
    """Write numbers to a file, if the user named one; if that cannot be written after all, they are kept elsewhere.

    What is not finite is null, as the ends of an interval that there is none of.
    """
    if path is None:
        return
    from rcdm_fast import outputs, storage

    plain = dataclasses.asdict(data) if dataclasses.is_dataclass(data) and not isinstance(data, type) else data
    finite = json.loads(json.dumps(plain, default=str), parse_constant=lambda _: None)
    outputs.keep(path, lambda file: storage.write_json(file, finite))


def check_writable(*files: Path | None) -> None:
    """Find out now, not after the work, that one of the files cannot be written. Raises `StorageError`."""
    from rcdm_fast import storage

    for file in files:
        if file is not None:
            storage.check_writable(file)


def bar(total: int, unit: str) -> Any:
    """A tqdm bar on a terminal for work of more than two seconds: how many, how fast, what is left."""
    from tqdm import tqdm

    from rcdm_fast.diffusion.sampling import BAR, BAR_AFTER_S

    shape = BAR.replace(" images", f" {unit}")
    return tqdm(
        total=total, disable=not interactive(), unit=f" {unit}", leave=False, delay=BAR_AFTER_S, bar_format=shape
    )


@contextlib.contextmanager
def parts() -> Iterator[Callable[[int, int], None]]:
    """A bar for work that says how many of its parts are done; yields what it is told by."""
    with bar(0, "parts") as shown:

        def told(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield told


class ProgressBar:
    """A progress bar on a terminal; a line in ten on anything else, of a fraction where what is counted has no name."""

    def __init__(self, total: int, fraction: bool = False) -> None:
        self.total, self.fraction = total, fraction

    def __enter__(self) -> Callable[[int, int, float], None]:
        from tqdm import tqdm

        self._tenths = 0
        self._bar = tqdm(total=self.total, disable=not interactive())
        return self._show

    def _show(self, done: int, total: int, loss: float) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if loss:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if self._bar.disable and done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            counted = f"{100 * done // total} % done" if self.fraction else f"{done} of {total}"
            report(counted + (f", loss {loss:.4f}" if loss else ""))

    def __exit__(self, *_: object) -> None:
        self._bar.close()
