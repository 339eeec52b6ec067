"""What a map costs beside a vector: samples of the same network, conditioned on either, in one run.

    python benchmarks/bench_maps.py --config trunk --map 96 8 8 --json maps.json

The vector has as many numbers as the map has channels. Weights are made up. Images of the native engine are compared
with those of plain PyTorch before anything is timed; ratios are medians over the rounds of the ratio within one, and
either comes first by turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import workload
from benchmarks.rows import Row, table
from rcdm_fast import engine_comparison, provenance, storage
from rcdm_fast.benchmarking import FP32_LIMIT, relative_l2
from rcdm_fast.config import ModelConfig, UNetConfig
from rcdm_fast.model import Model

ENGINES = ("native fp32", "eager fp32")
COLUMNS = (
    ("", "name", "s"),
    ("samples of each", "per", "d"),
    ("vector, ms a step", "vector_ms", ".1f"),
    ("map, ms a step", "map_ms", ".1f"),
    ("x vector", "of_vector", ".3f"),
    ("lowest", "of_vector_low", ".3f"),
    ("highest", "of_vector_high", ".3f"),
)


def made(config: ModelConfig, unet: UNetConfig) -> Model:
    """The network with made-up weights in every layer."""
    return Model.from_network(workload.make_network(unet), config.schedule)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 if an engine's images are not those of plain PyTorch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="trunk", help="of benchmarks/configs")
    parser.add_argument("--map", type=int, nargs=3, default=(96, 8, 8), metavar=("C", "H", "W"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("out/maps.json"))
    given = parser.parse_args(arguments)
    config, shape = workload.read_config(given.config), tuple(given.map)
    numbers = math.prod(shape)
    vector = made(config, dataclasses.replace(config.unet, representation_dim=shape[0]))
    of_map = made(config, dataclasses.replace(config.unet, representation_dim=numbers, condition_map=shape))
    generator = torch.Generator().manual_seed(workload.SEED)
    maps = torch.randn(given.batch, *shape, generator=generator)
    told = {"config": given.config, "map": list(shape), "batch": given.batch, "steps": given.steps}
    rows: list[Row] = []
    failed = False
    for name in ENGINES:
        case = engine_comparison.Case.parse(name.replace(" ", ":"))
        own = engine_comparison.with_engine(vector, case), engine_comparison.with_engine(of_map, case)
        for per in (1, 4):
            row: Row = {"name": name, "per": per}
            h = maps[: max(1, given.batch // per)]
            error = max(_wrong(of_map, own[1], h), _wrong(vector, own[0], h.mean(dim=(2, 3))))
            if error > FP32_LIMIT:
                row["why_not"], failed = f"relative L2 error {error:.1e}", True
            else:
                row |= _timed(*own, h, per, given.steps, given.batch, given.rounds)
            rows.append(row)
    print("\n".join(table(rows, COLUMNS)))
    storage.write_json(given.json, {**told, "rows": rows, "made_by": provenance.made_by([of_map])})
    return int(failed)


def _wrong(plain: Model, engine: Model, h: Tensor) -> float:
    want, got = (each.sample(h[:2], per=2, steps=2) for each in (plain, engine))
    return relative_l2(got, want)


def _timed(
    vector: Model, of_map: Model, maps: Tensor, per: int, steps: int, batch: int, rounds: int
) -> dict[str, float]:
    """A step's time of both, and their ratio within a round."""
    given = ("vector", vector, maps.mean(dim=(2, 3))), ("map", of_map, maps)
    times: list[dict[str, float]] = []
    for number in range(rounds + 1):
        taken = {}
        for name, model, h in given if number % 2 else given[::-1]:
            start = time.perf_counter()
            model.sample(h, per=per, steps=steps, batch_size=batch)
            taken[name] = 1e3 * (time.perf_counter() - start) / steps
        if number:  # the first one packs weights
            times.append(taken)
    ratios = [row["map"] / row["vector"] for row in times]
    return {
        "vector_ms": statistics.median(row["vector"] for row in times),
        "map_ms": statistics.median(row["map"] for row in times),
        "of_vector": statistics.median(ratios),
        "of_vector_low": min(ratios),
        "of_vector_high": max(ratios),
    }


if __name__ == "__main__":
    sys.exit(main())
