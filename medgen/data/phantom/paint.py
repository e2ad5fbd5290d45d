"""Tissue fractions at points: tissues are painted from the outside inwards, each over what is there."""

from __future__ import annotations

import numpy as np

from medgen.data.phantom import head
from medgen.data.phantom.grid import standard
from medgen.data.phantom.shapes import Array, Points, beyond, cover, cover_sheet, ellipsoid, over, smooth_max, smooth_min
from medgen.data.phantom.traits import Traits

TISSUES = ("air", "soft", "fat", "bone", "marrow", "csf", "gm", "wm", "deep", "lesion")
NAMES = ("air", "soft tissue", "fat", "bone", "marrow", "CSF", "grey matter", "white matter", "deep grey matter", "lesion")
AIR, SOFT, FAT, BONE, MARROW, CSF, GM, WM, DEEP, LESION = range(len(TISSUES))


def paint(t: Traits, world: Points, voxel: float) -> Array:
    """Fractions (tissues, N) of voxels of `voxel` mm centred at world points."""
    p = standard(t, world)
    out = np.zeros((len(TISSUES), len(p[0])), np.float32)
    out[AIR] = 1
    outer = _head(t, p)
    near = np.flatnonzero(outer > -voxel)
    q = tuple(v[near] for v in p)
    part = out[:, near]
    hull = head.hull(q, t.gap)
    _paint_shell(t, q, hull.inner, outer[near], voxel, part)
    inside = np.flatnonzero(hull.inner > -voxel)
    out[:, near] = part
    near = near[inside]
    part = part[:, inside]
    paint_brain(t, tuple(v[near] for v in p), hull.at(inside), voxel, part)
    out[:, near] = part
    return out


def _head(t: Traits, p: Points) -> Array:
    vault = ellipsoid(p, (0, -17, 10), np.add((71, 90, 72), t.bone + t.scalp + t.gap))
    face = ellipsoid(p, (0, 28, -62), (58, 62, 74))
    return smooth_max(smooth_max(vault, face, 20.0), head.NECK.depth(p), 30.0)


def _paint_shell(t: Traits, p: Points, inner: Array, outer: Array, voxel: float, out: Array) -> None:
    """Scalp, skull, face and eyes."""
    a = np.abs(p[0])
    over(out, SOFT, cover(outer, voxel))
    over(out, FAT, cover(np.minimum(outer - 1.6, 1.6 + 0.45 * t.scalp - outer), voxel))
    below = np.clip((-30.0 - p[2]) * 0.05, 0, 1)
    bone = inner + t.bone * (1 - 0.35 * below)
    orbit = ellipsoid((a, p[1], p[2]), (32, 56, -30), (17, 24, 16))
    over(out, FAT, cover(orbit, voxel) * cover(outer - 4, voxel))
    over(out, BONE, cover(np.minimum(bone, outer - 3.0), voxel))
    over(out, MARROW, cover(np.minimum(inner + 0.66 * t.bone, -inner - 0.3 * t.bone), voxel) * (1 - below) * 0.85)
    over(out, AIR, cover(ellipsoid(p, (0, 58, -48), (13, 26, 22)), voxel))
    globe = ellipsoid((a, p[1], p[2]), (32, 64, -30), (12, 12, 12))
    over(out, SOFT, cover(globe + 1.0, voxel))
    over(out, CSF, cover(globe - 0.6, voxel))
    over(out, CSF, cover(inner, voxel))


def paint_brain(t: Traits, p: Points, hull: head.Hull, voxel: float, out: Array) -> Array:
    """Paint everything inside the skull; returns the white matter's fraction of the cerebrum."""
    brain, white = _cortex(t, p, hull, voxel)
    out *= 1 - brain
    out[WM] += white
    out[GM] += brain - white
    _paint_cerebellum(t, p, hull, voxel, out)
    over(out, WM, cover(np.maximum(hull.stem, head.stem_white(p)), voxel))
    over(out, WM, cover(head.callosum(p), voxel))
    over(out, DEEP, cover(head.nuclei(p, t.ventricle), voxel))
    pallidum = cover(head.pallidum(p), voxel)
    over(out, DEEP, pallidum * 0.4)
    over(out, WM, pallidum * 0.5)
    over(out, CSF, cover(head.ventricles(p, t.ventricle), voxel))
    _paint_lesion(t, p, voxel, out)
    return white


def _cortex(t: Traits, p: Points, hull: head.Hull, voxel: float) -> tuple[Array, Array]:
    """Fractions of cerebrum and of its white matter: the outline and all sulcal sheets, with and without the cortex on them."""
    sway = t.sway(p)
    middle = head.fissure(p, sway)
    depth = smooth_min(hull.cerebrum, middle - 0.5 * t.sulcus, 3.0)
    centre = ellipsoid(p, (0, -10, 7), (38, 44, 26))
    reach = 18.0 + 5.5 * t.depth(p)
    wound = t.crinkle(p)
    sheet = head.folds(tuple(v + w for v, w in zip(p, wound.T, strict=True)), t.folds, t.shift)
    sulcus = beyond(sheet, depth - reach, centre)
    depth = depth - 3.5 * np.exp(-0.14 * sulcus * sulcus)
    width = t.sulcus * (0.5 + 1.2 * np.exp(-np.maximum(depth, 0) * 0.25))
    sheets = (
        (sulcus, width),
        (middle, 0.3 + 0.6 * t.sulcus),
        *zip(head.sylvian(p, 2.0 * sway + wound[:, 2]), (0.3 + 0.9 * t.sulcus, 0.4 + 0.7 * t.sulcus), strict=True),
    )
    brain, white = cover(depth, voxel), cover(depth - t.cortex, voxel)
    for distance, half in sheets:
        brain = brain * (1 - cover_sheet(distance, half, voxel))
        white = white * (1 - cover_sheet(distance, half + t.cortex, voxel))
    white = np.maximum(white, cover(head.below_thalamus(p), 4.0))
    return brain, np.minimum(white, brain)


def _paint_cerebellum(t: Traits, p: Points, hull: head.Hull, voxel: float, out: Array) -> None:
    near = np.flatnonzero(hull.cerebellum > -voxel)
    q = tuple(v[near] for v in p)
    depth = hull.cerebellum[near]
    leaf = head.folia(q, t.wobble(q))
    sheet = beyond(leaf, depth - 10.0)
    brain = cover(depth, voxel) * (1 - cover_sheet(sheet, 0.15 + 0.3 * t.sulcus, voxel))
    white = np.maximum(cover(depth - 12.5, voxel), cover(depth - 2.0, voxel) * (1 - cover_sheet(sheet, 1.7, voxel)))
    part = out[:, near] * (1 - brain)
    part[WM] += np.minimum(white, brain)
    part[GM] += brain - np.minimum(white, brain)
    out[:, near] = part


def _paint_lesion(t: Traits, p: Points, voxel: float, out: Array) -> None:
    """The lesion replaces brain tissue only, never CSF, bone or ventricle."""
    if not len(t.blobs):
        return
    depth = np.max([ellipsoid(p, b[:3], b[3:]) for b in t.blobs], 0) + 0.9 * t.rough(p)
    alpha = cover(depth, max(voxel, 1.5))
    tissue = [GM, WM, DEEP]
    out[LESION] = (out[tissue] * alpha).sum(0)
    out[tissue] *= 1 - alpha
