"""What was built after the fourth set: factors of a world, deadlines, beginnings of solvers, convolutions of ours."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FIFTH = (
    Mutant(
        "a probe is judged on what it was fitted on",
        "rcdm_fast/analysis/factors.py",
        "mlp_probe.read(h[~asked], wanted[~asked], h[asked], seed)",
        "mlp_probe.read(h, wanted, h[asked], seed)",
        ("tests/test_analysis_factors.py",),
    ),
    Mutant(
        "a factor is judged without readouts",
        "rcdm_fast/analysis/factors.py",
        "read, rules.verdict(slope, read))",
        "read, rules.verdict(slope))",
        ("tests/test_analysis_factors.py",),
    ),
    Mutant(
        "samples of a source are read as if they were others'",
        "rcdm_fast/analysis/factors.py",
        "answer = reader.read(drawn.flatten(0, 1).clamp(-1, 1))",
        "answer = reader.read(drawn.transpose(0, 1).flatten(0, 1).clamp(-1, 1))",
        ("tests/test_analysis_factors.py",),
    ),
    Mutant(
        "a network that reads stops with the weights that it has then",
        "rcdm_fast/metrics/mlp_probe.py",
        "    network.load_state_dict(best)\n",
        "",
        ("tests/test_analysis_factors.py",),
    ),
    Mutant(
        "what a network reads has no say in what is dropped",
        "rcdm_fast/analysis/factors.py",
        "read, rules.verdict(slope, read))",
        "read, rules.verdict(slope, read[:2]))",
        ("tests/test_analysis_factors.py",),
    ),
    Mutant(
        "learning that was over does not look at other beginnings",
        "rcdm_fast/solver_learning.py",
        '    if run and run.get("begun", []) != begun:\n',
        "    if False:\n",
        ("tests/test_solver_learning.py::test_other_beginnings_are_looked_at_where_learning_was_over",),
    ),
    Mutant(
        "processes stop by their own clocks",
        "rcdm_fast/training/loop.py",
        "stop = not finished and deadline.minutes is not None and agreed(deadline.over)",
        "stop = not finished and deadline.over",
        ("tests/test_training_options.py::test_a_process_stops_when_all_agree_and_not_by_its_own_clock",),
    ),
    Mutant(
        "solvers for another schedule are a beginning",
        "rcdm_fast/solver_learning.py",
        "    if (ours.noise_schedule, ours.diffusion_steps) != (theirs.noise_schedule, theirs.diffusion_steps):\n",
        "    if ours.diffusion_steps != theirs.diffusion_steps:\n",
        ("tests/test_solver_learning.py::test_solvers_of_another_model_are_asked_of_it",),
    ),
    Mutant(
        "a convolution takes what lies beyond the right border from the next line",
        "rcdm_fast/kernels/convolution_kernels.py",
        " & (column + across < width)",
        "",
        ("tests/test_kernels_convolution.py::test_in_the_interpreter[not long]",),
    ),
    Mutant(
        "parts of a sum overlap",
        "rcdm_fast/kernels/convolution_kernels.py",
        "tl.minimum(begin, 9 * blocks), tl.minimum(end, 9 * blocks)",
        "tl.minimum(begin, 9 * blocks), tl.minimum(end + 1, 9 * blocks)",
        ("tests/test_kernels_convolution.py::test_in_the_interpreter[not long]",),
    ),
    Mutant(
        "an encoder is called by its configuration and not as it was asked for",
        "rcdm_fast/cli/training.py",
        '"compile": compile, "name": name.removesuffix("-encoder")}',
        '"compile": compile}',
        ("tests/test_cli_options.py",),
    ),
)
