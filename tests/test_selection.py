"""Which implementation an engine takes where one of them cannot run."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rcdm_fast.ops import reference, selection
from rcdm_fast.ops.schema import NormInputs

CPU = torch.device("cpu")


def test_what_cannot_run_is_left_out_and_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as something else can; memory that is out is nobody's fault."""
    x = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    inputs = NormInputs(x, None, torch.ones(32), torch.zeros(32), None, None, 32, 1e-5, True, 0, False)
    error = RuntimeError("out of resource: shared memory")

    def broken(*_: object) -> None:
        raise error

    choices = selection.Choices(CPU)
    works = choices._candidates["film_group_norm"]["native"]
    for candidates in ({"native": works, "triton": broken}, {"triton": broken, "native": works}):
        choices = selection.Choices(CPU)
        choices._candidates["film_group_norm"] = candidates
        out = torch.full_like(x, torch.nan)
        with choices.measuring(), caplog.at_level("WARNING"):
            choices.film_group_norm(out, inputs)
        torch.testing.assert_close(out, reference.film_group_norm(*inputs))
        assert "film_group_norm by triton cannot run here and is left out: out of resource" in caplog.text
        assert "triton cannot run" in choices.describe()["film_group_norm"]
        caplog.clear()
    choices = selection.Choices(CPU)
    choices._candidates["film_group_norm"] = {"triton": broken, "other": broken}
    with choices.measuring(), pytest.raises(RuntimeError, match="out of resource"):
        choices.film_group_norm(out, inputs)
    error = torch.OutOfMemoryError("CUDA out of memory")
    choices._candidates["film_group_norm"] = {"triton": broken, "native": works}
    with choices.measuring(), pytest.raises(torch.OutOfMemoryError):
        choices.film_group_norm(out, inputs)


def _norm_with(broken: Callable[..., None]) -> tuple[selection.Choices, Tensor, NormInputs]:
    """Choices between what works and something else, an output, and inputs."""
    x = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    inputs = NormInputs(x, None, torch.ones(32), torch.zeros(32), None, None, 32, 1e-5, True, 0, False)
    choices = selection.Choices(CPU)
    found = choices._candidates["film_group_norm"]
    choices._candidates["film_group_norm"] = {"native": found["native"], "triton": broken}
    return choices, torch.empty_like(x), inputs


@pytest.mark.parametrize("kind", [TypeError, ValueError, AssertionError, NotImplementedError])
def test_a_wrong_call_is_no_reason_to_leave_a_candidate_out(kind: type[Exception]) -> None:
    def broken(*_: object) -> None:
        raise kind("expected channels-last")

    choices, out, inputs = _norm_with(broken)
    with choices.measuring(), pytest.raises(kind, match="expected channels-last"):
        choices.film_group_norm(out, inputs)
    assert choices.times_ms("film_group_norm") == {}


def test_what_triton_says_of_a_kernel_leaves_it_out() -> None:
    """Errors of its compiler and of its launcher."""
    errors = pytest.importorskip("triton.compiler.errors")
    of_launches = pytest.importorskip("triton.runtime.errors")
    said = (
        *(
            errors.CompilationError("x = 1", ast.parse("x = 1").body[0], "no"),
            of_launches.OutOfResources(2, 1, "shared"),
        ),
        *(errors.UnsupportedLanguageConstruct(None, None), errors.CompileTimeAssertionFailure(None, None)),
        of_launches.PTXASError("no such instruction"),
    )
    for error in said:

        def broken(*_: object, error: Exception = error) -> None:
            raise error

        choices, out, inputs = _norm_with(broken)
        with choices.measuring():
            choices.film_group_norm(out, inputs)
        assert "triton cannot run" in choices.describe()["film_group_norm"]
