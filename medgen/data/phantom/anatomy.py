"""A subject's head: traits drawn from a seed, and the fraction of every tissue in every voxel of any grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom import head
from medgen.data.phantom.shapes import Array, Points, Waves, beyond, cover, cover_sheet, draw_waves, ellipsoid, smooth_max, smooth_min

TISSUES = ("air", "soft", "fat", "bone", "marrow", "csf", "gm", "wm", "deep", "lesion")
AIR, SOFT, FAT, BONE, MARROW, CSF, GM, WM, DEEP, LESION = range(len(TISSUES))
FOV = 224.0
CENTRE = (0.0, -17.0, 8.0)
_CHUNK = 1 << 13
_POPULATION = 20011


@dataclass(frozen=True)
class Grid:
    """Voxel centres in world millimetres (RAS): origin + index * spacing along each of three axes.

    Attributes:
        shape: number of voxels along x, y, z; a slice has one along z.
        spacing: millimetres along x, y, z.
        origin: world position of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @staticmethod
    def centred(shape: Sequence[int], fov: float = FOV) -> Grid:
        """A field of view of `fov` mm in every direction around the head."""
        spacing = [fov / n for n in shape]
        origin = [c - s * (n - 1) / 2 for c, s, n in zip(CENTRE, spacing, shape, strict=True)]
        return Grid(tuple(int(n) for n in shape), tuple(spacing), tuple(origin))

    @staticmethod
    def axial(size: Sequence[int], z: float, fov: float = FOV) -> Grid:
        """One axial slice of `size` (x, y) voxels at world height `z`; its thickness equals its pixel size along x."""
        flat = Grid.centred((*size, 1), fov)
        return Grid(flat.shape, (*flat.spacing[:2], flat.spacing[0]), (*flat.origin[:2], float(z)))

    @property
    def affine(self) -> Array:
        """(4, 4) voxel index to world."""
        affine = np.diag((*self.spacing, 1.0))
        affine[:3, 3] = self.origin
        return affine

    def axis(self, i: int) -> Array:
        return (self.origin[i] + np.arange(self.shape[i]) * self.spacing[i]).astype(np.float32)

    def pieces(self) -> Iterator[tuple[tuple[slice, ...], Grid]]:
        """The same grid in flat blocks that fit the processor's cache, each with its place."""
        nx, ny, nz = self.shape
        across, deep = max(1, _CHUNK // ny), max(1, _CHUNK // (nx * ny))
        for i, k in product(range(0, nx, across), range(0, nz, deep)):
            place = (slice(i, i + across), slice(None), slice(k, k + deep))
            origin = (self.origin[0] + i * self.spacing[0], self.origin[1], self.origin[2] + k * self.spacing[2])
            yield place, replace(self, shape=(min(across, nx - i), ny, min(deep, nz - k)), origin=origin)

    def points(self) -> Points:
        """World coordinates of all voxels, three arrays (N,) in C order."""
        mesh = np.meshgrid(*(self.axis(i) for i in range(3)), indexing="ij")
        return tuple(m.ravel() for m in mesh)


@dataclass(frozen=True)
class Traits:
    """What differs between subjects; lengths in mm.

    Attributes:
        scale, turn, move: size factors (3,), rotation (3, 3) and position (3,) of the head.
        ventricle: growth of the ventricles' radii. sulcus: half width of a sulcus. cortex: thickness of the cortex.
        gap: CSF between brain and skull. bone, scalp: thickness.
        warp: smooth displacement field (N, 3). sway: how the fissure between the hemispheres bends.
        crinkle: small displacement (N, 3) that makes the sulci wind.
        folds, shift: the field whose zero level the sulci follow, and how its phases differ between left and right (M,).
        depth: field that varies the depth of the sulci. wobble: field that bends the leaves of the cerebellum.
        blobs: lesion as ellipsoids, centre and radii in standard space (L, 6); empty without one. rough: their outline.
    """

    scale: Array
    turn: Array
    move: Array
    ventricle: float
    sulcus: float
    cortex: float
    gap: float
    bone: float
    scalp: float
    warp: Waves
    sway: Waves
    crinkle: Waves
    folds: Waves
    shift: Array
    depth: Waves
    wobble: Waves
    blobs: Array
    rough: Waves


class Brain:
    """The head of subject `index` of the population `seed`.

    Args:
        lesion: True or False, or None for a lesion in half of the subjects.
    """

    def __init__(self, seed: int, index: int, lesion: bool | None = None):
        self.seed, self.index = int(seed), int(index)
        self.has_lesion = bool(generator(self.seed, self.index, 7).random() < 0.5) if lesion is None else bool(lesion)
        self.traits = draw_traits(self.seed, self.index)
        if self.has_lesion:
            self.traits = replace(self.traits, blobs=draw_blobs(self.seed, self.index, self.traits))

    def fractions(self, grid: Grid) -> dict[str, Array]:
        """Tissue -> fraction of each voxel, float32 of the grid's shape; they sum to 1."""
        return dict(zip(TISSUES, self.stack(grid), strict=True))

    def stack(self, grid: Grid) -> Array:
        """The fractions as one array (tissues, *shape), in the order of TISSUES."""
        voxel, out = float(np.mean(grid.spacing)), np.empty((len(TISSUES), *grid.shape), np.float32)
        for place, part in grid.pieces():
            out[:, *place] = _paint(self.traits, part.points(), voxel).reshape(-1, *part.shape)
        return out

    def labels(self, grid: Grid) -> Array:
        """The tissue that fills most of each voxel, as index into TISSUES, int64."""
        return self.stack(grid).argmax(0)

    def lesion(self, grid: Grid) -> Array:
        """Voxels of which the lesion fills more than half, bool."""
        return self.stack(grid)[LESION] > 0.5

    def ventricles(self, grid: Grid) -> Array:
        """Fraction of each voxel that the ventricles fill, float32; part of "csf" in `fractions`."""
        t, voxel, out = self.traits, float(np.mean(grid.spacing)), np.empty(grid.shape, np.float32)
        for place, part in grid.pieces():
            depth = head.ventricles(_standard(t, part.points()), t.ventricle)
            out[place] = cover(depth, voxel).reshape(part.shape)
        return out

    @cached_property
    def lesion_centre(self) -> Array | None:
        """World position (3,) of the largest part of the lesion, first order in the deformation."""
        if not self.has_lesion:
            return None
        t, target = self.traits, self.traits.blobs[0, :3]
        p = target.astype(np.float64)
        for _ in range(8):
            p = p + (target - np.array(_standard(t, tuple(np.float32([v]) for v in p))).ravel())
        return p


def draw_traits(seed: int, index: int) -> Traits:
    """All traits of one subject except its lesion."""
    rng = generator(seed, index, 1)
    normal = rng.standard_normal
    age = float(rng.beta(1.3, 1.6))
    folds, shift = _draw_folds(rng)
    return Traits(
        scale=np.clip(1 + 0.035 * normal() + 0.022 * normal(3), 0.9, 1.1).astype(np.float32),
        turn=_rotation(np.deg2rad(np.clip(normal(3), -2, 2) * (2.5, 1.5, 2.0))),
        move=(np.clip(normal(3), -2, 2) * (0.8, 1.5, 1.5)).astype(np.float32),
        ventricle=float(np.clip(-0.6 + 3.2 * age + 0.7 * normal(), -1.2, 3.6)),
        sulcus=float(np.clip(0.40 + 0.65 * age + 0.08 * normal(), 0.3, 1.2)),
        cortex=float(np.clip(2.95 - 0.5 * age + 0.12 * normal(), 2.3, 3.2)),
        gap=float(1.2 + 1.6 * age + 0.3 * rng.random()),
        bone=float(np.clip(6.3 + 0.8 * normal(), 4.5, 8.5)),
        scalp=float(np.clip(5.5 + 0.9 * normal(), 3.5, 8.0)),
        warp=draw_waves(rng, 14, (75.0, 190.0), 1.6, channels=3),
        sway=draw_waves(rng, 6, (35.0, 80.0), 1.1),
        crinkle=draw_waves(rng, 12, (16.0, 34.0), 1.7, channels=3),
        folds=folds,
        shift=shift,
        depth=draw_waves(rng, 10, (25.0, 60.0), 1.0),
        wobble=draw_waves(rng, 8, (20.0, 50.0), 0.16),
        blobs=np.zeros((0, 6), np.float32),
        rough=draw_waves(rng, 10, (7.0, 16.0), 1.0),
    )


@lru_cache(maxsize=1)
def _population_folds() -> Waves:
    return draw_waves(generator(_POPULATION), 40, (18.0, 27.0), 1.0)


def _draw_folds(rng: np.random.Generator) -> tuple[Waves, Array]:
    """Everybody's sulci are variations of one pattern: common wave vectors, phases that differ by about a radian."""
    common = _population_folds()
    own = common.phase + 0.9 * rng.standard_normal(common.phase.shape)
    shift = 0.45 * rng.standard_normal(common.phase.shape)
    return replace(common, phase=own.astype(np.float32)), shift.astype(np.float32)


def _rotation(angles: Array) -> Array:
    turn = np.eye(3)
    for i, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        one = np.eye(3)
        j, k = (i + 1) % 3, (i + 2) % 3
        one[j, j], one[j, k], one[k, j], one[k, k] = c, -s, s, c
        turn = turn @ one
    return turn.astype(np.float32)


def draw_blobs(seed: int, index: int, traits: Traits) -> Array:
    """One to four ellipsoids around a place in white matter of the cerebrum; (L, 6) centre and radii, the largest first."""
    rng = generator(seed, index, 2)
    box = (rng.uniform(size=(256, 3)) * (104, 130, 62) + (-52, -85, -6)).astype(np.float32)
    white = _cerebrum(traits, tuple(box.T), 12.0, np.zeros((len(TISSUES), len(box)), np.float32))
    centre = box[np.argmax(white - 0.6 * (ventricle_depth(traits, tuple(box.T)) > -9.0))]
    radius = np.exp(rng.uniform(np.log(6.0), np.log(15.0)))
    extra = rng.integers(0, 4)
    near = centre + rng.standard_normal((extra, 3)) * radius * 0.8
    small = radius * rng.uniform(0.35, 0.7, (extra, 1)) * rng.uniform(0.75, 1.25, (extra, 3))
    first = np.concatenate([centre, radius * rng.uniform(0.75, 1.25, 3)])[None]
    return np.concatenate([first, np.concatenate([near, small], 1)]).astype(np.float32)


def ventricle_depth(traits: Traits, p: Points) -> Array:
    """Depth into the ventricles at points of the standard space."""
    return head.ventricles(p, traits.ventricle)


def _standard(t: Traits, p: Points) -> Points:
    """World points to the standard space of `head`: position, rotation, size, then the smooth displacement."""
    q = (np.stack(p, 1) - np.float32(CENTRE) - t.move) @ t.turn
    q = q / t.scale + np.float32(CENTRE)
    q += t.warp(tuple(q.T))
    return tuple(np.ascontiguousarray(v) for v in q.T)


def _paint(t: Traits, world: Points, voxel: float) -> Array:
    """Fractions (tissues, N) at world points: tissues are painted from the outside inwards, each over what is there."""
    p = _standard(t, world)
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
    _cerebrum(t, tuple(v[near] for v in p), voxel, part)
    out[:, near] = part
    return out


def _over(out: Array, tissue: int, alpha: Array) -> None:
    out *= 1 - alpha
    out[tissue] += alpha


def _head(t: Traits, p: Points) -> Array:
    vault = ellipsoid(p, (0, -17, 10), np.add((71, 90, 72), t.bone + t.scalp + t.gap))
    face = ellipsoid(p, (0, 28, -62), (58, 62, 74))
    return smooth_max(smooth_max(vault, face, 20.0), head.NECK.depth(p), 30.0)


def _paint_shell(t: Traits, p: Points, inner: Array, outer: Array, voxel: float, out: Array) -> None:
    """Scalp, skull, face and eyes."""
    a = np.abs(p[0])
    _over(out, SOFT, cover(outer, voxel))
    _over(out, FAT, cover(np.minimum(outer - 1.6, 1.6 + 0.45 * t.scalp - outer), voxel))
    below = np.clip((-30.0 - p[2]) * 0.05, 0, 1)
    bone = inner + t.bone * (1 - 0.35 * below)
    orbit = ellipsoid((a, p[1], p[2]), (32, 56, -30), (17, 24, 16))
    _over(out, FAT, cover(orbit, voxel) * cover(outer - 4, voxel))
    _over(out, BONE, cover(np.minimum(bone, outer - 3.0), voxel))
    _over(out, MARROW, cover(np.minimum(inner + 0.66 * t.bone, -inner - 0.3 * t.bone), voxel) * (1 - below) * 0.85)
    _over(out, AIR, cover(ellipsoid(p, (0, 58, -48), (13, 26, 22)), voxel))
    globe = ellipsoid((a, p[1], p[2]), (32, 64, -30), (12, 12, 12))
    _over(out, SOFT, cover(globe + 1.0, voxel))
    _over(out, CSF, cover(globe - 0.6, voxel))
    _over(out, CSF, cover(inner, voxel))


def _cerebrum(t: Traits, p: Points, voxel: float, out: Array) -> Array:
    """Paint everything inside the skull; returns the white matter's fraction of the cerebrum."""
    hull = head.hull(p, t.gap)
    brain, white = _cortex(t, p, hull, voxel)
    out *= 1 - brain
    out[WM] += white
    out[GM] += brain - white
    _paint_cerebellum(t, p, hull, voxel, out)
    _over(out, WM, cover(np.maximum(hull.stem, head.stem_white(p)), voxel))
    _over(out, WM, cover(head.callosum(p), voxel))
    _over(out, DEEP, cover(head.nuclei(p, t.ventricle), voxel))
    pallidum = cover(head.pallidum(p), voxel)
    _over(out, DEEP, pallidum * 0.4)
    _over(out, WM, pallidum * 0.5)
    _over(out, CSF, cover(head.ventricles(p, t.ventricle), voxel))
    _paint_lesion(t, p, voxel, out)
    return white


def _cortex(t: Traits, p: Points, hull: head.Hull, voxel: float) -> tuple[Array, Array]:
    """Fractions of cerebrum and of its white matter: the outline and all sulcal sheets, with and without the cortex on them."""
    sway = t.sway(p)
    middle = head.fissure(p, sway)
    depth = smooth_min(hull.cerebrum, middle - 0.5 * t.sulcus, 3.0)
    centre = ellipsoid(p, (0, -10, 7), (38, 44, 26))
    reach = 17.0 + 6.0 * t.depth(p)
    wound = t.crinkle(p)
    sheet = head.folds(tuple(v + w for v, w in zip(p, wound.T, strict=True)), t.folds, t.shift)
    sulcus = beyond(sheet, depth - reach, centre)
    depth = depth - 3.2 * np.exp(-0.14 * sulcus * sulcus)
    width = t.sulcus * (0.5 + 1.2 * np.exp(-np.maximum(depth, 0) * 0.25))
    sheets = (
        (sulcus, width),
        (middle, 0.3 + 0.6 * t.sulcus),
        *zip(head.sylvian(p, 2.0 * sway + wound[:, 2]), (0.4 + 1.1 * t.sulcus, 0.4 + 0.7 * t.sulcus), strict=True),
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
