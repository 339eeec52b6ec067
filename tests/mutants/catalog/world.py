"""Worlds of known truth, and encoders that know it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_WORLD, _SHAPES, _OF_WORLD = "rcdm_fast/data/world.py", "rcdm_fast/data/world_shapes.py", ("tests/test_world.py",)

WORLD = (
    Mutant("every item of a block is its first", _WORLD, "np.array([0, place, ", "np.array([0, chosen[0], ", _OF_WORLD),
    Mutant("worlds share their factors", _WORLD, "list(FACTORS).index(self.world), 0]", "0, 0]", _OF_WORLD),
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
