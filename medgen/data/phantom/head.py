"""Where things are in the phantom's head, in millimetres of a standard space (x right, y anterior, z superior, near MNI).

Coordinates are typical adult positions read off anatomy atlases and published stereotaxic tables by eye; `a` is |x|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.data.phantom.shapes import Array, Points, Waves, beyond, ellipsoid, smooth_max, smooth_min, tube

LATERAL_VENTRICLE = (
    (
        (7.0, 31.0, 5.0, 1.8),
        (9.0, 22.0, 9.0, 4.0),
        (9.5, 8.0, 16.0, 4.6),
        (9.5, -10.0, 21.0, 4.2),
        (13.0, -28.0, 20.0, 4.6),
        (22.0, -41.0, 11.0, 6.0),
    ),
    ((22.0, -41.0, 11.0, 6.0), (26.0, -56.0, 6.0, 3.4), (25.0, -76.0, 4.0, 0.8)),
    ((22.0, -41.0, 11.0, 6.0), (31.0, -38.0, -2.0, 2.6), (35.0, -22.0, -13.0, 1.8), (30.0, -8.0, -19.0, 1.6)),
)
CAUDATE = ((10.0, 20.0, 0.0, 5.0), (14.0, 12.0, 8.0, 5.6), (17.0, -4.0, 18.0, 3.4), (20.0, -24.0, 20.0, 2.2), (27.0, -38.0, 10.0, 1.4))
PUTAMEN = ((20.0, 13.0, -3.0, 5.0), (25.0, 4.0, 1.0, 6.4), (29.0, -8.0, 3.0, 5.2), (31.0, -17.0, 3.0, 2.6))
PALLIDUM = ((15.5, 3.0, -2.0, 3.4), (20.0, -5.0, 0.0, 5.0), (24.0, -13.0, 1.0, 2.4))
THALAMUS = ((6.5, -7.0, 6.0, 5.0), (11.0, -18.0, 8.0, 8.0), (16.0, -27.0, 6.0, 6.4))
HIPPOCAMPUS = ((23.0, -8.0, -20.0, 5.4), (28.0, -18.0, -16.0, 4.2), (29.0, -30.0, -8.0, 3.4), (23.0, -38.0, 0.0, 2.6))
CALLOSUM = (
    (0.0, 21.0, -5.0, 1.4),
    (0.0, 28.0, 3.0, 4.2),
    (0.0, 20.0, 16.0, 4.0),
    (0.0, 4.0, 24.0, 3.2),
    (0.0, -16.0, 26.0, 2.8),
    (0.0, -31.0, 21.0, 3.2),
    (0.0, -39.0, 14.0, 4.6),
)
STEM = (
    (0.0, -17.0, -2.0, 11.0),
    (0.0, -23.0, -14.0, 12.0),
    (0.0, -25.0, -29.0, 13.5),
    (0.0, -31.0, -43.0, 10.0),
    (0.0, -40.0, -60.0, 6.6),
    (0.0, -45.0, -120.0, 5.6),
)
PEDUNCLE = ((11.0, -30.0, -30.0, 7.0), (22.0, -48.0, -36.0, 6.0))
FOURTH = ((0.0, -36.0, -22.0, 1.2), (0.0, -41.0, -32.0, 4.0), (0.0, -47.0, -44.0, 2.0))
AQUEDUCT = ((0.0, -26.0, 2.0, 1.2), (0.0, -31.0, -8.0, 0.9), (0.0, -36.0, -22.0, 1.2))


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


def hull(p: Points, gap: float) -> Hull:
    """The outlines; `gap` (mm) is the CSF between the brain and the skull."""
    x, y, z = p
    a = np.abs(x)
    cerebellum = _cerebellum(a, y, z)
    stem = tube((x, y, z), STEM, flat=(1.15, 1.0, 1.0))
    whole = _cerebrum(a, y, z)
    inner = smooth_max(smooth_max(whole, cerebellum, 24.0), stem - 2.0, 24.0) + gap
    cistern = smooth_max(ellipsoid(p, (0, -1, -27), (24, 17, 19)), ellipsoid(p, (0, -41, 1), (9, 8, 8)), 3.0)
    away = np.minimum(-2.2 - cerebellum, np.maximum(-3.0 - stem, z + 7.0))
    cerebrum = smooth_min(smooth_min(whole, away, 3.0), -cistern, 4.0)
    return Hull(cerebrum, cerebellum, stem, inner)


def _cerebrum(a: Array, y: Array, z: Array) -> Array:
    taper = a / (1.0 - 0.0017 * (y + 22.0))
    main = ellipsoid((taper, y, z), (0, -17, 12), (67.5, 87, 67))
    base = z + 17.0 + 6.0 * np.tanh((y - 2.0) / 18.0) + 0.08 * a
    main = smooth_min(main, base, 16.0)
    tilted = z + 0.2 * (y + 15.0)
    temporal = ellipsoid((a, y, tilted), (44, -14, -20), (23.5, 40, 24))
    return smooth_max(main, temporal, 5.0)


def _cerebellum(a: Array, y: Array, z: Array) -> Array:
    half = ellipsoid((a, y, z + 0.25 * (a - 24.0)), (24, -63, -39), (28, 27, 20.5))
    return smooth_max(half, ellipsoid((a, y, z), (0, -62, -33), (12, 21, 20)), 7.0)


def core(p: Points) -> Array:
    """Depth into the part around the third ventricle that the fissure between the hemispheres does not reach."""
    return ellipsoid((p[0] * 0.2, p[1], p[2]), (0, -7, 7), (40, 40, 22))


def fissure(p: Points, sway: Array) -> Array:
    """Distance from the sheet between the hemispheres; `sway` (mm) bends it."""
    inside = np.maximum(core((np.zeros_like(p[0]), p[1], p[2])), -12.0 - p[2])
    return beyond(np.abs(p[0] + sway), inside)


def sylvian(p: Points) -> tuple[Array, Array]:
    """Distances from the sheet that leads to the insula, and from the one that covers the insula."""
    a, y, z = np.abs(p[0]), p[1], p[2]
    level = -2.0 - 0.42 * y + 0.10 * (a - 40.0)
    entrance = beyond(np.abs(z - level) * 0.9, 38.0 - a, y - 22.0, -46.0 - y)
    bend = 37.0 + 0.012 * np.square(z - 3.0) - 0.010 * np.square(y)
    insula = beyond(np.abs(a - bend), np.abs(z - level + 1.0) - 11.0, np.abs(y + 2.0) - 20.0)
    return entrance, insula


def ventricles(p: Points, grow: float) -> Array:
    """Depth into the ventricles; `grow` (mm) widens the lateral and third ones."""
    q = (np.abs(p[0]), p[1], p[2])
    lateral = tube(q, LATERAL_VENTRICLE[0], (0.85, 1, 1.15), grow)
    lateral = np.maximum(lateral, tube(q, LATERAL_VENTRICLE[1], (0.8, 1, 1.2), grow * 0.8))
    lateral = np.maximum(lateral, tube(q, LATERAL_VENTRICLE[2], (1, 1, 1), grow * 0.5))
    lateral = np.minimum(lateral, q[0] - 1.2)
    third = ellipsoid(p, (0, -9, 0), (1.8 + 0.5 * grow, 15, 11))
    fourth = np.maximum(tube(p, FOURTH, (1.5, 0.9, 1), grow * 0.4), tube(p, AQUEDUCT))
    return np.maximum(np.maximum(lateral, third), fourth)


def nuclei(p: Points, grow: float) -> Array:
    """Depth into caudate, putamen, pallidum, thalamus and hippocampus; wide ventricles push the caudate aside."""
    q = (np.abs(p[0]), p[1], p[2])
    pushed = (q[0] - 0.5 * grow, q[1], q[2])
    depth = np.maximum(tube(pushed, CAUDATE, (0.8, 1.1, 1.1)), tube(q, PUTAMEN, (0.72, 1, 1.45)))
    depth = np.maximum(depth, tube(q, THALAMUS, (0.9, 1, 1)))
    return np.maximum(depth, tube(q, HIPPOCAMPUS))


def pallidum(p: Points) -> Array:
    """Depth into the globus pallidus, which is brighter than the putamen on T1."""
    return tube((np.abs(p[0]), p[1], p[2]), PALLIDUM, (0.75, 1, 1.3))


def callosum(p: Points) -> Array:
    """Depth into the corpus callosum: an arch over the ventricles that fades out sideways."""
    a = np.abs(p[0])
    return np.minimum(tube((np.zeros_like(a), p[1] + 0.2 * a, p[2] - 0.0), CALLOSUM), 15.0 - a)


def stem_white(p: Points) -> Array:
    """Depth into the peduncles between pons and cerebellum."""
    return tube((np.abs(p[0]), p[1], p[2]), PEDUNCLE)


def folia(p: Points, wobble: Array) -> Array:
    """Distance from the thin sheets between the leaves of the cerebellum: a fan around the fourth ventricle."""
    a, y, z = np.abs(p[0]), p[1], p[2]
    y0, z0 = y + 40.0 - 0.25 * a, z + 34.0
    radius = np.sqrt(y0 * y0 + z0 * z0) + 1e-3
    turns = np.arctan2(z0, -y0) * 4.6 + 0.035 * a + wobble
    saw = np.abs(turns - np.round(turns))
    return saw * np.minimum(radius, 30.0) * (1 / 4.6)


def folds(p: Points, waves: Waves, shift: Array) -> Array:
    """Distance from the sulcal sheets: zero level of a random field that changes along the surface and little with depth.

    For n = A sin(k s), atan(k |n| / |grad n|) / k is the distance s exactly; it stays finite where the gradient vanishes.
    """
    side = np.where(p[0] < 0, -1.0, 1.0).astype(np.float32)
    d = (np.abs(p[0]) - 26.0, p[1] + 17.0, p[2] - 10.0)
    u = np.sqrt(np.square(d[0] / np.where(d[0] > 0, 42.0, 26.0)) + np.square(d[1] / 86.0) + np.square(d[2] / 60.0)) + 0.05
    keep = 0.35
    stretch = u ** (keep - 1.0)
    q = tuple((v * stretch).astype(np.float32) for v in d)
    value, slope = waves.with_gradient(q, side[:, None] * shift)
    norm2 = d[0] ** 2 + d[1] ** 2 + d[2] ** 2 + 1.0
    radial2 = (slope[:, 0] * d[0] + slope[:, 1] * d[1] + slope[:, 2] * d[2]) ** 2 / norm2
    steep = stretch * np.sqrt(np.maximum(np.square(slope).sum(1) - (1 - keep**2) * radial2, 1e-9))
    k = float(np.sqrt(np.square(waves.k).sum(1).mean())) * stretch
    return np.arctan2(k * np.abs(value), steep) / k
