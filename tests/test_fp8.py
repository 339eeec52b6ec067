"""fp8: what the emulation computes, held against PyTorch's own e4m3 and float64; its file; who may run it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rcdm_fast
from rcdm_fast import cli, engine_comparison, engines, storage, throughput
from rcdm_fast.benchmarking import relative_l2
from rcdm_fast.config import ConfigError
from rcdm_fast.engine_comparison import Case
from rcdm_fast.exporters import calibration, fallback, fp8
from rcdm_fast.exporters.fallback import Layer
from rcdm_fast.exporters.graph import truth
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import ExportError, GraphError
from rcdm_fast.images import to_pil
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.models.fp8 import (
    LARGEST,
    Fp8Convolution,
    emulated,
    inner_convolutions,
    input_scale,
    rounded,
)
from rcdm_fast.storage import StorageError
from tests import small

CPU = torch.device("cpu")
E4M3 = torch.float8_e4m3fn


def torchs(x: Tensor) -> Tensor:
    """What PyTorch says e4m3 is, in float64."""
    return x.float().clamp(-LARGEST, LARGEST).to(E4M3).double()


def numbers() -> Tensor:
    """All e4m3 numbers, what lies halfway between neighbors and next to that, and float32 of every size."""
    every = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    every = every[every.isfinite()].unique()
    ties = (every[1:] + every[:-1]) / 2
    far = torch.tensor(float("inf"))
    sizes = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 12, 20_000, 2)
    edges = torch.tensor([0.0, -0.0, 1e-45, 464.0, 465.0, 1e38, float("inf"), -float("inf")])
    return torch.cat([every, ties, ties.nextafter(far), ties.nextafter(-far), sizes, edges])


def test_rounding_is_that_of_the_format_and_saturates() -> None:
    x = numbers()
    assert torch.equal(rounded(x).double(), torchs(x))
    assert rounded(x).abs().max() == LARGEST
    assert bool(rounded(torch.tensor([float("nan")])).isnan().all())  # a fault in the network stays to be seen
    view = torch.randn(2, 5, 4, 6).to(memory_format=torch.channels_last)[:, 1:, ::2]
    assert torch.equal(rounded(view).double(), torchs(view))


def test_scales_of_inputs_are_powers_of_two_with_room_above() -> None:
    largest = torch.tensor([0.0, 1e-6, 0.3, 1.0, 223.9, 224.0, 224.1, 5e4])
    scale = input_scale(largest)
    assert bool((scale.frexp().mantissa == 0.5).all())
    scaled = largest[1:] / scale[1:]
    assert bool((scaled > LARGEST / 4).all())
    assert bool((scaled <= LARGEST / 2).all())
    assert scale[0] == 1


def convolution(inner: int = 7, outer: int = 5, stride: int = 1) -> nn.Conv2d:
    """With channels of very different sizes, one of zeros, and a row of zeros."""
    torch.manual_seed(1)
    made = nn.Conv2d(inner, outer, 3, stride, padding=1)
    made.weight.data *= torch.logspace(-3, 2, inner)[:, None, None]
    made.weight.data[2] = 0
    return made


@pytest.mark.parametrize(("stride", "size"), [(1, (9, 6)), (2, (7, 10)), (1, (1, 1))])
def test_a_convolution_is_the_float64_sum_of_rounded_operands(stride: int, size: tuple[int, int]) -> None:
    given = convolution(stride=stride)
    x = torch.randn(3, 7, *size) * torch.logspace(2, -3, 7)[:, None, None] + 0.1
    x[:, 3] = 0
    scale = input_scale(x.abs().amax(dim=(0, 2, 3)))
    weight = given.weight.detach() * scale[:, None, None]
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    out_scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    sums = F.conv2d(torchs(x / scale[:, None, None]), torchs(weight / out_scale), None, stride, 1)
    assert given.bias is not None
    want = sums * out_scale.double().view(-1, 1, 1) + given.bias.detach().double()[:, None, None]
    got = Fp8Convolution(given, scale)(x)
    assert got.dtype == torch.float32
    assert relative_l2(got, want) <= 3e-7
    assert 1e-3 < relative_l2(got, F.conv2d(x, given.weight.detach(), given.bias.detach(), stride, 1)) < 0.1


def test_scales_change_nothing_where_nothing_saturates() -> None:
    """All of them four times as large: the same digits. Beyond the largest number inputs are held there."""
    given, x = convolution(), torch.randn(2, 7, 8, 8)
    scale = input_scale(x.abs().amax(dim=(0, 2, 3)))
    got = Fp8Convolution(given, scale)(x)
    assert torch.equal(got, Fp8Convolution(given, 4 * scale)(x))
    beyond = torch.full((1, 7, 8, 8), 1e30)
    held = (LARGEST * scale)[:, None, None].expand(1, 7, 8, 8)
    assert torch.equal(Fp8Convolution(given, scale)(beyond), Fp8Convolution(given, scale)(held))


def test_what_is_not_chosen_runs_unrounded() -> None:
    network = small.network().eval()
    names = list(inner_convolutions(network))
    assert len(names) == len(set(names)) > 10
    assert all(network.get_submodule(name).kernel_size == (3, 3) for name in names)
    assert not {"input_blocks.0.0", "out.2"} & set(names)
    inputs = torch.randn(2, 3, 8, 8), torch.tensor([5.0, 900.0]), torch.randn(2, small.DIM)
    with torch.inference_mode():
        want = network(*inputs)
        assert torch.equal(emulated(network, {})(*inputs), want)
        one = emulated(network, {names[3]: torch.ones(inner_convolutions(network)[names[3]].in_channels)})
        assert 1e-5 < relative_l2(one(*inputs), want) < 0.05
        assert torch.equal(network(*inputs), want)
    found = [name for name, module in one.named_modules() if isinstance(module, Fp8Convolution)]
    assert found == [names[3]]
    shared = {id(parameter) for parameter in network.parameters()}
    assert all(id(parameter) in shared for parameter in one.parameters())


def scales_of(model: Model, *without: str) -> dict[str, Tensor]:
    """Scales that make images a little different: of each convolution, but for some."""
    found = inner_convolutions(model.unet)
    return {name: torch.full((each.in_channels,), 2.0**-4) for name, each in found.items() if name not in without}


KEPT = "middle_block.0.in_layers.2"


def written(model: Model, path: Path) -> Path:
    found = fp8.Calibrated(scales_of(model, KEPT), (Layer(KEPT, 0.02),), 43.5, path)
    fp8.save(found, model.unet, model.config)
    return path


def with_fp8(model: Model, file: Path) -> Model:
    return engine_comparison.with_engine(model, Case("eager", "fp8", file))


def test_the_engine_runs_the_file_and_says_that_it_emulates(tmp_path: Path) -> None:
    model = small.model()
    run = with_fp8(model, written(model, tmp_path / "fp8.safetensors"))
    said = run.engine.describe()
    layers = len(inner_convolutions(model.unet))
    assert f"fp8 (emulated, slower than fp32: {layers - 1} of {layers} inner 3x3 convolutions in fp8" in said
    assert f"all but {KEPT}" in said
    h = torch.randn(3, small.DIM)
    got, want = run.sample(h, per=2, steps=4), model.sample(h, per=2, steps=4)
    assert 1e-4 < relative_l2(got, want) < 0.3
    with torch.inference_mode():
        by_hand = truth(emulated(model.unet, scales_of(model, KEPT)), model.config.schedule)
        x, t = torch.randn(3, 3, 8, 8), torch.tensor([412, 412, 412])
        given = truth(run.engine._network, model.config.schedule)  # type: ignore[attr-defined]
        assert torch.equal(given(x, t, torch.zeros(3), h), by_hand(x, t, torch.zeros(3), h))
    alone = run.sample(h[1:2], items=[1], per=2, steps=4)
    assert torch.equal(alone, got[1:2])  # an image does not depend on its batch


def test_a_model_with_its_file_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    saved = checkpoint.save_model(tmp_path / "model", model.config, model.unet.state_dict())
    written(model, tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    loaded = rcdm_fast.load(saved, device="cpu", engine="eager", precision="fp8=own.safetensors")
    also = rcdm_fast.load(saved, device="cpu", engine="eager", precision="fp8", engine_file="own.safetensors")
    h = torch.randn(1, small.DIM)
    want = loaded.sample(h, per=1, steps=2)
    assert torch.equal(also.sample(h, per=1, steps=2), want)
    packed = pickle.dumps(loaded)
    monkeypatch.chdir(tmp_path.parent)
    assert torch.equal(pickle.loads(packed).sample(h, per=1, steps=2), want)


def test_a_job_goes_on_with_the_scales_that_it_was_begun_with(tmp_path: Path) -> None:
    model = small.quick_model()
    h, folder, config = torch.randn(2, small.DIM), tmp_path / "job", JobConfig(per=1, steps=1)
    one = with_fp8(model, written(model, tmp_path / "one.safetensors"))
    local.run(one, h, folder, config)
    file = tmp_path / "other.safetensors"
    scales = {name: 2 * scale for name, scale in scales_of(model).items()}
    fp8.save(fp8.Calibrated(scales, (), 50.0, file), model.unet, model.config)
    with pytest.raises(ConfigError, match="holds another job: calibrated"):
        local.run(with_fp8(model, file), h, folder, config)


def test_rates_of_fp8_are_those_of_what_was_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    case = throughput.Case("eager", f"fp8={written(model, tmp_path / 'fp8.safetensors')}", steps=2)
    plan = throughput.Plan((case,), batch=2, rounds=1, published=False)
    (row,) = throughput.measure(model, plan, lambda rows, fraction: None)
    assert (row["precision"], row.get("why_not", "")) == ("fp8", "")
    assert row["images_per_s"] > 0
    evaluate = engines.eager.EagerEngine.evaluate
    monkeypatch.setattr(engines.eager.EagerEngine, "evaluate", lambda *given: 1.5 * evaluate(*given))
    (row,) = throughput.measure(model, plan, lambda rows, fraction: None)
    assert "wrong result" in row["why_not"]


def test_who_has_no_fp8_says_so(tmp_path: Path) -> None:
    model = small.quick_model()
    file = written(model, tmp_path / "fp8.safetensors")

    def make(engine: str, precision: str, file: Any = None) -> None:
        engines.make(engine, model.unet, model.config, CPU, precision, file)

    with pytest.raises(ConfigError, match=r"fp8 needs a calibrated file: rcdm export MODEL --to fp8 --data IMAGES"):
        make("eager", "fp8")
    with pytest.raises(ConfigError, match="fp8 runs in native, eager only"):
        make("compiled", "fp8", file)
    with pytest.raises(ConfigError, match=r"fp8 runs on CUDA only \(engine eager emulates it\)"):
        make("native", "fp8", file)
    with pytest.raises(ConfigError, match=r"no engine can run fp8 .*eager: emulates fp8, slower than fp32"):
        make("auto", "fp8", file)  # it is asked for to be fast
    with pytest.raises(ConfigError, match="engine eager runs the model itself, not a file"):
        make("eager", "fp32", file)
    with pytest.raises(ConfigError, match="two files are given for one engine"):
        make("eager", "fp8=a", "b")
    with pytest.raises(ConfigError, match="no precision called 'fp9'"):
        make("eager", "fp9=a")
    with pytest.raises(ConfigError, match="precision auto is no case"):
        Case.parse("eager:auto")


def test_files_that_are_not_this_models_are_refused(tmp_path: Path) -> None:
    model = small.quick_model()
    file = written(model, tmp_path / "fp8.safetensors")
    tensors, metadata = storage.read_tensors(file), storage.read_metadata(file)
    name, *_ = tensors

    def changed(scales: dict[str, Tensor] = tensors, key: str = "", value: str = "") -> Path:
        made = tmp_path / "changed.safetensors"
        storage.save_tensors(made, scales, {**metadata, key: value} if key else metadata)
        return made

    def refused(path: Path, match: str, kind: type[Exception] = GraphError, of: Model = model) -> None:
        with pytest.raises(kind, match=match):
            fp8.read(path, of.unet, of.config)

    assert set(fp8.read(file, model.unet, model.config).scales) == set(tensors)
    refused(tmp_path / "none.safetensors", "no such file", StorageError)
    refused(file, "network of another structure", of=small.model())
    other = small.quick_model()
    other.unet.get_parameter("out.2.bias").data += 1
    refused(file, "exported from other weights", of=other)
    refused(changed(key="rcdm_fast.precision", value="int8"), "exported in int8, asked for is fp8")
    refused(changed(key="rcdm_fast.kept", value="[]"), "its layers are not the network's")
    refused(changed(key="rcdm_fast.kept", value="[[1"), "damaged; export it again")
    refused(changed({**tensors, "out.2": torch.ones(32)}), "its layers are not the network's")
    for wrong in (0.0, -1.0, 3.0, float("nan"), float("inf")):
        scales = torch.full_like(tensors[name], wrong)
        refused(changed({**tensors, name: scales}), f"scales of {name} are no powers of two")
    refused(changed({**tensors, name: torch.ones(3)}), rf"scales of {name} are torch.float32 \[3\]")
    plain = tmp_path / "plain.safetensors"
    storage.save_tensors(plain, tensors, {})
    refused(plain, "not exported by rcdm_fast")


def job(model: Model, count: int = 8) -> Job:
    h = torch.randn(count, small.DIM, generator=torch.Generator().manual_seed(2))
    return Job(model.unet, model.config, precision="fp8", representations=h)


def quick_steps(monkeypatch: pytest.MonkeyPatch, psnr_db: float) -> None:
    """Trajectories of two steps, and images of made-up weights, which are rougher than trained ones."""
    for name in ("draw", "collect"):
        monkeypatch.setattr(calibration, name, _short(getattr(calibration, name)))
    monkeypatch.setattr(fallback, "PSNR_DB", psnr_db)
    monkeypatch.setattr(fallback, "RANKED", 2)


def _short(draw: Any) -> Any:
    return lambda evaluate, config, given, count=0, steps=2: draw(evaluate, config, given, count, 2)


def test_calibration_sees_the_trajectories_that_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are those of the largest inputs on trajectories that are not held out, and the worst layers stay."""
    quick_steps(monkeypatch, 0.0)
    model = small.quick_model()
    asked = job(model)
    found = fp8.calibrate(asked)
    assert found.kept == ()
    assert found.kept_in_words() == f"all {found.layers} inner 3x3 convolutions in fp8"
    held = torch.arange(8) % fallback.HELD_OUT == fallback.HELD_OUT - 1
    largest: dict[str, Tensor] = {}
    assert asked.representations is not None
    watched = truth(fp8._watched(model.unet, largest), model.config.schedule)
    calibration.draw(watched, model.config, asked.representations[~held])
    assert {name: scale.tolist() for name, scale in found.model.items()} == {
        name: input_scale(each).tolist() for name, each in largest.items()
    }
    level = found.psnr_db
    monkeypatch.setattr(fallback, "PSNR_DB", level + 1)
    kept = fp8.calibrate(asked)
    assert kept.kept
    assert kept.psnr_db >= level + 1
    errors = [layer.error for layer in kept.kept]
    assert errors == sorted(errors, reverse=True)
    assert not {layer.name for layer in kept.kept} & set(kept.model)
    monkeypatch.setattr(fallback, "PSNR_DB", 500.0)
    with pytest.raises(ExportError, match=r"fp8 changes the images too much .*needed 500.*in floating point: \w+"):
        fp8.calibrate(asked)


