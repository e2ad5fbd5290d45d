"""Where the organs of the chest are, in the standard space of `torso`: lungs, heart, great vessels, airways, upper abdomen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.data.phantom.chest import torso
from medgen.data.phantom.chest.traits import Traits
from medgen.data.phantom.shapes import Array, Points, Tube, beyond, ellipsoid, smooth_max, smooth_min

AORTA = (
    Tube((
        (-4, 22, -58, 15), (9, 31, -36, 16), (15, 31, -10, 15.5), (13, 20, 14, 15),
        (4, 2, 29, 13.5), (-10, -16, 33, 13), (-22, -32, 27, 12.5), (-29, -44, 8, 12),
    )),
    Tube(((-29, -44, 8, 12), (-29, -47, -40, 11.5), (-24, -44, -90, 11), (-14, -36, -140, 10.5), (-8, -32, -240, 9))),
)  # fmt: skip
BRANCHES = (
    Tube(((6, 2, 32, 7.5), (14, 6, 46, 7), (22, 2, 66, 6), (40, 2, 100, 4.5))),
    Tube(((-6, -6, 34, 5), (-12, 2, 56, 4.4), (-17, 6, 100, 4))),
    Tube(((-16, -18, 33, 5.5), (-24, -16, 58, 5), (-46, -4, 96, 5))),
)
PULMONARY_VEINS = (
    Tube(((20, -12, -50, 7.5), (46, -10, -40, 5.5))), Tube(((22, -16, -62, 7.5), (48, -20, -64, 5.5))),
    Tube(((-22, -14, -50, 7.5), (-48, -12, -40, 5.5))), Tube(((-24, -18, -62, 7.5), (-52, -24, -62, 5.5))),
)  # fmt: skip
CAVA = (
    Tube(((33, 16, 46, 8), (32, 14, 20, 9), (31, 12, -20, 9.5), (32, 14, -58, 10))),
    Tube(((33, 16, 46, 8), (36, 14, 72, 7.5), (54, 8, 104, 7))),
    Tube(((33, 16, 44, 7), (4, 28, 49, 6.5), (-30, 22, 66, 6.5), (-54, 8, 100, 7))),
    Tube(((30, 0, -95, 11), (26, -14, -130, 11.5), (24, -24, -240, 11))),
    Tube(((7, -39, 12, 3.5), (8, -38, -60, 3.5), (6, -38, -160, 3))),
)
PULMONARY_ARTERIES = (
    Tube(((-16, 52, -56, 14), (-21, 41, -28, 14.5), (-20, 18, -13, 13), (-36, -8, -7, 10.5), (-48, -24, -14, 9), (-53, -30, -32, 7.5))),
    Tube(((-20, 14, -15, 12), (6, -2, -19, 10.5), (34, -8, -23, 9.5), (45, -14, -32, 7.5))),
)
TRACHEA = Tube(((-1, -20, -1, 7), (0, -18, 8, 8.2), (1, -12, 40, 8.2), (2, -2, 74, 8.4), (2, 8, 120, 8.4)))
BRONCHI = (
    Tube(((0, -20, 0, 7.5), (20, -24, -14, 6.6), (38, -25, -26, 5.6), (42, -26, -48, 4.6))),
    Tube(((0, -20, 0, 7), (-26, -24, -19, 5.8), (-44, -24, -30, 5.4), (-48, -32, -50, 4.2))),
)
OESOPHAGUS = Tube(((-4, -16, 110, 6), (-5, -24, 50, 6.5), (-5, -35, 0, 6.5), (-6, -33, -60, 7), (-18, -24, -110, 8), (-34, -8, -132, 9)))

WALL = 1.4  # of trachea and main bronchi


@dataclass(frozen=True)
class Heart:
    """Depths (mm) into the pericardium, the muscle, and the blood of the left and of the right side."""

    sac: Array
    muscle: Array
    arterial: Array
    venous: Array


def heart(t: Traits, p: Points, below: Array) -> Heart:
    """It rests on the diaphragm."""
    q = tuple((v - c) / t.heart + c for v, c in zip(p, (-15.0, 20.0, -60.0), strict=True))
    x, y, z = q
    axis = (0.56 * (y - 18.0) - 0.83 * (x + 44.0), 0.83 * (y - 18.0) + 0.56 * (x + 44.0), z)
    left = ellipsoid(axis, (0, 0, -86), (49, 37, 40))
    right = ellipsoid(q, (-10, 54, -84), (52, 31, 44))
    atrium = ellipsoid(q, (32, 26, -72), (31, 32, 40))
    back = ellipsoid(q, (-2, -6, -57), (36, 22, 27))
    muscle = smooth_max(smooth_max(left, right, 12.0), smooth_max(atrium, back, 8.0), 12.0)
    cavity = ellipsoid(axis, (-2, 0, -83), (37, 25.5, 30))
    arterial = np.maximum(cavity, back + -3.0)
    venous = np.maximum(smooth_min(right - 5.0, -left - 1.0, 4.0), atrium - 3.0)
    grooves = smooth_min(beyond(np.abs(right - atrium), -right), beyond(np.abs(left - back), -left), 2.0)
    muscle = smooth_min(muscle - 5.0 * np.exp(-np.square(grooves / 7.0)), 1.0 - below, 8.0)
    sac = smooth_max(smooth_max(left, right, 16.0), smooth_max(atrium, back, 14.0), 18.0) + 2.5
    return Heart(np.minimum(sac, 3.0 - below), muscle, np.minimum(arterial, muscle - 2.5), np.minimum(venous, muscle - 2.5))


@dataclass(frozen=True)
class Content:
    """Depths (mm) into what the rib cage holds; `below` is the depth below the diaphragm, `airway` that into the lumen."""

    lung: Array
    heart: Heart
    arterial: Array
    venous: Array
    airway: Array
    oesophagus: Array
    below: Array


def content(t: Traits, p: Points, c: torso.Cage) -> Content:
    below = diaphragm(t, p)
    own, blood = heart(t, p, below), (arterial(p), venous(p))
    air, gullet = airway(p), OESOPHAGUS.depth(p)
    between = mediastinum(t, p, c, np.max([own.sac, *blood, air + WALL, gullet], 0))
    return Content(lungs(c, between, below), own, *blood, air, gullet, below)


def arterial(p: Points) -> Array:
    """Depth into aorta, its branches and the pulmonary veins."""
    return np.max([tube.depth(p) for tube in (*AORTA, *BRANCHES, *PULMONARY_VEINS)], 0)


def venous(p: Points) -> Array:
    """Depth into the veins of the body and the pulmonary arteries."""
    return np.max([tube.depth(p) for tube in (*CAVA, *PULMONARY_ARTERIES)], 0)


def airway(p: Points) -> Array:
    """Depth into the lumen of trachea and main bronchi."""
    return np.max([tube.depth(p) for tube in (TRACHEA, *BRONCHI)], 0)


def mediastinum(t: Traits, p: Points, c: torso.Cage, inner: Array) -> Array:
    """Depth into the space between the lungs; `inner` is the depth into what it holds (heart, vessels, airways, oesophagus)."""
    x, y, z = p
    wide = np.clip((z - 10.0) / 50.0, 0, 1)
    core = torso._ellipse(x, y + 8.0, 19.0 + 9.0 * wide, 46.0 - 8.0 * wide)
    front = np.clip(34.0 - c.depth, 0, 34) * 0.62 * (y > 0)
    sheet = np.minimum(1.6 + front - np.abs(x + 3.0 + 2.0 * t.bend(p)), y + 10.0)
    return smooth_max(smooth_max(inner + 2.5, core, 16.0), smooth_max(sheet, torso.column(p), 8.0), 14.0)


def diaphragm(t: Traits, p: Points) -> Array:
    """Depth below the diaphragm: two domes, the right one higher, that fall steeply towards the chest wall."""
    x, y, z = p
    right = -92.0 - 84.0 * (np.square((x - 62.0) / 84.0) + np.square((y - 10.0) / 104.0)) ** 1.3
    left = -104.0 - 80.0 * (np.square((x + 64.0) / 82.0) + np.square((y - 10.0) / 104.0)) ** 1.3
    height = smooth_max(right, left, 16.0) + t.rise
    return (height - z) * 0.75


def lungs(c: torso.Cage, between: Array, below: Array) -> Array:
    """Depth into the lungs: what the cage holds above the diaphragm and beside the mediastinum `between`."""
    depth = smooth_min(c.depth - 1.2, -between, 9.0)
    return smooth_min(depth, -below - 0.5, 5.0)


def fissures(t: Traits, p: Points) -> tuple[Array, Array]:
    """Signed distances from the oblique and from the horizontal fissure: positive in the upper lobe, in the right middle lobe."""
    x, y, z = p
    bend = 5.0 * t.bend(p)
    oblique = (z - 28.0 + 0.95 * (y + 70.0) - 0.12 * np.abs(x) + bend) * 0.72
    return oblique, -(z + 34.0 + 0.10 * y + 0.6 * bend)


@dataclass(frozen=True)
class Belly:
    """Depths (mm) into liver and spleen, and into the stomach's wall, its fluid and its gas."""

    organ: Array
    stomach: Array
    fluid: Array
    gas: Array


def belly(p: Points, below: Array, c: torso.Cage) -> Belly:
    x, y, z = p
    inside = np.minimum(below - 3.0, c.depth - 3.0)
    edge = x + 22.0 + 0.25 * (z + 130.0) - 0.35 * (y - 20.0)
    liver = smooth_min(smooth_min(inside, edge * 0.8, 14.0), y + 78.0, 8.0)
    spleen = smooth_min(ellipsoid(p, (-104, -42, -158), (36, 52, 62)), inside, 8.0)
    stomach = smooth_min(ellipsoid(p, (-62, 24, -158), (46, 46, 58)), inside, 6.0)
    stomach = smooth_min(stomach, -liver, 4.0)
    fluid = stomach - 4.0
    return Belly(np.maximum(liver, smooth_min(spleen, -stomach, 3.0)), stomach, fluid, np.minimum(fluid, y - 38.0))
