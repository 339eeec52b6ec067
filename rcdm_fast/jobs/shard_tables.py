"""Shards as Parquet files: see `formats.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcdm_fast import doors, storage
from rcdm_fast.data.readers.table_files import pyarrow
from rcdm_fast.doors import door
from rcdm_fast.jobs.shard import ShardImage

GROUP_BYTES = 1 << 30  # a column of bytes holds less than 2^31 of them


@dataclass(frozen=True)
class Tables:
    """Parquet with columns image (bytes and file name, as Hugging Face datasets keep them), item, id, sample, seed.

    offset: the row.
    """

    _encode: Callable[[np.ndarray], bytes]
    extension: str
    suffix: str = ".parquet"

    def encode(self, levels: np.ndarray) -> bytes:
        """See `Shards`."""
        return self._encode(levels)

    def write(self, path: Path, images: Sequence[ShardImage], shape: tuple[int, int]) -> list[int]:
        """See `Shards`."""
        arrow, parquet = pyarrow()
        kinds = {"item": arrow.int64(), "id": arrow.string(), "sample": arrow.int64(), "seed": arrow.uint64()}
        image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        features = {"image": {"_type": "Image"}} | {
            name: {"dtype": str(kind), "_type": "Value"} for name, kind in kinds.items()
        }
        described = {"huggingface": json.dumps({"info": {"features": features}})}
        schema = arrow.schema([("image", image), *kinds.items()], metadata=described)
        with (
            storage.atomic(path) as temporary,
            parquet.ParquetWriter(temporary, schema, compression="none") as writer,
        ):
            for part in _groups(images):
                files = [{"bytes": each.payload, "path": f"{each.key}.{self.extension}"} for each in part]
                columns = [arrow.array(files, image)]
                for name, kind in kinds.items():
                    values = [each.about[name] for each in part]
                    texts = [doors.escaped(each) if isinstance(each, str) else each for each in values]
                    columns.append(arrow.array(texts, kind))
                writer.write_table(arrow.table(columns, schema=schema))
        return list(range(len(images)))

    def read(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Shards`."""
        _, parquet = pyarrow()
        with door(storage.StorageError, f"{path}: cannot be read"):
            chunks = parquet.read_table(path, columns=["image"])["image"].chunks
            payloads = [payload for chunk in chunks for payload in chunk.field("bytes")]
        for row in rows:
            with door(storage.StorageError, f"{path}: cannot be read"):
                content = payloads[row["offset"]].as_py() if row["offset"] < len(payloads) else None
            yield content if isinstance(content, bytes) else b""


def _groups(images: Sequence[ShardImage]) -> Iterator[Sequence[ShardImage]]:
    """Images in groups that a column can hold; one group where all fit, also if there are none."""
    start = size = 0
    for place, image in enumerate(images):
        if size and size + len(image.payload) > GROUP_BYTES:
            yield images[start:place]
            start, size = place, 0
        size += len(image.payload)
    yield images[start:]
