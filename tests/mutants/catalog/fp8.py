"""Convolutions in fp8."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_MODEL, _EXPORT, _PROGRAM = "rcdm_fast/models/fp8.py", "rcdm_fast/exporters/fp8.py", "rcdm_fast/engines/fp8_program.py"
_ENGINES, _FALLBACK, _FILE = "rcdm_fast/engines/__init__.py", "rcdm_fast/exporters/fallback.py", "tests/test_fp8.py"
_ROUNDED = (f"{_FILE}::test_rounding_is_that_of_the_format_and_saturates",)
_SUMS = (f"{_FILE}::test_a_convolution_is_the_float64_sum_of_rounded_operands",)
_REFUSED = (f"{_FILE}::test_files_that_are_not_this_models_are_refused",)
_SEEN = (f"{_FILE}::test_calibration_sees_the_trajectories_that_it_may",)
_KEPT = (f"{_FILE}::test_what_is_not_chosen_runs_unrounded",)
_ASKED = (f"{_FILE}::test_who_has_no_fp8_says_so",)
_PROGRAMS = ("tests/test_fp8_program.py::test_it_computes_the_emulations_network",)
_INTERPRETED = ("tests/test_kernels_fp8.py::test_in_the_interpreter",)

FP8 = (
    Mutant("e4m3 without small numbers", _MODEL, "LEAST_EXPONENT = -6", "LEAST_EXPONENT = -7", _ROUNDED),
    Mutant("e4m3 does not saturate", _MODEL, "x = x.clamp(-LARGEST, LARGEST)", "x = x + 0", _ROUNDED),
    Mutant("e4m3 with two bits", _MODEL, "MANTISSA = 3  # bits", "MANTISSA = 2  # bits", _ROUNDED),
    Mutant("weights do not take up scales", _MODEL, "weight.detach().float() * scale[:, None, None]", "weight.detach().float()", _SUMS),
    Mutant("weights are not rounded", _MODEL, "rounded(folded / out_scale[:, None, None, None])", "folded / out_scale[:, None, None, None]", _SUMS),
    Mutant("inputs are not rounded", _MODEL, "x = rounded(x * self.inverse[:, None, None])", "x = x * self.inverse[:, None, None]", _SUMS),
    Mutant("no room above what was calibrated", _MODEL, "AIMED = LARGEST / 2", "AIMED = LARGEST", (f"{_FILE}::test_scales_of_inputs_are_powers_of_two_with_room_above",)),
    Mutant("the first convolution is rounded, too", _MODEL, "names[1:-1]", "names[:-1]", _KEPT),
    Mutant("emulation changes the model itself", _MODEL, "made = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})", "made = network", _KEPT),
    Mutant("calibration sees what is held out", _FALLBACK, "calibration.collect(watched or network, job.config, *to_use)", "calibration.collect(watched or network, job.config, given, count)", _SEEN),
    Mutant("the best layers stay", _EXPORT, "key=lambda layer: -layer.error", "key=lambda layer: layer.error", _SEEN),
    Mutant("scales of other weights are taken", _EXPORT, "    check_belongs(info, network, config, where)\n", "", _REFUSED),
    Mutant("scales of any size are taken", _EXPORT, "not bool((scale.frexp().mantissa == 0.5).all())", "not bool(scale.isfinite().all())", _REFUSED),
    Mutant("layers may be missing", _EXPORT, "if sorted([*tensors, *names]) != sorted(convolutions):", "if not {*tensors, *names} <= set(convolutions):", _REFUSED),
    Mutant("auto emulates", _ENGINES, "if spec.automatic and not emulates and not", "if spec.automatic and not", _ASKED),
    Mutant("an upsampled block reads small images", _PROGRAM, "1 if layer.up else 0)", "0)", _PROGRAMS),
    Mutant("phases of an image that has none", _PROGRAM, "self._phases = block.up and first is None", "self._phases = block.up", _PROGRAMS),
    Mutant("a residual is read as it lies there", _PROGRAM, "resample=1 if self.up else -1)\n\n\nclass", "resample=0)\n\n\nclass", _PROGRAMS),
    Mutant("fp8 in Triton: no scale", "kernels/fp8_kernels.py", "    total *= tl.load(scale_ptr", "    total += 0 * tl.load(scale_ptr", _INTERPRETED),
    Mutant("fp8 in Triton: taps of the next line", "kernels/fp8_kernels.py", "inside = here & (down >= 0) & (down < height) & (across >= 0) & (across < width)", "inside = here & (down >= 0) & (down < height)", _INTERPRETED),
    Mutant("fp8 in Triton: inputs beyond the largest", "kernels/fp8_kernels.py", "tl.clamp(v, -LARGEST, LARGEST,", "tl.clamp(v, -2 * LARGEST, 2 * LARGEST,", _INTERPRETED),
)  # fmt: skip
