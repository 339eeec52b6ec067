"""Imports run one way: no two files import each other, by any detour; the linter of imports sees every file."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp", reason="a machine with a GPU may have only what the tests marked gpu need")

ROOTS = {
    "rcdm_fast": "rcdm_fast",
    "training": "rcdm_fast.training",
    "kernels": "rcdm_fast.kernels",
    "benchmarks": "benchmarks",
}
BY_NAME = {"rcdm_fast"}  # modules that may name others in texts: the package itself, whose names are loaded when used


def _modules(checkout: Path) -> dict[str, Path]:
    """Module -> file, each file once: links are not followed."""
    found = {}
    for folder, package in ROOTS.items():
        for path in (checkout / folder).rglob("*.py"):
            if (checkout / folder).resolve() in path.resolve().parents and "_build_info" not in path.name:
                parts = path.relative_to(checkout / folder).with_suffix("").parts
                found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def _imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Own modules that a file imports, wherever in it, also for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                child = f"{node.module}.{alias.name}"
                found.update({child if child in modules else node.module} & modules.keys())
    return found


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, the last one the first; empty if there is no such circle."""
    done: set[str] = set()
    way: list[str] = []

    def walk(module: str) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        way.append(module)
        found = next((circle for each in sorted(graph[module]) if (circle := walk(each))), [])
        way.pop()
        done.add(module)
        return found

    return next((circle for module in sorted(graph) if (circle := walk(module))), [])


def test_no_circle_of_files(checkout: Path) -> None:
    modules = _modules(checkout)
    assert len(modules) > 200
    assert _circle({name: _imports(path, modules) - {name} for name, path in modules.items()}) == []


def test_a_circle_is_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_linter_sees_every_file(checkout: Path) -> None:
    settings = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert not settings.keys() - {"root_packages", "contracts"}, "such as leaving out imports for types"
    assert all("ignore_imports" not in contract for contract in settings["contracts"])
    graph = grimp.build_graph(*settings["root_packages"], cache_dir=None)
    packages = {"rcdm_fast.training", "rcdm_fast.kernels"}  # folders without a file of their own
    assert graph.modules - packages - {"rcdm_fast._build_info"} == _modules(checkout).keys()


def test_the_linter_counts_imports_inside_functions_and_for_types(checkout: Path) -> None:
    graph = grimp.build_graph("rcdm_fast", cache_dir=None)
    inside, for_types = ("rcdm_fast.exporting", "rcdm_fast.exporters.tensorrt"), ("rcdm_fast", "rcdm_fast.model")
    for importer, imported in (inside, for_types):
        assert graph.direct_import_exists(importer=importer, imported=imported)


def test_own_modules_are_imported_by_name_in_the_package_alone(checkout: Path) -> None:
    for module, path in _modules(checkout).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__"))):
                continue
            own = node.args and ast.unparse(node.args[0]).lstrip("f").strip("'\"").startswith(tuple(ROOTS.values()))
            assert not own or module in BY_NAME, f"{module}: {ast.unparse(node)}"


def test_nothing_below_the_commands_imports_the_package_itself(checkout: Path) -> None:
    modules = _modules(checkout)
    above = ("rcdm_fast.cli", "rcdm_fast.app", "rcdm_fast.__main__", "benchmarks")
    below = {name: path for name, path in modules.items() if not name.startswith(above)}
    assert [name for name, path in below.items() if "rcdm_fast" in _imports(path, modules)] == []


def test_no_file_is_too_long_to_read(checkout: Path) -> None:
    sources = [*_modules(checkout).values(), *(each for each in (checkout / "csrc").rglob("*") if each.is_file())]
    long = {str(path): count for path in sources if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long
    assert len((checkout / "rcdm_fast" / "model.py").read_text(encoding="utf-8").splitlines()) < 300
