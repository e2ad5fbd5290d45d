"""Tissue fractions of a chest at points: tissues are painted from the skin inwards, each over what is there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.data.phantom.chest import organs, torso
from medgen.data.phantom.chest.traits import CENTRE, Traits
from medgen.data.phantom.grid import standard
from medgen.data.phantom.shapes import Array, Points, cover, cover_sheet, ellipsoid, over

TISSUES = (
    "air", "lung", "fat", "soft", "fluid", "organ", "heart", "venous", "arterial",
    "cartilage", "marrow", "bone", "airway", "solid", "ground_glass", "table",
)  # fmt: skip
AIR, LUNG, FAT, SOFT, FLUID, ORGAN, HEART, VENOUS, ARTERIAL, CARTILAGE, MARROW, BONE, AIRWAY, SOLID, GROUND, TABLE = range(len(TISSUES))


@dataclass(frozen=True)
class Nodule:
    """Ellipsoid in world millimetres, centre (3,) and radii (3,); `core` is the share of the radius that is solid."""

    centre: Array
    radii: Array
    core: float


@dataclass(frozen=True)
class Trees:
    """Fractions (N,) of voxels that the lung's vessels and bronchi fill; `wall` includes the lumen."""

    venous: Array
    arterial: Array
    lumen: Array
    wall: Array


def paint(t: Traits, world: Points, voxel: float, trees: Trees, nodules: tuple[Nodule, ...]) -> Array:
    """Fractions (tissues, N) of voxels of `voxel` mm centred at world points."""
    out = np.zeros((len(TISSUES), len(world[0])), np.float32)
    out[AIR] = 1
    _paint_table(t, world, voxel, out)
    p = standard(t, world, CENTRE)
    fascia = torso.muscles(t, p)
    outer = torso.skin(t, p, fascia)
    near = np.flatnonzero(outer > -voxel)
    if not len(near):
        return out
    p, fascia, part = tuple(v[near] for v in p), fascia[near], out[:, near]
    c = torso.cage(p)
    _paint_wall(t, p, c, fascia, outer[near], voxel, part)
    inside = np.flatnonzero((c.depth > -voxel) | (torso.column(p) > -voxel))
    q = tuple(v[inside] for v in p)
    within = part[:, inside]
    lung = _paint_inside(t, q, c.at(inside), voxel, within)
    at = near[inside]
    _paint_lung(t, q, lung, voxel, Trees(*(getattr(trees, name)[at] for name in Trees.__dataclass_fields__)), within)
    _paint_nodules(t, tuple(v[at] for v in world), lung, nodules, voxel, within)
    part[:, inside] = within
    _paint_bones(t, p, c, voxel, part)
    out[:, near] = part
    return out


def lung_depth(t: Traits, p: Points) -> Array:
    """Depth (mm) into the lungs at standard points, positive inside."""
    return organs.content(t, p, torso.cage(p)).lung


def _paint_table(t: Traits, world: Points, voxel: float, out: Array) -> None:
    """Two curved sheets with light foam between them, below the back."""
    x, y, _ = world
    back = CENTRE[1] + t.move[1] - t.scale[1] * (111.0 + 0.55 * t.fat) - 5.0
    top = back + 0.0008 * np.square(x) - y
    bottom = back - 40.0 + 0.0011 * np.square(x) - y
    wide = cover(204.0 - np.abs(x), voxel)
    sheets = np.maximum(cover_sheet(np.abs(top), 0.9, voxel), cover_sheet(np.abs(bottom), 1.1, voxel)) * wide
    foam = cover(np.minimum(top, -bottom), voxel) * wide * 0.045
    over(out, TABLE, np.maximum(sheets, foam))


def _paint_wall(t: Traits, p: Points, c: torso.Cage, fascia: Array, outer: Array, voxel: float, out: Array) -> None:
    """Skin, fat, breasts, and the muscles with the fat between them."""
    over(out, SOFT, cover(outer, voxel))
    over(out, FAT, cover(outer - 1.8, voxel))
    if t.female:
        gland = np.minimum(torso.breasts(t, p) - 9.0 + 7.0 * t.lobules(p), -fascia - 2.0)
        over(out, SOFT, cover(gland, voxel) * 0.8)
    sheet, armpit = torso.planes(t, p, c)
    over(out, SOFT, cover(np.minimum(fascia, outer - 2.5), voxel))
    muscle = out[SOFT] * (c.depth < 0)
    lean = cover_sheet(sheet, 0.5 + 0.06 * t.fat, voxel) * (fascia > 3)
    lean = np.maximum(lean, cover(armpit + 0.5 * t.fat - 5.0, voxel))
    moved = muscle * lean * (c.depth < -9.5) * 0.9
    out[SOFT] -= moved
    out[FAT] += moved


