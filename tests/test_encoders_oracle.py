"""Oracles say of a world's images exactly what they are told to keep, and nothing of any other image."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.data.world import World
from rcdm_fast.encoders import EncoderError, ImageEncoder, build
from rcdm_fast.encoders.oracle import Oracle
from rcdm_fast.encoders.oracle_code import Code, subsets
from rcdm_fast.images import from_uint8, to_uint8

WORLD = World(count=300)
SPEC = "oracle:shapes?count=300&factors="


def made(options: str) -> ImageEncoder:
    encoder = build(f"{SPEC}{options}")
    assert isinstance(encoder, ImageEncoder)
    return encoder


def encoded(options: str, places: range = range(40)) -> Tensor:
    return made(options).encode(from_uint8(WORLD.pixels(places))).double()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def explained(code: Tensor, value: Tensor) -> float:
    """R^2 of the best linear function of a code."""
    inputs = torch.cat([code, torch.ones(len(code), 1, dtype=code.dtype)], dim=1)
    rest = value - inputs @ torch.linalg.lstsq(inputs, value[:, None]).solution[:, 0]
    return 1 - float(rest.var() / value.var())


def test_kept_factors_are_what_the_items_were_drawn_from() -> None:
    factors = WORLD.factors(range(40))
    h = encoded("y,hue,shape,size")  # in the world's order whatever is written
    root = math.sqrt(12)
    turn = torch.deg2rad(factors[:, 5])
    expected = [
        (torch.nn.functional.one_hot(factors[:, 0].long(), 4) - 0.25) * 4 / math.sqrt(3),
        (factors[:, 2:3] / 0.26) * root,
        ((factors[:, 3:4] - 0.25) / 0.12) * root,
        math.sqrt(2) * torch.stack([turn.cos(), turn.sin()], dim=1),
    ]
    assert torch.allclose(h, torch.cat(expected, dim=1), atol=1e-6)
    assert made("all").dim == 4 + 1 + 1 + 1 + 2 + 2 + 2 + 1


def test_columns_have_mean_zero_and_variance_one() -> None:
    code = Code("shapes", WORLD.names)(World(count=4000).factors(range(4000))).double()
    assert float(code.mean(dim=0).abs().max()) < 4 / math.sqrt(4000)
    assert torch.allclose(code.var(dim=0), torch.ones(code.shape[1], dtype=torch.float64), atol=0.1)


def test_what_is_dropped_changes_nothing_and_what_is_kept_does() -> None:
    oracle = made("x,hue").network
    assert isinstance(oracle, Oracle)
    factors = WORLD.factors([7]).repeat(9, 1)
    for place in range(8):
        factors[place + 1, place] = {0: 3 - float(factors[0, 0]), 4: 10.0, 5: 10.0, 6: 10.0, 7: 0.6}.get(
            place, 0.0 if place != 3 else 0.2
        )
    moved = (oracle.of_factors(factors) - oracle.of_factors(factors[:1])).abs().amax(dim=1) > 0
    assert moved.tolist() == [False] + [name in ("x", "hue") for name in WORLD.names]


def test_an_intervention_is_recognized_once_it_was_learned() -> None:
    encoder = made("x,angle")
    factors = WORLD.factors([3, 4])
    factors[:, 7] = 0.55
    seen = from_uint8(WORLD.render(factors))
    with pytest.raises(EncoderError, match="this image is none of them"):
        encoder.encode(seen)
    oracle = encoder.network
    assert isinstance(oracle, Oracle)
    assert torch.equal(from_uint8(oracle.learn(factors)), seen)
    assert torch.equal(encoder.encode(seen), encoded("x,angle", range(3, 5)).float())  # light is dropped
    assert torch.equal(oracle.of_factors(factors), encoder.encode(seen))
    assert torch.equal(oracle.recognized(to_uint8(seen)), factors)
    same = factors.clone()
    same[:, 5] += 1e-9
    with pytest.raises(EncoderError, match="two sets of factors have the same image"):
        oracle.learn(same)


def test_other_images_are_refused() -> None:
    encoder = made("x")
    for other in (
        torch.zeros(1, 3, 32, 32),
        from_uint8(World(count=300, seed=1).pixels([0])),
        from_uint8(World(count=301).pixels([300])),
        from_uint8(World(count=300, size=64).pixels([0])),
        from_uint8(WORLD.pixels([0])).flip(3),
    ):
        with pytest.raises(EncoderError, match="this image is none of them"):
            encoder.encode(other)
    assert encoder.encode(from_uint8(WORLD.pixels([299]))).shape == (1, 1)


def test_quantized_factors_are_centers_of_cells() -> None:
    factors = WORLD.factors(range(40))
    h = encoded("x,hue&quantized=x,hue&levels=4")
    cell = torch.floor((factors[:, 1] + 0.13) / 0.26 * 4)
    assert torch.allclose(h[:, 0], ((cell + 0.5) / 4 - 0.5) * math.sqrt(12), atol=1e-6)
    turn = (torch.floor(factors[:, 5] / 90) + 0.5) * math.pi / 2
    assert torch.allclose(h[:, 1:], math.sqrt(2) * torch.stack([turn.cos(), turn.sin()], dim=1), atol=1e-6)


@pytest.mark.parametrize("r", [0.3, 0.9])
def test_noisy_factors_have_the_correlation_that_was_asked_for(r: float) -> None:
    factors = World(count=3000).factors(range(3000))
    names = ("shape", "x", "hue", "light")
    exact = Code("shapes", names)(factors).double()
    noisy = Code("shapes", names, noisy=("shape", "x", "hue"), r=r)(factors).double()
    wide = 4 / math.sqrt(3000)
    assert torch.equal(exact[:, 7], noisy[:, 7])  # light is not noisy
    assert correlation(exact[:, 4], noisy[:, 4]) == pytest.approx(r, abs=wide)
    a, b = (torch.complex(code[:, 5], code[:, 6]) for code in (exact, noisy))
    together = (a.conj() * b).mean() / (a.abs().square().mean() * b.abs().square().mean()).sqrt()
    assert abs(complex(together) - r) < wide
    right = float((exact[:, :4].argmax(dim=1) == noisy[:, :4].argmax(dim=1)).double().mean())
    assert (right - 0.25) / 0.75 == pytest.approx(r, abs=wide)
    again = Code("shapes", names, noisy=("shape", "x", "hue"), r=r)(factors[[5, 2]])
    assert torch.equal(again.double(), noisy[[5, 2]])  # an image's own, in any block


def test_each_factor_has_a_noise_of_its_own() -> None:
    """Else the error of one could be read off another, which would then say more than r allows."""
    factors = World(count=2000).factors(range(2000))
    names = ("x", "y", "size", "light")
    exact, noisy = (Code("shapes", names, noisy=of, r=0.5)(factors).double() for of in ((), names))
    errors = (noisy - 0.5 * exact).T
    assert errors.shape == (4, 2000)
    apart = torch.corrcoef(torch.cat([errors, exact.T])) - torch.eye(8)
    assert float(apart.abs().max()) < 4.5 / math.sqrt(2000)


def test_a_high_frequency_says_all_and_a_linear_function_of_it_nothing() -> None:
    factors = World(count=3000).factors(range(3000))
    code = Code("shapes", ("x", "hue"), high=("x", "hue"), frequency=16)(factors).double()
    turn = torch.deg2rad(factors[:, 5])
    for values in (factors[:, 1], turn.cos(), turn.sin()):
        assert explained(code, values) < 0.02
    for columns, fraction in ((code[:, :4], (factors[:, 1] + 0.13) / 0.26), (code[:, 4:], factors[:, 5] / 360)):
        lower, upper = (torch.complex(columns[:, place], columns[:, place + 1]) for place in (0, 2))
        read = torch.angle(upper * lower.conj()) / (2 * math.pi) % 1  # one turn more in the upper
        assert torch.allclose(read, fraction, atol=1e-5)


def test_the_fixed_network_loses_nothing() -> None:
    factors = World(count=3000).factors(range(3000))
    h = Code("shapes", ("x", "size", "light"), mlp=True)(factors).double()
    assert h.shape == (3000, 64)
    assert explained(h, factors[:, 3]) > 0.98
    assert explained(h, factors[:, 2]) < 64 / 3000 + 0.02  # y is dropped
    assert torch.equal(h[:7], Code("shapes", ("x", "size", "light"), mlp=True)(factors[:7]).double())


def test_masked_codes_have_one_layout() -> None:
    full, some, none = (encoded(f"{names}&masked=1") for names in ("all", "hue,x", "none"))
    assert full.shape == some.shape == none.shape == (40, 14 + 8)
    kept = [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert torch.equal(some[:, :14], full[:, :14] * torch.tensor(kept))
    assert some[0, 14:].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert full[0, 14:].tolist() == [1.0] * 8
    assert not none.any()
    assert Code("shapes", ("x",), masked=True).widths == (4, 1, 1, 1, 2, 2, 2, 1)


def test_noise_is_that_of_the_worlds_seed() -> None:
    encoder = made("x,y&noisy=x&r=0.3&seed=4&size=16&count=5")
    world = World(count=5, seed=4, size=16)
    factors = world.factors(range(5))
    code = Code("shapes", ("x", "y"), noisy=("x",), r=0.3)
    h = encoder.encode(from_uint8(world.pixels(range(5))))
    assert torch.equal(h, code(factors, 4))
    assert not torch.equal(h, code(factors, 0))
    oracle = encoder.network
    assert isinstance(oracle, Oracle)
    assert torch.equal(oracle.of_factors(factors), h)


def test_oracles_come_back_from_their_configuration_and_travel() -> None:
    encoder = made("shape,x&noisy=x&r=0.3&seed=4")
    seen = from_uint8(World(count=300, seed=4).pixels(range(5)))
    h = encoder.encode(seen)
    assert torch.equal(build(encoder.config).encode(seen), h)
    assert torch.equal(pickle.loads(pickle.dumps(encoder)).encode(seen), h)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x,color", "a factor of factors must be one of shape, x"),
        ("x,x", "factors names a factor twice"),
        ("x&noisy=y", "a factor of noisy must be one of x"),
        ("x&noisy=x&high=x", "one of them, not two"),
        ("shape&quantized=shape", "shape is a choice"),
        ("none", "keeps at least one factor"),
        ("x&masked=1&mlp=1", "a masked code is plain"),
        ("x&r=1.5", r"r must be in 0\.\.1"),
        ("x&r=much", "r must be a number"),
        ("x&levels=1", "levels must be"),
        ("x&count=2000000", r"count of an oracle's world must be in 1\.\.1000000"),
        ("x&size=5", "size must be in"),
        ("x&masked=maybe", "expected 1 or 0"),
        ("x&color=1", "unknown option"),
    ],
)
def test_specs_of_no_oracle(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(f"oracle:shapes?factors={options}")


def test_worlds_of_no_oracle() -> None:
    with pytest.raises(ConfigError, match="no such world; there are shapes, textured"):
        build("oracle:photographs?factors=x")
    with pytest.raises(ConfigError, match="say which factors are kept"):
        build("oracle:shapes")
    assert build("oracle:textured?factors=back_hue,x&count=5").dim == 3
    with pytest.raises(ConfigError, match="says nothing of world:textured"):
        Oracle(World("textured"), Code("shapes", ("x",)))


def test_fractions_are_balanced_to_the_third_factor() -> None:
    seen: set[tuple[str, ...]] = set()
    for fraction in range(7):
        chosen = subsets(fraction)
        assert len(set(chosen)) == 16
        assert not seen & set(chosen)
        seen |= set(chosen)
        assert {len(each) for each in chosen} == {2, 4, 6}
        for three in itertools.combinations(WORLD.names, 3):
            patterns = [tuple(name in each for name in three) for each in chosen]
            assert all(patterns.count(pattern) == 2 for pattern in itertools.product((False, True), repeat=3))
    with pytest.raises(ConfigError, match="fraction must be one of"):
        subsets(7)
