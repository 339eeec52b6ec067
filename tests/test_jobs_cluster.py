"""What workers of a cluster are told, and what they refuse; the rest stands in `test_jobs_stops.py`."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from rcdm_fast import memory
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.jobs import cluster, local
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.model import Model
from tests import jobs_cases, small


def test_names_of_files_hold_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundled name stays one though something here is called so, and a name of nothing that is here, too."""
    monkeypatch.chdir(tmp_path)
    for name in ("m.safetensors", "flags.json", "cifar10-simclr-wide"):
        (tmp_path / name).touch()
    spec = cluster.ModelSpec("m.safetensors", "flags.json")
    assert (spec.name, spec.flags) == (str(tmp_path / "m.safetensors"), str(tmp_path / "flags.json"))
    for name in ("cifar10-simclr-wide", "someone/model"):
        assert cluster.ModelSpec(name).name == name


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("photos", "HERE/photos"),
        ("in-{000..002}.tar", "HERE/in-{000..002}.tar"),
        ("a/in-{0..2}.tar::/b/in-{0..2}.tar", "HERE/a/in-{0..2}.tar::/b/in-{0..2}.tar"),
        ("{/a,/b}/0.tar", "{/a,/b}/0.tar"),
        ("https://host/in-{0..2}.tar", "https://host/in-{0..2}.tar"),
        ("wds:in-{0..2}.tar", "wds:HERE/in-{0..2}.tar"),
        ("wds:photos", "wds:HERE/photos"),
        ("hf:photos?split=test", "hf:HERE/photos?split=test"),
        ("hf:someone/images?split=test", "hf:someone/images?split=test"),
        ("world:shapes?count=5", "world:shapes?count=5"),
        ("12", "12"),
    ],
)
def test_names_of_items_hold_in_other_folders(
    given: str, sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert cluster._absolute(given) == sent.replace("HERE", str(tmp_path.resolve()))


@pytest.mark.parametrize("part", ["engine", "precision"])
def test_a_worker_that_runs_another_engine_refuses(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else rows of the manifest would not say what job.json says, and a resumed job would draw all of them again."""
    model = small.quick_model()
    monkeypatch.setattr(cluster.ModelSpec, "load", lambda _: model)
    h, folder, config = str(tmp_path / "h.npy"), tmp_path / "job", JobConfig(per=1, steps=2)
    np.save(h, jobs_cases.representations().numpy())
    identity = {**local.prepare(model, random_access.find(h), folder, config).identity, part: "another"}
    order = cluster.Order(cluster.ModelSpec("m"), h, str(folder), config, RunOptions(), identity)
    with pytest.raises(ConfigError, match=rf"this worker runs {part} \w+, the machine that began the job another"):
        cluster.Worker(order)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_at_least_one(workers: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"workers must be at least 1, got {workers}"):
        cluster.run(cluster.ModelSpec("m"), "1", tmp_path / "job", JobConfig(), RunOptions(), workers=workers)


def test_workers_without_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "3", "--workers", "2", "--out", str(tmp_path / "job")]) == 2
    assert "--workers are Ray's: give --ray, too" in capsys.readouterr().err
    assert not (tmp_path / "job").exists()


def test_the_driver_keeps_nothing_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has looked at it on the GPU that a worker is to draw on."""
    np.save(tmp_path / "h.npy", jobs_cases.representations().numpy())
    told: list[object] = []
    alive: list[weakref.ref[Model]] = []

    def load(_: cluster.ModelSpec) -> Model:
        model = small.quick_model()
        alive.append(weakref.ref(model))
        return model

    def begin(*_: object) -> list[int]:
        told.append(alive[0]())
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster.ModelSpec, "load", load)
    monkeypatch.setattr(cluster, "_ray", lambda: None)
    monkeypatch.setattr(memory, "release", lambda: told.append("released"))
    monkeypatch.setattr(local, "begin", begin)
    config = JobConfig(per=1, steps=2)
    with pytest.raises(KeyboardInterrupt):
        cluster.run(cluster.ModelSpec("m"), str(tmp_path / "h.npy"), tmp_path / "job", config, RunOptions())
    assert told == ["released", None]
