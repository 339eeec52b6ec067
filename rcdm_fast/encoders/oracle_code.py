"""What an oracle says of known factors: which it keeps, and in what form. Pure arithmetic on factors.

Every column of a plain code has mean 0 and variance 1 over a world: a scalar is one column, degrees are their cosine
and sine, a choice is one column for each of its values.

Knows nothing about images (`oracle.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.checks import Checked, ConfigError, Count, Fraction, Range, choice
from rcdm_fast.data.world import FACTORS, Factor
from rcdm_fast.doors import printable

HIDDEN, OUT = 256, 64  # widths of the fixed network


@dataclass(frozen=True)
class Code(Checked):
    """How an oracle writes down factors of a world.

    Attributes:
        world: whose factors.
        factors: names of those that are kept, whatever their order.
        quantized: of these, scalars and degrees of which only the cell is known, of `levels` equal ones.
        noisy: of these, those that are known with noise: every column, over items, has the correlation `r` with what
            it would be; a choice is the true one with probability r and else any. The noise belongs to the factors of
            an image: another image has another one.
        high: of these, scalars and degrees that are known by the cosines and sines of `frequency` and `frequency` + 1
            turns over their range alone. Together these say the value exactly; a linear function of them does not.
        masked: columns for all factors of the world, zeros for those that are not kept, and behind them one number for
            each factor: 1 if it is kept and 0 if not. So one decoder takes every subset of factors.
        mlp: what comes out of a fixed random network with one hidden layer, 64 dimensions.

    Raises:
        ConfigError: names of no factors or named twice, nothing kept and not `masked`, or forms that contradict each
            other.
    """

    world: str
    factors: tuple[str, ...]
    quantized: tuple[str, ...] = ()
    levels: Annotated[int, Range(2, 1000)] = 4
    noisy: tuple[str, ...] = ()
    r: Fraction = 0.9
    high: tuple[str, ...] = ()
    frequency: Annotated[Count, Range(1, 1000)] = 16
    masked: bool = False
    mlp: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.world, "world", FACTORS)
        names = [factor.name for factor in FACTORS[self.world]]
        for each in ("factors", "quantized", "noisy", "high"):
            given = getattr(self, each)
            for name in given:
                choice(name, f"a factor of {each}", names if each == "factors" else self.factors)
            if len(set(given)) < len(given):
                raise ConfigError(f"{each} names a factor twice: {printable(', '.join(given))}")
        formed = [*self.quantized, *self.noisy, *self.high]
        if len(set(formed)) < len(formed):
            raise ConfigError("a factor is quantized, noisy or high: one of them, not two")
        choices = {factor.name for factor in FACTORS[self.world] if factor.kind == "choice"}
        for name in (*self.quantized, *self.high):
            if name in choices:
                raise ConfigError(f"{name} is a choice: it is neither quantized nor written as a high frequency")
        if not self.factors and not self.masked:
            raise ConfigError("an oracle keeps at least one factor (of a masked one, none may be left)")
        if self.masked and (self.high or self.mlp):
            raise ConfigError("a masked code is plain: neither high nor mlp")

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each factor of the world, in its order; of those that are not kept 0, unless `masked`."""
        return tuple(
            0 if factor.name not in self.factors and not self.masked else self._width(factor)
            for factor in FACTORS[self.world]
        )

    def _width(self, factor: Factor) -> int:
        if factor.name in self.high:
            return 4
        return {"choice": int(factor.high), "scalar": 1, "circle": 2}[factor.kind]

    @property
    def dim(self) -> int:
        """Numbers in all."""
        return OUT if self.mlp else sum(self.widths) + self.masked * len(self.widths)

    def __call__(self, factors: Tensor, seed: int = 0) -> Tensor:
        """The code of factors, float64 [N,F] (`World.checked`) -> float32 [N,dim]; noise is drawn with `seed`."""
        columns = []
        for place, factor in enumerate(FACTORS[self.world]):
            if factor.name in self.factors:
                columns.append(self._column(factor, factors, place, seed))
            elif self.masked:
                columns.append(factors.new_zeros((len(factors), self._width(factor))))
        if self.masked:
            kept = [float(factor.name in self.factors) for factor in FACTORS[self.world]]
            columns.append(factors.new_tensor(kept).expand(len(factors), -1))
        code = torch.cat(columns, dim=1)
        return (_through(code) if self.mlp else code).to(torch.float32)

    def _column(self, factor: Factor, factors: Tensor, place: int, seed: int) -> Tensor:
        values = factors[:, place]
        noisy = factor.name in self.noisy
        if factor.kind == "choice":
            return _one_hot(_redealt(values, factors, factor, place, self.r, seed) if noisy else values, factor)
        fraction = (values - factor.low) / (factor.high - factor.low)
        if factor.name in self.quantized:
            fraction = (torch.floor(fraction * self.levels).clamp(max=self.levels - 1) + 0.5) / self.levels
        if factor.name in self.high:
            return torch.cat([_round(fraction, self.frequency), _round(fraction, self.frequency + 1)], dim=1)
        code = _round(fraction, 1) if factor.kind == "circle" else ((fraction - 0.5) * math.sqrt(12))[:, None]
        if not noisy:
            return code
        return self.r * code + math.sqrt(1 - self.r**2) * _noise(factors, place, seed)[0][:, : code.shape[1]]


