"""The hub's form: a folder that loads again, a model card, and what is sent and fetched (a made-up hub)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import rcdm_fast
from rcdm_fast import ConfigError, HubError, Model
from rcdm_fast.cli import main
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import build, native
from rcdm_fast.exporters.graph import weights_hash
from rcdm_fast.models import hub as hub_module
from rcdm_fast.models.checkpoint import CheckpointError, save_model
from rcdm_fast.storage import StorageError
from tests import small

BUNDLED = "cifar10-simclr-trunk"
ENCODER = native.BUNDLED / "cifar10-simclr-encoder.safetensors"


class Hub:
    """Repositories as folders; stands in for HfApi and hf_hub_download."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refuses = ""

    def __call__(self, token: str | None = None) -> Hub:
        self.calls.append(("HfApi", {"token": token}))
        return self

    def create_repo(self, repository: str, **options: Any) -> None:
        self.calls.append(("create_repo", options))
        if self.refuses:
            raise OSError(f"{self.refuses}\nand more")
        (self.root / repository).mkdir(parents=True, exist_ok=options["exist_ok"])

    def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.calls.append(("upload_folder", options))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"https://hub.example/{repo_id}/commit/1"

    def download(self, repository: str, name: str, **options: Any) -> str:
        """One file at a time into a cache of our own, as the real one does."""
        self.calls.append((name, options))
        source = self.root / repository / name
        if not source.is_file():
            raise FileNotFoundError(f"no {name} here")
        target = self.root / ".cache" / repository / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.delenv("RCDM_FAST_OFFLINE", raising=False)
    return hub


def same(a: Model, b: Model) -> bool:
    left, right = a.unet.state_dict(), b.unet.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def load(source: Any, **options: Any) -> Model:
    return rcdm_fast.load(source, device="cpu", engine="eager", **options)


def test_a_saved_folder_loads_again(tmp_path: Path) -> None:
    model = load(BUNDLED)
    files = model.save_pretrained(tmp_path / "out")
    assert sorted(file.name for file in files) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(file.name for file in files)
    for again in (load(tmp_path / "out"), Model.from_pretrained(tmp_path / "out", device="cpu", engine="eager")):
        assert isinstance(again, Model)
        assert same(model, again)
        assert again.config == model.config
    images = small.make_images(2, size=40)
    assert torch.equal(again.encode(images), model.encode(images))
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["library_name"] == "rcdm_fast"
    assert described["unet"]["image_size"] == 32
    assert described["encoder"]["source"] == "bundled:cifar10-simclr"


def test_the_card_of_a_bundled_model(tmp_path: Path) -> None:
    rcdm_fast.export(load(BUNDLED), "hub", tmp_path, precision="fp16")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "library_name": "rcdm_fast",
        "license": "mit",
        "pipeline_tag": "image-to-image",
        "tags": ["diffusion", "representation-learning", "interpretability", "rcdm"],
    }
    assert "MRR of the source image" in card.text
    stored = load(tmp_path)
    assert weights_hash(stored.unet, stored.config.schedule) in card.text
    assert 'rcdm_fast.load(".")' in card.text
    assert same(load(tmp_path), load(BUNDLED))  # stored as fp16 in the first place


def test_the_card_of_any_model(tmp_path: Path) -> None:
    model = small.model()
    info = {"steps": 1200, "images_seen": 38_400, "run": {"much": "more"}, "license": "CC-BY-NC 4.0 (and so on)"}
    model.config = dataclasses.replace(model.config, name='my: "model"', info=info)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert "steps 1200; images seen 38400" in card.text
    assert "given in Python" in card.text
    assert "much" not in card.text
    assert weights_hash(model.unet, model.config.schedule) in card.text
    rcdm_fast.export(model, "hub", tmp_path / "half", precision="fp16")  # rounded: the hash is that of what is stored
    text, stored = (tmp_path / "half" / "README.md").read_text(), load(tmp_path / "half")
    assert weights_hash(stored.unet, stored.config.schedule) in text
    assert weights_hash(model.unet, model.config.schedule) not in text
    model.save_pretrained(tmp_path, license="cc-by-4.0")
    assert ModelCard.load(tmp_path / "README.md").data.license == "cc-by-4.0"
    small.model(representation_dim=0).save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.license is None


