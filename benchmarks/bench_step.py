"""Time of one network evaluation, our engines beside what a user could pick instead, in one run.

    python benchmarks/bench_step.py --configs s m --rounds 20

Same weights and inputs for all; every image of a batch has a representation of its own. Each candidate is compared
with plain PyTorch in fp32 first; a wrong one is not timed, and the exit status is 1. Rivals compute everything in every
evaluation; our engines get a conditioning plan, whose cost is a row of its own. Ratios are medians over the rounds of
the ratio within one round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peers, timing, workload
from benchmarks.rows import Row, RowFile, markdown, table
from benchmarks.timing import Candidate, Evaluate
from benchmarks.workload import Workload
from rcdm_fast import benchmarking, config, engines

KEYS = ("config", "name", "precision")
YARDSTICKS = {"of_openvino": peers.OPENVINO, "of_compile": peers.COMPILED, "of_eager": peers.EAGER}
COLUMNS = (
    ("", "name", "s"),
    ("precision", "precision", "s"),
    ("ms (p50)", "p50_ms", ".1f"),
    ("p20", "p20_ms", ".1f"),
    ("p80", "p80_ms", ".1f"),
    ("GFLOP/s", "gflop_per_s", ".0f"),
    ("GB/s", "gbyte_per_s", ".1f"),
    ("rel. error", "error", ".1e"),
    ("x OpenVINO bf16", "of_openvino", ".2f"),
    ("x torch.compile bf16", "of_compile", ".2f"),
    ("x eager fp32", "of_eager", ".2f"),
)
SHORT_COLUMNS = tuple(column for column in COLUMNS if column[1] not in ("p20_ms", "p80_ms", "gbyte_per_s"))


def engine_candidates(work: Workload, names: Sequence[str], precisions: Sequence[str]) -> list[Candidate]:
    """Our engines, in every precision; those that cannot run here say why."""
    found = []
    for name in names:
        for precision in precisions:
            build = partial(build_engine, work, name, precision)
            candidate = Candidate(f"rcdm_fast {name}", precision, True, build, "conditioning plan made before")
            reasons = engines.reasons_unavailable(name, work.device, precision)  # type: ignore[arg-type]
            candidate.why_not = "; ".join(reasons)
            found.append(candidate)
    return found


def build_engine(work: Workload, name: str, precision: str) -> Evaluate:
    """An engine behind the signature that rivals have; the plans of both batches are made here."""
    # An engine may lay the weights out anew, so it gets its own.
    network = workload.copy_network(work.network)
    engine = engines.make(name, network, work.config, work.device, precision)
    bound = {inputs.k: engine.bind(work.plan(inputs), torch.arange(work.batch)) for inputs in (work.timed, work.other)}
    return lambda inputs: bound[inputs.k].predict(inputs.x, inputs.k)


def peer_candidates(work: Workload, names: Sequence[str]) -> list[Candidate]:
    """Rivals; those that cannot run here say why."""
    found = []
    for name in names:
        peer = peers.PEERS[name]
        candidate = Candidate(peer.name, peer.precision, False, partial(peer.build, work), peer.note)
        candidate.why_not = "; ".join(peer.reasons_unavailable(work))
        found.append(candidate)
    return found


def measure(work: Workload, candidates: Sequence[Candidate], rounds: int, file: RowFile, shared: Row) -> bool:
    """Check, time and write all candidates of a workload; whether one of them is wrong."""
    shared = {**shared, "config": work.name, "batch": work.batch, "flop": work.flops}
    gate = timing.Gate(work)
    for candidate in candidates:
        if not candidate.why_not:
            timing.check(candidate, gate, work)
        file.put({**candidate.row(), **shared})
        print(f"{work.name}: {candidate.key}: {candidate.why_not or 'right'}", file=sys.stderr, flush=True)

    def after_round(times: dict[str, list[float]]) -> None:
        file.put(*(_row(candidate, times, shared) for candidate in candidates if candidate.key in times))

    timing.measure(candidates, work, rounds=rounds, after_round=after_round)
    for failed in (each for each in candidates if each.why_not):
        file.put({**failed.row(), **shared})
    plan_ms = benchmarking.in_turn({"plan": lambda: work.plan(work.timed)}, work.device, rounds=5, warmup=1)["plan"]
    name = f"conditioning plan, {workload.STEPS} steps, {work.batch} representations"
    file.put({**benchmarking.row(plan_ms, name=name, precision="", ours=True), **shared})
    return any(candidate.red for candidate in candidates)


def _row(candidate: Candidate, times: dict[str, list[float]], shared: Row) -> Row:
    row = {**candidate.row(times[candidate.key]), **shared}
    row["gflop_per_s"] = shared["flop"] / row["p50_ms"] * 1e-6
    for column, yardstick in YARDSTICKS.items():
        if yardstick in times:
            row[column] = benchmarking.pair_ratio(times[yardstick], times[candidate.key])
    return row


def measure_ceilings(device: torch.device, file: RowFile, shared: Row) -> None:
    """The machine's ceilings as rows."""
    for row in timing.ceilings(device):
        if "bytes_per_s" in row:
            row["gbyte_per_s"] = row["bytes_per_s"] * 1e-9
        file.put({**row, **shared, "config": "ceilings"})


