"""Representations that were computed elsewhere: brought to images, trained and adapted on, evaluated without one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rcdm_fast
from rcdm_fast import ConfigError, evaluation, unranked
from rcdm_fast.cli import main
from rcdm_fast.data import aligned
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.data.sources import open_data
from rcdm_fast.denoising import x0_errors
from rcdm_fast.encoders.features import of_encoder
from rcdm_fast.errors import RunError
from rcdm_fast.images import ImageError, save_image, to_pil, to_uint8
from rcdm_fast.models import checkpoint
from tests import small

COUNT = 24
H = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(0))
UNET = {"image_size": 8, "num_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images as a folder and as an array, representations in both orders, a configuration."""
    place = tmp_path_factory.mktemp("aligned")
    for number, image in enumerate(small.make_images(COUNT)):
        save_image(to_pil(image), place / "photos" / "ab"[number % 2] / f"{number:02}.png")
    pixels = to_uint8(small.make_images(COUNT)).permute(0, 2, 3, 1).numpy()
    np.savez(place / "images.npz", images=pixels, labels=np.arange(COUNT) % 2)
    np.save(place / "h.npy", H.numpy())
    values = {"name": "tiny", "images": 32, "batch_size": 16, "precision": "fp32", "sheet_every": 0, "unet": UNET}
    encoder = {"source": "bundled:cifar10-simclr"}  # not looked at
    (place / "tiny.json").write_text(json.dumps({**values, "encoder": encoder, "augmented_views": 2}))
    return place


@pytest.fixture(scope="module")
def photos(folder: Path) -> ImageSet:
    return open_data(folder / "photos", 8)


@pytest.mark.parametrize("kind", ["paths", "below", "stems", "beside", "safetensors"])
def test_rows_find_their_images_by_ids(kind: str, folder: Path, photos: ImageSet, tmp_path: Path) -> None:
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)).tolist()
    names = {
        "below": [path.relative_to(folder / "photos").as_posix() for path in photos.paths],
        "stems": [path.stem for path in photos.paths],
    }.get(kind, [str(path) for path in photos.paths])
    file, ids = tmp_path / "h.npz", [names[place] for place in order]
    if kind == "beside":
        file = tmp_path / "h.npy"
        np.save(file, H[order].numpy())
        (tmp_path / "h.paths.json").write_text(json.dumps(ids))
    elif kind == "safetensors":
        from rcdm_fast import storage

        file = tmp_path / "h.safetensors"
        storage.save_tensors(file, {"representations": H[order].contiguous()}, {"paths": json.dumps(ids)})
    else:
        np.savez(file, representations=H[order].numpy(), paths=np.array(ids))
    assert torch.equal(aligned.read(file, photos), H)


def test_one_row_is_not_that_of_two_images(tmp_path: Path) -> None:
    pixels = to_uint8(small.make_images(2))
    twice = ImageSet(pixels, None, (), (Path("a/1.png"), Path("b/1.png")), "made-up")
    np.savez(tmp_path / "h.npz", h=H[:2].numpy(), ids=np.array(["1.png", "2.png"]))
    with pytest.raises(ConfigError, match=r"id 1\.png is that of several images"):
        aligned.read(tmp_path / "h.npz", twice)


def test_an_id_that_could_be_of_two_rows_is_none(tmp_path: Path) -> None:
    """Without its extension an image may find a row, but not if several rows would do, and an exact one comes first."""
    pixels = to_uint8(small.make_images(2))
    data = ImageSet(pixels, None, (), (Path("a/cat.webp"), Path("a/dog.jpg")), "two")
    rows = torch.arange(6.0).view(3, 2)

    def read(*ids: str) -> torch.Tensor:
        np.savez(tmp_path / "h.npz", h=rows[: len(ids)].numpy(), ids=np.array(ids))
        return aligned.read(tmp_path / "h.npz", data)

    assert torch.equal(read("dog.png", "cat.png"), rows[[1, 0]])
    assert torch.equal(read("dog.png", "cat.png", "cat.webp"), rows[[2, 0]])
    with pytest.raises(ConfigError, match=r"1 of 2 images have no representation, such as a/cat\.webp"):
        read("dog.png", "cat.png", "cat.jpg")


def test_the_longest_end_of_a_path_that_is_an_id_counts(tmp_path: Path) -> None:
    data = ImageSet(
        to_uint8(small.make_images(3)), None, (), (Path("in/a/b/1.png"), Path("in/b/1.png"), Path("in/1.png")), "x"
    )
    for ids, order in ((["1.png", "b/1.png", "a/b/1.png"], [2, 1, 0]), (["b/1", "1", "a/b/1"], [2, 0, 1])):
        np.savez(tmp_path / "h.npz", h=H[:3].numpy(), ids=np.array(ids))
        assert torch.equal(aligned.read(tmp_path / "h.npz", data), H[order])


