"""Fields of simple shapes: depth in millimetres below the surface, positive inside, at points given as three arrays (x, y, z)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Points = tuple[Array, Array, Array]
Triple = Sequence[float]
FAR = 45.0


def ellipsoid(p: Points, centre: Triple, radii: Triple) -> Array:
    """Depth below an ellipsoid, exact to first order at its surface (value over gradient norm of the implicit equation).

    Points that all lie far above or below it get -FAR.
    """
    if not len(p[2]) or p[2].min() > centre[2] + radii[2] + FAR or p[2].max() < centre[2] - radii[2] - FAR:
        return np.full(len(p[2]), -FAR, np.float32)
    inverse = [1 / r for r in radii]
    u = [(v - c) * i for v, c, i in zip(p, centre, inverse, strict=True)]
    w = [v * i for v, i in zip(u, inverse, strict=True)]
    norm = np.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2]) + 1e-4
    return norm * (1 - norm) / (np.sqrt(w[0] * w[0] + w[1] * w[1] + w[2] * w[2]) + 1e-6)


class Tube:
    """A chain of cones through `knots` (x, y, z, radius); `flat` stretches its cross section along the axes."""

    def __init__(self, knots: Sequence[tuple[float, float, float, float]], flat: Triple = (1.0, 1.0, 1.0)):
        knot = np.array(knots, np.float32)
        self._scale = (1 / np.array(flat, np.float32))[:, None]
        at, self._radius = knot[:, :3] * self._scale[:, 0], knot[:, 3:]
        self._from, self._axis = at[:-1], np.diff(at, axis=0)
        self._length2 = np.square(self._axis).sum(1, keepdims=True)
        reach = knot[:, 3].max() * max(flat) + FAR
        self._low, self._high = knot[:, 2].min() - reach, knot[:, 2].max() + reach

    def depth(self, p: Points, grow: float = 0.0) -> Array:
        """Depth (N,) below the surface, all radii widened by `grow`; -FAR for points that all lie far above or below it."""
        if not len(p[2]) or p[2].min() > self._high or p[2].max() < self._low:
            return np.full(len(p[2]), -FAR, np.float32)
        q = np.stack(p) * self._scale
        along = self._axis @ q - (self._axis * self._from).sum(1, keepdims=True)
        t = np.clip(along / self._length2, 0, 1)
        gap2 = (
            np.square(q).sum(0) - 2 * (self._from @ q) + np.square(self._from).sum(1, keepdims=True) - t * (2 * along - t * self._length2)
        )
        radius = self._radius[:-1] + grow + np.diff(self._radius, axis=0) * t
        return (radius - np.sqrt(np.maximum(gap2, 0))).max(0)


def smooth_min(a: Array, b: Array, width: float) -> Array:
    """min(a, b) with its edge rounded over `width` millimetres (quadratic blend)."""
    h = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * (0.25 / width)


def smooth_max(a: Array, b: Array, width: float) -> Array:
    """max(a, b) with its edge rounded over `width` millimetres."""
    return -smooth_min(-a, -b, width)


def beyond(*excess: Array) -> Array:
    """Distance from a patch, given by how far a point lies beyond its sides: the norm of the positive parts."""
    return np.sqrt(sum(np.square(np.maximum(e, 0)) for e in excess))


def cover(depth: Array, voxel: float) -> Array:
    """Fraction of a voxel that lies inside a locally flat surface at `depth` from its centre."""
    return np.clip(depth * (1 / voxel) + 0.5, 0, 1)


def cover_sheet(distance: Array, half_width: Array | float, voxel: float) -> Array:
    """Fraction of a voxel filled by a sheet of the given half width, at `distance` from its middle; right also for thin sheets."""
    return cover(half_width - distance, voxel) - cover(-half_width - distance, voxel)


def over(out: Array, tissue: int, alpha: Array) -> None:
    """Paint fraction `alpha` (N,) of one tissue over the fractions (tissues, N) that are there, in place."""
    out *= 1 - alpha
    out[tissue] += alpha


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves with wave vectors `k` (M, 3) per mm, phases (M,) and weights (M,) or (M, C)."""

    k: Array
    phase: Array
    weight: Array

    def __call__(self, p: Points, shift: Array | None = None) -> Array:
        """The field at N points: (N,) or (N, C). `shift` (N, M) is added to the phases."""
        return np.sin(self._angle(p, shift)) @ self.weight

    def with_gradient(self, p: Points, shift: Array | None = None) -> tuple[Array, Array]:
        """The field (N,) and its gradient (N, 3) per mm."""
        angle = self._angle(p, shift)
        return np.sin(angle) @ self.weight, np.cos(angle) @ (self.weight[:, None] * self.k)

    def _angle(self, p: Points, shift: Array | None) -> Array:
        angle = np.stack(p, 1) @ self.k.T + self.phase
        return angle if shift is None else angle + shift


def draw_waves(rng: np.random.Generator, modes: int, wavelength: tuple[float, float], rms: float, channels: int = 0) -> Waves:
    """Isotropic waves with wavelengths evenly between two lengths in mm, scaled to a standard deviation of `rms` in expectation."""
    direction = rng.standard_normal((modes, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    k = direction * (2 * np.pi / rng.uniform(*wavelength, (modes, 1)))
    weight = rng.standard_normal((modes, channels) if channels else modes)
    weight *= rms / np.sqrt(0.5 * np.square(weight).sum(0, keepdims=True))
    return Waves(*(v.astype(np.float32) for v in (k, rng.uniform(0, 2 * np.pi, modes), weight)))


def rotation(angles: Array) -> Array:
    """The matrix (3, 3) of turns about x, y and z by `angles` in radians, the last one applied first."""
    turn = np.eye(3)
    for i, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        one = np.eye(3)
        j, k = (i + 1) % 3, (i + 2) % 3
        one[j, j], one[j, k], one[k, j], one[k, k] = c, -s, s, c
        turn = turn @ one
    return turn.astype(np.float32)