def factors_of(about: Sequence[Factor], code: Tensor) -> Tensor:
    """Factors that a plain code of all of them says, or logits in place of the columns of choices.

    Args:
        about: the world's factors.
        code: float [N,D], as `Code` gives it for all factors; it need not be a code of any item.

    Returns:
        float64 [N,F]; scalars may lie beyond their ranges.
    """
    columns = []
    widths = [{"choice": int(factor.high), "scalar": 1, "circle": 2}[factor.kind] for factor in about]
    for factor, part in zip(about, code.double().split(widths, dim=1), strict=True):
        if factor.kind == "choice":
            columns.append(part.argmax(dim=1).double())
        elif factor.kind == "circle":
            columns.append(torch.rad2deg(torch.atan2(part[:, 1], part[:, 0])) % 360)
        else:
            columns.append((factor.low + factor.high) / 2 + part[:, 0] * (factor.high - factor.low) / 12**0.5)
    return torch.stack(columns, dim=1)


def _one_hot(values: Tensor, factor: Factor) -> Tensor:
    count = int(factor.high)
    hot = torch.nn.functional.one_hot(values.long(), count).double()
    return (hot - 1 / count) * (count / math.sqrt(count - 1))


def _round(fraction: Tensor, turns: int) -> Tensor:
    angle = fraction * (2 * math.pi * turns)
    return math.sqrt(2) * torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)


def _redealt(values: Tensor, factors: Tensor, factor: Factor, place: int, r: float, seed: int) -> Tensor:
    """Choices of which a fraction 1 - r is dealt out anew, among all."""
    _, uniform = _noise(factors, place, seed)
    anew = torch.floor(uniform[:, 1] * factor.high)
    return torch.where(uniform[:, 0] < r, values, anew)


def _noise(factors: Tensor, place: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two normal and two uniform numbers for each row, float64 [N,2], which depend on (row, place, seed) alone."""
    normal, uniform = [], []
    for row in factors.numpy():
        digest = hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16, key=seed.to_bytes(8)).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest), counter=[0, place, 0, 0]))
        normal.append(rng.standard_normal(2))
        uniform.append(rng.random(2))
    return torch.from_numpy(np.stack(normal)), torch.from_numpy(np.stack(uniform))


def _through(code: Tensor) -> Tensor:
    """Through a fixed random network: one hidden layer of rectifiers; float64 [N,D] -> float64 [N,64]."""
    generator = torch.Generator().manual_seed(code.shape[1])
    first = torch.randn(code.shape[1], HIDDEN, generator=generator, dtype=torch.float64) / math.sqrt(code.shape[1])
    offset = torch.randn(HIDDEN, generator=generator, dtype=torch.float64)
    second = torch.randn(HIDDEN, OUT, generator=generator, dtype=torch.float64) / math.sqrt(HIDDEN / 2)
    return (code @ first + offset).relu() @ second


def subsets(fraction: int = 0, world: str = "shapes") -> tuple[tuple[str, ...], ...]:
    """16 subsets of a world's first eight factors: a 2^(8-4) fractional factorial of resolution IV.

    Each factor is kept in 8 of them; any three factors show every combination equally often, so what one does to a
    result is not mistaken for what another does, or two others together. With the factors A to H the generators are
    E = BCD, F = ACD, G = ABC, H = ABD (Box, Hunter and Hunter, table 12.15), with signs; of the 16 choices of signs
    those 7 are taken whose subsets have 2, 4 or 6 factors, for an oracle of none or of all is no experiment.

    Args:
        fraction: 0..6; no subset is in two fractions.
        world: whose factors.
    """
    names = [factor.name for factor in FACTORS[world][:8]]
    found = [runs for runs in map(_runs, range(16)) if {sum(run) for run in runs} == {2, 4, 6}]
    chosen = found[choice(fraction, "fraction", range(len(found)))]
    return tuple(tuple(name for name, kept in zip(names, run, strict=True) if kept) for run in chosen)


def _runs(signs: int) -> list[tuple[int, ...]]:
    runs = []
    for number in range(16):
        a, b, c, d = ((number >> bit) & 1 for bit in range(4))
        made = (b ^ c ^ d, a ^ c ^ d, a ^ b ^ c, a ^ b ^ d)
        runs.append((a, b, c, d, *(value ^ ((signs >> bit) & 1) for bit, value in enumerate(made))))
    return runs
