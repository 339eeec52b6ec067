"""Adapt a trained RCDM to another encoder: the decoder stays frozen, only what leads into it is learned.

The decoder adds c = W h + b to its time embedding (`ssl_emb`). For representations h' of a new encoder, W' and b' are
first solved in closed form (ridge regression from h' to the c of the old encoder, `ridge`), then trained by the
diffusion loss for a few hundred steps, if asked for together with low-rank updates of the decoder's layers. All of it
folds into ordinary weights: the file is a model like any other, with `ssl_emb` replaced and every layer that has no
low-rank update as it was, bit for bit.

It cannot be guided away from no representation, which is written as zeros: a map that sends zeros where the old one did
explains far less (42 % instead of 78 % for the projector of `cifar10-simclr-wide`).

Does not know what either encoder is, and learns no non-linear map: that would not fold into the published structure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from rcdm_fast import encoders as encoder_room
from rcdm_fast import host, storage
from rcdm_fast.checks import (
    Checked,
    Count,
    CountOrNone,
    Fraction,
    FractionBelowOne,
    LearningRate,
    NotNegative,
    Positive,
    Seed,
)
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, from_dict
from rcdm_fast.data.image_set import BatchOrder, ImageSet, step_generator
from rcdm_fast.diffusion.schedule import Schedule, network_timestep
from rcdm_fast.encoders import Encoder
from rcdm_fast.encoders.base import map_shape
from rcdm_fast.errors import RunError
from rcdm_fast.exporters.graph import hash_of
from rcdm_fast.metrics.ridge import Ridge, ridge
from rcdm_fast.models import checkpoint
from rcdm_fast.models.unet import UNet
from rcdm_fast.training import representations, resume, trust
from rcdm_fast.training.batches import Standardization
from rcdm_fast.training.losses import DiffusionLoss, LossConfig
from rcdm_fast.training.pretrain import learning_rate
from rcdm_fast.training.state import RunFolder
from rcdm_fast.training.views import Views

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]

FREE = ("name", "weights", "save_every")  # what a run may be resumed with other values of
WEIGHT, BIAS = "ssl_emb.weight", "ssl_emb.bias"
DOWN, UP = ".low_rank_down", ".low_rank_up"  # the factors of a layer's update, after the name of its weight
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class AdaptConfig(Checked):
    """How a model is adapted to another encoder.

    Attributes:
        name: name of the adapted model, written into its file.
        model: name, file, folder or hub id of the model whose decoder is kept.
        encoder: the new encoder.
        old_encoder: the encoder that the model was trained with; None for the one its file names.
        loss: weighting; None for that of the model's own training, if its file tells, else `LossConfig()`.
        steps: optimizer steps after the closed form; 0 keeps the closed form.
        batch_size: images per step.
        learning_rate: peak, after a linear warm-up over `warmup` of the run; cosine decay to zero.
        ema: decay per step of the averaged weights, reached gradually ((1 + step) / (10 + step) before).
        rank: rank of the updates of the decoder's layers; 0 for a decoder that stays as it is.
        updated: layers that get such an update: ``film``, the linear layers behind the time embedding, or ``all``
            convolutions and linear layers.
        flips: mirror images at random, with the mirrored image's own representation.
        bf16: autocast; None: as the run in the folder was begun, a new one where the device has instructions for it.
        save_every: in steps.
        weights: how the finished weights are stored.
    """

    name: str
    model: str
    encoder: EncoderConfig | None = None
    old_encoder: EncoderConfig | None = None
    loss: LossConfig | None = None
    steps: CountOrNone = 300
    batch_size: Count = 32
    learning_rate: LearningRate = 1e-3
    weight_decay: NotNegative = 0.0
    warmup: Fraction = 0.03
    ema: FractionBelowOne = 0.99
    clip_norm: Positive = 1.0
    rank: CountOrNone = 0
    lora_targets: Literal["film", "all"] = "film"
    random_flip: bool = True
    bf16: bool | None = None
    seed: Seed = 0
    save_every: Count = 100
    weights: Literal["fp32", "bf16", "fp16"] = "fp32"


@host.guarded(gradients=True, random=True)
def adapt(
    config: AdaptConfig,
    data: ImageSet,
    out: str | Path,
    device: str = "cpu",
    progress: Progress | None = None,
    trusted: Collection[str] = (),
    encoder: Encoder | None = None,
    h: Tensor | None = None,
) -> Path:
    """Adapt, resume if `out` holds an unfinished run, and write `out`/NAME.safetensors (averaged weights).

    `data` has images of the model's size; `progress` is called with (steps done, steps in all, loss). `trusted` are
    sources of encoders whose code may be run (``torchhub:...``), now and when this folder's run is resumed. `encoder`
    is a new encoder that is there already, in place of one that `config` names, and `h` are representations [N,D] that
    were computed elsewhere, both as for `train`.

    Raises:
        ConfigError: no new encoder, or a model without representations, with labels, or whose encoder is unknown.
        RunError: the folder holds another run, or one that is under way; the loss is not finite, or the data has the
            wrong size.
        CheckpointError, EncoderError: a model or an encoder that cannot be loaded.
        StorageError: a file cannot be written; the last state that was stays.
    """
    if encoder is not None:
        config = dataclasses.replace(config, encoder=encoder.config)
    if h is not None:
        representations.check_given(h, data)
        if h.ndim > 2:
            raise ConfigError("a decoder of vectors cannot be adapted to maps; give their means over the positions")
        config = dataclasses.replace(config, encoder=None, random_flip=False)
    elif config.encoder is None:
        raise ConfigError("no new encoder is named; give one with --encoder, or its --representations")
    model, frozen = checkpoint.load_model(config.model)
    old_config = _old_encoder(config, model)
    config = dataclasses.replace(config, loss=config.loss or _own_loss(model))
    if data.pixels.shape[-1] != model.unet.image_size:
        raise RunError(f"images are {data.pixels.shape[-1]} px, the network makes {model.unet.image_size} px")
    folder = RunFolder(out)
    with folder.locked():
        storage.check_writable(_target(folder, config))
        return _adapt(config, data, model, frozen, old_config, folder, device, progress, trusted, encoder, h)


def _adapt(
    config: AdaptConfig,
    data: ImageSet,
    model: ModelConfig,
    frozen: dict[str, Tensor],
    old_config: EncoderConfig,
    folder: RunFolder,
    device: str,
    progress: Progress | None,
    trusted: Collection[str],
    given: Encoder | None,
    h: Tensor | None,
) -> Path:
    config = dataclasses.replace(config, bf16=resume.bf16(folder.path, config.bf16, device))
    identity = {
        "data": data.fingerprint,
        "decoder": _decoder_hash(model, frozen, resume.begun_with(folder.path, "decoder")),
    }
    sources = trust.remembered(folder.path, trusted)
    encoder = given
    if encoder is None and config.encoder is not None:
        encoder = encoder_room.build(config.encoder, device, trust_repo=config.encoder.source in sources)
    if map_shape(encoder):
        raise ConfigError(
            "the new encoder gives maps, which a decoder of vectors cannot be adapted to; choose pooling=mean"
        )
    identity |= representations.identity(encoder, data, given is not None, h)
    settings = {**dataclasses.asdict(config), **identity}
    known = resume.as_before(folder.path, settings, FREE)
    state = folder.open(known)
    if known != settings:
        resume.keep(folder.path, settings)
    bank = representations.of_run(encoder, data, folder.path, Views(config.random_flip), h=h)
    standard = Standardization(*representations.standardization(bank))
    bank = (bank - standard.mean) / standard.std
    old_encoder = encoder_room.build(old_config, device, trust_repo=old_config.source in sources)
    old = representations.cached(old_encoder, data, folder.path, Views(config.random_flip))
    if old.shape[-1] != model.unet.representation_dim:
        raise ConfigError(
            f"the old encoder gives {old.shape[-1]} dimensions, {config.model} expects {model.unet.representation_dim}"
        )
    start = ridge(bank, old, frozen[WEIGHT], frozen[BIAS])
    log.info("the closed form explains %.1f %% of the conditioning's variance", 100 * start.explained)
    run = Run(config, model, frozen, start, device)
    if state is not None:
        run.restore(state)
        log.info("resumed at step %d of %d", run.step, config.steps)
    else:
        folder.log({"step": 0, "explained": round(start.explained, 4), "penalty": start.penalty})
    _train(run, data, bank, folder, progress)
    described = None if encoder is None else dataclasses.replace(encoder.config, dim=bank.shape[-1])
    info = {
        "adapted_from": model.name or config.model,
        "explained": round(start.explained, 4),
        "images_seen": run.step * config.batch_size,
        "steps": run.step,
        "run": dataclasses.asdict(config),
        **identity,
    }
    target = _target(folder, config)
    finished = ModelConfig(run.network.config, model.schedule, described, config.name, info)
    checkpoint.save_model(target, finished, standard.fold(run.weights()), _DTYPES[config.weights])
    return target


def _target(folder: RunFolder, config: AdaptConfig) -> Path:
    return folder.path / f"{config.name}.safetensors"


def _train(run: Run, data: ImageSet, bank: Tensor, folder: RunFolder, progress: Progress | None) -> None:
    config = run.config
    order = BatchOrder(len(data), config.batch_size, config.seed) if config.steps else None
    while order is not None and run.step < config.steps:
        terms = run.advance(data, bank, order(run.step))
        if not math.isfinite(terms["loss"]):
            raise RunError(f"the loss is {terms['loss']} at step {run.step}; the last good state is in {folder.path}")
        if progress is not None:
            progress(run.step, config.steps, terms["loss"])
        if run.step % 20 == 0 or run.step == config.steps:
            folder.log({"step": run.step, **terms})
        if run.step % config.save_every == 0 or run.step == config.steps:
            folder.save(run.step, run.state())


def _old_encoder(config: AdaptConfig, model: ModelConfig) -> EncoderConfig:
    """What the model was trained with; raises `ConfigError` if it cannot be adapted."""
    if not model.unet.representation_dim:
        raise ConfigError(f"{config.model} takes no representations: there is nothing to adapt")
    if model.unet.condition_map:
        raise ConfigError(f"{config.model} is a decoder of maps, which cannot be adapted; train one with `rcdm train`")
    if model.unet.representation_hidden:
        raise ConfigError(
            f"{config.model} has hidden layers from h, which no linear map can stand for; train one instead"
        )
    if model.unet.num_classes:
        raise ConfigError(f"{config.model} takes class labels too; only models of representations alone can be adapted")
    old = config.old_encoder or model.encoder
    if old is None or old.source == "module":
        raise ConfigError(f"{config.model} does not name its encoder; give the one of its training with --old-encoder")
    return old


def _own_loss(model: ModelConfig) -> LossConfig:
    """The loss that the model was trained with, as far as its file tells."""
    run = model.info.get("run")
    stated = run.get("loss") if isinstance(run, Mapping) else None
    return from_dict(LossConfig, stated, "info.run.loss") if isinstance(stated, Mapping) else LossConfig()


def _decoder_hash(model: ModelConfig, tensors: Mapping[str, Tensor], begun: object) -> str:
    """The model's hash, or the one of before that a run was begun with, if it is this model's."""
    before = _hash_of_before(tensors)
    return before if begun == before else hash_of(model.unet, tensors, model.schedule)


def _hash_of_before(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(tensors)).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Run:
    """The moving parts: the frozen network, what is trained, its average, the optimizer and the step counter.

    Args:
        config: with `loss` filled in.
        model: the model that is adapted, and `frozen`, its tensors.
        start: the map to start from, for standardized representations [V,N,D].
        device: where to run.
    """

    def __init__(
        self, config: AdaptConfig, model: ModelConfig, frozen: Mapping[str, Tensor], start: Ridge, device: str
    ) -> None:
        assert config.loss is not None
        self.config, self.device = config, device
        self.frozen = {name: value.to(device) for name, value in frozen.items() if name not in (WEIGHT, BIAS)}
        fresh = {WEIGHT: start.weight.float(), BIAS: start.bias.float(), **_low_rank(config, self.frozen)}
        self.trained = {name: value.to(device).requires_grad_() for name, value in fresh.items()}
        self.average = {name: value.detach().clone() for name, value in self.trained.items()}
        unet = dataclasses.replace(model.unet, representation_dim=start.weight.shape[1])
        self.network = UNet(unet).to(device).eval().requires_grad_(False)
        self.network.load_state_dict({**self.frozen, WEIGHT: fresh[WEIGHT], BIAS: fresh[BIAS]}, strict=True)
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()), config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = model.schedule
        self.loss = DiffusionLoss(Schedule.make(model.schedule), config.loss, device)
        self.step = 0

    def advance(self, data: ImageSet, bank: Tensor, index: Tensor) -> dict[str, float]:
        """One optimizer step on the images at `index` (int64 [B]); returns the loss terms and the gradient's norm.

        `bank` holds standardized representations [V,N,D]. All random numbers depend on (seed, step) alone.
        """
        config, device = self.config, self.device
        generator = step_generator(config.seed, self.step)
        x0 = data.floats(index)
        view = torch.zeros(len(index), dtype=torch.int64)
        if config.random_flip:
            view = (torch.rand(len(index), generator=generator) < 0.5).long()
            x0 = torch.where(view.bool()[:, None, None, None], x0.flip(3), x0)
        h = bank[view, index].to(device)
        t = torch.randint(self.schedule.diffusion_steps, (len(index),), generator=generator).to(device)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        x0 = x0.to(device)
        x_t = self.loss.noisy(x0, eps, t).contiguous(memory_format=torch.channels_last)
        seen = t.float() * network_timestep(self.schedule, 1)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bool(config.bf16)):
            output = functional_call(self.network, self._changed(self.trained), (x_t, seen, h))
        terms = self.loss(output, x0, x_t, eps, t)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config.steps, config.warmup, config.learning_rate)
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.trained.items():
            self.average[name].lerp_(value.detach(), 1 - decay)
        means = {name: value for name, value in terms.items() if name != "each"}
        return {name: round(float(value.detach()), 6) for name, value in {**means, "gradient_norm": norm}.items()}

    def _changed(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that differ from the model's: `ssl_emb`, and layers with their low-rank update added."""
        changed = {WEIGHT: learned[WEIGHT], BIAS: learned[BIAS]}
        for name in (key.removesuffix(UP) for key in learned if key.endswith(UP)):
            update = learned[name + UP] @ learned[name + DOWN]
            changed[name] = self.frozen[name] + update.view_as(self.frozen[name])
        return changed

    def weights(self) -> dict[str, Tensor]:
        """All tensors of the adapted network, averaged, on the CPU; for standardized representations."""
        return {name: value.cpu() for name, value in {**self.frozen, **self._changed(self.average)}.items()}

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs beside the model it began with."""
        return {
            "step": self.step,
            "trained": {name: value.detach() for name, value in self.trained.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.step = int(state["step"])
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(state["trained"][name])
                self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def _low_rank(config: AdaptConfig, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors down [R,in] and up [out,R] for every layer to be updated; their product begins as zero."""
    factors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(config.seed)
    for name, value in frozen.items() if config.rank else ():
        if value.ndim < 2 or (config.lora_targets == "film" and not name.endswith("emb_layers.1.weight")):
            continue
        fan_in = value[0].numel()
        factors[name + DOWN] = torch.randn(config.rank, fan_in, generator=generator) / math.sqrt(fan_in)
        factors[name + UP] = torch.zeros(len(value), config.rank)
    return factors
