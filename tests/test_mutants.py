"""Mutants that still fit the code, and (long) that its tests notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import run
from tests.mutants.catalog import MUTANTS
from tests.mutants.mutant import Mutant


def test_every_mutant_fits_the_code(checkout: Path) -> None:
    for each in MUTANTS:
        changed = each.text(checkout)
        compile(changed, each.file, "exec")
        assert all((checkout / test.partition("::")[0]).is_file() for test in each.tests)
    assert len({(each.file, each.what) for each in MUTANTS}) == len(MUTANTS)


def test_a_mutant_that_no_longer_fits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "it.py").write_text("a = 1\nb = 1\n")
    for before in ("c = 1", " = 1"):
        with pytest.raises(ValueError, match="wanted is once"):
            Mutant("it", "it.py", before, "", ()).text(tmp_path)
    assert Mutant("it", "it.py", "b = 1", "b = 2", ()).text(tmp_path) == "a = 1\nb = 2\n"


@pytest.mark.long
def test_mutants_are_noticed(short: bool) -> None:
    assert run.main(["--every", "12" if short else "1"]) == 0
