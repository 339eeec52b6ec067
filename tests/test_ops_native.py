"""film_group_norm, attention and solver_step on the CPU: errors against float64, layouts, refusals, registration."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcdm_fast import ops
from rcdm_fast.config import ModelConfig, UNetConfig, from_json
from rcdm_fast.models.checkpoint import load_model
from rcdm_fast.models.flags import configs_from_flags
from rcdm_fast.models.unet import AttentionBlock, ResBlock, UNet
from rcdm_fast.ops import gradients, library, reference, schema
from tests import op_checks
from tests.op_checks import DTYPES, NormCase, check_attention, check_norm, check_solver_step
from tests.reference_weights import CASES, flags_path
from tests.tolerances import OP_ERROR_FLOOR, OP_ERROR_RATIO

CHECKOUT = Path(__file__).resolve().parent.parent
RELEASE_128 = UNetConfig(128, 256, (1, 1, 2, 3, 4), attention_resolutions=(32, 16, 8), resblock_updown=True)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    ops.load()
    assert library.has_native("cpu"), [part.reason for part in ops.describe()]


def _configs() -> list[UNetConfig]:
    """The networks that matter: the 128-pixel release, s and m, the bundled models, the references."""
    found = [RELEASE_128]
    for name in ("s", "m"):
        text = (CHECKOUT / "benchmarks" / "configs" / f"{name}.json").read_text(encoding="utf-8")
        found.append(from_json(ModelConfig, text).unet)
    found.append(load_model("cifar10-simclr-trunk")[0].unet)
    found += [configs_from_flags(flags_path(case))[0] for case in CASES]
    return found


def _norms_and_heads() -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(channels of x, of its skip) of every norm, and (heads, width) of every attention, in those networks."""
    norms: set[tuple[int, int]] = set()
    heads: set[tuple[int, int]] = set()
    for config in _configs():
        with torch.device("meta"):
            network = UNet(config)
        for module in network.modules():
            if isinstance(module, ResBlock):
                before, after = (int(layers[0].num_channels) for layers in (module.in_layers, module.out_layers))  # type: ignore[arg-type]
                norms |= {(before, 0), (after, 0)}
                if before > after:
                    norms.add((after, before - after))
            elif isinstance(module, AttentionBlock):
                channels = module.norm.num_channels
                norms.add((channels, 0))
                heads.add((module.heads, channels // module.heads))
    return norms, heads


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_for_every_channel_count(dtype: torch.dtype) -> None:
    norms, _ = _norms_and_heads()
    assert {(channels + skip) // 32 for channels, skip in norms} >= {1, 2, 3, 4, 8, 16, 24, 32, 40, 48, 56, 64}
    for channels, skip in sorted(norms):
        check_norm(NormCase(channels + skip, 32, height=5, width=3, skip=skip, batch=2), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        NormCase(64, 32, height=33, width=31),  # more runs than one, the last one short
        NormCase(64, 32, height=32, width=32, resample=1),
        NormCase(64, 32, height=32, width=30, resample=-1, skip=32),
        NormCase(64, 32, height=32, width=24, phases=True),
        NormCase(96, 32, skip=40),  # a group lies across the two inputs
        NormCase(33, 3, height=1, width=1),
        NormCase(66, 2, film=1, skip=5),
        NormCase(64, 32, mean=100.0),
        NormCase(64, 1, height=40, width=40, film=0, silu=False),
        NormCase(64, 32, batch=1, height=48, width=48),  # threads share one image
    ],
    ids=str,
)
def test_norm(case: NormCase, dtype: torch.dtype) -> None:
    check_norm(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype: torch.dtype) -> None:
    _, heads = _norms_and_heads()
    for count, width in sorted(heads | {(1, 16), (2, 96), (1, 192), (1, 256)}):
        for length in (16, 49):
            check_attention(length, count, width, width % 3 == 0, dtype, batch=1)
    check_attention(1024, 1, 32, False, dtype, batch=1)
    check_attention(300, 1, 24, True, dtype, batch=1)  # threads share one head


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_solver_step(layout: str, dtype: torch.dtype) -> None:
    for shape in ((1, 3, 1, 1), (3, 3, 7, 9), (2, 1, 33, 31), (9, 3, 64, 64)):
        for terms in (0, 1, 3):
            check_solver_step(shape, dtype, terms, layout)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_does_not_depend_on_its_batch(dtype: torch.dtype, threads: int) -> None:
    inputs = NormCase(64, 32, height=20, width=20, batch=5).inputs(dtype)
    qkv = torch.randn(5, 100, 3 * 64).to(dtype)
    before = torch.get_num_threads()
    whole, attended = torch.ops.rcdm_fast.film_group_norm(*inputs), torch.ops.rcdm_fast.attention(qkv, 2, False)
    torch.set_num_threads(threads)
    try:
        for image in range(5):
            x, skip, weight, bias, film, rows, *rest = inputs
            alone = (x[image : image + 1], skip, weight, bias, film, rows[image : image + 1], *rest)
            assert torch.equal(torch.ops.rcdm_fast.film_group_norm(*alone), whole[image : image + 1])
            one = torch.ops.rcdm_fast.attention(qkv[image : image + 1], 2, False)
            assert torch.equal(one, attended[image : image + 1])
    finally:
        torch.set_num_threads(before)


def test_large_activations_do_not_overflow() -> None:
    x = (torch.randn(2, 64, 16, 16) * 2e4).clamp(-6e4, 6e4).half().to(memory_format=torch.channels_last)
    x[0, 0] = 6e4
    inputs = (x, None, torch.ones(64), torch.zeros(64), None, None, 32, 1e-5, True, 0, False)
    got = torch.ops.rcdm_fast.film_group_norm(*inputs)
    assert got.isfinite().all()
    assert op_checks.error(got, reference.film_group_norm(*op_checks.widened(inputs))) < 1e-3


def test_constant_channels_and_special_values() -> None:
    x = torch.full((1, 32, 4, 4), 1000.0).to(memory_format=torch.channels_last)
    inputs = (x, None, torch.ones(32), torch.full((32,), 0.5), None, None, 32, 1e-5, False, 0, False)
    assert torch.equal(torch.ops.rcdm_fast.film_group_norm(*inputs), torch.full_like(x, 0.5))
    for bad in (float("nan"), float("inf")):
        x[0, 3, 2, 2] = bad
        for dtype in DTYPES:
            got = torch.ops.rcdm_fast.film_group_norm(x.to(dtype), *inputs[1:])
            assert got[0, 3].isnan().all()
            assert got[0, 4:].isfinite().all()
    qkv = torch.randn(1, 20, 48)
    qkv[0, 7, 20] = float("nan")  # a number of k: every row of q meets it
    for dtype in DTYPES:
        assert torch.ops.rcdm_fast.attention(qkv.to(dtype), 1, False).isnan().all()
    step = ops.solver_step(
        torch.tensor([float("nan"), 9.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), **op_checks.STEP
    )
    assert step[1].isnan().flatten().tolist() == [True, False]
    assert float(step[1][0, 0, 0, 1]) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores(dtype: torch.dtype) -> None:
    """Of some 1e10 and more: one position of k takes it all, in the gradient too."""
    qkv = torch.randn(2, 21, 3 * 40)
    qkv[..., :80] *= 1e5
    qkv = qkv.to(dtype).requires_grad_()
    got = ops.attention(qkv, 1)
    (gradient,) = torch.autograd.grad(got.float().square().sum(), qkv)
    got, qkv = got.detach(), qkv.detach()
    assert op_checks.error(got, reference.attention(qkv.double(), 1, False)) < OP_ERROR_FLOOR[dtype]
    truth = gradients.attention(2 * got.double(), qkv.double(), 1, False)
    assert op_checks.error(gradient, truth) < OP_ERROR_RATIO * 1e-6 + OP_ERROR_FLOOR[dtype]


def test_phases_are_upsampling_and_a_convolution() -> None:
    from rcdm_fast.engines.program import phase_weights

    x, weight = torch.randn(2, 6, 5, 4, dtype=torch.float64), torch.randn(7, 6, 3, 3, dtype=torch.float64)
    want = torch.nn.functional.conv2d(torch.nn.functional.interpolate(x, scale_factor=2.0), weight, padding=1)
    phases = torch.nn.functional.conv2d(x, phase_weights(weight), padding=1)
    torch.testing.assert_close(reference.merge_phases(phases), want)


def test_empty_batches() -> None:
    x = torch.randn(0, 64, 8, 8).to(memory_format=torch.channels_last)
    assert ops.film_group_norm(x, torch.ones(64), torch.zeros(64)).shape == (0, 64, 8, 8)
    assert ops.attention(torch.randn(0, 16, 96), 4).shape == (0, 16, 32)
    assert ops.attention(torch.randn(2, 0, 96), 4).shape == (2, 0, 32)
    assert ops.solver_step(torch.randn(0, 3, 8, 8), torch.randn(0, 6, 8, 8), **op_checks.STEP)[0].shape == (0, 3, 8, 8)


def _norm(**changes: object) -> None:
    settings: dict[str, object] = {
        "x": torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last),
        "weight": torch.ones(64),
        "bias": torch.zeros(64),
        "film": torch.randn(3, 128),
        "rows": torch.tensor([0, 2]),
    }
    ops.film_group_norm(**{**settings, **changes})  # type: ignore[arg-type]


NORM_ERRORS: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "layout": ({"x": torch.randn(2, 64, 8, 8)}, ValueError, "channels-last memory without gaps"),
    "dtype": ({"x": torch.zeros(2, 64, 8, 8, dtype=torch.float64)}, TypeError, "got float64"),
    "groups": ({"groups": 7}, ValueError, "64 channels do not form 7 groups"),
    "weight": ({"weight": torch.ones(32)}, ValueError, r"weight must be float32 \[64\]"),
    "film": ({"film": torch.randn(3, 100)}, ValueError, r"film must be float32 \[R,128\]"),
    "film without rows": ({"rows": None}, ValueError, "film and rows go together"),
    "rows": ({"rows": torch.tensor([0])}, ValueError, r"rows must be int64 \[2\]"),
    "row": ({"rows": torch.tensor([0, 3])}, RuntimeError, "row 3 of image 1 is out of range"),
    "negative row": ({"rows": torch.tensor([-1, 0])}, RuntimeError, "row -1 of image 0 is out of range"),
    "skip": ({"skip": torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)}, ValueError, "does not fit"),
    "resample": ({"resample": "twice"}, ValueError, "must be none, up or down"),
    "device": ({"weight": torch.ones(64, device="meta")}, ValueError, "one device"),
    "out": ({"out": torch.empty(2, 64, 8, 8)}, ValueError, "out must be float32"),
    "phases": ({"phases": True, "resample": "up"}, ValueError, "neither skip nor resample"),
}


