"""What commands refuse before any work: options that nothing would come of, names of no file, places among the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rcdm_fast
from rcdm_fast import ConfigError, engines, solver_quality
from rcdm_fast.cli import bench, main
from rcdm_fast.jobs import cluster, local
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.throughput import Case
from tests import small


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The error of a command, which wrote nothing."""
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "generate DATA --out OUT --per 1 --steps 1 --model cifar10-simclr-trunk",
        "train mine --config starter --data DATA --encoder bundled:cifar10-simclr --out OUT",
        "pretrain mine --config cifar10-simclr-encoder --data DATA --out OUT",
        "adapt cifar10-simclr-trunk --encoder bundled:cifar10-supervised --data DATA --out OUT",
        "distill cifar10-simclr-trunk --data DATA --out OUT",
        "analyze cifar10-simclr-trunk invariance --data DATA --out OUT",
        "analyze cifar10-simclr-trunk photos --photos DATA --out OUT",
        "analyze cifar10-simclr-trunk neighbors --data world:shapes --train-data DATA --out OUT",
        "sample DATA --per 1 --steps 1 --images OUT",
    ],
)
def test_results_do_not_lie_among_the_images(command: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next run would read them: a job could not be resumed, an experiment would be about its own figures."""
    before = sorted(photos.rglob("*"))
    for out in (photos, photos / "made", photos / "made" / "deep"):
        words = [{"DATA": str(photos), "OUT": str(out)}.get(word, word) for word in command.split()]
        said = refused(capsys, *words)
        assert f"{out} lies in {photos}" in said
        assert ("--images" if "--images" in command else "--out") in said
    assert sorted(photos.rglob("*")) == before


def test_the_default_place_of_a_job_and_of_a_run_is_looked_at_too(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    assert "job lies in ." in refused(capsys, "generate", ".", "--model", "cifar10-simclr-trunk")
    assert "runs/mine lies in ." in refused(capsys, "train", "mine", "--config", "starter", "--data", ".")
    assert "found lies in ." in refused(capsys, "analyze", "cifar10-simclr-trunk", "invariance", "--data", ".")


def test_from_python_too(photos: Path) -> None:
    model = small.quick_model()
    with pytest.raises(ConfigError, match="job lies in"):
        local.run(model, photos, photos / "job")
    with pytest.raises(ConfigError, match=r"run lies in .*out="):
        rcdm_fast.train("starter", photos, photos / "run", encoder="bundled:cifar10-simclr")
    with pytest.raises(ConfigError, match=r"run lies in .*out="):
        rcdm_fast.adapt("cifar10-simclr-trunk", "bundled:cifar10-supervised", photos, photos / "run")


def test_on_a_cluster_too(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ray", lambda: None)
    monkeypatch.setattr(cluster.ModelSpec, "load", lambda _: small.quick_model())
    with pytest.raises(ConfigError, match="job lies in"):
        cluster.run(cluster.ModelSpec("m"), str(photos), photos / "job", JobConfig(), RunOptions())


@pytest.mark.parametrize("name", ["", " ", "../mine", "a/../../mine", "/tmp/mine"])
def test_a_run_has_a_name(name: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a name that leads elsewhere the finished model would lie outside of its folder."""
    out = photos.parent / "run"
    for command in ("train", "pretrain"):
        said = refused(capsys, command, name, "--config", "starter", "--data", photos, "--out", out)
        assert f"a run is called by a name such as mine, got {name!r}; --out says" in said
    assert "a run is called" in refused(capsys, "train-reader", name, "--config", "shapes-reader", "--out", out)
    if name:
        for words in (("adapt", "m", "--encoder", "bundled:cifar10-simclr"), ("distill", "m")):
            assert "a run is called" in refused(capsys, *words, "--data", photos, "--out", out, "--name", name)


def test_a_run_in_this_folder_is_called_like_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--out . has no name of its own, and the model was written into ".safetensors"."""
    place = tmp_path / "of mine"
    place.mkdir()
    monkeypatch.chdir(place)
    called: list[str] = []

    def run(settings: Any, *_: Any, **__: Any) -> Path:
        called.append(settings.name)
        raise ConfigError("far enough")

    monkeypatch.setattr("rcdm_fast.training.adapt.adapt", run)
    monkeypatch.setattr("rcdm_fast.training.distill.distill", run)
    monkeypatch.setattr("rcdm_fast.workflows.adapted", run)
    adapt = ["adapt", "cifar10-simclr-trunk", "--encoder", "bundled:cifar10-supervised", "--data", str(photos)]
    for out in (".", "../of mine/", str(place)):
        assert main([*adapt, "--out", out]) == 2
        assert main(["distill", "cifar10-simclr-trunk", "--data", str(photos), "--out", out]) == 2
        with pytest.raises(ConfigError, match="far enough"):
            rcdm_fast.adapt("cifar10-simclr-trunk", "bundled:cifar10-supervised", photos, out)
    assert called == ["of mine"] * 9


@pytest.mark.parametrize("sizes", ["x", "1,", "", "-1", "1.5", "2;4"])
def test_batch_sizes_of_an_export_are_numbers(sizes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("export", "m", "--to", "tensorrt", "--out", tmp_path / "e", f"--batch-size={sizes}")
    assert "--batch-size takes whole numbers separated by commas" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("given", "named"),
    [({"targets": ("sm89",)}, "targets"), ({"batches": (1, 8)}, "batches"), ({"dynamic": True}, "dynamic")],
)
def test_only_tensorrt_is_built_for_a_gpu_and_a_batch(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: only tensorrt is built"):
        rcdm_fast.export(small.quick_model(), "onnx", tmp_path / "e", **given)
    assert not (tmp_path / "e").exists()


def test_actors_are_of_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--workers are Ray's: give --ray, too" in refused(capsys, "generate", "5", "--workers", "2")


def test_real_images_are_compared_in_a_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = tmp_path / "real.npz"
    np.savez(real, arr_0=np.zeros((4, 32, 32, 3), np.uint8))
    words = ("evaluate", "cifar10-simclr-trunk", "--data", "world:shapes?count=4", "--features", "none")
    assert "--reference-npz is compared in a feature space" in refused(capsys, *words, "--reference-npz", real)


def test_every_decoder_of_a_calibration_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two by one label the first was dropped; a file whose path has a "=" was cut at it."""
    opened: list[str] = []

    def found(name: str, *_: Any) -> Any:
        opened.append(name)
        return small.quick_model()

    def run(models: Any, *_: Any) -> Any:
        raise ConfigError(f"drawn by {list(models)}")

    monkeypatch.setattr("rcdm_fast.cli.common.open_model", found)
    monkeypatch.setattr("rcdm_fast.analysis.calibrate.calibrate", run)
    file = tmp_path / "lr=1e-4.safetensors"
    file.touch()
    assert "two decoders are called a" in refused(capsys, "calibrate", "a=f", "a=g")
    opened.clear()
    assert f"drawn by ['{file}', 'b']" in refused(capsys, "calibrate", file, f"b={file}")
    assert opened == [str(file), str(file)]


def test_all_engines_are_all_beside_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "reasons_unavailable", lambda name, *_: [] if name in ("native", "eager") else ["no"])
    ways, _ = solver_quality.cases(small.quick_model(), ["ddim"], [2])
    found = bench._cases("cpu", "native, all", "fp32", ways)
    assert found == (Case("native", "fp32", "ddim", 2), Case("eager", "fp32", "ddim", 2))


def test_a_node_gives_its_cores_to_the_run(checkout: Path) -> None:
    """Slurm's srun has one core for each task unless it is told again."""
    lines = (checkout / "examples" / "train.slurm").read_text(encoding="utf-8").splitlines()
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert '--cpus-per-task "$SLURM_CPUS_PER_TASK"' in command
    assert any(line.startswith("#SBATCH --cpus-per-task=") for line in lines)
