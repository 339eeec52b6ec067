"""What an encoder sees of the images of a set."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_FILE, _TESTS = "rcdm_fast/data/originals.py", ("tests/test_originals.py",)
_SOURCES, _STORE, _SET = "rcdm_fast/data/sources.py", "rcdm_fast/data/block_file.py", "rcdm_fast/data/image_set.py"

ORIGINALS = (
    Mutant("images are read in the order asked for", _FILE, "rows[self.places[index[rows]].argsort()]", "rows", _TESTS),
    Mutant("of no image is the source's name compared", _FILE, "or escaped(str(item.path)) != name", "", _TESTS),
    Mutant("a source is never begun again", _FILE, "if place < self._next:", "if False:", _TESTS),
    Mutant(
        "a subset's images are those of the set's first",
        _FILE,
        "self.places[index], self.other[index]",
        "self.places[: len(index)], self.other[index]",
        _TESTS,
    ),
    Mutant(
        "images of the set's size are not brought to the encoder's",
        _FILE,
        "viewer.view(pixels[own.to(pixels.device)])",
        "pixels[own].repeat(1, 1, 4, 4)",
        _TESTS,
    ),
    Mutant(
        "skipped items are not counted",
        _SOURCES,
        "kept, read = True, read + len(block)",
        "kept, read = True, read + len(good)",
        _TESTS,
    ),
    Mutant("places begin anew in every block", _SOURCES, "kept, read = True, read + len(block)", "kept = True", _TESTS),
    Mutant(
        "a store knows no originals",
        _STORE,
        "originals = None if source is None else self._originals(source, kept)",
        "originals = None",
        _TESTS,
    ),
    Mutant(
        "a store forgets which images are larger",
        _STORE,
        '"place": place, "other": other}',
        '"place": place, "other": False}',
        _TESTS,
    ),
    Mutant(
        "arrays in memory are seen at the decoder's size",
        _SOURCES,
        "if tuple(batch.shape[-2:]) != (size, size):",
        "if False:",
        _TESTS,
    ),
    Mutant(
        "the first images are seen in place of a slice",
        _SET,
        "torch.arange(len(self))[index] if isinstance(index, slice)",
        "torch.arange(len(images)) if isinstance(index, slice)",
        _TESTS,
    ),
    Mutant(
        "what is computed from pixels is taken for that of photographs",
        _SET,
        'else f"{self.fingerprint} originals"',
        "else self.fingerprint",
        _TESTS,
    ),
    Mutant(
        "a sweep's samples are drawn of what becomes of the set's image",
        "rcdm_fast/analysis/sweeps.py",
        "seen = versions if self.seen is self.plain else",
        "seen = versions if True else",
        _TESTS,
    ),
    Mutant(
        "a readout is fitted on the set's images",
        "rcdm_fast/analysis/sweeps.py",
        "elif data.originals is None:",
        "elif True:",
        _TESTS,
    ),
    Mutant(
        "a readout of few images sees the set's images",
        "rcdm_fast/analysis/sweeps.py",
        "Reader(encoder, plain, fits, seen)",
        "Reader(encoder, plain, fits)",
        _TESTS,
    ),
)
