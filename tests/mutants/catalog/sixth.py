"""What was built after the fifth set: moments that are given, sums that go on over other images."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MOMENTS = ("tests/test_kernels_moments.py::test_in_the_interpreter[not long]",)

SIXTH = (
    Mutant(
        "moments of a skip connection are looked for where the image's lie",
        "rcdm_fast/kernels/film_group_norm_kernels.py",
        "        at = second + chunk[:, None] * 3 * skip_channels +",
        "        at = second + chunk[:, None] * 3 * x_channels +",
        MOMENTS,
    ),
    Mutant(
        "moments are written without their pivot",
        "rcdm_fast/kernels/residual_kernels.py",
        "    tl.store(at + 2 * channels, pivot, mask=here)",
        "    tl.store(at + 2 * channels, pivot * 0.0, mask=here)",
        MOMENTS,
    ),
    Mutant(
        "moments are those of numbers that were not rounded yet",
        "rcdm_fast/kernels/convolution_kernels.py",
        "write_moments(moments_ptr, rounded.to(tl.float32), tile_m",
        "write_moments(moments_ptr, total, tile_m",
        MOMENTS,
    ),
    Mutant(
        "attention leaves the moments of before",
        "rcdm_fast/engines/summed.py",
        "self._norm(x, silu=False)), None)\n",
        "self._norm(x, silu=False)), x.moments)\n",
        ("tests/test_folded.py::test_images_that_are_large_enough_for_moments",),
    ),
    Mutant(
        "what a skip connection misses is forgotten behind its projection",
        "rcdm_fast/engines/summed.py",
        "through(plain(other), of_skip)",
        "through(plain(other), None)",
        ("tests/test_folded.py",),
    ),
    Mutant(
        "a part of a sum begins the second image where the first one began",
        "rcdm_fast/kernels/convolution_kernels.py",
        "        begin -= tl.cdiv(left_inner, DEPTH)\n",
        "",
        ("tests/test_kernels_convolution.py::test_in_the_interpreter[not long]",),
    ),
    Mutant(
        "a candidate that runs out of memory is left out like one that cannot run",
        "rcdm_fast/ops/selection.py",
        "            if memory.out_of_memory(error):\n",
        "            if False:\n",
        ("tests/test_selection.py",),
    ),
    Mutant(
        "a split sum takes an image for the number of its parts",
        "rcdm_fast/ops/candidates.py",
        "partial(_split, kernel.convolution_residual, n)",
        "partial(kernel.convolution_residual, splits=n)",
        ("tests/test_graphs_forms.py::test_every_candidate_is_called_as_it_is_declared",),
    ),
    Mutant(
        "a wrong call is a reason to leave a candidate out",
        "rcdm_fast/ops/selection.py",
        "        except MISTAKES:\n            raise\n",
        "",
        ("tests/test_selection.py",),
    ),
    Mutant(
        "an engine draws with weights of before and after a change",
        "rcdm_fast/diffusion/engine.py",
        "            self.watch.check(self.name)\n",
        "            pass\n",
        ("tests/test_engines.py::test_weights_that_are_changed_later_are_an_error_or_drawn_with",),
    ),
    Mutant(
        "an engine that runs the network itself refuses its new weights",
        "rcdm_fast/engines/__init__.py",
        '    if kind != "eager" or chosen in CALIBRATED:',
        "    if True:",
        ("tests/test_engines.py::test_weights_that_are_changed_later_are_an_error_or_drawn_with",),
    ),
    Mutant(
        "a library from before is used for what it lacks",
        "rcdm_fast/ops/library.py",
        "    if lacking:\n",
        "    if False:\n",
        ("tests/test_ops.py::test_a_library_from_before_says_what_it_lacks",),
    ),
    Mutant(
        "moments are taken of images in any layout",
        "rcdm_fast/ops/schema_moments.py",
        "x.ndim != 4 or not is_channels_last(x)",
        "x.ndim != 4",
        ("tests/test_moments.py::test_an_image_in_another_layout_has_no_moments",),
    ),
    Mutant(
        "without native code a row of -1 is the last one",
        "rcdm_fast/ops/candidates.py",
        "if not 0 <= row < len(film):",
        "if row >= len(film):",
        ("tests/test_ops_native.py::test_without_native_code_the_references_run",),
    ),
    Mutant(
        "a child that was forked inside a call counts calls from below zero",
        "rcdm_fast/host.py",
        "max(0, self._inside - 1)",
        "self._inside - 1",
        ("tests/test_host.py::test_a_child_that_was_forked_inside_a_call_keeps_its_own_settings",),
    ),
)
