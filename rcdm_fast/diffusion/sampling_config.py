"""How samples are drawn, said once: by `Model.sample`, jobs, evaluation, experiments, the playground and commands.

Imports no torch, so that commands show the defaults at once. Knows nothing about models: whether one can be asked for
that is found out by `sampling.request`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from rcdm_fast.checks import Checked, ConfigError, Count, NotNegative, Seed, choice, described, meant

STEPS = 10  # network evaluations of a sample, unless they are given (docs/solvers.md says why)
INVERSIONS = ("ddim", "unipc_2")  # solvers that `Model.invert` knows the way back of


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingConfig` as keywords, any of them."""

    per: int
    steps: int | str
    solver: str
    eta: float
    guidance: float
    seed: int
    clip: bool


class InversionKeywords(TypedDict, total=False):
    """Those that an inversion depends on."""

    steps: int | str
    solver: str
    clip: bool


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Checked):
    """How samples of representations are drawn.

    Attributes:
        per: samples of each representation.
        steps: network evaluations: an int N, placed evenly in the logarithm of the signal-to-noise ratio, for ddim and
            ancestral in t; "uniform10", "quadratic10", "logsnr10" or "karras10" (`diffusion.schedule.place`);
            "at:0,250,999", timesteps one by one; or a published respacing text ("ddim25", "10,10,5").
        solver: "auto", the model's own for so many evaluations where it has one (`rcdm tune`; with eta 0, clip and no
            guidance), else "deis" ("ddim" with an eta, for one or two steps, for published texts); "fitted", that one
            or an error; "student", as a distilled model is drawn with (its "auto" is that too; `rcdm distill`); "ddim";
            "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "unipc_2_bh1", "unipc_3_bh1", "deis" or "ipndm", which go on
            from several steps and come nearer to the same images in fewer; "ancestral" or "dpmpp_2m_sde", which draw
            fresh noise in every step; "heun", which asks the network twice a step (`steps` counts its evaluations).
        eta: DDIM's fraction of fresh noise; 0 is deterministic. Other solvers have no such setting.
        guidance: strength w of classifier-free guidance on h, null + w (conditional - null); 1 is none. Others need a
            model trained with representation dropout, or a guide, and two network evaluations per step.
        seed: 0..2^64-1. One (seed, item, sample) has the same noise on every device, engine and precision, whatever
            the batch.
        clip: clip every x0 estimate to [-1,1].

    Raises:
        ConfigError: when it is made with a value that no model can be asked for.
    """

    per: Count = 8
    steps: Count | str = STEPS
    solver: str = "auto"
    eta: NotNegative = 0.0
    guidance: NotNegative = 1.0
    seed: Seed = 0
    clip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        from rcdm_fast.diffusion import registry

        if self.solver not in registry.OF_MODELS:  # those depend on the model
            registry.find(self.solver)

    def changed(self, **settings: Unpack[SamplingKeywords]) -> SamplingConfig:
        """How samples are drawn with other settings; of a configuration that says more, only that part."""
        return chosen(self, settings)

    def check_invertible(self) -> None:
        """Raise `ConfigError` unless samples drawn so can be led back to their x_T."""
        if self.solver != "auto":
            choice(self.solver, "solver of an inversion", INVERSIONS)
        for name, value in (("eta", 0), ("guidance", 1)):
            if getattr(self, name) != value:
                raise ConfigError(
                    f"inversion has no fresh noise and no guidance: {name} must be {value}, got {getattr(self, name)}"
                )


# Defaults other than those above, and why. What has none of these takes those above.
INVERSION_STEPS = 50  # with fewer, DDIM inversion does not lead back near the image
PER_SOURCE = 4  # intervals are over sources: more samples of the same source hardly narrow them
PER_VARIANCE = 2  # the fewest samples of a source that have a variance
PER_VERSION = 1  # every source is drawn many times already, changed in as many ways
ONE_WAY = 1  # an interpolation is one row of images; several rows show what the noise adds
SHEET_WAYS = 4  # rows of a sheet that a person looks at


def chosen(
    config: SamplingConfig | None,
    settings: Mapping[str, Any],
    usual: SamplingConfig | None = None,
    keywords: type = SamplingKeywords,
) -> SamplingConfig:
    """What a call is asked for by a configuration, by keywords, or by keywords instead of some of its fields.

    Args:
        config: as given; one that says more counts as far as it is about sampling.
        settings: keywords, as given.
        usual: what counts where no configuration is given.
        keywords: which of them the call takes.

    Raises:
        ConfigError: no `SamplingConfig`, or a value that does not fit.
        TypeError: a keyword that is none, as of any function.
    """
    known = keywords.__annotations__
    wrong = sorted(settings.keys() - known)
    if wrong:
        hint = meant(wrong[0], known) or f"; known: {', '.join(known)}"
        raise TypeError(f"an unexpected keyword argument, {wrong[0]!r}{hint}")
    base = config if config is not None else usual or SamplingConfig()
    if not isinstance(base, SamplingConfig):
        raise ConfigError(f"how samples are drawn is a SamplingConfig, or keywords; got {described(base)}")
    if type(base) is SamplingConfig and not settings:
        return base
    return SamplingConfig(**{**_part(base), **settings})


def _part(config: SamplingConfig) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(SamplingConfig)}
