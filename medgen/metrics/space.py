"""A feature space: what turns images into the vectors whose sets are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Space:
    """Attributes:
    name: as reports print it; of a trained encoder with a digest of its weights, such as "encoder_2d@1a2b3c4d", since numbers of different
    weights do not compare.
    dims: spatial dimensions that it takes, 2 or 3; 0 takes any.
    features: images (B, C, *S) in network units ([-1, 1]) -> (B, F) float64, each image on its own.
    standard: a comparison is to scale each feature by the reals' mean and spread (features of unlike units).
    """

    name: str
    dims: int
    features: Callable[[Tensor], Tensor]
    standard: bool = False
