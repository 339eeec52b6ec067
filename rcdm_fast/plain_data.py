"""Configurations as plain data: JSON text and back, as files hold them.

Knows nothing about which configurations there are (`config.py`).
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from rcdm_fast.checks import ConfigError, described, meant
from rcdm_fast.doors import printable, said

T = TypeVar("T")

FORMAT_VERSION = 1
# Settings of networks that came later: they are written only where they are set.
LATER = frozenset({"condition_map", "representation_hidden"})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


# Settings under other names in files of before: of model files, run folders and jobs.
RENAMED = {
    "checkpoint_blocks": "activation_checkpointing",
    "flips": "random_flip",
    "grey": "gray",
    "more_emas": "ema_decays",
    "pictures": "images",
    "rates": "lr_schedule",
    "shard_pictures": "shard_images",
    "updated": "lora_targets",
}


def migrated(stored: Any) -> Any:
    """Plain data of a file with the names that its settings have now; a name of today that stands beside wins."""
    if isinstance(stored, Mapping):
        return {
            RENAMED.get(key, key): migrated(value) for key, value in stored.items() if RENAMED.get(key) not in stored
        }
    return [migrated(value) for value in stored] if isinstance(stored, list) else stored


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain data, for files and hashes.

    Settings of `LATER` that are not set are not in it: what was written before there were such is not different.
    """
    found: dict[str, Any] = _told(dataclasses.asdict(config))
    return found


def _told(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _told(each) for key, each in value.items() if key not in LATER or each}


def to_json(config: Any) -> str:
    """A configuration dataclass as JSON text."""
    return json.dumps(plain(config), sort_keys=True)


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "config") -> T:
    """Build a configuration dataclass from plain data; an unknown or missing key is an error that names it.

    Lists become tuples and nested mappings nested configurations, as the type hints say.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(" ".join(printable(key).split()) for key in data if key not in fields)
    if unknown:
        near = next(
            (text for each in unknown if (text := meant(each, fields))), f"; known: {', '.join(sorted(fields))}"
        )
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)[:200]}{near}")
    missing = sorted(
        name
        for name, item in fields.items()
        if name not in data and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    )
    _require(not missing, f"{where}: missing key {', '.join(missing)}")
    values = {name: _coerce(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def from_json(cls: type[T], text: str, where: str = "config") -> T:
    """`from_dict` over JSON text."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # too many digits and too many brackets are no JSONDecodeError
        raise ConfigError(f"{where}: not valid JSON ({said(error)})") from error
    version = data.get("format_version", FORMAT_VERSION) if isinstance(data, dict) else FORMAT_VERSION
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ConfigError(
            f"{where}: written in format {described(version)}, this version reads up to {FORMAT_VERSION}; "
            "update rcdm_fast"
        )
    return from_dict(cls, data, where)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """One JSON value as the type that a field asks for, as far as that is about structure; the rest is `Checked`'s."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        if value is None:
            return None
        inside = [item for item in arguments if item is not type(None)]
        if len(inside) > 1:
            return value
        (hint,) = inside
        arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        _require(isinstance(value, list | tuple), f"{where}: expected a list, got {described(value)}")
        item_hint = arguments[0]
        return tuple(_coerce(item_hint, item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return value  # 1 and 1.0 mean the same; the JSON keeps what was written
    if hint in (int, float, bool, str):
        _require(
            isinstance(value, hint) and not (hint is int and isinstance(value, bool)),
            f"{where}: expected {hint.__name__}, got {described(value)}",
        )
    return value
