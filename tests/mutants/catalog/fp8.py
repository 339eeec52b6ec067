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
_FILES = "tests/test_fp8_files.py"
_COMPARISON, _BENCH = "rcdm_fast/engine_comparison.py", "rcdm_fast/cli/bench.py"
_NAMED = (f"{_FILES}::test_results_name_the_calibrated_file",)
_HARDLY = (f"{_FILES}::test_channels_that_hardly_anything_reaches",)
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
    Mutant("phases of an image that has none", _PROGRAM, "self._phases = block.phases and first is None", "self._phases = block.phases", _PROGRAMS),
    Mutant("a residual is read as it lies there", _PROGRAM, "resample=1 if self.up else -1)\n\n\nclass", "resample=0)\n\n\nclass", _PROGRAMS),
    Mutant("fp8 in Triton: no scale", "kernels/fp8_kernels.py", "    total *= tl.load(scale_ptr", "    total += 0 * tl.load(scale_ptr", _INTERPRETED),
    Mutant("fp8 in Triton: taps of the next line", "kernels/fp8_kernels.py", "inside = here & (down >= 0) & (down < height) & (across >= 0) & (across < width)", "inside = here & (down >= 0) & (down < height)", _INTERPRETED),
    Mutant("fp8 in Triton: inputs beyond the largest", "kernels/fp8_kernels.py", "tl.clamp(v, -LARGEST, LARGEST,", "tl.clamp(v, -2 * LARGEST, 2 * LARGEST,", _INTERPRETED),
    Mutant("bench takes a file for a precision", _BENCH, "engines.parse(each)[0])  # type", "each)  # type", (f"{_FILES}::test_bench_takes_files",)),
    Mutant("bench finds a lacking file late", _BENCH, "        engines.parse_with_file(each)\n", "        engines.parse(each)\n", (f"{_FILES}::test_bench_refuses_before_the_model_is_loaded",)),
    Mutant("a folder is a file", _ENGINES, "file is not None and os.path.isdir(file)", "file is not None and not file", (f"{_FILES}::test_a_folder_is_no_file",)),
    Mutant("one file by two names is two", _ENGINES, "os.path.realpath(own) != os.path.realpath(file)", "Path(own) != Path(file)", (f"{_FILES}::test_one_file_by_two_names_is_one",)),
    Mutant("files of cases are read when they are drawn", _COMPARISON, "    made = {case: _made(model, case) for case in files}\n", "    made: dict[Case, _Made] = dict.fromkeys(files)  # type: ignore[arg-type]\n", (f"{_FILES}::test_every_file_is_looked_at_before_anything_is_drawn",)),
    Mutant("memory of a case is that of its first run", _COMPARISON, "else made.grown + grown", "else grown", (f"{_FILES}::test_memory_of_a_case_with_a_file_is_of_making_it_and_of_its_first_run",)),
    Mutant("results do not say what was calibrated", "rcdm_fast/provenance.py", "    if model.engine.digests:\n", "    if False:\n", _NAMED),
    Mutant("a wrapped engine forgets its digests", "rcdm_fast/diffusion/engine.py", "self.files, self.digests = engine.files, engine.digests", "self.files = engine.files", _NAMED),
    Mutant("where a calibrated file lies is told", "rcdm_fast/provenance.py", '_NAMED.sub(r"=\\1", word) for', "word for", ("tests/test_provenance.py::test_what_made_numbers",)),
    Mutant("fp8 cases look alike", "rcdm_fast/cli/compare.py", "*(digest[:12] for digest in each.digests[:1])", "*()", _NAMED),
    Mutant("a decoder is adapted from fp8", "rcdm_fast/analysis/adapted.py", "    if precision in engines.CALIBRATED:\n", "    if False:\n", (f"{_FILES}::test_decoders_are_not_adapted_from_a_calibrated_model",)),
    Mutant("scales of any exponent", _MODEL, ".clamp(-MOST_EXPONENT, MOST_EXPONENT)", "", _HARDLY),
    Mutant("weights too small for a scale", _MODEL, "torch.where(largest >= least,", "torch.where(largest > 0,", _HARDLY),
    Mutant("scales that are not normal", _EXPORT, "bool((scale < least).any()) or ", "", (f"{_FILES}::test_scales_that_nothing_can_be_divided_by_are_refused",)),
    Mutant("inverses that are not normal", _EXPORT, " or bool((1 / scale < least).any())", "", (f"{_FILES}::test_scales_that_nothing_can_be_divided_by_are_refused",)),
    Mutant("another engine's model travels without its file", _COMPARISON, "encoder, model.device, case.file)", "encoder, model.device)", (f"{_FILES}::test_a_model_that_was_put_on_another_engine_travels",)),
    Mutant("workers look in their own folders", _ENGINES, "os.path.abspath(file)", "file", (f"{_FILES}::test_workers_are_told_where_the_file_lies",)),
    Mutant("layers in fp8 are never the first", "rcdm_fast/engines/eager.py", " | nn.Conv2d | fp8.Fp8Convolution)", " | nn.Conv2d)", (f"{_FILES}::test_the_first_layer_that_is_not_finite_may_be_in_fp8",)),
)  # fmt: skip
