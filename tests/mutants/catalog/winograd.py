"""Which convolutions run after Winograd, and what engines and training make of them."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_FILE, _TESTS = "rcdm_fast/ops/winograd.py", ("tests/test_winograd.py",)
_LAYER, _BACKENDS = "training/convolution.py", "rcdm_fast/engines/backends.py"

WINOGRAD = (
    Mutant("a convolution without padding runs so", _FILE, "(stride, padding) != (1, 1)", "stride != 1", _TESTS),
    Mutant("bf16 runs so", _FILE, "there and dtype == torch.float32", "there", _TESTS),
    Mutant("any weight runs so, however large", _FILE, " or 4 * PLACES * outputs * inputs > MOST_BYTES", "", _TESTS),
    Mutant(
        "weights of any width run so", _FILE, "if outputs % PANEL or inputs % PANEL or", "if outputs % PANEL or", _TESTS
    ),
    Mutant("processors without vectors run so", _FILE, 'in ("avx2", "avx512", "avx512_bf16")', '!= ""', _TESTS),
    Mutant("processors with AVX-512 do not run so", _FILE, '("avx2", "avx512", "avx512_bf16")', '("avx2",)', _TESTS),
    Mutant(
        "an upsampled image counts as the small one",
        _FILE,
        "* (2 if upsampled else 1) >= LEAST_SIDE",
        ">= LEAST_SIDE",
        _TESTS,
    ),
    Mutant("a residual is kept where it may be overwritten", _FILE, "add is not None and overwrite", "False", _TESTS),
    Mutant("a residual is overwritten unasked", _FILE, "add is not None and overwrite", "add is not None", _TESTS),
    Mutant("small images are not upsampled", _BACKENDS, "upsampled(x) if self._upsampled else x", "x", _TESTS),
    Mutant(
        "the gradient of an input is that of the convolution itself",
        _LAYER,
        "winograd.packed(weight, mirrored=True)",
        "winograd.packed(weight.transpose(0, 1).contiguous())",
        _TESTS,
    ),
    Mutant(
        "a residual is left out of training",
        _LAYER,
        "winograd.convolution(x, winograd.packed(used), bias, last)",
        "winograd.convolution(x, winograd.packed(used), bias)",
        ("tests/test_fused_training.py",),
    ),
    Mutant(
        "a bias is left out of training",
        _LAYER,
        "winograd.convolution(x, winograd.packed(used), bias, last)",
        "winograd.convolution(x, winograd.packed(used), None, last)",
        ("tests/test_fused_training.py",),
    ),
    Mutant(
        "the next norm takes whole images for phases",
        "rcdm_fast/engines/program.py",
        "self.phases = self.up and whole is None",
        "self.phases = self.up",
        ("tests/test_engines.py",),
    ),
)
