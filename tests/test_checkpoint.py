"""Every way in for weights, and every way in which they can be wrong."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.config import ConfigError, EncoderConfig, to_json
from rcdm_fast.models import checkpoint
from rcdm_fast.models.checkpoint import CheckpointError, load_model, save_model
from rcdm_fast.models.flags import configs_from_flags
from rcdm_fast.models.unet import UNet
from tests import checkpoint_cases, reference_weights
from tests.checkpoint_cases import CONFIG, FLAGS, Tensors, equal


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_cases.own_folders(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return checkpoint_cases.make_weights()


def changed(weights: Tensors, **tensors: Tensor | None) -> Tensors:
    """The weights with some replaced, added or (None) removed; two underscores stand for a dot."""
    new = weights | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in new.items() if tensor is not None}


def test_native_round_trip(tmp_path: Path, weights: Tensors) -> None:
    path = save_model(tmp_path / "small.safetensors", CONFIG, weights)
    assert path == tmp_path / "small.safetensors"
    for source in (path, str(path)):
        config, tensors = load_model(source)
        assert config == CONFIG
        assert equal(tensors, weights)
    assert json.loads(storage.read_metadata(path)["rcdm_fast.model"])["format_version"] == 1


def test_native_folder(tmp_path: Path, weights: Tensors) -> None:
    assert save_model(tmp_path / "runs" / "a", CONFIG, weights) == tmp_path / "runs" / "a" / "model.safetensors"
    assert equal(load_model(tmp_path / "runs" / "a")[1], weights)
    with pytest.raises(CheckpointError, match=r"runs: no model.safetensors in this folder \(found a\)"):
        load_model(tmp_path / "runs")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_as_float32(tmp_path: Path, weights: Tensors, dtype: torch.dtype) -> None:
    path = save_model(tmp_path / "small.safetensors", CONFIG, weights, dtype)
    assert path.stat().st_size < 0.55 * sum(4 * tensor.numel() for tensor in weights.values())
    tensors = load_model(path)[1]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert equal(tensors, {name: tensor.to(dtype).float() for name, tensor in weights.items()})


def test_loaded_tensors_fit_the_network_strictly(tmp_path: Path, weights: Tensors) -> None:
    config, tensors = load_model(save_model(tmp_path / "small.safetensors", CONFIG, weights))
    UNet(config.unet).load_state_dict(tensors, strict=True)


@pytest.mark.parametrize("case", reference_weights.CASES)
def test_published_checkpoint_with_flags(tmp_path: Path, case: str) -> None:
    state = reference_weights.state_dict(case)
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)
    expected = configs_from_flags(reference_weights.flags_path(case))
    flags = json.loads(reference_weights.flags_path(case).read_text())
    for given in (flags, reference_weights.flags_path(case), str(reference_weights.flags_path(case))):
        config, tensors = load_model(path, given)
        assert (config.unet, config.schedule) == expected
        assert config.encoder is None
        assert config.name == "checkpoint"
        assert equal(tensors, state)


def test_old_file_format_and_half_precision(tmp_path: Path, weights: Tensors) -> None:
    path = tmp_path / "old.pth"
    torch.save(
        {name: torch.nn.Parameter(tensor.half()) for name, tensor in weights.items()},
        path,
        _use_new_zipfile_serialization=False,
    )
    tensors = load_model(path, FLAGS)[1]
    assert equal(tensors, {name: tensor.half().float() for name, tensor in weights.items()})
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_bare_weights_in_safetensors(tmp_path: Path, weights: Tensors) -> None:
    safetensors.torch.save_file(weights, tmp_path / "bare.safetensors")
    config, tensors = load_model(tmp_path / "bare.safetensors", FLAGS)
    assert config.unet == CONFIG.unet
    assert equal(tensors, weights)


WRAPPED: dict[str, Callable[[Tensors], Any]] = {
    "compiled": lambda w: {f"_orig_mod.{name}": tensor for name, tensor in w.items()},
    "compiled in DataParallel": lambda w: {f"module._orig_mod.{name}": tensor for name, tensor in w.items()},
    "a script's dictionary": lambda w: {"state_dict": w, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "Lightning": lambda w: {
        "state_dict": {f"model.{name}": tensor for name, tensor in w.items()} | {"encoder.conv.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    },
    "averaged beside": lambda w: {"model": {name: tensor + 1 for name, tensor in w.items()}, "ema": w, "step": 5},
    "AveragedModel": lambda w: {"n_averaged": torch.tensor(3)} | {f"module.{name}": t for name, t in w.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_inside_what_training_scripts_save(tmp_path: Path, weights: Tensors, kind: str) -> None:
    torch.save(WRAPPED[kind](weights), tmp_path / "a.pt")
    assert equal(load_model(tmp_path / "a.pt", FLAGS)[1], weights)


def test_copies_that_nothing_tells_apart_are_named(tmp_path: Path, weights: Tensors) -> None:
    torch.save({"first": weights, "second": weights}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: .*several copies.*key=first.*key=second.*save the one"):
        load_model(tmp_path / "a.pt", FLAGS)


def test_tensors_without_plain_numbers(tmp_path: Path, weights: Tensors) -> None:
    for tensor in (torch.zeros(6).to_sparse(), torch.zeros(6, device="meta")):
        torch.save(changed(weights, out__2__bias=tensor), tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt: .*not plain numbers: out\.2\.bias"):
            load_model(tmp_path / "a.pt", FLAGS)


@pytest.mark.parametrize("name", ["~nosuchuser/a.pt", "a" * 3000, "a\0b"])
def test_names_that_are_none(name: str) -> None:
    for source in (name, Path(name)):
        with pytest.raises(CheckpointError):
            load_model(source)


def test_flags_are_completed_from_the_shapes_and_stated(
    tmp_path: Path, weights: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(weights, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO):
        config, _ = load_model(tmp_path / "a.pt", {"image_size": 16, "noise_schedule": "cosine"})
    assert (config.unet, config.schedule) == (CONFIG.unet, CONFIG.schedule)
    assert "recognized from the tensors: num_channels 32, channel_mult 1,2" in caplog.text
    assert "assumed (published defaults): num_heads 4" in caplog.text
    stated = config.info["flags_recognized"]
    assert stated["from_shapes"]["ssl_dim"] == 5
    assert stated["given"] == {"image_size": 16, "noise_schedule": "cosine"}
    assert stated["assumed"]["num_heads"] == 4
    again, _ = load_model(save_model(tmp_path / "native.safetensors", config, weights))
    assert again == config  # what is stated survives in the file


def test_without_flags_the_error_lists_them(tmp_path: Path, weights: Tensors) -> None:
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: .*channel_mult 1,2.*cannot tell image_size") as raised:
        load_model(tmp_path / "a.pt")
    assert "flags.json" not in str(raised.value)
    (tmp_path / "flags.json").write_text(json.dumps(FLAGS))
    with pytest.raises(CheckpointError, match=r"flags\.json' lies beside it"):
        load_model(tmp_path / "a.pt")


def test_distributed_prefix_is_dropped(tmp_path: Path, weights: Tensors, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO):
        assert equal(load_model(tmp_path / "a.pt", FLAGS)[1], weights)
    assert "DistributedDataParallel" in caplog.text


def test_wrong_flags(tmp_path: Path, weights: Tensors) -> None:
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="num_channels is given as 64, the tensors say 32; ssl_dim"):
        load_model(tmp_path / "a.pt", FLAGS | {"num_channels": 64, "ssl_dim": 512})
    with pytest.raises(CheckpointError, match="do not split into 5 heads"):
        load_model(tmp_path / "a.pt", FLAGS | {"num_heads": 5})
    with pytest.raises(ConfigError, match="did you mean num_heads"):
        load_model(tmp_path / "a.pt", {"num_head": 4})
    with pytest.raises(ConfigError, match="no such flags file"):
        load_model(tmp_path / "a.pt", tmp_path / "nothing.json")
    native = save_model(tmp_path / "a.safetensors", CONFIG, weights)
    with pytest.raises(CheckpointError, match="describes itself"):
        load_model(native, FLAGS)


Change = Callable[[Tensors], Tensors]

BAD_TENSORS: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda w: changed(w, middle_block__1__norm__bias=None),
        "missing: middle_block.1.norm.bias",
    ),
    "unexpected": (lambda w: changed(w, extra=torch.zeros(1)), "unexpected: extra"),
    "shape": (
        lambda w: changed(w, middle_block__1__norm__bias=torch.zeros(7)),
        r"wrong shape: middle_block.1.norm.bias \[7\] instead of \[64\]",
    ),
    "transposed": (
        lambda w: changed(w, middle_block__1__qkv__weight=w["middle_block.1.qkv.weight"].transpose(0, 1).contiguous()),
        r"wrong shape: middle_block.1.qkv.weight \[64, 192, 1\] instead of \[192, 64, 1\]",
    ),
    "flat": (
        lambda w: changed(w, middle_block__1__qkv__weight=w["middle_block.1.qkv.weight"].flatten()),
        r"wrong shape: middle_block.1.qkv.weight \[12288\] instead of \[192, 64, 1\]",
    ),
    "integers": (
        lambda w: changed(w, out__2__bias=torch.zeros(6, dtype=torch.int64)),
        "not floating-point: out.2.bias",
    ),
    "nan": (
        lambda w: changed(w, out__2__bias=torch.tensor([0, 0, float("nan"), 0, 0, 0])),
        r"out.2.bias holds NaN or infinite weights \(1 of 6\)",
    ),
    "infinite": (lambda w: changed(w, out__0__bias=torch.full((32,), torch.inf)), "out.0.bias holds NaN or infinite"),
    "many": (
        lambda w: {k: v for k, v in w.items() if "emb_layers" not in k or k.startswith("input_blocks.1")},
        r"missing: .*, .*, .* and \d+ more",
    ),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensors(tmp_path: Path, weights: Tensors, kind: str) -> None:
    change, message = BAD_TENSORS[kind]
    bad = change(weights)
    torch.save(bad, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=rf"bad\.pt: .*{message}"):
        load_model(tmp_path / "bad.pt", FLAGS)
    safetensors.torch.save_file(bad, tmp_path / "bad.safetensors", metadata={"rcdm_fast.model": to_json(CONFIG)})
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: .*{message}"):
        load_model(tmp_path / "bad.safetensors")


def test_of_many_tensors_three_are_named_and_the_others_counted(tmp_path: Path, weights: Tensors) -> None:
    lacking = [name for name in weights if "emb_layers" in name and not name.startswith("input_blocks.1.")]
    torch.save({name: tensor for name, tensor in weights.items() if name not in lacking}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=rf"missing: \S+, \S+, \S+ and {len(lacking) - 3} more$"):
        load_model(tmp_path / "bad.pt", FLAGS)


def test_a_network_far_larger_than_its_file_is_not_built_to_say_so(
    tmp_path: Path, weights: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = dataclasses.replace(CONFIG, unet=dataclasses.replace(CONFIG.unet, num_channels=1024, num_res_blocks=4))
    path = tmp_path / "huge.safetensors"
    safetensors.torch.save_file(weights, path, metadata={"rcdm_fast.model": to_json(huge)})
    monkeypatch.setattr(checkpoint, "UNet", lambda _: pytest.fail("was built"))
    held = sum(tensor.numel() for tensor in weights.values())
    with pytest.raises(CheckpointError, match=rf"network of {huge.unet.parameters} parameters, the file holds {held}$"):
        load_model(path)


def test_nothing_unloadable_is_written(tmp_path: Path, weights: Tensors) -> None:
    path = tmp_path / "small.safetensors"
    with pytest.raises(CheckpointError, match="unexpected: extra"):
        save_model(path, CONFIG, changed(weights, extra=torch.zeros(1)))
    turned = changed(weights, middle_block__1__qkv__weight=weights["middle_block.1.qkv.weight"].transpose(0, 1))
    with pytest.raises(CheckpointError, match=r"wrong shape: middle_block\.1\.qkv\.weight"):
        save_model(path, CONFIG, turned)
    huge = changed(weights, out__2__bias=torch.full((6,), 1e6))
    with pytest.raises(CheckpointError, match=r"\(as float16\): out.2.bias holds NaN or infinite"):
        save_model(path, CONFIG, huge, torch.float16)
    assert not path.exists()
    save_model(path, CONFIG, huge, torch.bfloat16)


class _Runs:
    """Pickles to a call of os.mkdir."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, weights: Tensors) -> None:
    mark = tmp_path / "ran"
    torch.save(weights | {"evil": _Runs(str(mark))}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt: holds pickled code \(posix\.mkdir\), which is never run"):
        load_model(tmp_path / "evil.pt", FLAGS)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Runs(str(mark)), protocol=2))
    with pytest.raises(CheckpointError, match=r"plain\.pth: holds pickled code \(posix\.mkdir\)"):
        load_model(tmp_path / "plain.pth", FLAGS)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_truncated_pickles(tmp_path: Path, weights: Tensors, zipped: bool, part: float) -> None:
    path = tmp_path / "cut.pt"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.pt: truncated, or not a PyTorch checkpoint"):
        load_model(path, FLAGS)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated_native_files(tmp_path: Path, weights: Tensors, part: float) -> None:
    path = save_model(tmp_path / "cut.safetensors", CONFIG, weights)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: not a readable safetensors file, or truncated"):
        load_model(path)


