"""What the commands hand on, how configurations and flags are read, and which weights are taken."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CLI, _CHECKPOINT, _FLAGS = "rcdm_fast/cli", "rcdm_fast/models/checkpoint.py", "rcdm_fast/models/flags.py"
_RUN, _PRETRAIN, _ADAPT = "training/run.py", "training/pretrain.py", "training/adapt.py"
_GENERATE, _SAMPLING, _EVALUATE = f"{_CLI}/generate.py", f"{_CLI}/sampling.py", f"{_CLI}/evaluate.py"
_COMPARE, _TRAIN, _COMMON = f"{_CLI}/compare.py", f"{_CLI}/training.py", f"{_CLI}/common.py"

_ARRIVES, _RULES = ("tests/test_cli_options.py",), ("tests/test_cli_rules.py",)
_OF_FLAGS, _OF_FILES, _OF_STEPS = ("tests/test_flags.py",), ("tests/test_checkpoint.py",), ("tests/test_optimizers.py",)
_CONFIG, _OF_CONFIG = "rcdm_fast/diffusion/sampling_config.py", ("tests/test_sampling_config.py",)
_OF_AGREEMENT = ("tests/test_cli_agreement.py",)
_OF_PLACES = ("tests/test_folders.py::test_what_is_written_lies_outside_of_what_is_read",)
_LEVELS = ("tests/test_pipeline.py::test_levels_are_no_images_in_floats",)

COMMANDS = (
    Mutant("generate forgets --retry", _GENERATE, "RunOptions(batch_size, threads, retry)", "RunOptions(batch_size, threads)", _ARRIVES),
    Mutant("steps are a text", "rcdm_fast/cli/common.py", '"steps": whole_number(steps)', '"steps": steps', _ARRIVES),
    Mutant("commands forget --seed", "rcdm_fast/cli/common.py", '"solver": solver, "seed": seed}', '"solver": solver, "seed": 0}', _ARRIVES),
    Mutant("generate forgets --eta", _GENERATE, "common.sampling(per, steps, solver, seed, eta, guidance)", "common.sampling(per, steps, solver, seed, None, guidance)", _ARRIVES),
    Mutant("sample forgets --eta", _SAMPLING, "common.sampling(per, steps, solver, seed, eta, guidance)", "common.sampling(per, steps, solver, seed, None, guidance)", _ARRIVES),
    Mutant("sample forgets --guidance", _SAMPLING, "common.sampling(per, steps, solver, seed, eta, guidance)", "common.sampling(per, steps, solver, seed, eta)", _ARRIVES),
    Mutant("sample forgets --guide", _SAMPLING, "items=items, guide=weaker)", "items=items)", _ARRIVES),
    Mutant("evaluate forgets --guide", "rcdm_fast/cli/evaluate.py", "measures.draw(loaded, images, settings, shown, weaker, own, judge)", "measures.draw(loaded, images, settings, shown, None, own, judge)", _ARRIVES),
    Mutant("the mode of a way is ignored", _SAMPLING, "mode=mode.value, ", "", _ARRIVES),
    Mutant("a way goes back", _SAMPLING, "loaded.interpolate(from_h, to_h,", "loaded.interpolate(to_h, from_h,", _RULES),
    Mutant("another quality by default", _GENERATE, 'lossless.")] = 95', 'lossless.")] = 90', _ARRIVES),
    Mutant("other steps by default", _EVALUATE, "steps: common.Steps = str(SamplingConfig.steps)", 'steps: common.Steps = "25"', _ARRIVES),
    Mutant("engine and precision change places on Ray", _GENERATE, "encoder, device, engine, precision, sha256)\n            summary = cluster", "encoder, device, precision, engine, sha256)\n            summary = cluster", _ARRIVES),
    Mutant("the digest is not asked for", _COMMON, "precision, sha256=sha256)", "precision)", _ARRIVES),
    Mutant("sources and gallery change places", _EVALUATE, "EvaluateConfig(sources=sources, gallery=gallery,", "EvaluateConfig(sources=gallery, gallery=sources,", _ARRIVES),
    Mutant("other models run by themselves", f"{_CLI}/common.py", "rcdm_fast.load(name, None, spec, device, engine, precision)", "rcdm_fast.load(name, None, spec)", _ARRIVES),
    Mutant("--no-compile is no change", _TRAIN, '"name": name.removesuffix("-encoder")}\n    values.update({key: value for key, value in changes.items() if value is not None})', '"name": name.removesuffix("-encoder")}\n    values.update({key: value for key, value in changes.items() if value})', _ARRIVES),
    Mutant("a shipped configuration hides a file", "rcdm_fast/workflows.py", "else [chosen, shipped]) if", "else [shipped, chosen]) if", _RULES),
    Mutant("settings stay texts", _TRAIN, "            place[last] = json.loads(text)\n", "            pass\n", _RULES),
    Mutant("a gain of MRR fails", _COMPARE, "if -100 * change.value > max_mrr_loss", "if 100 * change.value > max_mrr_loss", _RULES),
    Mutant("a damaged job is only unfinished", _GENERATE, "    if not found.sound:\n        raise typer.Exit(1)\n", "", _RULES),
    Mutant("calibration sees the first class", f"{_CLI}/export.py", "chosen = evenly(min(CALIBRATED, len(found)), len(found))", "chosen = evenly(len(found), len(found))[:CALIBRATED]", _RULES),
    Mutant("flags lose the small variance", _FLAGS, '    if schedule.variance == "fixed_small":\n        flags["sigma_small"] = True\n', "", _OF_FLAGS),
    Mutant("flags lose the heads of the decoder", _FLAGS, 'num_heads_upsample=_int(values, "num_heads_upsample")', "num_heads_upsample=-1", _OF_FLAGS),
    Mutant("flags lose the bounds of the variance", _FLAGS, "    if schedule.clamp_variance:", "    if False:", _OF_FLAGS),
    Mutant("turned tensors fit", _CHECKPOINT, "if name in found and found[name].shape != shape", "if name in found and found[name].numel() != shape.numel()", _OF_FILES),
    Mutant("levels are taken for images", "rcdm_fast/images.py", "        return check_images(given)\n", "        return given\n", _LEVELS),
    Mutant("training has no weight decay", _RUN, "weight_decay=config.weight_decay", "weight_decay=0.0", _OF_STEPS),
    Mutant("pre-training has no weight decay", _PRETRAIN, "weight_decay=config.weight_decay", "weight_decay=0.0", _OF_STEPS),
    Mutant("adapting has no weight decay", _ADAPT, "weight_decay=config.weight_decay", "weight_decay=0.0", _OF_STEPS),
    Mutant("one cut for all", _RUN, "self.network.parameters(), config.clip_norm, foreach", "self.network.parameters(), 1.0, foreach", _OF_STEPS),
    Mutant("all averages are the first", _RUN, "for decay in (config.ema, *config.ema_decays)]\n        self.loss", "for decay in (config.ema,) * (1 + len(config.ema_decays))]\n        self.loss", _OF_STEPS),
    Mutant("a configuration goes before keywords", _CONFIG, "**{**_part(base), **settings}", "**{**settings, **_part(base)}", _OF_CONFIG),
    Mutant("an inversion takes guidance", _CONFIG, '("eta", 0), ("guidance", 1)', '("eta", 0)', _OF_CONFIG),
    Mutant("switches stand in front only", f"{_CLI}/__init__.py", "_run(_in_front(given))", "_run(given)", _OF_AGREEMENT),
    Mutant("verbose stays for the next run", f"{_CLI}/__init__.py", "_debug, common.verbose = debug, verbose", "_debug, common.verbose = debug, common.verbose or verbose", _OF_AGREEMENT),
    Mutant("training stays on the CPU", "rcdm_fast/devices.py", 'given or ("cuda" if torch.cuda.is_available() else "cpu")', 'given or "cpu"', _OF_AGREEMENT),
    Mutant('a playground gives up the model that it has just used', 'rcdm_fast/app/playground.py', 'del self._loaded[next(iter(self._loaded))]', 'self._loaded.popitem()', ('tests/test_app.py::test_every_model_is_its_own',)),
    Mutant('a playground keeps every model that was ever chosen', 'rcdm_fast/app/playground.py', 'while len(self._loaded) >= LOADED:', 'while len(self._loaded) > LOADED:', ('tests/test_app.py::test_every_model_is_its_own',)),
    Mutant('a finished image does not take the place of its draft', 'rcdm_fast/app/playground.py', 'there = (*samples, *draft[len(samples) :])', 'there = (*samples, *draft)', ('tests/test_app.py::test_a_draft_comes_first_and_gives_way',)),
    Mutant('a link loses digits of h', 'rcdm_fast/app/sharing.py', 'float(str(each))', 'round(float(each), 6)', ('tests/test_app_sharing.py::test_a_drawing_is_told_exactly',)),
    Mutant('a shared drawing is drawn by a model that it is not of', 'rcdm_fast/app/handler.py', 'if name not in h:', 'if False:', ('tests/test_app_sharing.py::test_what_does_not_fit_a_shared_drawing',)),
    Mutant('the second photograph is changed as the first', 'rcdm_fast/app/playground.py', 'seen += [self._view(model, other)]', 'seen += [self._seen(model, other, settings)]', ('tests/test_app.py::test_the_second_photograph_is_mixed_as_it_is',)),
    Mutant("results may lie deep among the images", "rcdm_fast/folders.py", "read in written.parents and", "read == written.parent and", _OF_PLACES),
    Mutant("what is hidden counts as read", "rcdm_fast/folders.py", 'not any(part.startswith(".") for part in written.relative_to(read).parts)', "True", _OF_PLACES),
    Mutant("links lead results among the images", "rcdm_fast/folders.py", "Path(os.path.realpath(out)), Path(os.path.realpath(root))", "Path(os.path.abspath(out)), Path(os.path.abspath(root))", _OF_PLACES),
    Mutant("a job on a cluster lies anywhere", "rcdm_fast/jobs/cluster.py", "    folders.check_outside(folder, source)\n", "", ("tests/test_cli_refused.py::test_on_a_cluster_too",)),
)  # fmt: skip
