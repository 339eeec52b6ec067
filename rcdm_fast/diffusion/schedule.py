"""The diffusion schedule: betas, alpha_bar, and which of the base timesteps a run visits; all in float64.

x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020). A respaced schedule keeps some of the T base
timesteps and recomputes betas from the alpha_bar at those (Nichol and Dhariwal 2021, section 4). Index k counts the
kept steps, from 0 (least noise) to K-1.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rcdm_fast.checks import described, meant, whole
from rcdm_fast.config import ConfigError, NoiseSchedule, ScheduleConfig

Floats = NDArray[np.float64]
Placement = Literal["uniform", "quadratic", "logsnr", "karras"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

AT = "at:"  # before timesteps that are named one by one
RHO = 7.0  # of ``karras``

MAX_BETA = 0.999  # of the cosine schedule (Nichol and Dhariwal 2021, section 3.2)


def betas_of(noise_schedule: NoiseSchedule, steps: int) -> Floats:
    """The base schedule's betas; float64 [steps].

    ``linear`` runs from 1e-4 to 2e-2 at 1000 steps, scaled by 1000 / steps for other counts; ``cosine`` follows
    cos^2((t + 0.008) / 1.008 * pi / 2).
    """
    if noise_schedule == "linear":
        scale = 1000 / steps
        betas = np.linspace(scale * 1e-4, scale * 2e-2, steps, dtype=np.float64)
        if betas[-1] >= 1:
            raise ConfigError(f"a linear schedule needs more than 20 diffusion steps, got {steps}")
        return betas

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
    return np.minimum(1 - np.array(ratios, dtype=np.float64), MAX_BETA)


def place(alpha_bar: Floats, count: int, placement: Placement) -> tuple[int, ...]:
    """So many of the base timesteps, ascending, both ends included.

    Args:
        alpha_bar: of the base schedule; [T].
        count: in 1..T; one step is the last one.
        placement: even steps of t (``uniform``), of the root of t (``quadratic``: Song et al. 2020, appendix D.3), of
            log(alpha_bar / (1 - alpha_bar)) (``logsnr``: Lu et al. 2022), or of the 7th root of sigma / alpha
            (``karras``: Karras et al. 2022, equation 5), each rounded to a timestep of its own. ``uniform`` is
            `respace`, but for a single step.
    """
    last = len(alpha_bar) - 1
    if count > last + 1:
        raise ConfigError(f"{count} steps out of {last + 1}")
    fraction = np.linspace(0, 1, count) if count > 1 else np.ones(1)
    if placement == "uniform":
        wanted = fraction * last
    elif placement == "quadratic":
        wanted = fraction**2 * last
    else:
        place_of = np.log(alpha_bar) - np.log1p(-alpha_bar)
        if placement == "karras":
            place_of = -np.exp(-place_of / (2 * RHO))
        wanted = np.interp(
            place_of[0] + fraction * (place_of[-1] - place_of[0]), place_of[::-1], np.arange(last, -1, -1)
        )
    steps = np.rint(wanted).astype(int)
    for i in range(1, count):  # steps that fell together move apart, towards noise
        steps[i] = max(steps[i], steps[i - 1] + 1)
    for i in range(count):  # ... and back, where there is no room
        steps[-1 - i] = min(steps[-1 - i], last - i)
    return tuple(int(step) for step in steps)


def named(base_steps: int, text: str) -> tuple[int, ...]:
    """The timesteps in a text like "0,250,999", ascending, whatever their order.

    Raises:
        ConfigError: it is none, or they are not different timesteps of 0..T-1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", part, re.ASCII) for part in parts):
        raise ConfigError(f"steps {described(AT + text)}: expected timesteps after {AT!r}, such as {AT}0,250,999")
    found = sorted(int(part) for part in parts)
    if len(set(found)) < len(found) or found[-1] >= base_steps:
        raise ConfigError(f"steps {described(AT + text)}: timesteps must be different and in 0..{base_steps - 1}")
    return tuple(found)


def respace(base_steps: int, spec: int | str) -> tuple[int, ...]:
    """The base timesteps that a run visits, ascending.

    Args:
        base_steps: T, number of steps of the base schedule.
        spec: an int N or "N": N steps evenly spread over 0..T-1, both ends included; "ddimN": every s-th step from 0
            for the integer s that gives N of them (Song et al. 2020); "a,b,c": T cut into equal sections with so many
            steps in each; "" means all.

    Raises:
        ConfigError: the text is none of these, or asks for more steps than there are.
    """
    text = spec.strip() if isinstance(spec, str) else str(whole(spec, "steps"))
    if text.startswith("ddim"):
        count = _positive(text[4:], text)
        for stride in range(1, base_steps + 1):
            if len(range(0, base_steps, stride)) == count:
                return tuple(range(0, base_steps, stride))
        raise ConfigError(f"{text!r}: no integer stride gives {count} of {base_steps} steps; use {count} instead")
    counts = [base_steps] if text == "" else [_positive(part, text) for part in text.split(",")]
    size, extra = divmod(base_steps, len(counts))
    kept_steps: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (1 if section < extra else 0)
        if count > length:
            raise ConfigError(f"{text!r}: asks for {count} steps out of a section of {length} (base: {base_steps})")
        gap = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept_steps.append(start + round(position))
            position += gap
        start += length
    return tuple(kept_steps)


def is_respacing(text: str) -> bool:
    """Whether steps are written in one of the published ways that no number is: "ddimN", "a,b,c", ""."""
    text = text.strip()
    if text.startswith((AT, *PLACEMENTS)):
        return False
    return not text or text.startswith("ddim") or "," in text


