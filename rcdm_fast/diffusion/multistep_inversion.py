"""From an image towards noise along the flow that all solvers without noise follow, in second order."""

from __future__ import annotations

import math

from torch import Tensor

from rcdm_fast.diffusion.multistep import _log_snr, _moments, _through
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import Predict, SolverOptions, eps_factors, step_and_x0
from rcdm_fast.diffusion.unipc import _sum


def inversion(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions) -> Tensor:
    """The x_T that an image comes from, one evaluation a step: DDIM predicts, a line through two x0 corrects.

    A step goes where the last x0 estimate leads, asks the network there, and is taken again with x0 a line in
    log(alpha / sigma) through both estimates (the corrector of UniPC, Zhao et al. 2023, towards noise). The first two
    steps are those of `solvers.implicit_inversion`: near the image eps is steepest, and what the network says of the
    image itself is no estimate to go on from. Few steps want to lie close there, as "quadratic" has them: a long one
    multiplies the estimates' errors by the ratio of its sigmas.

    Args:
        predict, schedule, options: as of a solver; `observer` sees every x.
        x: images, float [N,3,H,W].
    """
    last: Tensor | None = None  # estimate of the step before
    for k in range(len(schedule)):
        signal = float(schedule.alpha_bar[k])
        alpha, sigma = math.sqrt(signal), math.sqrt(1 - signal)
        if k == 0:
            _, estimate = step_and_x0(x, predict(x, k), schedule, k, options, (1.0, 0.0), (), ())
            of_x, of_x0 = eps_factors(schedule, k)
            x = _sum(alpha + sigma * of_x, x, [sigma * of_x0], [estimate])
        else:
            before = float(schedule.alpha_bar[k - 1])
            h, scale = _log_snr(signal) - _log_snr(before), sigma / math.sqrt(1 - before)
            gain = -alpha * math.expm1(-h)
            begun = x
            if last is not None:
                x = _sum(scale, begun, [gain], [last])
            _, estimate = step_and_x0(x, predict(x, k), schedule, k, options, (1.0, 0.0), (), ())
            if last is None:
                x = _sum(scale, begun, [gain], [estimate])
            else:  # the value where the step begins, and the one at h: as if a step of -h lay before
                x = _sum(scale, begun, [alpha * weight for weight in _through([-h], _moments(h, 2))], [last, estimate])
            last = estimate
        if options.observer is not None:
            options.observer(k, x)
    return x
