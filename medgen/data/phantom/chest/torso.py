"""Where the chest wall is, in millimetres of a standard space (x right, y anterior, z superior, origin at the carina).

Sizes are those of a typical adult who lies on the back with raised arms, set by eye on axial sections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medgen.data.phantom.chest.traits import Traits
from medgen.data.phantom.shapes import Array, Points, Tube, beyond, ellipsoid, smooth_max, smooth_min

PERIOD = 24.0  # mm from vertebra to vertebra
_LOW, _STEP, _KNOTS = -260.0, 2.0, 220


def profile(*knots: tuple[float, float]) -> Callable[[Array], Array]:
    """A smooth function of height through about the given (z, value); constant outside of them."""
    z, value = np.array(sorted(knots)).T
    table = np.interp(_LOW + _STEP * np.arange(-10, _KNOTS + 10), z, value)
    kernel = np.hanning(21)
    table = np.convolve(table, kernel / kernel.sum(), "valid").astype(np.float32)

    def value_at(height: Array) -> Array:
        t = np.clip((height - _LOW) / _STEP, 0, len(table) - 1.001)
        i = t.astype(np.int32)
        return table[i] + (t - i) * (table[i + 1] - table[i])

    return value_at


CAGE_WIDTH = profile(
    (112, 4), (100, 24), (90, 46), (78, 74), (60, 98), (35, 117), (0, 129), (-40, 135), (-80, 138), (-120, 140), (-160, 138), (-220, 128)
)
CAGE_DEPTH = profile((112, 4), (100, 22), (90, 37), (78, 49), (60, 63), (35, 77), (0, 88), (-40, 94), (-80, 97), (-120, 97), (-220, 86))
CAGE_Y = profile((112, -18), (90, -16), (60, -11), (30, -5), (0, -1), (-40, 2), (-120, 3), (-220, 1))
BODY_WIDTH = profile((110, 186), (85, 180), (60, 170), (30, 161), (0, 157), (-40, 155), (-100, 157), (-220, 152))
BODY_DEPTH = profile((110, 70), (85, 82), (60, 93), (30, 102), (0, 108), (-60, 112), (-120, 113), (-220, 106))
BODY_Y = profile((110, -16), (85, -14), (60, -12), (30, -9), (0, -7), (-60, -6), (-220, -6))
SPINE_Y = profile((110, 22), (60, 10), (20, 3), (-20, 0), (-110, 0), (-220, 8))
DROP = profile((110, 22), (70, 46), (30, 66), (-20, 80), (-160, 74))
FRONT_END = profile((60, 0.90), (0, 0.90), (-60, 0.90), (-90, 0.80), (-130, 0.66), (-160, 0.52), (-220, 0.34))
JOINT = profile((80, 0.80), (0, 0.77), (-60, 0.70), (-120, 0.64))
STERNUM_WIDTH = profile((62, 27), (40, 26), (14, 18), (-30, 16), (-80, 19), (-100, 12), (-125, 5))
SCAPULA_IN = profile((90, 0.27), (20, 0.24), (-75, 0.30))
SCAPULA_OUT = profile((90, 0.46), (60, 0.47), (10, 0.43), (-50, 0.36), (-75, 0.31))
CLAVICLE = Tube(((20, 66, 50, 8), (40, 66, 60, 6.5), (80, 46, 82, 6), (140, 5, 108, 7)))
HUMERUS = Tube(((158, -22, 96, 25), (180, -26, 150, 15)))


def superellipse(x: Array, y: Array, a: Array, b: Array, power: float = 2.5) -> Array:
    """Depth below |x/a|^n + |y/b|^n = 1, exact to first order at the outline."""
    u, v = np.abs(x) / a + 1e-4, np.abs(y) / b + 1e-4
    du, dv = u ** (power - 1), v ** (power - 1)
    total = du * u + dv * v
    norm = total ** (1 / power)
    return (1 - norm) * (total / norm) / np.sqrt(np.square(du / a) + np.square(dv / b))


@dataclass(frozen=True)
class Cage:
    """The inner surface of the rib cage: depth below it (mm, positive inside) and angle around it, 0 at the spine, 1 at the sternum."""

    depth: Array
    angle: Array

    def at(self, index: Array) -> Cage:
        return Cage(self.depth[index], self.angle[index])


def cage(p: Points) -> Cage:
    x, y, z = p
    a, b = CAGE_WIDTH(z), CAGE_DEPTH(z)
    y = y - CAGE_Y(z)
    back = np.clip(-y / b, 0, 1)
    y = y - 24.0 * np.exp(-np.square(x * (1 / 36.0))) * back
    b = b * (0.97 + 0.14 * back)
    lean = y / b
    a = a * (1 - 0.08 * np.clip(lean, -1, 1.3) - 0.05 * np.square(np.clip(lean, 0, 1.3)))
    angle = np.arctan2(np.abs(x) / a, -lean) * np.float32(1 / np.pi)
    return Cage(superellipse(x, y, a, b), angle)


def muscles(t: Traits, p: Points) -> Array:
    """Depth below the outer fascia, under which are muscles and bones; above it fat and skin."""
    x, y, z = p
    a = np.abs(x)
    q = (a, y, z)
    thick = 22.0 * (t.muscle - 1)
    main = superellipse(x, y - BODY_Y(z), BODY_WIDTH(z) + thick, BODY_DEPTH(z) + 0.4 * thick, 2.35)
    shoulder = ellipsoid(q, (104, -74, 42), (52 * t.muscle, 42, 92))
    breast = ellipsoid(q, (78, 56, 32), (60, 36 * t.muscle, 62))
    back = erector(t, p)
    groove = beyond(a, -95.0 - y)
    depth = smooth_max(smooth_max(main, shoulder, 18.0), smooth_max(breast, back, 10.0), 14.0)
    return depth - 5.0 * np.exp(-np.square(groove / 12.0)) * (y < -95)


def erector(t: Traits, p: Points) -> Array:
    """Depth into the long muscles of the back, beside the spinous processes."""
    return ellipsoid((np.abs(p[0]), p[1], p[2] * 0.15), (32, -104, 0), (36, 20 * t.muscle, 200))


def skin(t: Traits, p: Points, fascia: Array) -> Array:
    """Depth below the skin: fat on the fascia, thicker at the front and the sides, and breasts."""
    x, y, z = p
    a = np.abs(x)
    fat = t.fat * (0.75 + 0.25 * np.tanh(y / 50.0) + 0.25 * np.clip((a - 90) / 60.0, 0, 1) + 0.2 * np.clip(-z / 120.0, -0.5, 1))
    outer = fascia + np.maximum(fat, 2.5)
    return smooth_max(outer, breasts(t, p), 22.0) if t.female else outer


def breasts(t: Traits, p: Points) -> Array:
    """Depth into the breasts, which fall sideways on somebody who lies on the back."""
    grow = 0.75 + 0.02 * t.fat
    return ellipsoid((np.abs(p[0]), p[1], p[2]), (80, 84, -45), (62 * grow, 44 * grow, 66 * grow))


def ribs(t: Traits, p: Points, c: Cage) -> tuple[Array, Array]:
    """Depths into the ribs and into their cartilages.

    A rib runs in the layer just outside the cage, from its vertebra sideways and down to the front; one formula gives the
    nearest of all ribs, because along an angle their heights are `PERIOD` apart.
    """
    z, angle = p[2], c.angle
    way = np.clip((angle - 0.10) / 0.62, 0, 1)
    low = np.clip((angle - 0.72) / 0.28, 0, 1)
    course = DROP(z) * (way * way * (1.5 - 0.5 * way) - 0.75 * low * np.clip((40.0 - z) / 80.0, 0, 1))
    u = (z + course - t.phase - 7.0) / PERIOD
    number = np.round(u)
    dz = (u - number) * (PERIOD * 0.95)
    across = -c.depth - 6.0
    flat = 3.9 + 0.5 * np.clip((angle - 0.7) * 8, 0, 1)
    sx, sz = across / (flat * flat), dz / (6.6 * 6.6)
    norm = np.sqrt(across * sx + dz * sz) + 1e-4
    depth = norm * (1 - norm) / (np.hypot(sx, sz) + 1e-4)
    depth = np.minimum(depth, (number * PERIOD + t.phase < 108.0) * 90.0 - 45.0)
    depth = np.minimum(depth, (angle - 0.075) * 260.0)
    reach = (FRONT_END(z) - angle) * 260.0
    joint = (angle - JOINT(z)) * 260.0
    return np.minimum(depth, np.minimum(-joint, reach)), np.minimum(depth, np.minimum(joint, reach))


def spine(t: Traits, p: Points) -> tuple[Array, Array]:
    """Depths into the vertebrae, and into the canal behind their bodies."""
    x, y, z = p
    y, a = y - SPINE_Y(z), np.abs(x)
    dz = _periodic(z - t.phase)
    grow = np.clip(-z * 0.018, -1.5, 3.5)
    waist = np.square(dz / 10.0) * 1.6 - 1.6
    body = np.minimum(_ellipse(x, y + 54.0, 16.5 + grow, 14.0 + 0.7 * grow) + waist, 10.2 - np.abs(dz))
    canal = _ellipse(x, y + 76.5, 10.0, 8.0)
    arch = np.minimum(np.minimum(_ellipse(x, y + 77.5, 16.5, 14.0), -canal), 9.0 - np.abs(dz + 1.0))
    arch = np.minimum(arch, np.maximum(-y - 74.0, 6.0 - np.abs(dz - 4.0)))
    sloped = _periodic(z - t.phase - 0.55 * (y + 88.0) + 2.0)
    process = np.minimum(np.minimum(3.0 - 0.02 * (y + 88.0) - a, 8.5 - np.abs(sloped)), np.minimum(y + 116.0, -86.0 - y))
    side = np.minimum(4.4 - beyond(np.abs(y + 81.0 + 0.42 * (a - 14.0)), np.abs(dz - 3.0) - 2.0), np.minimum(a - 11.0, 34.0 - a))
    neck = np.minimum(3.8 - beyond(np.abs(y + 60.0 + 0.95 * (a - 18.0)) * 0.72, np.abs(dz - 8.0) - 2.0), np.minimum(a - 15.0, 31.0 - a))
    bone = np.maximum(np.maximum(body, arch), np.maximum(process, np.maximum(side, neck)))
    return bone, np.minimum(canal, 8.0)


def column(p: Points) -> Array:
    """Depth into the space that the spine and its ligaments keep free of lung."""
    return _ellipse(p[0], p[1] - SPINE_Y(p[2]) + 58.0, 21.0, 19.0)


def sternum(p: Points, c: Cage) -> Array:
    x, _, z = p
    plate = smooth_min(STERNUM_WIDTH(z) - np.abs(x), 5.8 - np.abs(-c.depth - 8.0), 6.0)
    ends = np.minimum(56.0 - z, z + 118.0)
    gap = np.abs(z - 4.0) - 1.2
    front = (c.angle - 0.75) * 200.0
    return np.minimum(smooth_min(plate, ends, 6.0), np.minimum(front, gap))


def shoulders(p: Points, c: Cage) -> Array:
    """Depth into scapulae, clavicles and the heads of the raised arms' humeri."""
    q, z = (np.abs(p[0]), p[1], p[2]), p[2]
    inner, outer = SCAPULA_IN(z), SCAPULA_OUT(z)
    out = -c.depth - 20.0 - 55.0 * np.clip(c.angle - inner, 0, 0.3)
    inside = np.minimum((c.angle - inner), outer - c.angle) * 400.0
    blade = 1.7 + 3.0 * np.exp(-np.square((outer - c.angle) * 60.0)) + 1.2 * np.exp(-np.square((c.angle - inner) * 60.0))
    height = np.minimum(z + 72.0, 88.0 - z)
    scapula = np.minimum(np.minimum(blade - np.abs(out), inside), height)
    ridge_at = inner + (outer - inner) * np.clip(0.15 + (z - 20.0) / 90.0, 0, 1)
    ridge = np.minimum(3.2 - np.abs(c.angle - ridge_at) * 380.0, np.minimum(np.minimum(out, 24.0 - out), np.minimum(z - 18.0, 84.0 - z)))
    bones = np.maximum(np.maximum(scapula, ridge), CLAVICLE.depth(q))
    return np.maximum(bones, HUMERUS.depth(q))


