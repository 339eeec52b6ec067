"""The precision that a run computes in: settled when it begins, a part of it from then on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from rcdm_fast import precision
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.models import checkpoint
from rcdm_fast.training import resume
from rcdm_fast.training.adapt import AdaptConfig, adapt
from rcdm_fast.training.pretrain import PretrainConfig, pretrain
from rcdm_fast.training.state import Paused
from rcdm_fast.training.train import train
from tests import small, training_process

REASON = "made-up: no bf16"
DATA = training_process.data()
PRETRAIN = PretrainConfig(
    name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4), images=32, batch_size=16,
    compile=False,
)  # fmt: skip


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "without_bf16", lambda _: REASON)


def _with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "without_bf16", lambda _: "")


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "tiny-encoder.safetensors"
    native.save(path, PRETRAIN.network(), PRETRAIN.encoder(), {})
    return path


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == resume.__name__]


def _kept(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text())
    return found


def test_this_processor_is_asked_as_engines_ask_it() -> None:
    there = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert (precision.without_bf16("cpu") == "") == there
    assert resume.automatic("cpu") == ("bf16" if there else "fp32")
    assert precision.without_bf16("meta") == ""


def test_a_run_goes_on_in_what_it_was_begun_in(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Begun where bf16 is slow, finished where it is fast: the bits of a run in fp32."""
    wanted = train(training_process.config(str(encoder_file)), DATA, tmp_path / "whole")
    config = training_process.config(str(encoder_file), precision="auto")
    monkeypatch.setattr(resume, "without_bf16", lambda _: REASON)
    with caplog.at_level(logging.INFO, logger=resume.__name__), pytest.raises(Paused):
        train(config, DATA, tmp_path / "parts", minutes=1e-9)
    assert _said(caplog) == [f"computed in fp32: {REASON}"]
    assert _kept(tmp_path / "parts")["precision"] == "fp32"
    _with_bf16(monkeypatch)
    with pytest.raises(RunError, match="precision: 'fp32' -> 'bf16'"):
        train(training_process.config(str(encoder_file), precision="bf16"), DATA, tmp_path / "parts")
    found = train(config, DATA, tmp_path / "parts")
    one, other = (checkpoint.load_model(file)[1] for file in (wanted, found))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_run_is_in_bf16_where_that_is_fast(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And goes on in it elsewhere, with a warning."""
    config = training_process.config(str(encoder_file), precision="auto")
    _with_bf16(monkeypatch)
    with caplog.at_level(logging.INFO, logger=resume.__name__), pytest.raises(Paused):
        train(config, DATA, tmp_path, minutes=1e-9)
    assert _kept(tmp_path)["precision"] == "bf16"
    assert not _said(caplog)
    monkeypatch.setattr(resume, "without_bf16", lambda _: REASON)
    with pytest.raises(Paused):
        train(config, DATA, tmp_path, minutes=1e-9)
    (said,) = _said(caplog)
    assert "slower than fp32" in said
    assert REASON in said


@pytest.mark.usefixtures("without_bf16")
def test_what_is_asked_for_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=resume.__name__):
        assert resume.precision(tmp_path, "fp32", "cpu") == "fp32"
        assert resume.bf16(tmp_path, False, "cpu") is False
        assert not _said(caplog)
        assert resume.precision(tmp_path, "bf16", "cpu") == "bf16"
        assert resume.bf16(tmp_path, True, "cpu") is True
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


@pytest.mark.usefixtures("without_bf16")
def test_pretraining_and_adapting_choose_too(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(PRETRAIN, DATA, tmp_path / "encoder")
    assert _kept(tmp_path / "encoder")["bf16"] is False
    encoder = EncoderConfig(f"file:{encoder_file}", image_size=8)
    model = small.model(representation_dim=8).config
    decoder = checkpoint.save_model(
        tmp_path / "small.safetensors", model, small.network(representation_dim=8).state_dict()
    )
    adapting = AdaptConfig("adapted", str(decoder), encoder=encoder, old_encoder=encoder, steps=1, batch_size=8)
    adapt(adapting, DATA, tmp_path / "adapted")
    assert _kept(tmp_path / "adapted")["bf16"] is False
    _with_bf16(monkeypatch)
    pretrain(PRETRAIN, DATA, tmp_path / "encoder")  # still what it was
    assert _kept(tmp_path / "encoder")["bf16"] is False
    assert resume.bf16(tmp_path / "new", None, "cpu") is True
