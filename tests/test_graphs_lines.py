"""Every line of the native engine's GPU path runs: the main job, what goes wrong there, what is said without a GPU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import rcdm_fast
from rcdm_fast import engines
from rcdm_fast.diffusion import conditioning
from rcdm_fast.engines import cuda_graphs, native, trajectory_graphs
from rcdm_fast.engines.cuda_graphs import GraphCache
from rcdm_fast.engines.folded import FoldedProgram
from rcdm_fast.engines.native import NativeEngine
from rcdm_fast.engines.program import Program
from rcdm_fast.engines.summed import SummedProgram
from rcdm_fast.models import checkpoint
from rcdm_fast.ops import candidates, library, reference, selection
from rcdm_fast.ops.schema import NormInputs
from tests import small
from tests.fake_cuda import fake_cuda
from tests.test_fp8_program import written
from tests.test_graphs import CPU, REPRESENTATIONS, SCHEDULE, made_images, make_network, truth
from tests.tolerances import ENGINE_FP32_L2
from tests.traced_lines import traced


@pytest.mark.long
def test_every_line_of_the_gpu_path_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main job on a GPU, what goes wrong there, and what is said where there is none."""
    file = tmp_path / "small.safetensors"
    made = small.model()
    checkpoint.save_model(file, made.config, made.unet.state_dict())
    with traced(candidates, cuda_graphs, native, selection, trajectory_graphs) as left:
        with fake_cuda(2):
            model = rcdm_fast.load(file, encoder=small.encoder().to("cuda"))
            assert "not measured" in model.engine.describe()
            h = model.encode(small.make_images(2))
            for batch_size in (1, 2, 3, 5, 9):
                model.sample(h[:1], per=batch_size, steps=1)
            assert isinstance(model.engine, NativeEngine)
            model.engine.warmup((17,))
            with torch.cuda.stream(torch.cuda.Stream()):
                model.sample(h, per=1, steps=1)
            assert "captured" in model.engine.describe()
            _whole_trajectories(model, h, monkeypatch)
            x = made_images(2).to("cuda")
            bound = model.engine.bind(conditioning.make_plan(model.unet, SCHEDULE, h, None), torch.arange(2))
            assert bound.first_nonfinite(x, 0) is None
            with pytest.raises(ValueError, match="1 images, bound was a batch of 2"):
                bound.predict(x[:1], 0)
            of_maps = small.network(condition_map=(5, 3, 4), representation_dim=60).eval().requires_grad_(False)
            NativeEngine(of_maps, torch.device("cuda"), "fp32").warmup((1,))
            half = NativeEngine(make_network(), torch.device("cuda"), "fp16")  # convolutions of ours are for 16 bits
            half.warmup((2,))
            of_large = small.network(image_size=48).eval().requires_grad_(False)  # which take moments
            NativeEngine(of_large, torch.device("cuda"), "fp16").warmup((1,))
            assert "convolution_residual, few pixels of float16" in half.describe()
            _what_cannot_run(monkeypatch)
            visible = selection.film_group_norm_visible(torch.device("cuda"))
            assert visible is importlib.import_module("rcdm_fast.kernels.film_group_norm").film_group_norm
            assert engines.reasons_unavailable("native", torch.device("cuda"), "bf16") == []
        with fake_cuda(1, parts=("cpu",)):
            candidates.convolution_moments_candidates(torch.device("cuda"), torch.float32)
            monkeypatch.setattr(candidates, "triton_reason", lambda _: "triton is not installed")
            candidates.convolution_moments_candidates(torch.device("cuda"), torch.float32)
            (reason,) = engines.reasons_unavailable("native", torch.device("cuda"), "fp32")
            assert reason.startswith("no CUDA operators: ")
            assert reason.endswith("and triton is not installed")
        with fake_cuda(1):
            only = NativeEngine(make_network(), torch.device("cuda"), "fp32")
            only.warmup((1,))
            assert only.describe().endswith("(1 captured, at most 4 kept)")
            monkeypatch.undo()
        _in_fp8(tmp_path, monkeypatch)
        _on_the_cpu(monkeypatch)
    assert {Path(name).name: sorted(lines) for name, lines in left.items()} == {
        "candidates.py": [],
        "cuda_graphs.py": [],
        "native.py": [],
        "selection.py": [],
        "trajectory_graphs.py": [],
    }


