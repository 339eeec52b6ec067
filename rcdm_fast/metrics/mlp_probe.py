"""How much a small network reads off representations: a readout that is not linear, judged on rows it has not seen.

Knows nothing about what the representations are of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 128
STEPS, CHECKED = 500, 20  # full passes at most; after how many the held-back rows are asked
PATIENCE = 5  # checks without gain, after which learning ends


def read(known: Tensor, targets: Tensor, asked: Tensor, seed: int = 0) -> Tensor:
    """What a network with one hidden layer, fitted on `known` -> `targets`, says of `asked`.

    Inputs and targets are standardized by `known`. A tenth of `known` is held back and says when to stop; the weights
    that were best for it are used.

    Args:
        known: float [N,D], at least 20 rows.
        targets: float [N,T].
        asked: float [M,D].
        seed: of the first weights, and of which rows are held back.

    Returns:
        float64 [M,T]; the mean of the targets where the inputs are all the same.
    """
    mean, std = known.double().mean(dim=0), known.double().std(dim=0)
    moving = std > 1e-6 * std.max()
    if not bool((std > 0).any()):
        return targets.double().mean(dim=0).expand(len(asked), -1)
    inputs, new = (((each.double() - mean) / std)[:, moving].float() for each in (known, asked))
    middle, width = targets.double().mean(dim=0), targets.double().std(dim=0).clamp_min(1e-12)
    wanted = ((targets.double() - middle) / width).float()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    held, used = order[: len(order) // 10], order[len(order) // 10 :]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, wanted.shape[1]),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
        least, best, since = float("inf"), network.state_dict(), 0
        for step in range(STEPS):
            if step % CHECKED == 0:
                with torch.no_grad():
                    error = float(F.mse_loss(network(inputs[held]), wanted[held]))
                since += 1
                if error < least:
                    least, since = error, 0
                    best = {name: value.clone() for name, value in network.state_dict().items()}
                if since >= PATIENCE:
                    break
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(network(inputs[used]), wanted[used]).backward()
            optimizer.step()
    network.load_state_dict(best)
    with torch.no_grad():
        said: Tensor = network(new).double() * width + middle
    return said
