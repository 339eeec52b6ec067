"""Evaluations asked for are evaluations counted, at the engine itself: every solver, every engine of this processor.

torch.compile is left out: its first batch takes half a minute, and it is asked as the eager engine is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rcdm_fast import engines
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import registry
from rcdm_fast.model import Model
from tests import small
from tests.test_fitted import some

pytestmark = pytest.mark.usefixtures("shared_exports")

CPU = torch.device("cpu")
ENGINES = ("eager", "native", "onnxruntime", "openvino")
ASKED: dict[str, tuple[int | str, ...]] = {  # of every solver; each is the number it ends with
    **dict.fromkeys(registry.SOLVERS, (5, "quadratic7")),
    "fitted": (3,),
    "student": (4,),
}
PLACED = ("uniform5", "quadratic5", "logsnr5", "karras5", "at:3,70,200,600,999", "ddim5", "2,3")  # 5 of whatever kind


@pytest.fixture(scope="module", params=ENGINES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A small model of everything: representations, guidance, a fitted solver, a student's steps."""
    reasons = engines.reasons_unavailable(request.param, CPU, "fp32")
    if reasons:
        pytest.skip("; ".join(reasons))
    made = small.model()
    own = some(3, made.config.schedule, 1, made.weights)
    made.config = dataclasses.replace(
        made.config, representation_dropout=0.1, fitted=(own,), student_steps=(30, 200, 500, 800)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCDM_FAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache-of-nfe"))  # one export for all
        made.engine = engines.make(request.param, made.unet, made.config, CPU, "fp32")
        yield made


class Counted:
    """Images of every evaluation that engines were asked for."""

    def __init__(self, patch: pytest.MonkeyPatch, *watched: Model) -> None:
        self.images: list[int] = []
        for each in watched:
            self._watch(patch, each.engine)

    def _watch(self, patch: pytest.MonkeyPatch, engine: Any) -> None:
        real = engine.evaluate

        def evaluate(*given: Any) -> torch.Tensor:
            answer: torch.Tensor = real(*given)
            self.images.append(len(answer))
            return answer

        patch.setattr(engine, "evaluate", evaluate)


def number(steps: int | str) -> int:
    return int(str(steps).removeprefix("quadratic"))


@pytest.fixture
def counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch, model)


H = torch.zeros(1, small.DIM)


@pytest.mark.parametrize("solver", [*ASKED, "auto"])
def test_evaluations_are_those_asked_for(model: Model, counted: Counted, solver: str) -> None:
    for steps in ASKED.get(solver, ASKED["student"]):
        counted.images.clear()
        request = model.request(H, per=1, steps=steps, solver=solver)
        assert model.sample(H, per=1, steps=steps, solver=solver).isfinite().all()
        assert counted.images == [1] * number(steps) == [1] * request.evaluations


@pytest.mark.parametrize("steps", PLACED)
def test_wherever_they_lie(model: Model, counted: Counted, steps: str) -> None:
    model.sample(H, per=1, steps=steps, solver="ddim")
    assert counted.images == [1] * 5


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "unipc_3", "heun"])
def test_guidance_asks_for_two_images_or_two_models(
    model: Model, counted: Counted, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    model.sample(H, per=1, steps=5, solver=solver, guidance=2.0)
    assert counted.images == [2] * 5
    counted.images.clear()
    guide = small.model()
    theirs = Counted(monkeypatch, guide)
    model.sample(H, per=1, steps=5, solver=solver, guidance=2.0, guide=guide)
    assert counted.images == theirs.images == [1] * 5


@pytest.mark.parametrize(
    ("given", "evaluations"),
    [
        ({"solver": "ddim"}, 4),
        ({"solver": "ddim", "iterations": 0}, 4),
        ({"solver": "ddim", "iterations": 3}, 1 + 3 * 3),  # the first step has one always
        ({"solver": "unipc_2"}, 4),
    ],
)
def test_inversion(model: Model, counted: Counted, given: dict[str, Any], evaluations: int) -> None:
    plain = dataclasses.replace(model.config, student_steps=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "config", plain)
        model.invert(small.make_images(1), H, steps=4, **given)
    assert counted.images == [1] * evaluations


def test_heun_names_the_neighbors_of_what_it_cannot_make(model: Model, counted: Counted) -> None:
    for even, neighbors in ((2, "1 or 3"), (8, "7 or 9"), ("quadratic4", "3 or 5")):
        with pytest.raises(ConfigError, match=f"an odd number of times: {neighbors}, not"):
            model.sample(H, steps=even, solver="heun")
    for wrong in ("ddim25", "3,4", "at:0,999"):
        with pytest.raises(ConfigError, match="heun takes a number of evaluations"):
            model.sample(H, steps=wrong, solver="heun")
    assert counted.images == []


def test_no_solver_is_left_out() -> None:
    assert set(ASKED) == {*registry.SOLVERS, *registry.OF_MODELS} - {registry.AUTO}
