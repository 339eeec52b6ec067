"""What C++ refuses becomes an exception in Python; with the oldest torch too, and for the CUDA part without a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rcdm_fast.ops import library
from tests import native_errors

CASES = [name for name in native_errors.CASES if name != "two_devices"]


@pytest.fixture(scope="module")
def tried() -> dict[str, tuple[bool, str]]:
    return native_errors.run_several([name for name in CASES if library.has_native(name.partition("_")[0])])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.long
def test_an_error_in_cpp_is_an_exception(case: str, tried: dict[str, tuple[bool, str]]) -> None:
    part = case.partition("_")[0]
    if not library.has_native(part):
        pytest.skip(f"the {part} part was not built")
    refused, said = tried[case]
    assert refused, said


def test_messages_are_written_without_streams() -> None:
    """See csrc/check.h."""
    files = [
        file
        for file in (Path(__file__).parents[1] / "csrc").rglob("*")
        if file.suffix in (".cpp", ".h") and file.name != "check.h"
    ]
    assert files
    assert not [file for file in files if re.search("STD_TORCH_CHECK|stringstream", file.read_text(encoding="utf-8"))]
