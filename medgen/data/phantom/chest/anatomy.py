"""A subject's chest: the fraction of every tissue in every voxel of any grid."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom.chest import organs, tree
from medgen.data.phantom.chest.paint import GROUND, SOLID, TISSUES, Nodule, Trees, lung_depth, paint
from medgen.data.phantom.chest.traits import CENTRE, draw_traits
from medgen.data.phantom.grid import Grid, standard, world
from medgen.data.phantom.shapes import Array, Points

RESOLUTION = 1.2  # mm, of a smooth kernel; edges are never sharper than this, nor than a voxel
_POINTS = 22000
# Where the vessels enter the lungs (standard space), and the radius of the artery that feeds each lobe.
_HILA = {1: ((44, -15, -32), (45, -14, -52)), -1: ((-51, -29, -31), (-49, -17, -52))}
_LOBES = {"right upper": 5.2, "right middle": 3.9, "right lower": 6.0, "left upper": 5.6, "left lower": 5.8}
_KINDS = {"solid": 1.0, "part-solid": 0.55, "ground glass": 0.0}


class Chest:
    """The chest of subject `index` of the population `seed`.

    Args:
        nodule: True or False, or None for nodules in half of the subjects.
    """

    def __init__(self, seed: int, index: int, nodule: bool | None = None):
        self.seed, self.index = int(seed), int(index)
        self.has_nodule = bool(generator(self.seed, self.index, 7).random() < 0.5) if nodule is None else bool(nodule)
        self.traits = draw_traits(self.seed, self.index)

    def fractions(self, grid: Grid) -> dict[str, Array]:
        """Tissue -> fraction of each voxel, float32 of the grid's shape; they sum to 1."""
        return dict(zip(TISSUES, self.stack(grid), strict=True))

    def stack(self, grid: Grid) -> Array:
        """The fractions as one array (tissues, *shape), in the order of TISSUES; thick slices are means of thin ones."""
        planes = max(1, round(grid.spacing[2] / max(grid.spacing[0], RESOLUTION)))
        if planes > 1:
            fine = self.stack(_sliced(grid, planes))
            return fine.reshape(*fine.shape[:3], grid.shape[2], planes).mean(-1)
        voxel, out = max(float(np.mean(grid.spacing)), RESOLUTION), np.empty((len(TISSUES), *grid.shape), np.float32)
        arteries, veins, airways = self.trees
        whole = (
            tree.splat(arteries, grid, voxel),
            tree.splat(veins, grid, voxel),
            tree.splat(airways, grid, voxel),
            tree.splat(airways, grid, voxel, 0.7),
        )
        for place, part in grid.pieces():
            trees = Trees(*(fraction[place].ravel() for fraction in whole))
            out[:, *place] = paint(self.traits, part.points(), voxel, trees, self.nodules).reshape(-1, *part.shape)
        return out

    def labels(self, grid: Grid) -> Array:
        """The tissue that fills most of each voxel, as index into TISSUES, int64."""
        return self.stack(grid).argmax(0)

    def nodule(self, grid: Grid) -> Array:
        """Voxels of which nodules fill more than half, bool."""
        return nodule_mask(self.stack(grid))

    @cached_property
    def nodules(self) -> tuple[Nodule, ...]:
        """One to three nodules, the largest first; none in a subject without."""
        return self._draw_nodules() if self.has_nodule else ()

    @cached_property
    def trees(self) -> tuple[tree.Twigs, tree.Twigs, tree.Twigs]:
        """Arteries, veins and bronchi of both lungs, in world millimetres."""
        rng = generator(self.seed, self.index, 2)
        points, depth, lobe = self._lung_points
        arteries, veins = [], []
        for name, radius in _LOBES.items():
            mine = points[(lobe == name) & (depth > 2.0)]
            artery, vein = (world(self.traits, np.float32([at]), CENTRE)[0] for at in _HILA[1 if name.startswith("right") else -1])
            arteries.append(tree.grow(mine, artery, radius, self.traits.tone, rng))
            veins.append(tree.grow(mine, vein, 0.9 * radius, self.traits.tone, rng, turn=0.8))
        arteries = tree.Twigs.joined(arteries)
        return arteries, tree.Twigs.joined(veins), tree.bronchi(arteries)

    @cached_property
    def _lung_points(self) -> tuple[Array, Array, Array]:
        """Random places in the lungs: world position (M, 3), depth below the surface (M,), name of the lobe (M,)."""
        rng = generator(self.seed, self.index, 3)
        box = (rng.uniform(-1, 1, (_POINTS, 3)) * (150, 112, 152) + (0, 0, -42)).astype(np.float32)
        p: Points = standard(self.traits, tuple(box.T), CENTRE)
        depth = lung_depth(self.traits, p)
        oblique, horizontal = organs.fissures(self.traits, p)
        right = np.where(oblique < 0, "right lower", np.where(horizontal > 0, "right middle", "right upper"))
        lobe = np.where(p[0] > 0, right, np.where(oblique < 0, "left lower", "left upper"))
        keep = depth > 0
        return box[keep].astype(np.float64), depth[keep], lobe[keep]

    def _draw_nodules(self) -> tuple[Nodule, ...]:
        rng = generator(self.seed, self.index, 6)
        points, depth, _ = self._lung_points
        nodules = []
        for i in range(rng.integers(1, 4)):
            size = np.exp(rng.uniform(np.log(5.0), np.log(15.0))) * (1.0 if i == 0 else 0.6)
            within = np.flatnonzero((depth > 0.4 * size) & (np.abs(points[:, 2] + 25) < 85))
            centre = points[rng.choice(within)]
            core = list(_KINDS.values())[rng.choice(3, p=(0.55, 0.2, 0.25))]
            nodules.append(Nodule(centre, size * rng.uniform(0.8, 1.2, 3), core))
        return tuple(nodules)


def _sliced(grid: Grid, planes: int) -> Grid:
    thin = grid.spacing[2] / planes
    low = grid.origin[2] - thin * (planes - 1) / 2
    return Grid((*grid.shape[:2], grid.shape[2] * planes), (*grid.spacing[:2], thin), (*grid.origin[:2], low))


def nodule_mask(stack: Array) -> Array:
    """Voxels of which nodules, solid or not, fill more than half, bool."""
    return stack[SOLID] + stack[GROUND] > 0.5
