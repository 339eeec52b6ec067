"""Sources of data: arrays, archives, tables, datasets and folders, for training and for jobs."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access as jobs
from rcdm_fast.data import sample_files, sources
from rcdm_fast.data.readers.table_files import pyarrow
from rcdm_fast.images import ImageError, to_uint8
from rcdm_fast.storage import StorageError
from tests import small
from tests.fuzz.kind import Door, Kind
from tests.fuzz.kinds_images import encoded

COUNT = 5
SIZE = 8


def pixels() -> np.ndarray:
    """uint8 [N,8,8,3]."""
    return to_uint8(small.make_images(COUNT)).permute(0, 2, 3, 1).contiguous().numpy()


def representations() -> np.ndarray:
    """float32 [N,D]."""
    return torch.randn(COUNT, small.DIM, generator=torch.Generator().manual_seed(0)).numpy()


def _npy(folder: Path) -> None:
    for name, array in (("images", pixels()), ("first", pixels().transpose(0, 3, 1, 2).copy())):
        np.save(folder / f"{name}.npy", array)


def _h(folder: Path) -> None:
    np.save(folder / "h.npy", representations())
    np.save(folder / "half.npy", representations().astype(np.float16))
    np.save(folder / "double.npy", np.asfortranarray(representations().astype(np.float64)))
    np.save(folder / "labels.npy", np.arange(COUNT))


def _npz(folder: Path) -> None:
    np.savez(folder / "plain.npz", pixels())
    np.savez_compressed(folder / "images.npz", images=pixels(), labels=np.arange(COUNT), ids=np.array(list("abcde")))


def _npz_h(folder: Path) -> None:
    np.savez(folder / "h.npz", representations=representations(), ids=np.array([f"é{n}" for n in range(COUNT)]))


def _safetensors(folder: Path) -> None:
    ids = json.dumps([f"id {number}" for number in range(COUNT)])
    h = torch.from_numpy(representations())
    storage.save_tensors(folder / "h.safetensors", {"representations": h}, {"ids": ids})
    storage.save_tensors(folder / "half.safetensors", {"h": h.to(torch.bfloat16), "other": torch.ones(3)}, {})
    storage.save_tensors(folder / "images.safetensors", {"images": torch.from_numpy(pixels())}, {})


def shard(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive with those members."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return made.getvalue()


def members(first: int = 0) -> list[tuple[str, bytes]]:
    """Two samples with labels."""
    found = []
    for number, form in ((first, "png"), (first + 1, "jpeg")):
        found += [(f"{number:03d}.{form[:3]}", encoded(form)), (f"{number:03d}.cls", b"3")]
    return [*found, (f"{first:03d}.json", b'{"label": 3}')]


def _tar(folder: Path) -> None:
    (folder / "ustar.tar").write_bytes(shard(members()))
    (folder / "gnu.tar").write_bytes(shard([(f"{'long' * 40}/0.png", encoded("png"))], tarfile.GNU_FORMAT))
    (folder / "pax.tar").write_bytes(shard([(f"{'é' * 80}/0.png", encoded("png"))], tarfile.PAX_FORMAT))


def _shards(folder: Path) -> None:
    place = folder / "shards"
    place.mkdir()
    for number in range(2):
        (place / f"part-{number}.tar").write_bytes(shard(members(2 * number)))


def _packed(folder: Path) -> None:
    (folder / "packed").mkdir()
    (folder / "packed" / "a.tar.gz").write_bytes(gzip.compress(shard(members()), mtime=0))
    (folder / "packed" / "a.tar").write_bytes(shard(members()))


def tables() -> dict[str, Any]:
    """Tables with images or representations."""
    arrow, _ = pyarrow()
    png = [encoded("png", mode) for mode in ("RGB", "L", "P", "RGBA", "1")]
    dictionary = arrow.array([str(number) for number in range(COUNT)]).dictionary_encode()
    structs = arrow.array([{"bytes": each, "path": None} for each in png])
    h = representations()
    fixed = arrow.FixedSizeListArray.from_arrays(arrow.array(h.ravel()), small.DIM)
    ragged = arrow.array([[1.0, 2.0], None, [], [None], [3.0]], arrow.list_(arrow.float64()))
    return {
        "bytes": arrow.table({"image": png, "id": dictionary}),
        "structs": arrow.table({"image": structs, "label": list(range(COUNT))}),
        "h": arrow.table({"h": h.tolist(), "key": [f"k{number}" for number in range(COUNT)]}),
        "fixed": arrow.table({"embedding": fixed}),
        "ragged": arrow.table({"h": ragged}),
    }


COMPRESSIONS = {"bytes": "none", "structs": "snappy", "h": "zstd", "fixed": "none", "ragged": "gzip"}


def _parquet(folder: Path) -> None:
    _, parquet = pyarrow()
    for name, table in tables().items():
        parquet.write_table(table, folder / f"{name}.parquet", compression=COMPRESSIONS[name], row_group_size=3)


def _arrow_file(folder: Path) -> None:
    arrow, _ = pyarrow()
    for name, table in tables().items():
        packed = name == "h"
        options = arrow.ipc.IpcWriteOptions(compression="lz4" if packed else None)
        path = folder / f"{name}.{'feather' if packed else 'arrow'}"
        with arrow.ipc.new_file(path, table.schema, options=options) as file:
            file.write_table(table, max_chunksize=3)


def _arrow_stream(folder: Path) -> None:
    arrow, _ = pyarrow()
    for name, table in tables().items():
        options = arrow.ipc.IpcWriteOptions(compression="zstd" if name in ("h", "ragged") else None)
        with arrow.ipc.new_stream(folder / f"{name}.arrow", table.schema, options=options) as file:
            file.write_table(table, max_chunksize=3)


def _hugging_face(folder: Path) -> None:
    """Datasets as save_to_disk leaves them; their fingerprints are drawn by chance, so they are made equal."""
    datasets: Any = importlib.import_module("datasets")
    png = [{"bytes": encoded("png"), "path": None} for _ in range(COUNT)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    data = datasets.Dataset.from_dict({"image": png, "label": [0, 1, 2, 0, 1]}, features=features)
    data.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(folder / "split")
    for state in folder.rglob("state.json"):
        found = json.loads(state.read_text(encoding="utf-8"))
        state.write_text(json.dumps({**found, "_fingerprint": "0" * 16}), encoding="utf-8")


def _tree(folder: Path) -> None:
    """Folders of several shapes."""
    contents = {
        "classes": {"cat/0.png": encoded("png"), "dog/1.jpg": encoded("jpeg"), "dog/2.webp": encoded("webp")},
        "flat": {"0.png": encoded("png"), "1.gif": encoded("gif"), "notes.txt": b"x"},
        "mixed": {"0.png": encoded("png"), "1.tar": shard(members()), "2.npy": b"\x93NUMPY"},
    }
    for name, entries in contents.items():
        for path, content in entries.items():
            (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / path).write_bytes(content)


def _store(folder: Path) -> None:
    """A store of decoded images beside the source it was made of."""
    for name in ("whole", "half"):
        place = folder / name
        place.mkdir()
        np.save(place / "data.npy", pixels())
        with contextlib.chdir(place):
            sources.open_data("data.npy", SIZE, store="store")
    state = folder / "half" / "store" / "progress.json"
    told = json.loads(state.read_text(encoding="utf-8"))
    state.write_text(json.dumps({**told, "complete": False}), encoding="utf-8")


def train(path: Path) -> None:
    """As `rcdm train --data`."""
    found = sources.open_data(str(path), SIZE, workers=2)
    assert found.pixels.shape[1:] == (3, SIZE, SIZE), found.pixels.shape


def train_from_inside(path: Path) -> None:
    """The same for the current folder: names of files are then not preceded by a folder's."""
    if path.is_dir():
        with contextlib.chdir(path):
            train(Path())


