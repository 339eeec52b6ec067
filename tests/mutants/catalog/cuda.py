"""Mistakes in the CUDA kernels' source, which the tests run on the CPU."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TESTS = "tests/test_cuda_moments_on_host.py"

CUDA = (
    Mutant(
        "a chunk of given moments counts as one pixel",
        "csrc/cuda/film_group_norm_given.cu",
        "return Moments{static_cast<float>(kChunk), distance, given.at(chunk, 1)};",
        "return Moments{1.0f, distance, given.at(chunk, 1)};",
        (f"{TESTS}::test_a_norm_by_given_moments",),
    ),
    Mutant(
        "pivots of given moments are forgotten",
        "csrc/cuda/film_group_norm_given.cu",
        "(given.at(chunk, 2) - pivot) + ",
        "",
        (f"{TESTS}::test_any_pixel_may_be_the_pivot",),
    ),
    Mutant(
        "the skip connection's moments are read as those of x lie",
        "csrc/cuda/film_group_norm_given.cu",
        "channels = of_skip ? p.norm.problem.skip_channels : p.norm.problem.x_channels;",
        "channels = p.norm.problem.x_channels;",
        (f"{TESTS}::test_offset_views_take_the_scalar_path",),
    ),
    Mutant(
        "what rounding takes from a center is lost",
        "csrc/cuda/film_group_norm_given.cu",
        "scaling.b - lost * scaling.a",
        "scaling.b",
        (f"{TESTS}::test_large_means_and_large_numbers_before_cost_no_digits",),
    ),
    Mutant(
        "moments count as many pixels of a thread in narrow images as in wide ones",
        "csrc/cuda/residual.cu",
        "const int count = kChunk / p.lanes;",
        "const int count = kHeld;",
        (f"{TESTS}::test_moments",),
    ),
    Mutant(
        "a number before the norm is not taken off the mean again",
        "csrc/cuda/film_group_norm_write.cuh",
        "coefficients[i] = groups[group] - add(channel);",
        "coefficients[i] = groups[group];",
        (f"{TESTS}::test_a_number_per_channel_before_the_norm",),
    ),
)