@pytest.mark.parametrize("name", NORM_ERRORS)
def test_wrong_norms_are_refused(name: str) -> None:
    changes, kind, message = NORM_ERRORS[name]
    with pytest.raises(kind, match=message):
        _norm(**changes)


def test_odd_sizes_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="7 x 8 cannot be halved"):
        _norm(x=torch.randn(2, 64, 7, 8).to(memory_format=torch.channels_last), resample="down")


ATTENTION_ERRORS: dict[str, tuple[Callable[[], Tensor], int, type[Exception], str]] = {
    "shape": (lambda: torch.randn(2, 3, 4, 96), 4, ValueError, r"\[N,L,3C\]"),
    "layout": (lambda: torch.randn(2, 96, 16).transpose(1, 2), 4, ValueError, "contiguous"),
    "heads": (lambda: torch.randn(2, 16, 96), 5, ValueError, "96 channels are not q, k and v of 5 heads"),
    "dtype": (lambda: torch.zeros(2, 16, 96, dtype=torch.int32), 4, TypeError, "got int32"),
}


@pytest.mark.parametrize("name", ATTENTION_ERRORS)
def test_wrong_attention_is_refused(name: str) -> None:
    make, heads, kind, message = ATTENTION_ERRORS[name]
    with pytest.raises(kind, match=message):
        ops.attention(make(), heads)
    with pytest.raises(RuntimeError, match="attention: "):
        torch.ops.rcdm_fast.attention(make(), heads, False)


