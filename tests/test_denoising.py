"""Errors of x0 by noise level: against the formula of what is predicted, and a network that is right."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, ScheduleConfig
from rcdm_fast.data.image_set import ImageSet, fingerprint
from rcdm_fast.denoising import FRACTIONS, x0_errors
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.model import Model
from tests import small

PIXELS = ((small.make_images(24) + 1) * 127.5).round().to(torch.uint8)
DATA = ImageSet(PIXELS, None, (), (), fingerprint(PIXELS, None))


def knows(prediction: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose x0 is off by `wrong` everywhere, whatever it predicts; it knows the images by their h."""
    schedule = ScheduleConfig(prediction=prediction, variance="learned_range")  # type: ignore[arg-type]
    model = Model.from_network(small.network(), schedule, small.encoder())
    full, images = Schedule.make(schedule), DATA.floats(slice(None))
    known = small.encoder().encode(images)

    def network(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        alpha_bar = torch.tensor(full.alpha_bar)[t].float()[:, None, None, None]
        x0 = images[torch.cdist(h, known).argmin(dim=1)] + wrong
        eps = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        out = {"x0": x0, "eps": eps, "v": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0}[prediction]
        return torch.cat([out, torch.full_like(out, 7.0)], dim=1)

    monkeypatch.setattr(model, "network", network)
    return model


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_a_network_that_is_off_by_a_known_amount(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = x0_errors(knows(prediction, 0.25, monkeypatch), DATA, torch.arange(1, 23), batch_size=9)
    assert list(found) == [int(fraction * 1000) for fraction in FRACTIONS]
    for each in found.values():
        assert (each.low, each.value, each.high) == pytest.approx((0.0625,) * 3, rel=1e-3)


def test_the_noise_is_that_of_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that gives back what it sees is off by the noise and by what is left of the image."""
    model = small.model()
    model.config = dataclasses.replace(model.config, schedule=ScheduleConfig(prediction="x0", variance="learned_range"))
    monkeypatch.setattr(model, "network", lambda x, t, h: torch.cat([x, x], dim=1))
    found = x0_errors(model, DATA, torch.arange(24), (20, 500, 999))
    full = Schedule.make(model.config.schedule)
    power = float(DATA.floats(slice(None)).square().mean())
    for t, each in found.items():
        alpha_bar = float(full.alpha_bar[t])
        assert each.value == pytest.approx((1 - math.sqrt(alpha_bar)) ** 2 * power + 1 - alpha_bar, rel=0.08)
        assert each.low < each.value < each.high
    other = x0_errors(model, DATA, torch.arange(24), (500,), seed=1)
    assert other[500].value != found[500].value
    assert x0_errors(model, DATA, torch.arange(24), (500,))[500] == found[500]


def test_what_cannot_be_measured_is_named() -> None:
    with pytest.raises(ConfigError, match="at least 2 images, got 1"):
        x0_errors(small.model(), DATA, torch.arange(1))
    with pytest.raises(ConfigError, match=r"\[1000\] are not among the 1000"):
        x0_errors(small.model(), DATA, torch.arange(2), (3, 1000))
    bare = Model.from_network(small.network(), small.SCHEDULE)
    with pytest.raises(ConfigError, match="need the model's encoder"):
        x0_errors(bare, DATA, torch.arange(2))


def test_the_command_prints_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def measured(model: Model, data: ImageSet, index: Tensor, **options: Any) -> Any:
        asked.append((len(data), index.tolist(), options))
        return x0_errors(model, data, index, (10, 900), **options)

    monkeypatch.setattr("rcdm_fast.denoising.x0_errors", measured)
    pixels = ((small.make_images(10, size=32) + 1) * 127.5).round().to(torch.uint8)
    np.save(tmp_path / "data.npy", pixels.permute(0, 2, 3, 1).numpy())
    words = ["evaluate", "cifar10-simclr-head", "--data", str(tmp_path / "data.npy"), "--sources", "3"]
    words += ["--per", "2", "--steps", "2", "--seed", "4", "--device", "cpu", "--features", "none"]
    assert main([*words, "--denoising", "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr()
    assert "squared error of x0 at t = 900" in out.out + out.err
    written = json.loads((tmp_path / "out.json").read_text())["x0_errors"]
    assert set(written) == {"10", "900"}
    assert asked == [(10, [0, 4, 9], {"seed": 4, "h": None})]
    assert main(words) == 0
    assert len(asked) == 1


def test_every_batch_and_every_level_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image three times, in batches of two; each is told with the representation that was given for its place."""
    model = small.quick_model()
    full = Schedule.make(model.config.schedule)
    noises: dict[int, list[Tensor]] = {}
    told: list[Tensor] = []
    index = torch.tensor([5, 5, 5])
    x0 = DATA.floats(index[:1])

    def network(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        (level,) = set(t.tolist())
        told.append(h)
        alpha_bar = float(full.alpha_bar[level])
        noises.setdefault(level, []).append((x - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar))
        return torch.zeros(len(x), 6, 8, 8)

    monkeypatch.setattr(model, "network", network)
    h = torch.arange(3.0)[:, None].expand(3, small.DIM)
    x0_errors(model, DATA, index, (300, 700), batch_size=2, h=h)
    every = torch.cat([each for level in (300, 700) for each in noises[level]])
    assert every.shape == (6, 3, 8, 8)
    apart = torch.cdist(every.flatten(1), every.flatten(1)) + 99 * torch.eye(6)
    assert float(apart.min()) > 5
    assert torch.cat(told)[:, 0].tolist() == [0, 1, 0, 1, 2, 2]


def test_intervals_of_errors_are_drawn_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, float]] = []

    def drawn(values: Any, resamples: int, rng: np.random.Generator) -> Any:
        asked.append((len(values), resamples, rng.random()))
        return len(asked)

    monkeypatch.setattr("rcdm_fast.denoising.bootstrap", drawn)
    model = small.quick_model()
    monkeypatch.setattr(model, "network", lambda x, t, h: torch.zeros(len(x), 6, 8, 8))
    x0_errors(model, DATA, torch.arange(4), (0, 999), seed=3, resamples=150, batch_size=3)
    assert asked == [(4, 150, np.random.default_rng([3, t]).random()) for t in (0, 999)]
