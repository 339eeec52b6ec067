"""Which rows, members and labels items are: arrays of every shape, archives of every make, with answers by hand."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast import memory, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.readers import array_rows, tars
from rcdm_fast.images import ImageError, from_uint8
from rcdm_fast.jobs import local, stream
from rcdm_fast.jobs.settings import ENCODINGS, FORMATS, JobConfig, RunOptions
from rcdm_fast.model import Model
from tests import small

H = np.arange(15, dtype=np.float32).reshape(5, 3) / 7
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 9, 11, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(file, "png")
    return file.getvalue()


def write(path: Path, members: Sequence[tuple[str, bytes]], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if content.startswith(b"-> "):
                member.size, member.type, member.linkname = 0, tarfile.LNKTYPE, content[3:].decode()
            tar.addfile(member, io.BytesIO(content))
    return path


def found(path: Path) -> tuple[list[tuple[str, str | None]], dict[str, int]]:
    """(key, label) of every image, and what is left out."""
    left: Counter[str] = Counter()
    return [(each.key, each.label()) for each in tars.samples(path, path.name, left)], dict(left)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{0..3}", "0 1 2 3"),
        ("{3..1}", "3 2 1"),
        ("{08..11}", "08 09 10 11"),
        ("{8..11}", "8 9 10 11"),
        ("{000..002}", "000 001 002"),
        ("{10..12}", "10 11 12"),
        ("{a,b,c}", "a b c"),
        ("{a,}-{1..2}", "a-1 a-2 -1 -2"),
        ("{0..1}{x,y}", "0x 0y 1x 1y"),
        ("plain", "plain"),
        ("{one}", "{one}"),
    ],
)
def test_names_that_a_pattern_means(pattern: str, names: str) -> None:
    """As a shell has them; of commands, so that nothing need be there."""
    assert tars.shards(f"pipe:{pattern}::pipe:last") == [*(f"pipe:{name}" for name in names.split(" ")), "pipe:last"]
    assert tars.shards(f"s3://of/{pattern}") == [f"s3://of/{name}" for name in names.split(" ")]


def test_patterns_that_mean_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tars._EXPANDED == 1_000_000
    monkeypatch.setattr(tars, "_EXPANDED", 1000)
    for pattern in ("{1..1000}", "{999..0}", "{0..9}{0..99}"):
        assert len(tars.shards(f"pipe:{pattern}")) == 1000
    for pattern, said in (("{1..1001}", "means 1001 shards"), ("{0..9}{0..100}", "means more than 1000 shards")):
        with pytest.raises(ImageError, match=said):
            tars.shards(f"pipe:{pattern}")


@pytest.mark.parametrize("name", ["a.tar", "a.TAR", "b.tgz", "c.tar.gz", "d.Tar.Zst", "e.tbz2", "f.tar.xz"])
def test_names_of_shards(tmp_path: Path, name: str) -> None:
    assert tars.is_shard(name)
    assert not tars.is_shard(name + "x")
    for other in ("x.txt", "y.png", name, "z.tar"):
        (tmp_path / other).touch()
    assert tars.shards(str(tmp_path)) == [str(tmp_path / name), str(tmp_path / "z.tar")]
    (tmp_path / name).unlink()
    (tmp_path / "z.tar").unlink()
    with pytest.raises(ImageError, match=r"no \.tar files here"):
        tars.shards(str(tmp_path))
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(ImageError, match=r"1 of 2 shards are missing: .*folder"):
        tars.shards(f"{tmp_path}/folder.tar::{tmp_path}/x.txt")


P = png(0)
LABEL = json.dumps({"label": "json"}).encode()


@pytest.mark.parametrize(
    ("members", "images", "left"),
    [
        ([("a.png", P), ("a.cls", b" 7\n"), ("b.png", P), ("b.json", LABEL)], [("a", "7"), ("b", "json")], {}),
        ([("a.cls", b"cls"), ("a.json", LABEL), ("a.png", P)], [("a", "cls")], {}),
        ([("a.png", P), ("a.json", b'{"label": 3}'), ("b.png", P), ("b.json", b'{"label": [3]}')],
         [("a", "3"), ("b", None)], {}),
        ([("a.png", P), ("a.json", b"[1"), ("b.png", P), ("b.json", b"[1]")], [("a", None), ("b", None)], {}),
        ([("a.png", P), ("a.json", b" " * (1 << 20) + LABEL)], [("a", None)], {}),
        ([("a.png", P), ("a.json", LABEL.ljust(1 << 20))], [("a", "json")], {}),
        ([("x/a.PNG", P), ("y/a.png", P), ("./z/a.png", P)], [("x/a", None), ("y/a", None), ("z/a", None)], {}),
        ([(".a.png", P), (".x/b.png", P), ("x/.c/d.png", P), ("e", P), ("f.png", P)], [("f", None)], {}),
        ([("../a.png", P), ("x/../a.png", P)], [("../a", None), ("x/../a", None)], {}),
        ([("a.png", P), ("a.png", P), ("b.png", P)], [("a", None), ("a", None), ("b", None)], {}),
        ([("a.png", P), ("a.jpg", P), ("a.seg.png", P), ("a.txt", b"")], [("a", None)], {".png": 1, ".seg.png": 1}),
        ([("a.txt", b""), ("a.json", b""), ("b.img", P)], [("b", None)], {".txt": 1, ".json": 1}),
        ([("a.v1.png", P), ("a.v1.cls", b"one"), ("a.v2.png", P), ("a.cls", b"all"), ("a.txt", b"")],
         [("a.v1", "one"), ("a.v2", "all")], {}),
        ([("x/a.png", P), ("b.png", b"-> x/a.png"), ("x/c.png", b"-> a.png"), ("d.png", b"-> none.png")],
         [("x/a", None), ("b", None), ("x/c", None)], {"links": 1}),
    ],
)  # fmt: skip
def test_images_of_an_archive(
    tmp_path: Path, members: list[tuple[str, bytes]], images: list[tuple[str, str | None]], left: dict[str, int]
) -> None:
    assert found(write(tmp_path / "a.tar", members)) == (images, left)


def test_images_of_a_packed_archive(tmp_path: Path) -> None:
    """Their bytes are kept, and what describes them; a link leads to what is no longer there."""
    members = [
        ("a.png", P),
        ("a.cls", b"7"),
        ("a.txt", b"x"),
        ("b.png", b"-> a.png"),
        ("c.png", png(1)),
        ("c.json", LABEL),
    ]
    write(tmp_path / "a.tgz", members, "w:gz")
    assert found(tmp_path / "a.tgz") == ([("a", "7"), ("c", "json")], {"links": 1})
    contents = [each.content for each in tars.samples(tmp_path / "a.tgz", "a.tgz", Counter())]
    assert contents == [P, png(1)]


def test_where_images_lie(tmp_path: Path) -> None:
    """Two archives, one of them joined from two: every image's own bytes, and keys that tell them apart."""
    first = write(tmp_path / "one.tar", [("a.png", png(0)), ("b.png", png(1))])
    joined = (
        write(tmp_path / "x", [("a.png", png(2))]).read_bytes()
        + write(tmp_path / "y", [("a.png", png(3))]).read_bytes()
    )
    (tmp_path / "two.tar").write_bytes(joined)
    index = tars.index(str(tmp_path), (first, tmp_path / "two.tar"))
    assert [index.content(place) for place in range(4)] == [png(number) for number in range(4)]
    assert index.keys == ["one/a", "one/b", "two/a", "two/2/a"]
    assert index.shard.tolist() == [0, 0, 1, 1]
    assert index.size.tolist() == [len(png(number)) for number in range(4)]
    other = write(tmp_path / "three.tar", [("c.png", png(4))])
    assert tars.index("", (first, other)).keys == ["a", "b", "c"]
    apart = write(tmp_path / "x", [("a.png", P)]).read_bytes()
    apart += write(tmp_path / "y", [("a.cls", b"7"), ("b.png", P)]).read_bytes()
    (tmp_path / "apart.tar").write_bytes(apart)  # what describes "a" in another archive does not belong to it
    assert found(tmp_path / "apart.tar") == ([("a", None), ("b", None)], {".cls": 1})
    with tarfile.open(tmp_path / "holes.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.size, member.pax_headers = 4, {"GNU.sparse.size": "3000000000", "GNU.sparse.map": "0,4"}
        tar.addfile(member, io.BytesIO(b"abcd"))
    with pytest.raises(ImageError, match=r"holes\.tar: a is a file with holes"):
        tars.index("", (tmp_path / "holes.tar",)).content(0)
    with pytest.raises(ImageError, match=r"an image of 1\.1 GB"):
        tars.Piece(first, 0, (1 << 30) + 1).read()


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (np.zeros((2, 5), np.float16), "representation"),
        (np.zeros((2, 1, 5, 1), np.float32), "representation"),
        (np.zeros((2, 1), np.float32), "representation"),
        (np.zeros((2, 1, 1, 1, 5, 1), np.float32), None),
        (np.zeros((2, 3, 5), np.float32), None),
        (np.zeros((2, 0), np.float32), None),
        (np.zeros(2, np.float32), None),
        (np.zeros(2, np.uint8), "label"),
        (np.zeros((2, 1), np.int64), "label"),
        (np.zeros((2, 2), np.int64), None),
        (np.zeros((2, 8, 8, 3), np.uint8), "image"),
        (np.zeros((2, 3, 8, 8), np.uint8), "image"),
        (np.zeros(2, np.bool_), None),
        (torch.zeros(2, 5), "representation"),
        (torch.zeros(2, 3, 8, 8), "image"),
        (torch.zeros(2, 8, 8, 3), "image"),
        (torch.zeros(2, dtype=torch.int32), "label"),
        (torch.zeros(2, dtype=torch.bool), None),
        (torch.zeros(2, dtype=torch.complex64), None),
    ],
    ids=lambda value: f"{value.dtype}-{list(value.shape)}" if hasattr(value, "dtype") else str(value),
)  # fmt: skip
def test_what_rows_are(rows: Any, kind: str | None) -> None:
    if kind is None:
        with pytest.raises(ConfigError, match="expected representations"):
            random_access.find(rows)
    else:
        assert (random_access.find(rows).kind, len(random_access.find(rows))) == (kind, 2)


