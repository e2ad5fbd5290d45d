"""Smooth random fields: sums of cosines of low order, whose mean over the grid is exactly zero and whose slopes are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.core.random import Rng


def coefficients(rng: Rng, fields: int, size: Sequence[int], order: int) -> Tensor:
    """(B, fields, K, ...) random weights of cosines with up to `order` half waves along the longest axis, fewer along shorter ones.

    The squares of all fields of a sample sum up to 1 in the mean over a grid of `size`. Slow waves weigh more: 1 / (1 + |k|²).
    """
    highest = [max(1, round(order * n / max(size))) if n > 1 else 0 for n in size]
    waves = torch.meshgrid(*[torch.arange(k + 1.0) for k in highest], indexing="ij")
    square = sum(k.square() for k in waves)
    weights = torch.where(square > 0, 1 / (1 + square), 0.0)
    power = torch.stack([torch.where(k > 0, 0.5, 1.0) for k in waves]).prod(0)  # the mean square of cos(pi k (i + 1/2) / n)
    drawn = rng.normal((len(rng), fields, *weights.shape)) * weights
    return drawn / (drawn.square() * power).flatten(1).sum(1).sqrt().reshape(-1, *(1,) * (drawn.ndim - 1))


def field(weights: Tensor, size: Sequence[int], slope: int | None = None) -> Tensor:
    """(B, fields, *size) values of the cosines, or their derivative along axis `slope` where a side is 1 long."""
    total = weights
    for axis, n in enumerate(size):
        k = torch.arange(weights.shape[axis + 2], dtype=weights.dtype)[:, None] * math.pi
        place = (torch.arange(n, dtype=weights.dtype) + 0.5) / n
        wave = -k * torch.sin(k * place) if axis == slope else torch.cos(k * place)
        total = torch.tensordot(total, wave, dims=([2], [0]))  # the axis is consumed in front and comes out behind
    return total


def steepest(weights: Tensor, sides: Sequence[int]) -> Tensor:
    """(B,) the largest Frobenius norm of the derivative of a vector field, its components along axes of `sides` voxels, per voxel.

    Looked for at eight places of each half wave of the shortest waves; between them it may be some 5 % larger (cos(pi/16) per axis).
    """
    coarse = [8 * k if k > 1 else 8 for k in weights.shape[2:]]
    slopes = torch.stack([field(weights, coarse, axis) / n for axis, n in enumerate(sides)])
    return slopes.square().sum((0, 2)).flatten(1).amax(1).sqrt()
