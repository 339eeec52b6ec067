"""The program in its other forms (folded biases, moments given): same network, errors no larger than twice its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.folded import FoldedProgram, without_bias
from rcdm_fast.engines.program import BlockLayer, Program
from rcdm_fast.engines.summed import SummedProgram
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops import products, reference, reference_moments, schema_folding
from rcdm_fast.ops.schema import is_channels_last
from tests import small
from tests.norm_cases import NormCase, doubled, make_inputs

CPU = torch.device("cpu")
CONFIGS: tuple[dict[str, object], ...] = (
    {},
    {"resblock_updown": True},
    {"use_scale_shift_norm": False, "use_new_attention_order": True},
    {"conv_resample": False, "attention_resolutions": ()},
    {"channel_mult": (2, 1)},  # a block that takes a skip connection and needs no projection
    {"condition_map": (5, 3, 4), "representation_dim": 60, "resblock_updown": True},
)


def _network(large_biases: bool = False, **changes: object) -> UNet:
    made = small.network(**changes).eval().requires_grad_(False)
    if large_biases:  # as large as what they are added to, and of one sign
        for module in made.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d) and module.bias is not None:
                module.bias.copy_(torch.rand(module.bias.shape) * 3)
    return made


def _inputs(network: UNet, side: int = 8, images: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    width = sum(block.film_width for block in network.residual_blocks())
    film = torch.randn(2, *network.config.condition_map[1:], width).movedim(-1, 1)
    return torch.randn(images, 3, side, side), film, torch.tensor([0, 1, 1])[:images]


def _programs(network: UNet, dtype: torch.dtype) -> tuple[Program, FoldedProgram, SummedProgram]:
    backend = TorchBackend(dtype, CPU)
    program = Program(network, backend, dtype, CPU)
    return program, FoldedProgram(program, backend), SummedProgram(program, backend)


def _errors(network: UNet, dtype: torch.dtype, side: int = 8, images: int = 3) -> list[float]:
    """Errors against fp64 of the program and of its other forms."""
    x, film, rows = _inputs(network, side, images)
    with torch.inference_mode():
        found = [program.denoise(x, film, rows).double() for program in _programs(network, dtype)]
        truth = network.double().denoise(x.double(), film[rows].double())
    return [(each - truth).norm().item() for each in found]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_it_computes_the_same_network(changes: dict[str, object]) -> None:
    for large in (False, True):
        plain, *others = _errors(_network(large, **changes), torch.float32)
        assert max(others) <= 2 * plain


@pytest.mark.parametrize("changes", [*CONFIGS, {"attention_resolutions": (8,)}], ids=str)
def test_images_that_are_large_enough_for_moments(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 48 pixels, of which norms are given moments, and of 24 inside, of which they are not."""
    given = []
    real = reference_moments.film_group_norm_given

    def noted(*arguments: Any) -> Tensor:
        given.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(reference_moments, "film_group_norm_given", noted)
    plain, *others = _errors(_network(True, **changes), torch.float32, 48, 2)
    assert max(others) <= 2 * plain
    assert len(given) >= (3 if "resblock_updown" not in changes else 2)
    everywhere = changes.get("attention_resolutions") == (8,)  # attention leaves no moments
    assert any(each[1] is not None for each in given) is not everywhere  # of skip connections


@pytest.mark.parametrize("large", [False, True])
def test_in_16_bits_it_is_as_exact(large: bool) -> None:
    for side, images in ((8, 3), (48, 1)):
        plain, *others = _errors(_network(large, resblock_updown=True), torch.bfloat16, side, images)
        assert max(others) <= 2 * plain


def test_weights_lie_in_memory_once_and_no_bias_is_left() -> None:
    program, *others = _programs(_network(), torch.float32)
    for other in others:
        for stage, again in zip([*program._down, program._middle], [*other._down, other._middle], strict=True):
            for (name, layer), (same, made) in zip(stage, again, strict=True):
                assert name == same
                if isinstance(layer, BlockLayer) and isinstance(made, BlockLayer):
                    assert made.first.weight is layer.first.weight  # type: ignore[attr-defined]
                    assert made.first.bias is None  # type: ignore[attr-defined]
                    assert layer.first.bias is not None  # type: ignore[attr-defined]


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    network = _network()
    dict(network.named_parameters())["middle_block.1.proj_out.weight"].fill_(torch.nan)
    for program in _programs(network, torch.float32):
        with torch.inference_mode():
            assert program.first_nonfinite(*_inputs(network)) == "middle_block.1"


