"""Nuclei: where they lie, how they are shaped, and that no two of them overlap. Lengths in micrometres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom.histology.fields import Window, scatter
from medgen.data.phantom.histology.tissue import Anatomy, Regions, Sites
from medgen.data.phantom.shapes import Array

KINDS = ("epithelial", "tumour", "mitosis", "lymphocyte", "spindle", "endothelial", "adipocyte")
GLAND_CELL, TUMOUR_CELL, MITOSIS, LYMPHOCYTE, SPINDLE, ENDOTHELIAL, ADIPOCYTE = range(len(KINDS))
_ROUNDS = 2  # each reaches as far as two large nuclei; more would pack them tighter and cost a wider margin
_MARGIN = 46.0
_GAP = 0.3
HALO = 6.0  # how far beyond its outline a nucleus changes what is around it, with the unevenness of the outline
GOBLET = 9.8  # from the middle of a gland cell's nucleus to that of its drop of mucin
_ANGLES = np.pi * np.arange(16) / 16

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Nuclei:
    """N ellipses, (N,) each.

    Attributes:
        x, y: centres. a, b: half axes. angle: of axis a, from x towards y.
        kind: index into KINDS. rank: where two overlap, the lower one stays. tone: a uniform random number for their looks.
    """

    x: Array
    y: Array
    a: Array
    b: Array
    angle: Array
    kind: Array
    rank: Array
    tone: Array

    def __len__(self) -> int:
        return len(self.x)

    def kept(self, where: Array) -> Nuclei:
        """Those that a boolean or integer index picks."""
        return Nuclei(*(getattr(self, name)[where] for name in self.__dataclass_fields__))

    def reach(self, direction: Array | float) -> Array:
        """How far each extends from its centre along a direction (radians)."""
        turned = np.asarray(direction) - self.angle
        return np.hypot(self.a * np.cos(turned), self.b * np.sin(turned))


def nuclei(anatomy: Anatomy, window: Window) -> Nuclei:
    """All nuclei that a window may show. A wider window has the same ones in the same places."""
    left, top, right, bottom = window.box
    box = (left - _MARGIN, top - _MARGIN, right + _MARGIN, bottom + _MARGIN)
    layers = [layer for layer in _layers(anatomy, box) if len(layer)]
    if not layers:
        return Nuclei(*np.zeros((8, 0)))
    found = Nuclei(*(np.concatenate([getattr(layer, name) for layer in layers]) for name in Nuclei.__dataclass_fields__))
    found = found.kept(apart(found))
    wide = found.a + np.where(found.kind == GLAND_CELL, GOBLET + 3.0, HALO)
    return found.kept((found.x > left - wide) & (found.x < right + wide) & (found.y > top - wide) & (found.y < bottom + wide))


def red_cells(anatomy: Anatomy, window: Window) -> tuple[Array, Array]:
    """Centres x, y (N,) of the red blood cells of a window."""
    left, top, right, bottom = window.box
    x, y, _ = scatter((*anatomy.key, 20), window.box, 6.4, 0, jitter=0.45)
    near = (x > left - 5) & (x < right + 5) & (y > top - 5) & (y < bottom + 5)
    x, y = x[near], y[near]
    inside = anatomy.regions(x, y, window.box).vessel > 2.8
    return x[inside], y[inside]


def apart(found: Nuclei) -> Array:
    """Which ones stay (N,) so that no two overlap: in each round those stay that outrank all their undecided rivals.

    Two convex shapes are disjoint if and only if some line separates them; sixteen directions are tried, so touching pairs may be
    called rivals, never the other way round.
    """
    first, second = _rivals(found)
    stays, undecided = np.zeros(len(found), bool), np.ones(len(found), bool)
    for _ in range(_ROUNDS):
        open_pair = undecided[first] & undecided[second]
        lower = found.rank[first] < found.rank[second]
        beaten = np.zeros(len(found), bool)
        beaten[np.where(lower, second, first)[open_pair]] = True
        stays |= undecided & ~beaten
        blocked = np.zeros(len(found), bool)
        blocked[first[stays[second]]] = blocked[second[stays[first]]] = True
        undecided &= ~stays & ~blocked
    return stays


def _rivals(found: Nuclei) -> tuple[Array, Array]:
    from scipy.spatial import cKDTree

    centres = np.stack([found.x, found.y], 1)
    pairs = cKDTree(centres).query_pairs(2 * float(found.a.max()) + _GAP, output_type="ndarray")
    i, j = pairs[np.hypot(*(centres[pairs[:, 0]] - centres[pairs[:, 1]]).T) < found.a[pairs].sum(1) + _GAP].T
    reach = np.stack([found.reach(angle) for angle in _ANGLES])
    along = np.outer(np.cos(_ANGLES), found.x) + np.outer(np.sin(_ANGLES), found.y)
    free = (np.abs(along[:, i] - along[:, j]) > reach[:, i] + reach[:, j] + _GAP).any(0)
    return i[~free], j[~free]


def _layers(anatomy: Anatomy, box: Box) -> Iterator[Nuclei]:
    yield _of_glands(anatomy, box)
    yield _of_vessels(anatomy, box)
    if anatomy.layout.nests:
        yield _of_nests(anatomy, box)
    if anatomy.layout.fat:
        yield _of_fat(anatomy, box)
    yield _lymphocytes(anatomy, box)
    yield _spindles(anatomy, box)


def _of_glands(anatomy: Anatomy, box: Box) -> Nuclei:
    """Columnar nuclei side by side along the base of every gland, upright on it."""
    size = anatomy.traits.size
    x, y, normal, (deep, behind, a, b, tilt, tone) = _rim((*anatomy.key, 6), anatomy.glands(box), 5.7 * size / anatomy.traits.crowding, 6)
    inward = 5.2 + 2.6 * deep + 4.5 * (behind < 0.18)
    x, y = anatomy.unwarp(x - inward * np.cos(normal), y - inward * np.sin(normal))
    return _placed(box, x, y, size * (3.9 + 1.0 * a), size * (2.3 + 0.5 * b), normal + 0.6 * (tilt - 0.5), GLAND_CELL, tone)


def _of_vessels(anatomy: Anatomy, box: Box) -> Nuclei:
    """Flat nuclei in the wall."""
    x, y, normal, (a, b, tone) = _rim((*anatomy.key, 7), anatomy.vessels(box), 15.0, 3)
    x, y = anatomy.unwarp(x + 1.2 * np.cos(normal), y + 1.2 * np.sin(normal))
    found = _placed(box, x, y, 4.4 + a, 1.4 + 0.4 * b, normal + np.pi / 2, ENDOTHELIAL, tone)
    return found.kept(_at(anatomy, found, box).vessel > -4.0)


def _rim(key: tuple[int, ...], sites: Sites, spacing: float, columns: int) -> tuple[Array, Array, Array, Array]:
    """Points along the outlines of sites, in the warped plane: x, y, outward direction (N,), and uniform numbers (columns, N)."""
    found = [np.zeros((3 + columns, 0))]
    for cx, cy, radius, flat, turn, mark in sites:
        rng = generator(*key, int(mark))
        count = max(2, int(np.pi * radius * (1 + flat) / spacing))
        t = 2 * np.pi * (np.arange(count) + 0.35 * rng.random(count)) / count
        along, across, c, s = radius * np.cos(t), radius * flat * np.sin(t), np.cos(turn), np.sin(turn)
        normal = np.arctan2(np.sin(t), flat * np.cos(t)) + turn
        found.append(np.stack([cx + c * along - s * across, cy + s * along + c * across, normal, *rng.random((columns, count))]))
    x, y, normal, *numbers = np.concatenate(found, 1)
    return x, y, normal, np.array(numbers)


def _of_nests(anatomy: Anatomy, box: Box) -> Nuclei:
    """Crowded nuclei of uneven size and direction, some of them dividing."""
    traits = anatomy.traits
    cell = 8.7 * traits.size / traits.crowding * (1 + 0.12 * traits.grade)
    x, y, (big, flat, turn, tone, divides) = scatter((*anatomy.key, 8), box, cell, 5, jitter=0.85)
    normal = np.sqrt(-2 * np.log(1 - 0.98 * big)) - 1.25
    a = traits.size * 5.0 * np.exp((0.07 + 0.26 * traits.grade) * normal)
    b = a * (0.95 - (0.2 + 0.25 * traits.grade) * flat)
    kind = np.where(divides < traits.mitoses, MITOSIS, TUMOUR_CELL)
    a, b = np.minimum(np.where(kind == MITOSIS, 4.6 * traits.size, a), 9.0), np.where(kind == MITOSIS, 1.7 * traits.size, b)
    found = _placed(box, x, y, a, np.minimum(b, 7.0), np.pi * turn, kind, tone)
    return found.kept(np.minimum(_at(anatomy, found, box).nest, _at(anatomy, found, box).edge) > 0.8 * found.a)


def _of_fat(anatomy: Anatomy, box: Box) -> Nuclei:
    """Flat nuclei in the walls of fat cells."""
    x, y, (there, tone) = scatter((*anatomy.key, 9), box, 8.0, 2)
    found = _placed(box, x, y, *np.array([[4.6], [1.4]]) * np.ones(len(x)), np.zeros(len(x)), ADIPOCYTE, tone)
    regions = _at(anatomy, found, box)
    found = found.kept((regions.wall > 0.05) & (there[_inside(box, x, y)] < 0.6) & (np.minimum(regions.fat, regions.edge) > 5))
    wall, right, down = (anatomy.regions(found.x + dx, found.y + dy, box).wall for dx, dy in ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4)))
    return Nuclei(found.x, found.y, found.a, found.b, np.arctan2(right - wall, wall - down), found.kind, found.rank, found.tone)


def _lymphocytes(anatomy: Anatomy, box: Box) -> Nuclei:
    """Small round dark ones, dense where `crowd` is positive and stray elsewhere."""
    x, y, (there, size, flat, turn) = scatter((*anatomy.key, 10), box, anatomy.layout.lymphocytes / anatomy.traits.crowding, 4, jitter=0.8)
    a = 3.1 + 0.9 * size**2
    found = _placed(box, x, y, a, a * (1 - 0.42 * flat), np.pi * turn, LYMPHOCYTE, there)
    regions = _at(anatomy, found, box)
    share = np.clip(anatomy.layout.stray + 2.0 * np.clip(regions.crowd, 0, None), 0, 0.92)
    return found.kept((found.tone < share) & (regions.stroma > 4.0))


def _spindles(anatomy: Anatomy, box: Box) -> Nuclei:
    """Fibroblasts: thin, along the fibres."""
    x, y, (long, thick, tilt, tone) = scatter((*anatomy.key, 11), box, anatomy.layout.stroma, 4, jitter=0.95)
    size = anatomy.traits.size
    found = _placed(box, x, y, size * (4.0 + 3.4 * long**2), size * (1.4 + 1.4 * thick**1.5), 0.5 * (tilt - 0.5), SPINDLE, tone)
    found = found.kept(_at(anatomy, found, box).stroma > 2.5)
    angle = found.angle + anatomy.direction(found.x, found.y, box)
    return Nuclei(found.x, found.y, found.a, found.b, angle, found.kind, found.rank, found.tone)


def _placed(box: Box, x: Array, y: Array, a: Array, b: Array, angle: Array, kind: Array | int, tone: Array) -> Nuclei:
    """Those of a layer that lie in the box; earlier kinds outrank later ones."""
    kind = np.broadcast_to(kind, x.shape)
    rank = np.where(kind == MITOSIS, TUMOUR_CELL, kind) + (tone * 1e4) % 1.0
    return Nuclei(x, y, a, b, angle, kind, rank, tone % 1.0).kept(_inside(box, x, y))


def _inside(box: Box, x: Array, y: Array) -> Array:
    return (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])


def _at(anatomy: Anatomy, found: Nuclei, box: Box) -> Regions:
    return anatomy.regions(found.x, found.y, box)
