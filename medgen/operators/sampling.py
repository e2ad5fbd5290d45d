"""What is drawn anew for every measurement: lines of k-space with coil maps, holes, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.errors import MedgenError, nearest
from medgen.core.operator import Operator, Sampling
from medgen.core.random import Rng
from medgen.operators.inpaint import Inpaint
from medgen.operators.mri import MaskedFourier, coil_maps, equispaced, random_lines


@dataclass(frozen=True)
class Complete(Sampling):
    """Nothing to draw: downsampling and denoising."""

    def draw(self, shape: tuple[int, ...], rng: Rng) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Lines(Sampling):
    """Phase-encoding lines along the last spatial axis, all other axes fully sampled.

    Args:
        pattern: "random" (new lines for every image), "equispaced" (a new offset for every image) or "both", half of each.
        acceleration: one line in so many.
        centre: fraction of the lines that is always sampled, around zero frequency.
        coils: simulated coils (`coil_maps`); 0 is one coil that sees everything alike.
    """

    pattern: str = "both"
    acceleration: int = 4
    centre: float = 0.08
    coils: int = 0

    def __post_init__(self):
        if self.pattern not in (known := ("random", "equispaced", "both")):
            raise MedgenError(f"Lines: no pattern '{self.pattern}'; {nearest(self.pattern, known)}")
        if self.acceleration < 1 or not 0 < self.centre <= 1 or self.coils < 0:
            raise MedgenError(
                f"Lines: expected acceleration >= 1, 0 < centre <= 1 and coils >= 0,"
                f" found {self.acceleration}, {self.centre:g} and {self.coils}"
            )

    def draw(self, shape: tuple[int, ...], rng: Rng) -> dict[str, Tensor]:
        """ "mask" (B, 1, 1, .., N) and, with coils, "maps" (B, coils, *S)."""
        width = shape[-1]
        draws = rng.uniform((shape[0], width + 2)).cpu()
        masks = torch.stack([self._mask(width, row) for row in draws]).reshape(shape[0], 1, *(1 for _ in shape[3:]), width)
        state = {"mask": masks.to(rng.device)}
        if self.coils:
            state["maps"] = coil_maps(self.coils, shape[2:]).to(rng.device).expand(shape[0], *(-1 for _ in shape[1:]))
        return state

    def _mask(self, width: int, uniform: Tensor) -> Tensor:
        equal = self.pattern == "equispaced" or (self.pattern == "both" and float(uniform[0]) < 0.5)
        if equal:
            return equispaced(width, self.acceleration, self.centre, int(uniform[1] * self.acceleration))
        return random_lines(width, self.acceleration, uniform[2:], self.centre)


@dataclass(frozen=True)
class Holes(Sampling):
    """One box of unknown voxels per image, anywhere inside it.

    Args:
        smallest, largest: side of the box as a fraction of each axis.
    """

    smallest: float = 0.2
    largest: float = 0.4

    def draw(self, shape: tuple[int, ...], rng: Rng) -> dict[str, Tensor]:
        """ "mask" (B, 1, *S), 0 in the hole."""
        size = shape[2:]
        draws = rng.uniform((shape[0], 2, len(size))).cpu()
        mask = torch.ones(shape[0], 1, *size)
        for row, (extent, place) in zip(mask, draws.tolist(), strict=True):
            sides = [max(round(n * (self.smallest + e * (self.largest - self.smallest))), 1) for n, e in zip(size, extent, strict=True)]
            starts = [int(p * (n - side + 1)) for n, side, p in zip(size, sides, place, strict=True)]
            row[(0, *(slice(a, a + side) for a, side in zip(starts, sides, strict=True)))] = 0
        return {"mask": mask.to(rng.device)}


def usual(operator: Operator) -> Sampling:
    """What is drawn for an operator when nothing is said."""
    if isinstance(operator, MaskedFourier):
        return Lines()
    return Holes() if isinstance(operator, Inpaint) else Complete()