def test_ids_without_extension_may_hold_dots(tmp_path: Path) -> None:
    """An id photo.v2 is photo.v2.jpg, not a file photo of the kind v2; what is no file's name is no image's."""
    names = ("photo.v1.jpg", "photo.v2.jpg", "photo.jpg")
    data = ImageSet(to_uint8(small.make_images(3)), None, (), tuple(Path("in", name) for name in names), "dots")
    np.savez(tmp_path / "h.npz", h=H[:4].numpy(), ids=np.array(["photo.v2", "photo", ".", "photo.v1"]))
    assert torch.equal(aligned.read(tmp_path / "h.npz", data), H[[3, 0, 1]])


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([f"{number:02}.png" for number in range(COUNT - 1)], r"h\.paths\.json: no list of the 24 images of h\.npy"),
        ({"a": 1}, r"h\.paths\.json: no list of the 24 images of h\.npy"),
        (
            ["00.png", *(f"{number:02}.png" for number in range(COUNT - 1))],
            r"h\.paths\.json: 1 of 24 items .*: 00\.png",
        ),
    ],
    ids=["short", "no list", "twice"],
)
def test_a_list_beside_representations_that_does_not_fit(
    listed: Any, message: str, photos: ImageSet, tmp_path: Path
) -> None:
    np.save(tmp_path / "h.npy", H.numpy())
    (tmp_path / "h.paths.json").write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match=message):
        aligned.read(tmp_path / "h.npy", photos)


def test_images_that_could_not_be_read_are_told_where_numbers_differ(photos: ImageSet) -> None:
    less = dataclasses.replace(photos.subset(torch.arange(COUNT - 2)), skipped=("one", "another"))
    with pytest.raises(ConfigError, match=r"24 representations for 22 images; 2 images could not be read; give"):
        aligned.read(H, less)


