"""What experiments of one report have in common is made once, and their numbers are those of each by itself."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import registry, shared, sweeps
from rcdm_fast.analysis.layer import LayersConfig
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.images import to_uint8
from rcdm_fast.model import Model
from rcdm_fast.training import representations
from tests import small

MODULES = {
    "unfamiliar": "out_of_distribution",
    "distances": "nearness",
}  # of experiments that are not called after theirs
QUICK = {"sources": 20, "steps": 1, "resamples": 100}
ENCODING: dict[str, dict[str, Any]] = {
    "faithfulness": {"per": 1},
    "distances": {"per": 1},
    "neighbors": {"per": 1},
    "unfamiliar": {},
    "manipulate": {"per": 1, "properties": ["brightness"], "components": 0},
    "attack": {"per": 1, "images": 20, "epsilons": [0, 8], "pgd_steps": 1},
}


@pytest.fixture(scope="module")
def model() -> Model:
    return small.quick_model()


@pytest.fixture(scope="module")
def data() -> ImageSet:
    pixels = to_uint8(small.make_images(44))
    return ImageSet(pixels, torch.arange(44) % 2, ("a", "b"), (), "made up")


@pytest.fixture(scope="module")
def photos() -> ImageSet:
    return ImageSet(to_uint8(small.make_images(20, seed=9)), None, (), (), "elsewhere")


def test_sets_of_images_are_told_apart(model: Model) -> None:
    """By what they hold, not by how many; and a part of one is a part of what was encoded once."""
    encoder, kept = small.encoder(), Shared()
    sets = [ImageSet(to_uint8(small.make_images(6, seed=seed)), None, (), (), f"seed {seed}") for seed in (1, 2)]
    whole = [shared.encoded(kept, encoder, each) for each in sets]
    for found, each in zip(whole, sets, strict=True):
        assert torch.equal(found, representations.compute(encoder, each))
        assert torch.equal(shared.encoded(kept, encoder, each, torch.tensor([4, 1])), found[[4, 1]])
        assert torch.equal(shared.encoded(None, encoder, each, torch.tensor([4, 1])), found[[4, 1]])
    assert not torch.equal(*whole)
    other = small.encoder()
    assert shared.encoded(kept, other, sets[0]) is not whole[0]


def run(name: str, models: list[Model], data: ImageSet, photos: ImageSet, known: Shared | None, **more: Any) -> Any:
    job = registry.Job(models[0], data, photos, tuple(models[1:]), {**QUICK, **more}, shared=known)
    found = registry.find(name).run(job)
    return found.tables, found.findings, found.settings


@pytest.mark.parametrize("both", [True, False], ids=["photos too", "data alone"])
@pytest.mark.parametrize("name", registry.EXPERIMENTS)
def test_an_experiment_is_given_what_the_job_says(
    name: str, both: bool, monkeypatch: pytest.MonkeyPatch, model: Model, data: ImageSet, photos: ImageSet
) -> None:
    """Every argument of every experiment; photographs in place of images where it says so, and only there."""
    experiment, other, known = registry.find(name), SimpleNamespace(config=model.config), Shared()
    if experiment.needs_photos and not both:
        return
    module = importlib.import_module(f"rcdm_fast.analysis.{MODULES.get(name, name)}")
    arguments = inspect.signature(module.run)
    given: dict[str, Any] = {}

    def run(*values: Any) -> None:
        given.update(arguments.bind(*values).arguments)

    monkeypatch.setattr(module, "run", run)

    def progress(done: int, of: int) -> None:
        """Is never called."""

    training = ImageSet(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), None, (), (), "known")
    against: Any = (other,)
    job = registry.Job(model, data, photos if both else None, against, {"seed": 7}, progress, known, training)
    experiment.run(job)
    config = given.pop("config")
    usual = type(config)()
    solver = usual.solver if usual.solver != "auto" else "deis"  # what that is for these models
    assert config == dataclasses.replace(usual, seed=7, solver=solver)
    wanted = {
        "model": model,
        "models": (model, other),
        "data": photos if both and experiment.takes_photos else data,
        "photos": photos,
        "progress": progress,
        "shared": known,
        "training": training,
    }
    assert given.keys() == arguments.parameters.keys() - {"config"}
    if experiment.takes_photos and not both:  # of a set that is measured on, a few are drawn
        few = given.pop("data")
        assert few.fingerprint == data.subset(evenly(12, len(data))).fingerprint
        given["data"] = data
    assert {key: wanted[key] for key in given} == given
    assert ("models" in given, "training" in given) == (experiment.compares, experiment.takes_training)


class Enough(Exception):
    """The experiment need not go on."""


@pytest.mark.parametrize("name", ENCODING)
def test_an_experiment_takes_what_is_encoded(
    name: str, monkeypatch: pytest.MonkeyPatch, model: Model, data: ImageSet, photos: ImageSet
) -> None:
    asked: list[Any] = []

    def encoded(given: Shared | None, *rest: Any) -> Tensor:
        asked.extend([given, *rest])
        raise Enough

    module = MODULES.get(name, name)
    monkeypatch.setattr(f"rcdm_fast.analysis.{module}.encoded", encoded)
    known = Shared()
    with pytest.raises(Enough):
        run(name, [model], data, photos, known, **ENCODING[name])
    assert asked[:3] == [known, model.encoder, data]


def test_the_data_is_encoded_once(
    monkeypatch: pytest.MonkeyPatch, model: Model, data: ImageSet, photos: ImageSet
) -> None:
    """Two experiments find what each finds by itself; places of a set are rows of all of it."""
    few = {name: ENCODING[name] for name in ("faithfulness", "neighbors")}
    alone = {name: run(name, [model], data, photos, None, **more) for name, more in few.items()}
    asked: Counter[str] = Counter()
    real = representations.compute

    def compute(encoder: Any, given: ImageSet) -> Tensor:
        asked[given.fingerprint] += 1
        found: Tensor = real(encoder, given)
        return found

    monkeypatch.setattr(representations, "compute", compute)  # whoever computes any does so here
    known, places = Shared(), torch.tensor([3, 40, 7])
    for name, more in few.items():
        assert run(name, [model], data, photos, known, **more) == alone[name], name
    assert model.encoder is not None
    whole = shared.encoded(known, model.encoder, data)
    assert torch.equal(shared.encoded(known, model.encoder, data, places), whole[places])
    assert asked == {"made up": 1}
    other = shared.encoded(known, model.encoder, photos)  # another set has its own
    assert torch.equal(other, shared.encoded(None, model.encoder, photos))
    assert torch.equal(shared.encoded(None, model.encoder, data, places), whole[places])  # of these alone


def test_invariance_is_measured_once_for_each_model(
    monkeypatch: pytest.MonkeyPatch, model: Model, data: ImageSet, photos: ImageSet
) -> None:
    """By both experiments that need it, whatever else they are asked for; other noise is another measurement."""
    asked: list[tuple[Any, int]] = []

    def measure(given: Model, _: ImageSet, config: Any, progress: Any) -> Any:
        asked.append((given, config.seed))
        return SimpleNamespace(sweeps={"hue": None, "zoom": None})

    monkeypatch.setattr(sweeps, "_measure", measure)
    known, other, told = Shared(), small.quick_model(), list[tuple[int, int]]()
    plain = sweeps.InvarianceConfig(steps=1, seed=4)
    for config in (plain, LayersConfig(steps=1, seed=4, spread_samples=3)):
        sweeps.measure(model, data, config, lambda *each: told.append(each), known)
    assert asked == [(model, 4)]
    assert told == [(2, 2)] * 2
    sweeps.measure(other, data, plain, None, known)
    sweeps.measure(model, data, dataclasses.replace(plain, seed=5), None, known)
    sweeps.measure(model, data, plain, None, Shared())
    assert asked[1:] == [(other, 4), (model, 5), (model, 4)]
    changes: dict[str, Any] = {"sources": 30, "per": 5, "augmentations": ("hue",), "shown": 3, "fitted_on": 60}
    changes |= {"steps": 3, "solver": "ancestral", "eta": 0.5, "guidance": 2.0, "seed": 9, "clip": False}
    changes |= {"batch_size": 3, "resamples": 177}
    assert set(changes) == {each.name for each in dataclasses.fields(sweeps.InvarianceConfig)}
    for number, (name, value) in enumerate(changes.items()):
        sweeps.measure(model, data, dataclasses.replace(plain, **{name: value}), None, known)
        assert len(asked) == 5 + number, f"{name} is another measurement"
    sweeps.measure(model, photos, plain, None, known)
    assert len(asked) == 5 + len(changes), "and other data are"


@pytest.mark.parametrize("name", ["invariance", "layers"])
def test_an_experiment_takes_what_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch, model: Model, data: ImageSet, photos: ImageSet
) -> None:
    asked: list[Any] = []

    def measure(*given: Any) -> Any:
        asked.extend(given)
        raise Enough

    monkeypatch.setattr(sweeps, "measure", measure)
    known = Shared()
    with pytest.raises(Enough):
        run(name, [model, model], data, photos, known)
    assert asked[-1] is known


def test_each_owner_has_its_own() -> None:
    known, made = Shared(), list[int]()
    first, second = object(), object()
    for owner in (first, second, first):
        known.once(owner, "key", lambda: made.append(len(made)))
    known.once(first, "another", lambda: made.append(9))
    assert made == [0, 1, 9]
