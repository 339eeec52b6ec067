"""An encoder sees the images of a set as they lie in their source, as it sees one photograph by itself."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rcdm_fast import denoising, evaluation
from rcdm_fast.analysis import depth, interpolate, invert, nearness, neighbors, photos, readout, sweeps
from rcdm_fast.analysis import out_of_distribution as unfamiliar
from rcdm_fast.analysis.augment import AUGMENTATIONS
from rcdm_fast.config import EncoderConfig
from rcdm_fast.data import originals, sources
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.data.readers.image_files import Folder, Item
from rcdm_fast.data.sources import of_array, open_data
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.images import ImageError, from_uint8, load_image
from rcdm_fast.model import Model
from rcdm_fast.training import representations
from rcdm_fast.training.views import Views
from tests import small

COUNT, SIZE = 44, 8  # images, and pixels of the decoder's
FINE = 1e-4  # a representation is the same


class Texture(nn.Module):
    """Mean of each color, and how much neighboring pixels differ, of which little is left in 8 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.diff(dim=3).abs().mean(dim=(2, 3)) * 10], dim=1)


def encoder(**changes: object) -> ImageEncoder:
    """Of images of 32 pixels."""
    config = {"image_size": 32, "resize_to": 36, "rounding": "torchvision", **changes}
    return ImageEncoder(Texture(), EncoderConfig("module", **config))  # type: ignore[arg-type]


def model() -> Model:
    """A decoder of 8 pixels, with such an encoder."""
    return Model.from_network(small.network(channel_mult=(1,)), small.SCHEDULE, encoder())


