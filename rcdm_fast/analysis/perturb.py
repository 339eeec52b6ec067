"""Attacks: images changed by at most epsilon so that a probe on a frozen encoder is wrong.

FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018) in the maximum norm. The libraries that have them pin versions
that nothing else here can be installed with, and each is a few lines; tests hold them to the closed form of a linear
model.

Knows nothing about what is measured afterwards (`attack.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.encoders import ImageEncoder

Gradient = Callable[[Tensor], Tensor]
LEVEL = 2 / 255  # one 8-bit level in [-1,1]


def fgsm(images: Tensor, gradient: Gradient, epsilon: float) -> Tensor:
    """One step along the sign of the loss's gradient; [N,3,H,W] in [-1,1], epsilon in 8-bit levels."""
    return (images + epsilon * LEVEL * gradient(images).sign()).clamp(-1, 1)


def pgd(
    images: Tensor, gradient: Gradient, epsilon: float, steps: int, generator: torch.Generator | None = None
) -> Tensor:
    """Steps along the sign of the gradient, each brought back to within epsilon; from a random start if `generator`."""
    size, step = epsilon * LEVEL, 2.5 * epsilon * LEVEL / steps
    found = images
    if generator is not None:
        start = torch.rand(images.shape, generator=generator).mul(2).sub(1).to(images.device)
        found = (images + size * start).clamp(-1, 1)
    for _ in range(steps):
        found = found + step * gradient(found).sign()
        found = torch.minimum(torch.maximum(found, images - size), images + size).clamp(-1, 1)
    return found


def against_probe(
    views: Tensor,
    labels: Tensor,
    encoder: ImageEncoder,
    probe: nn.Module,
    epsilon: float,
    steps: int = 0,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Images attacked with the gradient of the probe's cross-entropy, through the encoder.

    Args:
        views: float [N,3,s,s] in [-1,1], of the encoder's size.
        labels: true classes, int64 [N].
        encoder, probe: representations, and logits of them.
        epsilon: largest change of a pixel, in 8-bit levels; with 0 the views themselves are returned.
        steps: of PGD, from a random start; 0 means FGSM.
        seed: of the start.
        batch_size: images at once.

    Returns:
        float [N,3,s,s] in [-1,1], where `views` are.
    """
    if epsilon == 0:
        return views
    parts = []
    generator = torch.Generator().manual_seed(seed)
    for part, target in zip(views.split(batch_size), labels.split(batch_size), strict=True):
        part, target = part.to(encoder.device), target.to(encoder.device)

        def gradient(images: Tensor, target: Tensor = target) -> Tensor:
            images = images.detach().requires_grad_()
            loss = F.cross_entropy(probe(encoder.represent(images)), target, reduction="sum")
            (found,) = torch.autograd.grad(loss, images)
            return found

        if steps:
            parts.append(pgd(part, gradient, epsilon, steps, generator))
        else:
            parts.append(fgsm(part, gradient, epsilon))
    return torch.cat(parts).detach().to(views.device)
