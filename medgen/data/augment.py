"""Random changes of a training case: the same draw for all its channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medgen.data.source import Case


@dataclass(frozen=True)
class Augment:
    """Mirroring, rotation, scaling and shift of a case, and a change of contrast of its images.

    Args:
        mirror: axis that is flipped with probability 1/2 (0 is left-right in RAS), or None.
        probability: of rotation, scaling and shift together. They interpolate: a model that never sees an untouched image
            learns their blur.
        rotation: largest angle in degrees, about every axis; rigid in voxels.
        scale: largest relative change of size.
        shift: largest shift, as a fraction of the field of view.
        gamma: channel -> strength: x in [-1, 1] becomes 2 ((x + 1) / 2)^g - 1 with ln g uniform in +-strength. For channels that are
            given; on a target it changes what is learned.
        gain: channel -> strength: x + 1 is multiplied by g with ln g uniform in +-strength. What scaling by a percentile leaves open: the
            white matter of two scaled MR volumes easily differs by 10 %.
    """

    mirror: int | None = 0
    probability: float = 1.0
    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    gamma: Mapping[str, float] = field(default_factory=dict)
    gain: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, case: Case, rng: np.random.Generator) -> Case:
        """The changed case; "affine" stays that of the untouched grid."""
        images = {k: v for k, v in case.items() if isinstance(v, np.ndarray) and k != "affine" and v.ndim >= 3}
        matrix = self._matrix(next(iter(images.values())).shape[1:], rng)
        moved = {k: self._moved(v, matrix) for k, v in images.items()}
        return {**case, **{k: self._recoloured(k, v, rng) for k, v in moved.items()}}

    def _matrix(self, size: Sequence[int], rng: np.random.Generator) -> Tensor:
        """(dims, dims + 1) map from output to input positions, in torch's normalised order (last axis first)."""
        dims, sides = len(size), np.array(size[::-1], float)
        strength = 1.0 if rng.random() < self.probability else 0.0
        linear = np.eye(dims) * (1 + strength * rng.uniform(-self.scale, self.scale))
        for first, second in combinations(range(dims), 2):
            angle = strength * math.radians(rng.uniform(-self.rotation, self.rotation))
            turn = np.eye(dims)
            turn[np.ix_((first, second), (first, second))] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            linear = linear @ turn
        if self.mirror is not None and rng.random() < 0.5:
            linear[:, dims - 1 - self.mirror] *= -1
        linear *= sides[None, :] / sides[:, None]  # turned in voxels, then normalised axis by axis: no shear on uneven grids
        shift = strength * rng.uniform(-2 * self.shift, 2 * self.shift, dims)
        return torch.from_numpy(np.concatenate([linear, shift[:, None]], 1)).float()

    def _moved(self, image: np.ndarray, matrix: Tensor) -> np.ndarray:
        values = torch.from_numpy(image)[None].float()
        grid = affine_grid(matrix[None], list(values.shape), align_corners=False)
        if np.issubdtype(image.dtype, np.integer):
            return grid_sample(values, grid, mode="nearest", align_corners=False)[0].numpy().astype(image.dtype)
        return (grid_sample(values + 1, grid, align_corners=False)[0] - 1).numpy()  # outside becomes -1: no signal

    def _recoloured(self, channel: str, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        exponent, factor = (math.exp(rng.uniform(-1, 1) * strength.get(channel, 0.0)) for strength in (self.gamma, self.gain))
        if exponent == factor == 1.0:
            return image
        return (2 * factor * ((image + 1) / 2).clip(0) ** exponent - 1).astype(image.dtype)
