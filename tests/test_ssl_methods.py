"""Self-supervised methods: exact resume, falling losses, no collapse, views, schedules, errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, step_generator
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.images import to_uint8
from rcdm_fast.training.augment import AugmentConfig, random_crop_flip, random_solarize
from rcdm_fast.training.pretrain import features, pretrain
from rcdm_fast.training.pretrain_config import (
    BarlowConfig,
    BYOLConfig,
    DINOConfig,
    PretrainConfig,
)
from rcdm_fast.training.ssl_methods import Method, SimCLR, VICReg
from rcdm_fast.training.ssl_momentum import BYOL, DINO
from tests import small

pytest.importorskip("lightly")

PROJECTORS = {"simclr": (8, 4), "vicreg": (16, 16, 16), "barlow": (16, 16, 16), "byol": (16, 8), "dino": (16, 16, 8)}
NEW = ["vicreg", "barlow", "byol", "dino"]


@pytest.fixture(scope="module")
def data() -> ImageSet:
    pixels = to_uint8(small.make_images(48))
    paths = tuple(Path(f"{number}.png") for number in range(48))
    return ImageSet(pixels, torch.arange(48) % 2, ("even", "odd"), paths, "made-up")


def configuration(method: str, **changes: object) -> PretrainConfig:
    sections: dict[str, dict[str, object]] = {
        "byol": {"byol": BYOLConfig(predictor=16, momentum=0.9)},
        "dino": {"dino": DINOConfig(outputs=32, local_crops=2, local_size=4, momentum=0.9)},
    }
    values: dict[str, object] = {
        "name": "tiny", "method": method, "image_size": 8, "stem": 8, "widths": (8, 8), "blocks": (1, 1),
        "projector": PROJECTORS[method], "images": 96, "batch_size": 16, "compile": False, "bf16": False,
        "save_every": 2, **sections.get(method, {}), **changes,
    }  # fmt: skip
    return PretrainConfig(**values)  # type: ignore[arg-type]


class Stop(Exception):
    """An interruption."""


def flat(value: object, name: str = "") -> dict[str, object]:
    """The leaves of nested dictionaries and lists, by path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {name: value}
    return {path: leaf for key, item in items for path, leaf in flat(item, f"{name}/{key}").items()}


@pytest.mark.parametrize("method", NEW)
def test_interrupted_runs_equal_unbroken_ones_bit_for_bit(data: ImageSet, tmp_path: Path, method: str) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise Stop

    config = configuration(method)
    whole, _ = pretrain(config, data, tmp_path / "whole")
    with pytest.raises(Stop):
        pretrain(config, data, tmp_path / "cut", progress=stop)
    resumed, _ = pretrain(config, data, tmp_path / "cut")
    expected, actual = storage.read_tensors(whole), storage.read_tensors(resumed)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)

    last = "state-000000006.pt"
    one = flat(torch.load(tmp_path / "whole" / last, weights_only=True))
    other = flat(torch.load(tmp_path / "cut" / last, weights_only=True))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name], name  # type: ignore[arg-type]
    wanted = {
        "byol": ("target.", "predictor."),
        "dino": ("teacher.", "teacher_prototypes.", "prototypes.", "criterion.center"),
    }
    for part in wanted.get(method, ()):
        assert any(name.startswith(f"/method/{part}") for name in one), part


@pytest.mark.parametrize("method", NEW)
@pytest.mark.long
def test_the_loss_falls_and_nothing_collapses(data: ImageSet, tmp_path: Path, method: str) -> None:
    losses: list[float] = []
    mild = AugmentConfig(min_scale=0.7, jitter=0.3, gray=0.0)
    config = configuration(method, images=16 * 60, learning_rate=1e-2, save_every=100, seed=1, augment=mild)
    path, accuracy = pretrain(config, data, tmp_path, data, progress=lambda done, total, loss: losses.append(loss))
    assert len(losses) == 60
    assert sum(losses[-6:]) < 0.93 * sum(losses[1:7])  # measured: 0.85 (VICReg) is the least fall
    assert {"backbone_knn", "backbone_linear", "projector_knn", "untrained_projector_linear"} <= set(accuracy)
    network, _ = native.load(path)
    for outputs in features(network, data):
        assert float(outputs.std(dim=0).mean()) > 1e-3 * float(outputs.abs().mean())
        assert float(outputs.std(dim=0).max()) > 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["spread"] > 0.01 for row in rows if "spread" in row] == [True, True]


