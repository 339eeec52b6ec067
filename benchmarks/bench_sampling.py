"""Images per second from representation to image, per engine, precision and batch, beside the published recipe.

    python benchmarks/bench_sampling.py --config s --batches 16 --budget 170

DDIM with 10, 25, 50 and 100 steps and ancestral sampling with 100, with the made-up weights of benchmarks/configs. The
measuring is that of `rcdm bench` (`rcdm_fast.throughput`), which does the same for real models.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import workload
from benchmarks.rows import RowFile
from rcdm_fast import benchmarking, config, engines, throughput
from rcdm_fast.cli.bench import table
from rcdm_fast.config import ModelConfig
from rcdm_fast.model import Model
from rcdm_fast.throughput import Case, Plan

SAMPLERS = (("ddim", 10), ("ddim", 25), ("ddim", 50), ("ddim", 100), ("ancestral", 100))
KEYS = ("engine", "precision", "solver", "steps", "batch")


def cases(device: torch.device, names: Sequence[str], precisions: Sequence[str]) -> tuple[Case, ...]:
    """Every sampler with every engine and precision that can run here, the quick ones first."""
    able = [
        (name, precision)
        for name in names
        for precision in precisions
        if not engines.reasons_unavailable(name, device, precision)  # type: ignore[arg-type]
    ]
    return tuple(Case(*pair, solver, steps) for solver, steps in SAMPLERS for pair in able)


def make_model(model: ModelConfig, device: torch.device) -> Model:
    """A model with made-up weights, on the eager engine."""
    network = workload.make_network(model.unet).to(device)
    return Model(model, network, engines.make("eager", network, model, device, "fp32"), None, device)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Images per second beside the published recipe.")
    parser.add_argument("--config", default="s", help="name in benchmarks/configs")
    parser.add_argument("--batches", type=int, nargs="+", default=[16], help="images per network evaluation")
    parser.add_argument("--engines", nargs="+", default=list(engines.ENGINES), choices=list(engines.ENGINES))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=list(engines.PRECISIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for each batch size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=Path("out/bench_sampling.json"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if an engine's result was wrong, 2 for bad input."""
    options = parse(arguments)
    device = torch.device(options.device)
    red = False
    try:
        description = workload.read_config(options.config)
        file = RowFile(options.json, benchmarking.facts(device), KEYS)
        model = make_model(description, device)
        wanted = cases(device, options.engines, options.precisions)
        for batch in options.batches:
            plan = Plan(wanted, batch, budget_s=options.budget, rounds=options.rounds)

            def report(rows: list[dict[str, Any]], fraction: float) -> None:
                file.put(*rows)
                print(f"{100 * fraction:3.0f} % of the budget", file=sys.stderr, flush=True)

            rows = throughput.measure(model, plan, report)
            print("\n".join(table(rows)))
            red |= any(row.get("red", False) for row in rows)
    except (config.ConfigError, OSError) as error:
        print(f"bench_sampling: {error}", file=sys.stderr)
        return 2
    return int(red)


if __name__ == "__main__":
    sys.exit(main())
