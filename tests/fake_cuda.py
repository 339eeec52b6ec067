"""GPUs made of the CPU's memory: what a test without a GPU can know about code that is written for one.

A tensor on a fake GPU is a `CudaTensor`: it says "cuda:1", and every operator on it runs on a CPU tensor inside. So
numbers are real, and the rules of a GPU are kept: operators take tensors of one device; our kernels are launched on the
current device; kernels that are launched while their stream is captured do not run, they run when the graph is
replayed, with the memory they were captured with; what a capture forbids ends it; every wait of the host for a GPU is
noted. Streams keep a clock that runs by `cost_ms` for every kernel. Inference tensors are PyTorch's own.

    with fake_cuda(2) as machine:
        model = rcdm_fast.load("cifar10-simclr", device="cuda:1")

Knows nothing about our modules but the names of two operators written in Triton and the switch of native parts. It has
no autograd, no races between streams, and layouts are those of the CPU's operators: those of CUDA's can be seen in
`FakeTensorMode`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing

from rcdm_fast.ops import library
from tests.fake_streams import Capture, Event, Facts, Graph, Kernel, OnStream, Stream, mapped, running, tensors_of

SYNCHRONIZING = (  # of aten; they need to know on the host what a tensor holds
    *(
        "_local_scalar_dense",
        "nonzero",
        "nonzero_static",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    ),
    *("equal", "is_nonzero", "bincount", "_assert_async"),
)
IN_TRITON = {
    "film_group_norm_triton_out": "film_group_norm_out",
    "film_group_norm_triton": "film_group_norm",
    "film_group_norm_before_triton_out": "film_group_norm_before_out",
    "add_residual_triton": "add_residual",
    "convolution_residual_triton": "convolution_residual",
    "film_group_norm_given_triton_out": "film_group_norm_given_out",
    "moments_triton": "moments",
    "add_residual_moments_triton": "add_residual_moments",
    "convolution_moments_triton": "convolution_moments",
    "map_film_triton": "map_film",
    "quantize_triton": "quantize",
    "fp8_convolution_triton": "fp8_convolution",
    "attention_triton": "attention",
}
OF_ENGINES = (
    *("film_group_norm_out", "film_group_norm", "attention"),
    *("film_group_norm_before_out", "add_residual", "convolution_residual", "map_film"),
    *("film_group_norm_given_out", "moments", "add_residual_moments", "convolution_moments"),
    *("quantize", "fp8_convolution"),
)  # launched on the current device


class CudaTensor(Tensor):
    """A tensor on a fake GPU; `numbers` is where its numbers are."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> CudaTensor:
        made: CudaTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
            requires_grad=inner.requires_grad,
        )
        made.numbers = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({self.numbers}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, object]) -> CudaTensor:
        copy = self.detach().clone()
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy  # type: ignore[return-value]

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return running[-1].launch(func, args, kwargs or {})