@pytest.mark.parametrize(
    ("arrays", "wanted", "kind", "first", "ids"),
    [
        ({"images": PIXELS, "h": H}, (), "representation", H[0], None),
        ({"images": PIXELS, "h": H}, ("image",), "image", PIXELS[0], None),
        ({"labels": np.arange(5) + 3, "images": PIXELS}, (), "image", PIXELS[0], None),
        ({"labels": np.arange(5) + 3, "images": PIXELS}, ("label",), "label", 3, None),
        ({"labels": np.arange(5) + 3}, (), "label", 3, None),
        ({"mine": H, "counts": np.arange(5)}, (), "representation", H[0], None),
        ({"mine": H, "yours": H}, (), None, "no array called representations or", None),
        ({"counts": np.arange(5)}, (), None, "no array called representations or", None),
        ({"h": H, "ids": np.arange(5) + 10}, (), "representation", H[0], "10"),
        ({"h": H, "names": np.array(list("pqrst")), "ids": np.array(list("abcde"))}, (), "representation", H[0], "a"),
        ({"h": H, "names": np.array(list("pqpqp"))}, (), "representation", H[0], None),
        ({"h": H, "names": np.array(list("pqrst"))}, (), "representation", H[0], "p"),
        ({"h": H, "ids": np.array(list("abcdef"))}, (), None, "6 ids for 5 rows", None),
        ({"h": H, "ids": np.array(list("abcd"))}, (), None, "4 ids for 5 rows", None),
        ({"h": H, "ids": np.array(list("abcda"))}, (), None, "1 of 5 items have an id that another one has: a", None),
        ({"h": H, "ids": np.zeros(5)}, (), "representation", H[0], None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_arrays_that_are_meant(
    tmp_path: Path, arrays: dict[str, Any], wanted: tuple[Any, ...], kind: str | None, first: Any, ids: str | None
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    if kind is None:
        with pytest.raises(ConfigError, match=first):
            random_access.find(tmp_path / "a.npz", wanted)
        return
    source = random_access.find(tmp_path / "a.npz", wanted)
    assert (source.kind, source.id(0), len(source)) == (kind, ids or "0", 5)
    assert np.array_equal(np.asarray(source.read(0)), first)


def test_rows_are_copied_and_told_apart() -> None:
    """To the last bit of each, however they lie in memory; and what is read is not the caller's."""
    h = torch.from_numpy(H.copy())
    source = random_access.find(h)
    read = source.read(2)
    assert isinstance(read, torch.Tensor)
    read.zero_()
    assert np.array_equal(h.numpy(), H)
    for rows in (H, torch.from_numpy(H), H.astype(np.float64), np.asfortranarray(H), torch.from_numpy(H).half()):
        hashes = {random_access.fingerprint(random_access.find(rows))}
        for place in ((0, 0), (4, 2)):
            changed = rows.copy() if isinstance(rows, np.ndarray) else rows.clone()
            changed[place] += 2.0**-6
            hashes.add(random_access.fingerprint(random_access.find(changed)))
        assert len(hashes) == 3
    assert random_access.find(H).content(1) == H[1].tobytes()
    assert random_access.find(torch.from_numpy(H)).content(1) == H[1].tobytes()
    labels = [random_access.find(np.arange(300)), random_access.find(torch.arange(300))]
    assert labels[0].content(257) == (257).to_bytes(8, "little")
    assert labels[1].content(257) == b"257"


def test_values_of_rows(recwarn: pytest.WarningsRecorder) -> None:
    for wrong in (np.nan, np.inf, -np.inf, 1e300):
        h = H.astype(np.float64)
        h[1, 2] = wrong
        source = random_access.find(h)
        with pytest.raises(ImageError, match="item 1: the representation is not finite"):
            source.read(1)
        assert np.array_equal(np.asarray(source.read(0)), H[0])
    assert not recwarn.list
    assert random_access.find(H.reshape(5, 1, 3, 1)).width() == 3
    assert random_access.find(np.arange(5)).width() is None
    images = from_uint8(torch.from_numpy(PIXELS.copy()).permute(0, 3, 1, 2))
    assert np.array_equal(np.asarray(random_access.find(images).read(3)), PIXELS[3])
    assert array_rows.to_float32(np.array([1.5], np.float16)).tolist() == [1.5]


def test_ids_of_safetensors(tmp_path: Path) -> None:
    """Those called "ids" before those called "names"; numbers as texts."""
    about = {"names": json.dumps(list("pqrst")), "ids": json.dumps([9, "b", "c", "d", "e"])}
    storage.save_tensors(tmp_path / "h.safetensors", {"h": torch.from_numpy(H)}, about)
    source = random_access.find(tmp_path / "h.safetensors")
    assert [source.id(place) for place in range(5)] == ["9", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("error", "memory_is_short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA error: Out of Memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 7"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("bad allocation"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("the samples are not finite"), False),
        (RuntimeError("memory format option is only supported by strided tensors"), False),
    ],
)
def test_what_says_that_memory_is_short(error: Exception, memory_is_short: bool) -> None:
    assert memory.out_of_memory(error) == memory_is_short


@pytest.mark.parametrize("there", [True, False])
def test_memory_of_a_gpu_is_given_back(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(1))
    memory.release()
    assert len(calls) == there


def test_defaults_are_those_of_sample() -> None:
    """A job, a stream and a single call draw the same where nobody says otherwise; the rest is in the guide."""
    config = JobConfig()
    assert dataclasses.astuple(config) == (8, 10, "auto", 0.0, 1.0, 0, True, "webdataset", "png", 95, 1024)
    assert RunOptions() == RunOptions(batch_size=None, threads=4, retry=False)
    assert (FORMATS, ENCODINGS) == (("webdataset", "folder", "npz", "parquet"), ("png", "jpeg", "webp"))
    for call in (Model.sample, stream.generate):  # none of their own
        named = inspect.signature(call).parameters
        assert named["config"].default is None
        assert not {"per", "steps", "solver", "eta", "guidance", "seed", "clip"} & set(named)
    model = small.quick_model()
    asked = model.request(torch.zeros(1, small.DIM)).config
    assert {name: getattr(config, name) for name in vars(asked)} == vars(asked)
    for changes, said in (
        ({"quality": 101}, r"quality must be in 1\.\.100"),
        ({"eta": -0.1}, "eta must be at least 0"),
        ({"guidance": -1.0}, "guidance must be at least 0"),
        ({"seed": -1}, "seed must be in 0"),
        ({"seed": 2**64}, "seed must be in 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            JobConfig(**changes)
    assert JobConfig(quality=100, eta=0.0, guidance=0.0, seed=2**64 - 1).quality == 100
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        RunOptions(batch_size=0)


def test_arguments_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """All different, so that none can take another one's place."""
    given: list[Any] = []

    def generated(*arguments: Any) -> Iterator[stream.Generated]:
        given.extend(arguments)
        return iter(())

    monkeypatch.setattr(stream, "_generated", generated)
    model, tell = small.quick_model(), print
    settings: dict[str, Any] = {"per": 2, "steps": 3, "solver": "ddim", "eta": 0.25, "guidance": 1.5, "seed": 4}
    list(rcdm_fast.generate(model, "photos", **settings, batch_size=5, threads=6, on_bad=tell))
    assert given == [model, "photos", JobConfig(**settings), RunOptions(batch_size=5, threads=6), tell]
    assert isinstance(given[2], JobConfig)
    assert local.WAITING == 2
