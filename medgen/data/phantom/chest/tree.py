"""Vessels and bronchi of the lung: trees that grow into a set of points, and their fraction of every voxel of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medgen.data.phantom.grid import Grid
from medgen.data.phantom.shapes import Array, cover_sheet

LEVELS = 10


@dataclass(frozen=True)
class Twigs:
    """Cones of a tree in world millimetres: ends (N, 3), radii at them (N,) and how many forks lie before them (N,)."""

    start: Array
    end: Array
    radius: Array
    tip: Array
    level: Array

    @staticmethod
    def joined(parts: Sequence[Twigs]) -> Twigs:
        return Twigs(*(np.concatenate([getattr(p, name) for p in parts]) for name in Twigs.__dataclass_fields__))

    def near(self, grid: Grid) -> Twigs:
        """Those that reach into the grid."""
        keep = np.ones(len(self.start), bool)
        for i in range(3):
            low, high = grid.origin[i] - grid.spacing[i], grid.origin[i] + grid.shape[i] * grid.spacing[i]
            ends = self.start[:, i], self.end[:, i]
            keep &= (np.minimum(*ends) - self.radius < high) & (np.maximum(*ends) + self.radius > low)
        return Twigs(*(getattr(self, name)[keep] for name in Twigs.__dataclass_fields__))


def grow(points: Array, root: Array, radius: float, tone: float, rng: np.random.Generator, turn: float = 0.0) -> Twigs:
    """A tree from `root` (3,) into `points` (M, 3).

    The points are halved again and again across their longest extent, and every branch goes part of the way to the centroid
    of its points (the volume-filling branching of Tawhai et al. 2004, Ann Biomed Eng 32:1013). Radii follow Murray's law,
    radius (n / M)^(1/tone) for a branch that feeds n points. `turn` in 0 to 1 turns the first cuts, so that two trees interlace.
    """
    total, node = len(points), np.zeros(len(points), np.int64)
    tip, last = np.array(root, np.float64)[None], np.array([radius])
    parts: list[Twigs] = []
    for level in range(LEVELS):
        count = np.bincount(node, minlength=len(tip))
        centroid = _sums(node, points, len(tip)) / np.maximum(count, 1)[:, None]
        reach = 0.36 + 0.04 * level + rng.uniform(-0.08, 0.08, (len(tip), 1))
        way = (centroid - tip) * reach
        sideways = rng.standard_normal(way.shape) * 0.08 * np.linalg.norm(way, axis=1, keepdims=True)
        end = tip + way + sideways
        size = radius * (count / total) ** (1 / tone)
        alive = count > 1
        parts.append(Twigs(tip[alive], end[alive], np.minimum(last, 1.25 * size)[alive], size[alive], np.full(alive.sum(), level)))
        offset = points - centroid[node]
        normal = _widest(node, offset, len(tip), way, turn if level < 2 else 0.0)
        node = 2 * node + (np.einsum("ij,ij->i", offset, normal[node]) > 0)
        tip, last = np.repeat(end, 2, 0), np.repeat(size, 2)
    return Twigs(*(v.astype(np.float32) for v in (getattr(Twigs.joined(parts), name) for name in Twigs.__dataclass_fields__)))


def _sums(node: Array, values: Array, count: int) -> Array:
    return np.stack([np.bincount(node, values[:, i], count) for i in range(values.shape[1])], 1)


def _widest(node: Array, offset: Array, count: int, way: Array, turn: float) -> Array:
    """Unit normals (count, 3) of the planes that halve every node's points: their longest axis across the branch's direction."""
    i, j = np.triu_indices(3)
    six = _sums(node, offset[:, i] * offset[:, j], count)
    spread = np.zeros((count, 3, 3))
    spread[:, i, j] = spread[:, j, i] = six
    along = way / (np.linalg.norm(way, axis=1, keepdims=True) + 1e-9)
    _, axes = np.linalg.eigh(spread)
    normal = axes[:, :, 2] + turn * axes[:, :, 1]
    normal = normal - 0.5 * (normal * along).sum(1, keepdims=True) * along
    return normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9)


def bronchi(arteries: Twigs, forks: int = 5) -> Twigs:
    """The bronchi that run beside the first generations of arteries, with a lumen of about two thirds of their width."""
    keep = (arteries.level < forks) & (arteries.tip > 0.9)
    part = Twigs(*(getattr(arteries, name)[keep] for name in Twigs.__dataclass_fields__))
    along = part.end - part.start
    side = np.cross(along, np.float32([0.3, 1.0, 0.2]))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-6
    move = side * 1.8
    return Twigs(
        part.start + move * part.radius[:, None], part.end + move * part.tip[:, None], 0.64 * part.radius, 0.6 * part.tip, part.level
    )


def splat(twigs: Twigs, grid: Grid, voxel: float, grow_by: float = 0.0) -> Array:
    """Fraction of every voxel (of `voxel` mm) that the cones fill, radii widened by `grow_by` mm; float32 of the grid's shape.

    A cone thinner than a voxel keeps its volume.
    """
    out = np.zeros(grid.shape, np.float32)
    twigs = twigs.near(grid)
    if not len(twigs.start):
        return out
    which, place = _boxes(twigs, grid, grow_by + voxel)
    p = [np.float32(grid.origin[i]) + place[i] * np.float32(grid.spacing[i]) for i in range(3)]
    axis = twigs.end - twigs.start
    length2 = np.square(axis).sum(1) + 1e-6
    t = sum((p[i] - twigs.start[which, i]) * axis[which, i] for i in range(3)) / length2[which]
    t = np.clip(t, 0, 1)
    gap2 = sum(np.square(p[i] - twigs.start[which, i] - t * axis[which, i]) for i in range(3))
    radius = twigs.radius[which] + t * (twigs.tip - twigs.radius)[which] + np.float32(grow_by)
    filled = cover_sheet(np.sqrt(gap2), radius, voxel) * _thinned(radius / voxel)
    np.maximum.at(out.reshape(-1), np.ravel_multi_index(tuple(place), grid.shape), filled.astype(np.float32))
    return out


def _thinned(ratio: Array) -> Array:
    """What turns the profile of a sheet, as wide as the cone, into the cone's own: integrated across it is pi r^2 (within 8 %)."""
    return np.where(ratio < 0.5, 2 * ratio / (1 + 4 / 3 * ratio * ratio), np.minimum(1, 0.5 + 0.5 * ratio))


def _boxes(twigs: Twigs, grid: Grid, margin: float) -> tuple[Array, list[Array]]:
    """All pairs of a cone and a voxel in its bounding box: the cone's number (P,) and the voxel's three indices, each (P,)."""
    reach = np.maximum(twigs.radius, twigs.tip) + margin
    low, high = [], []
    for i in range(3):
        ends = twigs.start[:, i], twigs.end[:, i]
        low.append(np.ceil((np.minimum(*ends) - reach - grid.origin[i]) / grid.spacing[i]).clip(0))
        high.append(np.floor((np.maximum(*ends) + reach - grid.origin[i]) / grid.spacing[i]).clip(max=grid.shape[i] - 1))
    n = np.maximum(np.array(high) - np.array(low) + 1, 0).astype(np.int64)
    size = n.prod(0)
    which = np.repeat(np.arange(len(size)), size)
    rest = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    place = []
    for i in (2, 1):
        place.append(low[i].astype(np.int64)[which] + rest % n[i][which])
        rest //= n[i][which]
    place.append(low[0].astype(np.int64)[which] + rest)
    return which, place[::-1]
