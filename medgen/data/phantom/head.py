"""Where things are in the phantom's head, in millimetres of a standard space (x right, y anterior, z superior, near MNI).

Coordinates are typical adult positions read off anatomy atlases and published stereotaxic tables by eye; `a` is |x|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.data.phantom.shapes import Array, Points, Tube, Waves, beyond, ellipsoid, smooth_max, smooth_min

HORN = Tube(
    ((16, 32, 5, 1.6), (11.5, 23, 9, 5.2), (7.5, 8, 16, 5.6), (7.5, -8, 20.5, 4.8), (12, -25, 19.5, 5), (22, -39, 11, 6.6)), (0.85, 1, 1.15)
)
OCCIPITAL = Tube(((22, -39, 11, 6.6), (26, -54, 6, 4), (23, -76, 4, 0.8)), (0.8, 1, 1.2))
TEMPORAL = Tube(((22, -39, 11, 6.6), (31, -38, -2, 3), (35, -22, -13, 2), (30, -8, -19, 1.8)))
CAUDATE = Tube(((12, 20, -3, 5.5), (15.5, 14, 7, 7), (17.5, -2, 18, 4.4), (21, -22, 20, 2.8), (29, -38, 10, 1.6)), (0.8, 1.1, 1.1))
PUTAMEN = Tube(((20, 15, -3, 6), (25, 5, 2, 8.2), (29, -8, 4, 7), (32, -18, 4, 3.4)), (0.7, 1, 1.35))
PALLIDUM = Tube(((15.5, 4, -2, 4), (19.5, -5, 0, 6), (23, -13, 1, 3)), (0.75, 1, 1.3))
THALAMUS = Tube(((7, -6, 6, 5.5), (11, -17, 7, 9.6), (16, -26, 6, 8)), (0.9, 1, 1))
HIPPOCAMPUS = Tube(((23, -8, -20, 5.4), (28, -18, -16, 4.2), (29, -30, -8, 3.4), (23, -38, 0, 2.6)))
CALLOSUM = Tube(
    ((0, 21, -5, 1.4), (0, 28, 3, 4.2), (0, 20, 16, 4), (0, 4, 24, 3.2), (0, -16, 26, 2.8), (0, -31, 21, 3.2), (0, -39, 14, 4.6))
)
STEM = Tube(
    ((0, -17, -2, 11), (0, -23, -14, 12), (0, -25, -29, 13.5), (0, -31, -43, 10), (0, -40, -60, 6.6), (0, -45, -120, 5.6)), (1.15, 1, 1)
)
PEDUNCLE = Tube(((11, -30, -30, 7), (22, -48, -36, 6)))
FOURTH = Tube(((0, -36, -22, 1.2), (0, -41, -32, 4), (0, -47, -44, 2)), (1.5, 0.9, 1))
AQUEDUCT = Tube(((0, -26, 2, 1.2), (0, -31, -8, 0.9), (0, -36, -22, 1.2)))
NECK = Tube(((0, -50, -50, 58), (0, -55, -160, 56)))


@dataclass(frozen=True)
class Hull:
    """Depths (mm, positive inside) of the smooth outlines of one set of points.

    Attributes:
        cerebrum: both hemispheres with the temporal lobes, before the fissure between them is cut.
        cerebellum, stem, inner: cerebellum, brain stem, inner table of the skull.
    """

    cerebrum: Array
    cerebellum: Array
    stem: Array
    inner: Array

    def at(self, index: Array) -> Hull:
        """The same for some of the points."""
        return Hull(self.cerebrum[index], self.cerebellum[index], self.stem[index], self.inner[index])


def hull(p: Points, gap: float) -> Hull:
    """The outlines; `gap` (mm) is the CSF between the brain and the skull."""
    x, y, z = p
    a = np.abs(x)
    cerebellum = _cerebellum(a, y, z)
    stem = STEM.depth(p)
    whole = _cerebrum(a, y, z)
    inner = smooth_max(smooth_max(whole, cerebellum, 14.0), stem - 2.0, 20.0) + gap
    cistern = smooth_max(ellipsoid(p, (0, -2, -26), (20, 14, 16)), ellipsoid(p, (0, -40, -2), (7, 4, 7)), 3.0)
    away = np.minimum(-2.2 - cerebellum, np.maximum(-2.6 - stem, z + 9.0 + 0.35 * (y + 20.0)))
    cerebrum = smooth_min(smooth_min(whole, away, 3.0), -cistern, 4.0)
    return Hull(cerebrum, cerebellum, stem, inner)


def _cerebrum(a: Array, y: Array, z: Array) -> Array:
    taper = a / (1.0 - 0.0007 * (y + 22.0))
    main = ellipsoid((taper, y, z), (0, -17, 12), (67.5, 87, 67))
    base = z + 24.0 + 1.0 * np.tanh((y - 2.0) / 18.0) + 0.05 * a
    main = smooth_min(main, base, 16.0)
    tilted = z + 0.2 * (y + 15.0)
    temporal = ellipsoid((a, y, tilted), (44, -14, -20), (23.5, 40, 24))
    return smooth_max(main, temporal, 5.0)


def _cerebellum(a: Array, y: Array, z: Array) -> Array:
    half = ellipsoid((a, y, z + 0.25 * (a - 24.0)), (24, -62, -38), (30, 29, 23))
    return smooth_max(half, ellipsoid((a, y, z), (0, -60, -33), (13, 24, 22)), 7.0)


def core(p: Points) -> Array:
    """Depth into the part around the third ventricle that the fissure between the hemispheres does not reach."""
    return ellipsoid((p[0] * 0.2, p[1], p[2]), (0, -7, 7), (40, 40, 22))


def fissure(p: Points, sway: Array) -> Array:
    """Distance from the sheet between the hemispheres; `sway` (mm) bends it."""
    inside = np.maximum(core((np.zeros_like(p[0]), p[1], p[2])), -12.0 - p[2])
    return beyond(np.abs(p[0] + sway), inside)


def sylvian(p: Points, bend: Array) -> tuple[Array, Array]:
    """Distances from the sheet that leads to the insula, and from the one that covers the insula; `bend` (mm) lifts them."""
    a, y, z = np.abs(p[0]), p[1], p[2]
    level = -2.0 - 0.52 * y + 0.10 * (a - 40.0) + bend
    entrance = beyond(np.abs(z - level) * 0.9, 38.0 - a, y - 22.0, -46.0 - y)
    wall = 37.0 + 0.012 * np.square(z - 3.0) - 0.010 * np.square(y)
    insula = beyond(np.abs(a - wall), np.abs(z - level + 1.0) - 11.0, np.abs(y + 2.0) - 20.0)
    return entrance, insula


def ventricles(p: Points, grow: float) -> Array:
    """Depth into the ventricles; `grow` (mm) widens the lateral and third ones."""
    q = (np.abs(p[0]), p[1], p[2])
    lateral = np.maximum(HORN.depth(q, grow), OCCIPITAL.depth(q, grow * 0.8))
    lateral = np.minimum(np.maximum(lateral, TEMPORAL.depth(q, grow * 0.5)), q[0] - 0.4)
    third = ellipsoid(p, (0, -8, 2), (2.4 + 0.6 * grow, 15, 10))
    fourth = np.maximum(FOURTH.depth(p, grow * 0.4), AQUEDUCT.depth(p))
    return np.maximum(np.maximum(lateral, third), fourth)


def nuclei(p: Points, grow: float) -> Array:
    """Depth into caudate, putamen, pallidum, thalamus and hippocampus; wide ventricles push the caudate aside."""
    q = (np.abs(p[0]), p[1], p[2])
    pushed = (q[0] - 0.5 * grow, q[1], q[2])
    depth = np.maximum(CAUDATE.depth(pushed), PUTAMEN.depth(q))
    return np.maximum(np.maximum(depth, THALAMUS.depth(q)), HIPPOCAMPUS.depth(q))


def pallidum(p: Points) -> Array:
    """Depth into the globus pallidus, which is brighter than the putamen on T1."""
    return PALLIDUM.depth((np.abs(p[0]), p[1], p[2]))


def below_thalamus(p: Points) -> Array:
    """Depth into the part around the upper midbrain that has no cortex although it borders on CSF."""
    return ellipsoid(p, (0, -16, -3), (20, 20, 10))


def callosum(p: Points) -> Array:
    """Depth into the corpus callosum: an arch over the ventricles that fades out sideways."""
    a = np.abs(p[0])
    return np.minimum(CALLOSUM.depth((np.zeros_like(a), p[1] + 0.2 * a, p[2])), 15.0 - a)


def stem_white(p: Points) -> Array:
    """Depth into the peduncles between pons and cerebellum."""
    return PEDUNCLE.depth((np.abs(p[0]), p[1], p[2]))


def folia(p: Points, wobble: Array) -> Array:
    """Distance from the thin sheets between the leaves of the cerebellum: a fan around the fourth ventricle."""
    a, y, z = np.abs(p[0]), p[1], p[2]
    y0, z0 = y + 40.0 - 0.25 * a, z + 34.0
    radius = np.sqrt(y0 * y0 + z0 * z0) + 1e-3
    turns = np.arctan2(z0, -y0) * 6.0 + 0.045 * a + wobble
    saw = np.abs(turns - np.round(turns))
    return saw * np.minimum(radius, 30.0) * (1 / 6.0)


def folds(p: Points, waves: Waves, shift: Array) -> Array:
    """Distance from the sulcal sheets: zero level of a random field that changes along the surface and little with depth.

    For n = A sin(k s), atan(k |n| / |grad n|) / k is the distance s exactly; it stays finite where the gradient vanishes.
    """
    side = np.where(p[0] < 0, -1.0, 1.0).astype(np.float32)
    d = (np.abs(p[0]) - 26.0, p[1] + 17.0, p[2] - 10.0)
    u = np.sqrt(np.square(d[0] / np.where(d[0] > 0, 42.0, 26.0)) + np.square(d[1] / 86.0) + np.square(d[2] / 60.0)) + 0.05
    keep = 0.5
    stretch = u ** (keep - 1.0)
    q = tuple((v * stretch).astype(np.float32) for v in d)
    value, slope = waves.with_gradient(q, side[:, None] * shift)
    norm2 = d[0] ** 2 + d[1] ** 2 + d[2] ** 2 + 1.0
    radial2 = (slope[:, 0] * d[0] + slope[:, 1] * d[1] + slope[:, 2] * d[2]) ** 2 / norm2
    steep = stretch * np.sqrt(np.maximum(np.square(slope).sum(1) - (1 - keep**2) * radial2, 1e-9))
    k = float(np.sqrt(np.square(waves.k).sum(1).mean())) * stretch
    return np.arctan2(k * np.abs(value), steep) / k