def generate(path: Path) -> None:
    """As `rcdm generate`: list, fingerprint and read every item; one that cannot be read is an error of its own."""
    source = jobs.find(str(path))
    jobs.fingerprint(source)
    source.width()
    for place in range(min(len(source), 64)):
        source.id(place).encode("utf-8")  # it goes into the manifest
        try:
            source.read(place)
        except ImageError as error:
            told = str(error)
            assert "\n" not in told.replace(path.name, ""), told


def generate_from_inside(path: Path) -> None:
    """The same for the current folder."""
    if path.is_dir():
        with contextlib.chdir(path):
            generate(Path())


def dataset(path: Path) -> None:
    """As `rcdm train --data hf:FOLDER`."""
    sources.open_data(f"hf:{path}?split=train", SIZE, workers=2)


def stored(path: Path) -> None:
    """A store that is there already."""
    if path.is_dir():
        with contextlib.chdir(path):
            sources.open_data("data.npy", SIZE, store="store", workers=2)


def samples(path: Path) -> None:
    """As the evaluation of other people's samples."""
    sample_files.read_npz(path)


TRAIN = Door(train, (ImageError, StorageError))
GENERATE = Door(generate, (ImageError, ConfigError, StorageError))
INSIDE = Door(train_from_inside, (), (ImageError, StorageError))  # the folder that it names is "."
GENERATE_INSIDE = Door(generate_from_inside, (), (ImageError, ConfigError, StorageError))
DATASET = Door(dataset, (ImageError, StorageError))
KINDS = (
    Kind("data-npy", _npy, (TRAIN, GENERATE)),
    Kind("data-npz", _npz, (TRAIN, GENERATE, Door(samples, (ConfigError,))), good=False),
    Kind("h-npy", _h, (GENERATE,)),
    Kind("h-npz", _npz_h, (GENERATE,)),
    Kind("data-safetensors", _safetensors, (GENERATE,)),
    Kind("tar", _tar, (TRAIN, GENERATE), suffixes=(".tgz", ".tar.gz", ".png")),
    Kind("shards", _shards, (TRAIN, GENERATE, INSIDE), names=0.2),
    Kind("shards-packed", _packed, (TRAIN, GENERATE), names=0.1, good=False),
    Kind("parquet", _parquet, (GENERATE,), suffixes=(".arrow",)),
    Kind("arrow-file", _arrow_file, (GENERATE,), suffixes=(".feather", ".parquet")),
    Kind("arrow-stream", _arrow_stream, (GENERATE,), suffixes=(".feather",)),
    Kind("hugging-face", _hugging_face, (TRAIN, GENERATE, DATASET), names=0.1, good=False),
    Kind("tree", _tree, (TRAIN, GENERATE, INSIDE, GENERATE_INSIDE), names=0.9),
    Kind("store", _store, (Door(stored, (ImageError, StorageError)),), mutable="store/", own=True, names=0.1),
)
