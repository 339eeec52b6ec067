"""ONNX files of the network: written, checked against the model itself, and read back with what they say of themselves.

A file gets its name only after its numbers were compared with the model's (`graph.truth`) on random inputs. Above 2 GB
the weights lie in a second file beside it (``NAME.onnx.data``), because one protobuf cannot hold them.

GroupNorm is exported for opset 20, as Reshape and InstanceNormalization, which every runtime takes; the
GroupNormalization of opset 21 is rejected, or computed wrongly, by some.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rcdm_fast import config as configs
from rcdm_fast.config import ModelConfig
from rcdm_fast.doors import printable, regular
from rcdm_fast.errors import RcdmError, install
from rcdm_fast.exporters.graph import GRAPH, OUTPUT, NetworkGraph, example_inputs, input_names, truth, weights_hash
from rcdm_fast.exporters.openvino_core import core
from rcdm_fast.models.unet import UNet
from rcdm_fast.storage import StorageError

OPSET = 20
LARGEST_BYTES = 2_000_000_000  # of weights inside the .onnx file
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}  # relative L2 error against PyTorch in fp32
CHECKED_BATCHES = (1, 3)
PREFIX = "rcdm_fast."
GRAPHS = tuple(str(version) for version in range(1, GRAPH + 1))


class ExportError(RcdmError, RuntimeError):
    """An export that failed or whose numbers are wrong; nothing was left at its path."""


class GraphError(RcdmError, ValueError):
    """A file that is no export of the model it is to be used for; the message says what differs."""


@dataclass(frozen=True)
class GraphInfo:
    """What a file says about itself.

    Attributes:
        version: of rcdm_fast.
        precision: "fp32", "fp16" or "bf16".
        weights: `weights_hash` of the model.
        config: network, schedule and encoder.
        graph: version of the graph's inputs (`graph.GRAPH`); 1 is of files that do not say.
    """

    version: str
    precision: str
    weights: str
    config: ModelConfig
    graph: int = GRAPH

    def as_metadata(self) -> dict[str, str]:
        """As the file's metadata has it."""
        return {
            f"{PREFIX}version": self.version,
            f"{PREFIX}precision": self.precision,
            f"{PREFIX}weights": self.weights,
            f"{PREFIX}config": configs.to_json(self.config),
            f"{PREFIX}graph": str(self.graph),
        }

    @staticmethod
    def from_metadata(found: Mapping[str, str], where: str) -> GraphInfo:
        """The same from a file's metadata.

        Raises:
            GraphError: something is missing or unreadable.
        """
        try:
            version, precision, weights, text = (
                found[PREFIX + key] for key in ("version", "precision", "weights", "config")
            )
            graph = found.get(f"{PREFIX}graph", "1")
            if graph not in GRAPHS:
                raise GraphError(f"{where}: its graph is of version {printable(graph)}, known: {', '.join(GRAPHS)}")
            return GraphInfo(version, precision, weights, configs.from_json(ModelConfig, text, where), int(graph))
        except KeyError as error:
            raise GraphError(f"{where}: not exported by rcdm_fast (its metadata lacks {error.args[0]})") from error
        except configs.ConfigError as error:
            raise GraphError(f"{where}: its metadata is not understood ({error})") from error


def graph_info(network: UNet, config: ModelConfig, precision: str) -> GraphInfo:
    """What an export of a network says about itself."""
    version = importlib.metadata.version("rcdm_fast")
    return GraphInfo(version, precision, weights_hash(network, config.schedule), config)


def check_belongs(info: GraphInfo, network: UNet, config: ModelConfig, where: str) -> None:
    """Whether a file is an export of this model.

    Raises:
        GraphError: it is another model's, or was made by another version of rcdm_fast.
    """
    if info.config.unet != config.unet:
        raise GraphError(f"{where}: exported from a network of another structure")
    if info.weights != weights_hash(network, config.schedule):
        raise GraphError(f"{where}: exported from other weights (sha256 {printable(info.weights[:12])}); export again")
    version = importlib.metadata.version("rcdm_fast")
    if info.version != version:
        raise GraphError(f"{where}: exported by rcdm_fast {printable(info.version)}, this is {version}; export again")


def check_precision(info: GraphInfo, *able: str, asked: str, where: str) -> None:
    """Whether a file was exported in one of these precisions, as it takes to be run in the one that is asked for.

    A runtime computes in what the file has, whatever it is asked for.

    Raises:
        GraphError: it was exported in another one.
    """
    if info.precision not in able:
        raise GraphError(f"{where}: exported in {printable(info.precision)}, asked for is {asked}")


