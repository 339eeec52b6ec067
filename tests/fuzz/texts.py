"""Changes of JSON and of lines of text that leave them readable: wrong values, names and shapes; and unusual writing.

A text inside a JSON value that is JSON itself (metadata of safetensors) is changed by the same rules.
"""

from __future__ import annotations

import copy
import json
import string
from random import Random
from typing import Any

from tests.fuzz.mutate import INTEGERS, blind, number

DEEP = 100_000
Place = tuple[Any, Any]  # a list or an object, and a key or an index in it


def mutated(content: bytes, rng: Random) -> bytes | None:
    """Changed JSON, JSON lines or text; None for anything else."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if text[:1] in ("{", "["):
        try:
            return _written(_changed(json.loads(text), rng), rng)
        except (ValueError, RecursionError):
            lines = text.splitlines()
            return _with_line(lines, rng) if len(lines) > 1 else None
    return _text(text, rng) if text.isprintable() or text.count("\n") else None


def _with_line(lines: list[str], rng: Random) -> bytes:
    """JSON lines: one changed, missing, twice or elsewhere."""
    at = rng.randrange(len(lines))
    change = rng.randrange(5)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif change == 2:
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    else:
        line = mutated(lines[at].encode(), rng) or b""
        return "\n".join(lines[:at]).encode() + b"\n" + line + b"\n" + "\n".join(lines[at + 1 :]).encode()
    return "\n".join(lines).encode() + b"\n"


TEXTS = ("", "x", "x" * 3000, "../..", "\0", "\ud800")
FLOATS = (0.5, 1e308, -1e308, float("nan"), float("inf"))
ODD: tuple[Any, ...] = (None, True, False, [], {}, [0] * 50, [[]], *TEXTS, *FLOATS)


def value(rng: Random) -> Any:
    """An unlikely value of any type."""
    made = rng.choice(INTEGERS) if rng.random() < 0.4 else copy.deepcopy(rng.choice(ODD))
    if rng.random() < 0.2:
        return rng.choice(([made], {"x": made}, str(made)))
    return made


def _changed(data: Any, rng: Random) -> Any:
    places = list(_places(data))
    if not places or rng.random() < 0.05:
        return value(rng)
    holder, key = rng.choice(places)
    old = holder[key]
    inner = _inner(old, rng) if isinstance(old, str) else None
    change = rng.choice(("value", "value", "value", "scaled", "missing", "renamed", "new", "exchanged"))
    if inner is not None:
        holder[key] = inner
    elif change == "value":
        holder[key] = value(rng)
    elif change == "scaled" and isinstance(old, int | float):
        holder[key] = old * rng.choice((-1, 2, 10, 1000, 10**6, 10**9)) + rng.choice((0, 0, 1, -1))
    elif change == "missing":
        del holder[key]
    elif change == "renamed" and isinstance(holder, dict):
        holder[rng.choice((key + "s", key.upper(), "", "__class__", "x" * 3000))] = holder.pop(key)
    elif change == "new" and isinstance(holder, dict):
        holder[rng.choice(("self", "x", "auto_map", "trust_remote_code", "custom_pipelines", "format_version"))] = (
            value(rng)
        )
    else:
        other, its = rng.choice(places)
        holder[key], other[its] = other[its], old
    return data


def _inner(text: str, rng: Random) -> str | None:
    """A text that holds JSON, changed."""
    if not text.startswith(("{", "[")):
        return None
    try:
        return _written(_changed(json.loads(text), rng), rng).decode("utf-8", "replace")
    except (ValueError, RecursionError):
        return None


def _places(data: Any) -> Any:
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from _places(data[key])


def _written(data: Any, rng: Random) -> bytes:
    """Mostly plain; sometimes in another encoding, with huge numbers, twice the same name, or nested too deep."""
    try:
        text = json.dumps(data)
    except (ValueError, RecursionError):  # a value was put into itself
        text = "{}"
    odd = rng.randrange(60)
    if odd == 0:
        return text.encode("utf-16")
    if odd == 1:
        return b"\xef\xbb\xbf" + text.encode()
    if odd == 2:
        return text.replace(": ", f": {'[' * DEEP}", 1).encode()
    if odd == 3:
        return f'{{"a":{"[" * DEEP}{"]" * DEEP}}}'.encode()
    if odd == 4:
        return _replaced_number(text, "9" * 5000, rng)
    if odd == 5:
        return _replaced_number(text, number(rng), rng)
    if odd == 6:
        return text[:-1].encode() + b', "name": "x", "name": 1}'
    if odd == 7:
        return text.encode() + b"\n" + text.encode()
    if odd == 8:
        return text.replace('"', "'").encode()
    if odd == 9:
        return text.encode().replace(b"a", b"\xff", 1)
    return text.encode()


def _replaced_number(text: str, new: str, rng: Random) -> bytes:
    digits = [at for at, letter in enumerate(text) if letter in string.digits and text[at - 1 : at] in " [:,"]
    if not digits:
        return text.encode()
    start = end = rng.choice(digits)
    while end < len(text) and text[end] in "0123456789.eE+-":
        end += 1
    return (text[:start] + new + text[end:]).encode()


SIGNS = (
    "?",
    "&",
    "=",
    ":",
    "::",
    ",",
    "%",
    "%00",
    "%ff",
    "\0",
    "/",
    "..",
    "~",
    "{",
    "}",
    " ",
    "\n",
    "é",
    "٣",
    "-",
    "1e9",
)


def _text(text: str, rng: Random) -> bytes:
    """A short text such as an option's value."""
    at = rng.randrange(len(text) + 1)
    change = rng.randrange(5)
    if change == 0:
        return (text[:at] + rng.choice(SIGNS) + text[at:]).encode()
    if change == 1:
        return (text[:at] + number(rng) + text[at + rng.randrange(4) :]).encode()
    if change == 2:
        return (text + rng.choice(SIGNS) + text).encode()
    if change == 3:
        parts = text.replace("&", "?").split("?")
        return rng.choice("?&").join(rng.sample(parts, len(parts))).encode()
    return blind(text.encode(), rng)
