"""Model: encode, sample, invert and interpolate; the only file that knows every stage.

Everything a call needs is decided here (which noise, which rows, which batches) and handed to the stages, none of which
knows the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import checkpoint, conditioning, encoders, engines, images, sampling, solvers
from rcdm_fast import noise as keyed
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, ScheduleConfig
from rcdm_fast.encoders import Encoder
from rcdm_fast.export import job as export_job
from rcdm_fast.export.hub_folder import HubMethods
from rcdm_fast.sampling import Request, SamplingError, interpolation_path
from rcdm_fast.schedule import Schedule, network_timestep
from rcdm_fast.unet import UNet

if TYPE_CHECKING:
    from rcdm_fast.jobs.sources import Given
    from rcdm_fast.jobs.stream import Generated

Pictures = Tensor | str | os.PathLike[str] | Image.Image | Sequence[str | os.PathLike[str] | Image.Image]


class Model(HubMethods):
    """A network with its schedule, its encoder (if known) and the engine that runs it. Made by `rcdm_fast.load`.

    Attributes:
        config: what the weights file says about itself.
        unet: the network in plain PyTorch.
        engine: what evaluates it while sampling.
    """

    def __init__(
        self,
        config: ModelConfig,
        unet: UNet,
        engine: engines.Engine,
        encoder: Encoder | EncoderConfig | None,
        device: torch.device,
    ) -> None:
        self.config = config
        self.unet = unet
        self.engine = engine
        self.device = device
        self._encoder = encoder
        self._turn = threading.Lock()  # an engine draws one batch at a time

    @property
    def encoder(self) -> Encoder | None:
        """What turns pictures into representations, or None; built when first asked for (it may need a download)."""
        if isinstance(self._encoder, EncoderConfig):
            self._encoder = _checked_width(encoders.build(self._encoder, self.device), self.config)
        return self._encoder

    @classmethod
    def from_network(
        cls, network: UNet, schedule: ScheduleConfig, encoder: Encoder | None = None, device: str = "cpu"
    ) -> Model:
        """A model around a network made in Python, run by the eager engine in fp32."""
        place = torch.device(device)
        network = network.eval().requires_grad_(False)
        config = ModelConfig(network.config, schedule, encoder.config if encoder is not None else None)
        return cls(config, network, engines.make("eager", network, config, place, "fp32"), encoder, place)

    @property
    def image_size(self) -> int:
        """Side of the pictures it makes, in pixels."""
        return self.config.unet.image_size

    def describe(self) -> str:
        """A few lines: name, network, engine, encoder."""
        unet = self.config.unet
        parameters = sum(parameter.numel() for parameter in self.unet.parameters())
        encoder = self.config.encoder
        lines = [
            f"model    {self.config.name or '(unnamed)'}: {unet.image_size} px, {parameters / 1e6:.1f} M parameters",
            f"engine   {self.engine.describe()}",
            *(f"         not {name}: {why}" for name, why in self._other_engines().items()),
            f"encoder  {encoder.source} ({encoder.layer})" if encoder is not None else "encoder  none",
        ]
        return "\n".join(lines)

    def _other_engines(self) -> dict[str, str]:
        precision: engines.Precision = self.engine.precision  # type: ignore[assignment]
        others = engines.compare(self.device, precision)
        return {
            name: engines.NOT_CHOSEN.get(name, "") if why == "available" else why
            for name, why in others.items()
            if name != self.engine.name
        }

    def encode(self, pictures: Pictures) -> Tensor:
        """Representations of pictures.

        Args:
            pictures: files, PIL pictures (one or several) or a float tensor [N,3,H,W] in [-1,1] of any size; they are
                resized as the encoder's convention says.

        Returns:
            float32 [N,D] on the model's device.

        Raises:
            SamplingError: the model has no encoder.
            images.ImageError: something that is no usable picture.
        """
        encoder = self._require_encoder()
        if isinstance(pictures, Tensor):
            return encoder.encode(images.check(pictures).to(self.device))
        loaded = [images.load(picture) for picture in _listed(pictures)]
        return torch.cat([encoder.encode(picture.to(self.device)) for picture in loaded])

    def export(
        self,
        to: str,
        out: str | os.PathLike[str],
        *,
        precision: str = "fp32",
        targets: Sequence[str] = (),
        batches: Sequence[int] = (1,),
        dynamic: bool = False,
        encoder: bool = True,
        calibrate: Pictures | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Path]:
        """Write the model for another runtime or library, after checking its numbers against PyTorch.

        Args:
            to: "onnx", "openvino", "tensorrt", "diffusers" or "hub".
            out: the folder to write.
            precision: "fp32", "fp16", "bf16", "int8" or "fp8", as far as the format has it.
            targets: GPU generations such as "sm89" for TensorRT; the GPU that is there if left out.
            batches: pictures per evaluation that TensorRT builds for.
            dynamic: one TensorRT engine for all batches up to the largest, instead of one for each.
            encoder: export the encoder too, where there is one and the format takes it.
            calibrate: pictures whose representations int8 is calibrated with.
            progress: takes one line at a time about what is being done.

        Returns:
            The files written.

        Raises:
            ConfigError: unknown format, or a precision that it does not have, or packages that are missing.
            ExportError: the exported numbers are wrong; nothing is left at `out`.
            StorageError: `out` cannot be written.
        """
        form = export_job.find(to, precision)
        job = export_job.Job(
            self.unet,
            self.config,
            self.encoder if encoder else None,
            precision,
            tuple(targets),
            tuple(batches),
            dynamic,
            representations=None if calibrate is None else self.encode(calibrate),
            say=progress or (lambda _: None),
        )
        return form.write(Path(out), job)

    def network(
        self,
        x: Tensor,  # [N,3,H,W]
        t: Tensor,  # int64 [N]
        representation: Tensor | None = None,  # [N,D]
        label: Tensor | None = None,  # int64 [N]
    ) -> Tensor:
        """The raw network at base timesteps t in 0..T-1; float32 [N,3 or 6,H,W] (eps, then the variance value).

        Runs the plain PyTorch network in fp32, whatever the engine; applies `rescale_timesteps` itself.
        """
        steps = self.config.schedule.diffusion_steps
        if t.shape != (len(x),) or t.is_floating_point():
            raise ConfigError(f"t must be int [{len(x)}], got {t.dtype} {list(t.shape)}")
        if len(t) and not (0 <= int(t.min()) and int(t.max()) < steps):
            raise ConfigError(f"t must be in 0..{steps - 1}")
        self._check_size(x, "x")
        representation, label = sampling.checked_condition(self.config.unet, representation, label, self.device)
        count = len(x)
        for name, value in (("representation", representation), ("label", label)):
            if value is not None and len(value) != count:
                raise ConfigError(f"{name} has {len(value)} rows for {count} pictures")
        seen = t.to(self.device, torch.float32) * network_timestep(self.config.schedule, 1)
        with torch.inference_mode():
            out: Tensor = self.unet(x.to(self.device, torch.float32), seen, representation, label)
        return out

    def sample(
        self,
        h: Tensor | None = None,
        *,
        label: Tensor | None = None,
        items: Tensor | Sequence[int] | None = None,
        per: int = 8,
        steps: int | str = 50,
        solver: str = "ddim",
        eta: float = 0.0,
        guidance: float = 1.0,
        seed: int = 0,
        clip: bool = True,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Pictures that share a representation.

        Args:
            h: representations [R,D]; None for a class-conditional or unconditional model.
            label: class labels, int64 [R], for a class-conditional model.
            items: int64 [R]; key the noise of each representation. Default 0..R-1. Rows with the same item and
                the same h give the same pictures.
            per: samples of each representation.
            steps: network evaluations: an int N, or a published respacing text ("ddim25", "10", "10,10,5").
            solver: "ddim" or "ancestral".
            eta: DDIM's share of fresh noise; 0 is deterministic.
            guidance: strength w of classifier-free guidance on h, null + w (conditional - null); 1 is none. Others
                need a model trained with representation dropout, and two network evaluations per step.
            seed: 0..2^64-1. One (seed, item, sample) has the same noise on every device, engine and precision,
                whatever the batch.
            clip: clip every x0 estimate to [-1,1].
            noise: x_T [R,per,3,H,W] instead of the keyed noise.
            step_noise: [K,R,per,3,H,W], in order of use, instead of the keyed noise.
            batch_size: pictures per network evaluation; default 32 on CPU, 64 on GPU. Changes the pictures by
                rounding only.
            progress: show a progress bar.

        Returns:
            float32 [R,per,3,H,W] in [-1,1] on the model's device (values may pass the bounds if `clip` is False).

        Raises:
            ConfigError: a wrong shape, width, solver, step count or setting.
            SamplingError: the result is not finite.
        """
        request = self.request(
            h,
            label=label,
            items=items,
            per=per,
            steps=steps,
            solver=solver,
            eta=eta,
            guidance=guidance,
            seed=seed,
            clip=clip,
            noise=noise,
            step_noise=step_noise,
        )
        size = self.image_size
        out = torch.empty(request.total, 3, size, size, device=self.device)
        for place, pictures in self.batches(request, batch_size, progress):
            out[place] = pictures
        return out.view(len(request.items), request.per, 3, size, size)

    def request(
        self,
        h: Tensor | None = None,
        *,
        label: Tensor | None = None,
        items: Tensor | Sequence[int] | None = None,
        per: int = 8,
        steps: int | str = 50,
        solver: str = "ddim",
        eta: float = 0.0,
        guidance: float = 1.0,
        seed: int = 0,
        clip: bool = True,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> Request:
        """Check the arguments of `sample` (which see) before any work is done; run the result with `batches`.

        `pairs` draws just these (row, sample), in this order, instead of samples 0..per-1 of every row.
        """
        if per < 1:
            raise ConfigError(f"per must be at least 1, got {per}")
        if pairs is not None and (noise is not None or step_noise is not None):
            raise ConfigError("pairs have keyed noise: noise and step_noise cannot be given with them")
        representation, label = sampling.checked_condition(self.config.unet, h, label, self.device)
        if representation is not None:
            rows = len(representation)
        elif label is not None:
            rows = len(label)
        else:
            rows = 1 if items is None else len(items)
        keys = tuple(range(rows)) if items is None else tuple(int(item) for item in items)
        if len(keys) != rows:
            raise ConfigError(f"{len(keys)} items for {rows} representations")
        chosen = None if pairs is None else tuple((int(row), int(sample)) for row, sample in pairs)
        for row, sample in chosen or ():
            if not (0 <= row < rows and sample >= 0):
                raise ConfigError(f"pair ({row}, {sample}): there are rows 0..{rows - 1}, and samples count from 0")
        schedule = Schedule.make(self.config.schedule, steps)
        picture = (3, self.image_size, self.image_size)
        for name, value, shape in (
            ("noise", noise, (rows, per, *picture)),
            ("step_noise", step_noise, (len(schedule), rows, per, *picture)),
        ):
            if value is not None and tuple(value.shape) != shape:
                raise ConfigError(f"{name} must be {list(shape)}, got {list(value.shape)}")
        options = solvers.SolverOptions(eta, clip)
        return Request(
            representation=representation,
            label=label,
            items=keys,
            per=per,
            schedule=schedule,
            solver=solvers.find(solver),
            options=options,
            guidance=sampling.checked_guidance(self.config, guidance),
            seed=keyed.check_seed(seed),
            noise=noise,
            step_noise=step_noise,
            picture=picture,
            pairs=chosen,
        )

    def batches(
        self,
        request: Request,
        batch_size: int | None = None,
        progress: bool = False,
        watch: sampling.Watch | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Run a request, yielding (places among its pictures, pictures [n,3,H,W]) as they are finished.

        Several threads may do so at once: their batches take turns. `watch` is shown (places, x_T) of every batch.
        """
        plan = conditioning.make_plan(self.unet, request.schedule, request.conditions, request.label)
        found = sampling.run(self.engine, plan, request, self._batch_size(batch_size), progress, watch)
        return self._in_turn(found)

    def _in_turn(self, batches: Iterator[tuple[slice, Tensor]]) -> Iterator[tuple[slice, Tensor]]:
        while True:
            with self._turn:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def generate(
        self,
        source: Given,
        *,
        per: int = 8,
        steps: int | str = 50,
        solver: str = "ddim",
        eta: float = 0.0,
        guidance: float = 1.0,
        seed: int = 0,
        batch_size: int | None = None,
        threads: int = 4,
        on_bad: Callable[[int, str], None] | None = None,
    ) -> Iterator[Generated]:
        """Pictures of many items as they are finished; items are read and encoded ahead.

        Several threads may generate at once with one model: their batches take turns. `rcdm generate` (or
        `rcdm_fast.jobs.local.run`) does the same into files, resumably.

        Args:
            source: a folder of pictures, WebDataset shards, .npy, .npz, .safetensors, Parquet or Arrow files of
                pictures or representations; the arrays, pictures or paths themselves; labels for a class-conditional
                model, a number of items for an unconditional one. See `rcdm_fast.jobs.sources.find`.
            per: samples of each item. The noise of a picture depends on (seed, place of its item, sample) alone.
            steps, solver, eta, guidance, seed: as in `sample`.
            batch_size: pictures per network evaluation, packed across items; halved when memory does not suffice.
            threads: that read pictures.
            on_bad: told (item, reason) of an item that cannot be read or drawn, and the others go on; without it the
                first such item is an error.

        Returns:
            batches: item and sample int64 [N], ids, pictures uint8 [N,3,H,W] on the CPU; in order.

        Raises:
            ConfigError, ImageError, StorageError: at once, if the source or the settings cannot be used.
        """
        from rcdm_fast.jobs import stream
        from rcdm_fast.jobs.settings import JobConfig, RunOptions

        config = JobConfig(per, steps, solver, eta, guidance, seed)
        return stream.generate(self, source, config, RunOptions(batch_size, threads), on_bad)

    def agenerate(self, source: Given, **settings: Any) -> AsyncIterator[Generated]:
        """`generate` for asyncio (``async for batch in model.agenerate(...)``): each batch is drawn in a thread.

        Takes and raises the same. Leaving the loop early stops the reading ahead.
        """
        from rcdm_fast.jobs import stream

        return stream.agenerate(self.generate(source, **settings))

    def invert(
        self,
        pictures: Pictures,
        h: Tensor | None = None,
        *,
        label: Tensor | None = None,
        steps: int | str = 50,
        iterations: int = 1,
        clip: bool = True,
        batch_size: int | None = None,
    ) -> Tensor:
        """The x_T from which DDIM (eta 0, same steps) leads back to the pictures: DDIM inversion.

        Args:
            pictures: files, PIL pictures or float [N,3,H,W] in [-1,1]; brought to the model's size (short side,
                centre).
            h: representations [N,D]; computed by the encoder if left out.
            label: int64 [N] for a class-conditional model.
            steps: as in `sample`.
            iterations: network evaluations per step (`solvers.implicit_inversion`); more bring the round trip nearer,
                but x_T is then less like normal noise. 0: one explicit evaluation, as published; that leads back
                near the pictures only with many steps.
            clip: clip every x0 estimate to [-1,1].
            batch_size: pictures per network evaluation.

        Returns:
            float32 [N,3,H,W] on the model's device. The round trip is close, not exact.
        """
        if iterations < 0:
            raise ConfigError(f"iterations must not be negative, got {iterations}")
        if isinstance(pictures, Tensor):
            views = images.fit(images.check(pictures), self.image_size)
        else:
            views = torch.cat([images.fit(images.load(item), self.image_size) for item in _listed(pictures)])
        views = views.to(self.device, torch.float32)
        if h is None and self.config.unet.representation_dim:
            h = self.encode(pictures)
        h, label = sampling.checked_condition(self.config.unet, h, label, self.device)
        for name, value in (("h", h), ("label", label)):
            if value is not None and len(value) != len(views):
                raise ConfigError(f"{name} has {len(value)} rows for {len(views)} pictures")
        schedule = Schedule.make(self.config.schedule, steps)
        plan = conditioning.make_plan(self.unet, schedule, h, label)
        size = self._batch_size(batch_size)
        options = solvers.SolverOptions(clip=clip)
        parts = []
        for start in range(0, len(views), size):
            part = views[start : start + size]
            rows = (
                torch.arange(start, start + len(part))
                if h is not None or label is not None
                else torch.zeros(len(part), dtype=torch.int64)
            )
            with self._turn, torch.inference_mode():
                self.engine.prepare(plan.with_rows(rows), len(part))
                if iterations:
                    x_t = solvers.implicit_inversion(self.engine.predict, part, schedule, options, iterations)
                else:
                    x_t = solvers.ddim_inversion(self.engine.predict, part, schedule, options)
                parts.append(x_t.clone())
        return torch.cat(parts)

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        frames: int = 8,
        *,
        per: int = 1,
        mode: Literal["linear", "spherical"] = "linear",
        steps: int | str = 50,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Samples along the way from one representation to another; all frames of a way start from one x_T.

        Args:
            a, b: representations [D] (or [1,D]).
            frames: pictures of a way; the first has exactly a, the last exactly b.
            per: ways, each with its own x_T.
            mode: straight line, or along the sphere (lengths interpolated linearly).
            steps, seed, batch_size, progress: as in `sample`.

        Returns:
            float32 [per,frames,3,H,W] in [-1,1].
        """
        if frames < 2:
            raise ConfigError(f"an interpolation needs at least 2 frames, got {frames}")
        path = interpolation_path(a.reshape(-1), b.reshape(-1), frames, mode)
        pictures = self.sample(
            path, items=[0] * frames, per=per, steps=steps, seed=seed, batch_size=batch_size, progress=progress
        )
        return pictures.transpose(0, 1)

    def view(self, picture: str | os.PathLike[str] | Image.Image) -> Tensor:
        """What the encoder sees of a picture, before normalisation; float32 [1,3,s,s] in [-1,1]."""
        encoder = self._require_encoder()
        return encoder.view(images.load(picture).to(self.device))

    def _batch_size(self, asked: int | None) -> int:
        if asked is None:
            return 64 if self.device.type == "cuda" else 32
        if asked < 1:
            raise ConfigError(f"batch_size must be at least 1, got {asked}")
        return asked

    def _require_encoder(self) -> Encoder:
        if self.encoder is None:
            raise SamplingError("this model knows no encoder: give one to load(..., encoder=...), or pass h yourself")
        return self.encoder

    def _check_size(self, x: Tensor, name: str) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, self.image_size, self.image_size):
            raise ConfigError(f"{name} must be [N,3,{self.image_size},{self.image_size}], got {list(x.shape)}")


