"""Items of coming units, read and prepared ahead of the device by a thread, and turned into conditions by the model.

Images are read by a pool of threads, as the encoder sees them; the encoder itself runs in the caller's thread, in
groups of `GROUP` items that depend on the unit alone. An item that cannot be read keeps its place in its group, so that
the others' representations do not depend on it, and is reported.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import maps
from rcdm_fast.config import ConfigError
from rcdm_fast.data.random_access import Kind, Source
from rcdm_fast.encoders import Encoder
from rcdm_fast.encoders.groups import GROUP, encode
from rcdm_fast.images import ImageError, from_pil
from rcdm_fast.jobs.layout import Unit
from rcdm_fast.model import Model

AHEAD = 8  # groups that wait

_POLL_S = 0.1


@dataclass(frozen=True)
class Ready:
    """A unit whose items are known.

    Attributes:
        unit: which one.
        h: representations float32 [I,D] of its items, or None; rows of bad items are zero.
        label: int64 [I], or None.
        bad: reasons by item (number in the whole source).
        busy_s: seconds that encoding took.
    """

    unit: Unit
    h: Tensor | None
    label: Tensor | None
    bad: dict[int, str]
    busy_s: float = 0.0


@dataclass(frozen=True)
class _Group:
    values: list[Tensor]  # views [1,3,s,s], representations [D] or labels []
    bad: dict[int, str]


def wanted_kinds(model: Model) -> tuple[Kind, ...]:
    """Kinds of items that a model can be conditioned on."""
    unet = model.config.unet
    if unet.representation_dim:
        return ("image", "representation")
    return ("label",) if unet.num_classes else ("nothing",)


def check_kind(model: Model, source: Source) -> None:
    """Raise `ConfigError` unless the model can be conditioned on such items."""
    unet = model.config.unet
    if source.kind not in wanted_kinds(model):
        words = {
            "image": "images",
            "representation": "representations",
            "label": "labels (whole numbers)",
            "nothing": "a number of items",
        }
        needs = " or ".join(words[each] for each in wanted_kinds(model))
        raise ConfigError(f"{source.name}: the model needs {needs}, these are {words[source.kind]}")
    width = source.width()
    if width is not None and width != unet.representation_dim:
        raise ConfigError(
            f"{source.name}: representations have {width} dimensions, the model needs {unet.representation_dim}"
        )
    shape = getattr(source, "map_shape", ())
    if width is not None and shape and shape != unet.condition_map:
        wanted = maps.named(unet.condition_map, width)
        raise ConfigError(f"{source.name}: representations are {maps.named(shape, width)}, the model needs {wanted}")
    if source.kind == "image" and model.encoder is None:
        raise ConfigError("images need the model's encoder; give one with --encoder, or give representations")


def ready_units(model: Model, source: Source, units: Iterable[Unit], threads: int) -> Iterator[Ready]:
    """Units in order, as soon as their items are read and encoded; others are being read meanwhile.

    Args:
        model: whose encoder is used.
        source: items.
        units: which of them, in the order wanted.
        threads: that read.

    Raises:
        ConfigError: the model cannot take such items, or representations have another width than it needs.
    """
    check_kind(model, source)
    wanted = list(units)
    waiting: queue.Queue[_Group | BaseException] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(found: _Group | BaseException) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(found, timeout=_POLL_S)
            except queue.Full:
                continue

    def read() -> None:
        try:
            with ThreadPoolExecutor(threads) as pool:
                for unit in wanted:
                    for group in _groups(unit):
                        if stopped.is_set():
                            return
                        put(_read_group(model, source, group, pool))
        except BaseException as error:  # handed to the caller, who raises it
            put(error)

    reader = threading.Thread(target=read, name="rcdm-reader", daemon=True)
    reader.start()
    try:
        for unit in wanted:
            groups = [_taken(waiting) for _ in _groups(unit)]
            yield _ready(model, source.kind, unit, groups)
    finally:
        stopped.set()
        reader.join()


def _groups(unit: Unit) -> Iterator[range]:
    for start in range(unit.first_item, unit.last_item, GROUP):
        yield range(start, min(start + GROUP, unit.last_item))


def _taken(waiting: queue.Queue[_Group | BaseException]) -> _Group:
    found = waiting.get()
    if isinstance(found, BaseException):
        raise found
    return found


def _read_group(model: Model, source: Source, places: range, pool: ThreadPoolExecutor) -> _Group:
    found = list(pool.map(lambda place: _read(model, source, place), places))
    good = next((each for each in found if isinstance(each, Tensor)), torch.zeros(0))
    values = [each if isinstance(each, Tensor) else torch.zeros_like(good) for each in found]
    bad = {place: each for place, each in zip(places, found, strict=True) if isinstance(each, str)}
    return _Group(values, bad)


def _read(model: Model, source: Source, place: int) -> Tensor | str:
    """What the encoder or the network will see of an item, or why there is nothing."""
    try:
        value = source.read(place)
        if not isinstance(value, Image.Image):
            return _unfit(model, source, value) or value
        encoder = model.encoder
        assert encoder is not None, "check_kind has asked for it"
        return encoder.view(from_pil(value))
    except (ImageError, OSError) as error:
        return str(error)


def _unfit(model: Model, source: Source, value: Tensor) -> str | None:
    """Why the model cannot take a representation or a label."""
    unet = model.config.unet
    if source.kind == "representation" and value.numel() != unet.representation_dim:
        return f"the representation has {value.numel()} dimensions, the model needs {unet.representation_dim}"
    if source.kind == "label" and not 0 <= int(value) < unet.num_classes:
        return f"label {int(value)} is not in 0..{unet.num_classes - 1}"
    return None


def _ready(model: Model, kind: Kind, unit: Unit, groups: list[_Group]) -> Ready:
    bad = {place: reason for group in groups for place, reason in group.bad.items()}
    if kind == "nothing":
        return Ready(unit, None, None, bad)
    if kind == "label":
        labels = [each if each.numel() else torch.tensor(0) for group in groups for each in group.values]
        return Ready(unit, None, torch.stack(labels), bad)
    if kind == "representation":
        return Ready(unit, _stacked(model, groups), None, bad)
    assert model.encoder is not None, "check_kind has asked for it"
    rows = []
    start, since = unit.first_item, time.monotonic()
    for group in groups:
        places = range(start, start + len(group.values))
        rows.append(encode(model.encoder, _views(model.encoder, group.values), places, bad))
        start = places.stop
    return Ready(unit, torch.cat(rows), None, bad, time.monotonic() - since)


def _stacked(model: Model, groups: list[_Group]) -> Tensor:
    width = model.config.unet.representation_dim
    rows = [each for group in groups for each in group.values]
    return torch.stack([row if row.numel() else torch.zeros(width) for row in rows])


def _views(encoder: Encoder, values: list[Tensor]) -> Tensor:
    size = encoder.config.image_size
    return torch.cat([each if each.numel() else torch.zeros(1, 3, size, size) for each in values])
