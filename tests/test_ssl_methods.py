"""Self-supervised methods: exact resume, falling losses, no collapse, views, schedules, errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

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
from rcdm_fast.metrics import probes
from rcdm_fast.training import pretrain as pretraining
from rcdm_fast.training import ssl_methods, ssl_momentum
from rcdm_fast.training.augment import AugmentConfig, random_crop_flip, random_solarize
from rcdm_fast.training.pretrain import features, pretrain
from rcdm_fast.training.pretrain_config import (
    BarlowConfig,
    BYOLConfig,
    DINOConfig,
    PretrainConfig,
    VICRegConfig,
)
from rcdm_fast.training.ssl_methods import Method, SimCLR, Supervised, VICReg
from rcdm_fast.training.ssl_momentum import BYOL, DINO
from rcdm_fast.training.state import Paused
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
    for count, match in ((0, "at least one width"), (17, "list of 1 to 16 numbers")):
        with pytest.raises(ConfigError, match=match):
            configuration("simclr", projector=(8,) * count).network()
    with pytest.raises(ConfigError, match="local crops"):
        DINOConfig(local_min_scale=0.5, local_max_scale=0.4)


def test_test_images_that_no_probe_can_be_asked_of_are_refused_before_training(data: ImageSet, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **changes: object) -> None:
        with pytest.raises(error, match=match):
            pretrain(configuration("simclr"), data, tmp_path / "run", dataclasses.replace(data, **changes))  # type: ignore[arg-type]

    refused(RunError, "accuracy needs labels", labels=None, classes=())
    refused(ConfigError, "fitted on the classes of the data", classes=("others", *data.classes[1:]))
    assert not (tmp_path / "run").exists()


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


def method_of(config: PretrainConfig) -> Method:
    return pretraining._METHODS[config.method](config, config.network().train())


def similarity(z: Tensor, temperature: float) -> Tensor:
    unit: Tensor = z / z.norm(dim=1, keepdim=True)
    return unit @ unit.T / temperature


@pytest.mark.parametrize("method", ["simclr", "vicreg", "barlow"])
def test_criteria_are_told_the_settings(method: str, generator: torch.Generator) -> None:
    """By hand, with settings that nobody has by default."""
    a, b = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    if method == "simclr":
        config = configuration(method, temperature=0.7)
        scores = similarity(torch.cat([a, b]), 0.7).fill_diagonal_(-torch.inf)
        want = -scores.log_softmax(dim=1)[torch.arange(12), (torch.arange(12) + 6) % 12].mean()
    elif method == "vicreg":
        config = configuration(method, vicreg=VICRegConfig(invariance=2.0, variance=3.0, covariance=0.5))
        spread = sum((1 - (z.var(dim=0) + 1e-4).sqrt()).clamp(min=0).mean() / 2 for z in (a, b))
        apart = sum((torch.cov(z.T).square().sum() - torch.cov(z.T).diagonal().square().sum()) / 4 for z in (a, b))
        want = 2 * (a - b).square().mean() + 3 * spread + 0.5 * apart
    else:
        config = configuration(method, barlow=BarlowConfig(redundancy=0.3))
        first, second = ((z - z.mean(dim=0)) / z.std(dim=0, correction=0) for z in (a, b))
        weights = torch.full((4, 4), 0.3, dtype=torch.float64).fill_diagonal_(1)
        want = (weights * (first.T @ second / 6 - torch.eye(4)).square()).sum()
    found = method_of(config).criterion(a, b)  # type: ignore[operator]
    assert float(found) == pytest.approx(float(want), rel=1e-3)


def test_criteria_of_dino_are_told_the_settings() -> None:
    options = DINOConfig(
        outputs=32, student_temperature=0.2, teacher_temperature_start=0.05, teacher_temperature=0.09,
        temperature_warmup=0.5, center_momentum=0.8, momentum=0.9,
    )  # fmt: skip
    criterion: Any = method_of(configuration("dino", dino=options)).criterion
    assert (criterion.student_temp, criterion.center_momentum) == (0.2, 0.8)
    assert criterion.teacher_temp_schedule.tolist() == pytest.approx([0.05, 0.07, 0.09])  # half of six steps
    assert float(criterion.teacher_temp) == pytest.approx(0.09)


def test_the_predictor_is_as_wide_as_asked_for() -> None:
    predictor: Any = method_of(configuration("byol", byol=BYOLConfig(predictor=24))).predictor
    layers = [each for each in predictor.modules() if isinstance(each, torch.nn.Linear)]
    assert [(each.in_features, each.out_features) for each in layers] == [(8, 24), (24, 8)]


@pytest.mark.parametrize(
    ("method", "section", "chances"),
    [
        ("vicreg", VICRegConfig(solarize=0.3), [0.3, 0.3]),
        ("barlow", BarlowConfig(solarize=0.3), [0.0, 0.3]),
        ("byol", BYOLConfig(solarize=0.3), [0.0, 0.3]),
        ("dino", DINOConfig(outputs=32, local_crops=2, local_size=4, solarize=0.3), [0.0, 0.3]),
        ("simclr", None, []),
    ],
)
def test_which_views_may_be_solarized(
    method: str, section: object, chances: list[float], data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def solarize(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        asked.append(probability)
        return images

    monkeypatch.setattr(ssl_methods, "random_solarize", solarize)
    config = configuration(method, **({} if section is None else {method: section}))
    method_of(config).views(data.floats(slice(0, 4)), step_generator(0, 0))
    assert asked == chances


def test_supervised_images_are_seen_once(data: ImageSet) -> None:
    config = dataclasses.replace(configuration("simclr"), method="supervised", projector=(2,))
    (view,) = Supervised(config, config.network()).views(data.floats(slice(0, 4)), step_generator(0, 0))
    assert view.shape == (4, 3, 8, 8)


def test_local_crops_are_cut_and_colored_as_the_settings_say(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[tuple[float, float, int | None]] = []
    colored: list[tuple[int, AugmentConfig]] = []

    def cut(
        images: Tensor, low: float, generator: torch.Generator, high: float = 1.0, size: int | None = None
    ) -> Tensor:
        cuts.append((low, high, size))
        return random_crop_flip(images, low, generator, high, size)

    def color(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
        colored.append((images.shape[-1], config))
        return images

    monkeypatch.setattr(ssl_momentum, "random_crop_flip", cut)
    monkeypatch.setattr(ssl_momentum, "random_color", color)
    augment = AugmentConfig(min_scale=0.5, hue=0.05)
    section = DINOConfig(outputs=32, local_crops=2, local_size=5, local_min_scale=0.15, local_max_scale=0.35)
    config = configuration("dino", dino=section, augment=augment)
    method_of(config).views(data.floats(slice(0, 4)), step_generator(0, 0))
    assert cuts == [(0.15, 0.35, 5)] * 2
    assert colored == [(5, augment)] * 2


class Heard(torch.nn.Module):
    """A criterion that notes what it is asked."""

    def forward(self, targets: list[Tensor], guesses: list[Tensor], epoch: int) -> Tensor:
        self.asked = ([each.shape for each in targets], [each.shape for each in guesses], epoch)
        return guesses[0].sum()


def test_the_teacher_warms_up_by_steps_and_sees_global_crops_only(data: ImageSet) -> None:
    config = configuration("dino")
    network = config.network().train()
    method = DINO(config, network)
    method.criterion = heard = Heard()
    method.loss(network, method.views(data.floats(slice(0, 4)), step_generator(0, 0)), None, 5)
    assert heard.asked == ([(4, 32)] * 2, [(4, 32)] * 4, 5)


def test_a_run_holds_the_last_layer_still_and_moves_the_teacher(data: ImageSet) -> None:
    """Of two steps the first is frozen; the teacher follows after both."""
    section = DINOConfig(outputs=32, local_crops=0, momentum=0.5, freeze=0.5)
    config = configuration("dino", dino=section, images=32, learning_rate=0.01, warmup=0.0)
    run = pretraining._Run(config, DINO, data, torch.device("cpu"))
    seen = []
    for _ in range(3):
        seen.append({name: value.clone() for name, value in run.method.named_parameters()})
        if run.step < 2:
            run.advance()
    last = [name for name in seen[0] if name.startswith("prototypes.") and name.endswith("weight_v")]
    assert len(last) == 1
    assert torch.equal(seen[0][last[0]], seen[1][last[0]])
    assert not torch.equal(seen[1][last[0]], seen[2][last[0]])
    moved = [name for name in seen[0] if name.startswith("teacher.") and name.endswith("0.weight")]
    assert len(moved) > 1
    assert not any(torch.equal(seen[0][name], seen[1][name]) for name in moved)


def test_spread_is_one_on_the_whole_sphere(generator: torch.Generator) -> None:
    """Whatever the width, and however long the outputs are; two opposite points by hand."""
    method = method_of(configuration("simclr"))
    for width in (4, 64):
        method.watch(7 * torch.randn(5000, width, generator=generator))
        assert float(method.spread) == pytest.approx(1, abs=0.05)
    method.watch(torch.tensor([[3.0, 0.0], [-5.0, 0.0]]))
    assert float(method.spread) == pytest.approx((2**0.5 + 0) / 2 * 2**0.5)


@pytest.mark.parametrize("asked", [True, False, None])
def test_networks_run_in_bf16_where_the_run_does(asked: bool | None) -> None:
    seen: list[torch.dtype] = []
    layer = torch.nn.Conv2d(3, 2, 1)
    layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    out = method_of(configuration("simclr", bf16=asked)).outputs(layer, torch.zeros(2, 3, 4, 4))
    assert seen == [torch.bfloat16 if asked else torch.float32]
    assert out.dtype == torch.float32


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_all_that_pretraining_draws_is_of_its_seed(method: str, data: ImageSet) -> None:
    """Weights of the network and of the method's own layers, the order of the images, views of every step."""

    def drawn(seed: int) -> dict[str, Tensor]:
        config = configuration(method, seed=seed)
        kind = {"byol": BYOL, "dino": DINO}[method]
        run = pretraining._Run(config, kind, data, torch.device("cpu"))
        own = {"byol": "predictor.", "dino": "prototypes."}[method]
        added = [value for name, value in run.method.named_parameters() if name.startswith(own) and value.ndim == 2]
        found = {"network": next(run.network.parameters()), "added": added[-1], "order": run._order(0)}
        run._order = lambda step: torch.arange(16)  # type: ignore[assignment]
        return {**found, **{f"views {step}": torch.stack(run._drawn(step)[0][:2]) for step in (0, 1)}}

    first, other, again = drawn(1), drawn(2), drawn(1)
    assert {name for name, value in first.items() if torch.equal(value, other[name])} == set()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["views 0"], first["views 1"])