def planes(t: Traits, p: Points, c: Cage) -> tuple[Array, Array]:
    """Distance from the sheets of fat between the layers of muscle, and depth into the fat of the armpit."""
    out = -c.depth - 15.0 - 2.0 * t.bend(p)
    sheet = beyond(np.abs(out), 40.0 * (0.3 - c.angle))
    sheet = np.minimum(sheet, beyond(np.abs(out - 16.0), 40.0 * (0.22 - c.angle), 40.0 * (c.angle - 0.62)))
    sheet = np.minimum(sheet, np.abs(erector(t, p) - 2.0))
    sheet = np.minimum(sheet, beyond(14.0 * np.abs(t.seams(p)), 6.0 - out))
    armpit = ellipsoid((np.abs(p[0]), p[1], p[2]), (134, 16, 44), (30, 34, 66)) + 4.0 * t.bend(p)
    return sheet, smooth_min(armpit, -c.depth - 13.0, 5.0)


def _ellipse(x: Array, y: Array, a: Array | float, b: Array | float) -> Array:
    u, v = x / a, y / b
    norm = np.sqrt(u * u + v * v) + 1e-4
    return norm * (1 - norm) / (np.hypot(u / a, v / b) + 1e-6)


def _periodic(z: Array) -> Array:
    return z - np.round(z * (1 / PERIOD)) * PERIOD
