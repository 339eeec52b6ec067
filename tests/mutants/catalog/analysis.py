"""The experiments' numbers and verdicts."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_ATTACK, _MANIPULATE = "rcdm_fast/analysis/attack.py", "rcdm_fast/analysis/manipulate.py"
_RECOVERY, _COMMON = "rcdm_fast/analysis/recovery.py", "rcdm_fast/analysis/common.py"
_RULES, _CLAIMS = "rcdm_fast/analysis/rules.py", "rcdm_fast/analysis/claims.py"
_SLOPES, _LEFT_OUT = "rcdm_fast/metrics/slopes.py", "rcdm_fast/metrics/left_out.py"
_EVALUATE = "rcdm_fast/evaluation.py"
_ROBUSTNESS, _MEMORIZATION = "rcdm_fast/analysis/robustness.py", "rcdm_fast/analysis/memorization.py"
_INTERVALS = "rcdm_fast/metrics/intervals.py"
_NEAREST = "rcdm_fast/metrics/nearest.py"

_OF_ATTACK = ("tests/test_analysis_attack.py",)
_OF_MANIPULATE = ("tests/test_analysis_manipulate.py",)
_CHANCE = ("tests/test_analysis_recovery.py::test_chance_is_passed_once_in_twenty_times_on_both_sides_together",)
_OF_RULES, _OF_CLAIMS = ("tests/test_rules.py", "tests/test_error_rates.py"), ("tests/test_claims.py",)
_OF_SLOPES, _OF_LEFT_OUT = ("tests/test_slopes.py",), ("tests/test_left_out.py",)
_SLOPE = ("tests/test_analysis.py::test_a_linear_correlation_is_numpys_and_weights_count",)
_OF_EVALUATE = ("tests/test_evaluate.py",)
_IMAGES, _OF_PHOTOGRAPHS = "rcdm_fast/data/image_set.py", ("tests/test_photographs.py",)
_OF_MEMORIZATION = ("tests/test_analysis_memorization.py",)
_OF_INTERVALS = ("tests/test_intervals.py",)
_ADAPTED, _OF_DEPTH = "rcdm_fast/analysis/adapted.py", "tests/test_analysis_depth.py::"
_OF_WAYS = tuple(
    f"tests/test_analysis_ways.py::test_{name}"
    for name in ("lines_and_steps_are_told_apart", "line_step_rise_and_jump_by_hand")
)

ANALYSIS = (
    Mutant("decoders are adapted on sources", _ADAPTED, "if place not in taken]", "if place >= 0]", (f"{_OF_DEPTH}test_nothing_is_adapted_on_sources_or_other_cuts_of_their_photographs",)),
    Mutant("an adapted decoder is known by its layer alone", _ADAPTED, "return hashlib.sha256(text.encode()).hexdigest()[:12]", "return hashlib.sha256(settings.name.encode()).hexdigest()[:12]", (f"{_OF_DEPTH}test_adapted_decoders_are_found_again",)),
    Mutant("the figure hangs upside down", "rcdm_fast/analysis/depth_figure.py", "(HIGH - min(max(value, LOW), HIGH))", "(min(max(value, LOW), HIGH) - LOW)", (f"{_OF_DEPTH}test_the_figure_puts_every_verdict_where_its_slope_is",)),
    Mutant("the attacked half overlaps the fitted one", _IMAGES, "(rank >= middle)", "(rank >= middle // 2)", _OF_ATTACK),
    Mutant("crops of a photograph are sources of their own", _IMAGES, "firsts.setdefault(photograph, place)", "firsts.setdefault(place, place)", _OF_PHOTOGRAPHS),
    Mutant("crops of a photograph are in both halves", _IMAGES, "generator=torch.Generator().manual_seed(seed))[of]", "generator=torch.Generator().manual_seed(seed))[of] + torch.arange(len(of)) % 2", _OF_PHOTOGRAPHS),
    Mutant("crops of the source are its neighbors", "rcdm_fast/analysis/neighbors.py", "if data.photographs is None:", "if True:", _OF_PHOTOGRAPHS),
    Mutant("the fitted half is the attacked one", _ATTACK, "encoded(shared, encoder, data, known)", "encoded(shared, encoder, data, attacked)", _OF_ATTACK),
    Mutant("a distance without its root", _ATTACK, "apart = nearest.apart(clean, clean)", "apart = nearest.apart(clean, clean).square()", _OF_ATTACK),
    Mutant("a copy of an image is the unit of its movement", _ATTACK, "apart = nearest.apart(clean, clean)", "apart = pairs.fill_diagonal_(torch.inf).min(dim=1).values.sqrt().clamp_min(1e-12)", _OF_ATTACK),
    Mutant("as many classes are the same ones", _ATTACK, "if label not in classes]", "if len(data.labels[rest].unique()) > len(classes)]", (f"{_OF_ATTACK[0]}::test_a_class_that_the_probe_has_not_seen_is_refused",)),
    Mutant("that no class is lost is sure where all is alike", "rcdm_fast/analysis/grounds.py", "intervals.fraction_difference(moved.kept, moved.kept_control)", "common.interval(moved.kept - moved.kept_control, config)", _OF_MANIPULATE),
    Mutant("a fraction of one has an interval without width", _MANIPULATE, "{percent(fraction(moved))} of samples", "{percent(common.interval(moved, ManipulateConfig()))} of samples", _OF_MANIPULATE),
    Mutant("movement is measured from the attacked image", _ATTACK, "(h.cpu() - clean).double()", "(h.cpu() - h.cpu()).double()", _OF_ATTACK),
    Mutant("clean images count among the attacked ones", _ROBUSTNESS, "(each[1:].mean(axis=0), each[0])", "(each.mean(axis=0), each[0])", _OF_ATTACK),
    Mutant("the gap has the other sign", _ROBUSTNESS, "for each in right]\n    gap", "for each in reversed(right)]\n    gap", _OF_ATTACK),
    Mutant("what both had right is what the first had right", _ROBUSTNESS, ".all(axis=0)", "[0]", _OF_ATTACK),
    Mutant("accuracy passes for the part of it that is left", _ROBUSTNESS, "each[1:].mean(axis=0), each[0])", "each[1:].mean(axis=0), np.ones_like(each[0]))", _OF_ATTACK),
    Mutant("one unit of movement is enough", _ROBUSTNESS, "        apart += [found for _, found in each]", "        apart = [found for _, found in each]", _OF_ATTACK),
    Mutant("sources returned are no copies", _MEMORIZATION, "if holds and common.above(self.own, COPY) is not True", "if holds and self.own is None", _OF_MEMORIZATION),
    Mutant("only the first training images are searched", _NEAREST, "start + index, place)", "index, place)", _OF_MEMORIZATION),
    Mutant("without training images the gallery is searched", "rcdm_fast/analysis/neighbors.py", "    if training is None:\n        findings", "    training = training or data.subset(found.rest)\n    if training is None:\n        findings", _OF_MEMORIZATION),
    Mutant("a step is even", "rcdm_fast/analysis/interpolate.py", "np.divide(step - line,", "np.divide(line - step,", _OF_WAYS),
    Mutant("steps at one place only", "rcdm_fast/analysis/interpolate.py", "for at in range(1, fractions.shape[1])]", "for at in range(1, 2)]", _OF_WAYS),
    Mutant("sources are among the real images", _EVALUATE, "    rest[places] = False\n", "", _OF_EVALUATE),
    Mutant("another sample than the one beside its source", _EVALUATE, "encoded.representations[chosen, 0]", "encoded.representations[chosen, -1]", _OF_EVALUATE),
    Mutant("samples of a source count as one each", _INTERVALS, "        count *= max(1.0, trials)\n", "", _OF_INTERVALS),
    Mutant("pairs have nothing in common", _INTERVALS, "- 2 * together * x * y", "- 0 * together * x * y", _OF_INTERVALS),
    Mutant("nineteen are enough", _INTERVALS, "LEAST = 20", "LEAST = 19", _OF_INTERVALS),
    Mutant("a mean rank's ends change places", _INTERVALS, "up = min(-low * error,", "up = min(high * error,", _OF_INTERVALS),
    Mutant("movement has the other sign", _ROBUSTNESS, "interval(a[place] - b[place], config)", "interval(b[place] - a[place], config)", _OF_ATTACK),
    Mutant("the change of kept classes has the other sign", _ROBUSTNESS, "(first.kept[1] - first.kept[0]) - (other", "(first.kept[0] - first.kept[1]) - (other", _OF_ATTACK),
    Mutant("the weakest attack is the strongest", _ATTACK, "            strongest = changed\n", "            strongest = views\n", _OF_ATTACK),
    Mutant("PGD does not come back to within epsilon", "rcdm_fast/analysis/perturb.py", "images - size), images + size)", "images - 2 * size), images + 2 * size)", _OF_ATTACK),
    Mutant("other dimensions are zeroed", _MANIPULATE, "torch.where(common, 0.0, h), torch.where(random", "torch.where(~common, 0.0, h), torch.where(random", _OF_MANIPULATE),
    Mutant("the control zeroes what is in common", _MANIPULATE, "torch.where(random, 0.0, h)", "torch.where(common, 0.0, h)", _OF_MANIPULATE),
    Mutant("targets are sources", _MANIPULATE, "target = gallery[torch.randint(len(gallery)", "target = h[torch.randint(len(h)", _OF_MANIPULATE),
    Mutant("one length for all controls", _MANIPULATE, "random.norm(dim=1, keepdim=True)", "random.norm(dim=1, keepdim=True).mean()", _OF_MANIPULATE),
    Mutant("sources vote", _MANIPULATE, "class_of(again, setting.gallery, setting.gallery_labels", "class_of(again, setting.h, setting.labels", _OF_MANIPULATE),
    Mutant("further from the target counts as nearer", _MANIPULATE, "step = far[0] - far[1]", "step = far[1] - far[0]", _OF_MANIPULATE),
    Mutant("the strength is lost", _MANIPULATE, "direction = config.strength * mean_difference", "direction = mean_difference", _OF_MANIPULATE),
    Mutant("common means common to all", "rcdm_fast/analysis/directions.py", "counts > threshold", "counts >= neighbors", _OF_MANIPULATE),
    Mutant("chance of r, not of |r|", _RECOVERY, "np.quantile(np.abs(changes.shuffled(SHUFFLES, np.random.default_rng([seed, 1]))), 0.95)", "np.quantile(changes.shuffled(SHUFFLES, np.random.default_rng([seed, 1])), 0.95)", _CHANCE),
    Mutant("the slope is over both variances", _RECOVERY, "(weight * p * p).sum(axis=1)", "(weight * np.abs(p * q)).sum(axis=1)", _SLOPE),
    Mutant("a readout that finds it is not asked", _RULES, "drops = max(within, unread)", "drops = within", _OF_RULES),
    Mutant("what is surely positive is kept", _RULES, "p_above(slope, rules.kept_above)\n    within", "p_above(slope, 0.0)\n    within", _OF_RULES),
    Mutant("one end of the interval is enough to be dropped", _RULES, "within = max(p_above", "within = min(p_above", _OF_RULES),
    Mutant("a smaller slope is a dropped one", _RULES, "if a.kept and b.kept is False:", "if a.kept:", _OF_RULES),
    Mutant("p-values are not adjusted for how many there are", _RULES, "(len(p) - rank) * p[place]", "p[place]", _OF_RULES),
    Mutant("claims keep their verdicts among many", _CLAIMS, "finding.holds is None or p < rules.LEVEL", "True", _OF_CLAIMS),
    Mutant("a report adjusts nothing", "rcdm_fast/report/build.py", "results = claims.of_report(found)", "results = list(found)", _OF_CLAIMS),
    Mutant("errors do not grow with leverage", _SLOPES, "/ np.maximum(1 - share, 1e-9) ** 2", "/ np.ones_like(share)", _OF_SLOPES),
    Mutant("as many degrees of freedom as normal ones", _SLOPES, "quantile(freedom(share, grown))", "quantile(np.full(error.shape, 1e9))", _OF_SLOPES),
    Mutant("readouts are judged on what they were fitted on", _LEFT_OUT, "torch.eye(rows, dtype=torch.float64) - hat", "torch.eye(rows, dtype=torch.float64) - 0 * hat", _OF_LEFT_OUT),
    Mutant("a penalty is chosen by what it is judged by", _LEFT_OUT, "found[:, halves != half]", "found[:, halves == half]", _OF_LEFT_OUT),
    Mutant("magnitudes are not dealt out", _RECOVERY, "q[source, order]", "np.broadcast_to(q, (times, *q.shape))", _CHANCE),
    Mutant("verdicts are turned", _COMMON, "if found.low > level:\n        return True", "if found.high > level:\n        return True", ("tests/test_analysis_attack.py", "tests/test_analysis_manipulate.py")),
    Mutant("one that holds is enough", _COMMON, "if False in known:", "if True in known:\n        return True\n    if False in known:", _OF_ATTACK),
    Mutant("the gallery is the first images", _EVALUATE, "data.subset(data.spread(size))", "data.subset(torch.arange(size))", _OF_EVALUATE),
    Mutant("crops of a source are in its gallery", _EVALUATE, "data.subset(data.spread(size))", "data.subset(evenly(size, len(data)))", _OF_PHOTOGRAPHS),
    Mutant("readouts are judged on crops of what they were fitted on", "rcdm_fast/analysis/sweeps.py", "known = data.one_of_each()  #", "known = torch.arange(len(data))  #", _OF_PHOTOGRAPHS),
    Mutant("crops of a photograph are ends of ways", "rcdm_fast/analysis/interpolate.py", "known = data.one_of_each()", "known = torch.arange(len(data))", _OF_PHOTOGRAPHS),
    Mutant("all ways begin with one noise", "rcdm_fast/analysis/interpolate.py", "items=[number] * config.frames", "items=[0] * config.frames", ("tests/test_analysis_ways.py::test_each_kind_of_way_is_asked_for_and_stands_under_its_own_name",)),
    Mutant("places of many images are counted in float32", _IMAGES, "count, dtype=torch.float64)", "count)", ("tests/test_sources.py::test_of_many_images_no_place_is_taken_twice_and_none_lies_behind_the_last",)),
    Mutant("the seed does not reach the noise", _EVALUATE, "h[place], config, items=part", "h[place], config, seed=0, items=part", _OF_EVALUATE),
    Mutant("the bootstrap has a seed of its own", _EVALUATE, "np.random.default_rng(config.seed)", "np.random.default_rng(0)", _OF_EVALUATE),
    Mutant("a probe is asked of what it was fitted on", _IMAGES, "    if seen > COPIES * len(asked):", "    if seen > len(asked):", ("tests/test_class_accuracy.py::test_what_is_refused",)),
    Mutant("another model is given to an experiment that compares none", "rcdm_fast/analysis/registry.py", "if against and not self.compares:", "if False:", ("tests/test_workflows.py::test_what_is_given_reaches_an_experiment",)),
    Mutant("a report that ends early leaves nothing", "rcdm_fast/report/build.py", "            if results:\n", "            if False:\n", ("tests/test_report.py::test_what_was_measured_before_an_error_is_kept",)),
    Mutant("a neighbor too many", _EVALUATE, "if k < size]", "if k <= size]", _OF_EVALUATE),
    Mutant("h is its own nearest image", _EVALUATE, "        to_others[source] = torch.inf\n", "", _OF_EVALUATE),
    Mutant("ties do not count", _NEAREST, "ties.double() / 2", "0 * ties.double()", _OF_EVALUATE),
    Mutant("distances are not squared", _NEAREST, '"donot_use_mm_for_euclid_dist").square()', '"donot_use_mm_for_euclid_dist")', _OF_EVALUATE),
    Mutant("a sample is nearer where it is farther", "rcdm_fast/analysis/nearness.py", "(step < 0) + 0.5", "(step > 0) + 0.5", ("tests/test_analysis_nearness.py",)),
    Mutant("views are the same for all sources", "rcdm_fast/analysis/nearness.py", "config.seed * 1_000_003 + int(place)", "config.seed", ("tests/test_analysis_nearness.py",)),
    Mutant("the farthest image is the nearest", "rcdm_fast/analysis/nearness.py", "ordered[:1]", "ordered[-1:]", ("tests/test_analysis_nearness.py",)),
    Mutant("the class decides nothing about the object", "rcdm_fast/analysis/grounds.py", "(common.above(gain), common.above(lost, LOST))", "(common.above(gain),)", _OF_MANIPULATE),
    Mutant("ground and object are taken for each other", "rcdm_fast/analysis/grounds.py", "(ground - middle) / torch", "(middle - ground) / torch", _OF_MANIPULATE),
    Mutant('photographs are drawn of the data where there is some', 'rcdm_fast/analysis/registry.py', '    shown = job.photos\n', '    shown = job.data or job.photographs\n', ('tests/test_analysis_shared.py::test_an_experiment_is_given_what_the_job_says',)),
    Mutant('angles of samples are not in one turn', 'rcdm_fast/analysis/recovery.py', '            p, q = (np.angle(np.exp(1j * each)) for each in (p, q))\n', '            p = np.angle(np.exp(1j * p))\n', ('tests/test_analysis_recovery.py::test_a_circular_slope_is_of_angles_in_one_turn_and_random_directions_have_none',)),
    Mutant('jumps back count as forward', 'rcdm_fast/analysis/interpolate.py', 'np.diff(fractions, axis=1).max(axis=1)', 'np.abs(np.diff(fractions, axis=1)).max(axis=1)', ('tests/test_analysis_ways.py::test_line_step_rise_and_jump_by_hand',)),
    Mutant('a way of any length is even', 'rcdm_fast/analysis/interpolate.py', 'common.above(rises, 0.5)', 'common.above(rises)', ('tests/test_analysis_ways.py::test_a_line_must_go_more_than_half_of_the_way',)),
    Mutant('what is the same is so in units of h', 'rcdm_fast/metrics/nearest.py', 'SAME * part.double().norm(dim=1, keepdim=True)', 'SAME', ('tests/test_analysis_out_of_distribution.py::test_units_leave_out_the_image_itself_and_its_copies',)),
    Mutant('one photograph too many is shown', 'rcdm_fast/analysis/photos.py', 'if number < SHOWN', 'if number <= SHOWN', ('tests/test_report.py::test_photographs',)),
    Mutant("a whole set is drawn", "rcdm_fast/analysis/registry.py", "evenly(min(photos.SHOWN, len(job.images)), len(job.images))", "evenly(len(job.images), len(job.images))", ("tests/test_analysis_shared.py::test_an_experiment_is_given_what_the_job_says",)),
)  # fmt: skip