@pytest.mark.parametrize(
    "changes", [{}, {"representation_dim": 0, "num_classes": 3}, {"representation_dim": 0}], ids=str
)
def test_the_example_of_a_card_runs(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.model(**changes).save_pretrained(tmp_path)
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("h = ...", f"import torch; h = torch.zeros(2, {small.DIM})").replace("=50", "=2"), names)
    assert names["images"].shape[1:] == (8, 3, 8, 8)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", BUNDLED, "--to", "hub", "--out", str(tmp_path), "--precision", "bf16"]
    assert main(arguments) == 0
    assert f"{tmp_path / 'model.safetensors'}  2.5 MB" in capsys.readouterr().out
    assert load(tmp_path).config == dataclasses.replace(load(BUNDLED).config, fitted=())  # they are of other weights
    assert main([*arguments[:-1], "int8"]) == 2
    assert "hub is not exported in 'int8'" in capsys.readouterr().err


def test_an_encoder_file_goes_along(tmp_path: Path, hub: Hub) -> None:
    encoder = tmp_path / "mine 50%.safetensors"
    shutil.copyfile(ENCODER, encoder)
    model = load(BUNDLED, encoder=f"file:{encoder}".replace("%", "%25"))
    files = model.save_pretrained(tmp_path / "a")
    assert sorted(file.name for file in files)[2] == "encoder.safetensors"
    assert str(tmp_path).encode() not in (tmp_path / "a" / "model.safetensors").read_bytes()
    encoder.unlink()
    (tmp_path / "a").rename(tmp_path / "b%20")
    images = small.make_images(2, size=32)
    again = load(tmp_path / "b%20")
    assert torch.equal(again.encode(images), model.encode(images))
    again.save_pretrained(tmp_path / "b%20")  # over itself
    assert torch.equal(load(tmp_path / "b%20").encode(images), model.encode(images))
    again.push_to_hub("someone/model")
    fetched = load("someone/model")
    assert torch.equal(fetched.encode(images), model.encode(images))
    assert [name for name, _ in hub.calls[-2:]] == ["model.safetensors", "encoder.safetensors"]
    hub.calls.clear()
    load("someone/model")
    assert [name for name, _ in hub.calls] == ["model.safetensors"]


def test_solvers_of_weights_before_rounding_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file would refuse to draw in as many steps as they are for; rounding to what is stored already keeps them."""
    model = load("cifar10-simclr-trunk")
    fitted = model.config.fitted
    assert {each.nfe for each in fitted} >= {4, 10}
    model.save_pretrained(tmp_path / "fp16", precision="fp16")
    assert not caplog.records
    assert load(tmp_path / "fp16").config.fitted == fitted
    model.save_pretrained(tmp_path / "bf16", precision="bf16")
    assert "left out: the solvers fitted for 4, 5, 6, 8, 10 evaluations" in caplog.text
    again = load(tmp_path / "bf16")
    assert again.config.fitted == ()
    h = torch.randn(1, again.config.unet.representation_dim)
    assert again.sample(h, per=1, steps=4).isfinite().all()


def test_weights_beside_an_encoders_graph_go_along(tmp_path: Path) -> None:
    """PyTorch's exporter puts them into a second file, whatever their size."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, small.DIM)).eval()
    file = tmp_path / "mine" / "net.onnx"
    file.parent.mkdir()
    torch.onnx.export(network, (torch.zeros(2, 3, 8, 8),), file, dynamo=True, external_data=True, verbose=False)
    assert file.with_name("net.onnx.data").is_file()
    encoder = build(f"onnx:{file}?size=8&mean=0.5&std=0.5")
    model = small.quick_model()
    model._encoder = encoder.config
    model.save_pretrained(tmp_path / "out")
    shutil.rmtree(file.parent)
    images = small.make_images(2)
    assert torch.equal(load(tmp_path / "out").encode(images), encoder.encode(images))


def test_an_encoder_file_that_is_gone(tmp_path: Path) -> None:
    copied = tmp_path / "encoder-copy.safetensors"
    shutil.copyfile(ENCODER, copied)
    model = load(BUNDLED, encoder=build(f"file:{copied}"))
    copied.unlink()
    with pytest.raises(StorageError, match=r"encoder-copy\.safetensors: the encoder cannot be read"):
        model.save_pretrained(tmp_path / "out")


