"""What an oracle would say, of any image, as far as a reader reads its factors: of samples of a decoder, too.

``reader:shapes-reader?factors=x,y&masked=1`` writes down what the bundled reader `shapes-reader` reads of x and y in
the form of ``oracle:shapes?factors=x,y&masked=1``; without `factors`, all of them. A name that ends in ``.safetensors``
is the file of a reader. Shapes are probabilities, and nothing is rounded, so gradients reach the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import doors
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders import factor_reader, native
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.encoders.oracle import listed
from rcdm_fast.encoders.oracle_code import Code
from rcdm_fast.encoders.sources import Source, parse_bool

OPTIONS = frozenset({"factors", "masked"})
_ENDING = ".safetensors"


class ReadCode(nn.Module):
    """Images float [N,3,S,S] in [-1,1] -> float [N,D]: a code of the factors that a reader reads.

    Args:
        reader: reads factors of the code's world.
        code: which are written down; of their forms only `masked`.
    """

    def __init__(self, reader: FactorReader, code: Code) -> None:
        super().__init__()
        self.reader, self.code = reader, code

    def forward(self, seen: Tensor) -> Tensor:
        """See the class."""
        columns, kept = [], []
        for factor, part in zip(self.reader.about, self.reader.parts(seen), strict=True):
            kept.append(float(factor.name in self.code.factors))
            if kept[-1]:
                columns.append(part)
            elif self.code.masked:
                columns.append(torch.zeros_like(part))
        if self.code.masked:
            columns.append(seen.new_tensor(kept).expand(len(seen), -1))
        return torch.cat(columns, dim=1)


def file_of(name: str) -> Path:
    """The file of a reader: of a bundled one, or a path that ends in ``.safetensors``. Raises `ConfigError`."""
    return doors.path(name, ConfigError) if name.endswith(_ENDING) else native.bundled_path(name)


def load(source: Source, _fields: Mapping[str, Any]) -> Network:
    """The reader of a spec, as an encoder. Raises `ConfigError`, `StorageError`."""
    reader, _ = factor_reader.load(file_of(source.name))
    factors = listed(source.options.get("factors", "all"), reader.world)
    code = Code(reader.world, factors, masked=parse_bool(source.options.get("masked", "0"), "masked"))
    return Network(ReadCode(reader, code), EncoderConfig(str(source), image_size=reader.size, dim=code.dim))


def plain(file: str) -> Network:
    """A reader's own output, the code of all factors. Raises `ConfigError`, `StorageError`."""
    reader, _ = factor_reader.load(file)
    width = Code(reader.world, tuple(factor.name for factor in reader.about)).dim
    return Network(reader, EncoderConfig(f"file:{file}", image_size=reader.size, dim=width))