@pytest.mark.parametrize("method", NEW)
def test_written_encoders_are_what_was_trained(data: ImageSet, tmp_path: Path, method: str) -> None:
    config = configuration(method, learning_rate=0.03)  # so much that a second network is far behind
    path, _ = pretrain(config, data, tmp_path)
    state = torch.load(tmp_path / "state-000000006.pt", weights_only=True)
    trained = config.network()
    teacher = {key.removeprefix("teacher."): value for key, value in state["method"].items()}
    trained.load_state_dict(
        {key: teacher[key] for key in state["network"]} if method == "dino" else state["network"], strict=True
    )
    images = data.floats(slice(0, 5))
    with torch.no_grad():
        expected = trained.eval()(images)
    actual = rcdm_fast.encoders.build(f"file:{path}?layer=projector").encode(images)
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)  # the file is float16
    assert actual.shape == (5, PROJECTORS[method][-1])
    if method == "dino":
        trained.load_state_dict(state["network"], strict=True)
        assert not torch.allclose(actual, trained.eval()(images), rtol=0.1, atol=0.1)  # the student's


def test_dino_is_read_back_with_its_own_activation() -> None:
    assert configuration("dino").encoder().architecture["activation"] == "gelu"
    assert "activation" not in configuration("vicreg").encoder().architecture
    assert any(isinstance(layer, torch.nn.GELU) for layer in configuration("dino").network().projector)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    for method in ("byol", "dino"):
        config = configuration(method)
        before = torch.get_rng_state()
        built = [{"byol": BYOL, "dino": DINO}[method](config, config.network()) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        one, other = built[0].state_dict(), built[1].state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_the_second_network_follows_by_the_scheduled_momentum(data: ImageSet, method: str) -> None:
    config = configuration(method)
    network = config.network().train()
    built = {"byol": BYOL, "dino": DINO}[method](config, network)
    second = built.get_submodule("target" if method == "byol" else "teacher")
    assert not any(parameter.requires_grad for parameter in second.parameters())
    before = {name: value.clone() for name, value in second.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    built.after_step(network, 2)
    fraction = 1 - 0.1 * (math.cos(math.pi * 2 / (config.steps - 1)) + 1) / 2
    for name, value in second.named_parameters():
        torch.testing.assert_close(value, before[name] + (1 - fraction))
    settled = {name: value.clone() for name, value in second.named_parameters()}
    built.after_step(network, config.steps - 1)  # momentum 1: it stands still
    assert all(torch.equal(value, settled[name]) for name, value in second.named_parameters())


def test_dino_makes_global_and_local_crops_and_moves_its_center(data: ImageSet) -> None:
    config = configuration("dino")
    network = config.network().train()
    method = DINO(config, network)
    views = method.views(data.floats(slice(0, 16)), step_generator(0, 0))
    assert [view.shape[-1] for view in views] == [8, 8, 4, 4]
    assert all(float(view.abs().max()) <= 1 for view in views)
    method.loss(network, views, None, 0).backward()
    assert float(method.criterion.center.abs().max()) > 0
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    trained = [parameter for parameter in method.prototypes.parameters() if parameter.requires_grad]

    def gradients() -> list[bool]:
        return [parameter.grad is not None for parameter in trained]

    assert gradients() == [True]
    method.before_step(config.steps)
    assert gradients() == [True]
    method.before_step(0)
    assert gradients() == [False]

    assert config.dino is not None
    alone = dataclasses.replace(config, dino=dataclasses.replace(config.dino, local_crops=0))
    globals_only = DINO(alone, network)
    assert len(globals_only.views(data.floats(slice(0, 4)), step_generator(0, 0))) == 2
    assert globals_only.loss(network, views[:2], None, 0).isfinite()


def test_byol_has_no_loss_where_prediction_and_target_agree(data: ImageSet) -> None:
    config = configuration("byol", projector=(16, 8))
    network = config.network().train()
    method = BYOL(config, network)
    method.predictor = torch.nn.Identity()
    view = data.floats(slice(0, 16))
    loss = method.loss(network, [view, view], None, 0)
    assert abs(float(loss.detach())) < 1e-4  # target and network begin equal
    views = [view, view.flip(3)]
    with torch.no_grad():
        first, second = (method.outputs(method.target, each) for each in views)
    cos = float(torch.nn.functional.cosine_similarity(first, second).mean())
    assert cos < 0.9
    # each view's prediction is held against the other view's target
    assert float(method.loss(network, views, None, 0).detach()) == pytest.approx(4 - 4 * cos, abs=1e-4)


def test_solarization_turns_over_bright_values(generator: torch.Generator) -> None:
    images = small.make_images(64)
    turned = random_solarize(images, 1.0, generator)
    assert torch.equal(turned, torch.where(images >= 0, -images, images))
    some = random_solarize(images, 0.5, generator)
    changed = (some != images).flatten(1).any(dim=1).sum()
    assert 16 < int(changed) < 48
    before = generator.get_state()
    assert random_solarize(images, 0.0, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_local_crops_are_small_parts(generator: torch.Generator) -> None:
    ramp = torch.linspace(-1, 1, 32).expand(64, 3, 32, 32).contiguous()
    crops = random_crop_flip(ramp, 0.05, generator, 0.2, size=12)
    assert crops.shape == (64, 3, 12, 12)
    span = crops.amax(dim=(1, 2, 3)) - crops.amin(dim=(1, 2, 3))
    assert float(span.max()) < 2 * math.sqrt(0.2 * 4 / 3)


def test_an_unknown_method_and_foreign_settings_are_refused(data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"simclr.*dino; got 'moco'"):
        dataclasses.replace(configuration("simclr"), method="moco")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="settings for barlow, but the method is vicreg"):
        configuration("vicreg", barlow=BarlowConfig())
    for method, widths in (("vicreg", (8,)), ("barlow", (16, 8)), ("byol", (8, 8, 4)), ("dino", (16, 8, 4))):
        with pytest.raises(ConfigError, match=f"{method} takes"):
            configuration(method, projector=widths).network()
    with pytest.raises(ConfigError, match="local crops"):
        DINOConfig(local_min_scale=0.5, local_max_scale=0.4)


def test_a_loss_that_is_no_number_leaves_the_last_good_state(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration("vicreg")
    whole, _ = pretrain(config, data, tmp_path / "whole")
    sound = VICReg.loss

    def broken(self: VICReg, *arguments: object) -> Tensor:
        loss = sound(self, *arguments)  # type: ignore[arg-type]
        return loss * torch.nan if arguments[-1] == 3 else loss

    monkeypatch.setattr(VICReg, "loss", broken)
    with pytest.raises(RunError, match="loss is nan at step 3"):
        pretrain(config, data, tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").glob("state-*.pt")] == ["state-000000002.pt"]
    monkeypatch.undo()
    resumed, _ = pretrain(config, data, tmp_path / "cut")
    expected, actual = storage.read_tensors(whole), storage.read_tensors(resumed)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_weights_that_are_no_numbers_are_never_saved(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Method, network: torch.nn.Module, step: int) -> None:
        if step == 3:
            with torch.no_grad():
                next(network.parameters()).fill_(torch.nan)

    monkeypatch.setattr(SimCLR, "after_step", spoil)
    with pytest.raises(RunError, match="not finite after 4 steps"):
        pretrain(configuration("simclr"), data, tmp_path)
    assert [path.name for path in tmp_path.glob("state-*.pt")] == ["state-000000002.pt"]


def test_a_collapsed_run_is_warned_about(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SimCLR, "watch", lambda self, outputs: setattr(self, "spread", torch.zeros(())))
    pretrain(configuration("simclr"), data, tmp_path)
    assert "collapsed" in caplog.text


def test_states_of_runs_without_method_state_are_resumed(data: ImageSet, tmp_path: Path) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise Stop

    config = configuration("simclr")
    whole, _ = pretrain(config, data, tmp_path / "whole")
    with pytest.raises(Stop):
        pretrain(config, data, tmp_path / "old", progress=stop)
    file = tmp_path / "old" / "state-000000002.pt"
    state = torch.load(file, weights_only=True)
    assert state.pop("method") == {}
    torch.save(state, file)
    written = json.loads((tmp_path / "old" / "config.json").read_text())
    before = {key: value for key, value in written.items() if key not in NEW}
    (tmp_path / "old" / "config.json").write_text(json.dumps(before))
    resumed, _ = pretrain(config, data, tmp_path / "old")
    expected, actual = storage.read_tensors(whole), storage.read_tensors(resumed)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
