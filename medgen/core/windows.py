"""Large grids through a model of a fixed size: overlapping windows and their smooth blend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

Predict = Callable[[np.ndarray, tuple[slice, ...]], np.ndarray]


def starts(length: int, size: int, overlap: float) -> list[int]:
    """First indices of windows of `size` that cover `length` >= size evenly, sharing at least `overlap` of their extent."""
    if length <= size:
        return [0]
    count = -(-(length - size) // max(int(size * (1 - overlap)), 1)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def windows(shape: Sequence[int], size: Sequence[int], overlap: float = 0.5) -> Iterator[tuple[slice, ...]]:
    """Windows that cover a grid of `shape`."""
    rows = [starts(length, extent, overlap) for length, extent in zip(shape, size, strict=True)]
    for corner in product(*rows):
        yield tuple(slice(start, start + extent) for start, extent in zip(corner, size, strict=True))


def blended(array: np.ndarray, size: Sequence[int], predict: Predict, channels: int, overlap: float = 0.5) -> np.ndarray:
    """`predict` over a grid (K, *S), S >= size, window by window, weighted by a raised cosine so that no seam shows.

    Args:
        predict: (K, *size) and its place on the grid -> (channels, *size).
    """
    if tuple(array.shape[1:]) == tuple(size):
        return predict(array, tuple(slice(0, extent) for extent in size))
    weight = np.ones(tuple(size), np.float32)
    for axis, extent in enumerate(size):
        profile = np.sin(np.pi * (np.arange(extent) + 0.5) / extent).astype(np.float32) ** 2
        weight *= profile.reshape([-1 if a == axis else 1 for a in range(len(size))])
    total = np.zeros((channels, *array.shape[1:]), np.float32)
    mass = np.zeros(array.shape[1:], np.float32)
    for window in windows(array.shape[1:], size, overlap):
        total[(slice(None), *window)] += weight * predict(array[(slice(None), *window)], window)
        mass[window] += weight
    return total / mass
