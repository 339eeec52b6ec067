"""OpenVINO's `Core`: one for the process, never given up.

The CPU plugin of a `Core` gives the thread that loads it an alternate signal stack (sigaltstack), and unmaps that when
it is destroyed. If two of them are not destroyed in reverse order, or one is destroyed by another thread, the loading
thread keeps the address, and the next signal with a Python handler there (Ctrl-C, SIGCHLD once a `DataLoader` has had
workers) ends the process with SIGSEGV (seen in 2026.4.1). So there is one `Core`, which is kept, and it loads its
plugin in a thread that ends at once: the caller's signal stack stays as it is. OpenVINO itself advises one `Core` per
program.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

_MADE: dict[str, Any] = {}


def core() -> Any:
    """The `Core` of this process, for any thread. Settings go with each model, never to it."""
    if not _MADE:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="openvino") as pool:
            made = pool.submit(_loaded).result()
        _MADE.setdefault("core", made)  # threads that come at once all use the first one's
    return _MADE["core"]


def _loaded() -> Any:
    import openvino

    made = openvino.Core()  # noqa: TID251  (the one)
    made.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return made
