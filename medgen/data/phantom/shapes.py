"""Fields of simple shapes: depth in millimetres below the surface, positive inside, at points given as three arrays (x, y, z)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Array = np.ndarray
Points = tuple[Array, Array, Array]
Triple = Sequence[float]


def ellipsoid(p: Points, centre: Triple, radii: Triple) -> Array:
    """Depth below an ellipsoid, exact to first order at its surface (value over gradient norm of the implicit equation)."""
    u = [(v - c) / r for v, c, r in zip(p, centre, radii, strict=True)]
    norm = np.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2]) + 1e-4
    slope = np.sqrt(sum((v / r) ** 2 for v, r in zip(u, radii, strict=True))) + 1e-6
    return norm * (1 - norm) / slope


def tube(p: Points, knots: Sequence[tuple[float, float, float, float]], flat: Triple = (1.0, 1.0, 1.0), grow: float = 0.0) -> Array:
    """Depth below a chain of cones through `knots` (x, y, z, radius); `flat` stretches its cross section along the axes."""
    scaled = tuple(v / f for v, f in zip(p, flat, strict=True))
    depth = None
    for a, b in pairwise(knots):
        part = _cone(scaled, [a[i] / flat[i] for i in range(3)], [b[i] / flat[i] for i in range(3)], a[3] + grow, b[3] + grow)
        depth = part if depth is None else np.maximum(depth, part)
    return depth


def _cone(p: Points, a: Triple, b: Triple, radius_a: float, radius_b: float) -> Array:
    axis = [v - w for v, w in zip(b, a, strict=True)]
    length2 = sum(v * v for v in axis)
    q = [v - c for v, c in zip(p, a, strict=True)]
    t = np.clip((q[0] * axis[0] + q[1] * axis[1] + q[2] * axis[2]) * (1 / length2), 0, 1)
    r = [v - t * d for v, d in zip(q, axis, strict=True)]
    return radius_a + (radius_b - radius_a) * t - np.sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2])


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
