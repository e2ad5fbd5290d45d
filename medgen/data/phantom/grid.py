"""Where voxels are in the world, and the map from there to the standard space in which anatomy is written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np

from medgen.data.phantom.shapes import Array, Points, Waves

CENTRE = (0.0, -17.0, 8.0)  # of a head
FOV = 224.0
_CHUNK = 1 << 13


@dataclass(frozen=True)
class Grid:
    """Voxel centres in world millimetres (RAS): origin + index * spacing along each of three axes.

    Attributes:
        shape: number of voxels along x, y, z; a slice has one along z.
        spacing: millimetres along x, y, z.
        origin: world position of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @staticmethod
    def centred(shape: Sequence[int], fov: float | Sequence[float] = FOV, centre: Sequence[float] = CENTRE) -> Grid:
        """A field of view of `fov` mm along every axis around `centre`; by default the head's."""
        extent = (fov,) * 3 if isinstance(fov, int | float) else tuple(fov)
        spacing = [f / n for f, n in zip(extent, shape, strict=True)]
        origin = [c - s * (n - 1) / 2 for c, s, n in zip(centre, spacing, shape, strict=True)]
        return Grid(tuple(int(n) for n in shape), tuple(spacing), tuple(origin))

    @staticmethod
    def axial(size: Sequence[int], z: float, fov: float = FOV, centre: Sequence[float] = CENTRE) -> Grid:
        """One axial slice of `size` (x, y) voxels at world height `z`; its thickness equals its pixel size along x."""
        flat = Grid.centred((*size, 1), fov, centre)
        return Grid(flat.shape, (*flat.spacing[:2], flat.spacing[0]), (*flat.origin[:2], float(z)))

    @property
    def affine(self) -> Array:
        """(4, 4) voxel index to world."""
        affine = np.diag((*self.spacing, 1.0))
        affine[:3, 3] = self.origin
        return affine

    def axis(self, i: int) -> Array:
        return (self.origin[i] + np.arange(self.shape[i]) * self.spacing[i]).astype(np.float32)

    def pieces(self) -> Iterator[tuple[tuple[slice, ...], Grid]]:
        """The same grid in flat blocks that fit the processor's cache, each with its place."""
        nx, ny, nz = self.shape
        across, deep = max(1, _CHUNK // ny), max(1, _CHUNK // (nx * ny))
        for i, k in product(range(0, nx, across), range(0, nz, deep)):
            place = (slice(i, i + across), slice(None), slice(k, k + deep))
            origin = (self.origin[0] + i * self.spacing[0], self.origin[1], self.origin[2] + k * self.spacing[2])
            yield place, replace(self, shape=(min(across, nx - i), ny, min(deep, nz - k)), origin=origin)

    def points(self) -> Points:
        """World coordinates of all voxels, three arrays (N,) in C order."""
        mesh = np.meshgrid(*(self.axis(i) for i in range(3)), indexing="ij")
        return tuple(m.ravel() for m in mesh)


class Posed(Protocol):
    """Traits of a subject that place it: size factors (3,), rotation (3, 3), position (3,), smooth displacement (N, 3)."""

    scale: Array
    turn: Array
    move: Array
    warp: Waves


def standard(t: Posed, p: Points, centre: Sequence[float] = CENTRE) -> Points:
    """World points (mm) to standard space: position, rotation and size about `centre`, then the smooth displacement."""
    q = (np.stack(p, 1) - np.float32(centre) - t.move) @ t.turn
    q = q / t.scale + np.float32(centre)
    q += t.warp(tuple(q.T))
    return tuple(np.ascontiguousarray(v) for v in q.T)


def world(t: Posed, target: Array, centre: Sequence[float] = CENTRE) -> Array:
    """Standard points (N, 3) to the world: the inverse of `standard` by fixed-point iteration, first order in the deformation."""
    p = np.array(target, np.float64)
    for _ in range(8):
        p = p + (target - np.stack(standard(t, tuple(np.float32(v) for v in p.T), centre), 1))
    return p
