"""First-order deterministic sampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medgen.core.levels import Level
from medgen.core.random import Rng
from medgen.samplers.sampler import Denoise, Sampler, towards


class Euler(Sampler):
    """Euler steps of the probability-flow ODE dx = x0 d alpha + n d sigma (Song et al. 2021; Karras et al. 2022, equation 4).

    In these coordinates it is DDIM with eta = 0, exact whenever x0 does not change along the step.
    """

    def step(self, denoise: Denoise, x: Tensor, now: Level, after: Level, memory: Any, rng: Rng) -> tuple[Tensor, Any]:
        return towards(x, denoise(x, now), now, after), None