def _whole_trajectories(model: rcdm_fast.Model, h: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured, replayed, dropped for another; step by step where that is as fast; of noise; forgotten."""
    with monkeypatch.context() as patch:
        patch.setattr(trajectory_graphs, "USES_BEFORE", 1)
        patch.setattr(trajectory_graphs, "MOST_TRAJECTORIES", 1)
        patch.setattr(trajectory_graphs, "REMEMBERED", 1)
        for solver, batch_size in (("ddim", 2), ("ddim", 3), ("ancestral", 3)):
            for _ in range(3):
                model.sample(h[:1], per=batch_size, steps=6, solver=solver)
        assert "; trajectories in one launch: ancestral, 6 evaluations of 3 (" in model.engine.describe()
        for _ in range(3):
            model.sample(h[:1], per=1, steps=1)
        assert "; faster step by step: ddim, 1 evaluations of 1 (" in model.engine.describe()


def _what_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trajectory, a form, a candidate: left out, or raised where nothing else is left or the call is wrong."""

    def failing(error: Exception) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    wrong, unable = ValueError("a mistake of ours"), RuntimeError("no such instruction")
    model, h = small.quick_model(), torch.ones(1, small.DIM)
    for error in (wrong, unable):
        engine = NativeEngine(model.unet, torch.device("cuda"), "fp32")
        with monkeypatch.context() as patch:
            patch.setattr(SummedProgram, "denoise", failing(error))
            with pytest.raises(ValueError, match="of ours") if error is wrong else contextlib.nullcontext():
                engine.warmup((1,))
        with monkeypatch.context() as patch:
            for kind in (Program, FoldedProgram, SummedProgram):
                patch.setattr(kind, "denoise", failing(error))
            with pytest.raises(type(error)):
                engine.warmup((2,))
        with monkeypatch.context() as patch:
            patch.setattr(trajectory_graphs, "USES_BEFORE", 0)
            native_model = rcdm_fast.Model(model.config, model.unet, engine, None, engine.device)
            engine.warmup((1,))
            patch.setattr(GraphCache, "record", failing(error))
            with pytest.raises(ValueError, match="of ours") if error is wrong else contextlib.nullcontext():
                native_model.sample(h, per=1, steps=2)
    assert "form 'moments given' cannot run: " in engine.describe()
    assert "cannot be captured: " in engine.describe()
    choices = selection.Choices(CPU)
    for error in (wrong, unable, torch.OutOfMemoryError("CUDA out of memory")):
        choices._candidates["attention"] = {"only": failing(error)}
        with choices.measuring(), pytest.raises(type(error)):
            choices.attention(torch.ones(1), 1, False)


def _in_fp8(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(folder / "fp8.safetensors", "middle_block.0.in_layers.2")
    model, cuda = small.model(), torch.device("cuda")
    assert native.reasons_unavailable(CPU, "fp8") == ["fp8 runs on CUDA only (engine eager emulates it)"]
    with fake_cuda(1), monkeypatch.context() as patch:
        engine = engines.make("native", model.unet, model.config, cuda, "fp8", file)
        assert "inner 3x3 convolutions in fp8" in engine.describe()
        assert isinstance(engine, NativeEngine)
        engine.warmup((1,))
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert "does not multiply e4m3" in native.reasons_unavailable(cuda, "fp8")[0]
        patch.setattr(candidates, "triton_reason", lambda _: "triton is not installed")
        assert native.reasons_unavailable(cuda, "fp8") == ["fp8 needs Triton: triton is not installed"]


def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    engine = NativeEngine(network, CPU, "fp32")
    engine.warmup((1,))
    plan = conditioning.make_plan(network, SCHEDULE, REPRESENTATIONS, None)
    bound = engine.bind(plan, torch.tensor([1, 3]))
    x = made_images(2)
    fp32 = bound.predict(x, 1)
    assert float((fp32 - truth(x, [1, 3], 1)).norm() / fp32.norm()) <= ENGINE_FP32_L2
    assert "oneDNN" in engine.describe()
    engine.precision = "bf16"  # only how results are put together: the program stays what it is
    assert torch.allclose(bound.predict(x, 1), fp32, atol=1e-4)
    for device, precision in ((torch.device("cuda"), "fp32"), (torch.device("mps"), "fp32"), (CPU, "fp16")):
        assert native.reasons_unavailable(device, precision)
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
        assert native.reasons_unavailable(CPU, "bf16") == ["oneDNN has no bf16 on this processor"]
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert native.reasons_unavailable(CPU, "fp32") == ["this PyTorch was built without oneDNN"]
        assert selection.film_group_norm_visible(CPU) is torch.ops.rcdm_fast.film_group_norm
        patch.setattr(library, "has_native", lambda _: False)
        assert native.reasons_unavailable(CPU, "fp32")[0].startswith("no C++ operators: ")
        assert selection.film_group_norm_visible(CPU) is reference.film_group_norm
        choices = selection.Choices(CPU)
        x = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
        inputs = NormInputs(x, None, torch.ones(32), torch.zeros(32), None, None, 32, 1e-5, True, 0, False)
        out = torch.empty_like(x)
        with choices.measuring():
            choices.film_group_norm(out, inputs)
        assert torch.equal(out, reference.film_group_norm(*inputs))
        assert [list(times) for times in choices.times_ms("film_group_norm").values()] == [["reference"]]
        assert choices.describe()["film_group_norm"].startswith("reference 1 calls (measured")
    assert selection.film_group_norm(CPU) is torch.ops.rcdm_fast.film_group_norm_out
    assert selection.attention(CPU) is torch.ops.rcdm_fast.attention
