"""Sources of items: what tells jobs and sets apart, and what is meant by texts, names and options."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_GIVEN = ("tests/test_jobs_given.py",)
_TEXTS = ("tests/test_tables_texts.py",)
_AGAIN = ("tests/test_sources_again.py",)
_CLUSTER = ("tests/test_jobs_cluster.py",)

SOURCES = (
    Mutant(
        "images in memory are all alike",
        "rcdm_fast/data/item_sources.py",
        "if isinstance(image, str | os.PathLike) else _held(image)",
        'if isinstance(image, str | os.PathLike) else b"unreadable"',
        _GIVEN,
    ),
    Mutant(
        "palettes are of no account",
        "rcdm_fast/data/item_sources.py",
        'drawn if image.mode not in ("P", "PA") else',
        "drawn if image.mode else",
        _GIVEN,
    ),
    Mutant(
        "the order of images that a table names is of no account",
        "rcdm_fast/data/readers/tables.py",
        "return sizes + self._named(index) if named else sizes",
        "return sizes",
        _GIVEN,
    ),
    Mutant(
        "a one-hot row is a header",
        "rcdm_fast/data/readers/table_files.py",
        "len(fields) > 2 and fields == numbers",
        "len(fields) > 2 and all(each.isdigit() for each in fields)",
        _TEXTS,
    ),
    Mutant(
        "whole numbers are no numbers of a representation",
        "rcdm_fast/data/readers/tables.py",
        "stem in numbered)",
        "stem in ())",
        _TEXTS,
    ),
    Mutant(
        "an index of pandas is a number of the representation",
        "rcdm_fast/data/readers/tables.py",
        "name != (stem := name.rstrip(_DIGITS)) and stem in numbered)",
        "(stem := name.rstrip(_DIGITS)) in {*numbered, name})",
        _TEXTS,
    ),
    Mutant(
        "no label is the last class",
        "rcdm_fast/data/readers/hugging_face.py",
        "str(self.classes[value]) if 0 <= value < len(self.classes) else None",
        "str(self.classes[value]) if value < len(self.classes) else None",
        _TEXTS,
    ),
    Mutant(
        "what was added before what was read is not seen",
        "rcdm_fast/data/sources.py",
        "if known.get(place, found) != found:",
        "if False:",
        _AGAIN,
    ),
    Mutant(
        "the item behind what was read is lost",
        "rcdm_fast/data/sources.py",
        "zip(range(target.read), items, strict=False)",
        "zip(items, range(target.read), strict=False)",
        ("tests/test_sources.py::test_a_store_goes_on_where_it_was_stopped",),
    ),
    Mutant(
        "a split is any part of a name",
        "rcdm_fast/data/readers/hugging_face.py",
        'rf"(?<![^\\W\\d_]){re.escape(split)}"',
        "re.escape(split)",
        _AGAIN,
    ),
    Mutant(
        "workers run what they like",
        "rcdm_fast/jobs/cluster.py",
        "            if here != begun:\n",
        "            if False:\n",
        _CLUSTER,
    ),
    Mutant(
        "a job without its whole is complete",
        "rcdm_fast/jobs/verify.py",
        "not self.missing_shards and self.finished",
        "not self.missing_shards",
        ("tests/test_jobs_whole.py::test_a_job_that_was_stopped_before_its_end_is_not_complete",),
    ),
)