def document(rows: Sequence[Row]) -> str:
    """All rows for a page of the documentation: a Markdown table for each configuration, ceilings, the machine."""
    lines: list[str] = []
    for name in dict.fromkeys(row["config"] for row in rows if row["config"] != "ceilings"):
        own = [_emphasized(row) for row in rows if row["config"] == name]
        lines += [f"`{name}`, batch {own[0]['batch']}, {own[0]['flop'] * 1e-9:.0f} GFLOP:", ""]
        lines += [*markdown(own, SHORT_COLUMNS), ""]
    ceilings = [row for row in rows if row["config"] == "ceilings"]
    said = [
        f"{row['name']} {row['precision']} {row['gflop_per_s']:.0f} GFLOP/s" for row in ceilings if "gflop_per_s" in row
    ]
    said += [f"copy {row['gbyte_per_s']:.1f} GB/s" for row in ceilings if "gbyte_per_s" in row]
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    lines += [f"Ceilings measured in the same run: {'; '.join(said)}.", ""] if said else []
    return "\n".join(
        [*lines, f"{rows[0]['device']}, {rows[0]['threads']} threads, allocator {rows[0]['allocator']}; {versions}."]
    )


def _emphasized(row: Row) -> Row:
    """The engine that ``auto`` chooses, in bold."""
    return {**row, "name": f"**{row['name']}**"} if row["name"] == "rcdm_fast native" else row


def report(file: RowFile, text: Path | None) -> None:
    """Print all rows; write what the documentation shows of them to a file too."""
    for name in dict.fromkeys(row["config"] for row in file.rows):
        print(f"\n{name}")
        print("\n".join(table([row for row in file.rows if row["config"] == name], COLUMNS)))
    shown = document(file.rows)
    print("\n" + shown)
    if text is not None:
        text.write_text(shown + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; an unknown name is an error that lists the known ones."""
    parser = argparse.ArgumentParser(description="Time of one network evaluation beside its rivals.")
    parser.add_argument("--configs", nargs="+", default=["s"], help="names in benchmarks/configs")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each")
    parser.add_argument("--peers", nargs="*", default=list(peers.PEERS), choices=list(peers.PEERS), metavar="PEER")
    parser.add_argument("--engines", nargs="*", default=list(engines.ENGINES), choices=list(engines.ENGINES))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=list(engines.PRECISIONS))
    parser.add_argument("--batch", type=int, default=0, help="instead of the configuration's own")
    parser.add_argument("--threads", type=int, default=0, help="default: torch's")
    parser.add_argument("--json", type=Path, default=Path("out/bench_step.json"))
    parser.add_argument("--markdown", type=Path, help="write the tables of the documentation to this file")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.batch < 0 or options.threads < 0:
        parser.error("--rounds must be at least 1; --batch and --threads cannot be negative")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a result was wrong."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    shared = benchmarking.facts(device)
    try:
        models = [workload.read_config(name) for name in options.configs]
        file = RowFile(options.json, shared, KEYS)
    except (config.ConfigError, OSError) as error:
        print(f"bench_step: {error}", file=sys.stderr)
        return 2
    measure_ceilings(device, file, shared)
    red = False
    for model in models:
        work = workload.make(model, options.batch, device)
        candidates = peer_candidates(work, options.peers)
        candidates += engine_candidates(work, options.engines, options.precisions)
        red |= measure(work, candidates, options.rounds, file, shared)
    report(file, options.markdown)
    if red:
        print("bench_step: a result is wrong, see above; its time was not measured", file=sys.stderr)
    return int(red)


if __name__ == "__main__":
    sys.exit(main())
