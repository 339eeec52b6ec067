"""The published 128-px size on CUDA, without a GPU and without numbers: layouts, launches, live memory.

In float16: what PyTorch says about bfloat16 convolutions depends on the GPU, and there is none.
"""

from __future__ import annotations

import collections
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import workload
from rcdm_fast import ops
from rcdm_fast.engines import compiled
from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.fp8_program import Fp8Program
from rcdm_fast.engines.program import Program
from rcdm_fast.models.fp8 import inner_convolutions
from rcdm_fast.models.unet import AttentionBlock, UNet
from rcdm_fast.ops import candidates, library, schema, selection
from tests import small

CUDA = torch.device("cuda")
PEAK_BYTES = 65 * 2**20  # of one image in float16; measured 64.2 MiB
KERNELS = {  # of one evaluation
    "aten::conv2d": 137,
    "aten::add": 66,  # residuals
    "aten::scaled_dot_product_attention": 16,
    "aten::avg_pool2d": 4,
    "aten::upsample_nearest2d": 4,
    "rcdm_fast::film_group_norm_out": 87,
}
NOTHING = ("aten::empty", "prim::device")  # launched by these


class Watch(TorchDispatchMode):
    """Counts launches, and the bytes of what was made inside and lives; fails where the host would have to wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launched: collections.Counter[str] = collections.Counter()
        self.peak_bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2"), func
        aliases = [value.alias_info for value in func._schema.returns if value.alias_info is not None]
        if all(alias.is_write for alias in aliases) and func._schema.name not in NOTHING:
            self.launched[func._schema.name] += 1
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                assert value.device.type == "cuda"
                storage = value.untyped_storage()
                self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._live = {key: each for key, each in self._live.items() if not each[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._live.values()))
        return out


@pytest.fixture(scope="module")
def network() -> Iterator[UNet]:
    with FakeTensorMode(), torch.device(CUDA):
        made = UNet(workload.read_config("release128").unet).eval().requires_grad_(False)
        for parameter in made.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        yield made


def _inputs(network: UNet, count: int) -> tuple[Tensor, Tensor, Tensor]:
    size = network.config.image_size
    width = sum(block.film_width for block in network.residual_blocks())
    x, film = torch.zeros(count, 3, size, size, device=CUDA), torch.zeros(count, width, device=CUDA)
    return x, film, torch.zeros(count, dtype=torch.int64, device=CUDA)


@pytest.mark.parametrize("count", [1, 64])
def test_one_evaluation(network: UNet, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it launches and keeps, also while implementations are measured: no operand longer than it is used."""
    monkeypatch.setattr(library, "has_native", lambda _: True)
    monkeypatch.setattr(candidates, "triton_reason", lambda _: "left out")
    measured: list[float] = []

    def clock(run: Callable[[], object]) -> float:
        run()
        measured.append(1.0)
        return measured[-1]

    monkeypatch.setattr(selection, "_time_in_a_graph_ms", clock)
    backend = TorchBackend(torch.float16, CUDA)
    program = Program(network, backend, torch.float16, CUDA)
    with torch.inference_mode():
        inputs = _inputs(network, count)
        with Watch() as plain:
            out = program.denoise(*inputs)
        assert out.shape == (count, 6, 128, 128)
        assert schema.is_channels_last(out)
        assert dict(plain.launched) == KERNELS
        assert plain.peak_bytes <= count * PEAK_BYTES
        del out
        with Watch() as tuning, backend.choices.measuring():
            program.denoise(*inputs)
    kinds = [kind for operator in ("film_group_norm", "attention") for kind in backend.choices.times_ms(operator)]
    assert len(kinds) == len(measured) < KERNELS["rcdm_fast::film_group_norm_out"] // 2
    assert tuning.peak_bytes <= count * PEAK_BYTES


def test_one_evaluation_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 3x3 convolution but the first and the last is one of ours, of images in channels-last memory."""
    monkeypatch.setattr(library, "has_native", lambda _: True)
    monkeypatch.setattr(candidates, "triton_reason", lambda _: "left out")
    with FakeTensorMode(), torch.inference_mode():
        with torch.device(CUDA):
            network = UNet(workload.read_config("release128").unet).eval().requires_grad_(False)
        inner = inner_convolutions(network)
        scales = {name: torch.ones(each.in_channels, device="cpu") for name, each in inner.items()}
        program = Program(network, TorchBackend(torch.float16, CUDA), torch.float16, CUDA)
        program = Fp8Program(program, network, scales, CUDA)
        with Watch() as plain:
            out = program.denoise(*_inputs(network, 2))
        assert schema.is_channels_last(out)
    assert plain.launched["rcdm_fast::fp8_convolution"] == plain.launched["rcdm_fast::quantize"] == len(inner)
    assert plain.launched["aten::conv2d"] == KERNELS["aten::conv2d"] - len(inner)
    assert plain.launched["aten::avg_pool2d"] == plain.launched["aten::upsample_nearest2d"] == 0  # read so


def test_blocks_of_the_plain_network_keep_channels_last(network: UNet) -> None:
    """So does attention, though its tokens are [N,C,L] inside."""
    seen: list[tuple[bool, bool]] = []

    def look(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((schema.is_channels_last(given[0]), schema.is_channels_last(output)))

    hooks = [module.register_forward_hook(look) for module in network.modules() if isinstance(module, AttentionBlock)]
    with torch.inference_mode():
        x, film, _ = _inputs(network, 2)
        network.denoise(x.contiguous(memory_format=torch.channels_last), film)
    for hook in hooks:
        hook.remove()
    assert seen == [(True, True)] * KERNELS["aten::scaled_dot_product_attention"]


@contextmanager
def _nothing_asked_while_traced() -> Iterator[None]:
    """Dynamo refuses to trace `find_spec`, as that of torch 2.11 does by itself."""
    refused = torch._dynamo.disable(importlib.util.find_spec)
    with mock.patch.object(importlib.util, "find_spec", refused):
        yield


def _compiled(function: Callable[..., Tensor], *inputs: Tensor) -> set[str]:
    """The operators of ours in the one graph that a function becomes."""
    found: set[str] = set()

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        targets = [str(node.target) for node in graph.graph.nodes]
        found.update(name.removeprefix("rcdm_fast.") for name in targets if name.startswith("rcdm_fast."))
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad(), _nothing_asked_while_traced():
        out = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)(*inputs)
    assert out.device.type == CUDA.type
    return found


@pytest.mark.long
def test_the_compiled_program_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is settled when the module is made."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(CUDA):
            network = small.network().eval().requires_grad_(False)
            module = compiled._Module(network, torch.float16, CUDA).eval()
            x, *rest = _inputs(network, 2)
        triton = not candidates.triton_reason(CUDA)
        monkeypatch.setattr(candidates, "triton_reason", None)
        for name in ("film_group_norm_visible", "attention"):
            monkeypatch.setattr(selection, name, None)
        found = _compiled(module, x.contiguous(memory_format=torch.channels_last), *rest)
    assert ("film_group_norm_triton.default" in found) == triton


def test_the_wrappers_are_compiled_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked, and no library loaded, in a way that the compiler refuses."""
    monkeypatch.setattr(library, "_parts", {})
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.zeros(1, 64, 8, 8, device=CUDA).contiguous(memory_format=torch.channels_last)
        weight = torch.zeros(64, device=CUDA)
        _compiled(lambda x, w: ops.film_group_norm(x, w, w), x, weight)
        _compiled(lambda qkv: ops.attention(qkv, 2), torch.zeros(1, 16, 96, device=CUDA))
