"""Which torch.hub repositories and Python files a run may run the code of, remembered for as long as the run goes on.

Trust is given by a person, with a run, and kept in the cache of that person under the run folder's path: never in the
run folder or in a model file, which come from elsewhere as easily as they go there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from rcdm_fast import downloads, encoders, locks, storage
from rcdm_fast.config import EncoderConfig
from rcdm_fast.doors import regular
from rcdm_fast.encoders import Encoder

log = logging.getLogger(__name__)

FILE = "trusted.json"
_TRIES, _WAIT_S = 50, 0.1  # for another process that writes; one that is gone without a trace is not waited for longer


def remembered(folder: Path, given: Collection[str], write: bool = True) -> frozenset[str]:
    """The encoder sources that are trusted in a run folder: those given now and those given before.

    Args:
        folder: of the run.
        given: sources that are trusted from now on.
        write: whether to remember them (one of several processes does).
    """
    file, place = downloads.cache_dir() / FILE, str(folder.resolve())
    before = frozenset(_read(file).get(place, ()))
    trusted = before | frozenset(given)
    if write and trusted != before:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _alone(file):
                storage.write_json(file, _read(file) | {place: sorted(trusted)})
        except OSError as error:
            log.warning("%s: cannot be written (%s); a resumed run needs its trust given again", file, error)
    return trusted


def _read(file: Path) -> dict[str, list[str]]:
    """What is remembered of every run folder; nothing if that cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        regular(file)
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {key: [str(name) for name in value] for key, value in found.items() if isinstance(value, list)}
    return {}


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Runs that begin together do not forget each other's trust."""
    with contextlib.ExitStack() as held:
        for _ in range(_TRIES):
            try:
                held.enter_context(locks.locked(file.with_name(f"{file.name}.lock"), what="remembering trust"))
                break
            except locks.Busy:
                time.sleep(_WAIT_S)
        yield


def built(
    named: str | EncoderConfig, folder: Path, device: str | torch.device, trust: bool = False
) -> tuple[Encoder, list[str]]:
    """The encoder that a person names for a run, and what is to be trusted from now on.

    Args:
        named: a specification, which may say ``trust=1``, or a configuration.
        folder: of the run; what was trusted in it before still is.
        device: where it runs.
        trust: whether the code that comes with it may run.

    Raises:
        EncoderError, ConfigError: as `encoders.build`; code that nobody has allowed to run.
    """
    source = named.source if isinstance(named, EncoderConfig) else encoders.source_of(named)
    given = trust or (isinstance(named, str) and encoders.trusts(named))
    allowed = given or source in remembered(folder, (), write=False)
    return encoders.build(named, device, trust_repo=allowed), [source] if given else []
