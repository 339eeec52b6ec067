"""Time of one training step: what `rcdm train` does, beside the same step in plain PyTorch in fp32, in one run.

    python benchmarks/bench_training.py --config s --rounds 8

A step is forward, loss, backward, clipping and AdamW on the same made-up images, steps and noise. Before it is timed,
the first loss and gradient norm of each are compared with plain PyTorch's; a wrong one is not timed and the exit status
is 1. Ratios are medians over the rounds of the ratio within one round.

The floor is timed in the same rounds: the network's convolutions alone, forward and backward, as oneDNN runs them
(`convolutions.py`); the rates of every shape are among the facts of the file. Memory that a step gives back is kept for
the next one, as `rcdm train` keeps it, for all of them.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import convolutions, workload
from benchmarks.rows import RowFile, table
from rcdm_fast import benchmarking
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.schedule import network_timestep
from rcdm_fast.models.unet import UNet
from rcdm_fast.training import memory
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.distributed import Processes
from rcdm_fast.training.run import Run

KEYS = ("config", "name", "precision")
COLUMNS = (
    ("", "name", "s"),
    ("precision", "precision", "s"),
    ("ms (p50)", "p50_ms", ".0f"),
    ("p20", "p20_ms", ".0f"),
    ("p80", "p80_ms", ".0f"),
    ("images/s", "images_per_s", ".1f"),
    ("loss error", "loss_error", ".1e"),
    ("gradient error", "norm_error", ".1e"),
    ("x plain fp32", "of_plain", ".2f"),
    ("x floor", "of_floor", ".2f"),
    ("ready s", "ready_s", ".0f"),
)
PLAIN = "plain PyTorch"
FLOOR = "convolutions alone"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIMITS = {"fp32": 1e-4, "bf16": 3e-2}  # relative, of the first loss and of the first gradient's norm
Step = Callable[[], dict[str, float]]


def make_run(model: ModelConfig, batch: int, precision: str, compile: bool) -> Run:
    """A run on made-up images and representations."""
    generator = torch.Generator().manual_seed(workload.SEED)
    size, width = model.unet.image_size, model.unet.representation_dim
    pixels = torch.randint(0, 256, (4 * batch, 3, size, size), generator=generator, dtype=torch.uint8)
    config = TrainConfig(
        name="benchmark", unet=model.unet, schedule=model.schedule, images=10_000 * batch, batch_size=batch,
        precision=precision, compile=compile,  # type: ignore[arg-type]
    )  # fmt: skip
    bank = torch.randn(2, len(pixels), width, generator=generator)
    run = Run(config, model.unet, ImageSet(pixels, None, (), (), "made-up"), bank, Processes())
    weights = workload.make_network(model.unet).state_dict()  # fresh ones give zeros, which tell nothing
    run.network.load_state_dict(weights)
    for average in run.emas:
        average.copy_(weights)
    return run


def plain_step(run: Run) -> Step:
    """A step as a textbook writes it: the default layout, fp32, one average of the weights."""
    network = UNet(run.config.unet)
    network.load_state_dict(run.network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), run.config.learning_rate, weight_decay=0.0)
    average = copy.deepcopy(network)

    def step() -> dict[str, float]:
        batch = run.batches.draw(run.step)
        x_t = run.loss.noisy(batch.x0, batch.eps, batch.t)
        seen = batch.t.float() * network_timestep(run.config.schedule, 1)
        terms = run.loss(network(x_t, seen, batch.h), batch.x0, x_t, batch.eps, batch.t)
        optimizer.zero_grad()
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), run.config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = run._rate()
        optimizer.step()
        run.step += 1
        with torch.no_grad():
            for own, new in zip(average.parameters(), network.parameters(), strict=True):
                own.lerp_(new, 1e-3)
        return {"loss": float(terms["loss"].detach()), "gradient_norm": float(norm)}

    return step


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time of one training step beside plain PyTorch.")
    parser.add_argument("--config", default="s", help="name in benchmarks/configs")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each")
    parser.add_argument("--batch", type=int, default=0, help="instead of the configuration's own")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes (minutes)")
    parser.add_argument("--no-bf16", action="store_true", help="leave out bf16, which is slow on CPUs without it")
    parser.add_argument("--json", type=Path, default=Path("out/bench_training.json"))
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.batch < 0:
        parser.error("--rounds must be at least 1; --batch cannot be negative")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a result was wrong."""
    with memory.kept():
        return measure(parse(arguments))


def measure(options: argparse.Namespace) -> int:
    """`main` for a command line that was understood."""
    device = torch.device("cpu")
    facts = benchmarking.facts(device)
    try:
        model = workload.read_config(options.config)
        batch = options.batch or int(model.info["batch"])
        precisions = ("fp32",) if options.no_bf16 else ("fp32", "bf16")
        rates = {name: convolutions.rates(model.unet, batch, DTYPES[name]) for name in precisions}
        file = RowFile(options.json, {**facts, "convolutions": rates}, KEYS)
    except (ConfigError, OSError) as error:
        print(f"bench_training: {error}", file=sys.stderr)
        return 2
    kinds = [(PLAIN, "fp32", False), *(("rcdm train", precision, False) for precision in precisions)]
    if not options.no_compile:
        kinds.append(("rcdm train, compiled", precisions[-1], True))
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, object]] = {}
    truth: dict[str, float] = {}
    red = False
    for name, precision, compile in kinds:
        since = time.perf_counter()
        run = make_run(model, batch, precision, compile)
        step = plain_step(run) if name == PLAIN else run.advance
        first = step()
        truth = truth or first
        errors = {
            "loss_error": abs(first["loss"] / truth["loss"] - 1),
            "norm_error": abs(first["gradient_norm"] / truth["gradient_norm"] - 1),
        }
        row = {"config": options.config, "name": name, "precision": precision, "batch": batch, **errors}
        row["ready_s"] = time.perf_counter() - since
        if max(errors.values()) <= LIMITS[precision]:
            steps[f"{name} {precision}"] = step
        else:
            row["why_not"], red = f"wrong result: {errors}, allowed {LIMITS[precision]}", True
        rows[f"{name} {precision}"] = row
        file.put(row)
        print(f"{name} {precision}: {row.get('why_not', 'right')}", file=sys.stderr, flush=True)

    floors: dict[str, Callable[[], object]] = {}
    for precision in precisions:
        floors[f"{FLOOR} {precision}"] = convolutions.alone(model.unet, batch, DTYPES[precision])
        rows[f"{FLOOR} {precision}"] = {"config": options.config, "name": FLOOR, "precision": precision, "batch": batch}

    def after_round(times: dict[str, list[float]]) -> None:
        for key, taken in times.items():
            row = benchmarking.row(taken, **rows[key])
            row["images_per_s"] = 1e3 * batch / row["p50_ms"]
            row["of_plain"] = benchmarking.pair_ratio(times[f"{PLAIN} fp32"], taken)
            row["of_floor"] = benchmarking.pair_ratio(taken, times[f"{FLOOR} {row['precision']}"])
            file.put(row)

    benchmarking.in_turn(
        {**steps, **floors}, device, rounds=options.rounds, warmup=1, settle_s=0.1, after_round=after_round
    )
    print("\n".join(table(file.rows, COLUMNS)))
    print(f"{options.config}, batch {batch}; {facts['device']}, {facts['threads']} threads")
    return int(red)


if __name__ == "__main__":
    sys.exit(main())
