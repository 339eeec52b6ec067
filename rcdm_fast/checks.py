"""What a number, a choice or a setting must be, said in one place and in plain sentences.

A value is taken where nothing of it is lost (NumPy's whole numbers are whole numbers), and refused otherwise: nothing
is rounded, cut, wrapped or guessed. `Checked` does this for every field of a configuration when it is made.

Knows nothing about tensors (`arguments.py`), nor about what any setting is for.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import operator
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from rcdm_fast.errors import RcdmError

LONGEST = 1000  # values of a list in a configuration
_SHORT = reprlib.Repr()  # of wrong values in messages
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 3
_SHORT.maxlevel = 2


class ConfigError(RcdmError, ValueError):
    """A configuration, a flag, an argument or a combination of them that makes no sense."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` and `below` are not included. Declared as in ``Annotated[int, Range(1)]``."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"in {_plain(self.least)}..{_plain(self.most)}"
        said = [
            (self.least, "at least"),
            (self.above, "greater than"),
            (self.most, "at most"),
            (self.below, "less than"),
        ]
        return " and ".join(f"{word} {_plain(bound)}" for bound, word in said if bound is not None)


ANY = Range()
Count = Annotated[int, Range(1)]
CountOrNone = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
FractionBelowOne = Annotated[float, Range(0, below=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
LearningRate = Annotated[float, Range(0, 1e37)]  # float32 cannot hold a step of more
Seed = Annotated[int, Range(0, 2**64 - 1)]
Resamples = Annotated[int, Range(100)]  # of a bootstrap: fewer say nothing of its 95 % interval


def whole(value: Any, name: str, limits: Range = ANY) -> int:
    """The int that `value` is: an int, or a whole number of NumPy or PyTorch. `ConfigError` for anything else."""
    given = _scalar(value)
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise ConfigError(f"{name} must be a whole number, got {described(value)}")
    number = operator.index(given)
    if number not in limits:
        raise ConfigError(f"{name} must be {limits}, got {number if abs(number) < 10**40 else described(number)}")
    return number


def real(value: Any, name: str, limits: Range = ANY) -> float:
    """The finite number that `value` is; an int stays one. `ConfigError` for anything else."""
    given = _scalar(value)
    if isinstance(given, bool) or not isinstance(given, int | numbers.Real):
        raise ConfigError(f"{name} must be a number, got {described(value)}")
    try:
        number: float = given if type(given) is int else float(given)
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite:
        raise ConfigError(f"{name} must be a finite number, got {described(value)}")
    if number not in limits:
        raise ConfigError(f"{name} must be {limits}, got {_plain(number)}")
    return number


def flag(value: Any, name: str) -> bool:
    """The truth value that `value` is. `ConfigError` for anything else."""
    given = _scalar(value)
    if not isinstance(given, bool):
        raise ConfigError(f"{name} must be True or False, got {described(value)}")
    return given


def choice(value: Any, name: str, choices: Iterable[Any]) -> Any:
    """`value`, if it is one of the choices; `ConfigError` lists them, and the one that may have been meant."""
    known = list(choices)
    for each in known:
        if isinstance(value, type(each)) and value == each:
            return each
    listed = ", ".join(map(str, known))
    raise ConfigError(f"{name} must be one of {listed}; got {described(value)}{meant(value, known)}")


def meant(value: Any, known: Iterable[Any]) -> str:
    """The end of a sentence that offers the most similar of the known texts; empty if none is similar."""
    if not isinstance(value, str):
        return ""
    texts = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(value.lower().strip(), texts, n=1, cutoff=0.6)
    near = near or [text for text in texts if len(value) > 2 and text.startswith(value.lower())][:1]
    return f"; did you mean {texts[near[0]]}?" if near else ""


def described(value: Any) -> str:
    """A value for a message: its text, cut where it is long, or the type of what has none that is worth reading."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | list | tuple | dict):
        return _SHORT.repr(value)
    shape, kind = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and kind is not None and isinstance(shape, tuple):
        try:
            return f"{type(value).__name__} {kind} {list(shape)}" if len(shape) else f"{value} ({type(value).__name__})"
        except Exception:  # a foreign class that says it is an array
            return type(value).__name__
    return type(value).__name__


def _scalar(value: Any) -> Any:
    """What a NumPy number, or an array or tensor without dimensions, holds; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        try:
            return value.item()
        except Exception:  # a tensor without content: no number
            return None
    return value


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.15g}"


class Checked:
    """Base of every configuration dataclass: each field has the type, choice and range that it is declared with.

    A field's value becomes what its declaration says where nothing is lost: lists become tuples, NumPy's numbers
    Python's. A subclass with conditions of its own begins its `__post_init__` with `super().__post_init__()`.

    Raises:
        ConfigError: when it is made with a value that does not fit.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        hints = _hints(cls)
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            fitting = _fitted(hints[item.name], value, item.name)
            if fitting is not value:
                object.__setattr__(self, item.name, fitting)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _fitted(hint: Any, value: Any, name: str) -> Any:
    """The value as a declaration asks for it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = next((each for each in hint.__metadata__ if isinstance(each, Range)), ANY)
        return _basic(arguments[0], value, name, limits)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if origin is Literal:
        return choice(value, name, arguments)
    if origin is tuple:
        return _tuple(arguments, value, name)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{name} must be a mapping with names as keys, got {described(value)}")
        return value
    return _basic(hint, value, name, ANY)


def _basic(hint: Any, value: Any, name: str, limits: Range) -> Any:
    if hint is bool:
        return flag(value, name)
    if hint is int:
        return whole(value, name, limits)
    if hint is float:
        return real(value, name, limits)
    if hint is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a text, got {described(value)}")
        return value
    if dataclasses.is_dataclass(hint) and not isinstance(value, hint):  # type: ignore[arg-type]
        raise ConfigError(f"{name} must be a {getattr(hint, '__name__', hint)}, got {described(value)}")
    return value


def _one_of(hints: tuple[Any, ...], value: Any, name: str) -> Any:
    faults = []
    for hint in hints:
        if hint is type(None):
            if value is None:
                return None
            continue
        try:
            return _fitted(hint, value, name)
        except ConfigError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    raise ConfigError(" or ".join([str(faults[0]), *(_demand(each, name) for each in faults[1:])]))


def _demand(fault: ConfigError, name: str) -> str:
    return str(fault).removeprefix(f"{name} must be ").partition(", got")[0]


def _tuple(hints: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} must be a list, got {described(value)}")
    if len(value) > LONGEST:
        raise ConfigError(f"{name} must have at most {LONGEST} values, got {len(value)}")
    if hints[-1] is Ellipsis:
        items = tuple(_fitted(hints[0], each, f"{name}[{place}]") for place, each in enumerate(value))
    else:
        if len(value) != len(hints):
            raise ConfigError(f"{name} must have {len(hints)} values, got {len(value)}")
        items = tuple(_fitted(hints[place], each, f"{name}[{place}]") for place, each in enumerate(value))
    unchanged = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
    return value if unchanged and isinstance(value, tuple) else items
