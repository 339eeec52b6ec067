"""Mistakes that were thought of without a look at the tests, and that no test had seen."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

CHOSEN = (
    Mutant(
        "log levels are not put back",
        "rcdm_fast/exporters/onnx.py",
        "            logger.setLevel(level)\n",
        "            logger.setLevel(logging.ERROR)\n",
        ("tests/test_export_onnx.py::test_loggers_of_the_exporter_are_left_as_they_were",),
    ),
    Mutant(
        "the least deviation is absolute",
        "training/representations.py",
        "std.clamp_min(1e-3 * float(std.max()))",
        "std.clamp_min(1e-3)",
        ("tests/test_representations.py",),
    ),
    Mutant(
        "samples are held against the classes of the first images",
        "rcdm_fast/analysis/attack.py",
        "told == labels[sources, None]",
        "told == labels[: len(sources), None]",
        ("tests/test_analysis_attack.py",),
    ),
    Mutant(
        "the seed does not reach PGD's start",
        "rcdm_fast/analysis/attack.py",
        "epsilon, steps, config.seed, config.batch_size)",
        "epsilon, steps, batch_size=config.batch_size)",
        ("tests/test_analysis_attack.py",),
    ),
    Mutant(
        "the first images of a half are attacked",
        "rcdm_fast/analysis/attack.py",
        "return known, rest[evenly(count, len(rest))]",
        "return known, rest[:count]",
        ("tests/test_analysis_attack.py",),
    ),
    Mutant(
        "experiments forget the solver",
        "rcdm_fast/analysis/common.py",
        "drawn = config if per is None else config.changed(per=per)",
        'drawn = config.changed(per=per or config.per, solver="ddim")',
        ("tests/test_analysis.py::test_every_setting_of_an_experiment_reaches_the_sampler",),
    ),
    Mutant(
        "the circular spread of samples is around the images' mean",
        "rcdm_fast/analysis/recovery.py",
        "(twice_q * np.exp(-2j * mean_q)).real",
        "(twice_q * np.exp(-2j * mean_p)).real",
        ("tests/test_analysis_recovery.py",),
    ),
    Mutant(
        "the ground counts as an object",
        "rcdm_fast/analysis/properties.py",
        "(apart - FLOOR).clamp_min(0) + 1e-9",
        "apart + 1e-9",
        ("tests/test_analysis_properties.py",),
    ),
    Mutant(
        "labels of samples go round",
        "rcdm_fast/evaluation.py",
        ".repeat_interleave(self.images.shape[1])",
        ".repeat(self.images.shape[1])",
        ("tests/test_evaluate.py",),
    ),
    Mutant(
        "the reciprocal of a mean rank",
        "rcdm_fast/evaluation.py",
        "reciprocal = (1 / rank).mean(axis=1)",
        "reciprocal = 1 / rank.mean(axis=1)",
        ("tests/test_evaluate.py",),
    ),
    Mutant(
        "the model's own space ignores the reference",
        "rcdm_fast/evaluation.py",
        "    if own and reference is None:\n",
        "    if own:\n",
        ("tests/test_evaluate.py",),
    ),
    Mutant(
        "the penalty is on the bias too",
        "rcdm_fast/metrics/ridge.py",
        "        weight[-1] = 0\n",
        "",
        ("tests/test_adapt.py::test_the_penalty_leaves_the_bias_alone",),
    ),
    Mutant(
        "a file that cannot be read ends the job",
        "rcdm_fast/jobs/feed.py",
        "except (ImageError, OSError) as error:",
        "except ImageError as error:",
        ("tests/test_jobs_draw.py",),
    ),
    Mutant(
        "the first step's noise is x_T",
        "rcdm_fast/diffusion/sampling.py",
        "keyed_noise(request.seed, keys, i + 1, request.image, device)",
        "keyed_noise(request.seed, keys, i, request.image, device)",
        ("tests/test_sampling.py",),
    ),
    Mutant(
        "the digest of a hub repository is not asked for",
        "rcdm_fast/models/checkpoint.py",
        "_load_path(hub.fetch(source), flags, sha256)",
        "_load_path(hub.fetch(source), flags)",
        ("tests/test_hub.py",),
    ),
    Mutant(
        "the first of several sizes is taken",
        "rcdm_fast/models/infer_flags.py",
        "return fitting[0] if len(fitting) == 1 else 0",
        "return fitting[0] if fitting else 0",
        ("tests/test_flags.py",),
    ),
)
