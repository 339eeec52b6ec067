"""Move modules to their place in the house and rewrite whatever names them. Can be run again on a merged tree.

    python house_moves.py ROOT [--only-text]

MODULES: old module -> new module (files and their names everywhere). SYMBOLS: (old module, name) -> new module, for
names that went to another module than their module did. METHODS: methods of `Model` that are functions now.
What is already as it should be stays as it is.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

P = "rcdm_fast."
MODULES = {
    P + a: P + b
    for a, b in {
        "export": "exporters",
        "pipeline": "model",
        "unet": "models.unet",
        "networks": "models.networks",
        "flags": "models.flags",
        "recognise": "models.infer_flags",
        "names": "models.zoo",
        "checkpoint": "models.checkpoint",
        "hub": "models.hub",
        "export.diffusers_unet": "models.diffusers_unet",
        "export.diffusers_pipeline": "models.diffusers_pipeline",
        "exporters.diffusers_unet": "models.diffusers_unet",
        "exporters.diffusers_pipeline": "models.diffusers_pipeline",
        "schedule": "diffusion.schedule",
        "noise": "diffusion.noise",
        "solvers": "diffusion.solvers",
        "conditioning": "diffusion.conditioning",
        "sampling": "diffusion.sampling",
        "inversion": "diffusion.inversion",
        "archives": "data.readers.archives",
        "arrays": "data.readers.arrays",
        "inputs": "data.inputs",
        "jobs.sources": "data.random_access",
        "jobs.items": "data.items",
        "jobs.array_rows": "data.readers.array_rows",
        "jobs.tables": "data.readers.tables",
        "jobs.table_files": "data.readers.table_files",
        "jobs.tars": "data.readers.tars",
        "training.data": "data.image_set",
        "training.sources": "data.sources",
        "training.source_kinds": "data.readers.pictures",
        "training.hugging_face": "data.readers.hugging_face",
        "training.pixel_store": "data.block_file",
        "training.sample_files": "data.sample_files",
        "training.distances": "metrics.distances",
        "training.distributions": "metrics.distributions",
        "training.probes": "metrics.probes",
        "training.ridge": "metrics.ridge",
        "training.features": "encoders.features",
        "training.evaluate": "evaluation",
        "analysis.nearest": "metrics.nearest",
    }.items()
}
SYMBOLS = {
    (P + a, name): P + b
    for a, names, b in (
        ("engines", "Engine", "diffusion.engine"),
        ("jobs.formats", "pyarrow", "data.readers.table_files"),
        ("jobs.shard_tables", "pyarrow", "data.readers.table_files"),
        ("jobs.formats", "Picture Shards", "jobs.shard"),
        ("analysis.layers", "Layer LayersConfig", "analysis.layer"),
        ("training.source_kinds", "find", "data.sources"),
        ("training.evaluate", "Interval bootstrap", "metrics.intervals"),
        ("training.evaluate", "squared_distances rank_of", "metrics.nearest"),
        ("training.state", "RunError", "errors"),
        ("analysis.recovery", "resampled Floats", "metrics.intervals"),
        ("export.job", "FORMATS find", "exporting"),
        ("exporters.job", "FORMATS find", "exporting"),
        ("export.diffusers", "CONFIG missing_packages read", "models.diffusers_folder"),
    )
    for name in names.split()
}
METHODS = ("export", "generate", "agenerate")
RECEIVER = re.compile(
    r"(.*\.)?(model|m|again|rescaled)|(.*\b)?(_?model|_?gpu_model|rescaled|load|_loaded)\(.*\)|models\[.*\]", re.S
)
FUNCTIONS = {P + "export"}  # what is a function now and must not be taken for the old package of that name
SKIP = ("CHANGELOG.md",)
SHOWN = {".py", ".md", ".toml", ".ipynb", ".cfg", ".in", ".sh", ".yaml", ".h", ".cpp", ".cu", ".cuh", ".json", ""}


def path_of(module: str) -> Path:
    parts = module.split(".")
    if parts[1] in ("training", "kernels"):
        parts = parts[1:]
    return Path(*parts).with_suffix(".py")


def mapped(module: str) -> str:
    """New name of a module; of a child of a renamed package, too."""
    seen = set()
    while module not in seen:
        seen.add(module)
        prefix = module
        while prefix:
            if prefix in MODULES:
                module = MODULES[prefix] + module[len(prefix) :]
                break
            prefix = prefix.rpartition(".")[0]
    return module


def files(root: Path) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = [root / name for name in names]
    return [
        each
        for each in found
        if each.is_file()
        and not each.is_symlink()
        and each.suffix in SHOWN
        and each.name not in SKIP
        and "results" not in each.parts
    ]


def move(root: Path) -> None:
    for old, new in MODULES.items():
        source, target = root / path_of(old), root / path_of(new)
        if old.count(".") == 1 and (root / "rcdm_fast" / old.split(".")[1]).is_dir():
            folder, to = root / "rcdm_fast" / old.split(".")[1], root / "rcdm_fast" / new.split(".")[1]
            for each in sorted(folder.glob("*.py")):
                if not (to / each.name).exists():
                    to.mkdir(exist_ok=True)
                    subprocess.run(["git", "mv", str(each), str(to / each.name)], cwd=root, check=True)
                else:
                    print("BOTH", each, to / each.name)
            continue
        if not source.is_file():
            continue
        if target.exists():
            print("BOTH", source, target)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "mv", str(source), str(target)], cwd=root, check=True)


def split_import(module: str, name: str) -> tuple[str, str]:
    """Where a name of `from module import name` is now: (module, name)."""
    full = f"{module}.{name}"
    if (module, name) in SYMBOLS:
        return SYMBOLS[module, name], name
    if full in FUNCTIONS:
        return module, name
    new = mapped(full)
    if new != full and (full in MODULES or mapped(module) == module):
        parent, _, last = new.rpartition(".")
        return parent, last
    if (mapped(module), name) in SYMBOLS:
        return SYMBOLS[mapped(module), name], name
    return mapped(module), name


def rewrite_imports(text: str) -> str:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    lines = text.split("\n")
    renames: dict[str, str] = {}
    edits: list[tuple[int, int, list[str]]] = []
    used = (
        {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    )
    stored = (
        {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    )
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(a.asname or a.name).split(".")[0] for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rcdm_fast":
            groups: dict[str, list[str]] = {}
            changed = False
            for alias in node.names:
                parent, name = split_import(node.module, alias.name)
                if (parent, name) != (node.module, alias.name):
                    changed = True
                asname = alias.asname
                if name != alias.name and asname is None:
                    free = name not in used and (name not in bound or renames.get(alias.name) == name)
                    if free and alias.name not in stored:
                        renames[alias.name] = name
                        bound.add(name)
                    else:
                        asname = alias.name
                groups.setdefault(parent, []).append(
                    name + (f" as {asname}" if (asname and asname != name) or alias.asname else "")
                )
            if changed:
                first = lines[node.lineno - 1]
                indent = first[: node.col_offset]
                comment = ""
                last = lines[node.end_lineno - 1]
                tail = last[node.end_col_offset :]
                if tail.strip().startswith("#"):
                    comment = "  " + tail.strip()
                elif "(" in first and "#" in first:
                    comment = "  " + first[first.index("#") :]
                new = []
                for parent, names in groups.items():
                    new.append(f"{indent}from {parent} import {', '.join(names)}" + (comment if not new else ""))
                edits.append((node.lineno - 1, node.end_lineno, new))
        if isinstance(node, ast.Import):
            if any(mapped(a.name) != a.name for a in node.names if a.name.startswith(P)):
                indent = lines[node.lineno - 1][: node.col_offset]
                new = [
                    f"{indent}import {mapped(a.name) if a.name.startswith(P) else a.name}"
                    + (f" as {a.asname}" if a.asname else "")
                    for a in node.names
                ]
                edits.append((node.lineno - 1, node.end_lineno, new))
    if renames:
        spots = sorted(
            {(n.lineno, n.col_offset, n.id) for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in renames},
            reverse=True,
        )
        for line, column, name in spots:
            raw = lines[line - 1].encode()
            assert raw[column : column + len(name)] == name.encode(), (line, column, name, lines[line - 1])
            lines[line - 1] = (raw[:column] + renames[name].encode() + raw[column + len(name) :]).decode()
    for start, end, new in sorted(edits, reverse=True):
        lines[start:end] = new
    text = "\n".join(lines)
    for old, new in renames.items():
        text = re.sub(rf"`{old}\.(?!py\b)", f"`{new}.", text)
    return text


def rewrite_attributes(text: str) -> str:
    """`formats.Picture` -> `Picture` with an import, where a symbol went to another module."""
    wanted: set[tuple[str, str]] = set()
    for _ in range(200):
        try:
            tree = ast.parse(text)
        except SyntaxError:
            return text
        bound = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rcdm_fast"):
                for alias in node.names:
                    bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        lines = text.split("\n")
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound):
                continue
            module = bound[node.value.id]
            target = SYMBOLS.get((module, node.attr)) or next(
                (new for (old, name), new in SYMBOLS.items() if name == node.attr and mapped(old) == module != new),
                None,
            )
            if target is None or node.lineno != node.end_lineno:
                continue
            raw = lines[node.lineno - 1].encode()
            old = f"{node.value.id}.{node.attr}".encode()
            if raw[node.col_offset : node.end_col_offset] != old:
                print("BY HAND", lines[node.lineno - 1])
                continue
            lines[node.lineno - 1] = (raw[: node.col_offset] + node.attr.encode() + raw[node.end_col_offset :]).decode()
            wanted.add((target, node.attr))
            text = "\n".join(lines)
            break
        else:
            break
    for module, name in sorted(wanted):
        line = f"from {module} import {name}"
        if not re.search(rf"^from {re.escape(module)} import .*\b{name}\b", text, re.M):
            first = re.search(r"^from rcdm_fast", text, re.M)
            text = text[: first.start()] + line + "\n" + text[first.start() :]
    return text


def rewrite_methods(text: str) -> str:
    """`model.export(a)` -> `rcdm_fast.export(model, a)`."""
    for _ in range(50):
        try:
            tree = ast.parse(text)
        except SyntaxError:
            return text
        starts = [0]
        raw = text.encode()
        for line in raw.split(b"\n"):
            starts.append(starts[-1] + len(line) + 1)

        def at(line: int, column: int) -> int:
            return starts[line - 1] + column

        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
                continue
            receiver = node.func.value
            source = ast.get_source_segment(text, receiver) or ""
            if source == "rcdm_fast" or not RECEIVER.fullmatch(source):
                continue
            begin, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
            func_end = at(node.func.end_lineno, node.func.end_col_offset)
            inside = raw[func_end:end]
            assert inside.startswith(b"(")
            rest = inside[1:]
            comma = b"" if rest.lstrip().startswith(b")") else b", "
            new = f"rcdm_fast.{node.func.attr}({source}".encode() + comma + rest
            raw = raw[:begin] + new + raw[end:]
            break
        else:
            return text
        text = raw.decode()
        if not re.search(r"^import rcdm_fast$", text, re.M):
            text = re.sub(
                r"^(from __future__ import annotations\n)", r"\1\nimport rcdm_fast\n", text, count=1, flags=re.M
            )
    return text


def snippet(match: re.Match[str]) -> str:
    """`from rcdm_fast.x import a, b` inside a string, a notebook or a document."""
    module, names = match[1], [each.strip() for each in match[2].split(",")]
    groups: dict[str, list[str]] = {}
    changed = False
    for each in names:
        name, _, asname = each.partition(" as ")
        parent, new = split_import(module, name)
        changed |= (parent, new) != (module, name)
        asname = asname or (name if new != name else "")
        groups.setdefault(parent, []).append(new + (f" as {asname}" if asname else ""))
    if not changed:
        return match[0]
    return "; ".join(f"from {parent} import {', '.join(found)}" for parent, found in groups.items())


def dotted(match: re.Match[str]) -> str:
    whole = match[0]
    if whole in FUNCTIONS or whole.endswith((".json", ".py")):
        return whole
    parts = whole.split(".")
    for size in range(len(parts) - 1, 1, -1):
        module, name = ".".join(parts[:size]), parts[size]
        if (module, name) in SYMBOLS:
            return ".".join([SYMBOLS[module, name], *parts[size:]])
    return mapped(whole)


PATHS = {}
for _old in MODULES:
    if _old != P + "export":
        PATHS[str(path_of(_old))] = str(path_of(mapped(_old)))


def paths(match: re.Match[str]) -> str:
    given = match[0]
    short = (
        given.removeprefix("rcdm_fast/") if given.startswith(("rcdm_fast/training/", "rcdm_fast/kernels/")) else given
    )
    if short.startswith("rcdm_fast/export/"):
        short = short.replace("rcdm_fast/export/", "rcdm_fast/exporters/", 1)
        given = short
    return PATHS.get(short, given)


def mention(file: Path, root: Path, text: str) -> str:
    """`x.py` in prose: beside the file, or below rcdm_fast/."""
    relative = file.relative_to(root)
    new_of_old = {**PATHS}
    old_of_new = {}
    for old, new in PATHS.items():
        old_of_new.setdefault(new, old)
    here = str(relative)
    old_here = Path(old_of_new.get(here, here))
    if str(old_here).startswith("rcdm_fast/exporters/"):
        pass

    def change(match: re.Match[str]) -> str:
        given = match[1]
        for folder in (old_here.parent, Path("rcdm_fast"), Path(".")):
            old = str(folder / given)
            if old.startswith("rcdm_fast/export/") and old not in new_of_old:
                return "`" + given.replace("export/", "exporters/", 1) + "`"
            if old in new_of_old:
                new = Path(new_of_old[old])
                break
            if (root / old).is_file() and folder == old_here.parent and relative != old_here:
                new = Path(old)  # stayed where it was, while this file has gone
                break
        else:
            return match[0]
        if new.parent == relative.parent:
            return f"`{new.name}`"
        text = str(new).removeprefix("rcdm_fast/")
        return f"`{text}`"

    return re.sub(r"`([a-z_0-9]+(?:/[a-z_0-9]+)*\.py)`", change, text)


def rewrite(file: Path, root: Path) -> bool:
    try:
        before = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    text = before
    if file.suffix == ".py":
        text = rewrite_attributes(text)
        text = rewrite_imports(text)
        if file.parts[len(root.parts)] in ("tests", "examples", "benchmarks", "rcdm_fast", "training"):
            text = rewrite_methods(text)
    text = (
        re.sub(r"from (rcdm_fast[\w.]*) import (\w+(?: as \w+)?(?:, \w+(?: as \w+)?)*)(?![\w(])", snippet, text)
        if (file.suffix != ".py" or "import" in text)
        else text
    )
    text = re.sub(r"\brcdm_fast(?:\.[A-Za-z_]\w*)+", dotted, text)
    text = re.sub(r"(?<![\w/.-])(?:rcdm_fast|training)/[\w/]+\.py\b", paths, text)
    if file.suffix in (".py", ".md"):
        text = mention(file, root, text)
    if text != before:
        file.write_text(text, encoding="utf-8")
        return True
    return False


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    if "--only-text" not in sys.argv:
        move(root)
    changed = [each for each in files(root) if rewrite(each, root)]
    python = [str(each) for each in changed if each.suffix == ".py"]
    print(f"{len(changed)} files rewritten")
    ruff = root / ".venv/bin/ruff"
    ruff = ruff if ruff.exists() else Path("/work/main/.venv/bin/ruff")
    if python:
        subprocess.run([str(ruff), "check", "-q", "--fix", "--select", "I", *python], cwd=root, check=False)
        subprocess.run([str(ruff), "format", "-q", *python], cwd=root, check=False)


if __name__ == "__main__":
    main()