def _paint_inside(t: Traits, p: Points, c: torso.Cage, voxel: float, out: Array) -> Array:
    """Everything inside the rib cage but the small vessels of the lung; returns the depth into the lungs."""
    held = organs.content(t, p, c)
    below, heart = held.below, held.heart
    over(out, FAT, cover(c.depth - 0.8, voxel))
    over(out, SOFT, cover(np.minimum(below, c.depth), voxel))
    over(out, FAT, cover(np.minimum(below - 3.5, c.depth - 3.0), voxel))
    if below.max(initial=-np.inf) > -voxel:
        belly = organs.belly(p, below, c)
        over(out, ORGAN, cover(belly.organ, voxel))
        over(out, SOFT, cover(belly.stomach, voxel))
        over(out, FLUID, cover(belly.fluid, voxel))
        over(out, AIR, cover(belly.gas, voxel))
    over(out, LUNG, cover(held.lung, voxel))
    over(out, SOFT, cover(held.oesophagus, voxel))
    over(out, FAT, cover(heart.sac, voxel))
    over(out, HEART, cover(heart.muscle, voxel))
    over(out, VENOUS, cover(heart.venous, voxel))
    over(out, ARTERIAL, cover(heart.arterial, voxel))
    over(out, VENOUS, cover(held.venous, voxel))
    over(out, ARTERIAL, cover(held.arterial, voxel))
    over(out, SOFT, cover(held.airway + organs.WALL, voxel))
    over(out, AIRWAY, cover(held.airway, voxel))
    return held.lung


def _paint_lung(t: Traits, p: Points, lung: Array, voxel: float, trees: Trees, out: Array) -> None:
    """Fissures, vessels and bronchi, each a little beyond the lung's surface at the hilum."""
    oblique, horizontal = organs.fissures(t, p)
    right = (p[0] > 0) & (oblique > 0)
    sheet = np.minimum(np.abs(oblique), np.where(right, np.abs(horizontal), 99.0))
    thin = cover_sheet(sheet, 0.2, voxel) * out[LUNG]
    out[LUNG] -= thin
    out[SOFT] += thin
    free = cover(lung + 9.0, voxel) * (1 - out[AIRWAY])
    over(out, VENOUS, trees.venous * free)
    over(out, ARTERIAL, trees.arterial * free)
    over(out, SOFT, trees.wall * free)
    over(out, AIRWAY, trees.lumen * free)


def _paint_nodules(t: Traits, world: Points, lung: Array, nodules: tuple[Nodule, ...], voxel: float, out: Array) -> None:
    """A nodule replaces lung, its vessels and bronchi, never the chest wall or the mediastinum."""
    if not nodules:
        return
    rough = t.rough(world)
    replaced = [LUNG, VENOUS, ARTERIAL, AIRWAY, SOFT]
    for nodule in nodules:
        size = float(np.mean(nodule.radii))
        depth = np.minimum(ellipsoid(world, nodule.centre, nodule.radii) + 0.09 * size * rough, lung + 0.5)
        alpha = cover(depth, voxel) * cover(lung, voxel)
        core = cover(depth - (1 - nodule.core) * size, voxel) * cover(lung, voxel) if nodule.core > 0 else 0.0
        core = np.minimum(core, alpha)
        taken = out[replaced].sum(0)
        out[replaced] *= 1 - alpha
        out[GROUND] = out[GROUND] * (1 - alpha) + (alpha - core) * taken
        out[SOLID] = out[SOLID] * (1 - alpha) + core * taken


def _paint_bones(t: Traits, p: Points, c: torso.Cage, voxel: float, out: Array) -> None:
    bone, cartilage = torso.ribs(t, p, c)
    over(out, CARTILAGE, cover(cartilage, voxel))
    spine, canal = torso.spine(t, p)
    space = cover(torso.column(p), voxel)
    over(out, SOFT, space * (out[ARTERIAL] + out[VENOUS] + out[AIRWAY] + out[HEART] < 0.3))
    over(out, FAT, cover(canal, voxel))
    over(out, FLUID, cover(canal - 1.8, voxel))
    bone = np.maximum(np.maximum(bone, spine), np.maximum(torso.sternum(p, c), torso.shoulders(p, c)))
    over(out, BONE, cover(bone, voxel))
    over(out, MARROW, cover(bone - 1.1, voxel))
