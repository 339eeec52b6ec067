"""Sheets after the epochs of a Lightning Trainer: where they go, when, and what is refused before training."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rcdm_fast import callbacks, encoders
from rcdm_fast import model as models
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.images import to_uint8
from rcdm_fast.model import Model
from tests import small


class Trainer:
    """As much of Lightning's as a callback sees."""

    def __init__(self, max_epochs: int, callbacks: list[Any], logger: Any = None) -> None:
        self.max_epochs, self.callbacks = max_epochs, callbacks
        self.loggers = logger or []
        self.is_global_zero, self.current_epoch, self.global_step = True, 0, 0

    def fit(self, module: Any, batches: Any) -> None:
        for each in self.callbacks:
            each.on_fit_start(self, module)
        for epoch in range(self.max_epochs):
            self.current_epoch = epoch
            self.global_step += len(batches)
            for each in self.callbacks:
                each.on_train_epoch_end(self, module)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the library, which need not be installed."""
    library = ModuleType("lightning.pytorch")
    library.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    library.Trainer = Trainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", library)


def look(network: Any) -> Image.Image:
    """A sheet that shows which network it is given."""
    return Image.new("RGB", (4, 3), (network.number, 0, 0))


class Encoder(nn.Module):
    number = 7


@pytest.fixture
def module() -> Any:
    return SimpleNamespace(model=SimpleNamespace(encoder=Encoder()))


def test_sheets_go_to_loggers_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Any) -> None:
    stand_in(monkeypatch)
    board: list[Any] = []
    wandb: list[Any] = []
    loggers = [
        SimpleNamespace(experiment=SimpleNamespace(add_image=lambda *given, **named: board.append((given, named)))),
        SimpleNamespace(log_image=lambda *given, **named: wandb.append((given, named))),
        SimpleNamespace(experiment=None),  # one that takes none
    ]
    sheets = callbacks.lightning(look, "model.encoder", every=2, name="kept", out=tmp_path)  # type: ignore[arg-type]
    Trainer(5, [sheets], loggers).fit(module, [0] * 10)
    assert [(given[0], given[2], named) for given, named in board] == [
        ("kept", 20, {"dataformats": "HWC"}), ("kept", 40, {"dataformats": "HWC"}),
    ]  # fmt: skip
    assert board[0][0][1].shape == (3, 4, 3)
    assert np.array_equal(board[0][0][1][0, 0], [7, 0, 0]), "the named encoder"
    assert [(given[0], named) for given, named in wandb] == [("kept", {"step": 20}), ("kept", {"step": 40})]
    assert [each.size for each in wandb[0][0][1]] == [(4, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept-0001.png", "kept-0003.png"]
    idle = Trainer(1, [sheets], loggers)
    idle.is_global_zero = False
    idle.fit(module, [0])
    assert len(board) == 2


def test_what_would_fail_later_is_found_out_first(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="pip install lightning"):
        callbacks.lightning(look)  # type: ignore[arg-type]
    stand_in(monkeypatch)
    with pytest.raises(ConfigError, match="give out=FOLDER"):
        Trainer(1, [callbacks.lightning(look, "model.encoder")]).fit(module, [0])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no encoder called 'model\.backbone'"):
        Trainer(1, [callbacks.lightning(look, "model.backbone", out="x")]).fit(module, [0])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="every"):
        callbacks.lightning(look, every=0)  # type: ignore[arg-type]


def test_a_sheet_is_solved_and_drawn_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On images from all over the data, of the encoder as it is described, with the device and settings given."""
    asked: list[Any] = []
    model, sheet, network = small.quick_model(), Image.new("RGB", (4, 3)), Encoder()

    def load(name: str, **named: Any) -> Model:
        asked.append((name, named))
        return model

    def built(*given: Any, **named: Any) -> Any:
        asked.append((given, named))
        return small.encoder()

    def show(self: Model, shown: Any, config: Any = None) -> Image.Image:
        asked.append((shown, config))
        return sheet

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(encoders, "build", built)
    monkeypatch.setattr(Model, "show", show)
    pixels, shown = to_uint8(small.make_images(61)), small.make_images(2)
    told: dict[str, Any] = {"layer": "a.b", "pooling": "mean"}
    convention, config = EncoderConfig("module", image_size=8), SamplingConfig(per=3, steps=5)
    data = ImageSet(pixels, None, (), (), "made up")
    look = callbacks.SheetOf(
        "decoder", data, shown, convention=convention, count=31, config=config, device="cpu", **told
    )
    assert torch.equal(look._images.pixels, pixels[::2])
    assert look.explained != look.explained, "nothing is explained before the first sheet"
    assert look(network) is sheet
    assert asked == [
        ("decoder", {"device": "cpu"}),
        ((network, model.device), {"config": convention, **told}),
        (shown, config),
    ]
    assert look.explained > 0.99, "the encoder is the decoder's own"


def test_a_student_draws_no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    model.config = dataclasses.replace(model.config, student_steps=(100, 900))
    monkeypatch.setattr(models, "load", lambda *_, **__: model)
    with pytest.raises(ConfigError, match="decoder is a student; adapt the model that it learned from"):
        callbacks.SheetOf("decoder", to_uint8(small.make_images(8)), small.make_images(1))


@pytest.mark.long
def test_the_real_trainer_takes_it(tmp_path: Path) -> None:
    library = pytest.importorskip("pytorch_lightning")

    class Module(library.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(2, 2)
            self.encoder.number = 9  # type: ignore[assignment]
            self.seen: list[bool] = []

        def training_step(self, batch: Any, _: int) -> Any:
            self.seen.append(self.training)
            return self.encoder(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    sheets = callbacks.lightning(look, "encoder", out=tmp_path / "sheets")  # type: ignore[arg-type]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)), batch_size=2)
    trained = Module()
    trainer = library.Trainer(
        max_epochs=2, callbacks=[sheets], logger=False, accelerator="cpu", default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(trained, data)
    assert [path.name for path in sorted((tmp_path / "sheets").iterdir())] == ["samples-0000.png", "samples-0001.png"]
    assert trained.seen == [True] * 4
