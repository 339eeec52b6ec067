"""float32 stays float32 whatever the host program allows, and the host finds its settings as it left them."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from rcdm_fast.precision import ieee_fp32

# Some settings cannot be put back once they were touched, so every host program is a process of its own, forked from
# one that has touched nothing. Beside each runs a twin that never enters: what both see afterwards, also when a more
# general setting is changed later, has to be the same.
HOSTS = r"""
import os, sys
import torch
from rcdm_fast.precision import ieee_fp32

b = torch.backends
read = torch._C._get_fp32_precision_getter


def asked(question):
    try:
        return question()
    except RuntimeError:
        return "contradictory"


def state():
    names = [("generic", "all")]
    names += [(kind, what) for kind in ("cuda", "mkldnn") for what in ("all", "conv", "rnn", "matmul")]
    older = (lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision)
    return [read(*name) for name in names] + [asked(question) for question in older]


def everything():
    seen = [state()]
    for setting in (b, b.cudnn, b.mkldnn):
        for value in ("ieee", "tf32"):
            before = setting.fp32_precision
            setting.fp32_precision = value
            seen.append(state())
            setting.fp32_precision = before
    return repr(seen)


def put(setting, value):
    setting.fp32_precision = value


def older_convolutions(value):
    b.cudnn.allow_tf32 = value


hosts = {
    "untouched": lambda: None,
    "all tf32": lambda: put(b, "tf32"),
    "all bf16": lambda: put(b, "bf16"),
    "all ieee": lambda: put(b, "ieee"),
    "cudnn tf32": lambda: put(b.cudnn, "tf32"),
    "conv tf32": lambda: put(b.cudnn.conv, "tf32"),
    "conv none": lambda: put(b.cudnn.conv, "none"),
    "matmul tf32": lambda: put(b.cuda.matmul, "tf32"),
    "mkldnn bf16": lambda: put(b.mkldnn, "bf16"),
    "mkldnn conv bf16": lambda: put(b.mkldnn.conv, "bf16"),
    "older, on": lambda: older_convolutions(True),
    "older, off": lambda: older_convolutions(False),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older and newer": lambda: (torch.set_float32_matmul_precision("high"), put(b.cuda.matmul, "ieee")),
}
faults = 0
for name, host in hosts.items():
    for device, kind in (("cuda", "cuda"), ("cpu", "mkldnn")):
        seen = []
        for enters in (False, True):
            reading, writing = os.pipe()
            if os.fork() == 0:
                host()
                inside = "exact"
                if enters:
                    with ieee_fp32("cpu"), ieee_fp32(torch.device(device)), ieee_fp32(device):
                        found = {what: read(kind, what) for what in ("conv", "matmul")}
                        if not set(found.values()) <= {"ieee", "none"}:
                            inside = f"not exact: {found}"
                        if device == "cuda" and asked(lambda: b.cuda.matmul.allow_tf32) is not False:
                            inside = "the compiler's question is not answered"
                os.write(writing, (inside + everything()).encode())
                os._exit(0)
            os.close(writing)
            with open(reading, "rb") as answers:
                seen.append(answers.read().decode())
            os.wait()
        if seen[0] != seen[1] or not seen[1].startswith("exact"):
            faults += 1
            print(name, device, *seen, sep="\n")
print("faults:", faults)
"""


@pytest.mark.long
def test_the_hosts_settings_count_for_nothing_and_are_restored() -> None:
    done = subprocess.run([sys.executable, "-c", HOSTS], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "faults: 0", done.stdout + done.stderr[-2000:]


def test_overlapping_calls_restore_what_the_first_one_found() -> None:
    setting: Any = torch.backends.mkldnn.conv  # type: ignore[attr-defined]
    before = setting.fp32_precision
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with ieee_fp32("cpu"):
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=other)

    def fails() -> None:
        with ieee_fp32("cpu"):
            thread.start()
            assert inside.wait(60)
            raise ZeroDivisionError

    setting.fp32_precision = "bf16"
    try:
        with pytest.raises(ZeroDivisionError):
            fails()
        assert setting.fp32_precision == "ieee"  # the other thread is still at work
        leave.set()
        thread.join()
        assert setting.fp32_precision == "bf16"
        with ieee_fp32("meta"):
            assert setting.fp32_precision == "bf16"
    finally:
        setting.fp32_precision = before
