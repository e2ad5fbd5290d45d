"""A window of a slide as concentrations of stains in every pixel, with its label maps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from medgen.data.phantom.histology import tissue as t
from medgen.data.phantom.histology.cells import (
    ADIPOCYTE,
    GLAND_CELL,
    GOBLET,
    HALO,
    KINDS,
    LYMPHOCYTE,
    MITOSIS,
    TUMOUR_CELL,
    Nuclei,
    nuclei,
    red_cells,
)
from medgen.data.phantom.histology.fields import Window
from medgen.data.phantom.histology.tissue import Anatomy, Regions
from medgen.data.phantom.shapes import Array, cover, ellipsoid

STAINS = ("hematoxylin", "eosin", "blood")
_FAR = -50.0
_SHAPE = ("x", "y", "a", "b", "angle", "kind", "tone")
_OUTLINE = {"tumour": 0.55}  # micrometres by which nuclei depart from ellipses


@dataclass(frozen=True)
class Tile:
    """What a window shows, before any light.

    Attributes:
        stains: concentration of every stain of STAINS (3, H + 2 border, W + 2 border), float32; 1 is a well stained nucleus, cytoplasm
            or red cell.
        tissue: index into `tissue.TISSUES` (H, W), int64.
        instances: 0 outside nuclei, else the number of the nucleus from 1 on (H, W), int64.
        kinds: index into `cells.KINDS` of nucleus 1, 2, ... (N,).
        border: pixels around the window that the optics need.
    """

    stains: Array
    tissue: Array
    instances: Array
    kinds: Array
    border: int = 0

    def inner(self, image: Array) -> Array:
        """(..., H, W) of an image with the border."""
        return image[..., self.border : image.shape[-2] - self.border, self.border : image.shape[-1] - self.border]


def paint(anatomy: Anatomy, window: Window, border: int = 0) -> Tile:
    """Draw a window: tissue first, then the nuclei over it."""
    window = window.grown(border)
    regions = anatomy.regions(*window.axes, window.box)
    found = nuclei(anatomy, window)
    imprint = _Imprint(anatomy, window, found)
    stains = _connective(anatomy, window, regions)
    _cells_between(anatomy, window, regions, imprint.goblet, stains)
    _blood(anatomy, window, regions, stains)
    _outside(anatomy, window, regions, stains)
    _chromatin(anatomy, window, found, imprint, stains)
    stains *= 1 + 0.05 * anatomy.noise.at(t.THICKNESS, *window.axes, 70.0)
    tile = Tile(np.maximum(stains, 0, out=stains), labels(regions), imprint.owner + 1, found.kind.astype(np.int64), border)
    instances, kinds = _renumbered(tile.inner(tile.instances), tile.kinds)
    return replace(tile, tissue=tile.inner(tile.tissue), instances=instances, kinds=kinds)


class _Imprint:
    """The nuclei pressed onto the pixels: which one a pixel belongs to or is next to, and how deep it lies in it.

    The plane is bent a little first, the same way for all: outlines are uneven, and shapes that were disjoint stay so.
    """

    def __init__(self, anatomy: Anatomy, window: Window, found: Nuclei):
        amount = _OUTLINE.get(t.CLASSES[anatomy.key[2]], 0.3) * (0.7 + 0.6 * anatomy.traits.grade)
        x, y = window.axes
        self.x = (x + amount * anatomy.noise.at(t.OUTLINE_X, *window.axes, 4.5)).astype(np.float32)
        self.y = (y + amount * anatomy.noise.at(t.OUTLINE_Y, *window.axes, 4.5)).astype(np.float32)
        self.depth = np.full(window.shape, _FAR, np.float32)
        self.nearest = np.zeros(window.shape, np.int64)
        self.spot = np.zeros(window.shape, np.float32)
        self.goblet = np.full(window.shape, _FAR, np.float32)
        self._mucin = anatomy.traits.mucin
        for number, shape in enumerate(zip(*(getattr(found, name).tolist() for name in _SHAPE), strict=True)):
            self._press(window, number, *shape)

    @property
    def owner(self) -> Array:
        """Index of the nucleus of every pixel, -1 outside."""
        return np.where(self.depth > 0, self.nearest, -1)

    def _press(self, window: Window, number: int, cx: float, cy: float, a: float, b: float, angle: float, kind: int, tone: float) -> None:
        place = _around(window, cx, cy, a + HALO)
        dx, dy = self.x[place] - cx, self.y[place] - cy
        if not dx.size:
            return
        c, s = math.cos(angle), math.sin(angle)
        along, across = (c * dx + s * dy).ravel(), (c * dy - s * dx).ravel()
        depth = ellipsoid((along, across, np.zeros_like(along)), (0, 0, 0), (a, b, 1.0)).reshape(dx.shape)
        deeper = depth > self.depth[place]
        self.depth[place][deeper] = depth[deeper]
        self.nearest[place][deeper] = number
        if kind == GLAND_CELL and tone < self._mucin:
            self._fill_goblet(window, cx - GOBLET * c, cy - GOBLET * s, c, s)
        if kind in (TUMOUR_CELL, GLAND_CELL):
            size, off = (0.55 + 0.75 * tone, 0.45 * a * (2 * ((tone * 7) % 1) - 1)) if kind == TUMOUR_CELL else (0.5, 0.0)
            spot = cover(size - np.hypot(along - off, across - 0.3 * b * (2 * tone - 1)), max(window.mpp, 0.4))
            self.spot[place] = np.where(deeper, spot.reshape(dx.shape), self.spot[place])

    def _fill_goblet(self, window: Window, cx: float, cy: float, c: float, s: float) -> None:
        """The drop of mucin of a gland cell, between its nucleus and the lumen."""
        place = _around(window, cx, cy, 7.0)
        dx, dy = self.x[place] - cx, self.y[place] - cy
        if dx.size:
            points = (c * dx + s * dy).ravel(), (c * dy - s * dx).ravel()
            depth = ellipsoid((*points, np.zeros(dx.size, np.float32)), (0, 0, 0), (5.4, 2.9, 1.0)).reshape(dx.shape)
            self.goblet[place] = np.maximum(self.goblet[place], depth)


def _around(window: Window, cx: float, cy: float, reach: float) -> tuple[slice, slice]:
    (x0, y0), (rows, columns) = window.origin, window.shape
    spans = ((cy - y0, rows), (cx - x0, columns))
    return tuple(slice(max(0, int((at - reach) / window.mpp)), max(0, min(n, int((at + reach) / window.mpp) + 2))) for at, n in spans)


def _connective(anatomy: Anatomy, window: Window, regions: Regions) -> Array:
    """Collagen: eosin in wavy fibres and bundles, with gaps between them."""
    noise, layout = anatomy.noise, anatomy.layout
    across = regions.across + 0.5 * noise.at(t.OUTLINE_X, *window.axes, 6.0)
    fibre = 0.7 * noise.at(t.FIBRE, across, regions.along, (2.4, 17.0))
    fibre += 0.5 * noise.at(t.FILAMENT, across, regions.along, (0.9, 7.0)) + 0.25 * noise.at(t.GRAIN, *window.axes, 0.9)
    bundle = noise.at(t.BUNDLE, across, regions.along, (10.0, 42.0))
    split = 0.75 * noise.at(t.SPLIT, across, regions.along, (3.4, 24.0)) + 0.6 * bundle + 0.2 * fibre
    gap = np.clip((np.float32(t.quantile(layout.loose)) - split) * 3.0, 0, 1)
    eosin = (0.62 + 0.10 * fibre + 0.13 * bundle) * (1 - 0.93 * gap)
    hematoxylin = (0.07 + 0.02 * noise.at(t.CYTOPLASM, *window.axes, 9.0)) * (1 - 0.9 * gap)
    return np.stack([hematoxylin, eosin, np.zeros_like(eosin)]).astype(np.float32)


def _cells_between(anatomy: Anatomy, window: Window, regions: Regions, goblets: Array, stains: Array) -> None:
    """Cytoplasm of glands and nests, lumina, mucin, fat."""
    noise, mpp = anatomy.noise, window.mpp
    grain = noise.grain(t.GRAIN, *window.axes, 1.0)
    patchy = noise.grain(t.CYTOPLASM, *window.axes, 9.0)
    if anatomy.layout.glands:
        _lay(stains, cover(regions.gland, mpp + 0.5), 0.20 + 0.03 * grain + 0.03 * patchy, 0.50 + 0.06 * grain + 0.05 * patchy)
        _lay(stains, cover(goblets, mpp + 0.5), 0.16 + 0.025 * grain, 0.09 + 0.02 * grain)
        secretion = 0.05 * np.clip(patchy + 0.2 * grain, 0, None)
        _lay(stains, cover(regions.lumen, mpp + 0.4), 0.4 * secretion, secretion)
        stains[1] += 0.28 * np.exp(-np.square(regions.lumen / 0.9)) + 0.14 * np.exp(-np.square((regions.gland + 0.8) / 1.0))
    if anatomy.layout.nests:
        blue = 0.22 + 0.12 * anatomy.traits.grade
        _lay(stains, cover(regions.nest, mpp + 1.0), blue + 0.035 * grain + 0.05 * patchy, 0.47 + 0.06 * grain + 0.09 * patchy)
        cleft = np.exp(-np.square((regions.nest + 1.5) / 1.3)) * np.clip(0.5 * noise.at(t.CLEFT, *window.axes, 22.0), 0, 1)
        stains *= 1 - 0.85 * cleft
    if anatomy.layout.fat:
        _lay(stains, cover(regions.fat, 2.0), np.float32(0.01), np.float32(0.015))
        _lay(stains, cover(np.minimum(regions.wall, regions.fat), mpp), np.float32(0.06), 0.55 + 0.05 * grain)


def _blood(anatomy: Anatomy, window: Window, regions: Regions, stains: Array) -> None:
    """Vessels: a wall, pale plasma and red cells."""
    if regions.vessel.max() < -6:
        return
    _lay(stains, cover(regions.vessel + 3.0, window.mpp + 0.8), np.float32(0.12), np.float32(0.66))
    _lay(stains, cover(regions.vessel, window.mpp + 0.2), np.float32(0.02), np.float32(0.07))
    depth = np.full(window.shape, _FAR, np.float32)
    x, y = (np.float32(v) for v in window.axes)
    for cx, cy in zip(*red_cells(anatomy, window), strict=True):
        place = _around(window, cx, cy, 4.0)
        disc = np.float32(3.25) - np.hypot(x[:, place[1]] - np.float32(cx), y[place[0]] - np.float32(cy))
        depth[place] = np.maximum(depth[place], disc)
    pale = 0.25 * np.exp(-np.square((depth - 3.2) / 1.4))
    _lay(stains, cover(depth, window.mpp + 0.3), np.float32(0.0), np.float32(0.32), 0.95 - pale)


def _outside(anatomy: Anatomy, window: Window, regions: Regions, stains: Array) -> None:
    """Bare glass beyond the edge of the tissue."""
    stains *= cover(regions.edge, window.mpp + 1.0)


def _chromatin(anatomy: Anatomy, window: Window, found: Nuclei, imprint: _Imprint, stains: Array) -> None:
    """Nuclei: chromatin of the texture of their kind, a membrane, nucleoli, and a paler rim of cytoplasm around some."""
    if not len(found):
        return
    kind, tone = found.kind.astype(int)[imprint.nearest], found.tone.astype(np.float32)[imprint.nearest]
    base, contrast, membrane, nucleolus, halo, softness = (column[kind] for column in _looks(anatomy))
    clump = 0.8 * anatomy.noise.grain(t.CHROMATIN, *window.axes, 1.4) + 0.6 * anatomy.noise.at(t.GRAIN, *window.axes, 0.7)
    depth = imprint.depth
    blurred = softness * (0.6 + 1.6 * ((tone * 13) % 1) ** 3)
    inside = cover(depth, window.mpp + blurred)
    hematoxylin = base * (0.82 + 0.36 * tone) * (1 + contrast * clump) + membrane * np.exp(-np.square((depth - 0.35) / 0.5))
    hematoxylin += nucleolus * imprint.spot
    stains *= 1 - halo * np.exp(-np.square(np.minimum(depth + 0.8, 0) / 1.3)) * (1 - inside)
    _lay(stains, inside, hematoxylin, 0.16 + 0.3 * stains[1])


def _looks(anatomy: Anatomy) -> Array:
    """Per kind: hematoxylin, contrast of its texture, membrane, nucleolus, halo, softness of the edge in micrometres."""
    vesicular = anatomy.traits.vesicular
    looks = np.zeros((len(KINDS), 6), np.float32)
    looks[:] = (1.02, 0.16, 0.15, 0.0, 0.0, 0.5)
    looks[GLAND_CELL] = (0.80, 0.20, 0.26, 0.20, 0.10, 0.5)
    looks[TUMOUR_CELL] = (0.92 - 0.34 * vesicular, 0.24, 0.15 + 0.28 * vesicular, 0.35 + 0.4 * vesicular, 0.25, 0.5)
    looks[MITOSIS] = (1.7, 0.12, 0.0, 0.0, 0.6, 0.4)
    looks[LYMPHOCYTE] = (1.22, 0.20, 0.15, 0.0, 0.35, 0.4)
    looks[ADIPOCYTE] = (0.95, 0.12, 0.1, 0.0, 0.0, 0.4)
    return looks.T


def _lay(stains: Array, alpha: Array, hematoxylin: Array, eosin: Array, blood: Array | float = 0.0) -> None:
    """Replace the fraction `alpha` of what is in every pixel."""
    stains *= 1 - alpha
    for plane, amount in zip(stains, (hematoxylin, eosin, blood), strict=True):
        plane += alpha * amount


def labels(regions: Regions) -> Array:
    """Index into `tissue.TISSUES` at every point."""
    found = np.where(regions.crowd > 0, t.LYMPHOID, t.STROMA)
    for depth, name in (
        (regions.nest, t.TUMOUR),
        (regions.fat, t.ADIPOSE),
        (regions.gland, t.EPITHELIUM),
        (regions.lumen, t.LUMEN),
        (regions.vessel, t.BLOOD),
        (-regions.edge, t.BACKGROUND),
    ):
        found[depth > 0] = name
    return found


def _renumbered(instances: Array, kinds: Array) -> tuple[Array, Array]:
    """Numbers without gaps for those that are visible."""
    there = np.zeros(len(kinds) + 1, np.int64)
    there[np.unique(instances)] = 1
    there[0] = 0
    return (there.cumsum() * there)[instances], kinds[there[1:] > 0]
