"""Exports of networks of maps: the numbers of the plain network in ONNX files and in the runtimes that run them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import rcdm_fast
from rcdm_fast import engines
from rcdm_fast.exporters import plan_file
from rcdm_fast.exporters.graph import truth
from rcdm_fast.exporters.onnx import run_onnxruntime
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from tests import small
from tests.test_maps import network
from tests.tolerances import FORWARD_L2, TRAJECTORY_L2

pytestmark = pytest.mark.usefixtures("shared_exports")

SHAPE = (5, 3, 3)


@pytest.mark.long
def test_exports_have_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = network(SHAPE, channel_mult=(1,), attention_resolutions=())
    model = Model.from_network(unet, small.SCHEDULE)
    (path,) = rcdm_fast.export(model, "onnx", tmp_path / "exported", encoder=False)
    run = run_onnxruntime(path)
    for count in (1, 3):
        images, times = torch.randn(count, 3, 8, 8), torch.randint(0, 999, (count,))
        given = (images, times, torch.rand(count), torch.randn(count, 45))
        names = ("sample", "timestep", "fraction", "representation")
        got = torch.from_numpy(run({name: value.numpy() for name, value in zip(names, given, strict=True)}))
        want = truth(model.unet, model.config.schedule)(*given)
        assert float((got - want).norm() / want.norm()) <= FORWARD_L2
    if importlib.util.find_spec("tensorrt_rtx") is not None:  # built; a GPU runs it
        file, _ = rcdm_fast.export(model, "tensorrt", tmp_path / "plan", targets=("sm89",), batches=(2,), encoder=False)
        assert plan_file.read_header(file).config == model.config
    checkpoint.save_model(tmp_path / "m.safetensors", model.config, model.unet.state_dict())
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    h = torch.randn(2, *SHAPE)
    want = model.sample(h, per=1, steps=3)
    for engine in ("onnxruntime", "openvino"):
        if engine == "openvino" and engines.reasons_unavailable(engine, torch.device("cpu"), "fp32"):
            continue
        other = rcdm_fast.load(tmp_path / "m.safetensors", device="cpu", engine=engine)
        got = other.sample(h, per=1, steps=3)
        assert float((got - want).norm() / want.norm()) <= TRAJECTORY_L2, engine