class _Entry(TorchFunctionMode):
    """What makes tensors on a GPU from numbers or from the CPU's tensors. Holds for one thread."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        machine = self._machine
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.is_fake_pinned = True
            return pinned
        if func is Tensor.cuda:
            func, args = Tensor.to, (args[0], torch.device("cuda", machine.current_device()))
        if func is Tensor.to and (target := _target(*args[1:], **kwargs)) is not None:
            return machine.move(args[0], *target)
        if func.__name__.startswith("new_") and isinstance(args[0], CudaTensor) and not kwargs.get("device"):
            kwargs["device"] = args[0].device
            args = (args[0].numbers, *args[1:])
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            machine.sync(f"{func.__name__} from numbers of the host")
        return machine.wrap(func(*args, **{**kwargs, "device": "cpu"}), machine.place(device))


def _target(*args: Any, **kwargs: Any) -> tuple[torch.device, torch.dtype | None, bool, Any] | None:
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    del copy
    return (device, dtype, non_blocking, layout) if device is not None and device.type == "cuda" else None


class Machine:
    """The fake GPUs of a process, and what was done with them.

    Attributes:
        syncs: every time the host waited for a GPU, in words.
        kernels: names of the operators that were launched, captured ones included.
        graphs: what was captured.
        cost_ms: of a kernel.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.syncs: list[str] = []
        self.kernels: list[str] = []
        self.graphs: list[Facts] = []
        self.captures: list[Any] = []
        self.cost_ms = 0.001
        self.peak_bytes = 0
        self._memory: dict[int, tuple[int, int]] = {}  # storage -> tensors that use it, bytes
        self._allocated = 0
        self._lock = threading.RLock()
        self._local = threading.local()
        self._number = 0
        self._allowed = True

    # Devices and streams

    def place(self, device: Any = None) -> torch.device:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
        index = self.current_device() if found.index is None else found.index
        if not 0 <= index < self.count:
            raise RuntimeError(f"invalid device ordinal: {index}")
        return torch.device("cuda", index)

    def current_device(self) -> int:
        return getattr(self._local, "device", 0)

    def exchange_device(self, index: int) -> int:
        before = self.current_device()
        if index >= 0:
            self._local.device = index
        return before

    @property
    def streams(self) -> dict[int, Stream]:
        if not hasattr(self._local, "streams"):
            self._local.streams = {index: self.default_stream(index) for index in range(self.count)}
        found: dict[int, Stream] = self._local.streams
        return found

    def default_stream(self, device: Any = None) -> Stream:
        return Stream(device, number=0)

    def current_stream(self, device: Any = None) -> Stream:
        return self.streams[self.place(device).index]

    def next_number(self) -> int:
        self._number += 1
        return self._number

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """For the body of another thread: it sees the GPUs too."""
        with _Entry(self):
            yield

    # Waiting, and what a capture forbids

    def sync(self, what: str) -> None:
        if not self._allowed:
            raise RuntimeError(f"the host waits for the GPU: {what}")
        self.unsafe(what)
        self.syncs.append(what)

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Inside, a wait of the host for a GPU is an error."""
        self._allowed = False
        try:
            yield
        finally:
            self._allowed = True

    def unsafe(self, what: str, does_it: Callable[[Facts], bool] = lambda _: True) -> None:
        """A call that a capture forbids: in its own thread, or in any ("global")."""
        for facts in [capture.facts for capture in self.captures if capture.facts is not None]:
            own = facts.thread == threading.get_ident()
            if (own or facts.mode == "global") and does_it(facts):
                facts.fault = facts.fault or what
                if own:
                    raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def capturing(self) -> bool:
        """Whether this thread captures."""
        return any(
            capture.facts is not None and capture.facts.thread == threading.get_ident() for capture in self.captures
        )

    # Memory

    def wrap(self, inner: Tensor, device: torch.device) -> CudaTensor:
        """A CPU tensor as one of a GPU; its memory counts while one tensor of the GPU has it."""
        storage = inner.untyped_storage()
        made = CudaTensor(inner, device)
        with self._lock:
            users, size = self._memory.get(storage._cdata, (0, storage.nbytes()))
            self._memory[storage._cdata] = (users + 1, size)
            self._allocated += 0 if users else size
            self.peak_bytes = max(self.peak_bytes, self._allocated)
        weakref.finalize(made, self._unused, storage._cdata)
        if not users and not self.capturing():
            self.unsafe("an allocation")
        return made

    def _unused(self, key: int) -> None:
        with self._lock:
            users, size = self._memory.pop(key)
            if users > 1:
                self._memory[key] = (users - 1, size)
            else:
                self._allocated -= size

    def allocated_bytes(self, device: Any = None) -> int:
        return self._allocated

    def move(self, value: Tensor, device: torch.device, dtype: torch.dtype | None, later: bool, layout: Any) -> Tensor:
        target = self.place(device)
        if isinstance(value, CudaTensor):
            if value.device == target and dtype in (None, value.dtype) and layout is None:
                return value
            keep = torch.preserve_format if layout is None else layout
            return self.wrap(value.numbers.to(dtype=dtype or value.dtype, memory_format=keep, copy=True), target)
        if not (later and getattr(value, "is_fake_pinned", False)):
            self.sync("a copy from the host")
        keep = torch.preserve_format if layout is None else layout
        return self.wrap(value.detach().to(dtype=dtype or value.dtype, memory_format=keep, copy=True), target)

    # Kernels

    def launch(self, func: Any, args: Any, kwargs: Any) -> Any:
        facts = _facts(func)
        name = facts.name
        if facts.of_parts:
            return func._op_dk(_IMPLICIT, *args, **kwargs)  # a view or a copy: what it is made of will tell
        if name == "_to_copy" and torch.device(kwargs.get("device") or "cuda").type == "cpu":
            self.sync("a copy to the host")
            return func(*mapped(CudaTensor, _inner, args), **kwargs)
        if name == "copy_" and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
            self.sync("a copy between host and GPU")
            args[0].numbers.copy_(args[1]) if isinstance(args[0], CudaTensor) else args[0].copy_(args[1].numbers)
            return args[0]
        if name in SYNCHRONIZING:
            self.sync(name)
        if name in ("index", "index_put_", "index_put") and any(
            index is not None and (index.dtype == torch.bool or not isinstance(index, CudaTensor)) for index in args[1]
        ):
            self.sync(f"{name} by a mask, or by numbers of the host")
        return self._run(func, args, kwargs, name)

    def _run(self, func: Any, args: Any, kwargs: Any, name: str) -> Any:
        tensors = tensors_of((args, kwargs))
        places = {leaf.device for leaf in tensors if isinstance(leaf, CudaTensor)}
        host = [leaf for leaf in tensors if not isinstance(leaf, CudaTensor) and leaf.dim()]
        device = next(iter(places))
        if name not in ("copy_", "index", "index_put_") and (len(places) > 1 or host):
            raise RuntimeError(
                f"{name}: expected all tensors to be on one device, found {places} and {len(host)} of CPU"
            )
        if func.namespace == "rcdm_fast":
            name = IN_TRITON.get(name, name)
            func = getattr(torch.ops.rcdm_fast, name).default
            if name in OF_ENGINES and device.index != self.current_device():
                raise RuntimeError(f"{name} was launched on cuda:{self.current_device()} with memory of {device}")
        facts = _facts(func)
        inner_args, inner_kwargs = (mapped(CudaTensor, _inner, part) for part in (args, kwargs))
        if "device" in inner_kwargs:
            inner_kwargs["device"] = "cpu"
        stream = self.current_stream(device)
        capture = next((each for each in self.captures if each.facts.stream == stream and not facts.views), None)
        if not facts.views:
            self.kernels.append(name)
            stream.clock_ms += 0.0 if capture else self.cost_ms
        if capture is not None and facts.writes:
            capture.kernels.append(Kernel(func, inner_args, inner_kwargs, [], self.cost_ms))
            return args[0] if facts.returns else None
        got = func(*inner_args, **inner_kwargs)
        if capture is not None:
            outputs = tensors_of(got)
            capture.kernels.append(Kernel(func, inner_args, inner_kwargs, outputs, self.cost_ms))
            for output in outputs:  # nothing has run yet
                output.fill_(torch.nan if output.is_floating_point() else 0)
        first = next((leaf for leaf in tensors if isinstance(leaf, CudaTensor)), None)
        of_view = first.is_inference() if facts.views and first is not None else torch.is_inference_mode_enabled()
        with torch.inference_mode(of_view):  # a view of an ordinary tensor is an ordinary tensor
            made = mapped(Tensor, lambda value: self.wrap(value, device), got)
        return return_and_correct_aliasing(func, args, kwargs, made) if facts.writes or facts.views else made


def _inner(value: CudaTensor) -> Tensor:
    return value.numbers


class _Operator(NamedTuple):
    """What an operator's schema says: whether it writes into arguments, gives views of them, gives anything at all.

    One that is made `of_parts` gives a view or a copy by other operators.
    """

    name: str
    writes: bool
    views: bool
    returns: bool
    of_parts: bool


_IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd


@functools.cache
def _facts(func: Any) -> _Operator:
    schema = func._schema
    writes, given = (
        [each.alias_info for each in arguments if each.alias_info is not None]
        for arguments in (schema.arguments, schema.returns)
    )
    return _Operator(
        schema.name.split("::")[1],
        any(alias.is_write for alias in writes),
        any(not alias.is_write for alias in given),
        bool(schema.returns),
        bool(given) and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _IMPLICIT),
    )


@contextlib.contextmanager
def fake_cuda(count: int = 1, parts: Sequence[str] = ("cpu", "cuda")) -> Iterator[Machine]:
    """A machine with `count` GPUs inside; `parts` are the native libraries that it seems to have."""
    machine = Machine(count)
    library.load()  # its operators for the CPU do the work
    torch._C._ensureCUDADeviceGuardSet()  # without a driver PyTorch's own guards do nothing from here on
    with pytest.MonkeyPatch.context() as patch:
        running.append(machine)
        replaced: dict[str, Any] = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "device_count": lambda: count,
            "current_device": machine.current_device,
            "set_device": lambda device: machine.exchange_device(machine.place(device).index),
            "_exchange_device": machine.exchange_device,
            "_maybe_exchange_device": machine.exchange_device,
            "current_stream": machine.current_stream,
            "default_stream": machine.default_stream,
            "stream": OnStream,
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": Capture,
            "graph_pool_handle": lambda: (0, machine.next_number()),
            "synchronize": lambda device=None: machine.sync("torch.cuda.synchronize"),
            "empty_cache": lambda: None,
            "get_rng_state": lambda device="cuda": torch.empty(0, dtype=torch.uint8),
            "set_rng_state": lambda state, device="cuda": None,
            "is_bf16_supported": lambda *_: True,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: "a GPU of the CPU's memory",
            "mem_get_info": lambda device=None: (2**33, 2**34),
            "memory_allocated": machine.allocated_bytes,
            "max_memory_allocated": lambda device=None: machine.peak_bytes,
        }
        for name, value in replaced.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        patch.setattr(Capture, "default_stream", None)
        patch.setattr(library, "has_native", lambda kind: kind in parts)
        try:
            with machine.here():
                yield machine
        finally:
            running.pop()
