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
        if each.file.endswith(".py"):
            compile(changed, each.file, "exec")
        assert all((checkout / test.partition("::")[0]).is_file() for test in each.tests)
    assert len({(each.file, each.what) for each in MUTANTS}) == len(MUTANTS)


def test_a_mutant_that_no_longer_fits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "it.py").write_text("a = 1\nb = 1\n")
    for before in ("c = 1", " = 1"):
        with pytest.raises(ValueError, match="wanted is once"):
            Mutant("it", "it.py", before, "", ()).text(tmp_path)
    assert Mutant("it", "it.py", "b = 1", "b = 2", ()).text(tmp_path) == "a = 1\nb = 2\n"


def test_survivors_and_what_fails_without_a_mutant_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it.py").write_text("a = 1\nb = 2\n")
    test = tmp_path / "test_it.py"
    test.write_text(
        "import it, pytest\n@pytest.mark.parametrize('number', [1], ids=['a - b'])\n"
        "def test_a(number): assert it.a == number\n"
    )
    monkeypatch.setattr(run, "ROOT", tmp_path)
    tests = ("test_it.py",)
    mutants = (Mutant("a is lost", "it.py", "a = 1", "a = 0", tests), Mutant("b is lost", "it.py", "b = 2", "", tests))
    monkeypatch.setattr(run, "MUTANTS", mutants)
    assert run.main(["--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert "it.py: a is lost: noticed by test_it.py::test_a[a - b], " in said
    assert "it.py: b is lost: SURVIVED, " in said
    assert "1 of 2 noticed (50%)\nslowest:\n  it.py: " in said
    assert said.endswith("survivor: it.py: b is lost: 'b = 2' -> ''\n")
    asked: list[tuple[str, ...]] = []

    def passed(root: Path, tests: tuple[str, ...], *options: str, **_: object) -> tuple[int, str]:
        asked.append(options)
        return 0, ""

    with monkeypatch.context() as patch:
        patch.setattr(run, "ran", passed)
        assert run.main(["--jobs", "1", "--untried"]) == 1
    assert asked == [("-x",)] * 2  # a run for each mutant, and none without
    assert "0 of 2 noticed (0%)" in capsys.readouterr().out
    test.write_text(test.read_text() + "def test_b(): assert it.b == 3\n")
    assert run.main(["--jobs", "1"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "the tests fail without any mutant (pytest exits with 1):",
        "test_it.py::test_b",
    ]


@pytest.mark.long
def test_mutants_are_noticed(short: bool) -> None:
    """In short some of them, by tests that `make test` has seen pass."""
    assert run.main(["--every", "100", "--untried"] if short else []) == 0
