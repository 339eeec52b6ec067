"""The loss, the averages and the optimizer."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LOSSES, _EMA = "training/losses.py", "training/ema.py"
_GRAPHED, _BUNDLED = "training/graphed.py", "training/bundled.py"
_TESTS = ("tests/test_losses.py",)
_OF_GRAPHED, _OF_BUNDLED = ("tests/test_training_graphed.py",), ("tests/test_training_bundled.py",)

_VIEWS, _BATCHES, _OF_VIEWS = "training/views.py", "training/batches.py", ("tests/test_views.py",)

TRAINING = (
    Mutant(
        "a moved image is told as another",
        _VIEWS,
        "_codes(images.device)[place]",
        "_codes(images.device)[index]",
        _OF_VIEWS,
    ),
    Mutant("an image that stays is told a map", _VIEWS, "[place] * moved[:, None]", "[place]", _OF_VIEWS),
    Mutant("every image has its own still view", _VIEWS, "torch.where(moved, which, view)", "which", _OF_VIEWS),
    Mutant(
        "representations of moved images are those of the first ones",
        "training/representations.py",
        "torch.arange(first + start, first + start + len(images)",
        "torch.arange(start, start + len(images)",
        ("tests/test_views.py", "tests/test_representations.py"),
    ),
    Mutant(
        "moved images count for the standardization",
        _BATCHES,
        "standardization(bank[: self.views.still], shape)",
        "standardization(bank, shape)",
        _OF_VIEWS,
    ),
    Mutant(
        "what is told is folded into the weights",
        _BATCHES,
        '[f"{name}.weight"][:, : len(self.std)] /',
        '[f"{name}.weight"][:, -len(self.std) :] /',
        _OF_VIEWS,
    ),
    Mutant(
        "the average has no early ramp", _EMA, "1 - min(self.decay, (1 + step) / (10 + step))", "1 - self.decay", _TESTS
    ),
    Mutant("the average is turned", _EMA, "return 1 - min(self.decay,", "return min(self.decay,", _TESTS),
    Mutant("importance is ignored", _LOSSES, "else (importance * each).mean()", "else each.mean()", _TESTS),
    Mutant(
        "importance weighs itself out",
        _LOSSES,
        "else (importance * each).mean()",
        "else (importance * each).sum() / importance.sum()",
        _TESTS,
    ),
    Mutant(
        "the last bin has an upper edge",
        _LOSSES,
        "    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)\n",
        "",
        _TESTS,
    ),
    Mutant(
        "the first bin has a lower edge",
        _LOSSES,
        "    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)\n",
        "",
        _TESTS,
    ),
    Mutant(
        "bins are half as wide",
        _LOSSES,
        "upper = torch.special.ndtr((x - mean + 1 / 255)",
        "upper = torch.special.ndtr((x - mean + 0 / 255)",
        _TESTS,
    ),
    Mutant(
        "a graph steps on what is no number",
        _GRAPHED,
        "torch.maximum(self._held, 1.0 - finite.float())",
        "self._held",
        _OF_GRAPHED,
    ),
    Mutant("averages move without their weights", _GRAPHED, "fraction * (1.0 - stays)", "fraction", _OF_GRAPHED),
    Mutant(
        "a graph keeps the first rate",
        _GRAPHED,
        "self._rate.fill_(rate)",
        "self._rate.fill_(rate) if self._found is None and self._rate == 0 else None",
        _OF_GRAPHED,
    ),
    Mutant("what is made is made again", _BUNDLED, "if not made(stage, given.out).exists()]", "if stage]", _OF_BUNDLED),
    Mutant(
        "crops have the aspect of the image",
        "training/augment.py",
        "math.log(3 / 4), math.log(4 / 3)",
        "0.0, 0.0",
        ("tests/test_augment.py::test_crops_are_wide_and_tall_within_their_bounds",),
    ),
    Mutant(
        "crops are as high as wide",
        "training/augment.py",
        "height = (area / aspect)",
        "height = (area * aspect)",
        ("tests/test_augment.py::test_crops_are_wide_and_tall_within_their_bounds",),
    ),
)
