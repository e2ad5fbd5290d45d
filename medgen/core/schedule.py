"""The discrete noise schedules of DDPM, and how a noise coordinate becomes the timestep that a network of another library embeds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError, nearest
from medgen.core.levels import Level, LevelDistribution, LevelGrid

_SMALLEST = 1e-5  # the least alpha that a noise coordinate tells from zero
_SNAP = 0.01  # of a step: float32 cannot place a level of the schedule closer at its clean end


class Timesteps(ABC):
    """From medgen's noise coordinate t = ln(sigma / alpha) / 4 to the time argument of another library's network."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """(B,) coordinates -> (B,) timesteps, float32 and not necessarily whole."""


@dataclass(frozen=True)
class Evenly(Timesteps):
    """Coordinates between `low` and `high` spread evenly over 0 to steps - 1: for networks that are trained from scratch.

    The coordinate is never beyond ln(1e5) / 4 = 2.88 on either side.
    """

    low: float = -3.0
    high: float = 3.0
    steps: int = 1000

    def timestep(self, t: Tensor) -> Tensor:
        return (t.float() - self.low) * ((self.steps - 1) / (self.high - self.low))


@dataclass(frozen=True)
class DiscreteSchedule(Timesteps, LevelDistribution, LevelGrid):
    """alpha_t^2 = prod (1 - beta_i) for t = 0 .. steps - 1, sigma_t^2 = 1 - alpha_t^2 (Ho et al. 2020).

    One value for three uses: the timesteps of a network that was trained on it, the levels to go on training, and a sampler's grid.

    Args:
        kind: "linear" (Ho et al. 2020), "scaled_linear" (linear in sqrt(beta), Rombach et al. 2022), "cosine" (Nichol and Dhariwal
            2021, which needs no betas) or "sigmoid".
        beta_start, beta_end: first and last beta.
        steps: their number.
        zero_terminal: shifted so that the last level is pure noise (Lin et al. 2024, algorithm 1).

    Raises:
        MedgenError: an unknown kind, betas outside (0, 1), fewer than two steps.
    """

    kind: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    steps: int = 1000
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _BETAS:
            raise MedgenError(f"no noise schedule '{self.kind}'; {nearest(self.kind, _BETAS)}")
        if not 0 < self.beta_start <= self.beta_end < 1 or self.steps < 2:
            found = f"beta_start={self.beta_start}, beta_end={self.beta_end}, steps={self.steps}"
            raise MedgenError(f"a noise schedule needs 0 < beta_start <= beta_end < 1 and at least 2 steps, found {found}")

    def timestep(self, t: Tensor) -> Tensor:
        """The place of each coordinate among the schedule's own, linear in between and held at both ends; a level of the schedule
        gives its whole number."""
        table = _on(_coordinates(self), t.device)
        t = t.float().clamp(table[0], table[-1])
        right = torch.searchsorted(table, t.contiguous()).clamp(1, self.steps - 1)
        low, high = table[right - 1], table[right]
        place = right - 1 + (t - low) / (high - low)
        whole = place.round()
        return torch.where((place - whole).abs() < _SNAP, whole, place)

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Every timestep equally often."""
        alpha, sigma = (_on(v, u.device)[(u * self.steps).long().clamp_max(self.steps - 1)] for v in _levels(self))
        return alpha.float(), sigma.float()

    def levels(self, steps: int) -> list[Level]:
        """From the noisiest level in even strides of the timestep."""
        alpha, sigma = (v.tolist() for v in _levels(self))
        if not 1 <= steps <= self.steps:
            raise MedgenError(f"a schedule of {self.steps} timesteps is walked in 1 to {self.steps} steps, got {steps}")
        visited = [round(self.steps * (1 - i / steps)) - 1 for i in range(steps)]
        return [Level(alpha[i], sigma[i]) for i in visited] + [Level(1.0, 0.0)]


@lru_cache(maxsize=32)
def _levels(schedule: DiscreteSchedule) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma of every timestep, float64.

    The tables are NumPy's: a tensor that is kept would stay on the device, or a fake one, of whatever context it was first made in.
    """
    kept = np.sqrt(np.cumprod(1 - _BETAS[schedule.kind](schedule)))
    if schedule.zero_terminal:
        kept = (kept - kept[-1]) * kept[0] / (kept[0] - kept[-1])
    return kept, np.sqrt(1 - kept**2)


@lru_cache(maxsize=32)
def _coordinates(schedule: DiscreteSchedule) -> np.ndarray:
    """t of every timestep, float32."""
    alpha, sigma = _levels(schedule)
    return (np.log(sigma / np.maximum(alpha, _SMALLEST)) / 4).astype(np.float32)


def _on(table: np.ndarray, device: torch.device) -> Tensor:
    """A table as a tensor; the copy to a GPU is not waited for, as tables never change."""
    return torch.from_numpy(table).to(device, non_blocking=True)


def _linear(s: DiscreteSchedule) -> np.ndarray:
    return np.linspace(s.beta_start, s.beta_end, s.steps)


def _scaled_linear(s: DiscreteSchedule) -> np.ndarray:
    return np.linspace(s.beta_start**0.5, s.beta_end**0.5, s.steps) ** 2


def _sigmoid(s: DiscreteSchedule) -> np.ndarray:
    return (s.beta_end - s.beta_start) / (1 + np.exp(-np.linspace(-6, 6, s.steps))) + s.beta_start


def _cosine(s: DiscreteSchedule) -> np.ndarray:
    """Betas from alpha^2 = cos^2, at most 0.999: Nichol and Dhariwal 2021, equation 17."""
    time = np.arange(s.steps + 1) / s.steps
    square = np.cos((time + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return np.minimum(1 - square[1:] / square[:-1], 0.999)


_BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "cosine": _cosine, "sigmoid": _sigmoid}
