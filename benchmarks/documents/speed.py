"""What results of speed say in the documentation: tables and single numbers. Texts only; nothing is measured."""

from __future__ import annotations

from typing import Any

from benchmarks import bench_step
from benchmarks.rows import Row, markdown

Found = dict[str, Any]  # a result as its JSON has it

_RIVALS = (("diffusers", "diffusers"), ("torch.compile", "torch.compile"), ("OpenVINO", "OpenVINO"))

GPU_BATCH = 64  # at which bytes of the model of GPUs are counted


def step(found: Found) -> str:
    """One evaluation beside rivals."""
    return bench_step.document(found["rows"])


def _timed(found: Found, name: str, precision: str = "bf16") -> Row:
    return next(row for row in found["rows"] if (row["name"], row["precision"]) == (name, precision))


def rivals(found: Found) -> str:
    """The same in short: in bf16, what a user would pick instead and how many times as long it takes."""
    own = _timed(found, "rcdm_fast native")
    rows: list[Row] = []
    for shown, name in _RIVALS:
        row = _timed(found, name)
        rows.append({"name": shown, "ms": row["p50_ms"], "of": f"{row['p50_ms'] / own['p50_ms']:.1f}"})
    rows[0]["of"] += " times as long"
    rows.append({"name": "**rcdm_fast**", "ms": own["p50_ms"], "of": "1"})
    lines = [f"| {row['name']} | {row['ms']:.1f} | {row['of']} |" for row in rows]
    return "\n".join(["| | ms | |", "|---|---:|---:|", *lines])


def step_fp32(found: Found) -> str:
    """One evaluation in fp32, and how many times as long as ours the others take."""
    own = _timed(found, "rcdm_fast native", "fp32")
    lines = ["| | ms (p50) | GFLOP/s | rel. error | times as long |", "|---|---:|---:|---:|---:|"]
    for row in found["rows"]:
        if row.get("error") is not None and row["precision"] == "fp32":
            name = f"**{row['name']}**" if row is own else row["name"]
            rate, of = row["gflop_per_s"], row["p50_ms"] / own["p50_ms"]
            lines.append(f"| {name} | {row['p50_ms']:.0f} | {rate:.0f} | {row['error']:.1e} | {of:.2f} |")
    (ceiling,) = (row for row in found["rows"] if row["name"].startswith("GEMM"))
    flop = f"{own['flop'] / 1e9:.0f} GFLOP in batches of {own['batch']}"
    return "\n".join([*lines, "", f"{flop}. {ceiling['name']} in the same run: {ceiling['gflop_per_s']:.0f} GFLOP/s."])


def first_image(found: Found) -> str:
    """How long it takes from nothing to the first sheet, by README's commands."""
    minutes, seconds = divmod(found["seconds"]["whole"], 60)
    return f"{minutes} min {seconds} s"


def times_published(found: Found, engine: str, nfe: int) -> str:
    """How many times the published recipe's images a second an engine draws in so many evaluations."""
    (row,) = (row for row in found["rows"] if (row["engine"], row["nfe"]) == (engine, nfe))
    return f"{row['times_published']:.1f}"


