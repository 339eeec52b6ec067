"""Models by name: bundled ones, the published releases, ids of the hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from rcdm_fast.models import checkpoint, zoo
from rcdm_fast.models.checkpoint import CheckpointError, list_bundled, load_model, model_names, save_model
from tests import checkpoint_cases
from tests.checkpoint_cases import CONFIG, FLAGS, Tensors, equal
from tests.file_server import FileServer


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_cases.own_folders(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return checkpoint_cases.make_weights()


def test_unknown_names() -> None:
    with pytest.raises(CheckpointError, match=r"unknown model 'rcdm-simclr-trnk'; did you mean rcdm-simclr-trunk"):
        load_model("rcdm-simclr-trnk")
    with pytest.raises(CheckpointError, match=r"unknown model 'zzz'; Known names: .*rcdm-supervised"):
        load_model("zzz")
    with pytest.raises(CheckpointError, match="unknown model ''"):
        load_model("")
    for path in ("./a", "folder/a.pt", "a.safetensors", "~/a"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            load_model(path)
    with pytest.raises(CheckpointError, match="rcdm-simclr-trunk: no such file"):
        load_model(Path("rcdm-simclr-trunk"))  # a path object is never a name


def test_bundled_models(tmp_path: Path, weights: Tensors) -> None:
    assert list_bundled() == []
    save_model(tmp_path / "bundled" / "small.safetensors", CONFIG, weights, torch.bfloat16)
    (tmp_path / "bundled" / "small-encoder.safetensors").write_bytes(b"")
    (tmp_path / "bundled" / "broken.safetensors").write_bytes(b"")
    assert list_bundled() == ["broken", "small"]
    assert load_model("small")[0] == CONFIG
    known = model_names()
    assert known["small"].kind == "bundled"
    assert known["small"].about == "16 px, bundled:small-encoder backbone, 5 dimensions"
    assert "unreadable" in known["broken"].about


def test_model_names() -> None:
    known = model_names()
    methods = ("simclr", "barlow", "vicreg", "dino")
    assert set(known) == {f"rcdm-{m}-{part}" for m in methods for part in ("trunk", "head")} | {"rcdm-supervised"}
    for name, entry in known.items():
        assert entry.kind == "published"
        assert not entry.present
        file = name.replace("rcdm-", "rcdm_ema_").replace("-", "_")
        assert entry.location == f"https://dl.fbaipublicfiles.com/rcdm/{file}.pt"
        assert "CC-BY-NC" in entry.license
    dims = {name: release.encoder.dim for name, release in zoo.RELEASES.items() if name.endswith("head")}
    assert list(dims.values()) == [128, 8192, 8192, 256]
    encoder = zoo.RELEASES["rcdm-dino-head"].encoder
    assert (encoder.source, encoder.layer, encoder.mean, encoder.std) == (
        "published:dino",
        "projector",
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    )
    assert zoo.RELEASES["rcdm-supervised"].encoder.source == "published:supervised"


@pytest.fixture
def release_server(weights: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    torch.save(weights, tmp_path / "release.pt")
    with FileServer((tmp_path / "release.pt").read_bytes()).running() as server:
        monkeypatch.setattr(zoo, "RELEASE_URL", server.url)
        checkpoint._tell_license.cache_clear()
        yield server


def test_published_release(release_server: FileServer, weights: Tensors, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        config, tensors = load_model("rcdm-simclr-trunk", FLAGS)
        load_model("rcdm-simclr-trunk", FLAGS)
    assert len(release_server.requests) == 1
    assert caplog.text.count("CC-BY-NC") == 1
    assert equal(tensors, weights)
    assert config.name == "rcdm-simclr-trunk"
    assert config.encoder == zoo.RELEASES["rcdm-simclr-trunk"].encoder
    assert "CC-BY-NC" in config.info["license"]
    assert config.info["url"] == f"{release_server.url}/rcdm_ema_simclr_trunk.pt"
    assert config.info["flags_recognized"]["given"] == FLAGS
    entry = model_names()["rcdm-simclr-trunk"]
    assert entry.present
    assert entry.location.endswith("cache/rcdm_ema_simclr_trunk.pt")


def test_a_release_must_be_what_it_is_called(release_server: FileServer) -> None:
    with pytest.raises(
        CheckpointError, match=r"num_channels is given as 256.*; ssl_dim is given as 2048.*delete .*\.pt"
    ):
        load_model("rcdm-simclr-trunk")


def test_no_network_for_a_release(release_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    with pytest.raises(OSError, match=r"rcdm_ema_dino_head\.pt is not in the cache and RCDM_FAST_OFFLINE forbids"):
        load_model("rcdm-dino-head")


def test_hub_id(tmp_path: Path, weights: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "hub", CONFIG, weights)
    asked = []

    def download(repository: str, file: str, **options: object) -> str:
        asked.append((repository, file, options))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert equal(load_model("someone/model")[1], weights)
    assert asked == [("someone/model", "model.safetensors", {"local_files_only": False})]
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    load_model("someone/model")
    assert asked[1][2] == {"local_files_only": True}


def test_flags_are_for_bare_weights_of_the_hub_too(
    tmp_path: Path, weights: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(weights, path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    config, tensors = load_model("someone/model", FLAGS)
    assert (config.unet, config.schedule) == (CONFIG.unet, CONFIG.schedule)
    assert equal(tensors, weights)


def test_an_existing_path_wins_over_a_hub_id(weights: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    save_model("someone/model", CONFIG, weights)  # in the current folder
    assert equal(load_model("someone/model")[1], weights)


def test_hub_errors_fit_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("\nno connection to the hub\nand so on")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(CheckpointError, match=r"someone/model: no such file, and no model\.safetensors") as raised:
        load_model("someone/model")
    assert "no connection to the hub" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_hub_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r'pip install "\.\[hub\]"'):
        load_model("someone/model")
