"""A subject's head: the fraction of every tissue in every voxel of any grid."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom import head
from medgen.data.phantom.grid import Grid, standard, world
from medgen.data.phantom.paint import LESION, TISSUES, paint, paint_brain
from medgen.data.phantom.shapes import Array, cover
from medgen.data.phantom.traits import Traits, draw_traits


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
            self.traits = replace(self.traits, blobs=_draw_blobs(self.seed, self.index, self.traits))

    def fractions(self, grid: Grid) -> dict[str, Array]:
        """Tissue -> fraction of each voxel, float32 of the grid's shape; they sum to 1."""
        return dict(zip(TISSUES, self.stack(grid), strict=True))

    def stack(self, grid: Grid) -> Array:
        """The fractions as one array (tissues, *shape), in the order of TISSUES."""
        voxel, out = float(np.mean(grid.spacing)), np.empty((len(TISSUES), *grid.shape), np.float32)
        for place, part in grid.pieces():
            out[:, *place] = paint(self.traits, part.points(), voxel).reshape(-1, *part.shape)
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
            depth = head.ventricles(standard(t, part.points()), t.ventricle)
            out[place] = cover(depth, voxel).reshape(part.shape)
        return out

    @cached_property
    def lesion_centre(self) -> Array | None:
        """World position (3,) of the largest part of the lesion, first order in the deformation."""
        if not self.has_lesion:
            return None
        return world(self.traits, self.traits.blobs[:1, :3])[0]


def _draw_blobs(seed: int, index: int, traits: Traits) -> Array:
    """One to four ellipsoids around a place in white matter of the cerebrum; (L, 6) centre and radii, the largest first."""
    rng = generator(seed, index, 2)
    box = (rng.uniform(size=(256, 3)) * (104, 130, 62) + (-52, -85, -6)).astype(np.float32)
    p = tuple(box.T)
    white = paint_brain(traits, p, head.hull(p, traits.gap), 12.0, np.zeros((len(TISSUES), len(box)), np.float32))
    centre = box[np.argmax(white - 0.6 * (head.ventricles(p, traits.ventricle) > -9.0))]
    radius = np.exp(rng.uniform(np.log(6.0), np.log(15.0)))
    extra = rng.integers(0, 4)
    near = centre + rng.standard_normal((extra, 3)) * radius * 0.8
    small = radius * rng.uniform(0.35, 0.7, (extra, 1)) * rng.uniform(0.75, 1.25, (extra, 3))
    first = np.concatenate([centre, radius * rng.uniform(0.75, 1.25, 3)])[None]
    return np.concatenate([first, np.concatenate([near, small], 1)]).astype(np.float32)