def sampling(found: Found) -> str:
    """Images per second, end to end."""
    names = {"ddim": "DDIM"}
    lines = [
        f"| `{found['rows'][0]['model']}`, batch {found['rows'][0]['batch']}, {found['facts']['threads']} threads | "
        "precision | steps | images/s | sampler's fraction | x published recipe |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        engine = "published recipe (eager)" if row["engine"] == "published recipe" else row["engine"]
        drawn = f"{names.get(row['solver'], row['solver'])} {row['steps']}"
        fraction = f"{row['sampler_percent']:.1f} %" if "sampler_percent" in row else ""
        rate = f"{row['images_per_s']:.{2 if row['images_per_s'] >= 1 else 3}f}"
        lines.append(
            f"| {engine} | {row['precision']} | {drawn} | {rate} | {fraction} | {row['times_published']:.1f} |"
        )
    return "\n".join(lines)


def profiles(*found: Found) -> str:
    """Where the time of an evaluation goes, a configuration after the other."""
    lines = [
        "| | calls | ms | GFLOP | GFLOP/s | MB | floor: operations | floor: bytes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        parts = [row for row in each["rows"] if row["kind"] != "whole evaluation"]
        for place, row in enumerate(each["rows"]):
            whole = row["kind"] == "whole evaluation"
            gflop = sum(part.get("gflop", 0.0) for part in parts) if whole else row.get("gflop", 0.0)
            mbyte = sum(part.get("mbyte", 0.0) for part in parts) if whole else row.get("mbyte", 0.0)
            name = f"**{each['config']}**, {row['kind']}" if place == 0 else row["kind"]
            cells = (
                f"{row['calls']}" if row["calls"] else "",
                f"{row['ms']:.1f}",
                f"{gflop:.1f}" if gflop else "",
                f"{gflop / row['ms'] * 1e3:.0f}" if gflop else "",
                f"{mbyte:.0f}" if mbyte else "",
                f"{row['operations_floor_ms']:.1f}" if gflop else "",
                f"{row['bytes_floor_ms']:.1f}" if mbyte else "",
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def above_floor(found: Found) -> str:
    """How many times the floor of its operations an evaluation takes."""
    whole = found["rows"][-1]
    return f"{whole['ms'] / whole['operations_floor_ms']:.2f}"


def parts_above_floor(found: Found) -> str:
    """What of an evaluation is above the floor of its operations, most first, in the sum of what each kind takes."""
    parts = [row for row in found["rows"] if row["kind"] != "whole evaluation"]
    above = sorted(((row["ms"] - row["operations_floor_ms"], row["kind"]) for row in parts), reverse=True)
    return "; ".join(f"{kind} {ms:.1f} ms" for ms, kind in above if ms > 0)


def ceilings(found: Found) -> str:
    """The rates that floors are made of."""
    rates = found["ceilings"]
    return f"{found['config']}: {rates['gflop_per_s']:.0f} GFLOP/s, {rates['copy_gbyte_per_s']:.1f} GB/s"


def training_step(found: Found) -> str:
    """A step of training on the CPU."""
    columns = (
        ("", "name", "s"),
        ("precision", "precision", "s"),
        ("ms (p50)", "p50_ms", ".0f"),
        ("images/s", "images_per_s", ".1f"),
        ("x plain PyTorch fp32", "of_plain", ".2f"),
        ("ready after, s", "ready_s", ".0f"),
    )
    return "\n".join(markdown(found["rows"], columns))


def fused_step(found: Found) -> str:
    """A step of training beside plain PyTorch's and beside the convolutions alone."""
    columns = (
        ("", "name", "s"),
        ("ms (p50)", "p50_ms", ".0f"),
        ("x plain PyTorch", "of_plain", ".2f"),
        ("x floor", "of_floor", ".2f"),
    )
    return "\n".join(markdown(found["rows"], columns))


def convolutions(found: Found, precision: str = "fp32") -> str:
    """What the convolutions of a training step take, and the rate of those with the most work."""
    rows = found["facts"]["convolutions"][precision]
    parts = ("forward", "of_input", "of_weight")
    whole = [f"{sum(row['count'] * row[f'{part}_ms'] for row in rows):.0f}" for part in parts]
    count = sum(row["count"] for row in rows)
    lines = ["| | forward | for x | for the weight and bias |", "|---|---:|---:|---:|"]
    lines.append(f"| all {count} convolutions, ms | {' | '.join(whole)} |")
    for row in rows[:3]:
        shape = f"{row['kernel']}x{row['kernel']} on {row['size']} px, {row['inputs']} to {row['outputs']} channels"
        rates = " | ".join(f"{row[f'{part}_gflops']:.0f}" for part in parts)
        lines.append(f"| GFLOP/s, {shape} | {rates} |")
    return "\n".join(lines)


def maps(found: Found) -> str:
    """What a decoder of maps takes beside one of vectors."""
    columns = (
        ("engine", "name", "s"),
        ("samples of each", "per", "d"),
        ("vector, ms a step", "vector_ms", ".0f"),
        ("map, ms a step", "map_ms", ".0f"),
        ("x vector", "of_vector", ".2f"),
        ("lowest", "of_vector_low", ".2f"),
        ("highest", "of_vector_high", ".2f"),
    )
    return "\n".join(markdown(found["rows"], columns))


def compiled_step(found: Found) -> str:
    """How many times as fast as plain PyTorch the compiled step is."""
    return f"{_timed(found, 'rcdm train, compiled')['of_plain']:.2f}"


def job(found: Found, name: str, digits: int = 2) -> str:
    """How many times as long as the bare loop a job takes."""
    return f"{_timed(found, name, 'fp32')['of_bare']:.{digits}f}"


def job_spread(found: Found, name: str) -> str:
    """The same over the rounds."""
    row = _timed(found, name, "fp32")
    return f"{row['of_bare_low']:.2f} to {row['of_bare_high']:.2f}"


def gpu_model(found: Found) -> str:
    """Modeled times of one evaluation on one GPU, a way after the other; of torch.compile's time at every batch."""
    rows = found["rows"]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    largest = f"GB at {GPU_BATCH}"
    heads = ["", "kernels", largest, *(f"batch {batch}" for batch in batches)]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in dict.fromkeys(row["name"] for row in rows):
        of = {row["batch"]: row for row in rows if row["name"] == name}
        cells = [name, f"{of[GPU_BATCH]['kernels']}", f"{of[GPU_BATCH]['gbyte']:.1f}"]
        cells += [f"{of[batch]['ms']:.2f} ({of[batch]['of_compile']:.2f})" for batch in batches]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def modeled(found: Found, name: str, key: str, batch: int = GPU_BATCH, fraction_of: str = "") -> str:
    """One number of the same, or what fraction of another one it is."""
    (row,) = (row for row in found["rows"] if row["name"] == name and row["batch"] == batch)
    return f"{row[key] / row[fraction_of]:.0%}" if fraction_of else f"{row[key]:.{2 if key == 'of_compile' else 1}f}"