def test_wrong_solver_steps_are_refused() -> None:
    x = torch.randn(2, 3, 4, 4)
    for changes, message in (
        ({"output": torch.randn(2, 2, 4, 4)}, "does not fit"),
        ({"output": torch.randn(2, 3, 4, 5)}, "does not fit"),
        ({"terms": [x]}, "1 terms, 0 weights"),
        ({"terms": [x.half()], "weights": [1.0]}, "must be like x"),
        ({"bound": -1.0}, "bound must be >= 0"),
        ({"bound": math.nan}, "bound must be >= 0"),
        ({"x": x.transpose(2, 3)}, "contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.solver_step(**{"x": x, "output": x, **op_checks.STEP, **changes})
    with pytest.raises(TypeError, match="float32 or float64; got float16"):
        ops.solver_step(x.half(), x, **op_checks.STEP)


def test_inputs_have_the_schemas_names_and_order() -> None:
    for operator, before in (("film_group_norm", 0), ("film_group_norm_out", 1), ("film_group_norm_backward", 1)):
        arguments = getattr(torch.ops.rcdm_fast, operator).default._schema.arguments[before:]
        assert tuple(each.name for each in arguments) == schema.NormInputs._fields


@pytest.mark.parametrize("dtype", DTYPES)
def test_registration(dtype: torch.dtype) -> None:
    check = torch.library.opcheck
    for case in (
        NormCase(64, 32),
        NormCase(96, 32, skip=32, film=1, resample=-1),
        NormCase(32, 32, phases=True, film=0),
        NormCase(32, 32, resample=1),
    ):
        inputs = case.inputs(dtype)
        check(torch.ops.rcdm_fast.film_group_norm.default, inputs)
        out = torch.empty_like(reference.film_group_norm(*inputs), memory_format=torch.channels_last)
        check(torch.ops.rcdm_fast.film_group_norm_out.default, (out, *inputs))
    check(torch.ops.rcdm_fast.attention.default, (torch.randn(2, 9, 96).to(dtype), 4, True))
    x, given = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5).to(dtype)
    check(torch.ops.rcdm_fast.solver_step.default, (x, given, [x + 1], [0.5], *op_checks.STEP.values()))


def test_without_native_code_the_references_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "PACKAGE", tmp_path)
    monkeypatch.setattr(library, "_parts", {})
    inputs = NormCase(64, 32).inputs(torch.bfloat16)
    x, skip, weight, bias, film, rows, *_ = inputs
    got = ops.film_group_norm(x, weight, bias, skip=skip, film=film, rows=rows)
    assert torch.equal(got, reference.film_group_norm(*inputs))
    for name in ("row", "negative row"):
        changes, error, message = NORM_ERRORS[name]
        for gradients_too in (False, True):
            with pytest.raises(error, match=message):
                _norm(**changes, weight=torch.ones(64, requires_grad=gradients_too))
    pixel = torch.randn(1, 32, 1, 1).to(memory_format=torch.channels_last)
    assert float(ops.film_group_norm(pixel, torch.ones(32), torch.zeros(32)).abs().max()) < 1e-4  # groups of one number
    qkv = torch.randn(2, 9, 96)
    torch.testing.assert_close(ops.attention(qkv, 4), reference.attention(qkv, 4, False))
    given = ops.solver_step(x.float().contiguous(), x, **op_checks.STEP)
    assert torch.equal(given[0], reference.solver_step(x.float().contiguous(), x, [], [], *op_checks.STEP.values())[0])