def missing_packages() -> list[str]:
    """Packages that writing ONNX needs and that are not installed."""
    return [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


def export_network(
    path: str | os.PathLike[str], network: UNet, config: ModelConfig, precision: str = "fp32", *, check: bool = True
) -> Path:
    """Write the network as ONNX, with a dynamic batch, after comparing it with PyTorch.

    Inputs: ``sample`` float32 [N,3,H,W], ``timestep`` int64 [N] (base timesteps 0..T-1), ``fraction`` float32 [N] in
    [0,1] (what the timestep has beyond the whole one), and ``representation`` float32 [N,D] or ``label`` int64 [N],
    where the network has one. Output: ``eps`` float32 [N,3 or 6,H,W].

    Args:
        path: of the ``.onnx`` file.
        network: on any device; not changed.
        config: its configuration; goes into the metadata with the version and a hash of the weights.
        precision: of weights and arithmetic: "fp32", "fp16" or "bf16". Norms, inputs and output stay float32.
        check: False leaves out the comparison, for a caller that makes its own.

    Returns:
        `path`.

    Raises:
        ExportError: packages are missing, or the exported numbers differ by more than `TOLERANCE`.
        StorageError: the file cannot be written.
    """
    if check and precision == "bf16":
        _need_openvino()
    graph = NetworkGraph(network, config.schedule, precision)
    names = input_names(config.unet)
    examples = example_inputs(config.unet, config.schedule, 2, torch.Generator().manual_seed(0))
    metadata = graph_info(network, config, precision).as_metadata()
    with written(Path(path), graph, examples, names, OUTPUT, metadata) as temporary:
        if check:
            _check(temporary, network, config, precision)
    return Path(path)


@contextlib.contextmanager
def written(
    target: Path,
    module: nn.Module,
    examples: tuple[Tensor, ...],
    names: tuple[str, ...],
    output: str,
    metadata: Mapping[str, str],
) -> Iterator[Path]:
    """Export a module with a dynamic batch, yield the temporary file for checks, then give it its name."""
    missing = missing_packages()
    if missing:
        raise ExportError(f"not installed: {', '.join(missing)} ({install('onnx')})")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as folder:
            temporary = Path(folder) / target.name
            _write(temporary, module, examples, names, output, metadata)
            yield temporary
            for file in sorted(Path(folder).iterdir(), reverse=True):  # weights before the graph that needs them
                os.replace(file, target.parent / file.name)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror or error})") from error


def _write(
    path: Path,
    module: nn.Module,
    examples: tuple[Tensor, ...],
    names: tuple[str, ...],
    output: str,
    metadata: Mapping[str, str],
) -> None:
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            examples,
            input_names=list(names),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in examples),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    program.save(str(path), external_data=size > LARGEST_BYTES)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs its progress as warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check(path: Path, network: UNet, config: ModelConfig, precision: str) -> None:
    model = truth(network, config.schedule)
    names = input_names(config.unet)
    run = _run_openvino(path) if precision == "bf16" else run_onnxruntime(path)
    for batch in CHECKED_BATCHES:
        inputs = example_inputs(config.unet, config.schedule, batch, torch.Generator().manual_seed(batch))
        got = run({name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        check_close(got, model(*inputs), TOLERANCE[precision], f"{path.name}, batch {batch}")


def check_close(got: np.ndarray[Any, Any], want: Tensor, tolerance: float, what: str) -> None:
    """Compare with the truth by relative L2 error.

    Raises:
        ExportError: the error is larger than `tolerance`, or a number is not finite.
    """
    given = torch.from_numpy(np.asarray(got)).double()
    if given.shape != want.shape:
        raise ExportError(f"{what}: the export gives {list(given.shape)}, PyTorch {list(want.shape)}")
    error = float((given - want.double()).norm() / want.double().norm().clamp_min(1e-30))
    if not error <= tolerance:
        raise ExportError(f"{what}: the exported numbers differ by {error:.1e} (relative L2), allowed {tolerance:.0e}")


def run_onnxruntime(path: Path) -> Any:
    """A function that evaluates a file with onnxruntime on the CPU: {name: array} -> array."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def _need_openvino() -> None:
    if importlib.util.find_spec("openvino") is None:
        raise ExportError("a bf16 file is checked with openvino, which is not installed (pip install openvino)")


def _run_openvino(path: Path) -> Any:
    """The same with OpenVINO: onnxruntime has no bf16 convolution on the CPU."""
    compiled = core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: compiled(feeds)[0]


def read_info(path: str | os.PathLike[str]) -> GraphInfo:
    """What an ONNX file says about itself.

    Raises:
        GraphError: no readable ONNX file, or none of rcdm_fast's.
    """
    import onnx

    try:
        regular(path)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own error classes, OSError
        raise GraphError(f"{path}: no readable ONNX file ({' '.join(str(error).split())[:200]})") from error
    return GraphInfo.from_metadata({entry.key: entry.value for entry in model.metadata_props}, str(path))
