"""Encoders in a Python file: ``python:FILE.py:NAME``, a network class, a function that makes one, or a network.

The file is code that runs on loading, with all rights of the user, so it is loaded only when the caller says that it is
trusted. It sees its own folder first in the search for modules, as a script does; what it imports from there is its
own: another file's modules of the same names are not taken for them.

Does not know how images are resized or layers pooled (`base.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.doors import printable
from rcdm_fast.encoders import modules, weights
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError, Untrusted, reason
from rcdm_fast.encoders.layers import near
from rcdm_fast.encoders.sources import Source

OPTIONS = weights.OPTIONS | {"arguments"}
NEEDED = ("image_size", "mean", "std")


def load(source: Source, fields: Mapping[str, Any], trusted: bool) -> Network:
    """A network that a Python file makes, and the convention that is stated.

    NAME is a subclass of `torch.nn.Module` or a function, called with the keywords in ``arguments`` (a JSON object), or
    a network itself. ``weights=FILE`` (a ``.pth``, ``.pt`` or ``.safetensors``) is loaded strictly, from where
    ``key=`` and ``prefix=`` say. The convention has to be given: image_size (or size), mean and std, unless the network
    is one of timm's.

    Raises:
        ConfigError: the specification names no file and no name in it, or ``arguments`` are no JSON object.
        EncoderError: not trusted, no such file or name, the file fails, what it makes is no network, weights that do
            not fit, or nothing tells what images it takes.
    """
    file, colon, name = source.name.rpartition(":")
    if not colon or not file.endswith(".py") or not name:
        raise ConfigError(f"{source.shown}: expected python:FILE.py:NAME, such as python:net.py:TinyNet")
    keywords = _keywords(source)
    if not trusted:
        raise Untrusted(f"{source.shown}: loading it runs the code of {printable(file)}")
    if not os.path.isfile(file):
        raise EncoderError(f"{source.shown}: no such file")
    with _own_modules(Path(file).absolute().parent), weights.repeatable():
        network = _made(source, _run(source, Path(file).absolute()), name, keywords)
    if "weights" in source.options:
        weights.load_into(network, source)
    return Network(network, _convention(source, network, fields))


def _keywords(source: Source) -> dict[str, Any]:
    text = source.options.get("arguments", "{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source.shown}: arguments are no JSON ({reason(error)})") from error
    if not isinstance(found, dict):
        raise ConfigError(f'{source.shown}: arguments are a JSON object, such as {{"width": 64}}')
    return found


@contextlib.contextmanager
def _own_modules(folder: Path) -> Iterator[None]:
    """A folder is searched first, and what was imported from it is forgotten: two may each have a ``blocks.py``."""
    before, path = {name.partition(".")[0] for name in sys.modules}, list(sys.path)
    finder = _Finder(folder)
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in before and _lies_in(getattr(module, "__file__", None), folder):
                del sys.modules[name]


def _lies_in(place: object, folder: Path) -> bool:
    """Whether a file is one of the folder's own, and of no environment inside it."""
    if not isinstance(place, str) or not Path(place).is_relative_to(folder):
        return False
    return not {"site-packages", "dist-packages"} & set(Path(place).relative_to(folder).parts)


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs what a file says now: what Python keeps of compiled files is told apart by seconds and sizes alone."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder:
    """Finds a folder's own modules where Python does, for that loader."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`; None for what lies elsewhere, which others find."""
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not spec.origin or not _lies_in(spec.origin, self._folder):
            return None
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def _run(source: Source, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise EncoderError(f"{source.shown}: no Python file")
    spec.loader = _Loader(path.stem, str(path))
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # where dataclasses look for their own module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EncoderError(f"{source.shown}: the file fails ({type(error).__name__}: {reason(error)})") from error
    finally:
        if before is None:
            sys.modules.pop(path.stem, None)
        else:
            sys.modules[path.stem] = before
    return module


def _made(source: Source, module: ModuleType, name: str, keywords: Mapping[str, Any]) -> nn.Module:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            own = [key for key, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__]
            raise EncoderError(f"{source.shown}: the file has no {printable(name)}; it has {near(name, own) or 'none'}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module) and callable(found):
        try:
            found = found(**keywords)
        except Exception as error:
            raise EncoderError(
                f"{source.shown}: {printable(name)} cannot be made ({type(error).__name__}: {reason(error)}); keywords "
                'of it are given as arguments={"width": 64}'
            ) from error
    elif keywords:
        raise EncoderError(f"{source.shown}: arguments are for a class or a function, {printable(name)} is none")
    if not isinstance(found, nn.Module):
        raise EncoderError(f"{source.shown}: is {type(found).__name__}, not a network (torch.nn.Module)")
    return found


def _convention(source: Source, network: nn.Module, fields: Mapping[str, Any]) -> EncoderConfig:
    known = modules.stated(network)
    missing = [key for key in NEEDED if key not in fields]
    if known is None and missing:
        raise EncoderError(
            f"{source.shown}: nothing tells what images it takes; give {', '.join(missing)}, as in size=224&"
            "mean=0.485,0.456,0.406&std=0.229,0.224,0.225 (usual for ImageNet) or mean=0.5&std=0.5 (images in [-1,1])"
        )
    return dataclasses.replace(known or EncoderConfig("module"), source=str(source))
