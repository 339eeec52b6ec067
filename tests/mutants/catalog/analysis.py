"""The experiments' numbers and verdicts."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_ATTACK, _MANIPULATE = "rcdm_fast/analysis/attack.py", "rcdm_fast/analysis/manipulate.py"
_RECOVERY, _COMMON = "rcdm_fast/analysis/recovery.py", "rcdm_fast/analysis/common.py"
_EVALUATE = "rcdm_fast/evaluation.py"
_NEAREST = "rcdm_fast/metrics/nearest.py"

_OF_ATTACK = ("tests/test_analysis_attack.py",)
_OF_MANIPULATE = ("tests/test_analysis_manipulate.py",)
_CHANCE, _VERDICTS, _DIFFERENCE = (
    (f"tests/test_analysis_recovery.py::test_{name}",)
    for name in (
        "chance_is_passed_once_in_twenty_times_on_both_sides_together",
        "verdicts_ask_the_ends_of_the_intervals",
        "a_difference_weighs_the_first_side_and_keeps_its_sign",
    )
)
_SLOPE = ("tests/test_analysis.py::test_a_linear_correlation_is_numpys_and_weights_count",)
_OF_EVALUATE = ("tests/test_evaluate.py",)

ANALYSIS = (
    Mutant("the attacked half overlaps the fitted one", _ATTACK, "order[len(data) // 2 :].sort()", "order[len(data) // 3 :].sort()", _OF_ATTACK),
    Mutant("the fitted half is the attacked one", _ATTACK, "encoded(shared, encoder, data, known)", "encoded(shared, encoder, data, attacked)", _OF_ATTACK),
    Mutant("a distance without its root", _ATTACK, ".min(dim=1).values.sqrt().clamp_min", ".min(dim=1).values.clamp_min", _OF_ATTACK),
    Mutant("movement is measured from the attacked image", _ATTACK, "(h.cpu() - clean).double()", "(h.cpu() - h.cpu()).double()", _OF_ATTACK),
    Mutant("clean images count among the attacked ones", _ATTACK, "(right[0][1:] - right[1][1:])", "(right[0] - right[1])", _OF_ATTACK),
    Mutant("the gap has the other sign", _ATTACK, "(right[0][1:] - right[1][1:])", "(right[1][1:] - right[0][1:])", _OF_ATTACK),
    Mutant("movement has the other sign", _ATTACK, 'first.moved["pgd"][place] - other.moved["pgd"][place]', 'other.moved["pgd"][place] - first.moved["pgd"][place]', _OF_ATTACK),
    Mutant("the change of kept classes has the other sign", _ATTACK, "(first.kept[1] - first.kept[0]) - (other", "(first.kept[0] - first.kept[1]) - (other", _OF_ATTACK),
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
    Mutant("the value is asked instead of the upper bound", _RECOVERY, "self.slope.high < FOLLOWED", "self.slope.value < FOLLOWED", _VERDICTS),
    Mutant("the value is asked instead of the lower bound", _RECOVERY, "self.correlation.low > self.chance", "self.correlation.value > self.chance", _VERDICTS),
    Mutant("a fraction is missing in the interval", _RECOVERY, "fraction * a.statistics(drawn)[0]", "a.statistics(drawn)[0]", _DIFFERENCE),
    Mutant("a fraction is missing in the value", _RECOVERY, "fraction * a.statistics(alone)[0]", "a.statistics(alone)[0]", _DIFFERENCE),
    Mutant("the slope is over both variances", _RECOVERY, "_ratio(cov, var_p)", "_ratio(cov, np.sqrt(var_p * var_q))", _SLOPE),
    Mutant("magnitudes are not dealt out", _RECOVERY, "q[source, order]", "np.broadcast_to(q, (times, *q.shape))", _CHANCE),
    Mutant("verdicts are turned", _COMMON, "if found.low > level:\n        return True", "if found.high > level:\n        return True", ("tests/test_analysis_attack.py", "tests/test_analysis_manipulate.py")),
    Mutant("one that holds is enough", _COMMON, "if False in known:", "if True in known:\n        return True\n    if False in known:", _OF_ATTACK),
    Mutant("the gallery is the first images", _EVALUATE, "evenly(size, len(data))", "evenly(size, size)", _OF_EVALUATE),
    Mutant("the seed does not reach the noise", _EVALUATE, "gallery[part], config, items=part", "gallery[part], config, seed=0, items=part", _OF_EVALUATE),
    Mutant("the bootstrap has a seed of its own", _EVALUATE, "np.random.default_rng(config.seed)", "np.random.default_rng(0)", _OF_EVALUATE),
    Mutant("a neighbor too many", _EVALUATE, "if k < size]", "if k <= size]", _OF_EVALUATE),
    Mutant("h is its own nearest image", _EVALUATE, "        to_others[source] = torch.inf\n", "", _OF_EVALUATE),
    Mutant("ties do not count", _NEAREST, "ties.double() / 2", "0 * ties.double()", _OF_EVALUATE),
    Mutant("distances are not squared", _NEAREST, '"donot_use_mm_for_euclid_dist").square()', '"donot_use_mm_for_euclid_dist")', _OF_EVALUATE),
)  # fmt: skip
