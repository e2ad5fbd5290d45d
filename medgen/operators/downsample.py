"""A coarser grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.operator import Operator, State


class Downsample(Operator):
    """Means over cells, as a scan with larger voxels measures them.

    Args:
        factors: voxels per cell along each spatial axis; sizes must be multiples of them.
    """

    def __init__(self, factors: Sequence[int]):
        self.factors = tuple(int(f) for f in factors)
        if min(self.factors, default=0) < 1:
            raise MedgenError(f"Downsample: factors are {list(factors)}; expected a number of at least 1 for each spatial axis")

    def __call__(self, x: Tensor, state: State) -> Tensor:
        cells = x.reshape(*x.shape[:2], *(n for s, f in zip(self._sizes(x.shape), self.factors, strict=True) for n in (s, f)))
        return cells.mean(tuple(range(3, 3 + 2 * len(self.factors), 2)))

    def adjoint(self, y: Tensor, state: State) -> Tensor:
        return self.view(y, state) / math.prod(self.factors)

    def view(self, y: Tensor, state: State) -> Tensor:
        """The cells as large voxels: the adjoint without its factor, so that intensities are kept."""
        for axis, factor in enumerate(self.factors, start=2):
            y = y.repeat_interleave(factor, axis)
        return y

    def shape(self, x: tuple[int, ...], state: State) -> tuple[int, ...]:
        return (*x[:2], *self._sizes(x))

    def _sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        size = tuple(shape[2:])
        if len(size) != len(self.factors) or any(s % f for s, f in zip(size, self.factors, strict=True)):
            raise MedgenError(f"Downsample by {list(self.factors)} does not divide a grid of {list(size)}; crop or pad the image")
        return tuple(s // f for s, f in zip(size, self.factors, strict=True))
