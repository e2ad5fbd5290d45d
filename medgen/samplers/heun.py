"""Second-order deterministic sampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medgen.core.levels import Level
from medgen.core.random import Rng
from medgen.samplers.sampler import Denoise, Sampler, towards


class Heun(Sampler):
    """Heun's method for dx = x0 d alpha + n d sigma: Karras et al. 2022, algorithm 1, for any (alpha, sigma). The last step is Euler's.

    Costs 2 `steps` - 1 network evaluations.
    """

    def step(self, denoise: Denoise, x: Tensor, now: Level, after: Level, memory: Any, rng: Rng) -> tuple[Tensor, Any]:
        return heun_step(denoise, x, now, after), None


def heun_step(denoise: Denoise, x: Tensor, now: Level, after: Level) -> Tensor:
    """x at `after`, from the mean of the slopes at both ends."""
    x0 = denoise(x, now)
    guess = towards(x, x0, now, after)
    if after.sigma == 0:
        return guess
    d_alpha, d_sigma = (after.alpha - now.alpha) / 2, (after.sigma - now.sigma) / 2
    slope, slope_after = d_sigma / now.sigma, d_sigma / after.sigma
    x = (x * (1 + slope)).add_(x0, alpha=d_alpha - now.alpha * slope)
    x.add_(guess, alpha=slope_after)
    return x.add_(denoise(guess, after), alpha=d_alpha - after.alpha * slope_after)
