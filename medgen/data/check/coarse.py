"""Images at a low resolution: enough to see whether two of them are the same, or lie at another place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.core.geometry import reoriented, resized
from medgen.core.volume import Volume

AIR = -1024.0  # HU
_MOST = {1: 4096, 2: 128, 3: 48}  # voxels along an axis
_PRINT = {1: 1024, 2: 32, 3: 10}
_FINE = {1: 4096, 2: 96, 3: 32}


@dataclass(frozen=True)
class Coarse:
    """One plane of an image in blocks.

    Attributes:
        array: (*S) float32, finite.
        affine: of the blocks, or None.
        blocks: voxels of a block along each axis of the file.
    """

    array: np.ndarray
    affine: np.ndarray | None
    blocks: tuple[int, ...]


def coarse(volume: Volume) -> Coarse:
    """Means over blocks, at most 48 along an axis of a volume and 128 of a picture or slice; in RAS, where it has geometry.

    Several channels are averaged; of complex values the logarithm of the magnitude is taken.
    """
    array = volume.array
    array = np.log1p(np.abs(array)).mean(0, keepdims=True) if array.dtype.kind == "c" else array.mean(0, keepdims=True, dtype=np.float32)
    array = np.nan_to_num(array.astype(np.float32), posinf=0.0, neginf=0.0)
    affine = None if volume.affine is None else np.array(volume.affine, np.float64)
    if volume.units == "HU":
        array = np.maximum(array, AIR)  # the edge of the field of view is no detail
    blocks = tuple(-(-size // _MOST.get(_dims(volume.shape), 48)) for size in volume.shape)
    for axis, (size, block) in enumerate(zip(array.shape[1:], blocks, strict=True), 1):
        if block == 1:
            continue
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, -size % block)
        padded = np.pad(array, widths, mode="edge")
        array = padded.reshape(*padded.shape[:axis], -1, block, *padded.shape[axis + 1 :]).mean(axis + 1)
        if affine is not None and axis <= 3:
            affine[:3, 3] += affine[:3, axis - 1] * (block - 1) / 2
            affine[:3, axis - 1] *= block
    if affine is not None and array.ndim == 4:
        turned = reoriented(Volume(array, affine), "RAS")
        array, affine = turned.array, turned.affine
    return Coarse(np.ascontiguousarray(array[0]), affine, blocks)


def fingerprint(small: Coarse, fine: bool = False) -> np.ndarray:
    """(N,) float16 of mean 0 and length 1: fine detail of the image on a fixed grid, so that another patient's has little in common.

    All zeros where there is no detail.
    """
    cells = (_FINE if fine else _PRINT).get(_dims(small.array.shape), 10)
    array = resized(small.array[None], [cells if n > 1 else 1 for n in small.array.shape])[0]
    detail = array - _blurred(array)
    detail = detail - detail.mean()
    length = float(np.linalg.norm(detail))
    if length <= 1e-6 * max(1e-12, float(np.abs(array).max()) * np.sqrt(array.size)):
        return np.zeros(detail.size, np.float16)
    return (detail.reshape(-1) / length).astype(np.float16)


def _dims(shape: tuple[int, ...]) -> int:
    """Axes that are longer than one voxel; a single slice is a picture."""
    return max(1, sum(n > 1 for n in shape))


def _blurred(array: np.ndarray) -> np.ndarray:
    """The mean over five cells along each axis."""
    for axis in range(array.ndim):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (2, 2)
        padded = np.pad(array, widths, mode="edge")
        array = sum(np.take(padded, range(k, k + array.shape[axis]), axis) for k in range(5)) / 5
    return array
