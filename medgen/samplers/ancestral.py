"""Ancestral sampling: every step forgets part of the noise and draws it anew."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medgen.core.levels import Level
from medgen.core.random import Rng
from medgen.samplers.ddim import ddim_step
from medgen.samplers.sampler import Denoise, Sampler


class Ancestral(Sampler):
    """Draws from the Gaussian posterior of the forward process: DDPM's sampler with the small variance (Ho et al. 2020, equation 7) for any
    grid, which is DDIM with eta = 1 and, for alpha = 1, the Euler ancestral sampler of k-diffusion.
    """

    def step(self, denoise: Denoise, x: Tensor, now: Level, after: Level, memory: Any, rng: Rng) -> tuple[Tensor, Any]:
        return ddim_step(denoise, x, now, after, 1.0, rng), None
