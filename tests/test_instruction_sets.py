"""Small cases of every operator with every instruction set that this processor has, a process each.

`python -m tests.test_instruction_sets` checks them with the one that RCDM_FAST_CPU_ISA names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rcdm_fast import ops
from rcdm_fast.ops import library
from tests import op_checks, test_ops_backward

pytestmark = pytest.mark.skipif(not library.has_native("cpu"), reason="the native part was not built")


@pytest.mark.parametrize("name", ["base", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.long
def test_every_instruction_set(name: str, checkout: Path) -> None:
    if op_checks.lacking(name):
        pytest.skip(f"this processor has no {name}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_instruction_sets"],
        env={**os.environ, "RCDM_FAST_CPU_ISA": name},
        capture_output=True,
        text=True,
        check=False,
        cwd=checkout,
    )
    if "not supported by this processor" in done.stderr:
        pytest.skip(f"this processor has no {name}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == name


if __name__ == "__main__":
    torch.manual_seed(0)
    ops.load()
    op_checks.check_conversions()
    op_checks.quick_round()
    torch.manual_seed(0)
    test_ops_backward.quick_round()
    print(ops.instruction_set())  # noqa: T201
