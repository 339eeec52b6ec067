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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from rcdm_fast import encoders as encoder_room
from rcdm_fast import host
from rcdm_fast.checks import CountOrNone, NotNegative
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
from rcdm_fast.training import loop, representations, resume, trust
from rcdm_fast.training.batches import Standardization
from rcdm_fast.training.config import DTYPES
from rcdm_fast.training.losses import DiffusionLoss, LossConfig
from rcdm_fast.training.state import RunFolder
from rcdm_fast.training.tuning import FREE, TuneConfig, Tuned
from rcdm_fast.training.views import Views

log = logging.getLogger(__name__)

WEIGHT, BIAS = "ssl_emb.weight", "ssl_emb.bias"
DOWN, UP = ".low_rank_down", ".low_rank_up"  # the factors of a layer's update, after the name of its weight


@dataclass(frozen=True)
class AdaptConfig(TuneConfig):
    """How a model is adapted to another encoder, `encoder`, with its decoder kept; see also `TuneConfig`.

    Attributes:
        old_encoder: the encoder that the model was trained with; None for the one its file names.
        loss: weighting; None for that of the model's own training, if its file tells, else `LossConfig()`.
        steps: optimizer steps after the closed form; 0 keeps the closed form.
        rank: rank of the updates of the decoder's layers; 0 for a decoder that stays as it is.
        lora_targets: layers that get such an update: ``film``, the linear layers behind the time embedding, or ``all``
            convolutions and linear layers.
        bf16: autocast; None: as the run in the folder was begun, a new one where the device has instructions for it.
    """

    old_encoder: EncoderConfig | None = None
    loss: LossConfig | None = None
    steps: CountOrNone = 300
    weight_decay: NotNegative = 0.0
    rank: CountOrNone = 0
    lora_targets: Literal["film", "all"] = "film"
    bf16: bool | None = None


@host.guarded(gradients=True, random=True)
def adapt(
    config: AdaptConfig,
    data: ImageSet,
    out: str | Path,
    device: str = "cpu",
    progress: loop.Progress | None = None,
    trusted: Collection[str] = (),
    encoder: Encoder | None = None,
    h: Tensor | None = None,
    minutes: float | None = None,
) -> Path:
    """Adapt, resume if `out` holds an unfinished run, and write `out`/NAME.safetensors (averaged weights).

    `data` has images of the model's size; `progress` is called with (steps done, steps in all, loss). `trusted` are
    sources of encoders whose code may be run (``torchhub:...``), now and when this folder's run is resumed. `encoder`
    is a new encoder that is there already, in place of one that `config` names, and `h` are representations [N,D] that
    were computed elsewhere, both as for `train`, and so are `minutes`.

    Raises:
        Paused: `minutes` ended before the run.
        ConfigError: no new encoder, or a model without representations, with labels, or whose encoder is unknown; or a
            student.
        RunError: the folder holds another run, or one that is under way; the loss is not finite, or the data has the
            wrong size.
        CheckpointError, EncoderError: a model or an encoder that cannot be loaded.
        StorageError: a file cannot be written; the last state that was stays.
    """
    deadline = loop.Deadline(minutes)
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
        target = config.target(folder)
        config = dataclasses.replace(config, bf16=resume.bf16(folder.path, config.bf16, device))
        sources = trust.remembered(folder.path, trusted)
        given = encoder is not None
        if encoder is None and config.encoder is not None:
            encoder = encoder_room.build(config.encoder, device, trust_repo=config.encoder.source in sources)
        if map_shape(encoder):
            raise ConfigError(
                "the new encoder gives maps, which a decoder of vectors cannot be adapted to; choose pooling=mean"
            )
        identity = {
            "data": data.fingerprint,
            "decoder": _decoder_hash(model, frozen, resume.begun_with(folder.path, "decoder")),
            **representations.identity(encoder, data, given, h, folder.path),
        }
        state = loop.begin(folder, {**dataclasses.asdict(config), **identity}, FREE)
        bank = representations.of_run(encoder, data, folder.path, Views(config.random_flip), h=h)
        standard = Standardization(*representations.standardization(bank))
        bank = standard(bank)
        old_encoder = encoder_room.build(old_config, device, trust_repo=old_config.source in sources)
        old = representations.cached(old_encoder, data, folder.path, Views(config.random_flip))
        representations.check_width(old, model.unet, "the old encoder", config.model)
        start = ridge(bank, old, frozen[WEIGHT], frozen[BIAS])
        log.info("the closed form explains %.1f %% of the conditioning's variance", 100 * start.explained)
        run = Run(config, model, frozen, start, data, bank, device)
        if not loop.restored(run, state, config):
            folder.log({"step": 0, "explained": round(start.explained, 4), "penalty": start.penalty})
        loop.walk(run, folder, config, progress, logged=20, deadline=deadline)
        described = None if encoder is None else dataclasses.replace(encoder.config, dim=bank.shape[-1])
        info = {
            "adapted_from": model.name or config.model,
            "explained": round(start.explained, 4),
            "images_seen": run.step * config.batch_size,
            "steps": run.step,
            "run": dataclasses.asdict(config),
            **identity,
        }
        finished = ModelConfig(run.network.config, model.schedule, described, config.name, info)
        return checkpoint.save_model(target, finished, standard.fold(run.weights()), DTYPES[config.weights])


