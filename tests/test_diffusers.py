"""The diffusers folder: same eps, same images with its scheduler, read back bit for bit; the rest is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import Model
from rcdm_fast.config import ConfigError, EncoderConfig, ScheduleConfig
from rcdm_fast.exporters import diffusers as exported
from rcdm_fast.exporters.onnx import ExportError
from rcdm_fast.models import diffusers_folder, diffusers_unet, zoo
from rcdm_fast.models.diffusers_pipeline import RcdmPipeline, build_unet, load_unet
from rcdm_fast.models.flags import configs_from_flags
from rcdm_fast.models.infer_flags import RELEASE_FLAGS
from rcdm_fast.models.unet import AttentionBlock, UNet
from rcdm_fast.storage import StorageError
from tests import small
from tests.reference_weights import CASES, flags_path, state_dict
from tests.tolerances import FORWARD_L2

pytest.importorskip("diffusers", reason="diffusers is not installed")

LARGEST = "cifar10-simclr-wide"  # of the bundled models
BLOCKS = {"resblock_updown": True, "image_size": 16, "channel_mult": (1, 2, 2), "attention_resolutions": (8, 4)}
PLAIN: dict[str, dict[str, Any]] = {
    "convolutions resample": {},
    "blocks resample": {**BLOCKS, "num_res_blocks": 2},
    "added film": {"use_scale_shift_norm": False},
    "added film, blocks resample": {**BLOCKS, "use_scale_shift_norm": False},
    "new order, no variance": {"use_new_attention_order": True, "learn_sigma": False, "num_heads": 2},
    "labels": {"representation_dim": 0, "num_classes": 3},
    "unconditional": {"representation_dim": 0},
    "only the middle attends": {"attention_resolutions": ()},
}
HEADS: dict[str, dict[str, Any]] = {
    "published": {**BLOCKS, "attention_resolutions": (16, 8, 4), "channel_mult": (1, 2, 3)},
    "halves differ": {"num_heads_upsample": 8},
}


def _condition(model: Model, count: int) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Representations or labels, and how the network takes them."""
    unet = model.config.unet
    if unet.representation_dim:
        h = torch.randn(count, unet.representation_dim)
        return h, {"representation": h}
    if unet.num_classes:
        label = torch.arange(count) % unet.num_classes
        return label, {"label": label}
    return None, {}


def _error_of_eps(model: Model, folder: Path, unet: Any) -> float:
    size = model.image_size
    condition, named = _condition(model, 3)
    x, t = torch.randn(3, 3, size, size), torch.tensor([0, 500, 999])
    with torch.inference_mode():
        got = unet(x, t, class_labels=RcdmPipeline.load(folder).class_labels(condition)).sample
    want = model.network(x, t, **named)
    return float((got - want).norm() / want.norm())


def _same_weights(model: Model, folder: Path) -> None:
    again = rcdm_fast.load(folder, device="cpu", engine="eager")
    assert again.config == model.config
    tensors = again.unet.state_dict()
    for name, value in model.unet.state_dict().items():
        assert torch.equal(tensors[name], value), name


