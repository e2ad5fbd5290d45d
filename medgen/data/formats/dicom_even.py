"""Slices that are missing, uneven or tilted on an even, upright grid, where that is asked for."""

from __future__ import annotations

import numpy as np

from medgen.core.geometry import resampled_like
from medgen.core.volume import Volume
from medgen.data.formats.dicom_stack import Stack

_TILT = 0.1  # degrees


def even_grid(stack: Stack) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the grid that holds the stack: its columns and rows, slices along the normal at its usual distance."""
    affine, size, lateral = _upright(stack)
    columns, rows, _ = stack.shape
    shape = (columns + int(np.ceil(abs(lateral[0]))), rows + int(np.ceil(abs(lateral[1]))), size)
    return shape, affine


def evened(array: np.ndarray, stack: Stack, fill: float | None) -> np.ndarray:
    """(C, X, Y, Z) interpolated linearly along the slices, and where they are tilted within them; float32.

    Args:
        fill: beyond the tilted image; None is its lowest value.
    """
    shape, affine = even_grid(stack)
    offsets = stack.offsets - stack.offsets[0]
    targets = np.minimum(np.arange(shape[2]) * stack.step, offsets[-1])
    after = np.clip(np.searchsorted(offsets, targets), 1, len(offsets) - 1) if len(offsets) > 1 else np.zeros(1, int)
    before = np.maximum(after - 1, 0)
    span = np.where(after > before, offsets[after] - offsets[before], 1.0)
    weight = ((targets - offsets[before]) / span).astype(np.float32)
    values = array[..., before] * (1 - weight) + array[..., after] * weight
    if stack.tilt <= _TILT:
        return values.astype(np.float32)
    sheared = np.array(stack.affine)
    sheared[:3, 2] *= stack.step / (_along(stack) or 1.0)
    lowest = float(values.min()) if fill is None else fill
    return resampled_like(Volume(values.astype(np.float32), sheared), shape, affine, fill=lowest).array


def _along(stack: Stack) -> float:
    """mm along the normal of the affine's third column."""
    normal = np.cross(stack.affine[:3, 0], stack.affine[:3, 1])
    return float(stack.affine[:3, 2] @ normal / np.linalg.norm(normal))


def _upright(stack: Stack) -> tuple[np.ndarray, int, np.ndarray]:
    """The affine, the number of slices, and by how many voxels of each in-plane axis the last slice is shifted."""
    affine = np.array(stack.affine)
    size = max(1, round(float(stack.offsets[-1] - stack.offsets[0]) / stack.step) + 1) if len(stack.offsets) > 1 else 1
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    along = _along(stack)
    steps = affine[:3, 2] * (stack.step / along) * (size - 1)
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    lateral = np.array([steps @ affine[:3, i] / spacing[i] ** 2 for i in range(2)])
    if stack.tilt <= _TILT:
        return _with_step(affine, affine[:3, 2] * (stack.step / along)), size, np.zeros(2)
    lateral[np.abs(lateral) < 1e-6] = 0.0
    affine[:3, 3] += affine[:3, :2] @ np.minimum(lateral, 0)
    return _with_step(affine, normal * stack.step), size, lateral


def _with_step(affine: np.ndarray, step: np.ndarray) -> np.ndarray:
    affine[:3, 2] = step
    return affine
