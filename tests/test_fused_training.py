"""The network on fused operators beside the plain one: outputs, every gradient, every option; and kept memory."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rcdm_fast.models.unet import ResBlock, UNet
from rcdm_fast.ops import candidates, gradients, library, reference, selection_backward
from rcdm_fast.training import distributed, fused_unet, memory
from rcdm_fast.training import run as training_run
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.convolution import convolution
from rcdm_fast.training.run import Run
from tests import small, training_process
from tests.fake_cuda import fake_cuda

NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"use_scale_shift_norm": False, "use_new_attention_order": True, "num_heads": 2},
    {"resblock_updown": True, "num_res_blocks": 2, "channel_mult": (1, 1, 2)},
    {"conv_resample": False, "channel_mult": (1, 2, 2)},
)


def pair(**changes: Any) -> tuple[UNet, UNet]:
    """A plain network and the same one on fused operators."""
    plain = small.network(**changes).to(memory_format=torch.channels_last).train()
    other = copy.deepcopy(plain)
    fused_unet.attach(other)
    return plain, other


def answers(network: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of a weighted sum of it by parameter; of x too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 8, 8, generator=generator, requires_grad=True)
    h, t = torch.randn(3, small.DIM, generator=generator), torch.tensor([3.0, 500.0, 999.0])
    out = network(x, t, h)
    weights = torch.randn(out.shape, generator=generator)
    named = {"x": x, **dict(network.named_parameters())}
    found = torch.autograd.grad((out.float() * weights).sum(), list(named.values()))
    return out.detach(), dict(zip(named, found, strict=True))


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_gradients_are_those_of_the_plain_network(changes: dict[str, Any]) -> None:
    plain, other = pair(**changes)
    (want, wanted), (got, found) = answers(plain), answers(other)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        # What is added before a norm of single channels has no gradient but rounding; others are of norm 0.1 to 100.
        error = float((gradient - wanted[name]).norm())
        assert error < 2e-5 * max(5.0, float(wanted[name].norm())), name
        assert gradient.shape == wanted[name].shape


def test_bf16_is_as_near_to_fp32_as_autocast() -> None:
    plain, other = pair()
    _, truth = answers(plain)
    with torch.autocast("cpu", torch.bfloat16):
        _, theirs = answers(plain)
        _, ours = answers(other)
    for name, want in truth.items():
        assert ours[name].dtype == want.dtype
        error, limit = (float((each[name] - want).norm()) for each in (ours, theirs))
        assert error < 2 * limit + 5e-3 * max(1.0, float(want.norm())), name


def test_dropout_drops_after_the_activation() -> None:
    plain, other = pair(dropout=0.3)
    torch.manual_seed(5)
    want = answers(plain)[0]
    torch.manual_seed(5)
    got = answers(other)[0]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)  # the same masks
    assert not torch.allclose(got, answers(other)[0], atol=1e-2)
    torch.testing.assert_close(answers(other.eval())[0], answers(plain.eval())[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "kernel", "stride", "padding"), [(16, 3, 1, 1), (16, 3, 2, 1), (3, 3, 1, 1), (9, 1, 1, 0)]
)
def test_convolution_is_pytorchs(inputs: int, kernel: int, stride: int, padding: int) -> None:
    """In value and every gradient, from any layout, whoever computes the weight's."""
    x = torch.randn(2, inputs, 6, 6, requires_grad=True)
    weight = torch.randn(12, inputs, kernel, kernel, requires_grad=True)
    bias = torch.randn(12, requires_grad=True)
    want = torch.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    add = torch.randn(want.shape, requires_grad=True)
    got = convolution(x, weight, bias, stride=stride, padding=padding, add=add)
    torch.testing.assert_close(got.double(), want + add, atol=1e-5, rtol=1e-5)
    for given in (torch.randn(want.shape), torch.ones(1).expand(want.shape)):
        leaves = (x, weight, bias)
        truths = torch.autograd.grad(want, leaves, given.double(), retain_graph=True)
        *found, of_add = torch.autograd.grad(got, (*leaves, add), given, retain_graph=True)
        assert torch.equal(of_add, given)
        for ours, truth in zip(found, truths, strict=True):
            torch.testing.assert_close(ours.double(), truth.double(), atol=2e-5, rtol=1e-5)
    without = convolution(x, weight, None, stride=stride, padding=padding)
    torch.testing.assert_close(without.double(), want - bias.double()[:, None, None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "x weight", "x bias", "weight bias"])
def test_what_is_frozen_changes_no_other_gradient(frozen: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(selection_backward, "weight_gradient", lambda x, weight: None)
    leaves = {"x": torch.randn(2, 16, 6, 6), "weight": torch.randn(12, 16, 3, 3), "bias": torch.randn(12)}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen.split())
    given = torch.randn(2, 12, 6, 6)
    convolution(leaves["x"], leaves["weight"], leaves["bias"], padding=1).backward(given)
    found = {name: leaf.grad for name, leaf in leaves.items()}
    x, weight, bias = (leaf.detach().double().requires_grad_() for leaf in leaves.values())
    truths = torch.autograd.grad(torch.conv2d(x, weight, bias, padding=1), (x, weight, bias), given.double())
    for (name, grad), truth in zip(found.items(), truths, strict=True):
        assert (grad is None) == (name in frozen.split())
        if grad is not None:
            torch.testing.assert_close(grad.double(), truth, atol=2e-5, rtol=1e-5)