@pytest.mark.parametrize("name", PLAIN)
def test_what_diffusers_loads_by_itself(name: str, tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    model = small.model(**PLAIN[name])
    files = rcdm_fast.export(model, "diffusers", tmp_path / "out")
    assert all(file.is_file() for file in files)
    unet = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    assert _error_of_eps(model, tmp_path / "out", unet) <= FORWARD_L2
    _same_weights(model, tmp_path / "out")


@pytest.mark.parametrize("name", HEADS)
def test_attention_heads_of_several_widths(name: str, tmp_path: Path) -> None:
    """diffusers alone must refuse the folder rather than compute something else."""
    from diffusers import UNet2DModel

    model = small.model(**HEADS[name])
    rcdm_fast.export(model, "diffusers", tmp_path / "out")
    with pytest.raises(TypeError):
        UNet2DModel.from_pretrained(tmp_path / "out" / "unet", low_cpu_mem_usage=False)
    with pytest.raises(TypeError):
        UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    assert "load_unet" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert _error_of_eps(model, tmp_path / "out", load_unet(tmp_path / "out")) <= FORWARD_L2
    _same_weights(model, tmp_path / "out")


def test_the_published_structure() -> None:
    """128 px, heads of 128, 192 and 256: names and shapes of all layers, without memory."""
    config, _ = configs_from_flags({**RELEASE_FLAGS, "feat_cond": True, "ssl_dim": 2048})
    assert diffusers_unet.reasons_unavailable(config) == []
    settings = diffusers_unet.settings(config)
    assert settings["attention_head_dim"]["down"][2:] == [128, 192, 256]
    with torch.device("meta"):
        network = UNet(config)
        pairs = list(diffusers_unet._pairs(build_unet(settings), network))
    for left, layer in pairs:
        right = layer.qkv if isinstance(layer, AttentionBlock) else layer
        own = [left.to_q, left.to_k, left.to_v] if isinstance(layer, AttentionBlock) else [left]
        count = sum(value.numel() for part in own for value in part.parameters())
        assert count == sum(value.numel() for value in right.parameters())
    given = {id(value) for _, layer in pairs for value in layer.parameters()}
    assert {name for name, value in network.named_parameters() if id(value) not in given} == {
        "ssl_emb.weight",
        "ssl_emb.bias",
    }


def _largest_difference(model: Model, folder: Path, steps: int) -> float:
    rcdm_fast.export(model, "diffusers", folder)
    h, named = _condition(model, 2)
    noise = torch.randn(2, 3, model.image_size, model.image_size)
    want = model.sample(named["representation"], per=1, steps=f"ddim{steps}", noise=noise[:, None])[:, 0]
    got = RcdmPipeline.load(folder)(h, steps=steps, noise=noise)
    return float((got - want).abs().max())


@pytest.mark.parametrize(
    "name",
    [
        *(each for each in zoo.list_bundled() if each not in ("shapes-oracle", "cifar10-simclr-map", LARGEST)),
        pytest.param(LARGEST, marks=pytest.mark.long),
        *CASES,
    ],
)
def test_the_same_images(tmp_path: Path, name: str) -> None:
    source: Any = name
    flags = None
    if name in CASES:
        source, flags = tmp_path / "checkpoint.pt", flags_path(name)
        torch.save(state_dict(name), source)
    model = rcdm_fast.load(source, flags, device="cpu", engine="eager")
    assert _largest_difference(model, tmp_path / "out", 5) < 1e-3
    _same_weights(model, tmp_path / "out")


def test_hidden_layers_from_h_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="representation_hidden"):
        rcdm_fast.export(rcdm_fast.load("shapes-oracle", device="cpu", engine="eager"), "diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_number_of_steps(tmp_path: Path) -> None:
    schedule = ScheduleConfig(500, variance="learned_range")
    model = Model.from_network(small.network(), schedule)
    assert _largest_difference(model, tmp_path / "out", 25) < 1e-3


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_another_prediction(tmp_path: Path, prediction: Any) -> None:
    model = Model.from_network(small.network(), ScheduleConfig(prediction=prediction, variance="learned_range"))
    assert _largest_difference(model, tmp_path / "out", 5) < 1e-3


def test_an_unconditional_pipeline_is_told_how_many(tmp_path: Path) -> None:
    rcdm_fast.export(small.quick_model(representation_dim=0), "diffusers", tmp_path / "out")
    pipeline = RcdmPipeline.load(tmp_path / "out")
    assert [len(pipeline(steps=1, **asked)) for asked in ({}, {"count": 3}, {"noise": torch.zeros(2, 3, 8, 8)})] == [
        1,
        3,
        2,
    ]


def test_the_folder_needs_no_rcdm_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where there is none: not one of its modules can be imported."""
    model = small.model()
    rcdm_fast.export(model, "diffusers", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0].replace("steps=50", "steps=2")
    for module in [name for name in sys.modules if name.partition(".")[0] == "rcdm_fast"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "rcdm_pipeline", None)  # so that the folder's is forgotten afterwards
    del sys.modules["rcdm_pipeline"]
    monkeypatch.syspath_prepend(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    exec(f"{example}\nprint(list(images.shape))", {})
    assert sys.modules["rcdm_pipeline"].__file__ == str(tmp_path / "out" / "rcdm_pipeline.py")
    assert capsys.readouterr().out == "[8, 3, 8, 8]\n"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conv_resample": False}, "no average pooling"),
        ({"num_classes": 3}, "one class embedding"),
        ({"channel_mult": (2, 4)}, "sinusoids"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be diffusers' UNet2DModel.*{reason}"):
        rcdm_fast.export(small.model(**changes), "diffusers", tmp_path / "out")
    rescaled = Model.from_network(small.network(), ScheduleConfig(500, "linear", "eps", "learned_range", True))
    with pytest.raises(ConfigError, match="rescale_timesteps"):
        rcdm_fast.export(rescaled, "diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_over_an_export_of_representations(tmp_path: Path) -> None:
    """Their embedding stayed behind, and was applied to labels."""
    rcdm_fast.export(small.quick_model(), "diffusers", tmp_path / "out")
    model = small.quick_model(representation_dim=0, num_classes=3)
    rcdm_fast.export(model, "diffusers", tmp_path / "out")
    assert _error_of_eps(model, tmp_path / "out", load_unet(tmp_path / "out")) <= FORWARD_L2


@pytest.mark.parametrize("to", ["diffusers", "hub"])
def test_an_encoder_that_is_not_exported_is_not_built(to: str, tmp_path: Path) -> None:
    """It may be a download, or need packages that are not there."""
    model = small.quick_model()
    model._encoder = EncoderConfig("timm:no_such_network", image_size=8, dim=small.DIM)
    rcdm_fast.export(model, to, tmp_path / "out")
    assert model._encoder == EncoderConfig("timm:no_such_network", image_size=8, dim=small.DIM)
    if to == "hub":
        assert rcdm_fast.load(tmp_path / "out", device="cpu", engine="eager").config.encoder == model._encoder


def test_wrong_numbers_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers_unet, "_split_qkv", lambda *_: None)
    with pytest.raises(ExportError, match="another eps"):
        rcdm_fast.export(small.model(), "diffusers", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="no earlier export"):
        rcdm_fast.export(model, "diffusers", tmp_path)
    out = tmp_path / "out"
    rcdm_fast.export(model, "diffusers", out)
    rcdm_fast.export(model, "diffusers", out)  # over an earlier one
    with pytest.raises(ValueError, match="describes itself"):
        rcdm_fast.load(out, {"image_size": 8})
    with pytest.raises(StorageError, match=r"mine\.txt: cannot be written \(Not a directory\)"):
        rcdm_fast.export(model, "diffusers", tmp_path / "mine.txt")
    settings = json.loads((out / "unet" / "config.json").read_text())
    for key, value in (("layers_per_block", 2), ("layers_per_block", 10**9), ("block_out_channels", [2**40] * 9)):
        (out / "unet" / "config.json").write_text(json.dumps({**settings, key: value}))
        with pytest.raises(ValueError, match=f"no complete diffusers export .*of another network .*: {key}"):
            rcdm_fast.load(out)
    (out / "unet" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="no complete diffusers export"):
        rcdm_fast.load(out)
    (out / "unet" / "config.json").write_text(json.dumps(settings))
    weights = out / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no complete diffusers export"):
        rcdm_fast.load(out)
    for reads_or_writes in (diffusers_folder, exported):
        monkeypatch.setattr(reads_or_writes, "missing_packages", lambda: ["diffusers"])
    with pytest.raises(ValueError, match="needs diffusers"):
        rcdm_fast.load(out)
    with pytest.raises(ConfigError, match="not installed: diffusers"):
        rcdm_fast.export(model, "diffusers", tmp_path / "other")