@pytest.mark.parametrize(
    "content", [b"hello, I am no checkpoint", b"\x89PNG\r\n\x1a\n", b"\x80\x02}q\x00.", bytes(100)]
)
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    for name in ("foreign.pt", "foreign.safetensors", "foreign"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_model(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "bare state_dict .*found state_dict, epoch"),
        ([torch.zeros(1)], "expected a state_dict .*found list"),
        ({}, "found nothing"),
        ({3: torch.zeros(1)}, "bare state_dict"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"not the tensors of an ADM UNet.*conv1\.weight"),
    ],
)
def test_foreign_pickles(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=rf"foreign\.pt: .*{message}"):
        load_model(tmp_path / "foreign.pt")


def test_digests(tmp_path: Path, weights: Tensors) -> None:
    """Of a file, of a folder's file, of a bundled model; in capitals, too."""
    file = save_model(tmp_path / "bundled" / "small.safetensors", CONFIG, weights)
    folder = save_model(tmp_path / "folder", CONFIG, weights).parent
    torch.save(weights, tmp_path / "a.pt")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for source, flags in ((file, None), (str(file), None), (folder, None), ("small", None), (tmp_path / "a.pt", FLAGS)):
        read = tmp_path / "a.pt" if flags else folder / "model.safetensors" if source == folder else file
        good = hashlib.sha256(read.read_bytes()).hexdigest()
        for given in (good, good.upper()):
            assert equal(load_model(source, flags, given)[1], weights)
        with pytest.raises(CheckpointError, match=r"SHA-256|sha256"):
            load_model(source, flags, "0" * 64)
    for wrong in ("", "0" * 63, "0" * 65, "g" * 64, f" {digest[1:]}"):
        with pytest.raises(ConfigError, match="64 hexadecimal digits"):
            load_model(file, None, wrong)
    (tmp_path / "several" / "unet").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no one SHA-256 describes"):
        load_model(tmp_path / "several", None, digest)


def test_foreign_metadata(tmp_path: Path, weights: Tensors) -> None:
    path = tmp_path / "a.safetensors"
    text = to_json(CONFIG)
    for metadata, message in {
        "not json": "not valid JSON",
        "[1]": "expected an object",
        text.replace('"format_version": 1', '"format_version": 99'): "format 99.*update rcdm_fast",
        text.replace('"num_channels": 32', '"num_channels": 33'): "not a multiple of 32",
        text.replace('"num_channels"', '"channels"'): "unknown key channels",
    }.items():
        safetensors.torch.save_file(weights, path, metadata={"rcdm_fast.model": metadata})
        with pytest.raises(CheckpointError, match=message):
            load_model(path)
    safetensors.torch.save_file(weights, path, metadata={"rcdm_fast.encoder": to_json(EncoderConfig("module"))})
    with pytest.raises(CheckpointError, match="this is an encoder, not a model"):
        load_model(path)
