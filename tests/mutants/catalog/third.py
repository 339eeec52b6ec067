"""A third set, thought of in the same way: what neither the nearest tests nor, in most cases, any others had noticed."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

THIRD = (
    Mutant(
        "PGD's random start begins anew with every batch",
        "rcdm_fast/analysis/perturb.py",
        "    generator = torch.Generator().manual_seed(seed)\n    for part, target in zip(views.split(batch_size), labels.split(batch_size), strict=True):\n",
        "    for part, target in zip(views.split(batch_size), labels.split(batch_size), strict=True):\n        generator = torch.Generator().manual_seed(seed)\n",
        ("tests/test_analysis_attack.py::test_every_image_starts_elsewhere_and_in_any_batch_there",),
    ),
    Mutant(
        "a step at the last frame of a way is not tried",
        "rcdm_fast/analysis/interpolate.py",
        "for at in range(1, fractions.shape[1])], axis=0\n",
        "for at in range(1, fractions.shape[1] - 1)], axis=0\n",
        ("tests/test_analysis_ways.py::test_line_step_rise_and_jump_by_hand",),
    ),
    Mutant(
        "shared representations kept by the number of images only",
        "rcdm_fast/analysis/shared.py",
        '    key = ("representations", data.identity)\n',
        '    key = ("representations", len(data))\n',
        ("tests/test_analysis_shared.py::test_sets_of_images_are_told_apart",),
    ),
    Mutant(
        "label of a shard's .cls keeps its line break",
        "rcdm_fast/data/readers/tars.py",
        '            return cls.decode("utf-8", "replace").strip()\n',
        '            return cls.decode("utf-8", "replace")\n',
        ("tests/test_sources.py",),
    ),
    Mutant(
        "register tokens are taken for patches",
        "rcdm_fast/encoders/layers.py",
        "            return 1 + (registers if isinstance(registers, int) else 0)\n",
        "            return 1\n",
        ("tests/test_encoders.py::test_registers_are_no_patches",),
    ),
    Mutant(
        "a full history of losses gets its newest at the wrong end",
        "rcdm_fast/training/timesteps.py",
        "                kept[-1] = loss\n",
        "                kept[0] = loss\n",
        ("tests/test_training_options.py::test_the_last_losses_of_a_step_count_by_their_mean_square",),
    ),
    Mutant(
        "the key leaves the encoder's own answers out",
        "rcdm_fast/training/representations.py",
        "    return hashlib.sha256(described.encode() + probe.numpy().tobytes() + data.identity.encode()).hexdigest()[:16]",
        "    return hashlib.sha256(described.encode() + data.identity.encode()).hexdigest()[:16]",
        ("tests/test_representations.py::test_what_an_encoder_answers_decides_where_its_configuration_does_not",),
    ),
    Mutant(
        "a student is judged from the stream of noise that it learned from",
        "rcdm_fast/training/distill.py",
        "        x, given = self.draw(step_generator(config.seed, 0, _JUDGED), config.judged, per=2)\n",
        "        x, given = self.draw(step_generator(config.seed, 0), config.judged, per=2)\n",
        ("tests/test_distill.py::test_it_is_judged_by_noise_that_it_has_not_seen",),
    ),
    Mutant(
        "after a second halving of the bucket the rest begins in the wrong place",
        "rcdm_fast/jobs/draw.py",
        "                left = left[count:]\n",
        "                left = pairs[count:]\n",
        ("tests/test_jobs_draw.py::test_memory_shrinks_in_the_middle_of_a_unit_twice",),
    ),
    Mutant(
        "the usual settings overwrite those that a job was begun with",
        "rcdm_fast/jobs/ledger.py",
        '        before["settings"] = {**_USUAL, **before["settings"]}\n',
        '        before["settings"] = {**before["settings"], **_USUAL}\n',
        ("tests/test_jobs_ledger.py::test_settings_that_a_job_says_are_its_own",),
    ),
    Mutant(
        "items that could be read and not drawn are never reported",
        "rcdm_fast/jobs/stream.py",
        "            yield Generated(item, sample, ids, drawn.levels.permute(0, 3, 1, 2))\n        report(ready.bad)\n",
        "            yield Generated(item, sample, ids, drawn.levels.permute(0, 3, 1, 2))\n",
        ("tests/test_jobs_draw.py::test_the_same_in_a_stream",),
    ),
    Mutant(
        "a fall of the MRR is compared as a fraction with a limit in percent",
        "rcdm_fast/cli/compare.py",
        "        if -100 * change.value > max_mrr_loss:\n",
        "        if -change.value > max_mrr_loss:\n",
        ("tests/test_cli_rules.py",),
    ),
    Mutant(
        "what was learned is deleted before the model is written",
        "rcdm_fast/cli/tune.py",
        "    solver_learning.save(out, loaded, learned)\n    state.unlink(missing_ok=True)\n",
        "    state.unlink(missing_ok=True)\n    solver_learning.save(out, loaded, learned)\n",
        ("tests/test_solver_learning.py::test_the_command_writes_the_model",),
    ),
    Mutant(
        "the encoder's file in the cache is checked only when it was just fetched",
        "rcdm_fast/models/hub.py",
        "            huggingface_hub.hf_hub_download(repository, name, **options)\n        if wanted:\n            _check(path.parent / wanted)\n",
        "            huggingface_hub.hf_hub_download(repository, name, **options)\n            _check(path.parent / wanted)\n",
        ("tests/test_hub.py::test_both_files_are_checked_whenever_they_are_used",),
    ),
    Mutant(
        "names of sequences on a strip go round with the samples",
        "rcdm_fast/films.py",
        '    titles = [name if number == 0 else "" for name in names for number in range(per)]\n',
        '    titles = [name if number == 0 else "" for number in range(per) for name in names]\n',
        ("tests/test_sequences.py::test_a_sequences_name_stands_at_its_first_sample",),
    ),
)
