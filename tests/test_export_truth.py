"""Exports are compared with the model itself: whatever a graph leaves out is found, for every kind of network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rcdm_fast
from rcdm_fast.config import ScheduleConfig
from rcdm_fast.exporters import openvino_int8
from rcdm_fast.exporters.graph import NetworkGraph, example_inputs, input_names, truth, weights_hash
from rcdm_fast.exporters.onnx import ExportError, export_network, run_onnxruntime
from tests import small
from tests.tolerances import FORWARD_L2

pytestmark = pytest.mark.usefixtures("shared_exports")

KINDS: dict[str, dict[str, Any]] = {
    "representation": {},
    "label": {"representation_dim": 0, "num_classes": 3},
    "nothing": {"representation_dim": 0},
}
SCHEDULES = {
    "base": small.SCHEDULE,
    "rescaled": ScheduleConfig(200, variance="learned_range", rescale_timesteps=True),
}


def _model(kind: str, schedule: str = "base", **changes: Any) -> rcdm_fast.Model:
    network = small.network(**KINDS[kind], **changes)
    encoder = small.encoder() if kind == "representation" else None
    return rcdm_fast.Model.from_network(network, SCHEDULES[schedule], encoder)


def _inputs(model: rcdm_fast.Model, count: int = 4) -> tuple[Tensor, ...]:
    return example_inputs(model.config.unet, model.config.schedule, count, torch.Generator().manual_seed(5))


@torch.inference_mode()
def _numbers(model: rcdm_fast.Model, inputs: tuple[Tensor, ...]) -> Tensor:
    """The plain network, asked at what the schedule says that it sees of a timestep."""
    given = dict(zip(input_names(model.config.unet), inputs, strict=True))
    x, t, fraction = (given.pop(name) for name in ("sample", "timestep", "fraction"))
    scale = 1000 / model.config.schedule.diffusion_steps if model.config.schedule.rescale_timesteps else 1
    out: Tensor = model.unet(x, (t.double() + fraction) * scale, **given)
    return out


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_the_model(kind: str, schedule: str) -> None:
    model = _model(kind, schedule)
    inputs = _inputs(model)
    want = _numbers(model, inputs)
    assert _relative(truth(model.unet, model.config.schedule)(*inputs), want) <= FORWARD_L2
    assert _relative(NetworkGraph(model.unet, model.config.schedule)(*inputs), want) <= FORWARD_L2


@pytest.mark.long
@pytest.mark.parametrize("kind", ["label", "nothing"])
def test_files_have_the_numbers_of_the_model(kind: str, tmp_path: Path) -> None:
    """Those of networks with representations are compared in `test_export_onnx.py` and `test_openvino.py`."""
    model = _model(kind, "rescaled")
    inputs = _inputs(model)
    want = _numbers(model, inputs)
    (path,) = rcdm_fast.export(model, "onnx", tmp_path / "onnx", encoder=False)
    feeds = {name: value.numpy() for name, value in zip(input_names(model.config.unet), inputs, strict=True)}
    assert _relative(torch.from_numpy(run_onnxruntime(path)(feeds)), want) <= FORWARD_L2
    pytest.importorskip("openvino", reason="openvino is not installed")
    from rcdm_fast.exporters.openvino import read_model

    _, graph = rcdm_fast.export(model, "openvino", tmp_path / "openvino")
    run = openvino_int8.runner(read_model(graph), input_names(model.config.unet))
    assert _relative(run(*inputs), want) <= FORWARD_L2


class _Forgetful(NetworkGraph):
    """A graph that leaves something out."""

    left_out = ""

    def forward(self, sample: Tensor, timestep: Tensor, fraction: Tensor, condition: Tensor | None = None) -> Tensor:
        network = self.network
        if self.left_out == "fraction":
            fraction = 0 * fraction
        parts = {"time": network.time_embed(self.sinusoids_at(timestep, fraction).to(self.dtype))}
        if network.config.representation_dim:
            assert condition is not None
            parts["condition"] = network.ssl_emb(condition.to(self.dtype))
        elif network.config.num_classes:
            parts["condition"] = network.label_emb(condition)
        if self.left_out in parts:
            parts[self.left_out] = 0 * parts[self.left_out]
        emb = torch.stack(list(parts.values())).sum(dim=0)
        return network.denoise(sample.to(self.dtype), network.film(emb)).float()


FAULTS = [("label", "time"), ("label", "condition"), ("representation", "time"), ("representation", "condition")]
FAULTS += [("nothing", "time"), ("nothing", "fraction")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("kind", "left_out"), FAULTS)
def test_a_graph_that_leaves_something_out_fails_the_check(
    kind: str, left_out: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of ONNX files, with a graph in PyTorch in the runtime's place."""
    model = _model(kind)

    def evaluated(graph: NetworkGraph) -> Any:
        return lambda feeds: graph(*(torch.from_numpy(value) for value in feeds.values())).detach().numpy()

    def check(graph: NetworkGraph) -> None:
        for name in ("run_onnxruntime", "_run_openvino"):
            monkeypatch.setattr(f"rcdm_fast.exporters.onnx.{name}", lambda _: evaluated(graph))
        monkeypatch.setattr("rcdm_fast.exporters.onnx._write", lambda path, *_: path.write_bytes(b""))
        monkeypatch.setattr("rcdm_fast.exporters.onnx.NetworkGraph", _Forgetful)  # in case it is what is compared with
        export_network(tmp_path / "network.onnx", model.unet, model.config, precision)

    graph = _Forgetful(model.unet, model.config.schedule, precision)
    check(graph)
    (tmp_path / "network.onnx").unlink()
    monkeypatch.setattr(_Forgetful, "left_out", left_out)
    with pytest.raises(ExportError, match="the exported numbers differ"):
        check(graph)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        pytest.param("onnx", "fp32", marks=pytest.mark.long(short=False)),
        ("openvino", "fp32"),  # by way of an ONNX file
        pytest.param("openvino", "int8", marks=pytest.mark.long(short=False)),
        pytest.param("tensorrt", "fp16", marks=pytest.mark.long(short=False)),
    ],
)
@pytest.mark.long
def test_a_label_graph_without_its_timestep_is_written_by_no_format(
    form: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"openvino": ["openvino", "nncf"], "tensorrt": ["tensorrt_rtx"], "onnx": []}
    for module in modules[form]:
        pytest.importorskip(module, reason=f"{module} is not installed")
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rcdm_fast.exporters.onnx.NetworkGraph", _Forgetful)
    monkeypatch.setattr(_Forgetful, "left_out", "time")
    with pytest.raises(ExportError, match="the exported numbers differ"):
        rcdm_fast.export(
            _model("label", channel_mult=(1,), attention_resolutions=()),
            form,
            tmp_path / "out",
            precision=precision,
            targets=("sm89",) * (form == "tensorrt"),
        )
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_norms_are_float32_in_reduced_precision(precision: str) -> None:
    network = small.network()
    graph = NetworkGraph(network, small.SCHEDULE, precision)
    seen: list[torch.dtype] = []
    norms = [module for module in graph.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == sum(isinstance(module, nn.GroupNorm) for module in network.modules())
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, given: seen.extend((given[0].dtype, module.weight.dtype)))
    graph(*example_inputs(network.config, small.SCHEDULE, 2))
    assert len(seen) == 2 * len(norms)
    assert set(seen) == {torch.float32}


