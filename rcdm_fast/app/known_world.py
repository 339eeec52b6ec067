"""Encoders of the known world that are told to leave factors out, so that a visitor sees what that does to samples.

The decoder of the known world draws from any subset of an image's factors (`encoders/read_code.py`, masked), so a
factor can be left out of what its encoder says. Knows nothing about pages.
"""

from __future__ import annotations

from rcdm_fast import encoders
from rcdm_fast.config import ConfigError
from rcdm_fast.data.world import FACTORS
from rcdm_fast.encoders import Encoder

NAMES = tuple(factor.name for factor in FACTORS["shapes"])
DECODER = "shapes-oracle"  # draws what is read
READS = "reader:shapes-reader?masked=1"  # all factors, of any image


def is_of(encoder: Encoder) -> bool:
    """Whether factors can be left out of what an encoder says."""
    return encoder.config is not None and encoder.config.source == READS


def without(encoder: Encoder, left_out: tuple[str, ...]) -> Encoder:
    """The encoder, but for the factors of `NAMES` that are left out.

    Raises:
        ConfigError: another encoder than that of the known world, which nobody can tell what to say, or all left out.
    """
    if not left_out:
        return encoder
    if not is_of(encoder):
        raise ConfigError("only of the known world can something be left out, for there it is known what is where")
    kept = [name for name in NAMES if name not in left_out]
    if not kept:
        raise ConfigError("something must be left to draw from: leave out fewer factors")
    return encoders.build(f"{READS}&factors={','.join(kept)}", encoder.device)