def _positive(text: str, spec: str) -> int:
    if not re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text, re.ASCII):
        words = ("", "ddim", *PLACEMENTS)
        known = ", ".join(f"'{each}N'" for each in words)
        hint = meant(spec.rstrip("0123456789"), words[1:])
        raise ConfigError(f"steps {described(spec)}: expected an int, {known}, 'a,b,c' or 'at:t,t'{hint}")
    count = int(text)
    if count <= 0:
        raise ConfigError(f"steps {spec!r}: must be positive")
    return count


@dataclass(frozen=True)
class Schedule:
    """K kept steps of a base schedule.

    Attributes:
        config: the base schedule.
        timesteps: base timesteps, ascending; K numbers in 0..T-1, whole ones but for fitted solvers (`fitted.py`).
        asked: the base timesteps that the network is asked at, where they are others than the formula's.
    """

    config: ScheduleConfig
    timesteps: tuple[float, ...]
    asked: tuple[float, ...] | None = None

    @classmethod
    def make(cls, config: ScheduleConfig, steps: int | str = "", placement: Placement = "uniform") -> Schedule:
        """The schedule with some of its steps kept.

        Args:
            config: the base schedule.
            steps: an int N or "N": N steps, placed as `placement` says, a single one at the last timestep; "uniformN",
                "quadraticN", "logsnrN", "karrasN": placed as the word says (`place`); "at:0,250,999": these timesteps;
                else as by `respace`.
            placement: where steps lie unless `steps` says so.

        Raises:
            ConfigError: `steps` is none of these, or more than there are.
        """
        text = steps.strip() if isinstance(steps, str) else str(whole(steps, "steps"))
        if text.startswith(AT):
            return cls(config, named(config.diffusion_steps, text.removeprefix(AT)))
        how: Placement | None = next((each for each in PLACEMENTS if text.startswith(each)), None)
        if is_respacing(text):
            return cls(config, respace(config.diffusion_steps, steps))
        count = _positive(text.removeprefix(how or ""), text)
        if (how or placement) == "uniform" and count > 1:  # `respace` has 1 at the first one
            return cls(config, respace(config.diffusion_steps, count))
        if count > config.diffusion_steps:
            raise ConfigError(f"{text!r}: asks for {count} of {config.diffusion_steps} steps")
        return cls(config, place(cls(config, respace(config.diffusion_steps, "")).alpha_bar, count, how or placement))

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def alpha_bar(self) -> Floats:
        """alpha_bar at the kept steps; [K], falling. Its logarithm is linear between base timesteps."""
        base = np.cumprod(1 - betas_of(self.config.noise_schedule, self.config.diffusion_steps), dtype=np.float64)
        whole = np.array(self.timesteps, dtype=np.float64).astype(int)
        kept: Floats = base[whole]
        between = np.array(self.timesteps, dtype=np.float64) - whole
        if between.any():
            kept = kept * (base[np.minimum(whole + 1, len(base) - 1)] / kept) ** between
        return kept

    @cached_property
    def alpha_bar_prev(self) -> Floats:
        """alpha_bar one step nearer to the image; 1 before the first."""
        return np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def alpha_bar_next(self) -> Floats:
        """alpha_bar one step nearer to noise; 0 after the last, as published."""
        return np.append(self.alpha_bar[1:], 0.0)

    @cached_property
    def betas(self) -> Floats:
        """Betas of the respaced process; [K]."""
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @cached_property
    def posterior_variance(self) -> Floats:
        """Variance of q(x_{k-1} | x_k, x0); [K], 0 at k = 0 (Ho et al. 2020, equation 7)."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance(self) -> Floats:
        """log of it, the zero at k = 0 replaced by the value at k = 1, as published; [K]."""
        variance = self.posterior_variance.copy()
        # A one-step schedule has no second value; its only step is the last, where no noise is added.
        variance[0] = variance[1] if len(variance) > 1 else self.betas[0]
        return np.log(variance)

    @cached_property
    def posterior_mean_coefficients(self) -> tuple[Floats, Floats]:
        """Weights of x0 and of x_k in the mean of q(x_{k-1} | x_k, x0); two [K] (Ho et al. 2020, equation 7)."""
        rest = 1 - self.alpha_bar
        of_x0 = self.betas * np.sqrt(self.alpha_bar_prev) / rest
        of_x = (1 - self.alpha_bar_prev) * np.sqrt(1 - self.betas) / rest
        return of_x0, of_x

    @cached_property
    def log_variance_bounds(self) -> tuple[Floats, Floats]:
        """Smallest and largest log variance of a reverse step; two [K].

        A learned variance interpolates between them (Nichol and Dhariwal 2021, equation 15); ``fixed_small`` is the
        first; ``fixed_large`` the second, but for the first step.
        """
        return self.posterior_log_variance, np.log(self.betas)

    def fixed_log_variance(self, k: int) -> float:
        """log variance of reverse step k for a network that does not learn it."""
        small, large = self.log_variance_bounds
        if self.config.variance == "fixed_large" and k > 0:
            return float(large[k])
        return float(small[k])

    @property
    def network_timesteps(self) -> tuple[float, ...]:
        """What the network's time embedding sees at each kept step: t, or t * 1000 / T with `rescale_timesteps`."""
        return tuple(network_timestep(self.config, t) for t in self.asked or self.timesteps)


def network_timestep(config: ScheduleConfig, t: float) -> float:
    """The number that the network sees for base timestep t."""
    return t * 1000.0 / config.diffusion_steps if config.rescale_timesteps else float(t)
