"""Denoising diffusion: a network learns E[x | alpha x + sigma n, condition]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.levels import Level, LevelDistribution
from medgen.core.model import Denoiser, Example, GenerativeModel, Loss, Phase
from medgen.core.random import Rng
from medgen.core.tensors import broadcast, flatten_mean
from medgen.models.preconditioning import Preconditioning


@dataclass
class Draws:
    """The random part of one training step."""

    alpha: Tensor
    sigma: Tensor
    noise: Tensor
    kept: Tensor


class Diffusion(GenerativeModel):
    """Denoising score matching with exchangeable network, preconditioning, level distribution and sampler.

    Args:
        network: (x, t, condition) -> y.
        preconditioning: what the network predicts (EDM, Epsilon, X0, V).
        levels: the distribution of noise levels in training.
        sampler: walks from noise to a sample; a call `sampler(denoise, shape, rng)`.
        guidance: wraps the denoiser at sampling time, such as `medgen.samplers.guidance.ClassifierFree`; or None.
        drop: probability of training a sample without its condition, which classifier-free guidance needs (Ho and Salimans 2022).
    """

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        levels: LevelDistribution,
        sampler: Callable[..., Tensor],
        guidance: Callable[[Denoiser], Any] | None = None,
        drop: float = 0.0,
    ):
        super().__init__()
        self.network, self.preconditioning, self.levels = network, preconditioning, levels
        self.sampler, self.guidance, self.drop = sampler, guidance, drop

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("diffusion", self.network, self.loss),)

    def begin(self, example: Example, rng: Rng) -> Draws:
        batch = len(example.x)
        alpha, sigma = self.levels.at(rng.uniform((batch,)))
        kept = rng.uniform((batch,)) >= self.drop
        return Draws(alpha, sigma, rng.normal(example.x.shape), kept)

    def loss(self, example: Example, draws: Draws) -> Loss:
        condition = example.condition.keep(draws.kept) if self.drop and example.condition.roles else example.condition
        total = self.loss_at(example.x, condition, draws, example.weight)
        return Loss(total, {"loss": total.detach()})

    def loss_at(self, x: Tensor, condition: Condition, draws: Draws, weight: Tensor | None = None) -> Tensor:
        """Mean squared error of the network's own target, whose variance the preconditioning keeps near one.

        For EDM this equals equation 8 of Karras et al. 2022 with lambda = 1 / c_out^2; for epsilon, Ho et al. 2020, equation 14.
        """
        x_t = broadcast(draws.alpha, x) * x + broadcast(draws.sigma, x) * draws.noise
        c = self.preconditioning(draws.alpha, draws.sigma)
        target = (x - broadcast(c.c_skip, x) * x_t) / broadcast(c.c_out, x)
        output = self.network(broadcast(c.c_in, x) * x_t, c.c_noise, condition).float()
        error = (output - target).square()
        return flatten_mean(error if weight is None else error * weight).mean()

    def denoise(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float, condition: Condition) -> Tensor:
        """E[x | x_t] as (B, C, *S); alpha and sigma are numbers or (B,)."""
        c = self.preconditioning(alpha, sigma)
        t = c.c_noise if isinstance(c.c_noise, Tensor) else torch.full((len(x_t),), c.c_noise, device=x_t.device)
        output = self.network(x_t * broadcast(c.c_in, x_t), t, condition).to(x_t.dtype)
        if isinstance(c.c_skip, float):
            return (x_t * c.c_skip).add_(output, alpha=c.c_out) if not output.requires_grad else x_t * c.c_skip + output * c.c_out
        return x_t * broadcast(c.c_skip, x_t) + output * broadcast(c.c_out, x_t)

    def sample(self, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        denoiser = self.guidance(self) if self.guidance else self

        def denoise(x: Tensor, level: Level) -> Tensor:
            return denoiser.denoise(x, level.alpha, level.sigma, condition)

        return self.sampler(denoise, shape, rng)
