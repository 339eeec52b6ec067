"""The roofline of GPUs: kernels, bytes and times of a network that is small enough to count by hand."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import gpu_model, launches, roofline, traced, workload
from benchmarks.documents import results
from benchmarks.launches import ELEMENT_BYTES, Kernel
from benchmarks.roofline import Device
from rcdm_fast.config import ConfigError, UNetConfig

# A residual block down, two and attention in the middle, two up with a projection of 64 channels each.
TINY = UNetConfig(
    image_size=8,
    num_channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    learn_sigma=True,
    representation_dim=4,
)
BATCH = 2
PLANE = BATCH * 32 * 8 * 8 * ELEMENT_BYTES  # bytes of 32 channels of a batch
TOY = Device("toy", tflops=100.0, bytes_per_s=1e12, multiprocessors=10, launch_us=1.0)


def _count(kernels: list[Kernel]) -> dict[str, int]:
    return dict(collections.Counter(kernel.kind for kernel in kernels))


def _planes(kernels: list[Kernel], kind: str) -> float:
    return sum(kernel.moved for kernel in kernels if kernel.kind == kind) / PLANE


def test_what_the_native_program_launches() -> None:
    found = launches.of_engine(traced.of_program(TINY, BATCH))
    assert _count(found) == {"convolution": 18, "bias": 16, "residual": 8, "norm": 12, "attention": 1, "other": 1}
    assert _planes(found, "bias") == 2 * (1 + 2 + 4 + (3 + 1) + 2 * 3 + 6 / 32)
    assert _planes(found, "residual") == 8 * 3
    assert _planes(found, "norm") == 10 * 2 + 2 * 4
    assert _planes(found, "attention") == 4
    assert _planes(found, "other") == 2 * 3 / 32
    first, second = [kernel for kernel in found if kernel.kind == "convolution"][:2]
    assert first.product == (BATCH * 64, 32, 27)
    assert second.product == (BATCH * 64, 32, 288)
    assert second.moved == 2 * PLANE + 32 * 288 * ELEMENT_BYTES
    assert second.flop == 2 * BATCH * 64 * 32 * 288
    (attention,) = (kernel for kernel in found if kernel.kind == "attention")
    assert attention.flop == 2 * 2 * BATCH * 64 * 64 * 32


def test_what_the_compiler_is_taken_to_launch() -> None:
    """Sums are written by the reduction that reads them, a concatenation too."""
    found = launches.of_compiler(traced.of_plain(TINY, BATCH))
    assert _count(found) == {"convolution": 16, "norm": 24, "attention": 1}
    of_one, of_sum, of_both = 1, 3, 5
    assert _planes(found, "norm") == (1 + 5) * of_one + 4 * of_sum + 2 * of_both + 10 * 2 + 2 * 4


def test_only_images_grow_with_the_batch() -> None:
    one, many = (launches.of_engine(traced.of_program(TINY, batch)) for batch in (1, 32))
    for each, other in zip(one, many, strict=True):
        assert (each.product is None) == (other.product is None)
        if each.product is not None and other.product is not None:
            assert (32 * each.product[0], *each.product[1:]) == other.product
        assert other.written == 32 * each.written


def test_norms_of_large_images_take_two_kernels() -> None:
    large = dataclasses.replace(TINY, image_size=128)
    found = launches.of_engine(traced.of_program(large, 1))
    assert _count(found)["norm"] == 2 * 12
    norms = [kernel for kernel in found if kernel.kind == "norm"]
    assert [kernel.written for kernel in norms[:2]] == [0, norms[0].read]


def test_times_of_a_kernel() -> None:
    assert roofline.kernel_ms(Kernel("norm", 900_000_000, 0), TOY) == pytest.approx(1e-3 + 1.0)
    # Ten tiles of 64 x 128, one on each multiprocessor, are quicker than six of 128 x 128.
    product = Kernel("convolution", 0, 0, (300, 200, 64), 2 * 300 * 200 * 64)
    assert roofline.kernel_ms(product, TOY) == pytest.approx(1e-3 + 1e3 * 2 * 64 * 128 * 64 / (0.78 * 10e12))
    more = Kernel("convolution", 0, 0, (64 * 11, 128, 64), 1)  # six of 128 x 128 in one round
    assert roofline.kernel_ms(more, TOY) == pytest.approx(1e-3 + 1e3 * 2 * 128 * 128 * 64 / (0.78 * 10e12))
    half = Kernel("convolution", 0, 0, (64 * 11, 64, 64), 1)  # tiles that are filled to a half take as long
    assert roofline.kernel_ms(half, TOY) == roofline.kernel_ms(more, TOY)
    assert roofline.kernel_ms(Kernel("attention", 1, 1, None, 10**11), TOY) == pytest.approx(1e-3 + 2.0)


def test_rows_add_up() -> None:
    rows = roofline.predict(TINY, BATCH, TOY)
    assert [row["name"] for row in rows] == list(roofline.WAYS)
    for row in rows:
        assert row["ms"] == pytest.approx(sum(row[f"{kind}_ms"] for kind in launches.KINDS))
        assert row["of_compile"] == pytest.approx(rows[-1]["ms"] / row["ms"])
        assert row["mfu_percent"] == pytest.approx(row["flop"] / (row["ms"] * 1e-3) / 100e12 * 100)
    assert rows[0]["kernels"] == 56


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({**vars(TOY), "name": "toy"}))
    out = tmp_path / "model.json"
    arguments = ["--config", "rehearsal", "--device", "H100", str(path), "--batches", "1", "3", "--json", str(out)]
    assert gpu_model.main(arguments) == 0
    said = capsys.readouterr().out
    assert "a model, not a measurement" in said
    assert all(each in said for each in roofline.ASSUMPTIONS)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["device"], row["batch"]) for row in rows[:: len(roofline.WAYS)]] == [
        ("H100", 1), ("H100", 3), ("toy", 1), ("toy", 3),
    ]  # fmt: skip


def test_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = roofline.device_named("NVIDIA H100 PCIe")
    assert found is not None
    assert found.bytes_per_s == 2.0e12
    smaller = roofline.device_named("NVIDIA A100-SXM4-40GB")
    assert smaller is not None
    assert smaller.bytes_per_s == 1.555e12
    assert roofline.device_named("NVIDIA L40") is None
    assert gpu_model.main(["--config", "rehearsal", "--device", "abacus"]) == 2
    assert "no numbers of 'abacus'; known: H200" in capsys.readouterr().err
    path = tmp_path / "d.json"
    for wrong in (
        "{",
        "[]",
        '{"name": "x"}',
        json.dumps({**vars(TOY), "tflops": 0}),
        json.dumps({**vars(TOY), "tflops": "a"}),
    ):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"d\.json"):
            roofline.read_device(path)


EPILOGUE, MOMENTS = "native, residuals in convolutions", "native, moments in convolutions"
# Of one evaluation of the 128-px release; bytes at 64 images.
KERNELS = {"native": 464, "native, biases folded": 286, EPILOGUE: 269, MOMENTS: 236}
GBYTE = {"native": 131.4, "native, biases folded": 88.5, EPILOGUE: 83.3, MOMENTS: 64.4}


@pytest.mark.parametrize("way", KERNELS)
@pytest.mark.long
def test_budgets_of_the_published_size(way: str) -> None:
    found = roofline.kernels_of(workload.read_config("release128").unet, 64, way)
    assert len(found) <= KERNELS[way]
    assert sum(kernel.moved for kernel in found) <= GBYTE[way] * 1e9
    assert _count(list(found)).get("bias", 0) <= (122 if way == "native" else 1)


@pytest.mark.long
def test_the_published_table_is_what_the_model_says_today() -> None:
    device, unet = roofline.device_named("H100"), workload.read_config("release128").unet
    assert device is not None
    published = results.read("gpu_model_h100")["rows"]
    for batch in (1, 4, 16, 64, 256):
        for row in roofline.predict(unet, batch, device):
            (stands,) = (each for each in published if (each["batch"], each["name"]) == (batch, row["name"]))
            assert stands["kernels"] == row["kernels"]
            assert (stands["ms"], stands["of_compile"]) == pytest.approx((row["ms"], row["of_compile"]), rel=1e-4)


def test_moments_save_a_read_and_projections_a_pass() -> None:
    """Of images of 128 pixels: 12 norms, of which each takes a kernel for the moments it is given and one to write."""
    large = dataclasses.replace(TINY, image_size=128)
    folded = launches.of_engine(traced.of_program(large, 1, "folded", epilogue=True))
    summed = launches.of_engine(traced.of_program(large, 1, "summed", epilogue=True))
    plane = 32 * 128 * 128 * ELEMENT_BYTES
    moments = 128 * 3 * 32 * launches.MOMENT_BYTES  # of a plane, whose norm joins them into 3 * 32 numbers
    joined = 3 * 32 * launches.MOMENT_BYTES
    assert _count(summed) == {"convolution": 14, "bias": 1, "norm": 2 * 12, "attention": 1, "other": 1}
    norms = sum(kernel.moved for kernel in summed if kernel.kind == "norm")
    # One norm follows attention and takes its moments itself; two read skip connections beside their images.
    given = 10 + 2 * 2 - 1
    assert norms == (2 * 10 + 2 * 4 + 1) * plane + given * (moments + 2 * joined)
    saved = sum(kernel.moved for kernel in folded) - sum(kernel.moved for kernel in summed)
    assert saved > 0
    assert sum(kernel.flop for kernel in folded) == sum(kernel.flop for kernel in summed)


def test_folded_biases_take_no_kernels_but_the_last() -> None:
    found = launches.of_engine(traced.of_program(TINY, BATCH, "folded"))
    assert _count(found) == {"convolution": 18, "bias": 1, "residual": 3, "norm": 12, "attention": 1, "other": 1}
    assert _planes(found, "residual") == 3 * 3
    fused = launches.of_engine(traced.of_program(TINY, BATCH, "folded", epilogue=True))
    assert _count(fused) == {"convolution": 18, "bias": 1, "norm": 12, "attention": 1, "other": 1}
    saved = sum(kernel.moved for kernel in found) - sum(kernel.moved for kernel in fused)
    assert saved == 2 * sum(kernel.written for kernel in found if kernel.kind == "residual")  # written and read again
    assert sum(kernel.flop for kernel in fused) == sum(kernel.flop for kernel in found)
    whole = launches.of_engine(traced.of_program(TINY, BATCH))
    work, other = (sum(kernel.flop for kernel in kernels) for kernels in (found, whole))
    assert work == other
