"""What differs between subjects, drawn from (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom.shapes import Array, Waves, draw_waves, rotation

_POPULATION = 20011


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


def draw_traits(seed: int, index: int) -> Traits:
    """All traits of one subject except its lesion."""
    rng = generator(seed, index, 1)
    normal = rng.standard_normal
    age = float(rng.beta(1.3, 1.6))
    folds, shift = _draw_folds(rng)
    return Traits(
        scale=np.clip(0.965 + 0.028 * normal() + 0.018 * normal(3), 0.88, 1.05).astype(np.float32),
        turn=rotation(np.deg2rad(np.clip(normal(3), -2, 2) * (2.5, 1.5, 2.0))),
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
