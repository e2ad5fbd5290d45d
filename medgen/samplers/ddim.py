"""DDIM, from deterministic to ancestral."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medgen.core.levels import Level, LevelGrid
from medgen.core.random import Rng
from medgen.samplers.sampler import Denoise, Sampler


class DDIM(Sampler):
    """Song et al. 2021 (DDIM), equations 12 and 16, for any (alpha, sigma).

    Args:
        grid, steps: as for every sampler.
        eta: 0 deterministic (equals Euler), 1 the posterior variance of DDPM.
    """

    def __init__(self, grid: LevelGrid, steps: int = 50, eta: float = 0.0):
        super().__init__(grid, steps)
        self.eta = eta

    def step(self, denoise: Denoise, x: Tensor, now: Level, after: Level, memory: Any, rng: Rng) -> tuple[Tensor, Any]:
        return ddim_step(denoise, x, now, after, self.eta, rng), None


def ddim_step(denoise: Denoise, x: Tensor, now: Level, after: Level, eta: float, rng: Rng) -> Tensor:
    """x at `after`: the share eta of the posterior's spread is drawn anew, the rest keeps its direction."""
    fresh = eta * posterior_std(now, after)
    kept = max(after.sigma**2 - fresh**2, 0.0) ** 0.5 / now.sigma
    x0 = denoise(x, now)
    x = (x * kept).add_(x0, alpha=after.alpha - now.alpha * kept)
    return x.add_(rng.normal(x.shape), alpha=fresh) if fresh else x


def posterior_std(now: Level, after: Level) -> float:
    """Standard deviation of x at `after` given x at `now` and the clean x: DDPM's beta tilde, for any (alpha, sigma)."""
    shrink = (after.sigma * now.alpha / (after.alpha * now.sigma)) ** 2
    return after.sigma * max(1.0 - shrink, 0.0) ** 0.5
