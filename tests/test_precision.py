"""IEEE fp32 for a call: which of PyTorch's switches are set inside, and that all are put back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from rcdm_fast.engines.precision import ieee_fp32

SWITCHES = [
    ("generic", "all"),
    *((backend, operator) for backend in ("cuda", "mkldnn") for operator in ("all", "conv", "rnn", "matmul")),
]


def _state() -> dict[object, object]:
    """All switches of both generations; a message where PyTorch says that they contradict each other."""
    found: dict[object, object] = {switch: torch._C._get_fp32_precision_getter(*switch) for switch in SWITCHES}
    legacy: dict[str, Callable[[], object]] = {
        "cudnn": torch._C._get_cudnn_allow_tf32,
        "cublas": torch._C._get_cublas_allow_tf32,
        "matmul": torch.get_float32_matmul_precision,
    }
    for name, read in legacy.items():
        try:
            found[name] = read()
        except RuntimeError as error:
            found[name] = str(error)
    found["enabled"] = torch.backends.cudnn.enabled
    found["benchmark"] = torch.backends.cudnn.benchmark
    return found


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for switch in SWITCHES[1:]:
        torch._C._set_fp32_precision_setter(
            *switch, "tf32" if switch in (("cuda", "conv"), ("cuda", "rnn")) else "none"
        )


def _nothing() -> None:
    pass


def _generic_tf32() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]


def _new_conv_alone() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def _matmul_new_against_legacy() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.fp32_precision = "ieee"


HOSTS = {
    "default": _nothing,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "generic": _generic_tf32,
    "no tf32": lambda: torch._C._set_cudnn_allow_tf32(False),
    "cudnn off": lambda: torch._C._set_cudnn_enabled(False),
    "new api": _new_conv_alone,
    "both apis": _matmul_new_against_legacy,
}


@pytest.mark.parametrize("host", HOSTS)
def test_every_switch_is_set_inside_and_put_back(host: str) -> None:
    HOSTS[host]()
    try:
        before = _state()
        with ieee_fp32():
            inside = _state()
        after = _state()
    finally:
        torch._C._set_cudnn_enabled(True)
    for backend in ("cuda", "mkldnn"):
        for operator in ("conv", "rnn", "matmul"):
            assert inside[backend, operator] == "ieee"
    assert after == before
    assert inside["enabled"] == before["enabled"]
    assert inside["benchmark"] == before["benchmark"]
    if host not in ("new api", "both apis"):  # where the host has made the generations contradict each other
        assert (inside["cudnn"], inside["cublas"], inside["matmul"]) == (False, False, "highest")


def test_what_only_repeats_the_setting_for_all_goes_on_doing_so() -> None:
    with ieee_fp32():
        pass
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    assert torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"


def test_an_error_inside_puts_the_switches_back() -> None:
    before = _state()
    with pytest.raises(KeyError), ieee_fp32():
        raise KeyError
    assert _state() == before


def test_the_last_of_several_threads_puts_the_switches_back() -> None:
    before = _state()
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen: list[dict[object, object]] = []

    def first() -> None:
        with ieee_fp32():
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(10)
        with ieee_fp32():
            second_is_in.set()
            first_is_out.wait(10)
            seen.append(_state())

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0]["cuda", "conv"] == "ieee"
    assert _state() == before


def test_fp32_on_the_cpu_is_fp32_whatever_the_host_has_set() -> None:
    a, b = torch.randn(2, 64, 64)
    want = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    with ieee_fp32():
        got = a @ b
    assert float((got - want).norm() / want.norm()) < 1e-6


def test_pytorchs_own_manager_is_no_substitute() -> None:
    """Its `enabled` is False unless given: convolutions would run without cuDNN."""
    assert torch.backends.cudnn.enabled
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not torch.backends.cudnn.enabled
