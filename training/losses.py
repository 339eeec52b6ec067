"""The diffusion loss: L_simple, min-SNR weighting, and L_vlb for a learned variance.

L_hybrid = L_simple + w L_vlb, the mean frozen inside L_vlb (Nichol and Dhariwal 2021, section 3.1; their lambda of
0.001 on a sum over 1000 steps is w = 1 on the mean over steps used here). Min-SNR: Hang et al. 2023, section 3.4.

Knows nothing about networks: it is given their output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.checks import Checked, NotNegative, Positive
from rcdm_fast.diffusion.schedule import Schedule

Weighting = Literal["uniform", "min_snr", "clamped_snr"]


@dataclass(frozen=True)
class LossConfig(Checked):
    """How errors at different steps count.

    Attributes:
        weighting: of the error in x0, in terms of snr = alpha_bar / (1 - alpha_bar): ``min_snr`` min(snr, gamma),
            ``clamped_snr`` min(max(snr, 1), gamma), which does not forget the noisiest steps and suits a network
            that predicts x0 (Salimans and Ho 2022, section 4, with min-SNR's cap). ``uniform`` weighs the error of
            whatever the network predicts by 1.
        gamma: the cap.
        vlb_weight: matters only to a network that learns its variance.
    """

    weighting: Weighting = "uniform"
    gamma: Positive = 5.0
    vlb_weight: NotNegative = 1.0


class DiffusionLoss:
    """Tables of a schedule as float32 tensors, and the loss of a batch."""

    def __init__(self, schedule: Schedule, config: LossConfig, device: torch.device | str = "cpu") -> None:
        self.schedule = schedule
        self.config = config

        def table(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.asarray(values)).to(device, torch.float32)

        self._signal = table(np.sqrt(schedule.alpha_bar))
        self._noise = table(np.sqrt(1 - schedule.alpha_bar))
        snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
        of_error_in_x0 = np.minimum(np.maximum(snr, 1.0) if config.weighting == "clamped_snr" else snr, config.gamma)
        # The error in x0 is that in eps over snr, and that in v times 1 / (1 + snr).
        per_error = {"x0": 1.0, "eps": 1 / snr, "v": 1 / (1 + snr)}[schedule.config.prediction]
        weight = of_error_in_x0 * per_error
        self._weight = table(np.ones_like(snr) if config.weighting == "uniform" else weight)
        of_x0, of_x = schedule.posterior_mean_coefficients
        self._of_x0, self._of_x = table(of_x0), table(of_x)
        low, high = schedule.log_variance_bounds
        self._low, self._high = table(low), table(high)

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t for images [N,3,H,W], noise of that shape and steps int64 [N]."""
        return _at(self._signal, t) * x0 + _at(self._noise, t) * eps

    def __call__(
        self,
        output: Tensor,  # [N,3 or 6,H,W] raw network output
        x0: Tensor,  # [N,3,H,W]
        x_t: Tensor,  # [N,3,H,W]
        eps: Tensor,  # [N,3,H,W]
        t: Tensor,  # int64 [N]
        importance: Tensor | None = None,  # [N], weighs images; None: all alike
    ) -> dict[str, Tensor]:
        """``loss`` (scalar, to minimize), ``mse`` (scalar, unweighted), ``vlb`` (scalar, bits per dimension).

        ``each`` [N] is the loss of every image before `importance`, detached.
        """
        output = output.float()
        prediction = output[:, :3]
        if self.schedule.config.prediction == "v":
            target = _at(self._signal, t) * eps - _at(self._noise, t) * x0
        else:
            target = x0 if self.schedule.config.prediction == "x0" else eps
        mse = (prediction - target).square().flatten(1).mean(dim=1)
        each = self._weight[t] * mse
        terms = {"mse": mse.detach().mean()}
        if self.schedule.config.variance == "learned_range":
            vlb = self._vlb(prediction.detach(), output[:, 3:], x0, x_t, t)
            each = each + self.config.vlb_weight * vlb
            terms["vlb"] = vlb.detach().mean()
        loss = each.mean() if importance is None else (importance * each).mean()
        return {"loss": loss, "each": each.detach(), **terms}

    def _vlb(self, prediction: Tensor, variance: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Variational bound per image at its step, in bits per dimension; [N].

        Of the variance that sampling uses: where that is held in its bounds, nothing is gained beyond them. Otherwise a
        network that predicts x0 with errors far above the bounds of the first steps is driven to ever larger outputs
        there, and its image at t = 0 suffers.
        """
        if self.schedule.config.prediction == "x0":
            estimate = prediction
        elif self.schedule.config.prediction == "v":
            estimate = _at(self._signal, t) * x_t - _at(self._noise, t) * prediction
        else:
            estimate = (x_t - _at(self._noise, t) * prediction) / _at(self._signal, t)
        true_mean = _at(self._of_x0, t) * x0 + _at(self._of_x, t) * x_t
        mean = _at(self._of_x0, t) * estimate + _at(self._of_x, t) * x_t
        low, high = _at(self._low, t), _at(self._high, t)
        fraction = (variance + 1) / 2
        if self.schedule.config.clamp_variance:
            fraction = fraction.clamp(0, 1)
        log_variance = fraction * high + (1 - fraction) * low
        kl = 0.5 * (
            log_variance
            - low
            - 1
            + torch.exp(low - log_variance)
            + (true_mean - mean).square() * torch.exp(-log_variance)
        )
        first = -_discrete_log_likelihood(x0, mean, 0.5 * log_variance)
        chosen = torch.where((t == 0)[:, None, None, None], first, kl)
        return chosen.flatten(1).mean(dim=1) / math.log(2)


def _at(table: Tensor, t: Tensor) -> Tensor:
    return table[t][:, None, None, None]


def _discrete_log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability of 8-bit values under a Gaussian cut into 256 bins; [N,3,H,W] (Ho et al. 2020, eq. 13)."""
    inverse = torch.exp(-log_deviation)
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp_min(1e-12).log()
