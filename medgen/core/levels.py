"""Noise levels (alpha, sigma) of x_t = alpha x + sigma n: how training draws them and which grid a sampler walks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medgen.core.errors import MedgenError


class Level(NamedTuple):
    """One point of a sampler's grid, as plain floats so that a step costs few tensor operations."""

    alpha: float
    sigma: float


class LevelDistribution(ABC):
    """Maps u in [0, 1) to a noise level by the inverse of its cumulative distribution, so that draws can be stratified."""

    @abstractmethod
    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (B,), sigma (B,) for u (B,)."""


@dataclass(frozen=True)
class LogNormal(LevelDistribution):
    """alpha = 1 and ln sigma ~ N(mean, std^2): Karras et al. 2022 (EDM), table 1."""

    mean: float = -1.2
    std: float = 1.2

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6)).float())
        return torch.ones_like(sigma), sigma


@dataclass(frozen=True)
class CosineUniform(LevelDistribution):
    """Uniform time on the cosine schedule alpha = cos(pi t / 2), sigma = sin(pi t / 2): Nichol and Dhariwal 2021, with the offset left out.

    Args:
        t_min, t_max: ends of the time interval; t_max < 1 keeps alpha away from zero, as epsilon prediction needs.
    """

    t_min: float = 0.001
    t_max: float = 0.999

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        angle = (self.t_min + (self.t_max - self.t_min) * u) * (math.pi / 2)
        return torch.cos(angle), torch.sin(angle)


@dataclass(frozen=True)
class LogitNormal(LevelDistribution):
    """alpha = 1 - t, sigma = t on the straight path, t = sigmoid(N(mean, std^2)): Esser et al. 2024, equation 19.

    Args:
        mean: above 0 trains more on noisy images, as larger images need.
        std: spread; the middle of the path is where velocities are hard to learn.
    """

    mean: float = 0.0
    std: float = 1.0

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))).float()
        return 1 - t, t


@dataclass(frozen=True)
class StraightUniform(LevelDistribution):
    """alpha = 1 - t, sigma = t with t uniform: Liu et al. 2022 (rectified flow)."""

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        t = u.clamp_min(1e-4)  # the clean end has no velocity to learn
        return 1 - t, t


class LevelGrid(ABC):
    """The noise levels that a sampler visits, noisiest first; the last one is clean (alpha 1, sigma 0)."""

    @abstractmethod
    def levels(self, steps: int) -> list[Level]:
        """steps + 1 levels for `steps` steps."""


@dataclass(frozen=True)
class Karras(LevelGrid):
    """alpha = 1 and sigma^(1/rho) in even steps: Karras et al. 2022, equation 5."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def levels(self, steps: int) -> list[Level]:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = [i / max(steps - 1, 1) for i in range(steps)]
        return [Level(1.0, (high + r * (low - high)) ** self.rho) for r in ramp] + [Level(1.0, 0.0)]


@dataclass(frozen=True)
class CosineGrid(LevelGrid):
    """Even steps of time on the cosine schedule, from `t_max` to 0."""

    t_max: float = 0.999

    def levels(self, steps: int) -> list[Level]:
        angles = [self.t_max * (1 - i / steps) * math.pi / 2 for i in range(steps)]
        return [Level(math.cos(a), math.sin(a)) for a in angles] + [Level(1.0, 0.0)]


@dataclass(frozen=True)
class StraightGrid(LevelGrid):
    """The straight path alpha = 1 - t, sigma = t from t = 1, in even steps for shift = 1.

    Args:
        shift: t becomes shift t / (1 + (shift - 1) t), which spends more steps where there is more noise (Esser et al. 2024, equation 23).
    """

    shift: float = 1.0

    def levels(self, steps: int) -> list[Level]:
        times = [1 - i / steps for i in range(steps + 1)]
        times = [self.shift * t / (1 + (self.shift - 1) * t) for t in times]
        return [Level(1 - t, t) for t in times]


@dataclass(frozen=True)
class Below(LevelGrid):
    """The part of another grid where sigma / alpha is at most `ratio`, in as many steps as asked for."""

    grid: LevelGrid
    ratio: float

    def levels(self, steps: int) -> list[Level]:
        for finer in range(steps, 50 * steps):
            found = [level for level in self.grid.levels(finer) if level.sigma <= self.ratio * level.alpha]
            if len(found) > steps:
                return found[-steps - 1 :]
        raise MedgenError(f"no {steps} steps of the model's noise levels lie below sigma / alpha = {self.ratio:g}; raise it")
