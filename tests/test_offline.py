"""RCDM_FAST_OFFLINE: no family of encoders and no data set reaches the network, and nobody waits."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest

from rcdm_fast import offline
from rcdm_fast.data.sources import open_data
from rcdm_fast.encoders import EncoderError, build
from rcdm_fast.images import ImageError


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Hosts that were asked for; empty caches, and the network forbidden."""
    hosts: list[Any] = []

    def look_up(host: Any, *_: Any, **__: Any) -> Any:
        hosts.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # nothing else keeps it from the network
    return hosts


@pytest.mark.parametrize(
    ("spec", "instead"),
    [
        ("timm:resnet18?pretrained=1", "weights=FILE"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "weights=FILE"),
        ("torchvision:resnet18?pretrained=1", "weights=FILE"),
        ("torchvision:resnet18?weights=IMAGENET1K_V1", "weights=FILE"),
        ("transformers:facebook/dinov2-small", "transformers:FOLDER"),
        ("transformers:facebook/dinov2-small?image_size=32&mean=0.5&std=0.5", "transformers:FOLDER"),
        ("torchhub:facebookresearch/dino:dino_vits16?trust_repo=1", "weights=FILE"),
    ],
)
def test_no_family_reaches_the_network(spec: str, instead: str, asked: list[Any]) -> None:
    started = time.monotonic()
    with pytest.raises(EncoderError, match=f"RCDM_FAST_OFFLINE forbids the network.*{instead}") as raised:
        build(spec)
    assert raised.value.__cause__ is not None
    assert not asked
    assert time.monotonic() - started < 45  # 51 s are spent on trying again where nothing says so
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_published_encoders_name_the_option(asked: list[Any]) -> None:
    with pytest.raises(OSError, match=r"RCDM_FAST_OFFLINE forbids.*weights=FILE"):
        build("published:simclr")
    assert not asked


def test_data_sets_do_not_reach_the_network(asked: list[Any]) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(ImageError, match="hf:someone/nothing"):
        open_data("hf:someone/nothing", 8)
    assert not asked


def test_what_a_trusted_repository_does_is_stopped_too(asked: list[Any], tmp_path: Path) -> None:
    code = "import socket\nimport torch\n\ndef net(**_):\n    socket.create_connection(('192.0.2.1', 80), 1)\n"
    (tmp_path / "hubconf.py").write_text(code, encoding="utf-8")
    with pytest.raises(EncoderError, match="RCDM_FAST_OFFLINE forbids the network"):
        build(f"torchhub:{tmp_path}:net?trust_repo=1")
    assert not asked


def test_only_the_calling_thread_is_cut_off_and_all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    before = (socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex)
    results: list[Any] = []
    with offline.enforced():
        with pytest.raises(offline.OfflineError):
            socket.getaddrinfo("localhost", 80)
        with socket.socket() as made, pytest.raises(offline.OfflineError):
            made.connect(("127.0.0.1", 9))
        thread = threading.Thread(target=lambda: results.append(socket.getaddrinfo("127.0.0.1", 80)))
        thread.start()
        thread.join()
    assert results
    assert (socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex) == before
    monkeypatch.delenv("RCDM_FAST_OFFLINE")
    with offline.enforced():
        assert socket.getaddrinfo is before[0]


def test_custom_code_is_refused_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "m.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "zzz", "auto_map": {"AutoConfig": "m.C"}}', encoding="utf-8")
    described = '{"auto_map": {"AutoImageProcessor": "m.C"}, "image_processor_type": "C"}'
    (tmp_path / "preprocessor_config.json").write_text(described, encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    for options in ("", "?image_size=32&mean=0.5&std=0.5"):
        with pytest.raises(EncoderError):
            build(f"transformers:{tmp_path}{options}")
    assert not mark.exists()
    assert "m" not in sys.modules


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("name", ["connect", "connect_ex"])
def test_every_way_to_connect_is_shut(name: str, family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    made = SimpleNamespace(family=family)  # a socket of a family that this machine may lack
    with offline.enforced(), pytest.raises(offline.OfflineError, match="RCDM_FAST_OFFLINE forbids the network"):
        getattr(socket.socket, name)(made, ("localhost", 9))


def test_what_is_left_inside_another_one_does_not_open_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    with offline.enforced():
        with offline.enforced():
            pass
        with pytest.raises(offline.OfflineError):
            socket.getaddrinfo("localhost", 80)


def test_switches_of_libraries_are_on_inside_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    before = {"HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False, "other": 3}
    datasets: Any = SimpleNamespace(**before)
    monkeypatch.setitem(sys.modules, "datasets.config", datasets)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with offline.enforced():
        assert vars(huggingface_hub.constants)["HF_HUB_OFFLINE"] is True
        assert vars(datasets) == {"HF_HUB_OFFLINE": True, "HF_DATASETS_OFFLINE": True, "other": 3}
    assert vars(huggingface_hub.constants)["HF_HUB_OFFLINE"] is False
    assert vars(datasets) == before


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
@pytest.mark.parametrize("name", ["OfflineError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"])
def test_errors_of_libraries_that_come_from_no_network(name: str, link: str) -> None:
    error = type(name, (Exception,), {})("not there")
    outer, outermost = ValueError("no model"), OSError("no encoder")
    assert offline.caused(error)
    assert not offline.caused(outer)
    setattr(outer, link, error)
    outermost.__cause__ = outer
    assert offline.caused(outermost)
    error.__cause__ = outermost  # in a circle
    assert not offline.caused(ZeroDivisionError("another"))
