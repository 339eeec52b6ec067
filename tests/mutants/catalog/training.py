"""The loss, the averages and the optimizer."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LOSSES, _EMA = "training/losses.py", "training/ema.py"
_TESTS = ("tests/test_losses.py",)

TRAINING = (
    Mutant("the average has no early ramp", _EMA, "decay = min(self.decay, (1 + step) / (10 + step))", "decay = self.decay", _TESTS),
    Mutant("the average is turned", _EMA, "1 - decay)", "decay)", _TESTS),
    Mutant("importance is ignored", _LOSSES, "else (importance * each).mean()", "else each.mean()", _TESTS),
    Mutant("importance weighs itself out", _LOSSES, "else (importance * each).mean()", "else (importance * each).sum() / importance.sum()", _TESTS),
    Mutant("the last bin has an upper edge", _LOSSES, "    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)\n", "", _TESTS),
    Mutant("the first bin has a lower edge", _LOSSES, "    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)\n", "", _TESTS),
    Mutant("bins are half as wide", _LOSSES, "upper = torch.special.ndtr((x - mean + 1 / 255)", "upper = torch.special.ndtr((x - mean + 0 / 255)", _TESTS),
)  # fmt: skip