def test_what_rcdm_encode_writes_fits(folder: Path, photos: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "h.npz"
    assert main(["encode", str(folder / "photos"), "--model", "cifar10-simclr-trunk", "--out", str(out)]) == 0
    assert np.array_equal(aligned.read(out, photos), np.load(out)["representations"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (H[:-1], "23 representations for 24 images"),
        (torch.cat([H, H]), "48 representations for 24 images"),
        (torch.zeros(COUNT, dtype=torch.int64), "these are labels"),
        (torch.where(torch.arange(COUNT)[:, None] == 3, torch.nan, H), "item 3: .*not finite"),
        ({"ids": [f"x{number}" for number in range(COUNT)]}, r"24 of 24 images have no rep.*, such as .*00\.png"),
        ({"ids": [f"{number:02}.png" for number in range(COUNT - 1)]}, r"1 of 24 .* such as .*23\.png"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(given: Any, message: str, photos: ImageSet, tmp_path: Path) -> None:
    if isinstance(given, dict):
        np.savez(tmp_path / "h.npz", h=H[: len(given["ids"])].numpy(), ids=np.array(given["ids"]))
        given = tmp_path / "h.npz"
    with pytest.raises((ConfigError, ImageError), match=message):
        aligned.read(given, photos)


def test_a_run_on_representations(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained and resumed by the command, sampled, interpolated, evaluated as far as that goes, adapted again."""
    monkeypatch.chdir(folder)
    run = str(tmp_path / "run")
    words = ["train", "tiny", "--config", "tiny.json", "--data", "images.npz", "--out", run]
    assert main([*words, "--representations", "h.npy", "--encoder", "bundled:cifar10-simclr"]) == 2
    assert main([*words, "--representations", "h.npy", "--minutes", "0"]) == 0
    assert main([*words, "--representations", "h.npy"]) == 0
    assert "finished" in capsys.readouterr().out
    model = rcdm_fast.load(tmp_path / "run" / "tiny.safetensors")
    assert (model.config.unet.representation_dim, model.config.encoder, model.encoder) == (5, None, None)
    assert model.config.info["run"]["random_flip"] is False
    with pytest.raises(RunError, match="representations"):
        rcdm_fast.train("tiny.json", "images.npz", run, representations=H + 1)
    again = rcdm_fast.train("tiny.json", "images.npz", tmp_path / "b", representations=H.numpy())
    (_, tensors), (_, others) = checkpoint.load_model(again), checkpoint.load_model(f"{run}/tiny.safetensors")
    assert all(torch.equal(others[name], tensor) for name, tensor in tensors.items())
    named = ["--model", f"{run}/tiny.safetensors", "--steps", "2", "--out", str(tmp_path / "sheet.png")]
    assert main(["sample", "h.npy", "--per", "1", *named]) == 0
    assert main(["interpolate", "h.npy:3", "h.npy:7", "--frames", "3", *named]) == 0
    assert main(["interpolate", "h.npy", "h.npy:7", *named]) == 2
    assert "say which, as in h.npy:0" in capsys.readouterr().err
    assert main(["interpolate", "h.npy:99", "h.npy:7", *named]) == 2

    words = ["evaluate", f"{run}/tiny.safetensors", "--data", "images.npz", "--steps", "2", "--per", "2"]
    numbers = tmp_path / "numbers.json"
    assert main(words) == 2
    assert "--representations" in capsys.readouterr().err
    assert main([*words, "--representations", "h.npy", "--denoising", "--json", str(numbers)]) == 0
    text = capsys.readouterr().out
    for each in unranked.LEFT_OUT:
        assert f"left out, for it needs the encoder, or another one to --rank-by: {each}" in text
    found = json.loads(numbers.read_text())
    assert found["variance"]["value"] > 0
    assert found["x0_errors"].keys() == {str(t) for t in found["x0_errors"]} != set()
    judged = ["--representations", "h.npy", "--rank-by", "bundled:cifar10-simclr", "--gallery", "9", "--sources", "3"]
    npz = tmp_path / "samples.npz"
    assert main([*words, *judged, "--denoising", "--npz", str(npz), "--json", str(numbers)]) == 0
    assert "ranked by                          bundled:cifar10-simclr, layer backbone" in capsys.readouterr().out
    ranked = json.loads(numbers.read_text())
    assert (ranked["gallery"], ranked["sources"], ranked["samples"]) == (9, 3, 2)
    assert ranked["made_by"]["ranked_by"]["source"] == "bundled:cifar10-simclr"
    assert ranked["x0_errors"].keys() == found["x0_errors"].keys()
    places = evenly(9, len(H))[evenly(3, 9)]
    drawn = to_uint8(model.sample(H[places], per=2, steps=2, items=evenly(3, 9)))
    with np.load(npz) as kept:
        assert np.array_equal(kept["arr_0"], drawn.flatten(0, 1).permute(0, 2, 3, 1).numpy())
    old = ["--old-encoder", "bundled:cifar10-simclr"]
    words = [
        "adapt",
        "cifar10-simclr-trunk",
        "--data",
        "images.npz",
        "--set",
        "steps=0",
        "--out",
        str(tmp_path / "c"),
        *old,
    ]
    assert main(words) == 2
    assert main([*words, "--representations", "h.npy"]) == 0
    adapted = rcdm_fast.load(tmp_path / "c" / "c.safetensors")
    assert adapted.sample(H[:1], per=1, steps=1).shape == (1, 1, 3, 32, 32)
    assert adapted.encoder is None


def test_evaluation_with_and_without_the_encoder_agree(folder: Path) -> None:
    """The same samples, variance, distributions and errors: only what needs the encoder is left out."""
    data, model = open_data(folder / "images.npz", 8), small.model()
    encoder = model.encoder
    assert encoder is not None
    h = encoder.encode(data.floats(slice(None)))
    config = evaluation.EvaluateConfig(sources=6, per=2, steps=2, gallery=12, resamples=100)
    full = evaluation.draw(model, data, config)
    model._encoder = None
    alone = unranked.draw(model, data, h, config)
    assert torch.equal(alone.images, full.images)
    space = of_encoder(small.encoder())
    found = unranked.measure(model, alone, config, space=space, probe=(encoder, data), denoising=True)
    assert found.distribution == evaluation.compare(full, space, config.seed)
    assert found.recognized == evaluation.recognition(full, encoder, data)
    model._encoder = encoder
    assert found.x0_errors == x0_errors(model, full.real, full.sources, seed=config.seed)
    assert found.variance is not None
    assert found.variance.value == pytest.approx(float(evaluation.variances(full.images).mean()))


def test_ranks_of_representations_from_elsewhere(folder: Path) -> None:
    """An encoder that ranks is all that ranks need: with the one that made h they are those of the model's own."""
    data, model = open_data(folder / "images.npz", 8), small.model()
    encoder = model.encoder
    assert encoder is not None
    config = evaluation.EvaluateConfig(sources=6, per=2, steps=2, gallery=12, resamples=100)
    full = evaluation.draw(model, data, config)
    h = encoder.encode(full.real.floats(slice(None)))
    model._encoder = None
    with pytest.raises(ConfigError, match="needs the model's encoder"):
        evaluation.draw(model, data, config, rank_by=encoder)
    ranked = evaluation.draw(model, data, config, gallery=h, rank_by=encoder)
    assert torch.equal(ranked.images, full.images)
    assert evaluation.faithfulness(ranked, config) == evaluation.faithfulness(full, config)


def test_images_in_memory(folder: Path) -> None:
    pixels = np.load(folder / "images.npz")["images"]
    config: dict[str, Any] = {"sources": 6, "per": 1, "steps": 1, "resamples": 100}
    from_file = rcdm_fast.evaluate(small.model(), folder / "images.npz", **config)
    assert rcdm_fast.evaluate(small.model(), pixels, **config) == from_file
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    assert rcdm_fast.evaluate(small.model(), floats, **config) == from_file
    with pytest.raises(ImageError):
        rcdm_fast.evaluate(small.model(), np.zeros((3, 8, 8)))
