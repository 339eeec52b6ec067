"""Models in other processes: pickled, copied, sent to spawned workers, forked."""

from __future__ import annotations

import copy
import dataclasses
import io
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import engines
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from tests import small
from tests.tolerances import THREADS_ABS


@pytest.fixture(scope="module")
def h() -> Tensor:
    return torch.randn(2, small.DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small.quick_model()
    return checkpoint.save_model(tmp_path_factory.mktemp("model"), model.config, model.unet.state_dict())


def pickled(model: Model) -> Model:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def torch_saved(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ["eager", "native"])
@pytest.mark.parametrize("way", [pickled, copy.deepcopy, copy.copy, torch_saved])
def test_a_copy_draws_the_same_images(way: Any, engine: str, saved: Path, h: Tensor) -> None:
    model = rcdm_fast.load(saved, encoder=small.encoder(), device="cpu", engine=engine, precision="fp32")
    expected = model.sample(h, per=2, steps=3)
    other = way(model)
    assert torch.equal(other.sample(h, per=2, steps=3), expected)
    assert torch.equal(other.encode(small.make_images(2)), model.encode(small.make_images(2)))
    assert (other.engine.name, other.engine.precision, other.config) == (engine, "fp32", model.config)
    assert other.engine is not model.engine
    with torch.no_grad():
        other.unet.get_parameter("out.2.bias").fill_(torch.nan)
    assert torch.equal(model.sample(h, per=2, steps=3), expected)


@pytest.mark.parametrize("encoder", [None, small.encoder()], ids=["none", "given"])
def test_a_copy_runs_the_file_that_was_given(
    encoder: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, Path | None]] = []

    def make(network: Any, _config: Any, device: Any, precision: str, file: Path | None) -> Any:
        engine = engines.eager.EagerEngine(network, device, precision)
        engine.name = "onnxruntime"
        made.append((precision, file))
        return engine

    spec = dataclasses.replace(engines.SPECS["onnxruntime"], make=make, reasons_unavailable=lambda *_: [])
    monkeypatch.setitem(engines.SPECS, "onnxruntime", spec)
    monkeypatch.chdir(tmp_path)
    model = rcdm_fast.load(saved, encoder=encoder, device="cpu", engine="onnxruntime", engine_file="its.onnx")
    pickled(pickled(model))
    assert made == [("fp32", Path("its.onnx"))] + [("fp32", tmp_path / "its.onnx")] * 2


def test_where_the_engine_is_missing_a_copy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(small.quick_model())
    gone = dataclasses.replace(engines.SPECS["eager"], reasons_unavailable=lambda *_: ["it is not here"])
    monkeypatch.setitem(engines.SPECS, "eager", gone)
    with pytest.raises(rcdm_fast.ConfigError, match=r"cannot run in this process as it did in its own.*not here"):
        pickle.loads(data)


class Encoded(torch.utils.data.Dataset[Tensor]):
    """What a training script has its workers do."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> Tensor:
        return self.model.encode(small.make_images(2)[place : place + 1])[0]


def test_where_there_are_fewer_gpus_a_copy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {**small.quick_model().__getstate__(), "device": torch.device("cuda:3")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(rcdm_fast.ConfigError, match=r"cannot run in this process.*there are only cuda:0\.\.cuda:0"):
        Model.__new__(Model).__setstate__(state)


def test_spawned_workers_encode() -> None:
    model = small.quick_model()
    loader = torch.utils.data.DataLoader(
        Encoded(model), batch_size=2, num_workers=1, multiprocessing_context="spawn", timeout=300
    )
    (found,) = list(loader)
    torch.testing.assert_close(found, model.encode(small.make_images(2)), atol=1e-6, rtol=0)


FORK = """
    import os, sys, torch
    import rcdm_fast
    torch.set_num_threads(2)
    h = torch.ones(1, 6)
    for engine in ("eager", "native"):
        model = rcdm_fast.load(sys.argv[1], device="cpu", engine=engine, precision="fp32")
        expected = model.sample(h, per=4, steps=2)
        model._turn.acquire()  # another thread draws while this one forks
        for threads in (2, 1):
            child = os.fork()
            if child == 0:
                torch.set_num_threads(threads)
                try:
                    found = model.sample(h, per=4, steps=2)
                    print(engine, "near", torch.allclose(found, expected, atol=float(sys.argv[2])), flush=True)
                except rcdm_fast.SamplingError as error:
                    print(engine, error, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_or_works(saved: Path) -> None:
    """Told with two threads, which a fork does not have; with one it works."""
    command = [sys.executable, "-c", textwrap.dedent(FORK), str(saved), str(THREADS_ABS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for place, engine in enumerate(("eager", "native")):
        told, works = lines[2 * place : 2 * place + 2]
        assert told.startswith(engine)
        assert "this is a fork of it" in told, done.stderr
        assert works == f"{engine} near True", done.stderr
