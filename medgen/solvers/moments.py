"""Covariance-aware posterior sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.condition import Condition, Measurement
from medgen.core.model import Denoiser
from medgen.core.operator import inner
from medgen.core.tensors import broadcast


@dataclass(frozen=True)
class MomentMatching:
    """MMPS: Rozet et al. 2024 (Learning diffusion priors from observations), section 4 and algorithm 3.

    x given x_t is taken as Gaussian with the moments that the denoiser knows: mean D and covariance V = sigma^2 / alpha dD/dx_t (Tweedie's
    second formula). Then E[x | x_t, y] = D + V A* (A V A* + s^2)^-1 (y - A D), exact for Gaussian data. V is only applied, by backward
    passes through the denoiser, and the inverse is a few steps of conjugate gradients.

    Args:
        iterations: steps of conjugate gradients, each one backward pass. Few steps also regularise what the network gets wrong.
    """

    iterations: int = 3

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return _Matched(denoiser, self.iterations)


@dataclass(frozen=True)
class _Matched:
    denoiser: Denoiser
    iterations: int

    def denoise(self, x_t: Tensor, alpha: float, sigma: float, condition: Condition) -> Tensor:
        measured = condition.measurement
        if alpha == 0:  # x_t says nothing yet, and its covariance with x neither
            return self.denoiser.denoise(x_t, alpha, sigma, condition)
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            x0 = self.denoiser.denoise(x_t, alpha, sigma, condition)

        def covariance(v: Tensor) -> Tensor:
            return torch.autograd.grad(x0, x_t, v.to(x0.dtype), retain_graph=True)[0] * (sigma**2 / alpha)

        mean = x0.detach()
        return mean + covariance(_weighted_residual(mean, covariance, measured, self.iterations)).detach()


def _weighted_residual(x0: Tensor, covariance: Callable[[Tensor], Tensor], measured: Measurement, iterations: int) -> Tensor:
    """A* (A V A* + s^2)^-1 (y - A x0)."""
    operator, state = measured.operator, measured.state
    variance = broadcast(measured.noise.square(), measured.y)

    def system(u: Tensor) -> Tensor:
        return variance * u + operator(covariance(operator.adjoint(u, state)), state)

    return operator.adjoint(conjugate_gradients(system, measured.y - operator(x0, state), iterations), state)


def conjugate_gradients(system: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """u with system(u) = target, for each sample of the batch by itself, from u = 0; `system` is linear and positive definite.

    A network's Jacobian is neither quite symmetric nor positive, and a step along a direction of almost no curvature leads far away: the
    last iterate is returned whose residual is not larger than that of u = 0.
    """
    u, residual = torch.zeros_like(target), target
    direction, energy = residual, inner(residual, residual)
    kept, start = u, energy
    for _ in range(iterations):
        image = system(direction)
        step = _ratio(energy, inner(direction, image))
        u = u + broadcast(step, direction) * direction
        residual = residual - broadcast(step, image) * image
        now = inner(residual, residual)
        direction = residual + broadcast(_ratio(now, energy), direction) * direction
        kept, energy = torch.where(broadcast(now <= start, u), u, kept), now
    return kept


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where the search has ended or the direction has no positive curvature."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0.0)
