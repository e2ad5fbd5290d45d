"""How the images of a row lie to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.geometry import resampled_like
from medgen.core.volume import Volume
from medgen.data.check.coarse import Coarse

_LEAST_OVERLAP = 0.5  # of the grid that two shifted images must share
_BRIGHT = 0.1  # of the range above air that counts as something
_DARK = 0.25  # of the range: the middle value of a colour picture on black, such as fluorescence, lies below
_AIR = 0.02


@dataclass(frozen=True)
class Pair:
    """Two columns of a row.

    Attributes:
        first, second: columns.
        covered: share of the first image's field of view that the second reaches.
        common: Dice of what is not background in both.
        shift: mm along R, A, S by which the second lies off; pixels of pictures.
        here, there: correlation of edges without and with that shift.
        unit: "mm" or "pixels".
        cell: the longest side of a cell of the grid on which they were compared, in that unit.
    """

    first: str
    second: str
    covered: float
    common: float
    shift: tuple[float, ...]
    here: float
    there: float
    unit: str
    cell: float


def compared(first: str, a: Coarse, second: str, b: Coarse) -> Pair | None:
    """The pair, or None where the two have no common grid (only one has geometry, or shapes differ without any)."""
    if (a.affine is None) != (b.affine is None) or a.array.ndim != b.array.ndim:
        return None
    if a.affine is None:
        if a.array.shape != b.array.shape:
            return None
        other, reach = b.array, np.ones(a.array.shape, bool)
    else:
        try:
            other, reach = _brought(a, b)
        except (MedgenError, np.linalg.LinAlgError):
            return None
    covered = float(reach.mean())
    common = _dice(_something(a.array, np.ones_like(reach)), _something(other, reach))
    shift, here, there = _shift(_edges(a.array), _edges(other) * reach)
    moved = shift * a.blocks if a.affine is None else a.affine[:3, :3] @ shift
    sides = np.array(a.blocks, float) if a.affine is None else np.linalg.norm(a.affine[:3, :3], axis=0)
    cell = float(sides[[n > 1 for n in a.array.shape]].max(initial=1.0 if max(a.array.shape) == 1 else 0.0))
    unit = "pixels" if a.affine is None else "mm"
    return Pair(first, second, covered, common, tuple(float(s) for s in moved), here, there, unit, cell)


def share_in_air(labels: Volume, image: Volume) -> float | None:
    """The share of labelled voxels in which the image shows its lowest 2 %, or its highest where it is a colour picture on a bright
    ground (stained tissue); None on unequal grids, or without labels."""
    if labels.shape != image.shape or labels.array.dtype.kind == "c" or image.array.dtype.kind == "c":
        return None
    marked = labels.array[0] > 0
    if not marked.any():
        return None
    grey = image.array.mean(0, dtype=np.float32)
    low, high = np.nanquantile(grey.reshape(-1)[:: max(1, grey.size // (1 << 18))], (0.01, 0.99))
    if high <= low:
        return None
    if len(image.array) == 3 and np.median(grey) > low + _DARK * (high - low):
        return float((grey[marked] >= high - _AIR * (high - low)).mean())
    return float((grey[marked] <= low + _AIR * (high - low)).mean())


def _brought(a: Coarse, b: Coarse) -> tuple[np.ndarray, np.ndarray]:
    """`b` on the grid of `a`, and where it reaches."""
    fill = float(b.array.min())
    image = resampled_like(Volume(b.array[None], b.affine), a.array.shape, a.affine, fill=fill).array[0]
    reach = resampled_like(Volume(np.ones((1, *b.array.shape), np.float32), b.affine), a.array.shape, a.affine, labels=True).array[0]
    return image, reach > 0.5


def _something(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    low, high = np.quantile(array, (0.01, 0.99))
    return (array > low + _BRIGHT * (high - low)) & inside


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


def _edges(array: np.ndarray) -> np.ndarray:
    """Length of the gradient: where borders are does not depend on the contrast. Strong ones are levelled."""
    axes = [axis for axis, n in enumerate(array.shape) if n > 1]
    if not axes:
        return np.zeros_like(array)
    slopes = np.gradient(array.astype(np.float64), axis=tuple(axes))
    length = np.sqrt(sum(s**2 for s in (slopes if len(axes) > 1 else [slopes])))
    top = np.quantile(length, 0.95)
    return np.minimum(length / top, 1.0) if top > 0 else np.zeros_like(length)


def _shift(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(cells that `b` lies off, correlation without, correlation with), by normalised cross-correlation of the overlapping parts."""
    shape, axes = [2 * n for n in a.shape], range(a.ndim)

    def crossed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.fft.irfftn(np.conj(np.fft.rfftn(x, shape, axes)) * np.fft.rfftn(y, shape, axes), shape, axes)

    ones = np.ones_like(a)
    count = np.maximum(crossed(ones, ones), 1.0)
    sums = crossed(a, ones), crossed(ones, b)
    cross = crossed(a, b) - sums[0] * sums[1] / count
    spread = (crossed(a * a, ones) - sums[0] ** 2 / count, crossed(ones, b * b) - sums[1] ** 2 / count)
    scale = np.sqrt(np.maximum(spread[0], 0) * np.maximum(spread[1], 0))
    enough = (count > _LEAST_OVERLAP * a.size) & (scale > 1e-6 * scale.max()) if scale.max() > 0 else np.zeros(count.shape, bool)
    correlation = np.where(enough, cross / np.maximum(scale, 1e-12), -1.0)
    if not enough.any():
        return np.zeros(a.ndim), 0.0, 0.0
    best = np.unravel_index(int(correlation.argmax()), correlation.shape)
    shift = [place + _between(correlation, best, axis) for axis, place in enumerate(best)]
    signed = [s - n if s > n / 2 else s for s, n in zip(shift, shape, strict=True)]
    return np.array(signed), float(correlation[(0,) * a.ndim]), float(correlation[best])


def _between(values: np.ndarray, best: tuple[int, ...], axis: int) -> float:
    """The top of the parabola through the best cell and its neighbours, in cells from the best."""
    size = values.shape[axis]
    low, middle, high = (values[(*best[:axis], (best[axis] + step) % size, *best[axis + 1 :])] for step in (-1, 0, 1))
    bend = low - 2 * middle + high
    return float(np.clip(0.5 * (low - high) / bend, -0.5, 0.5)) if bend < 0 and min(low, high) > -1 else 0.0