@pytest.mark.parametrize("shape", [(2, 24, 5, 7), (1, 8, 1, 1), (3, 2, 4, 2)])
def test_products_are_convolutions(shape: tuple[int, int, int, int]) -> None:
    """Of 1x1; in the memory of what they are added to."""
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(6, shape[1], 1, 1, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    for name, product in products.CANDIDATES.items():
        got = product(x, weight, bias)
        torch.testing.assert_close(got, torch.conv2d(x, weight, bias), msg=name)
        assert is_channels_last(got)
    base = torch.randn(shape[0], 6, *shape[2:], dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    for name, add in products.ADDING.items():
        out = base.clone()
        add(out, x, weight)
        torch.testing.assert_close(out, base + torch.conv2d(x, weight), msg=name)
    with pytest.raises(RuntimeError, match="view"):
        products.add_product(torch.randn(2, 6, 5, 7), torch.randn(2, 4, 5, 7), torch.randn(6, 4, 1, 1))


@pytest.mark.parametrize(
    "case",
    [
        NormCase(24, skip=8, groups=4, film="scale"),
        NormCase(16, groups=4, film="add", size=(4, 6), resample=-1),
        NormCase(8, groups=4, phases=True, size=(4, 6)),
    ],
    ids=str,
)
def test_the_norm_of_what_misses_a_bias(case: NormCase) -> None:
    inputs = make_inputs(case)
    x, skip, *rest = doubled(inputs)
    before = torch.randn(case.channels + case.skip, dtype=torch.float64) * 5
    whole = before[: case.channels].repeat(4 if case.phases else 1)
    more = None if skip is None else skip + before[case.channels :][:, None, None]
    wanted = reference.film_group_norm(x + whole[:, None, None], more, *rest)
    torch.testing.assert_close(reference.film_group_norm_before(before, x, skip, *rest), wanted)


@pytest.mark.parametrize("resample", [-1, 0, 1])
def test_a_residual_is_added_with_a_bias(resample: int) -> None:
    size = {-1: (12, 8), 0: (6, 4), 1: (3, 2)}[resample]
    out, add = (torch.randn(2, 5, *each).contiguous(memory_format=torch.channels_last) for each in ((6, 4), size))
    bias = torch.randn(5)
    wanted = out + bias[:, None, None]
    for i in range(6):
        for j in range(4):
            if resample == -1:
                wanted[..., i, j] += add[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(dim=(2, 3))
            else:
                wanted[..., i, j] += add[..., i // 2, j // 2] if resample else add[..., i, j]
    torch.ops.rcdm_fast.add_residual(out, bias, add, resample)
    torch.testing.assert_close(out, wanted)


def test_what_does_not_fit_is_refused() -> None:
    out = torch.zeros(1, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(4)
    check = schema_folding.check_add_residual
    with pytest.raises(ValueError, match="resample must be"):
        check(out, bias, out, 2)
    with pytest.raises(ValueError, match="does not fit out"):
        check(out, bias, out, 1)
    with pytest.raises(ValueError, match="no upsampled size"):
        check(out[:, :, :5], bias, out, 1)
    with pytest.raises(ValueError, match="one dtype"):
        check(out, bias, out.double(), 0)
    with pytest.raises(ValueError, match="channels-last"):
        check(out, bias, torch.zeros(1, 4, 6, 6), 0)
    with pytest.raises(ValueError, match=r"bias must be float32 \[4\]"):
        check(out, torch.zeros(5), out, 0)
    inputs = make_inputs(NormCase(8, groups=4))
    result = torch.empty_like(inputs[0])
    with pytest.raises(ValueError, match=r"before must be float32 \[8\]"):
        reference.film_group_norm_before_out(result, torch.zeros(8, dtype=torch.float64), *inputs)


def test_a_convolution_without_its_bias() -> None:
    made = TorchBackend(torch.float32, CPU).convolution(torch.randn(4, 3, 3, 3), torch.randn(4), 1, 1)
    x = torch.randn(1, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    bare = without_bias(made)  # type: ignore[arg-type]
    torch.testing.assert_close(bare(x) + made.bias[:, None, None], made(x))  # type: ignore[attr-defined]
