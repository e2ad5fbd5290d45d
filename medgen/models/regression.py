"""The honest baseline: one network, one answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.model import Example, GenerativeModel, Loss, Phase
from medgen.core.random import Rng


class Regression(GenerativeModel):
    """Least absolute deviation: the network learns the conditional median of x given a dense condition.

    Args:
        network: (None, None, condition) -> x; built without image input (`in_channels: 0`).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("regression", self.network, self.loss),)

    def loss(self, example: Example, shared: Any) -> Loss:
        error = (self.network(None, None, example.condition).float() - example.x).abs()
        total = (error if example.weight is None else error * example.weight).mean()
        return Loss(total, {"l1": total.detach()})

    def sample(self, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        return self.network(None, None, condition)
