"""What solvers do in few steps, for the documentation, from what `rcdm bench --data` wrote. Texts only."""

from __future__ import annotations

from benchmarks.documents.models import interval
from benchmarks.documents.speed import Found


def distances(found: Found) -> str:
    """How far samples end from where the flow leads: a row for each number of evaluations, a column for each solver."""
    rows = found["quality"]
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    lines = ["| evaluations | " + " | ".join(f"`{name}`" for name in solvers) + " |", "|---:|" + "---:|" * len(solvers)]
    for nfe in sorted({row["nfe"] for row in rows}):
        own = {row["solver"]: interval(row["error"], ".3f") for row in rows if row["nfe"] == nfe}
        lines.append(f"| {nfe} | " + " | ".join(own.get(name, "") for name in solvers) + " |")
    return "\n".join(lines)


def distance(found: Found, solver: str, nfe: int) -> str:
    """One of them."""
    row = next(row for row in found["quality"] if (row["solver"], row["nfe"]) == (solver, nfe))
    return f"{row['error']['value']:.3f}"


def faithful(found: Found, nfe: tuple[int, ...]) -> str:
    """What solvers do to ranks and to variance in so many evaluations, beside the first of them."""
    lines = [
        "| | MRR of the source | change, % | variance over samples, against the first row |",
        "|---|---|---|---|",
    ]
    for place, row in enumerate(found["quality"]):
        if place and row["nfe"] not in nfe:
            continue
        more = (interval(row["mrr_change"], "+.1f", 100), interval(row["variance"], ".2f")) if place else ("", "")
        cells = (f"`{row['solver']}`, {row['steps']}", interval(row["mrr"], ".3f"), *more)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ranks(*found: Found, solver: str, nfe: int) -> str:
    """What one solver in few evaluations does to ranks and to variance, a row for each model."""
    lines: list[str] = []
    for each in found:
        first = each["quality"][0]
        other = f"`{first['solver']}`, {first['steps']}"
        head = (
            f"| | MRR of the source, {other} | `{solver}`, {nfe} | change, % | variance over samples, against {other} |"
        )
        lines = lines or [head, "|---|---|---|---|---|"]
        row = next(row for row in each["quality"] if (row["solver"], row["nfe"]) == (solver, nfe))
        cells = [interval(first["mrr"], ".3f"), interval(row["mrr"], ".3f")]
        cells += [interval(row["mrr_change"], "+.1f", 100), interval(row["variance"], ".2f")]
        lines.append(f"| `{each['made_by']['models'][0]['name']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def usual(*found: Found, solver: str, nfe: int) -> str:
    """One solver in few evaluations beside the first of each model's solvers: a row for each model."""
    lines: list[str] = []
    for each in found:
        first = each["quality"][0]
        other = f"`{first['solver']}`, {first['steps']}"
        head = f"| | distance | of {other} | change of MRR, % | variance over samples, against {other} |"
        lines = lines or [head, "|---|---|---|---|---|"]
        row = next(row for row in each["quality"] if (row["solver"], row["nfe"]) == (solver, nfe))
        cells = [interval(row["error"], ".3f"), interval(first["error"], ".3f")]
        cells += [interval(row["mrr_change"], "+.1f", 100), interval(row["variance"], ".2f")]
        lines.append(f"| `{each['made_by']['models'][0]['name']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def placements(*found: Found) -> str:
    """Steps that were found for a model beside the solvers' own: distances to the teacher."""
    names = [each["solver"] for each in found]
    heads = " | ".join(f"`{name}`, found | own" for name in names)
    lines = [f"| evaluations | {heads} |", "|---:|" + "---|" * 2 * len(names)]
    for rows in zip(*(each["placements"] for each in found), strict=True):
        cells = " | ".join(f"{interval(row['error'], '.3f')} | {interval(row['own_error'], '.3f')}" for row in rows)
        lines.append(f"| {rows[0]['nfe']} | {cells} |")
    return "\n".join(lines)


def own(*found: Found) -> str:
    """Solvers that were fitted to models: distances, and in pairs what that is less than of DDIM in many evaluations.

    A row for each model; beside them the best training-free solver in as many evaluations as the last of them.
    """
    lines: list[str] = []
    for each in found:
        rows = each["quality"]
        many = max((row for row in rows if row["solver"] == "ddim"), key=lambda row: int(row["nfe"]))
        fitted = [row for row in rows if row["solver"] == "fitted"]
        last = fitted[-1]["nfe"]
        free = [row for row in rows if row["nfe"] == last and row["solver"] != "fitted" and row is not many]
        best = min(free, key=lambda row: float(row["error"]["value"]))
        heads = [f"`ddim`, {many['nfe']}", *(f"fitted, {row['nfe']}" for row in fitted), f"best other, {last}"]
        lines = lines or [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        cells = [interval(many["error"], ".3f")]
        cells += [f"{row['error']['value']:.3f}, {interval(row['less_ddim_50'], '+.3f')}" for row in (*fitted, best)]
        lines.append(f"| `{each['made_by']['models'][0]['name']}` | {' | '.join(cells)} (`{best['solver']}`) |")
    return "\n".join(lines)
