"""Optimizer and learning-rate schedule of a run, as one value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from medgen.core.errors import MedgenError


class AdamW:
    """Fused AdamW with a linear warm-up and, by choice, a cosine decay to zero.

    Args:
        lr: learning rate after warm-up.
        betas, weight_decay: as in Loshchilov and Hutter 2019.
        warmup: steps of linear warm-up.
        decay: "constant" or "cosine".
        rates: optimizer name -> factor on `lr`, such as {"critic": 2.0}.
    """

    def __init__(
        self,
        lr: float = 2e-4,
        betas: Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: int = 100,
        decay: str = "constant",
        rates: Mapping[str, float] | None = None,
    ):
        if decay not in ("constant", "cosine"):
            raise MedgenError(f"decay is 'constant' or 'cosine', not '{decay}'")
        self.lr, self.betas, self.weight_decay = lr, tuple(betas), weight_decay
        self.warmup, self.decay, self.rates = warmup, decay, dict(rates or {})

    def build(self, name: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        rate = self.lr * self.rates.get(name, 1.0)
        group = {"params": list(parameters), "lr": rate, "base_lr": rate}
        return torch.optim.AdamW([group], betas=self.betas, weight_decay=self.weight_decay, fused=True)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at `step` of `steps`."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.decay == "constant":
            return warm
        done = min(max(step - self.warmup, 0) / max(steps - self.warmup, 1), 1.0)
        return warm * (1 + math.cos(math.pi * done)) / 2
