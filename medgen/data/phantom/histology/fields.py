"""Random functions of the plane that look the same from every window: smooth noise and scattered points. Lengths in micrometres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from medgen.core.random import generator
from medgen.data.phantom.shapes import Array

_PERIOD = 256
_FAR = 1 << 24  # keys are not negative, places may be
_GAIN = 1.0 / 0.7835  # what blending four lattice values takes from the standard deviation, on average over a cell


@dataclass(frozen=True)
class Window:
    """Pixel centres origin + index * mpp, rows along y.

    Attributes:
        origin: (x, y) of pixel (0, 0) on the slide.
        shape: rows, columns.
        mpp: micrometres per pixel.
    """

    origin: tuple[float, float]
    shape: tuple[int, int]
    mpp: float

    @property
    def axes(self) -> tuple[Array, Array]:
        """x of the columns (1, W) and y of the rows (H, 1)."""
        x, y = (start + np.arange(n) * self.mpp for start, n in zip(self.origin, self.shape[::-1], strict=True))
        return x[None], y[:, None]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom pixel centre."""
        x, y = self.axes
        return float(x[0, 0]), float(y[0, 0]), float(x[0, -1]), float(y[-1, 0])

    def grown(self, pixels: int) -> Window:
        """The same pixels with `pixels` more on every side."""
        origin = tuple(v - pixels * self.mpp for v in self.origin)
        return Window(origin, tuple(n + 2 * pixels for n in self.shape), self.mpp)


class Noise:
    """Independent smooth fields of zero mean and standard deviation 1, each named by a number: lattice values blended by a quintic."""

    def __init__(self, *key: int):
        rng = generator(*key)
        self._table = rng.standard_normal((_PERIOD, _PERIOD), dtype=np.float32) * np.float32(_GAIN)
        self._shift = rng.integers(0, _PERIOD, (64, 2)) + rng.random((64, 2))

    def at(self, field: int, x: Array, y: Array, cell: float | tuple[float, float]) -> Array:
        """The field at points; `cell` is the size of its lattice along x and y. x (1, W) and y (H, 1) are quicker than full grids."""
        (i, u), (j, v) = (self._place(p, c, s) for p, c, s in zip((x, y), _pair(cell), self._shift[field], strict=True))
        i1, j1, flat = (i + 1) % _PERIOD, (j + 1) % _PERIOD * _PERIOD, self._table.ravel()
        j = j * _PERIOD
        above = flat.take(j + i) * (1 - u) + flat.take(j + i1) * u
        below = flat.take(j1 + i) * (1 - u) + flat.take(j1 + i1) * u
        return above + (below - above) * v

    def grain(self, field: int, x: Array, y: Array, cell: float) -> Array:
        """A fine field whose lattice does not show: the same one twice, upright and turned by 37 degrees."""
        turned = self.at(field, 0.8 * x - 0.6 * y + 31.0, 0.6 * x + 0.8 * y, cell)
        return (self.at(field, x, y, cell) + turned) * np.float32(np.sqrt(0.5))

    def _place(self, position: Array, cell: float, shift: float) -> tuple[Array, Array]:
        scaled = np.asarray(position) * (1 / cell) + shift
        low = np.floor(scaled)
        t = (scaled - low).astype(np.float32)
        return low.astype(np.int64) % _PERIOD, t * t * t * (t * (t * 6 - 15) + 10)


def scatter(
    key: Sequence[int], box: Sequence[float], cell: float, columns: int, jitter: float = 1.0, block: int = 8
) -> tuple[Array, Array, Array]:
    """One point in every cell of a lattice, at a random place of it; the same points whatever the box.

    Args:
        box: left, top, right, bottom; points of blocks that touch it are returned.
        columns: uniform random numbers that go with every point.
        jitter: share of the cell that a point may be anywhere in, around its middle.

    Returns: x (N,), y (N,) and the numbers (columns, N), float64.
    """
    side = cell * block
    span = [range(int(np.floor(box[k] / side)), int(np.floor(box[k + 2] / side)) + 1) for k in (0, 1)]
    found = [_block((*key, i + _FAR, j + _FAR), i, j, block, columns) for i, j in product(*span)]
    x, y, u, v, *rest = np.concatenate(found, 1)
    return (x + 0.5 + jitter * (u - 0.5)) * cell, (y + 0.5 + jitter * (v - 0.5)) * cell, np.array(rest).reshape(columns, len(x))


def _block(key: Sequence[int], i: int, j: int, block: int, columns: int) -> Array:
    y, x = np.divmod(np.arange(block * block), block)
    return np.concatenate([[x + i * block, y + j * block], generator(*key).random((columns + 2, block * block))])


def _pair(cell: float | tuple[float, float]) -> tuple[float, float]:
    return cell if isinstance(cell, tuple) else (cell, cell)
