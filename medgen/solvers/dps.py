"""Diffusion posterior sampling by gradient steps on the residual."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from medgen.core.condition import Condition
from medgen.core.levels import Level
from medgen.core.model import GenerativeModel
from medgen.core.operator import inner
from medgen.core.random import Rng
from medgen.core.tensors import broadcast
from medgen.solvers.posterior import denoiser_of, standing_still


class DPS:
    """Chung et al. 2023 (Diffusion posterior sampling for general noisy inverse problems), algorithm 1.

    After each step of the sampler x_t moves against the gradient of |y - A D(x_t)|. The weight of the measurement does not follow its
    noise, so that the spread of the samples is not the posterior's: on Gaussian data `tests/test_solvers.py` measures by how much.

    Args:
        sampler: anything with `grid`, `steps` and `step`; the paper's is `Ancestral`.
        strength: zeta' of the paper, the length of the move relative to the gradient.
    """

    def __init__(self, sampler: Any, strength: float = 1.0):
        self.sampler, self.strength = sampler, strength

    def __call__(self, model: GenerativeModel, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        """Samples (B, C, *S) that fit condition.measurement."""
        denoiser = denoiser_of(model, condition)
        levels = self.sampler.grid.levels(self.sampler.steps)
        x, memory = rng.normal(shape).mul_(levels[0].sigma), None
        with standing_still(model):
            for now, after in pairwise(levels):
                x0, slope = self._residual_slope(denoiser, x, now, condition)

                def denoise(z: Tensor, level: Level, x: Tensor = x, now: Level = now, x0: Tensor = x0) -> Tensor:
                    return x0 if z is x and level == now else denoiser.denoise(z, level.alpha, level.sigma, condition)

                with torch.no_grad():
                    x, memory = self.sampler.step(denoise, x, now, after, memory, rng)
                x = x - self.strength * slope
        return x

    def _residual_slope(self, denoiser: Any, x: Tensor, now: Level, condition: Condition) -> tuple[Tensor, Tensor]:
        """D(x) and the gradient of |y - A D(x)|^2 divided by |y - A D(x)|."""
        measured = condition.measurement
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoiser.denoise(x, now.alpha, now.sigma, condition)
            residual = measured.y - measured.operator(x0, measured.state)
            square = inner(residual, residual)
            (slope,) = torch.autograd.grad(square.sum(), x)
        length = square.detach().sqrt().clamp_min(torch.finfo(x.dtype).tiny)
        return x0.detach(), slope / broadcast(length, slope)
