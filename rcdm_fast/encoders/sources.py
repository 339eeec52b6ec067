"""Encoder spec strings: ``FAMILY:NAME?key=value&key=value`` to plain data and back.

Options either choose the network's weights (they stay part of `EncoderConfig.source`) or state fields of an
`EncoderConfig` (layer, pooling, image size, normalization). In names and values, ``%``, ``?`` and ``&`` are written
percent-encoded.

Does not know which families exist or what their options mean (`rcdm_fast.encoders`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from rcdm_fast import doors
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.doors import printable

ALIASES = {"size": "image_size"}
_TOLD = ("image_size", "resize_to", "interpolation", "mean", "std")  # families differ in what they take for usual
FILES = {  # what a file's ending says about how it is named
    ".onnx": "onnx:FILE.onnx",
    ".safetensors": "file:FILE.safetensors",
    ".pth": "python:NET.py:NAME?weights=FILE.pth or timm:NAME?weights=FILE.pth",
    ".pt": "python:NET.py:NAME?weights=FILE.pt or timm:NAME?weights=FILE.pt",
    ".py": "python:FILE.py:NAME",
}
PLAIN = "/:,._-~+@= "  # characters that stay readable in a canonical spec


@dataclass(frozen=True)
class Source:
    """A family, a name in it, and the options that choose weights."""

    family: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.family}:{_quoted(self.name)}"
        options = "&".join(f"{key}={_quoted(value)}" for key, value in sorted(self.options.items()))
        return f"{text}?{options}" if options else text

    @property
    def shown(self) -> str:
        """The specification for messages, of bounded length."""
        return printable(str(self))

    def flag(self, key: str) -> bool:
        """A yes/no option; absent means no."""
        return parse_bool(self.options.get(key, "0"), key)


def _quoted(text: str) -> str:
    """For a specification; a file's name that is no UTF-8 comes back as it was."""
    try:
        return quote(text, safe=PLAIN, errors="surrogateescape")
    except UnicodeEncodeError:  # half a character of UTF-16
        return quote(doors.escaped(text), safe=PLAIN)


def parse(text: str, options: Mapping[str, Collection[str]]) -> tuple[Source, dict[str, Any]]:
    """Split a spec string.

    Args:
        text: ``FAMILY:NAME`` with options after a question mark.
        options: for every family, the options that choose its weights.

    Returns:
        The source, and the `EncoderConfig` fields stated by the remaining options.

    Raises:
        ConfigError: unknown family or option, or a value that cannot be read.
    """
    head, _, query = text.partition("?")
    family, colon, name = head.partition(":")
    if not colon or family not in options or not name:
        known = ", ".join(f"{item}:..." for item in options)
        hint = next((f"; a file of that kind is named as {said}" for end, said in FILES.items() if end in head), "")
        raise ConfigError(f"{printable(repr(text))} names no encoder; expected one of {known}{hint}")
    chosen: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, _, raw = item.partition("=")
        value = unquote(raw, errors="surrogateescape")
        if key in options[family]:
            chosen[key] = value
        elif ALIASES.get(key, key) in FIELDS:
            key = ALIASES.get(key, key)
            if key in fields:
                raise ConfigError(f"{printable(repr(text))}: {key} is given twice")
            fields[key] = FIELDS[key](value, key)
        else:
            known = ", ".join(sorted({*options[family], *FIELDS}))
            raise ConfigError(f"{printable(repr(text))}: unknown option {printable(repr(key))}; {family} takes {known}")
    return Source(family, unquote(name, errors="surrogateescape"), chosen), fields


def spelled(config: EncoderConfig, *further: str) -> str:
    """The specification that says what a configuration says, its whole convention included, and options ``KEY=1``."""
    usual = EncoderConfig(config.source)
    told = [
        f"{key}={_quoted(_spelled(getattr(config, key)))}"
        for key in FIELDS
        if key in _TOLD or getattr(config, key) != getattr(usual, key)
    ]
    mark = "&" if "?" in config.source else "?"
    return f"{config.source}{mark}{'&'.join([*told, *(f'{key}=1' for key in further)])}"


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number!r}" for number in (value[:1] if len(set(value)) == 1 else value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def parse_bool(value: str, key: str) -> bool:
    """1/0, true/false, yes/no, on/off. Raises `ConfigError`."""
    text = value.lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"option {key}: expected 1 or 0, got {printable(repr(value))}")


def _text(value: str, key: str) -> str:
    if not value:
        raise ConfigError(f"option {key} is empty")
    return value


def _integer(value: str, key: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"option {key}: expected a whole number, got {printable(repr(value))}") from error


def _channels(value: str, key: str) -> tuple[float, float, float]:
    try:
        numbers = [float(item) for item in value.split(",")]
    except ValueError as error:
        raise ConfigError(f"option {key}: expected numbers, got {printable(repr(value))}") from error
    if len(numbers) not in (1, 3):
        raise ConfigError(
            f"option {key}: expected one number or three separated by commas, got {printable(repr(value))}"
        )
    return (numbers[0], numbers[len(numbers) // 2], numbers[-1])


FIELDS = {
    "layer": _text,
    "pooling": _text,
    "image_size": _integer,
    "resize": _text,
    "resize_to": _integer,
    "interpolation": _text,
    "rounding": _text,
    "mean": _channels,
    "std": _channels,
    "normalize": parse_bool,
    "border": _text,
    "channel_order": _text,
    "layout": _text,
}