def _listed(pictures: Pictures) -> list[str | os.PathLike[str] | Image.Image]:
    if isinstance(pictures, str | os.PathLike | Image.Image):
        return [pictures]
    listed = list(pictures)
    if not listed:
        raise images.ImageError("no pictures given")
    return listed


def load(
    source: str | os.PathLike[str],
    flags: dict[str, Any] | str | os.PathLike[str] | None = None,
    encoder: Any = None,
    device: str | torch.device | None = None,
    engine: str = "auto",
    precision: str = "auto",
    engine_file: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a model and make it ready.

    A model file may come from anyone, and may name an encoder. What it names is built at the first `encode` without a
    question, because it is read as data: a bundled or published encoder, a network of timm, torchvision or transformers
    by its name (downloaded by those libraries, weights without pickled code), a native or ONNX file on this machine.
    What would run code that comes with a network is refused: torch.hub always (give it as ``encoder=`` with
    trust_repo=1), and transformers' custom code. With RCDM_FAST_OFFLINE=1 nothing is downloaded.

    Args:
        source: a bundled or published name (`rcdm models`), a native .safetensors file or its folder, a
            published-format .pt, or a Hugging Face hub id.
        flags: published flags (dict, or path of a JSON file) of a .pt; recognised from its shapes where possible.
        encoder: overrides the file's encoder: a specification such as "timm:resnet50", an EncoderConfig, an
            nn.Module, any callable, or an Encoder. A file's own encoder is built at the first `encode`.
        device: "cpu", "cuda", ...; default CUDA if there is one.
        engine: "auto" or one of `rcdm_fast.engines.ENGINES`.
        precision: "fp32", "bf16", "fp16" or "auto".
        engine_file: an export of this very model that a runtime's engine is to run; made and cached if left out.

    Raises:
        checkpoint.CheckpointError: unknown, truncated, foreign or mismatched weights.
        ConfigError: flags, engine or precision that make no sense here.
    """
    place = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, tensors = checkpoint.load_model(source, flags)
    network = UNet(config.unet).eval().requires_grad_(False)
    network.load_state_dict(tensors, strict=True)
    runner = engines.make(engine, network, config, place, precision, engine_file)
    if encoder is not None:
        return Model(config, network, runner, _checked_width(encoders.build(encoder, place), config), place)
    own = config.encoder if config.encoder is not None and config.encoder.source != "module" else None
    return Model(config, network, runner, own, place)


def _checked_width(encoder: Encoder, config: ModelConfig) -> Encoder:
    wanted = config.unet.representation_dim
    if encoder.dim != wanted:
        raise ConfigError(f"the encoder gives {encoder.dim} numbers, the model expects {wanted}")
    return encoder