def test_who_computes_a_weight_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x, few = torch.randn(1, 16, 4, 4), torch.randn(1, 3, 4, 4)
    wide, narrow = torch.randn(8, 16, 3, 3), torch.randn(8, 3, 3, 3)
    for name, native in (("avx2", True), ("avx512", False), ("avx512_bf16", False), ("base", False)):
        monkeypatch.setattr(library, "instruction_set", lambda name=name: name)
        assert (selection_backward.weight_gradient(x, wide) is not None) == (native and library.has_native("cpu"))
        assert selection_backward.weight_gradient(few, narrow) is None


def make_run(**changes: Any) -> Run:
    config = training_process.config("unused", **changes)
    bank = torch.randn(2, 48, small.DIM, generator=torch.Generator().manual_seed(0))
    return Run(config, small.UNET, training_process.data(), bank, distributed.Processes())


@pytest.mark.skipif(not library.has_native("cpu"), reason="the native part was not built")
def test_steps_are_fused_unless_something_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainConfig("any", small.UNET).compile is None
    for asked in (None, False):
        run = make_run(compile=asked)
        assert run.computed == "fused"
        assert "denoise" in vars(run.network)
    made: list[nn.Module] = []

    def compiled(network: nn.Module) -> nn.Module:
        made.append(network)
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    run = make_run(compile=True)
    assert run.computed == "compiled"
    assert made == [run.network]
    assert not any("forward" in vars(module) for module in run.network.modules() if isinstance(module, ResBlock))
    monkeypatch.setattr(library, "has_native", lambda kind: False)
    assert make_run(compile=None).computed == "plain"
    assert fused_unet.reasons_unavailable(torch.device("mps")) == ["there are no fused operators on mps"]


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass runs natively where that part was built, the backward pass in Triton always."""
    cuda = torch.device("cuda")
    assert fused_unet.reasons_unavailable(cuda) == []
    monkeypatch.setattr(fused_unet, "triton_reason", lambda device: "triton is not installed")
    assert fused_unet.reasons_unavailable(cuda) == ["triton is not installed"]


def test_where_a_gpu_has_no_triton_steps_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler needs it as well."""
    monkeypatch.setattr(fused_unet, "triton_reason", lambda device: "triton is not installed")
    monkeypatch.setattr(training_run, "triton_reason", lambda device: "triton is not installed")
    with fake_cuda(1):
        config = training_process.config("unused", compile=None)
        bank = torch.randn(2, 48, small.DIM)
        run = Run(config, small.UNET, training_process.data(), bank, distributed.Processes("cuda"))
        assert run.computed == "plain"
        assert run._graphed is None


def test_norms_have_gradients_on_every_build(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    native = torch.ops.rcdm_fast.film_group_norm
    for built, triton, wanted in (
        (True, True, native),
        (True, False, native),
        (False, True, gradients._TritonNorm.apply),
        (False, False, reference.film_group_norm_checked),
    ):
        monkeypatch.setattr(library, "has_native", lambda kind, built=built: built)
        monkeypatch.setattr(candidates, "triton_reason", lambda device, triton=triton: "" if triton else "not there")
        assert gradients.differentiable_film_group_norm(cuda) == wanted
        assert gradients.differentiable_film_group_norm(cpu) == wanted


def test_plain_and_fused_runs_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make_run()
    got = [ours.advance() for _ in range(5)]
    monkeypatch.setattr(library, "has_native", lambda kind: False)
    plain = make_run()
    want = [plain.advance() for _ in range(5)]
    assert [each["loss"] for each in got] == pytest.approx([each["loss"] for each in want], rel=2e-5)
    assert [each["gradient_norm"] for each in got] == pytest.approx([each["gradient_norm"] for each in want], rel=1e-4)


@pytest.mark.long
def test_freed_memory_is_faulted_in_once() -> None:
    """Ten tensors of 40 MB, one after the other: their pages are new to the process ten times, or once."""
    code = (
        "import contextlib, resource, sys, torch\n"
        "from rcdm_fast.training import memory\n"
        "torch.zeros(1)\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def taken():\n"
        "    before = faults()\n"
        "    for _ in range(10): torch.empty(10_000_000).fill_(1)\n"
        "    return faults() - before\n"
        "first = taken()\n"
        "with memory.kept(): taken(); inside = taken()\n"
        "print(first, inside, taken())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, inside, after = map(int, done.stdout.split())
    pages = 10 * 40_000_000 // 4096
    if before < pages / 2:
        pytest.skip("this system does not fault in page by page")
    assert inside < pages / 50
    assert after > pages / 11  # it was given back: one tensor at least is new again


def test_what_the_c_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its defaults hold again after an error too; where the environment says something, nothing is changed."""
    told: list[tuple[int, ...]] = []
    library = SimpleNamespace(mallopt=lambda *given: told.append(given), malloc_trim=lambda *given: told.append(given))
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    kept = memory.kept()
    kept.__enter__()
    assert told == [(-1, 2**31 - 1), (-3, 2**31 - 1)]
    assert not kept.__exit__(KeyError, KeyError(), None)
    assert told[2:] == [(-1, 131072), (-3, 131072), (0,)]
    told.clear()
    for name in names:
        with monkeypatch.context() as patched:
            patched.setenv(name, "1")
            with memory.kept():
                pass
        assert told == []
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda name: object()))
    with memory.kept():  # a library that knows no such thing
        pass


def test_a_network_is_changed_in_its_computation_only() -> None:
    plain, other = pair()
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert dataclasses.asdict(plain.config) == dataclasses.asdict(other.config)
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in other.named_modules()]
