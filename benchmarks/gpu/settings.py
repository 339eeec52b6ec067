"""What the parts of `make bench-gpu` measure: the real sizes, and those of a rehearsal on the CPU.

A rehearsal goes the same way through the same code, processes and files, in a minute and without a GPU. Its times mean
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

Groups = tuple[tuple[str, tuple[int, ...]], ...]  # (configuration, batches)


@dataclass(frozen=True)
class Settings:
    """Sizes, and how long things may take.

    Attributes:
        device: where everything is measured.
        groups: what `step` measures, in this order.
        compiled_groups: the same for engines that compile for minutes, each in a process of its own.
        compiled_s: how long one of these processes may take.
        trajectories: the same for whole trajectories, step by step and in one launch.
        trajectory_precision: theirs.
        largest_fp32_batch: plain fp32 is there to compare with, not worth minutes.
        tuned: the configuration that `tune` measures.
        norm_shapes: channels and side of images, for `ops`.
        attention_shapes: width and side.
        image: channels, height and width.
        op_batches: batches of operators.
        repeats: calls of an operator per timed run: one alone is too short for the clock.
        ceiling: side of the matrices whose product is the ceiling.
        rounds: timed runs.
        group_s: timed rounds of one candidate end after this.
        modeled: the GPU that a model's prediction is printed for; empty for the one that is measured.
        workers: processes that compile Triton kernels, or run tests, at a time.
    """

    device: str
    groups: Groups
    compiled_groups: tuple[tuple[str, int], ...]
    compiled_s: float
    trajectories: tuple[tuple[str, int], ...]
    trajectory_precision: str
    largest_fp32_batch: int
    tuned: str
    norm_shapes: tuple[tuple[int, int], ...]
    attention_shapes: tuple[tuple[int, int], ...]
    image: tuple[int, int, int]
    op_batches: tuple[int, ...]
    repeats: int
    ceiling: int
    rounds: int
    group_s: float
    modeled: str
    workers: int


REAL = Settings(
    device="cuda",
    groups=(("release128", (1, 8, 64, 256)), ("s", (16, 256)), ("m", (4, 64))),
    compiled_groups=(("release128", 1), ("release128", 64)),
    compiled_s=100.0,
    trajectories=(("release128", 1), ("release128", 4)),
    trajectory_precision="bf16",
    largest_fp32_batch=8,
    tuned="release128",
    norm_shapes=((256, 128), (256, 64), (512, 32), (768, 16), (1024, 8)),
    attention_shapes=((512, 32), (768, 16), (1024, 8)),
    image=(3, 128, 128),
    op_batches=(1, 8, 64),
    repeats=20,
    ceiling=4096,
    rounds=30,
    group_s=10.0,
    modeled="",
    workers=8,
)
REHEARSAL = Settings(
    device="cpu",
    groups=(("rehearsal", (1, 3)),),
    compiled_groups=(("rehearsal", 2),),
    compiled_s=200.0,
    trajectories=(("rehearsal", 1),),
    trajectory_precision="fp32",
    largest_fp32_batch=1,
    tuned="rehearsal",
    norm_shapes=((64, 4), (32, 48)),
    attention_shapes=((64, 4),),
    image=(3, 8, 8),
    op_batches=(1,),
    repeats=2,
    ceiling=64,
    rounds=2,
    group_s=5.0,
    modeled="H100",
    workers=2,
)


def chosen(rehearse: bool) -> Settings:
    """The real ones, or the rehearsal's."""
    return REHEARSAL if rehearse else REAL
