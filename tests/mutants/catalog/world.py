"""Worlds of known truth, and encoders that know it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_WORLD, _SHAPES, _OF_WORLD = "rcdm_fast/data/world.py", "rcdm_fast/data/world_shapes.py", ("tests/test_world.py",)

_CODE, _ORACLE, _OF_ORACLE = (
    "rcdm_fast/encoders/oracle_code.py",
    "rcdm_fast/encoders/oracle.py",
    ("tests/test_encoders_oracle.py",),
)

_READER, _SCORE, _OF_READER = (
    "rcdm_fast/encoders/factor_reader.py",
    "rcdm_fast/metrics/factors.py",
    ("tests/test_factor_reader.py",),
)

_SLOPES, _OF_SLOPES = "rcdm_fast/analysis/world_slopes.py", ("tests/test_world_slopes.py",)
_OF_MASKS = ("tests/test_masks.py",)
_CALIBRATE, _OF_CALIBRATE = "rcdm_fast/analysis/calibrate.py", ("tests/test_calibrate.py",)

WORLD = (
    Mutant("subsets share their noise", _SLOPES, "first = done * len(rows)", "first = 0", _OF_SLOPES),
    Mutant(
        "the regression is the other way round",
        _SLOPES,
        "true.square().sum(dim=1).numpy())",
        "read.square().sum(dim=1).numpy())",
        _OF_SLOPES,
    ),
    Mutant(
        "a slope through zero",
        _SLOPES,
        "true, read = true - true.mean(dim=0), read - read.mean(dim=0)",
        "true, read = true + 0.0, read + 0.0",
        _OF_SLOPES,
    ),
    Mutant(
        "cells that moved thresholds count among the others",
        _CALIBRATE,
        "free in (None, each.free)",
        "free in (None, True, False)",
        _OF_CALIBRATE,
    ),
    Mutant(
        "only one kind of wrong verdict counts",
        _CALIBRATE,
        "return self.rate(True, False).count + self.rate(False, True).count",
        "return self.rate(True, False).count",
        _OF_CALIBRATE,
    ),
    Mutant(
        "an error rate is of the other verdict",
        "rcdm_fast/analysis/error_rates.py",
        "known.false_kept if kept else known.false_dropped",
        "known.false_dropped if kept else known.false_kept",
        _OF_CALIBRATE,
    ),
    Mutant(
        "free cells count in error rates",
        "rcdm_fast/analysis/error_rates.py",
        ' if not cell["free"]]',
        "]",
        _OF_CALIBRATE,
    ),
    Mutant(
        "a reader says that all is kept",
        "rcdm_fast/encoders/read_code.py",
        "kept.append(float(factor.name in self.code.factors))\n            if kept[-1]:",
        "kept.append(1.0)\n            if factor.name in self.code.factors:",
        _OF_READER,
    ),
    Mutant(
        "an ideal sampler keeps what is dropped",
        _SLOPES,
        "torch.where(followed & known",
        "torch.where(followed | known",
        _OF_SLOPES,
    ),
    Mutant(
        "the decoder is given all factors",
        _SLOPES,
        "tuple(kept), masked=True)\n        h =",
        "self.world.names, masked=True)\n        h =",
        _OF_SLOPES,
    ),
    Mutant(
        "a mask is the same in every step",
        "training/batches.py",
        "step_generator(config.seed, step, masks.STREAM)",
        "step_generator(config.seed, 0, masks.STREAM)",
        _OF_MASKS,
    ),
    Mutant("images shown whole are not", "training/masks.py", "shown |= torch", "shown &= torch", _OF_MASKS),
    Mutant(
        "columns are hidden one by one",
        "training/masks.py",
        "shown.repeat_interleave(torch.tensor(parts), dim=1)",
        "(torch.rand((count, sum(parts)), generator=generator) < 0.5).float()",
        _OF_MASKS,
    ),
    Mutant(
        "what is hidden is not told",
        "training/masks.py",
        "dim=1), shown], dim=1)",
        "dim=1), torch.ones_like(shown)], dim=1)",
        _OF_MASKS,
    ),
    Mutant(
        "sine before cosine",
        "rcdm_fast/encoders/oracle_code.py",
        "atan2(part[:, 1], part[:, 0])",
        "atan2(part[:, 0], part[:, 1])",
        _OF_READER,
    ),
    Mutant("chance counts as reading", _SCORE, "(right - 1 / choices) / (1 - 1 / choices)", "right", _OF_READER),
    Mutant(
        "what is read backwards counts",
        _SCORE,
        "max(0.0, float((true * read).sum()) / spread)",
        "abs(float((true * read).sum()) / spread)",
        _OF_READER,
    ),
    Mutant(
        "a resumed reader begins with the first images",
        "training/reader.py",
        'self.step = int(state["step"])',
        "self.step = 0",
        _OF_READER,
    ),
    Mutant("a masked factor is left in", _CODE, "elif self.masked:", "elif False:", _OF_ORACLE),
    Mutant("noise is added, not mixed", _CODE, "return self.r * code + ", "return code + ", _OF_ORACLE),
    Mutant(
        "a noisy choice is never right by chance",
        _CODE,
        "uniform[:, 0] < r",
        "uniform[:, 0] < (r + (1 - r) / 4)",
        _OF_ORACLE,
    ),
    Mutant("both frequencies are one", _CODE, "self.frequency + 1)", "self.frequency)", _OF_ORACLE),
    Mutant("noise belongs to the seed alone", _CODE, "np.ascontiguousarray(row).tobytes()", 'b""', _OF_ORACLE),
    Mutant("generators are short words", _CODE, "b ^ c ^ d, a ^ c ^ d", "b ^ c, a ^ c ^ d", _OF_ORACLE),
    Mutant(
        "the last items are unknown",
        _ORACLE,
        "if self._read == self.world.count:",
        "if self._read >= self.world.count // 2:",
        _OF_ORACLE,
    ),
    Mutant("of two meanings the first is taken", _ORACLE, "!= tuple(row):", "is None:", _OF_ORACLE),
    Mutant("every item of a block is its first", _WORLD, "np.array([0, place, ", "np.array([0, chosen[0], ", _OF_WORLD),
    Mutant("worlds fraction their factors", _WORLD, "list(FACTORS).index(self.world), 0]", "0, 0]", _OF_WORLD),
    Mutant("the back object is in front", _SHAPES, "in reversed(range", "in list(range", _OF_WORLD),
    Mutant(
        "objects turn the other way",
        _SHAPES,
        "cos + np.float32(origin[0])) + down * sin",
        "cos + np.float32(origin[0])) - down * sin",
        _OF_WORLD,
    ),
    Mutant("an object's place is its corner", _SHAPES, "(bar * 0.18 + foot * 0.6) / ell", "0.0", _OF_WORLD),
    Mutant("a size is a diameter", _SHAPES, "math.sqrt(outline.area) / thing.size", "1 / thing.size", _OF_WORLD),
)