def test_features_are_those_of_every_image_in_evaluation_mode(data: ImageSet) -> None:
    network = configuration("simclr").network()
    many = data.subset(torch.arange(1003) % 48)  # more than are seen at once
    with torch.no_grad():
        network.train()(data.floats(slice(None)))  # so that both modes differ
        trunk, projected = features(network, many)
        network.eval()
        want = network.backbone(many.floats(slice(None)))
        torch.testing.assert_close(trunk, want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(projected, network.projector(want), atol=1e-5, rtol=1e-4)


def test_accuracies_are_of_test_images_by_what_is_known_of_the_others(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = configuration("simclr").network()
    train, test = data.subset(torch.arange(30)), data.subset(torch.arange(30, 48))
    asked: list[tuple[Tensor, ...]] = []

    def probe(*given: Tensor) -> float:
        asked.append(given)
        return len(asked) / 9

    monkeypatch.setattr(probes, "knn_accuracy", probe)
    monkeypatch.setattr(probes, "linear_probe_accuracy", probe)
    names = ["backbone_knn", "backbone_linear", "projector_knn", "projector_linear"]
    assert pretraining.accuracy(network, train, test) == dict(zip(names, (0.1111, 0.2222, 0.3333, 0.4444), strict=True))
    known, sought = features(network, train), features(network, test)
    for place, given in enumerate(asked):
        wanted = (known[place // 2], train.labels, sought[place // 2], test.labels)
        assert all(torch.equal(one, other) for one, other in zip(given, wanted, strict=True))  # type: ignore[arg-type]


def test_the_untrained_network_is_measured_beside_the_trained_one(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Tensor] = []

    def accuracy(network: torch.nn.Module, train: ImageSet, test: ImageSet) -> dict[str, float]:
        measured.append(next(network.parameters()).detach().clone())
        return {"a": len(measured) / 4}

    monkeypatch.setattr(pretraining, "accuracy", accuracy)
    config = configuration("simclr", images=16, warmup=0.0)
    _, found = pretrain(config, data, tmp_path, data)
    assert found == {"a": 0.25, "untrained_a": 0.5}
    fresh = next(config.network().parameters())
    assert [torch.equal(each, fresh) for each in measured] == [False, True]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["untrained_a"] == 0.5


@pytest.mark.parametrize("method", [*NEW, "simclr", "supervised"])
def test_views_are_augmented_as_the_settings_say(method: str, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[AugmentConfig] = []

    def views(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
        asked.append(config)
        return images

    monkeypatch.setattr(ssl_methods, "random_views", views)
    augment = AugmentConfig(min_scale=0.5, hue=0.05)
    made = configuration("simclr" if method == "supervised" else method, augment=augment)
    if method == "supervised":
        made = dataclasses.replace(made, method="supervised", projector=(2,))
    method_of(made).views(data.floats(slice(0, 4)), step_generator(0, 0))
    assert asked == [augment] * (1 if method == "supervised" else 2)


@pytest.mark.parametrize("widths", [(16, 8), (16, 16, 8), (16, 16, 16, 8)])
def test_a_projector_has_the_layers_asked_for(widths: tuple[int, ...]) -> None:
    layers = [each for each in configuration("vicreg", projector=widths).network().projector if hasattr(each, "weight")]
    linear = [each for each in layers if isinstance(each, torch.nn.Linear)]
    assert tuple(each.out_features for each in linear) == widths


def test_prototypes_look_at_directions_and_begin_as_the_teachers(generator: torch.Generator) -> None:
    method: Any = method_of(configuration("dino"))
    x = torch.randn(5, 8, generator=generator)
    with torch.no_grad():
        ours, theirs = method.prototypes(x), method.teacher_prototypes(7 * x)
    torch.testing.assert_close(ours, theirs)
    assert float(ours.abs().max()) <= 1 + 1e-6  # cosines


def test_it_stops_after_minutes_and_goes_on(data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(Paused, match="0 minutes are over at step 1 of 6"):
        pretrain(configuration("simclr"), data, tmp_path, minutes=0)
    seen: list[int] = []
    pretrain(configuration("simclr"), data, tmp_path, progress=lambda step, *_: seen.append(step), minutes=60)
    assert seen == [2, 3, 4, 5, 6]
