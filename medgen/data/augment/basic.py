"""The usual changes of a training case in one value, and any others by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch

from medgen.data.augment.change import Geometry, Intensity
from medgen.data.augment.changes import Changes, images_of, moved, stream_of
from medgen.data.augment.move import Move
from medgen.data.source import Case


@dataclass(frozen=True)
class Augment:
    """Mirroring, rotation, scaling and shift of a case, and a change of contrast of its images: the same draw for all its channels.

    Args:
        mirror: anatomical axis that is flipped with probability 1/2: 0 is left-right, whichever axis of the array that is. Slices that do
            not have it (sagittal ones) are left alone; of pictures without geometry it is the axis of the array. None: no flip.
        probability: of rotation, scaling and shift together. They interpolate: a model that never sees an untouched image
            learns their blur.
        rotation: largest angle in degrees, about every axis; rigid in voxels.
        scale: largest relative change of size.
        shift: largest shift, as a fraction of the field of view.
        gamma: channel -> strength: x in [-1, 1] becomes 2 ((x + 1) / 2)^g - 1 with ln g uniform in +-strength. For channels that are
            given; on a target it changes what is learned.
        gain: channel -> strength: x + 1 is multiplied by g with ln g uniform in +-strength. What scaling by a percentile leaves open: the
            white matter of two scaled MR volumes easily differs by 10 %.
        changes: name -> further change, see `Changes`. Moves join the ones above in one interpolation; intensities come last.
    """

    mirror: int | None = 0
    probability: float = 1.0
    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    gamma: Mapping[str, float] = field(default_factory=dict)
    gain: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Geometry | Intensity | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_further", Changes(self.changes))

    def drive(self, strength: float) -> None:
        """From now on all probabilities are multiplied by `strength`; see `Changes.drive`. Gamma and gain have none."""
        self._further.drive(strength)

    def __call__(self, case: Case, rng: np.random.Generator) -> Case:
        """The changed case; "affine" stays that of the untouched grid."""
        images = images_of(case)
        size = next(iter(images.values())).shape[1:]
        move = self._move(size, rng, self._mirrored(case, len(size)))
        factors = {name: self._factors(name, rng) for name in images}
        stream = stream_of(rng)
        arrived = moved(images, self._further.move(stream, size).after(move))
        recoloured = {name: _recoloured(image, *factors[name]) for name, image in arrived.items()}
        return self._further.recoloured({**case, **recoloured}, stream)

    def _mirrored(self, case: Case, dims: int) -> int | None:
        """The axis of the array to flip: the one that runs along the anatomical axis `mirror`."""
        if self.mirror is None or "affine" not in case:
            return self.mirror
        along = np.abs(np.asarray(case["affine"])[:3, :dims]).argmax(0).tolist()
        return along.index(self.mirror) if self.mirror in along else None

    def _move(self, size: Sequence[int], rng: np.random.Generator, mirrored: int | None) -> Move:
        """Drawn in torch's order of axes, the last one first."""
        dims, odds = len(size), self._further.strength
        strength = 1.0 if rng.random() < self.probability * odds else 0.0
        linear = np.eye(dims) * (1 + strength * rng.uniform(-self.scale, self.scale))
        for first, second in combinations(range(dims), 2):
            angle = strength * math.radians(rng.uniform(-self.rotation, self.rotation))
            turn = np.eye(dims)
            turn[np.ix_((first, second), (first, second))] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            linear = linear @ turn
        if self.mirror is not None and rng.random() < 0.5 * odds and mirrored is not None:
            linear[:, dims - 1 - mirrored] *= -1
        shift = strength * rng.uniform(-self.shift, self.shift, dims) * np.array(size[::-1])
        back = [values[..., ::-1].copy() for values in (linear[::-1], shift)]
        return Move(*(torch.from_numpy(values).float()[None] for values in back))

    def _factors(self, channel: str, rng: np.random.Generator) -> list[float]:
        """Exponent and factor of a channel's signal."""
        return [math.exp(rng.uniform(-1, 1) * strength.get(channel, 0.0)) for strength in (self.gamma, self.gain)]


def _recoloured(image: np.ndarray, exponent: float, factor: float) -> np.ndarray:
    if exponent == factor == 1.0:
        return image
    return (2 * factor * ((image + 1) / 2).clip(0) ** exponent - 1).astype(image.dtype)
