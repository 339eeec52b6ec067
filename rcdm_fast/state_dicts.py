"""The state dict of one network inside whatever a training script saved around it.

Scripts wrap: the weights lie in a dictionary of a dictionary (``state_dict``, ``teacher``), below the name that the
network had there (``module.``, ``module.encoder_q.``, ``model.backbone.``), with the name of a wrapper in the middle
(``_orig_mod.`` of torch.compile). None of these names need be known: the network says what its tensors are called, and
the place and the prefix are where all of them are.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rcdm_fast.errors import RcdmError

log = logging.getLogger(__name__)

State = dict[str, Tensor]

# Modules that wrap another one under a name of their own, anywhere in a tensor's name.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# Of several copies of one network, what their authors evaluate: averages, then the one that was trained by gradients.
_AVERAGES = ("target_encoder", "teacher", "ema")
_TRAINED = ("encoder_q", "online")
_OTHERS = ("encoder_k", "momentum", "student", "target")
_DEPTH = 4  # of dictionaries in a file
_SHOWN = 6


class NotFound(RcdmError, ValueError):
    """No state dict of that network, or several; the message says what there is."""


class Several(NotFound):
    """Several copies that nothing tells apart."""


@dataclass(frozen=True)
class Found:
    """A network's tensors, by its own names, and others that lay below the same prefix.

    `key` is the dotted place of the dictionary in the file, "" for the file itself; `prefix` came before every name.
    """

    key: str
    prefix: str
    state: State

    def __str__(self) -> str:
        return f"key={self.key}, prefix={self.prefix}" if self.key else f"prefix={self.prefix}"


def find(saved: Any, names: Collection[str], key: str | None = None, prefix: str | None = None) -> Found:
    """The tensors of a network in a saved object.

    Args:
        saved: nested dictionaries with tensors in them, as a file holds them.
        names: what the network calls its tensors; with none, the only dictionary of tensors is meant.
        key: dotted place of the dictionary to take; None searches all.
        prefix: what stands before every name; None finds it.

    Returns:
        all that lies below one prefix; names that are missing there are for a strict load to tell.

    Raises:
        NotFound: nothing like the network is there.
        Several: several copies are, and nothing tells which is meant.
    """
    places = _places(saved)
    if key is not None:
        if key not in places:
            raise NotFound(f"nothing named key={key} holds tensors; {_listing(places)}")
        places = {key: places[key]}
    if not places:
        raise NotFound("holds no state dict (names and tensors)")
    wanted = {name for name in names if not name.endswith("num_batches_tracked")}
    if not wanted:
        return _preferred([Found(place, prefix or "", _below(state, prefix or "")) for place, state in places.items()])
    scores: dict[tuple[str, str], int] = {}
    for place, state in places.items():
        for before in [prefix] if prefix is not None else _prefixes(state, wanted):
            scores[place, before] = sum(before + name in state for name in wanted)
    best = max(scores.values(), default=0)
    if 2 * best < len(wanted) or not best:
        raise NotFound(f"holds no weights of this network; {_listing(places)}")
    return _preferred([Found(*at, _below(places[at[0]], at[1])) for at, score in scores.items() if score == best])


def _places(saved: Any, key: str = "", depth: int = 0) -> dict[str, State]:
    """Every dictionary with tensors by name, by its dotted place; names are freed of `WRAPPERS`."""
    if not isinstance(saved, Mapping) or depth > _DEPTH:
        return {}
    own = {_unwrapped(name): item for name, item in saved.items() if isinstance(name, str) and isinstance(item, Tensor)}
    places = {key: own} if own else {}
    for name, item in saved.items():
        if isinstance(name, str) and isinstance(item, Mapping):
            places |= _places(item, f"{key}.{name}" if key else name, depth + 1)
    return places


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(state: State, wanted: Collection[str]) -> list[str]:
    """What stands before the network's names, judged by a few of them."""
    ordered = sorted(wanted)
    anchors = {ordered[index] for index in (0, len(ordered) // 2, len(ordered) - 1)} if ordered else set()
    found = {
        name.removesuffix(anchor)
        for anchor in anchors
        for name in state
        if name == anchor or name.endswith(f".{anchor}")
    }
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _preferred(copies: list[Found]) -> Found:
    """The copy that is meant, by what its place is called."""
    if len(copies) == 1:
        return copies[0]

    def rank(copy: Found) -> int:
        text = f"{copy.key}.{copy.prefix}".lower()
        for number, words in enumerate((_AVERAGES, _TRAINED, _OTHERS)):
            if any(word in text for word in words):
                return (2, 1, -1)[number]
        return 0

    ranked = sorted(copies, key=rank, reverse=True)
    others = "; ".join(str(copy) for copy in ranked[1:])
    if rank(ranked[0]) == rank(ranked[1]):
        raise Several(f"holds several copies of this network: {ranked[0]}; {others}")
    log.warning("several copies of this network: %s is taken (there are also %s)", ranked[0], others)
    return ranked[0]


def _listing(places: Mapping[str, State]) -> str:
    """What a file holds, for someone who is to choose: places, and how their names begin."""
    parts = []
    for place, state in list(places.items())[:_SHOWN]:
        beginnings = list(dict.fromkeys(name.partition(".")[0] for name in state))
        more = ", ..." if len(beginnings) > _SHOWN else ""
        where = f"key={place}" if place else "the file itself"
        parts.append(f"{where} has {len(state)} tensors below {', '.join(beginnings[:_SHOWN])}{more}")
    more = f" and {len(places) - _SHOWN} places more" if len(places) > _SHOWN else ""
    return "; ".join(parts) + more
