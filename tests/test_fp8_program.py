"""The program with fp8 convolutions: the emulation's network, on the CPU and on GPUs made of its memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcdm_fast import engines
from rcdm_fast.benchmarking import relative_l2
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.conditioning import make_plan
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines import native
from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.fp8_program import Fp8Convolution, Fp8Program
from rcdm_fast.engines.program import Program
from rcdm_fast.exporters import fp8
from rcdm_fast.exporters.fallback import Layer
from rcdm_fast.models.fp8 import emulated, inner_convolutions, input_scale
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops import candidates
from tests import small
from tests.fake_cuda import CudaTensor, fake_cuda

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIGS: tuple[dict[str, object], ...] = (
    {},
    {"resblock_updown": True},
    {"use_scale_shift_norm": False, "conv_resample": False, "attention_resolutions": ()},
    {"condition_map": (5, 3, 4), "representation_dim": 60, "resblock_updown": True},
)


def network_of(**changes: object) -> UNet:
    return small.network(**changes).eval().requires_grad_(False)


def inputs(network: UNet) -> tuple[Tensor, Tensor, Tensor]:
    width = sum(block.film_width for block in network.residual_blocks())
    generator = torch.Generator().manual_seed(4)
    film = torch.randn(2, *network.config.condition_map[1:], width, generator=generator).movedim(-1, 1)
    return torch.randn(3, 3, 8, 8, generator=generator), film, torch.tensor([0, 1, 1])


def scales_of(network: UNet) -> dict[str, Tensor]:
    """Of what the convolutions are given in these tests."""
    largest: dict[str, Tensor] = {}
    x, film, rows = inputs(network)
    with torch.inference_mode():
        fp8._watched(network, largest).denoise(x, film[rows])
    return {name: input_scale(each) for name, each in largest.items()}


def kept_of(scales: dict[str, Tensor], every: int) -> dict[str, Tensor]:
    return {name: scale for place, (name, scale) in enumerate(scales.items()) if place % every != every - 1}


@pytest.mark.parametrize("every", [2, 3, 10**6])
@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_it_computes_the_emulations_network(changes: dict[str, object], every: int) -> None:
    """But for the order of sums, which rounds a few inputs to the other neighbor."""
    network = network_of(**changes)
    scales = kept_of(scales_of(network), every)
    x, film, rows = inputs(network)
    with torch.inference_mode():
        program = Program(network, TorchBackend(torch.float32, CPU), torch.float32, CPU)
        got = Fp8Program(program, network, scales, CPU).denoise(x, film, rows)
        want = emulated(network, scales).denoise(x, film[rows])
        exact = network.denoise(x, film[rows])
    error = relative_l2(want, exact)
    assert error > 3e-3
    assert relative_l2(got, want) <= 0.2 * error


def test_layers_that_are_kept_are_the_programs() -> None:
    network = network_of(resblock_updown=True)
    scales = scales_of(network)
    chosen = {name: scale for name, scale in scales.items() if name.endswith("in_layers.2")}
    program = Program(network, TorchBackend(torch.float32, CPU), torch.float32, CPU)
    made = Fp8Program(program, network, chosen, CPU)
    blocks = [layer for stage in (*made._down, made._middle, *made._up) for _, layer in stage]
    firsts = [layer.first for layer in blocks if hasattr(layer, "first")]
    lasts = [layer.last for layer in blocks if hasattr(layer, "last")]
    assert len(firsts) == len(chosen)
    assert all(isinstance(each, Fp8Convolution) for each in firsts)
    assert not any(isinstance(each, Fp8Convolution) for each in lasts)
    x, film, rows = inputs(network)
    with torch.inference_mode():
        none = Fp8Program(program, network, {}, CPU).denoise(x, film, rows)
        assert torch.equal(none, program.denoise(x, film, rows))
    with pytest.raises(AssertionError, match=r"no such convolutions: out\.2"):
        Fp8Program(program, network, {"out.2": torch.ones(32)}, CPU)


def written(path: Path, kept: str) -> Path:
    model = small.model()
    scales = scales_of(model.unet)
    del scales[kept]
    fp8.save(fp8.Calibrated(scales, (Layer(kept, 0.02),), 43.5, path), model.unet, model.config)
    return path


def test_the_native_engine_runs_it_on_a_gpu(tmp_path: Path) -> None:
    kept = "middle_block.0.in_layers.2"
    file = written(tmp_path / "fp8.safetensors", kept)
    model = small.model()
    h, schedule = torch.randn(3, small.DIM), Schedule.make(model.config.schedule, 3)
    x, rows = torch.randn(5, 3, 8, 8), torch.tensor([0, 2, 1, 1, 0])
    plan = make_plan(model.unet, schedule, h, None)

    def on_cpu(*precision: object) -> Tensor:
        engine = engines.make("eager", model.unet, model.config, CPU, *precision)  # type: ignore[arg-type]
        return engine.bind(plan, rows).predict(x, 1)

    want, exact = on_cpu("fp8", file), on_cpu("fp32")
    layers = len(inner_convolutions(model.unet))
    with fake_cuda(1) as machine:
        network = small.network().eval().requires_grad_(False)
        runner = engines.make("auto", network, model.config, CUDA, "fp8", file)
        there = make_plan(network, schedule, h.to(CUDA), None)
        got = runner.bind(there, rows).predict(x.to(CUDA), 1)
        assert isinstance(got, CudaTensor)
        # All else is bf16, and rounds many inputs to the other neighbor; measured: 0.4 of the emulation's own error.
        assert relative_l2(got.numbers, want) <= relative_l2(want, exact)
        said = runner.describe()
        assert said.startswith(f"native, fp8 ({layers - 1} of {layers} inner 3x3 convolutions in fp8, all but {kept})")
        once = machine.kernels.count("quantize")
        assert once == machine.kernels.count("fp8_convolution") > 0
        assert once % (layers - 1) == 0


def test_what_fp8_on_a_gpu_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = small.model()
    with fake_cuda(1):
        assert native.reasons_unavailable(CUDA, "fp8") == []
        with pytest.raises(ConfigError, match="fp8 needs a calibrated file"):
            engines.make("native", model.unet, model.config, CUDA, "fp8")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
        assert native.reasons_unavailable(CUDA, "fp8") == [
            "this GPU (sm_86) does not multiply e4m3; sm_89 is the oldest that does"
        ]
        monkeypatch.setattr(candidates, "triton_reason", lambda device: "triton is not installed")
        assert native.reasons_unavailable(CUDA, "fp8") == ["fp8 needs Triton: triton is not installed"]
