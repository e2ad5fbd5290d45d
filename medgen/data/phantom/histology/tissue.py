"""Where what tissue is: depths in micrometres below the surfaces of glands, nests, fat cells and vessels, at any points of a slide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom.histology.fields import Noise, scatter
from medgen.data.phantom.shapes import Array, ellipsoid

CLASSES = ("glands", "stroma", "inflammation", "tumour", "adipose")
TISSUES = ("background", "lumen", "epithelium", "stroma", "lymphoid", "tumour", "adipose", "blood")
BACKGROUND, LUMEN, EPITHELIUM, STROMA, LYMPHOID, TUMOUR, ADIPOSE, BLOOD = range(len(TISSUES))
_FAR = -200.0
_REACH = 60.0  # how far around a gland or a vessel fibres bend

# names of the random fields of a slide, for `Noise`
WARP_X, WARP_Y, BEND, CRIMP, NESTS, CROWD, SCALLOP, THICKNESS, EDGE = range(9)
FIBRE, FILAMENT, BUNDLE, SPLIT, CHROMATIN, GRAIN, OUTLINE_X, OUTLINE_Y, CYTOPLASM, CLEFT = range(9, 19)


@dataclass(frozen=True)
class Layout:
    """What a class of tissue is made of. Lengths in micrometres.

    Attributes:
        glands: spacing of the lattice that glands lie on; 0 for none. radius: their smallest and largest. height: of the epithelium.
        nests: what share of the area tumour nests take; 0 for none.
        fat: spacing of fat cells; 0 for none.
        vessels: share of the places of a 120 micrometre lattice that have one.
        stroma: spacing of the spindle cells' lattice.
        lymphocytes: spacing of their lattice. crowd: above which level of a smooth field of standard deviation 1 they gather.
        stray: share of the places outside the crowd that have one.
        loose: share of the area of stroma that is empty, between bundles of collagen.
    """

    glands: float = 0.0
    radius: tuple[float, float] = (34.0, 52.0)
    height: float = 20.0
    nests: float = 0.0
    fat: float = 0.0
    vessels: float = 0.25
    stroma: float = 17.0
    lymphocytes: float = 10.5
    crowd: float = 2.2
    stray: float = 0.04
    loose: float = 0.12


LAYOUTS = {
    "glands": Layout(glands=112.0, vessels=0.1, stroma=15.0, crowd=1.5, stray=0.12),
    "stroma": Layout(vessels=0.3, stroma=21.0, stray=0.015, loose=0.16),
    "inflammation": Layout(vessels=0.15, lymphocytes=9.0, crowd=-0.6, stray=0.12, loose=0.3),
    "tumour": Layout(nests=0.6, vessels=0.2, stroma=16.0, crowd=1.2, stray=0.08),
    "adipose": Layout(fat=62.0, vessels=0.12, stray=0.05, crowd=2.5),
}


@dataclass(frozen=True)
class Traits:
    """What differs between subjects.

    Attributes:
        mix: probability of every class (5,). turn: main direction of the fibres in radians.
        size: of nuclei, relative. grade: of tumour nuclei, 0 (even) to 1 (pleomorphic). mitoses: share of tumour nuclei that divide.
        mucin: share of gland cells with a goblet. height, crowding: relative, of gland epithelium and of all cells.
        vesicular: how pale tumour nuclei are inside.
        shade: natural logarithms of the subject's own strength of hematoxylin, eosin and blood. tint: shift of its stain vectors (3, 3).
    """

    mix: Array
    turn: float
    size: float
    grade: float
    mitoses: float
    mucin: float
    height: float
    crowding: float
    vesicular: float
    shade: Array
    tint: Array


def draw_traits(seed: int, index: int) -> Traits:
    """The traits of one subject."""
    rng = generator(seed, index, 1)
    mix = rng.gamma(1.2, size=len(CLASSES)) + 0.05
    return Traits(
        mix=mix / mix.sum(),
        turn=float(rng.uniform(0, np.pi)),
        size=float(np.exp(0.08 * np.clip(rng.standard_normal(), -2, 2))),
        grade=float(rng.beta(1.5, 1.5)),
        mitoses=float(0.035 * rng.random() ** 2),
        mucin=float(rng.beta(1.2, 1.8)),
        height=float(rng.uniform(0.85, 1.25)),
        crowding=float(np.exp(0.1 * np.clip(rng.standard_normal(), -2, 2))),
        vesicular=float(rng.random()),
        shade=(np.clip(rng.standard_normal(3), -2, 2) * (0.13, 0.16, 0.1)).astype(np.float32),
        tint=(np.clip(rng.standard_normal((3, 3)), -2, 2) * 0.02).astype(np.float32),
    )


@dataclass(frozen=True)
class Sites:
    """Glands or vessels: centres, radii and flattening of discs in the warped plane, and an integer that names each; (N,) all."""

    x: Array
    y: Array
    radius: Array
    flat: Array
    angle: Array
    mark: Array

    def depth(self, x: Array, y: Array) -> Array:
        """Depth below the surface of the nearest of them (any shape); _FAR away where there is none."""
        deepest = np.full(np.shape(x), _FAR, np.float32)
        for cx, cy, radius, flat, angle, _ in self:
            c, s, dx, dy = math.cos(angle), math.sin(angle), x - cx, y - cy
            along, across = c * dx + s * dy, c * dy - s * dx
            inside = ellipsoid((along.ravel(), across.ravel(), _zeros(along.size)), (0, 0, 0), (radius, radius * flat, 1.0))
            np.maximum(deepest, inside.reshape(deepest.shape), out=deepest)
        return deepest

    def __iter__(self) -> Iterator[tuple[float, ...]]:
        """One tuple of plain numbers per site: they leave single precision single."""
        return zip(*(getattr(self, name).tolist() for name in self.__dataclass_fields__), strict=True)

    def near(self, box: tuple[float, float, float, float]) -> Sites:
        """Those that can be felt inside the box, whatever the warp."""
        reach = self.radius + _REACH + 25.0
        across = (self.x > box[0] - reach) & (self.x < box[2] + reach)
        return self.kept(across & (self.y > box[1] - reach) & (self.y < box[3] + reach))

    def kept(self, where: Array) -> Sites:
        return Sites(*(getattr(self, name)[where] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Regions:
    """Depths (any shape) below the surfaces of the tissues, positive inside, and the coordinates across and along the fibres.

    `crowd` is a level and not a depth: lymphocytes gather where it is positive. `edge` is the depth inside the whole piece of tissue.
    """

    gland: Array
    lumen: Array
    nest: Array
    wall: Array
    fat: Array
    vessel: Array
    crowd: Array
    edge: Array
    across: Array
    along: Array

    @property
    def stroma(self) -> Array:
        """Depth below the surface of connective tissue."""
        return np.minimum(self.edge, -np.maximum.reduce([self.gland, self.nest, self.vessel, self.fat]))


class Anatomy:
    """The plane of one class of tissue of subject `index`: everything about it except its cells."""

    def __init__(self, seed: int, index: int, name: str):
        self.key = (int(seed), int(index), CLASSES.index(name))
        self.traits = draw_traits(seed, index)
        self.layout = LAYOUTS[name]
        self.noise = Noise(*self.key, 2)
        self._threshold = quantile(1 - self.layout.nests) if self.layout.nests else 0.0

    def warp(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Positions in the plane in which glands, vessels and fat cells are round; off by about 6 micrometres."""
        at = self.noise.at
        return (
            (x + 5.5 * at(WARP_X, x, y, 42.0) + 1.2 * at(WARP_X, x, y, 11.0)).astype(np.float32),
            (y + 5.5 * at(WARP_Y, x, y, 42.0) + 1.2 * at(WARP_Y, x, y, 11.0)).astype(np.float32),
        )

    def unwarp(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The inverse of `warp`, by fixed-point iteration."""
        u, v = x, y
        for _ in range(6):
            p, q = self.warp(u, v)
            u, v = u + (x - p), v + (y - q)
        return u, v

    def glands(self, box: tuple[float, float, float, float]) -> Sites:
        layout = self.layout
        if not layout.glands:
            return _none()
        x, y, (size, flat, angle) = scatter((*self.key, 3), _padded(box, 150.0), layout.glands, 3, jitter=0.25, block=4)
        low, high = layout.radius
        return Sites(x, y, low + (high - low) * size, 0.72 + 0.28 * flat, np.pi * angle, _mark(size)).near(box)

    def vessels(self, box: tuple[float, float, float, float]) -> Sites:
        x, y, (there, size, flat, angle) = scatter((*self.key, 4), _padded(box, 120.0), 120.0, 4, jitter=0.7, block=4)
        sites = Sites(x, y, 6.0 + 16.0 * size**2, 0.45 + 0.5 * flat, np.pi * angle, _mark(size))
        return sites.kept(there < self.layout.vessels).near(box)

    def regions(self, x: Array, y: Array, box: tuple[float, float, float, float]) -> Regions:
        """All depths at points inside the box."""
        u, v = self.warp(x, y)
        gland = self.glands(box).depth(u, v)
        nest = self._nests(x, y)
        wall, fat = self._fat(u, v, box)
        vessel = np.minimum(self.vessels(box).depth(u, v), -np.maximum(gland, np.maximum(nest, fat)) - 4.0)
        across, along = self._fibres(x, y, gland, vessel)
        crowd = self.noise.at(CROWD, x, y, 55.0) - self.layout.crowd
        height = self.layout.height * self.traits.height
        lumen = gland - height - 1.5 * self.noise.at(SCALLOP, x, y, 5.0)
        edge = 150.0 * (self.noise.at(EDGE, x, y, 420.0) + 1.5) + 3.0 * self.noise.at(EDGE, x, y, 12.0)
        return Regions(gland, lumen, nest, wall, fat, vessel, crowd, edge, across, along)

    def direction(self, x: Array, y: Array, box: tuple[float, float, float, float]) -> Array:
        """Angle of the fibres at points (N,), from the slope of the coordinate across them."""
        here = self.regions(x, y, box).across
        right, down = self.regions(x + 0.5, y, box).across - here, self.regions(x, y + 0.5, box).across - here
        return np.arctan2(right, -down)

    def _nests(self, x: Array, y: Array) -> Array:
        if not self.layout.nests:
            return np.full(np.broadcast_shapes(np.shape(x), np.shape(y)), _FAR, np.float32)
        coarse, fine = self.noise.at(NESTS, x, y, 75.0), self.noise.at(NESTS, x, y, 21.0)
        return 34.0 * ((coarse + 0.25 * fine) / np.float32(np.hypot(1, 0.25)) - self._threshold)

    def _fat(self, u: Array, v: Array, box: tuple[float, float, float, float]) -> tuple[Array, Array]:
        """Depth in the walls between fat cells and inside the lobule: cells are the nearest of scattered points."""
        if not self.layout.fat:
            return (np.full(np.shape(u), _FAR, np.float32),) * 2
        x, y, _ = scatter((*self.key, 5), _padded(box, 110.0), self.layout.fat, 0, jitter=0.75, block=4)
        near = np.full((3, *np.shape(u)), 1e8, np.float32)
        for cx, cy in zip(x, y, strict=True):
            distance = np.square(u - np.float32(cx)) + np.square(v - np.float32(cy))
            near[2] = np.minimum(near[2], np.maximum(distance, near[1]))
            near[1] = np.minimum(near[1], np.maximum(distance, near[0]))
            near[0] = np.minimum(near[0], distance)
        first, second, third = np.sqrt(near)
        corner = np.maximum(0, 7.0 - 0.5 * (third - first))
        septum = 26.0 * (self.noise.at(NESTS, u, v, 150.0) + 1.3)
        return np.minimum(0.55 + 0.12 * corner - 0.5 * (second - first), septum), septum.astype(np.float32)

    def _fibres(self, x: Array, y: Array, gland: Array, vessel: Array) -> tuple[Array, Array]:
        """Coordinates whose level lines are the fibres; they bend, crimp, and run around glands and vessels."""
        c, s = np.cos(self.traits.turn), np.sin(self.traits.turn)
        along = c * x + s * y
        across = c * y - s * x + 26.0 * self.noise.at(BEND, x, y, 95.0) + 1.6 * self.noise.at(CRIMP, x, y, 15.0)
        near = np.maximum(1 + np.minimum(np.maximum(gland, vessel), 0.0) / _REACH, 0.0)
        return across + 30.0 * np.square(near), along


def _padded(box: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _none() -> Sites:
    return Sites(*np.zeros((6, 0)))


def _mark(uniform: Array) -> Array:
    return (uniform * (1 << 52)).astype(np.int64)


def _zeros(count: int) -> Array:
    return np.zeros(count, np.float32)


def quantile(share: float) -> float:
    """The level below which a standard normal field takes that share of the area."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)
