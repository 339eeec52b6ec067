"""Model files that hold only what differs from a file beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from rcdm_fast import storage
from rcdm_fast.models import shared
from rcdm_fast.models.checkpoint import CheckpointError, load_model, save_model
from rcdm_fast.storage import StorageError
from tests import checkpoint_cases
from tests.checkpoint_cases import CONFIG, Tensors, equal


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return checkpoint_cases.make_weights()


@pytest.fixture
def own(weights: Tensors) -> Tensors:
    """Weights with another map from a representation of another width, and one number that differs elsewhere."""
    bias = weights["out.2.bias"].clone()
    bias[0] += 1e-3
    rows = len(weights["ssl_emb.weight"])
    return weights | {"ssl_emb.weight": torch.linspace(-1, 1, rows * 7).view(rows, 7), "out.2.bias": bias}


OTHER = dataclasses.replace(CONFIG, unet=dataclasses.replace(CONFIG.unet, representation_dim=7), name="other")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_what_differs_is_written(tmp_path: Path, weights: Tensors, own: Tensors, dtype: torch.dtype) -> None:
    base = save_model(tmp_path / "base.safetensors", CONFIG, weights, dtype)
    path = save_model(tmp_path / "other.safetensors", OTHER, own, dtype, base=base)
    assert storage.read_tensors(path).keys() == {"ssl_emb.weight", "out.2.bias"}
    config, found = load_model(path)
    assert config == OTHER
    assert equal(found, {name: tensor.to(dtype).float() for name, tensor in own.items()})
    save_model(tmp_path / "alone.safetensors", config, found)  # what was loaded is whole again
    base.unlink()
    assert equal(load_model(tmp_path / "alone.safetensors")[1], found)
    with pytest.raises(CheckpointError, match=r"other.safetensors: .* base.safetensors, which is not beside it"):
        load_model(path)


def test_another_base_is_refused(tmp_path: Path, weights: Tensors, own: Tensors) -> None:
    base = save_model(tmp_path / "base.safetensors", CONFIG, weights)
    path = save_model(tmp_path / "other.safetensors", OTHER, own, base=base)
    content = base.read_bytes()
    save_model(base, CONFIG, weights | {"out.2.weight": weights["out.2.weight"] * 2})
    with pytest.raises(CheckpointError, match=r"the base\.safetensors beside it is another one"):
        load_model(path)
    base.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"base\.safetensors: damaged"):
        load_model(path)
    base.write_bytes(content)
    assert equal(load_model(path)[1], own)


def test_what_cannot_be_shared_with(tmp_path: Path, weights: Tensors, own: Tensors) -> None:
    base = save_model(tmp_path / "base.safetensors", CONFIG, weights)
    path = save_model(tmp_path / "other.safetensors", OTHER, own, base=base)
    for folder, name in ((tmp_path / "elsewhere", "third"), (tmp_path, "base")):
        with pytest.raises(CheckpointError, match="must lie beside it"):
            save_model(folder / f"{name}.safetensors", OTHER, own, base=base)
    with pytest.raises(StorageError, match=r"other\.safetensors: holds only what differs"):
        save_model(tmp_path / "third.safetensors", OTHER, own, base=path)
    storage.save_tensors(tmp_path / "more.safetensors", {**weights, "more": torch.zeros(2)}, {})
    with pytest.raises(StorageError, match="not, such as more"):
        save_model(tmp_path / "third.safetensors", OTHER, own, base=tmp_path / "more.safetensors")
    with pytest.raises(StorageError, match="no such file"):
        save_model(tmp_path / "third.safetensors", OTHER, own, base=tmp_path / "none.safetensors")
    assert not (tmp_path / "third.safetensors").exists()
    assert equal(load_model(base)[1], weights)


@pytest.mark.parametrize(
    "named",
    ["", "[]", '{"file": "base.safetensors"}', '{"file": 3, "checksum": "a"}', '{"file": "../b", "checksum": "a"}',
     '{"file": "/etc/passwd", "checksum": "a"}', '{"file": "..", "checksum": "a"}', '{"file": "", "checksum": "a"}',
     '{"file": "a\\u0000", "checksum": "a"}', "[" * 100_000],
)  # fmt: skip
def test_a_base_that_is_named_wrongly(tmp_path: Path, own: Tensors, named: str) -> None:
    path = tmp_path / "other.safetensors"
    storage.save_tensors(path, {"out.2.bias": own["out.2.bias"]}, {"rcdm_fast.model": "{}", shared.KEY: named})
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_metadata_names_the_base(tmp_path: Path, weights: Tensors, own: Tensors) -> None:
    base = save_model(tmp_path / "base.safetensors", CONFIG, weights)
    path = save_model(tmp_path / "other.safetensors", OTHER, own, base=base)
    found = json.loads(storage.read_metadata(path)[shared.KEY])
    assert found == {"file": "base.safetensors", "checksum": storage.read_checksum(base)}
    assert storage.read_checksum(path) not in (None, storage.read_checksum(base))
