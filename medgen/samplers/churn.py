"""Second-order sampling with fresh noise at every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medgen.core.levels import Level, LevelGrid
from medgen.core.random import Rng
from medgen.samplers.heun import heun_step
from medgen.samplers.sampler import Denoise, Sampler


class Churn(Sampler):
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2): noise is added before each step of Heun's method and removed by it.

    Args:
        grid, steps: as for every sampler.
        churn: S_churn; 0 is Heun's method. A step raises sigma by at most min(churn / steps, sqrt(2) - 1) of itself.
        low, high: noise is added only where sigma / alpha lies between these (S_tmin, S_tmax).
        noise: standard deviation of the added noise (S_noise); above 1 it makes up for detail that networks remove.
    """

    def __init__(self, grid: LevelGrid, steps: int = 32, churn: float = 40.0, low: float = 0.05, high: float = 50.0, noise: float = 1.003):
        super().__init__(grid, steps)
        self.churn, self.low, self.high, self.noise = churn, low, high, noise

    def step(self, denoise: Denoise, x: Tensor, now: Level, after: Level, memory: Any, rng: Rng) -> tuple[Tensor, Any]:
        raised = self.raised(now)
        if raised.sigma > now.sigma:
            added = (raised.sigma**2 - now.sigma**2) ** 0.5
            x = x.add(rng.normal(x.shape), alpha=added * self.noise)
        return heun_step(denoise, x, raised, after), None

    def raised(self, now: Level) -> Level:
        """The level that a step starts from."""
        if not now.alpha or not self.low <= now.sigma / now.alpha <= self.high:
            return now
        return Level(now.alpha, now.sigma * (1 + min(self.churn / self.steps, 2**0.5 - 1)))
