"""The example without torch: the library's images, in an environment that has neither torch nor rcdm_fast."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import venv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast import config as configs
from rcdm_fast.config import EncoderConfig, ScheduleConfig
from rcdm_fast.diffusion.noise import keyed_normal
from rcdm_fast.diffusion.schedule import Schedule, betas_of
from rcdm_fast.encoders import ImageEncoder, build, preprocess
from rcdm_fast.images import from_pil, load_image, to_pil
from tests import small
from tests.tolerances import ENCODER_ONNX_L2, RESIZE_ABS, RESIZE_HALVED_ABS, TRAJECTORY_L2

pytestmark = pytest.mark.usefixtures("shared_exports")

BUNDLED = "cifar10-simclr-trunk"
FEEDS = ("sample", "timestep", "representation")
NEEDS = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")  # with the libraries that their wheels bundle


@pytest.fixture(scope="module")
def example(checkout: Path) -> ModuleType:
    path = checkout / "examples" / "onnx_only.py"
    spec = importlib.util.spec_from_file_location("onnx_only", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> rcdm_fast.Model:
    """Predicts images, like those that are bundled; its network is one that other tests export too."""
    convention = EncoderConfig("module", image_size=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    schedule = dataclasses.replace(small.SCHEDULE, prediction="x0")
    return rcdm_fast.Model.from_network(small.network(), schedule, ImageEncoder(small.MeanColor(), convention))


@pytest.fixture(scope="module")
def exported(model: rcdm_fast.Model, shared_exports: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    files = rcdm_fast.export(model, "onnx", folder)
    assert sorted(file.name for file in files) == ["encoder.onnx", "network.onnx"]
    return folder


@pytest.fixture(scope="module")
def bundled() -> rcdm_fast.Model:
    return rcdm_fast.load(BUNDLED, device="cpu", engine="eager")


def relative(got: np.ndarray, want: torch.Tensor) -> float:
    return float((torch.from_numpy(got) - want).norm() / want.norm())


@pytest.mark.long
def test_the_same_representations_and_images(example: ModuleType, bundled: rcdm_fast.Model, tmp_path: Path) -> None:
    rcdm_fast.export(bundled, "onnx", tmp_path)
    images = small.make_images(3, size=32)
    h = bundled.encode(images)
    encoder = example.open_session(tmp_path / "encoder.onnx")
    got = encoder.run(None, {"image": images.numpy()})[0]
    assert relative(got, h) <= ENCODER_ONNX_L2
    network = example.open_session(tmp_path / "network.onnx")
    config = example.metadata(network, "config")
    assert config["schedule"]["prediction"] == "x0"
    x_T = torch.randn(3, 3, 32, 32)
    want = bundled.sample(h, per=1, solver="ddim", steps=25, noise=x_T[:, None])[:, 0]
    assert relative(example.ddim(network, config["schedule"], got, x_T.numpy(), 25), want) <= TRAJECTORY_L2
    again = rcdm_fast.load(BUNDLED, encoder=f"onnx:{tmp_path / 'encoder.onnx'}", device="cpu", engine="eager")
    assert again.encoder is not None
    assert again.encoder.config.dim == 192
    assert relative(again.encode(images).numpy(), h) <= ENCODER_ONNX_L2


@pytest.mark.parametrize(
    "changes", [{}, {"noise_schedule": "cosine", "diffusion_steps": 200}, {"prediction": "x0"}, {"prediction": "v"}]
)
def test_every_kind_of_schedule(example: ModuleType, changes: dict[str, object]) -> None:
    config = dataclasses.replace(ScheduleConfig(), **changes)  # type: ignore[arg-type]
    data = dataclasses.asdict(config)
    base = np.cumprod(1 - betas_of(config.noise_schedule, config.diffusion_steps))
    np.testing.assert_allclose(example.alpha_bars(data), base, rtol=1e-9)
    for steps in (1, 2, 7, 25, 50, 200):
        assert tuple(example.spread(config.diffusion_steps, steps)) == Schedule.make(config, steps).timesteps


class Session:
    """The network itself behind onnxruntime's call."""

    def __init__(self, model: rcdm_fast.Model) -> None:
        self.model = model

    def run(self, _outputs: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert not feeds["fraction"].any()
        return [self.model.network(*(torch.from_numpy(feeds[name]) for name in FEEDS)).numpy()]


def test_a_network_that_predicts_eps(example: ModuleType) -> None:
    model = small.model()
    schedule = dataclasses.asdict(model.config.schedule)
    assert schedule["prediction"] == "eps"
    h, x_T = torch.randn(2, small.DIM), torch.randn(2, 3, 8, 8)
    want = model.sample(h, per=1, solver="ddim", steps=10, noise=x_T[:, None])[:, 0]
    assert relative(example.ddim(Session(model), schedule, h.numpy(), x_T.numpy(), 10), want) <= TRAJECTORY_L2


def test_the_same_noise(example: ModuleType) -> None:
    for seed, sample in ((0, 0), (2**63 + 5, 3)):
        np.testing.assert_array_equal(
            example.keyed_noise(seed, sample, 3 * 7 * 7), keyed_normal(seed, 0, sample, 0, 147)
        )


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, RESIZE_ABS),
        ({"resize": "squash", "interpolation": "bicubic"}, RESIZE_ABS),
        ({"resize_to": 40, "interpolation": "box_bicubic"}, RESIZE_HALVED_ABS),
    ],
)
def test_what_the_encoder_sees(example: ModuleType, changes: dict[str, object], tolerance: float) -> None:
    convention = EncoderConfig("module", image_size=32, **changes)  # type: ignore[arg-type]
    photo = to_pil(small.make_images(1, size=150)[0, :, :, :110])
    want = preprocess.view(from_pil(photo), convention)
    got = example.to_array(example.view(photo, dataclasses.asdict(convention)))
    assert got.shape == (1, 3, 32, 32)
    assert float((torch.from_numpy(got) - want).abs().max()) <= tolerance


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with numpy, Pillow and onnxruntime and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    installed = Path(np.__file__).parents[1]
    for name in NEEDS:
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    return folder / "bin" / "python"


