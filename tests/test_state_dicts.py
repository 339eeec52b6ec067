"""Networks inside what training scripts save, by what the network calls its tensors."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from rcdm_fast import state_dicts
from rcdm_fast.config import ConfigError
from rcdm_fast.encoders import EncoderError, build

State = dict[str, Tensor]


def network(seed: int) -> Any:
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=0).eval()


def below(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


GOOD, OTHER = network(1).state_dict(), network(2).state_dict()
HEAD = {"head.mlp.0.weight": torch.ones(2, 3), "head.last_layer.weight_g": torch.ones(3)}
SAVED: dict[str, Any] = {
    "bare": GOOD,
    "a classifier on top": GOOD | {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)},
    "DataParallel": below("module.", GOOD),
    "torch.compile": below("_orig_mod.", GOOD),
    "both": below("module._orig_mod.", GOOD),
    "compiled blocks": {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in GOOD.items()},
    "FSDP": {f"_fsdp_wrapped_module.{name}": tensor for name, tensor in GOOD.items()},
    "Lightning": {"state_dict": below("model.backbone.", GOOD) | {"model.loss.weight": torch.ones(3)}, "epoch": 3},
    "VICReg": {"model": below("module.backbone.", GOOD) | {"module.projector.0.weight": torch.ones(3, 3)}},
    "MoCo": {
        "state_dict": below("module.encoder_q.", GOOD)
        | below("module.encoder_q.", {"fc.0.weight": torch.ones(2, 2), "fc.2.weight": torch.ones(2, 2)})
        | below("module.encoder_k.", OTHER)
        | {"module.queue": torch.ones(2, 5)},
        "arch": "vit",
    },
    "DINO": {
        "student": below("module.backbone.", OTHER) | below("module.", HEAD),
        "teacher": below("backbone.", GOOD) | HEAD,
        "args": argparse.Namespace(arch="vit_small"),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    },
    "I-JEPA": {"encoder": below("module.", OTHER), "target_encoder": below("module.", GOOD), "predictor": {}},
    "BYOL": below("online_network.", GOOD) | below("target_network.", OTHER),
    "averaged": {"state_dict": OTHER, "state_dict_ema": GOOD},
    "momentum": below("backbone.", GOOD) | below("backbone_momentum.", OTHER),
    "AveragedModel": {"n_averaged": torch.tensor(7), **below("module.", GOOD)},
}


@pytest.mark.parametrize("method", SAVED)
def test_encoders_of_training_scripts(method: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.pt"
    torch.save(SAVED[method], path)
    encoder = build(f"timm:test_vit?weights={path}")
    state = encoder.network.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(state[name], tensor) for name, tensor in GOOD.items())


def test_a_choice_can_be_made_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "saved.pt"
    torch.save(SAVED["DINO"], path)
    with caplog.at_level(logging.WARNING):
        build(f"timm:test_vit?weights={path}")
    assert "key=teacher, prefix=backbone. is taken (there are also key=student, prefix=module.backbone.)" in caplog.text
    student = build(f"timm:test_vit?weights={path}&key=student")
    assert torch.equal(student.network.state_dict()["cls_token"], OTHER["cls_token"])  # type: ignore[attr-defined]
    assert build(student.config).config.source == student.config.source
    torch.save(SAVED["MoCo"], path)
    slow = build(f"timm:test_vit?weights={path}&prefix=module.encoder_k.")
    assert torch.equal(slow.network.state_dict()["cls_token"], OTHER["cls_token"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("saved", "options", "message"),
    [
        (
            {"a": GOOD, "b": OTHER},
            "",
            "several copies of this network: key=a, prefix=; key=b, prefix=.*key= and prefix=",
        ),
        ({"net": {"conv.weight": torch.ones(3)}}, "", r"no weights of this network; key=net has 1 tensors below conv"),
        ({"net": GOOD}, "&key=model", "nothing named key=model holds tensors; key=net has"),
        (below("a.", GOOD), "&prefix=b.", "no weights of this network"),
        ({k: v for k, v in GOOD.items() if k != "cls_token"}, "", "Missing key.*cls_token"),
        (GOOD | {"blocks.9.norm1.weight": torch.ones(64)}, "", r"Unexpected key.*blocks\.9"),  # a deeper network
        (
            GOOD | {"blocks.0.attn.qkv.weight": GOOD["blocks.0.attn.qkv.weight"].T.contiguous()},
            "",
            r"size mismatch for blocks\.0\.attn\.qkv\.weight",
        ),
        (GOOD | {"reg_token": torch.ones(1, 4, 64)}, "", "Unexpected key.*reg_token"),
        ({name: GOOD[name] for name in sorted(GOOD)[::3]}, "", "no weights of this network"),  # less than half of it
        ({"epoch": 3}, "", "no state dict"),
        ([GOOD], "", "no state dict"),
    ],
)
def test_what_is_not_that_network(saved: Any, options: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.pt"
    torch.save(saved, path)
    with pytest.raises(EncoderError, match=message):
        build(f"timm:test_vit?weights={path}{options}")


def test_a_place_without_a_file() -> None:
    with pytest.raises(ConfigError, match="give that too"):
        build("timm:test_vit?key=teacher")


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_networks_without_their_classifier(family: str, tmp_path: Path) -> None:
    module: Any = timm.create_model("resnet18", num_classes=0)
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": below("module.encoder.", state)}, tmp_path / "saved.pt")
    encoder = build(f"{family}:resnet18?image_size=32&weights={tmp_path}/saved.pt")
    assert torch.equal(encoder.network.state_dict()["conv1.weight"], state["conv1.weight"])  # type: ignore[attr-defined]


def test_deep_and_foreign_dictionaries() -> None:
    deep: Any = {"weight": torch.ones(1)}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(state_dicts.NotFound):
        state_dicts.find(deep, ["weight"])
    for saved in (None, 3, "text", {}, {3: torch.ones(1)}, {"a": [torch.ones(1)]}):
        with pytest.raises(state_dicts.NotFound):
            state_dicts.find(saved, ["weight"])


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"]
)
def test_names_of_wrappers_do_not_count_wherever_they_stand(wrapper: str) -> None:
    saved = {f"net.{wrapper}.a.weight": torch.ones(1), f"{wrapper}.net.b.{wrapper}.bias": torch.ones(1)}
    found = state_dicts.find(saved, ["a.weight", "b.bias"])
    assert (found.prefix, sorted(found.state)) == ("net.", ["a.weight", "b.bias"])


@pytest.mark.parametrize("where", ["key", "prefix"])
@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("target_encoder", "encoder"),
        ("Teacher", "net"),
        ("model_EMA", "model"),
        ("ema", "online"),
        ("teacher", "encoder_q"),
        ("encoder_q", "encoder_k"),
        ("encoder_q", "net"),
        ("online", "net"),
        ("online", "target"),
        ("net", "encoder_k"),
        ("net", "momentum_net"),
        ("net", "student"),
        ("net", "target"),
    ],
)
def test_averages_come_before_what_was_trained_and_that_before_the_slow_one(taken: str, left: str, where: str) -> None:
    for names in ((taken, left), (left, taken)):
        copies: Any = {name: {"weight": torch.full((1,), float(name == taken))} for name in names}
        saved = copies if where == "key" else {f"{name}.weight": copy["weight"] for name, copy in copies.items()}
        found = state_dicts.find(saved, ["weight"])
        assert float(found.state["weight"]) == 1
        assert taken in (found.key, found.prefix.removesuffix("."))


def test_what_only_counts_batches_need_not_be_there() -> None:
    names = ["a.weight", *(f"{norm}.num_batches_tracked" for norm in "bcd")]
    assert state_dicts.find({"net.a.weight": torch.ones(1)}, names).prefix == "net."


def test_a_prefix_is_found_where_the_first_names_are_missing() -> None:
    found = state_dicts.find({"net.b": torch.ones(1), "net.c": torch.ones(1)}, ["a", "b", "c"])
    assert (found.prefix, sorted(found.state)) == ("net.", ["b", "c"])


def test_a_prefix_counts_where_no_names_are_known() -> None:
    saved = {"net.a": torch.ones(1), "net.b": torch.ones(1), "head.c": torch.ones(1)}
    assert sorted(state_dicts.find(saved, (), prefix="net.").state) == ["a", "b"]
    assert sorted(state_dicts.find(saved, ()).state) == sorted(saved)


def test_what_a_file_holds_is_told_in_short() -> None:
    saved = {f"place{number}": {"conv.weight": torch.ones(1)} for number in range(8)}
    with pytest.raises(state_dicts.NotFound) as raised:
        state_dicts.find(saved, ["weights"])
    assert [f"key=place{number} " in str(raised.value) for number in range(8)] == [True] * 6 + [False] * 2
    assert str(raised.value).endswith(" and 2 places more")
