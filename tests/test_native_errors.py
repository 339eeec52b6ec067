"""What C++ refuses becomes an exception in Python; with the oldest torch too, and for the CUDA part without a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rcdm_fast.ops import library
from tests import native_errors


@pytest.mark.parametrize("case", [name for name in native_errors.CASES if name != "two_devices"])
def test_an_error_in_cpp_is_an_exception(case: str) -> None:
    part = case.partition("_")[0]
    if not library.has_native(part):
        pytest.skip(f"the {part} part was not built")
    done = native_errors.run(case)
    assert done.returncode == 0, done.stdout + done.stderr


def test_messages_are_written_without_streams() -> None:
    """See csrc/check.h."""
    files = [
        file
        for file in (Path(__file__).parents[1] / "csrc").rglob("*")
        if file.suffix in (".cpp", ".h") and file.name != "check.h"
    ]
    assert files
    assert not [file for file in files if re.search("STD_TORCH_CHECK|stringstream", file.read_text(encoding="utf-8"))]
