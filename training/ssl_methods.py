"""Methods of pre-training: what views of a batch are made and what is asked of their outputs.

One class per method, one interface (`Method`). Here are those with a single network: supervised, SimCLR, VICReg and
Barlow Twins; `ssl_momentum` has those with a slowly moving second one. Losses are lightly's, in float32 on the outputs
of the network, which itself may run in bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.encoders.small_resnet import SmallResNet
from rcdm_fast.training.augment import random_solarize, random_views
from rcdm_fast.training.pretrain_config import PretrainConfig
from rcdm_fast.training.ssl_heads import missing_lightly


class Method(nn.Module):
    """The interface of a method, and what all of them share.

    Its `state_dict` is everything beside the network that an exact resume needs (predictors, momentum networks,
    centers); its parameters that require gradients are trained along with the network's.

    Attributes:
        spread: standard deviation of the normalized outputs of the last loss, averaged over dimensions, times the root
            of their number (Chen, He 2021, section 4.1, scaled): about 1 when they fill the sphere, 0 when collapsed.
    """

    def __init__(self, config: PretrainConfig, network: SmallResNet) -> None:
        super().__init__()
        self.config = config
        self.spread = torch.tensor(torch.nan)

    def views(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Views of a batch; float [N,3,S,S] in [-1,1] -> a list of the same (or of smaller images), on the CPU."""
        return [random_views(images, self.config.augment, generator) for _ in range(2)]

    def loss(self, network: nn.Module, views: list[Tensor], labels: Tensor | None, step: int) -> Tensor:
        """The loss of one step; a scalar.

        Args:
            network: the network in training, perhaps compiled.
            views: what `views` made, on the device of the network.
            labels: int64 [N], where the data has them; only the supervised method looks at them.
            step: 0-based.
        """
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self, network: SmallResNet, step: int) -> None:
        """Called after the optimizer's step."""

    def result(self, network: SmallResNet) -> SmallResNet:
        """The network to measure and keep when the run is over."""
        return network

    def outputs(self, module: nn.Module, images: Tensor) -> Tensor:
        """`module` on `images`, in bf16 where the run says so; float32."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bool(self.config.bf16)):
            out: Tensor = module(images).float()
        return out

    def watch(self, outputs: Tensor) -> None:
        """Note the spread of outputs [N,P]; see the class."""
        with torch.no_grad():
            self.spread = F.normalize(outputs.detach(), dim=1).std(dim=0).mean() * outputs.shape[1] ** 0.5

    def solarized(self, images: Tensor, generator: torch.Generator, probability: float) -> Tensor:
        """One random view, solarized with some probability; [N,3,S,S] in [-1,1] -> the same."""
        view = random_views(images, self.config.augment, generator)
        return random_solarize(view, probability, generator)


class Supervised(Method):
    """Cross-entropy of the projector's outputs, one view."""

    def views(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """See `Method`."""
        return [random_views(images, self.config.augment, generator)]

    def loss(self, network: nn.Module, views: list[Tensor], labels: Tensor | None, step: int) -> Tensor:
        """See `Method`."""
        assert labels is not None  # checked before the run begins
        logits = self.outputs(network, views[0])
        self.watch(logits)
        return F.cross_entropy(logits, labels)


class SimCLR(Method):
    """NT-Xent between two views (Chen et al. 2020, section 2.1); both views share batch statistics."""

    def __init__(self, config: PretrainConfig, network: SmallResNet) -> None:
        super().__init__(config, network)
        try:
            from lightly.loss import NTXentLoss
        except ImportError as error:
            raise missing_lightly(error) from error
        self.criterion = NTXentLoss(temperature=config.temperature)

    def loss(self, network: nn.Module, views: list[Tensor], labels: Tensor | None, step: int) -> Tensor:
        """See `Method`."""
        outputs = self.outputs(network, torch.cat(views))
        self.watch(outputs)
        loss: Tensor = self.criterion(*outputs.chunk(2))
        return loss


class _Paired(Method):
    """Two views, each with batch statistics of its own, and a criterion of their outputs."""

    criterion: nn.Module

    def loss(self, network: nn.Module, views: list[Tensor], labels: Tensor | None, step: int) -> Tensor:
        """See `Method`; each view has batch statistics of its own."""
        first, second = (self.outputs(network, view) for view in views)
        self.watch(first)
        loss: Tensor = self.criterion(first, second)
        return loss


class VICReg(_Paired):
    """Variance, invariance and covariance of two views' embeddings (Bardes et al. 2022, section 4.1)."""

    def __init__(self, config: PretrainConfig, network: SmallResNet) -> None:
        super().__init__(config, network)
        assert config.vicreg is not None
        self.options = config.vicreg
        try:
            from lightly.loss import VICRegLoss
        except ImportError as error:
            raise missing_lightly(error) from error
        self.criterion = VICRegLoss(self.options.invariance, self.options.variance, self.options.covariance)

    def views(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """See `Method`; both may be solarized."""
        return [self.solarized(images, generator, self.options.solarize) for _ in range(2)]


class BarlowTwins(_Paired):
    """Cross-correlation of two views' embeddings, pulled to the identity (Zbontar et al. 2021, section 2.1)."""

    def __init__(self, config: PretrainConfig, network: SmallResNet) -> None:
        super().__init__(config, network)
        assert config.barlow is not None
        self.options = config.barlow
        try:
            from lightly.loss import BarlowTwinsLoss
        except ImportError as error:
            raise missing_lightly(error) from error
        self.criterion = BarlowTwinsLoss(self.options.redundancy)

    def views(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """See `Method`; the second may be solarized."""
        return [self.solarized(images, generator, chance) for chance in (0.0, self.options.solarize)]
