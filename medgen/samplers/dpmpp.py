"""DPM-Solver++ of second order, with one network evaluation a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from medgen.core.levels import Level
from medgen.core.random import Rng
from medgen.samplers.sampler import Denoise, Sampler, towards


@dataclass
class _Last:
    """The denoised image of the step before and that step's change of log-SNR."""

    x0: Tensor
    width: float


class DPMpp(Sampler):
    """DPM-Solver++(2M): Lu et al. 2022 (DPM-Solver++), algorithm 2, for any (alpha, sigma).

    The exact solution of the probability-flow ODE in lambda = ln(alpha / sigma) with x0 extrapolated linearly from two steps. The first
    step, one that starts without signal (alpha = 0) and the last one, which ends without noise, are of first order.
    """

    def step(self, denoise: Denoise, x: Tensor, now: Level, after: Level, memory: _Last | None, rng: Rng) -> tuple[Tensor, _Last]:
        x0 = denoise(x, now)
        width = log_ratio(after) - log_ratio(now)
        ahead = x0
        if memory is not None and math.isfinite(width) and math.isfinite(memory.width):
            ahead = x0.lerp(memory.x0, -width / (2 * memory.width))
        return towards(x, ahead, now, after), _Last(x0, width)


def log_ratio(level: Level) -> float:
    """lambda = ln(alpha / sigma): half the log-SNR; infinite at both ends."""
    if level.alpha == 0:
        return -math.inf
    return math.inf if level.sigma == 0 else math.log(level.alpha / level.sigma)
