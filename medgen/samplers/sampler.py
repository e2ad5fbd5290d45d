"""The one loop that walks a reverse process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from medgen.core.levels import Level, LevelGrid
from medgen.core.random import Rng

Denoise = Callable[[Tensor, Level], Tensor]


class Sampler(ABC):
    """Walks x_t = alpha x + sigma n from the grid's noisiest level to a clean sample.

    Args:
        grid: which noise levels are visited.
        steps: how many steps are taken.
    """

    def __init__(self, grid: LevelGrid, steps: int = 18):
        self.grid, self.steps = grid, steps

    @torch.no_grad()
    def __call__(self, denoise: Denoise, shape: tuple[int, ...], rng: Rng) -> Tensor:
        """A sample (B, C, *S) of `shape`; `denoise(x, level)` returns E[x | x_t] at that level."""
        levels = self.grid.levels(self.steps)
        return self.walk(denoise, rng.normal(shape).mul_(levels[0].sigma), levels, rng)

    @torch.no_grad()
    def walk(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], rng: Rng) -> Tensor:
        """x at the last of `levels` from x at the first."""
        memory: Any = None
        for now, after in pairwise(levels):
            x, memory = self.step(denoise, x, now, after, memory, rng)
        return x

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, now: Level, after: Level, memory: Any, rng: Rng) -> tuple[Tensor, Any]:
        """x at level `after` from x at level `now`; `memory` is what a multi-step method carries along."""


def towards(x: Tensor, x0: Tensor, now: Level, after: Level) -> Tensor:
    """alpha' x0 + sigma' n with n = (x - alpha x0) / sigma: the straight move to `after`, in two tensor operations."""
    ratio = after.sigma / now.sigma
    return (x * ratio).add_(x0, alpha=after.alpha - now.alpha * ratio)
