"""The library and the program around it: neither moves the other, whatever the program has set up."""

from __future__ import annotations

import contextlib
import dataclasses
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rcdm_fast
from rcdm_fast import devices, host
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import ImageEncoder, native
from rcdm_fast.evaluation import EvaluateConfig, evaluate
from rcdm_fast.images import to_pil
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.training.adapt import AdaptConfig, adapt
from rcdm_fast.training.pretrain_config import PretrainConfig
from rcdm_fast.training.train import train
from tests import small, training_process
from tests.tolerances import THREADS_ABS

BACKENDS: Any = torch.backends  # whose switches its stubs do not know


def global_state() -> dict[str, Any]:
    """Everything that a library could leave changed."""
    mask = os.umask(0o22)
    os.umask(mask)
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast's cache": torch.is_autocast_cache_enabled(),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "products": (BACKENDS.mkldnn.matmul.fp32_precision, BACKENDS.cuda.matmul.fp32_precision),
        "convolutions": (BACKENDS.mkldnn.conv.fp32_precision, BACKENDS.cudnn.conv.fp32_precision),
        "attention": (BACKENDS.cuda.flash_sdp_enabled(), BACKENDS.cuda.math_sdp_enabled()),
        "cudnn": (BACKENDS.cudnn.enabled, BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": np.random.get_state()[1].tobytes(),  # type: ignore[index]
        "python's random state": random.getstate(),
        "print options": torch._tensor_str.PRINT_OPTS.precision,
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": mask,
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "path": list(sys.path),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
    }


@contextlib.contextmanager
def switched(write: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    write(value)
    try:
        yield
    finally:
        write(back)


def other_products() -> AbstractContextManager[None]:
    return switched(lambda value: setattr(BACKENDS.mkldnn.conv, "fp32_precision", value), "bf16", "none")


HOSTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "float64 by default": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16 by default": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "the meta device by default": lambda: switched(torch.set_default_device, "meta", None),
    "inside the meta device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "products in bfloat16": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "convolutions in bfloat16": other_products,
    "attention by the book": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "one thread": lambda: switched(torch.set_num_threads, 1, torch.get_num_threads()),
    "another seed": lambda: switched(torch.manual_seed, 5, 6),
}