def test_it_runs_without_torch(
    bare_python: Path, model: rcdm_fast.Model, exported: Path, tmp_path: Path, checkout: Path
) -> None:
    absent = "import importlib.util as u; print([n for n in ('torch', 'rcdm_fast', 'onnx') if u.find_spec(n)])"
    command = [str(bare_python), "-I"]
    assert subprocess.run([*command, "-c", absent], capture_output=True, text=True, check=True).stdout == "[]\n"
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    to_pil(small.make_images(1)[0]).save(photo)
    arguments = [photo, exported, out, "--steps", 5, "--count", 2, "--seed", 7]
    done = subprocess.run(
        [*command, str(checkout / "examples" / "onnx_only.py"), *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"2 samples of {model.config.name}, 5 steps" in done.stdout
    sheet = Image.open(out)
    assert sheet.size == (3 * 98, 96)
    want = model.sample(model.encode(photo), per=2, steps=5, solver="ddim", seed=7)[0]
    for column, image in enumerate([load_image(photo)[0], *want]):
        cell = sheet.crop((column * 98, 0, column * 98 + 96, 96)).resize((8, 8), Image.Resampling.NEAREST)
        difference = np.asarray(cell, dtype=int) - np.asarray(to_pil(image), dtype=int)
        assert np.abs(difference).max() <= 1


def test_the_encoder_file_is_an_encoder(model: rcdm_fast.Model, exported: Path) -> None:
    """Read back as ``onnx:PATH``: nothing is normalized twice."""
    images = small.make_images(5, size=48)
    again = build(f"onnx:{exported / 'encoder.onnx'}")
    assert relative(again.encode(images).numpy(), model.encode(images)) <= ENCODER_ONNX_L2
    stated = again.config
    assert stated.dim == small.DIM
    assert configs.from_json(EncoderConfig, configs.to_json(stated)) == stated
