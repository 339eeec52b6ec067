"""How good a representation is at telling classes apart: k nearest neighbors and a linear probe.

Knows nothing about images or encoders: it sees representations and labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def knn_classes(
    train: Tensor,  # [N,D]
    train_labels: Tensor,  # int64 [N]
    test: Tensor,  # [M,D]
    k: int = 200,
    temperature: float = 0.1,
) -> Tensor:
    """Classes int64 [M] by weighted k-NN on cosine similarity (Wu et al. 2018, section 3.4: k 200, temperature 0.1)."""
    bank = F.normalize(train.float(), dim=1)
    classes, found = int(train_labels.max()) + 1, []
    for part in F.normalize(test.float(), dim=1).split(1000):
        similarity, neighbors = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = (similarity / temperature).exp()
        votes = torch.zeros(len(part), classes).scatter_add_(1, train_labels[neighbors], weights)
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def knn_accuracy(
    train: Tensor,  # [N,D]
    train_labels: Tensor,  # int64 [N]
    test: Tensor,  # [M,D]
    test_labels: Tensor,  # int64 [M]
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """Accuracy of `knn_classes`, in [0,1]."""
    return int((knn_classes(train, train_labels, test, k, temperature) == test_labels).sum()) / len(test)


def linear_probe_accuracy(
    train: Tensor,  # [N,D]
    train_labels: Tensor,  # int64 [N]
    test: Tensor,  # [M,D]
    test_labels: Tensor,  # int64 [M]
    weight_decay: float = 1e-5,
    iterations: int = 100,
) -> float:
    """Accuracy in [0,1] of multinomial logistic regression on standardized features, fitted by L-BFGS."""
    probe = fit_linear_probe(train, train_labels, weight_decay, iterations)
    with torch.no_grad():
        return float((probe(test.float()).argmax(dim=1) == test_labels).float().mean())


def fit_linear_probe(
    train: Tensor,  # [N,D]
    labels: Tensor,  # int64 [N]
    weight_decay: float = 1e-5,
    iterations: int = 100,
) -> nn.Linear:
    """Multinomial logistic regression on standardized features, fitted by L-BFGS; takes features as they are.

    Returns:
        float32 [N,D] -> logits [N,C], C the largest label plus one; without gradients of its own.
    """
    mean, std = train.float().mean(dim=0), train.float().std(dim=0).clamp_min(1e-6)
    inputs = (train.float() - mean) / std
    probe = nn.Linear(inputs.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(inputs), labels) + weight_decay * probe.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with torch.no_grad():
        probe.weight.div_(std)
        probe.bias.sub_(probe.weight @ mean)
    return probe.requires_grad_(False)
