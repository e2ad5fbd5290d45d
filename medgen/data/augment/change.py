"""What a random change is: a small frozen value that draws its parameters and applies them to a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.data.augment.move import Move

Drawn = dict[str, Tensor]  # parameters of a batch, (B, ...) each


class Geometry(ABC):
    """Moves voxels: all images and label maps of a case alike.

    Attributes:
        probability: how often it happens (times what an augmentation is driven with).
    """

    probability: float

    @abstractmethod
    def draw(self, rng: Rng, size: Sequence[int]) -> Move:
        """A move for every stream of `rng` on grids of `size`."""


class Intensity(ABC):
    """Changes the values of the named channels, which share one draw. Values are network units: -1 is no signal, +1 full contrast.

    Attributes:
        channels: of a case; the others stay as they are. A batch without names (`apply_batch`) is changed in all channels.
        probability: how often it happens (times what an augmentation is driven with).
    """

    channels: Sequence[str]
    probability: float

    @abstractmethod
    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        """Parameters for images of `shape` (B, C, *S), one row for each stream of `rng`."""

    @abstractmethod
    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """(B, C, *S) float32 -> the same shape; differentiable in `images`."""


def signal(images: Tensor) -> Tensor:
    """Network units -> signal from 0 (air) to 1 (full contrast)."""
    return (images + 1) / 2


def units(signals: Tensor) -> Tensor:
    """Undoes `signal`."""
    return 2 * signals - 1


def between(rng: Rng, low: float, high: float, shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers (B, *shape) from `low` to `high`."""
    return low + (high - low) * rng.uniform((len(rng), *shape))


def whole(rng: Rng, low: int, high: int) -> Tensor:
    """Whole numbers (B,) int64 from `low` to `high`, both included."""
    return (low + torch.floor((high - low + 1) * rng.uniform((len(rng),)))).long().clamp(max=high)


def rows_of(on: Tensor) -> list[int]:
    """The rows that are true (one by one: a memory plan can answer nothing else)."""
    return [row for row, one in enumerate(on.cpu()) if one]


def check(change: Any, **ranges: tuple[float, float]) -> None:
    """Refuse values outside of [low, high]; what has several numbers is checked one by one."""
    for name, (low, high) in {"probability": (0.0, 1.0), **ranges}.items():
        value = getattr(change, name)
        numbers = value if isinstance(value, Sequence) else (value,)
        if not all(low <= number <= high for number in numbers):
            raise MedgenError(f"{type(change).__name__} has {name}={value}; expected {low:g} to {high:g}")
    if isinstance(getattr(change, "channels", ()), str):
        raise MedgenError(f"{type(change).__name__} has channels={change.channels}; expected a list: [{change.channels}]")
