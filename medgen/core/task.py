"""What a task answers: which channels are made, what is given, and which number says that training went well."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from medgen.core.condition import Condition
from medgen.core.model import Example
from medgen.core.operator import Operator
from medgen.core.random import Rng

MOMENTS = "moments"  # the entry of a batch that holds cached latent moments (B, 2, Z, *s): mean and log-variance of the target


def availability(name: str) -> str:
    """The entry of a batch (B,) that says by 1 or 0 whether a case has this channel; without it all cases have."""
    return f"{name}_available"


class Metric(Protocol):
    """The number that training monitors. `best` is "max" or "min"; it takes `least` cases or more."""

    name: str
    best: str
    least: int

    def __call__(self, made: Tensor, real: Tensor) -> float:
        """From samples and references (N, C, *S) in network units."""
        ...


class Task(ABC):
    """Turns named tensors into what a model understands.

    Attributes:
        target: channels that are made.
        source: image channels that are given on the grid.
        labels: label maps that are given on the grid -> classes.
        attributes: vector attributes that are given -> classes (0: a real number).
        availability: whether a case may lack source channels, and is told so.
        operator: how the target was measured, for reconstruction; None otherwise.
        metric: compared between samples and references at every validation; it chooses the best checkpoint.
    """

    target: tuple[str, ...]
    source: tuple[str, ...] = ()
    labels: dict[str, int]
    attributes: dict[str, int]
    availability: bool = False
    operator: Operator | None = None
    metric: Metric

    @abstractmethod
    def condition(self, inputs: Mapping[str, Any]) -> Condition:
        """What the model is given, from named tensors (B, 1, *S) or (B,); needs no target. Used in training and inference."""

    @abstractmethod
    def example(self, batch: Mapping[str, Any], rng: Rng) -> Example:
        """A training example from a batch."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Every name that a training batch must carry."""
        return (*self.target, *self.source, *self.labels, *self.attributes)