def check_adaptable(model: ModelConfig, name: object) -> None:
    """Raise `ConfigError`, which names the model, unless one linear map leads from representations into it.

    A student is refused, too: between its own timesteps it is no decoder.
    """
    unet = model.unet
    if model.student_steps:
        raise ConfigError(f"{name} is a student; adapt the model that it learned from, and distill that one")
    if not unet.representation_dim:
        raise ConfigError(f"{name} takes no representations: there is nothing to adapt")
    if unet.condition_map:
        raise ConfigError(f"{name} is a decoder of maps, which cannot be adapted; train one with `rcdm train`")
    if unet.representation_hidden:
        raise ConfigError(f"{name} has hidden layers from h, which no linear map can stand for; train one instead")
    if unet.num_classes:
        raise ConfigError(f"{name} takes class labels too; only models of representations alone can be adapted")


def _old_encoder(config: AdaptConfig, model: ModelConfig) -> EncoderConfig:
    """What the model was trained with; raises `ConfigError` if it cannot be adapted."""
    check_adaptable(model, config.model)
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


class Run(Tuned):
    """The moving parts: the frozen network, and the maps and updates that are learned.

    Args:
        config: with `loss` filled in.
        model: the model that is adapted, and `frozen`, its tensors.
        start: the map to start from, for standardized representations.
        data: images, and `bank`, their standardized representations [V,N,D].
        device: where to run.
    """

    def __init__(
        self,
        config: AdaptConfig,
        model: ModelConfig,
        frozen: Mapping[str, Tensor],
        start: Ridge,
        data: ImageSet,
        bank: Tensor,
        device: str,
    ) -> None:
        assert config.loss is not None
        self.config, self.data, self.bank, self.device = config, data, bank, device
        self.frozen = {name: value.to(device) for name, value in frozen.items() if name not in (WEIGHT, BIAS)}
        fresh = {WEIGHT: start.weight.float(), BIAS: start.bias.float(), **_low_rank(config, self.frozen)}
        super().__init__(
            config,
            config.steps,
            {name: value.to(device).requires_grad_() for name, value in fresh.items()},
            lambda trained: torch.optim.AdamW(trained, config.learning_rate, weight_decay=config.weight_decay),
        )
        unet = dataclasses.replace(model.unet, representation_dim=start.weight.shape[1])
        self.network = UNet(unet).to(device).eval().requires_grad_(False)
        self.network.load_state_dict({**self.frozen, WEIGHT: fresh[WEIGHT], BIAS: fresh[BIAS]}, strict=True)
        self.network.to(memory_format=torch.channels_last)
        self.schedule = model.schedule
        self.loss = DiffusionLoss(Schedule.make(model.schedule), config.loss, device)
        self.views = Views(config.random_flip)
        self.order = BatchOrder(len(data), config.batch_size, config.seed) if config.steps else None

    def advance(self) -> dict[str, float]:
        """One optimizer step; the loss terms and the gradient's norm."""
        assert self.order is not None
        config, device, index = self.config, self.device, self.order(self.step)
        generator = step_generator(config.seed, self.step)
        view = self.views.draw(len(index), generator)
        x0, _ = self.views.see(self.data.floats(index), view, index)
        h = self.bank[view, index].to(device)
        t = torch.randint(self.schedule.diffusion_steps, (len(index),), generator=generator).to(device)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        x0 = x0.to(device)
        x_t = self.loss.noisy(x0, eps, t).contiguous(memory_format=torch.channels_last)
        seen = t.float() * network_timestep(self.schedule, 1)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bool(config.bf16)):
            output = functional_call(self.network, self._changed(self.trained), (x_t, seen, h))
        terms = self.loss(output, x0, x_t, eps, t)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = self.learn()
        means = {name: float(value.detach()) for name, value in terms.items() if name != "each"}
        return {name: round(value, 6) for name, value in {**means, "gradient_norm": norm}.items()}

    def _changed(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that differ from the model's: `ssl_emb`, and layers with their low-rank update added."""
        changed = {WEIGHT: learned[WEIGHT], BIAS: learned[BIAS]}
        for name in (key.removesuffix(UP) for key in learned if key.endswith(UP)):
            update = learned[name + UP] @ learned[name + DOWN]
            changed[name] = self.frozen[name] + update.view_as(self.frozen[name])
        return changed

    def weights(self) -> dict[str, Tensor]:
        """All tensors of the adapted network, averaged, on the CPU; for standardized representations."""
        return {name: value.cpu() for name, value in {**self.frozen, **self._changed(self.average.tensors)}.items()}


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
