"""What runs a network, from which file, and what of it is kept for the next one."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_ORT = "rcdm_fast/engines/onnx_runtime.py"

ENGINES = (
    Mutant(
        "plans of onnxruntime's TensorRT are told apart by the graph, not by weights beside it",
        _ORT,
        '    parts = sorted(file.parent.glob(f"{file.name}*"))',
        "    parts = [file]",
        ("tests/test_export_onnx.py::test_tensorrt_plans_of_onnxruntime_belong_to_one_file",),
    ),
    Mutant(
        "a file of another precision is run as the one that is asked for",
        "rcdm_fast/exporters/onnx.py",
        "    if info.precision not in able:\n",
        '    if info.precision not in (*able, "fp16", "bf16"):\n',
        ("tests/test_export_onnx.py::test_reduced_precision",),
    ),
    Mutant(
        "the last one to build an entry of the cache takes it away from the first",
        "rcdm_fast/engines/cache.py",
        "    if os.path.lexists(place) and not _fault(place, key):",
        "    if False:",
        ("tests/test_engine_cache.py::test_another_process_that_was_quicker",),
    ),
    Mutant(
        "a model refuses to draw what its file says of solvers for the weights before rounding",
        "rcdm_fast/exporters/hub_folder.py",
        "    return dataclasses.replace(config, fitted=own)",
        "    return config",
        ("tests/test_hub.py::test_solvers_of_weights_before_rounding_are_left_out",),
    ),
    Mutant(
        "one step lies at the first timestep",
        "rcdm_fast/diffusion/schedule.py",
        '        if (how or placement) == "uniform" and count > 1:',
        '        if (how or placement) == "uniform":',
        ("tests/test_schedule.py::test_a_placement_is_that_of_the_text_if_it_names_one",),
    ),
    Mutant(
        "an x_T that is not finite is given as one",
        "rcdm_fast/diffusion/inversion.py",
        "        if not bool(x_t.isfinite().all()):",
        "        if False:",
        ("tests/test_pipeline.py::test_an_inversion_that_is_not_finite_is_an_error",),
    ),
)