class Mixed(nn.Module):
    """A representation with a convolution and a product, which other precisions would change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, small.DIM)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).mean(dim=(2, 3)))
        return out


@pytest.fixture(scope="module")
def network_of_encoder() -> Mixed:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Mixed()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small.quick_model()
    return checkpoint.save_model(
        tmp_path_factory.mktemp("saved") / "small.safetensors", model.config, model.unet.state_dict()
    )


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "h": torch.randn(2, small.DIM, generator=generator),
        "x": torch.randn(2, 3, 8, 8, generator=generator),
        "t": torch.tensor([10, 700]),
        "images": small.make_images(2),
    }


def calls(saved: Path, given: dict[str, Tensor], network: nn.Module, engine: str) -> dict[str, Tensor]:
    """What the public methods of a model give that is loaded and used right here."""
    encoder = ImageEncoder(network, EncoderConfig("module", image_size=8, dim=small.DIM))
    model = rcdm_fast.load(saved, encoder=encoder, device="cpu", engine=engine, precision="fp32")
    h, images = given["h"], given["images"]
    drawn = list(rcdm_fast.generate(model, h, per=1, steps=2))
    return {
        "weights": next(model.unet.parameters()),
        "encode": model.encode(images),
        "encode images": model.encode([images[0], to_pil(images[1])]),
        "view": model.view(to_pil(images[0])),
        "sample": model.sample(h, per=2, steps=3, eta=0.5),
        "ancestral": model.sample(h, per=1, steps=3, solver="ancestral"),
        "batches": [part for _, part in model.batches(model.request(h, per=2, steps=2), 3)][-1],
        "generate": drawn[-1].images,
        "interpolate": model.interpolate(h[0], h[1], 3, steps=2),
        "invert": model.invert(images, steps=2),
        "network": model.network(given["x"], given["t"], h),
        "from a network": Model.from_network(model.unet, model.config.schedule).sample(h, per=1, steps=2),
    }


@pytest.fixture(scope="module", params=["eager", "native"])
def plain(
    request: pytest.FixtureRequest, saved: Path, given: dict[str, Tensor], network_of_encoder: Mixed
) -> tuple[str, dict[str, Tensor]]:
    return request.param, calls(saved, given, network_of_encoder, request.param)


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_and_the_library_leave_each_other_alone(
    name: str,
    plain: tuple[str, dict[str, Tensor]],
    saved: Path,
    given: dict[str, Tensor],
    network_of_encoder: Mixed,
) -> None:
    engine, expected = plain
    with HOSTS[name]():
        before = global_state()
        found = calls(saved, given, network_of_encoder, engine)
        after = global_state()
    changed = [key for key, value in before.items() if after[key] != value]
    assert not changed, f"changed: {changed}"
    for call, value in expected.items():
        assert (found[call].dtype, found[call].device) == (value.dtype, value.device), call
        assert [found[call].is_inference(), found[call].requires_grad] == [False, False], call
        allowed = 0.0
        if name == "one thread":  # it may round otherwise, by a level of 8 bits at most
            allowed = 1.0 if value.dtype == torch.uint8 else THREADS_ABS
        assert float((found[call].double() - value.double()).abs().max()) <= allowed, call


@pytest.mark.parametrize("name", ["autocast to bfloat16", "float64 by default", "inference", "another seed"])
def test_training_adapting_and_evaluating_too(name: str, tmp_path: Path) -> None:
    data = training_process.data()

    unet = dataclasses.replace(small.UNET, representation_dim=0, dropout=0.2)

    def run(folder: Path) -> list[Tensor]:
        trained = train(training_process.config(str(encoder), images=32, unet=unet), data, folder / "run")
        adapted = adapt(
            AdaptConfig("adapted", str(trained), EncoderConfig(f"file:{encoder}", image_size=8), steps=2, batch_size=4),
            data,
            folder / "adapted",
        )
        model = rcdm_fast.load(adapted, device="cpu")
        result = evaluate(model, data, EvaluateConfig(sources=4, per=1, gallery=8, steps=2, resamples=100))
        weights = [*checkpoint.load_model(trained)[1].values(), *checkpoint.load_model(adapted)[1].values()]
        return [*weights, torch.tensor(result.reciprocal_ranks, dtype=torch.float64)]

    pretraining = PretrainConfig("tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))
    encoder = tmp_path / "encoder.safetensors"
    native.save(encoder, pretraining.network(), pretraining.encoder(), {})
    expected = run(tmp_path / "plain")
    with HOSTS[name]():
        before = global_state()
        found = run(tmp_path / "inside")
        after = global_state()
    assert [key for key, value in before.items() if after[key] != value] == []
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_between_batches_the_host_has_its_own_settings(saved: Path, given: dict[str, Tensor]) -> None:
    model = rcdm_fast.load(saved, device="cpu", engine="eager")
    with switched(torch.set_default_dtype, torch.float64, torch.float32):
        for _ in model.batches(model.request(given["h"], per=2, steps=2), 1):
            assert torch.ones(1).dtype == torch.float64
        for _ in rcdm_fast.generate(model, given["h"], per=2, steps=2, batch_size=1):
            assert torch.ones(1).dtype == torch.float64


def test_an_error_puts_everything_back(saved: Path, given: dict[str, Tensor]) -> None:
    model = rcdm_fast.load(saved, device="cpu", engine="eager")
    with switched(torch.set_default_dtype, torch.float64, torch.float32), torch.autocast("cpu", torch.bfloat16):
        before = global_state()
        with pytest.raises(rcdm_fast.ConfigError):
            model.sample(given["h"], per=0)
        with pytest.raises(rcdm_fast.CheckpointError):
            rcdm_fast.load("no-such-model")
        assert global_state() == before


def test_overlapping_calls_put_the_default_back_when_the_last_one_ends() -> None:
    inside, leave = threading.Event(), threading.Event()

    def call() -> None:
        with host.apart():
            inside.set()
            leave.wait(10)

    with switched(torch.set_default_dtype, torch.float64, torch.float32):
        thread = threading.Thread(target=call)
        thread.start()
        inside.wait(10)
        with host.apart():
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float32  # the other call is not done
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


def test_inherited_precision_stays_inherited() -> None:
    with switched(lambda value: setattr(BACKENDS, "fp32_precision", value), "tf32", "none"):
        with host.apart():
            assert BACKENDS.mkldnn.conv.fp32_precision == "ieee"
        assert BACKENDS.mkldnn.conv.fp32_precision == "tf32"
        BACKENDS.fp32_precision = "ieee"
        assert BACKENDS.mkldnn.conv.fp32_precision == "ieee"


def test_a_network_that_is_trained_goes_on_training(given: dict[str, Tensor]) -> None:
    network = small.network().train()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    model = Model.from_network(network, small.SCHEDULE)
    first = model.sample(given["h"], per=1, steps=2)
    assert network.training
    assert all(part.training for part in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    network(given["x"], given["t"], given["h"]).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert torch.equal(model.sample(given["h"], per=1, steps=2), first)
    assert not model.unet.training
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_a_network_of_another_type_is_copied_as_float32(given: dict[str, Tensor]) -> None:
    model = Model.from_network(small.network().to(torch.bfloat16), small.SCHEDULE)
    assert model.sample(given["h"], per=1, steps=2).dtype == torch.float32
    with pytest.raises(rcdm_fast.ConfigError, match=r"expected an rcdm_fast\.models\.unet\.UNet, got Linear"):
        Model.from_network(nn.Linear(2, 2), small.SCHEDULE)  # type: ignore[arg-type]


def test_whatever_draws_leaves_all_generators_where_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with contextlib.suppress(KeyError), host.own_random():
        draw()
        raise KeyError
    assert draw() == expected


def test_building_an_encoder_and_exporting_draw_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(*_: Any) -> Any:
        torch.rand(1)
        return small.encoder()

    monkeypatch.setattr("rcdm_fast.encoders.build", draws)
    model = Model.from_network(small.network(channel_mult=(1,)), small.SCHEDULE)
    model._encoder = EncoderConfig("bundled:some", image_size=8, dim=small.DIM)
    drawn = torch.get_rng_state()
    assert model.encoder is not None
    assert torch.equal(torch.get_rng_state(), drawn)
    monkeypatch.setattr("rcdm_fast.exporters.hub_folder.write", lambda *_: draws() and [])
    assert rcdm_fast.export(model, "hub", tmp_path / "out") == []
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("before", [False, True])
def test_timing_convolutions_is_the_hosts_choice_again(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with devices.timed_convolutions():
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark is before


def test_loading_draws_nothing(saved: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    rcdm_fast.load(saved, device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_was_forked_inside_a_call_keeps_its_own_settings(tmp_path: Path) -> None:
    """It leaves a call that only its parent had entered; later calls of its own put back what they found."""
    said, before = tmp_path / "child", torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with host.apart():
            child = os.fork()
        if child == 0:
            try:
                with host.apart():
                    pass
                said.write_text(str(torch.get_default_dtype()))
            finally:
                os._exit(0)
    finally:
        torch.set_default_dtype(before)
    os.waitpid(child, 0)
    assert said.read_text() == "torch.float64"
