"""Methods with a second network that follows the first as a moving average: BYOL and DINO.

The second network, its head and DINO's center are part of the method's `state_dict`, so a resumed run goes on exactly.
Its batch norms use the statistics of the batch and keep running ones of their own. All schedules count steps.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.data.image_set import step_generator
from rcdm_fast.encoders.small_resnet import SmallResNet
from rcdm_fast.training.augment import random_color, random_crop_flip
from rcdm_fast.training.pretrain_config import PretrainConfig
from rcdm_fast.training.ssl_heads import dino_head, missing_lightly
from rcdm_fast.training.ssl_methods import Method


def follower(network: SmallResNet) -> SmallResNet:
    """A copy of a network that takes no gradients."""
    return copy.deepcopy(network).requires_grad_(False)


def follow(pairs: list[tuple[nn.Module, nn.Module]], step: int, steps: int, momentum: float) -> None:
    """Move each second module's parameters towards the first's: p2 <- m p2 + (1 - m) p1.

    m rises from `momentum` to 1 by a cosine over the run (Grill et al. 2020, section 3.2).
    """
    from lightly.models.utils import update_momentum
    from lightly.utils.scheduler import cosine_schedule

    fraction = cosine_schedule(step, steps, momentum, 1.0)
    for leader, second in pairs:
        update_momentum(leader, second, m=fraction)


def seeded(config: PretrainConfig) -> int:
    """Seed for the weights of a method's own layers, apart from the network's."""
    return step_generator(config.seed, 0, stream=2).initial_seed()


class BYOL(Method):
    """Predict the target network's projection of the other view (Grill et al. 2020, equations 1 and 2).

    The loss is 2 - 2 cos, summed over both directions: in [0, 8].
    """

    def __init__(self, config: PretrainConfig, network: SmallResNet) -> None:
        super().__init__(config, network)
        assert config.byol is not None
        self.options = config.byol
        try:
            from lightly.loss import NegativeCosineSimilarity
            from lightly.models.modules.heads import BYOLPredictionHead
        except ImportError as error:
            raise missing_lightly(error) from error
        width = config.projector[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config))
            self.predictor = BYOLPredictionHead(width, self.options.predictor, width)
        self.target = follower(network)
        self.criterion = NegativeCosineSimilarity()

    def views(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """See `Method`; the second may be solarized."""
        return [self.solarized(images, generator, chance) for chance in (0.0, self.options.solarize)]

    def loss(self, network: nn.Module, views: list[Tensor], labels: Tensor | None, step: int) -> Tensor:
        """See `Method`; each view has batch statistics of its own."""
        with torch.no_grad():
            targets = [self.outputs(self.target, view) for view in views]
        projections = [self.outputs(network, view) for view in views]
        self.watch(projections[0])
        first, second = (self.predictor(projection) for projection in projections)
        loss: Tensor = 4 + 2 * (self.criterion(first, targets[1]) + self.criterion(second, targets[0]))
        return loss

    def after_step(self, network: SmallResNet, step: int) -> None:
        """Move the target."""
        follow([(network, self.target)], step, self.config.steps, self.options.momentum)


class Prototypes(nn.Module):
    """The end of DINO's head: L2 normalization and lightly's weight-normalized layer; [N,P] -> [N,K]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.last_layer = dino_head(1, 1, width, outputs).get_submodule("last_layer")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.last_layer(F.normalize(x, dim=-1))
        return out


class DINO(Method):
    """Match the teacher's distribution over K outputs on global crops, from every other crop (Caron et al. 2021).

    Two global crops go through both networks and `local_crops` small ones through the student alone; crops of one size
    share a forward pass and batch statistics (section 3.1). The teacher is the network that is kept: the paper finds
    it the better one (section 5.2). Without the gradient clipping that the paper uses for its transformers.
    """

    def __init__(self, config: PretrainConfig, network: SmallResNet) -> None:
        super().__init__(config, network)
        assert config.dino is not None
        self.options = options = config.dino
        try:
            from lightly.loss import DINOLoss
        except ImportError as error:
            raise missing_lightly(error) from error
        width = config.projector[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config))
            self.prototypes = Prototypes(width, options.outputs)
            self.teacher_prototypes = Prototypes(width, options.outputs).requires_grad_(False)
        self.teacher_prototypes.load_state_dict(self.prototypes.state_dict())
        self.teacher = follower(network)
        self.criterion = DINOLoss(
            options.outputs,
            options.teacher_temperature_start,
            options.teacher_temperature,
            int(options.temperature_warmup * config.steps),
            options.student_temperature,
            options.center_momentum,
        )

    def views(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Two global crops [N,3,S,S], then the local ones [N,3,s,s]."""
        options, augment = self.options, self.config.augment
        crops = [self.solarized(images, generator, chance) for chance in (0.0, options.solarize)]
        for _ in range(options.local_crops):
            crop = random_crop_flip(
                images, options.local_min_scale, generator, options.local_max_scale, options.local_size
            )
            crops.append(random_color(crop, augment, generator))
        return crops

    def loss(self, network: nn.Module, views: list[Tensor], labels: Tensor | None, step: int) -> Tensor:
        """See `Method`; the center moves too."""
        shared = torch.cat(views[:2])
        with torch.no_grad():
            targets = self.teacher_prototypes(self.outputs(self.teacher, shared)).chunk(2)
        projections = self.outputs(network, shared)
        self.watch(projections)
        guesses = list(self.prototypes(projections).chunk(2))
        if len(views) > 2:
            guesses += self.prototypes(self.outputs(network, torch.cat(views[2:]))).chunk(len(views) - 2)
        loss: Tensor = self.criterion(list(targets), guesses, epoch=step)
        return loss

    def before_step(self, step: int) -> None:
        """Hold the last layer still at first (appendix D)."""
        if step < self.options.freeze * self.config.steps:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    def after_step(self, network: SmallResNet, step: int) -> None:
        """Move the teacher and its last layer."""
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (network, self.teacher),
            (self.prototypes, self.teacher_prototypes),
        ]
        follow(pairs, step, self.config.steps, self.options.momentum)

    def result(self, network: SmallResNet) -> SmallResNet:
        """The teacher."""
        return self.teacher