def test_a_file_outside_the_folder_is_never_taken_for_the_encoder(tmp_path: Path) -> None:
    """Whoever wrote a weights file does not choose files elsewhere by a relative name."""
    shutil.copyfile(ENCODER, tmp_path / "encoder.safetensors")
    model = load(BUNDLED)
    for name in ("../encoder.safetensors", "..", ".encoder"):
        config = dataclasses.replace(model.config, encoder=EncoderConfig(f"file:{name}", image_size=32, dim=192))
        save_model(tmp_path / "out", config, model.unet.state_dict())
        kept = load(tmp_path / "out").config.encoder
        assert kept is not None
        assert kept.source == f"file:{name}"


def test_push_and_fetch(hub: Hub) -> None:
    model = load(BUNDLED)
    address = model.push_to_hub(
        "someone/model", token="secret", private=True, precision="fp16", revision="next", commit_message="Hello"
    )
    assert address == "https://hub.example/someone/model/commit/1"
    assert hub.calls == [
        ("HfApi", {"token": "secret"}),
        ("create_repo", {"private": True, "exist_ok": True}),
        ("upload_folder", {"revision": "next", "create_pr": False, "commit_message": "Hello"}),
    ]
    sent = hub.root / "someone" / "model"
    assert sorted(file.name for file in sent.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert 'rcdm_fast.load("someone/model")' in (sent / "README.md").read_text()
    assert "secret" not in "".join(file.read_text() for file in sent.iterdir() if file.suffix != ".safetensors")
    hub.calls.clear()
    again = Model.from_pretrained("someone/model", revision="next", token="secret", device="cpu", engine="eager")
    assert same(model, again)
    assert hub.calls == [("model.safetensors", {"revision": "next", "token": "secret", "local_files_only": False})]
    assert same(model, load("someone/model"))


def test_what_is_said_when_a_model_is_pushed_arrives(hub: Hub) -> None:
    small.model().push_to_hub("someone/model", license="cc-by-4.0", create_pr=True)
    assert ("upload_folder", {"revision": None, "create_pr": True, "commit_message": "Upload an rcdm_fast model"}) == (
        hub.calls[-1]
    )
    assert ModelCard.load(hub.root / "someone" / "model" / "README.md").data.license == "cc-by-4.0"


@pytest.mark.parametrize(
    "options",
    [
        {"revision": "next"},
        {"token": "secret"},
        {"token": False},  # never the stored one
        {"cache_dir": "elsewhere"},
        {"force_download": True},
        {"local_files_only": True},
    ],
    ids=str,
)
def test_model_and_encoder_are_fetched_as_is_asked(
    options: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.quick_model(representation_dim=0).save_pretrained(hub.root / "org" / "name")
    (hub.root / "org" / "name" / "its-encoder.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(hub_module, "_encoder_file", lambda path: "its-encoder.safetensors")
    Model.from_pretrained("org/name", device="cpu", engine="eager", **options)
    asked = {"local_files_only": False, **options}
    assert hub.calls == [("model.safetensors", asked), ("its-encoder.safetensors", asked)]
    hub.calls.clear()
    Model.from_pretrained("org/name", device="cpu", engine="eager", **options)
    again = ["its-encoder.safetensors"] if "force_download" in options else []
    assert [name for name, _ in hub.calls] == ["model.safetensors", *again]


def test_no_token_is_no_demand_where_there_is_no_hub(tmp_path: Path) -> None:
    small.quick_model(representation_dim=0).save_pretrained(tmp_path / "m")
    Model.from_pretrained(tmp_path / "m", device="cpu", engine="eager", token=False)
    with pytest.raises(ConfigError, match="token are for hub ids"):
        Model.from_pretrained(tmp_path / "m", device="cpu", engine="eager", token="secret")


def test_a_folder_names_the_encoder_that_is_used(tmp_path: Path) -> None:
    """Not the one that the model's file named before."""
    mine = small.encoder()
    Model.from_network(small.network(), small.SCHEDULE).save_pretrained(tmp_path / "before")
    rcdm_fast.export(load(tmp_path / "before", encoder=mine), "hub", tmp_path / "after")
    assert load(tmp_path / "before").config.encoder is None
    assert load(tmp_path / "after").config.encoder == mine.config


def test_a_card_says_mean_and_std_of_the_encoders_images(tmp_path: Path) -> None:
    convention = EncoderConfig("module", image_size=8, mean=(0.1, 0.2, 0.3), std=(0.25, 0.25, 0.25), dim=small.DIM)
    model = Model.from_network(small.network(), small.SCHEDULE, build(small.MeanColor(), config=convention))
    model.save_pretrained(tmp_path)
    assert "images of 8 px, mean 0.1, 0.2, 0.3, std 0.25." in (tmp_path / "README.md").read_text()


def test_from_pretrained_takes_names_and_says_what_does_not_fit(tmp_path: Path, hub: Hub) -> None:
    assert same(Model.from_pretrained(BUNDLED, device="cpu", engine="eager"), load(BUNDLED))
    with pytest.raises(ConfigError, match="revision are for hub ids"):
        Model.from_pretrained(BUNDLED, revision="main")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        Model.from_pretrained(tmp_path / "absent")
    with pytest.raises(HubError, match=r"someone/else: no such file, and no model\.safetensors"):
        Model.from_pretrained("someone/else")
    with pytest.raises(CheckpointError, match="someone/else"):
        load("someone/else")
    assert [name for name, _ in hub.calls] == ["model.safetensors", "model.safetensors"]


def test_what_push_to_hub_refuses(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
    with pytest.raises(HubError, match="'no-id' is no hub id"):
        model.push_to_hub("no-id")
    with pytest.raises(ConfigError, match="int8"):
        model.push_to_hub("someone/model", precision="int8")
    hub.refuses = "401 Unauthorized"
    with pytest.raises(HubError, match=r"someone/model: not uploaded \(OSError: 401 Unauthorized\)$"):
        model.push_to_hub("someone/model")
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    with pytest.raises(HubError, match="RCDM_FAST_OFFLINE"):
        model.push_to_hub("someone/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r'pip install "\.\[hub\]"'):
        model.push_to_hub("someone/model")
    assert not hub.root.exists()


def test_saving_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    with pytest.raises(StorageError):
        small.model().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "keep"


@pytest.mark.parametrize(("kind", "start"), [("sha256", b""), ("sha1", b"blob %d\0")])
def test_a_damaged_file_in_the_hubs_cache(tmp_path: Path, hub: Hub, kind: str, start: bytes) -> None:
    """The hub's cache calls files by their digest: LFS's SHA-256, or git's SHA-1 of small ones."""
    small.model().save_pretrained(tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    digest = hashlib.new(kind, (start % len(content) if start else b"") + content).hexdigest()
    folder = hub.root / ".cache" / "org" / "name"
    (folder / "blobs").mkdir(parents=True)
    blob = folder / "blobs" / digest
    blob.write_bytes(content)
    (folder / "model.safetensors").symlink_to(blob)
    hub_module._check(folder / "model.safetensors")
    damaged = bytearray(content)
    damaged[-9] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(HubError, match=f"model.safetensors: damaged .*; delete {blob}"):
        hub_module._check(folder / "model.safetensors")


def test_both_files_are_checked_whenever_they_are_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.root / "org" / "name"
    small.model().save_pretrained(folder)
    (folder / "its-encoder.safetensors").write_bytes(b"weights")
    checked: list[str] = []
    monkeypatch.setattr(hub_module, "_encoder_file", lambda path: "its-encoder.safetensors")
    monkeypatch.setattr(hub_module, "_check", lambda path: checked.append(path.name))
    for fetched in (["model.safetensors", "its-encoder.safetensors"], ["model.safetensors"]):
        hub.calls.clear()
        hub_module.fetch("org/name")
        assert [name for name, _ in hub.calls] == fetched
    assert checked == ["model.safetensors", "its-encoder.safetensors"] * 2


def test_a_digest_is_asked_of_what_the_hub_has(hub: Hub) -> None:
    load(BUNDLED).push_to_hub("someone/model", precision="fp16")
    digest = hashlib.sha256((hub.root / "someone" / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert load("someone/model", sha256=digest).config.name == BUNDLED
    with pytest.raises(CheckpointError, match="its sha256 is"):
        load("someone/model", sha256="0" * 64)
