"""Moves of all images and label maps of a case: mirroring, quarter turns, affine maps, elastic deformation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.data.augment.change import Geometry, between, check, whole
from medgen.data.augment.fields import coefficients, field, steepest
from medgen.data.augment.move import Move, check_outside


@dataclass(frozen=True)
class Flip(Geometry):
    """Mirroring of one or more of the axes, exactly.

    Args:
        axes: of the array that may be mirrored (`Augment.mirror` knows anatomical axes). With several, each combination of at least one
            is as likely as another.
        probability: of mirroring at all; all orientations are equally likely at 0.5 for one axis, 0.75 for two, 0.875 for three.
    """

    axes: Sequence[int] = (0,)
    probability: float = 0.5

    def __post_init__(self) -> None:
        check(self, axes=(0, 2))

    def draw(self, rng: Rng, size: Sequence[int]) -> Move:
        check_axes(self, self.axes, size)
        chosen = whole(rng, 1, 2 ** len(self.axes) - 1)
        signs = torch.ones(len(rng), len(size))
        for bit, axis in enumerate(self.axes):
            signs[:, axis] = 1 - 2 * (chosen >> bit & 1)
        return Move(torch.diag_embed(signs), torch.zeros(len(rng), len(size)))


@dataclass(frozen=True)
class Turn(Geometry):
    """Turns by 90, 180 or 270 degrees in a plane; by 180 only where its sides differ.

    Args:
        plane: the two axes.
        probability: all four orientations are equally likely at 0.75.
    """

    plane: Sequence[int] = (0, 1)
    probability: float = 0.75

    def __post_init__(self) -> None:
        check(self, plane=(0, 2))

    def draw(self, rng: Rng, size: Sequence[int]) -> Move:
        check_axes(self, self.plane, size)
        quarters = whole(rng, 1, 3)
        first, second = self.plane
        quarters = quarters if size[first] == size[second] else torch.full_like(quarters, 2)
        return Move(turned(quarters * (math.pi / 2), first, second, len(size)).round(), torch.zeros(len(rng), len(size)))


@dataclass(frozen=True)
class Affine(Geometry):
    """Rotation about every axis, scaling and shift, rigid in voxels.

    Args:
        rotation: largest angle in degrees.
        scale: largest relative change of size.
        shift: largest shift, as a fraction of each side.
        outside: what comes in at the edges: "air", the "border" or the "reflection" of the image.
    """

    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    outside: str = "air"
    probability: float = 0.5

    def __post_init__(self) -> None:
        check(self, rotation=(0, 180), scale=(0, 0.9), shift=(0, 1))
        check_outside(self.outside)

    def draw(self, rng: Rng, size: Sequence[int]) -> Move:
        dims, limit = len(size), math.radians(self.rotation)
        angles = between(rng, -limit, limit, (dims * (dims - 1) // 2,))
        factor = 1 + between(rng, -self.scale, self.scale)
        shift = between(rng, -self.shift, self.shift, (dims,)) * torch.tensor(size)
        return Move(rotation(angles, dims) / factor[:, None, None], shift, None, self.outside)


@dataclass(frozen=True)
class Elastic(Geometry):
    """A smooth deformation that folds nothing.

    The displacement is a sum of cosines of low order. It is made smaller where its derivative would exceed `bend` (in the Frobenius norm),
    which below 1 bounds its Lipschitz constant: x + u(x) is one to one, and no length changes by more than that share.

    Args:
        amplitude: largest root mean square of the displacement, as a fraction of the shortest side.
        order: half waves along the longest side.
        bend: largest derivative of the displacement.
        outside: what comes in at the edges: "air", the "border" or the "reflection" of the image.
    """

    amplitude: float = 0.03
    order: int = 5
    bend: float = 0.4
    outside: str = "air"
    probability: float = 0.3

    def __post_init__(self) -> None:
        check(self, amplitude=(0, 1), order=(1, 32), bend=(0, 0.9))
        check_outside(self.outside)

    def draw(self, rng: Rng, size: Sequence[int]) -> Move:
        dims = len(size)
        rms = between(rng, 0.0, self.amplitude) * min(n for n in size if n > 1)
        weights = _times(coefficients(rng, dims, size, self.order), rms)
        weights = _times(weights, (self.bend / steepest(weights, size).clamp(min=1e-12)).clamp(max=1))
        still = Move.none(len(rng), dims)
        return Move(still.linear, still.shift, field(weights, size), self.outside)


def turned(angle: Tensor, first: int, second: int, dims: int) -> Tensor:
    """(B, d, d) maps of the turned image's positions to the image's: at 90 degrees axis `first` comes to lie on axis `second`."""
    linear = torch.eye(dims).repeat(len(angle), 1, 1)
    linear[:, first, first] = linear[:, second, second] = angle.cos()
    linear[:, first, second], linear[:, second, first] = angle.sin(), -angle.sin()
    return linear


def rotation(angles: Tensor, dims: int) -> Tensor:
    """(B, d, d) turns by `angles` (B, pairs of axes) in every plane, one after the other."""
    linear = torch.eye(dims).repeat(len(angles), 1, 1)
    for angle, (first, second) in zip(angles.unbind(1), combinations(range(dims), 2), strict=True):
        linear = linear @ turned(angle, first, second, dims)
    return linear


def check_axes(change: Geometry, axes: Sequence[int], size: Sequence[int]) -> None:
    if max(axes, default=0) >= len(size):
        raise MedgenError(f"{type(change).__name__} has axis {max(axes)}, the images have the axes 0 to {len(size) - 1}")


def _times(weights: Tensor, factor: Tensor) -> Tensor:
    return weights * factor.reshape(-1, *(1,) * (weights.ndim - 1))