def levels(number: int, height: int, width: int) -> np.ndarray:
    """A photograph with a texture of its own, uint8 [H,W,3]."""
    rng = np.random.default_rng(number)
    base, noise = rng.uniform(60, 200, 3), rng.uniform(5, 50)
    return (base + rng.normal(0, noise, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, upright and lying, two of the decoder's own size, and one that is none."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        height, width = ((60, 44), (44, 70))[number % 2] if number not in (3, 14) else (SIZE, SIZE)
        file = root / "ab"[number * 2 // COUNT] / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(levels(number, height, width)).save(file)
    (root / "a" / "05x.png").write_bytes(b"none")
    return root


def files(folder: Path) -> list[Path]:
    """Those that are photographs, in their order."""
    return sorted(path for path in folder.rglob("*.png") if path.name != "05x.png")


def alone(folder: Path) -> Tensor:
    """What `Model.encode` makes of every photograph."""
    return model().encode(files(folder))


def shards(folder: Path, tmp_path: Path) -> Path:
    """The same photographs in a shard."""
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for number, file in enumerate(files(folder)):
            content = file.read_bytes()
            info = tarfile.TarInfo(f"{number:03d}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return tmp_path / "all.tar"


def table(folder: Path, tmp_path: Path) -> Path:
    """The same photographs in a Parquet file."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"image": [file.read_bytes() for file in files(folder)]}), tmp_path / "all.parquet")
    return tmp_path / "all.parquet"


KINDS: dict[str, Callable[[Path, Path], Path]] = {"folder": lambda folder, _: folder, "shard": shards, "table": table}


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_encoded_as_its_photographs_are(
    folder: Path, tmp_path: Path, kind: str, store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK", 5)
    source, at = KINDS[kind](folder, tmp_path), tmp_path / "store" if store else None
    data = open_data(source, SIZE, store=at)
    wanted = alone(folder)
    found = representations.compute(encoder(), data, batch=7)
    assert torch.allclose(found, wanted, atol=FINE)
    pixels = dataclasses.replace(data, originals=None)
    assert float((representations.compute(encoder(), pixels) - wanted).norm(dim=1).median()) > 0.5, "it matters here"
    if store:
        again = open_data(source, SIZE, store=at)
        assert torch.allclose(representations.compute(encoder(), again), wanted, atol=FINE)
    places = torch.tensor([20, 3, 3, 11, 0, 20])
    for chosen in (data.subset(places), pickle.loads(pickle.dumps(data)).subset(places)):
        assert torch.allclose(representations.compute(encoder(), chosen), wanted[places], atol=FINE)
        assert torch.allclose(representations.compute(encoder(), chosen.part(2, 5)), wanted[places[2:5]], atol=FINE)


def test_mirrored_views_are_of_the_photographs(folder: Path, tmp_path: Path) -> None:
    """Also from the file that a run keeps, which another one goes on from without reading them again."""
    data = open_data(folder, SIZE)
    bank = representations.cached(encoder(), data, tmp_path, Views(True))
    mirrored = [Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for file in files(folder)]
    assert torch.allclose(bank[0], alone(folder), atol=FINE)
    assert torch.allclose(bank[1], model().encode(mirrored), atol=0.05)
    assert data.originals is not None
    data.originals._source = None  # type: ignore[assignment]
    assert torch.equal(representations.cached(encoder(), data, tmp_path, Views(True)), bank)
    pixels = dataclasses.replace(data, originals=None)
    assert representations.key(encoder(), pixels) != representations.key(encoder(), data)


@pytest.mark.parametrize("given", ["uint8", "floats", "npy", "npz"])
def test_arrays_are_seen_in_their_own_size(tmp_path: Path, given: str) -> None:
    array = np.stack([levels(number, 40, 56) for number in range(6)])
    wanted = model().encode([Image.fromarray(each) for each in array])
    if given == "uint8":
        data = of_array(array, SIZE)
    elif given == "floats":
        data = of_array(from_uint8(torch.from_numpy(array)).permute(0, 3, 1, 2), SIZE)
    else:
        file = tmp_path / f"a.{given}"
        np.save(file, array) if given == "npy" else np.savez(file, x=array)
        data = open_data(file, SIZE)
    assert torch.allclose(representations.compute(encoder(), data), wanted, atol=FINE)


def test_images_of_the_sets_own_size_are_not_read_again(tmp_path: Path) -> None:
    array = np.stack([levels(number, SIZE, SIZE) for number in range(6)])
    np.save(tmp_path / "a.npy", array)
    for store in (None, tmp_path / "store"):
        assert open_data(tmp_path / "a.npy", SIZE, store=store).originals is None
    assert of_array(array, SIZE).originals is None


def test_a_batch_goes_through_its_source_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order its images are wanted, and however many are decoded at once."""
    monkeypatch.setattr(originals, "_AT_ONCE", 4)
    data, begun, real = open_data(folder, SIZE), list[int](), Folder.items

    def items(self: Folder) -> Iterator[Item]:
        begun.append(1)
        yield from real(self)

    monkeypatch.setattr(Folder, "items", items)
    chosen = data.subset(torch.arange(COUNT).flip(0))
    assert torch.allclose(representations.compute(encoder(), chosen), alone(folder).flip(0), atol=FINE)
    for start in range(0, COUNT, 9):  # parts go on where the one before has ended
        part = data.part(start, min(COUNT, start + 9))
        assert torch.allclose(representations.compute(encoder(), part), alone(folder)[start : start + 9], atol=FINE)
    assert len(begun) == 1


def test_a_way_that_failed_is_begun_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, real = open_data(folder, SIZE), Folder.items
    broken = [True]

    def items(self: Folder) -> Iterator[Item]:
        for number, item in enumerate(real(self)):
            if number == 9 and broken:
                broken.clear()
                raise OSError("for once")
            yield item

    before = representations.compute(encoder(), data)
    monkeypatch.setattr(Folder, "items", items)
    with pytest.raises(OSError, match="for once"):
        representations.compute(encoder(), data)
    assert torch.equal(representations.compute(encoder(), data), before)


def test_every_encoder_sees_them_its_own_way(folder: Path) -> None:
    """Squashed, not cropped: sides of a photograph that the set does not hold are seen, too."""
    squashing = encoder(resize="squash", resize_to=0)
    wanted = Model.from_network(small.network(channel_mult=(1,)), small.SCHEDULE, squashing).encode(files(folder))
    assert torch.allclose(representations.compute(squashing, open_data(folder, SIZE)), wanted, atol=FINE)


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("change", ["renamed", "gone", "all gone", "one more", "damaged", "another"])
def test_a_source_that_has_changed_since(folder: Path, tmp_path: Path, store: bool, change: str) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    data = open_data(own, SIZE, store=tmp_path / "store" if store else None)
    before = representations.compute(encoder(), data)
    file = own / "a" / "06.png"
    if change == "renamed":
        file.rename(own / "a" / "00x.png")
    elif change == "one more":
        shutil.copy(file, own / "a" / "00x.png")
    elif change == "another":
        shutil.copy(own / "b" / "30.png", file)
    elif change == "damaged":
        file.write_bytes(file.read_bytes()[:100])
    else:
        shutil.rmtree(own) if change == "all gone" else file.unlink()
    if store:
        data = open_data(own, SIZE, store=tmp_path / "store")
    if change == "one more" and not store:  # what the folder held is known
        assert torch.equal(representations.compute(encoder(), data), before)
        return
    with pytest.raises(ImageError, match=r"06\.png|00x\.png|not in its source any more|no such"):
        representations.compute(encoder(), data)


def test_a_store_of_an_earlier_version(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It does not say which images are larger; they are seen as it has them, and a line says so."""
    data = open_data(folder, SIZE, store=tmp_path)
    progress, items = tmp_path / "progress.json", tmp_path / "items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    items.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k not in ("place", "other")}) + "\n" for row in rows)
    )
    state = json.loads(progress.read_text())
    progress.write_text(json.dumps({k: v for k, v in state.items() if k != "blocks"}))
    found = open_data(folder, SIZE, store=tmp_path)
    assert found.originals is None
    assert torch.equal(found.pixels, data.pixels)
    assert f"encoders see images of {SIZE} px" in caplog.text


class Asked(Exception):
    """What was wanted is known."""


def _depth(model: Model, data: ImageSet) -> None:
    """The rows of its sheet; what they stand for is measured by sweeps."""
    depth._rows([model], data, 0, depth.DepthConfig())


EXPERIMENTS: dict[str, Callable[[Model, ImageSet], Any]] = {
    "photos": lambda model, data: photos.run(model, data, photos.PhotosConfig(steps=2, per=2)),
    "invert": lambda model, data: invert.run(model, data, invert.InvertConfig(steps=2)),
    "interpolate": lambda model, data: interpolate.run(model, data, interpolate.InterpolateConfig(steps=2)),
    "evaluate": lambda model, data: evaluation.evaluate(model, data, evaluation.EvaluateConfig(steps=2, per=1)),
    "neighbors": lambda model, data: neighbors.run(model, data, neighbors.NeighborsConfig(steps=2)),
    "nearness": lambda model, data: nearness.run(model, data, nearness.NearnessConfig(steps=2)),
    "unfamiliar": lambda model, data: unfamiliar.run(model, data, data, unfamiliar.UnfamiliarConfig(steps=2)),
    "sweeps": lambda model, data: sweeps.measure(model, data, sweeps.InvarianceConfig(steps=2)),
    "depth": _depth,
    "denoising": lambda model, data: denoising.x0_errors(model, data, torch.arange(len(data))),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_condition_on_the_photographs(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wanted, asked = alone(folder), list[Tensor]()

    def noted(*given: Any, **more: Any) -> Any:
        h = next(
            each for each in (*given, *more.values()) if isinstance(each, Tensor) and each.shape[-1:] == (small.DIM,)
        )
        ends = [0, -1] if name == "interpolate" else slice(None)  # between them lies the way
        asked.append(h.reshape(-1, small.DIM)[ends])
        raise Asked

    for method in ("sample", "interpolate", "invert", "network"):
        monkeypatch.setattr(Model, method, noted)
    with pytest.raises(Asked):
        EXPERIMENTS[name](model(), open_data(folder, SIZE))
    apart = torch.cdist(torch.cat(asked).cpu().double(), wanted.double()).min(dim=1).values
    assert float(apart.max()) < FINE


@pytest.mark.parametrize("fits", [False, True])
def test_what_an_experiment_changes_is_the_photograph(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """A sweep encodes what becomes of what the encoder sees, for samples as for the readout."""
    for module in (sweeps, readout):
        monkeypatch.setattr(module, "MIN_READERS", COUNT if fits else COUNT + 1)
    data, blur, asked = open_data(folder, SIZE), AUGMENTATIONS["blur"], list[Tensor]()
    views = torch.cat([encoder().view(load_image(file)) for file in files(folder)])
    wanted = torch.stack([encoder().encode(blur(views, each)) for each in blur.magnitudes])

    def drawn(_: Model, h: Tensor, items: Tensor, config: sweeps.InvarianceConfig) -> Tensor:
        asked.append(h)
        return torch.rand(len(h), len(items), config.per, 3, SIZE, SIZE) * 2 - 1

    monkeypatch.setattr(sweeps, "draw", drawn)
    config = sweeps.InvarianceConfig(steps=2, sources=COUNT, augmentations=("blur",))
    found = sweeps.measure(model(), data, config)
    assert torch.allclose(asked[0][0], alone(folder), atol=FINE)
    assert any(each.shape == wanted.shape and torch.allclose(each, wanted, atol=FINE) for each in asked)
    moved = (wanted - alone(folder)).square().sum(dim=2).mean(dim=0)
    assert np.allclose(found.sweeps["blur"].readout.moved, moved, rtol=1e-3)