CHANGES: dict[str, Any] = {
    "image_size": 16, "num_channels": 64, "channel_mult": (1, 1), "num_res_blocks": 2, "attention_resolutions": (8,),
    "num_heads": 2, "num_head_channels": 16, "num_heads_upsample": 2, "use_scale_shift_norm": False,
    "resblock_updown": True, "use_new_attention_order": True, "conv_resample": False, "learn_sigma": False,
    "representation_dim": 7, "condition_map": (small.DIM, 1, 1), "representation_hidden": 5, "num_classes": 3,
    "dropout": 0.1,
    "diffusion_steps": 500, "noise_schedule": "cosine", "prediction": "v", "variance": "fixed_small",
    "rescale_timesteps": True, "clamp_variance": True,
}  # fmt: skip


def test_hashes_tell_every_field_and_every_tensor() -> None:
    network = small.network()
    fields = [item.name for part in (network.config, small.SCHEDULE) for item in dataclasses.fields(part)]
    assert sorted(fields) == sorted(CHANGES)  # a new field belongs into the table above
    hashes = {"": weights_hash(network, small.SCHEDULE)}
    for name in fields:
        schedule, unet = small.SCHEDULE, network.config
        if hasattr(schedule, name):
            schedule = dataclasses.replace(schedule, **{name: CHANGES[name]})
            hashes[name] = weights_hash(network, schedule)
        else:  # the same weights under another configuration: what a structure cannot tell must be told all the same
            other = small.network()
            other.config = dataclasses.replace(unet, **{name: CHANGES[name]})
            hashes[name] = weights_hash(other, schedule)
    for name, tensor in network.state_dict().items():
        kept = tensor.clone()
        tensor.view(-1)[-1] += 1e-3
        hashes[f"weights {name}"] = weights_hash(network, small.SCHEDULE)
        tensor.copy_(kept)
    assert len(set(hashes.values())) == len(hashes)
    assert weights_hash(network, small.SCHEDULE) == hashes[""]