def test_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp8 is calibrated on trajectories of real representations: give at least 4"):
        rcdm_fast.export(small.quick_model(), "fp8", tmp_path / "out", calibrate=small.make_images(3))
    assert not (tmp_path / "out").exists()


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    quick_steps(monkeypatch, 0.0)
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(small.make_images(6, 32)):
        to_pil(image).save(images / f"{number}.png")
    model = "cifar10-supervised"
    cpu = ("--device", "cpu")
    out = tmp_path / "out"
    assert cli.main(["export", model, "--to", "fp8", "--data", str(images), "--out", str(out), *cpu]) == 0
    assert "in fp8" in capsys.readouterr().out
    file = out / fp8.FILE
    assert list(out.iterdir()) == [file]
    drawn = ["sample", str(images / "0.png"), "--model", model, "--per", "1", "--steps", "2", *cpu]
    assert cli.main([*drawn, "--engine", "eager", "--precision", f"fp8={file}", "--out", str(tmp_path / "a.png")]) == 0
    capsys.readouterr()
    assert cli.main([*drawn, "--engine", "eager", "--precision", "fp8", "--out", str(tmp_path / "b.png")]) == 2
    assert "rcdm export MODEL --to fp8" in capsys.readouterr().err
    rows = tmp_path / "rows.json"
    beside = ["compare", model, str(images / "1.png"), "--engines", f"eager:fp8={file}", "--steps", "2", "--per", "1"]
    assert cli.main([*beside, "--rounds", "1", "--json", str(rows), *cpu]) == 0
    reference, row = json.loads(rows.read_text())["rows"]
    assert reference["precision"] == "fp32"
    assert row["precision"] == "fp8"
    assert "emulated" in row["runs"]
    assert row["file_bytes"] == file.stat().st_size
    assert max(row["step_errors"]) > 1e-4


def test_of_models_without_representations(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_steps(monkeypatch, 0.0)
    monkeypatch.setattr(fallback, "MADE_UP", 4)
    model = small.quick_model(representation_dim=0, num_classes=3)
    found = fp8.calibrate(dataclasses.replace(job(model), representations=None))
    assert set(found.model) == set(inner_convolutions(model.unet))
