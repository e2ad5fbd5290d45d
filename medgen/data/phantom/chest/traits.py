"""What differs between the chests of subjects, drawn from (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom.shapes import Array, Waves, draw_waves, rotation

CENTRE = (0.0, -8.0, -25.0)


@dataclass(frozen=True)
class Traits:
    """Lengths in mm, intensities in HU.

    Attributes:
        scale, turn, move, warp: size factors (3,), rotation (3, 3), position (3,), smooth displacement (N, 3).
        female: has breasts. fat: under the skin. muscle: factor of the muscles' thickness.
        rise: how far the diaphragm stands above its mean position. phase: position (mm) of the ribs and vertebrae along z.
        heart: size factor. arterial, venous: blood of the left and of the right heart; 42 both without contrast medium.
        lung, gravity: mean of the parenchyma, and how much denser (HU per mm) it gets towards the back.
        marrow: spongy bone, which loses calcium with age.
        grain: texture of unit variance. bend: displaces fissures and fat planes. seams: its zero level parts muscles.
        lobules: where a breast has glands. rough: outline of nodules. tone: exponent of the radii of the lung's vessels.
    """

    scale: Array
    turn: Array
    move: Array
    warp: Waves
    female: bool
    fat: float
    muscle: float
    rise: float
    phase: float
    heart: float
    contrast: bool
    arterial: float
    venous: float
    lung: float
    gravity: float
    marrow: float
    grain: Waves
    bend: Waves
    seams: Waves
    lobules: Waves
    rough: Waves
    tone: float


def draw_traits(seed: int, index: int) -> Traits:
    """All traits of one subject except its nodules."""
    rng = generator(seed, index, 1)

    def normal(spread: float) -> float:
        return float(spread * np.clip(rng.standard_normal(), -2, 2))

    female, contrast = bool(rng.random() < 0.45), bool(rng.random() < 0.65)
    arterial = float(np.clip(215 + normal(45), 130, 320)) if contrast else 42.0
    venous = float(np.clip(arterial + normal(30), 120, 340)) if contrast else 42.0
    size = 0.945 + normal(0.04) - 0.05 * female
    return Traits(
        scale=np.float32([size + normal(0.02), size + normal(0.03), 0.97 + normal(0.035)]),
        turn=rotation(np.deg2rad([normal(1.5), normal(1.0), normal(2.5)])),
        move=np.float32([normal(5), normal(4), normal(4)]),
        warp=draw_waves(rng, 14, (110.0, 260.0), 2.6, channels=3),
        female=female,
        fat=float(np.clip(11 + 5 * female + normal(6), 3, 28)),
        muscle=1.05 - 0.12 * female + normal(0.12),
        rise=normal(9),
        phase=float(rng.uniform(0, 24)),
        heart=1.0 + normal(0.05),
        contrast=contrast,
        arterial=arterial,
        venous=venous,
        lung=-862 + normal(24),
        gravity=0.35 + normal(0.15),
        marrow=190 + normal(40),
        grain=draw_waves(rng, 48, (4.5, 12.0), 1.0),
        bend=draw_waves(rng, 10, (45.0, 110.0), 1.0),
        seams=draw_waves(rng, 10, (90.0, 180.0), 1.0),
        lobules=draw_waves(rng, 12, (9.0, 30.0), 1.0),
        rough=draw_waves(rng, 16, (5.0, 13.0), 1.0),
        tone=2.85 + normal(0.1),
    )
