"""Arrays to 8-bit pictures for people to look at. Never a step on the way to a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medgen.core.volume import Volume

VIEW = "medgen view"  # the text in a PNG that says that its pixels are not the values of the image


def gray(array: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """(…) values to uint8, `low` black and `high` white; by default the array's own 0.5 and 99.5 percentiles."""
    low = float(np.percentile(array, 0.5)) if low is None else low
    high = float(np.percentile(array, 99.5)) if high is None else high
    return (np.clip((array - low) / max(high - low, 1e-8), 0, 1) * 255 + 0.5).astype(np.uint8)


def upright(plane: np.ndarray) -> np.ndarray:
    """A plane (first axis right or anterior, second axis up in the picture) as rows from top to bottom."""
    return np.rot90(plane)


def montage(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Planes of uint8 (H, W) or (H, W, 3) in a grid on black; each row as high as its highest plane."""
    color = any(p.ndim == 3 for row in rows for p in row)
    as_color = [[np.repeat(p[..., None], 3, -1) if color and p.ndim == 2 else p for p in row] for row in rows]
    widths = [max(row[i].shape[1] for row in as_color if i < len(row)) for i in range(max(map(len, as_color)))]
    heights = [max(p.shape[0] for p in row) for row in as_color]
    shape = (sum(heights) + gap * (len(heights) - 1), sum(widths) + gap * (len(widths) - 1))
    canvas = np.zeros(shape + ((3,) if color else ()), np.uint8)
    y = 0
    for row, height in zip(as_color, heights, strict=True):
        x = 0
        for plane, width in zip(row, widths, strict=False):
            canvas[y : y + plane.shape[0], x : x + plane.shape[1]] = plane
            x += width + gap
        y += height + gap
    return canvas


def picture(volume: Volume) -> np.ndarray:
    """A 2D image, plain ones over `meta["range"]` where it is known; of a volume the middle axial, coronal and sagittal planes."""
    array = volume.array
    thin = [axis for axis in range(1, array.ndim) if array.shape[axis] == 1]
    if array.ndim == 4 and thin:
        array = array.squeeze(thin[-1])
    if array.ndim == 3 and array.shape[0] == 3 and volume.affine is None:
        return np.moveaxis(gray(array, 0.0, 255.0), 0, -1)
    first = array[0]
    if first.ndim == 2:
        return gray(first, *volume.meta.get("range", ())) if volume.affine is None else gray(upright(first))
    low, high = np.percentile(first, (0.5, 99.5))
    planes = [np.take(first, first.shape[axis] // 2, axis) for axis in (2, 1, 0)]
    return montage([[gray(upright(p), low, high) for p in planes]])


def exact(volume: Volume) -> np.ndarray | None:
    """The values of a plain picture as (H, W) or (H, W, 3) with 8 or 16 bits, if a PNG holds them: whole numbers, and images of the ranges
    0 to 255 and 0 to 65535, which are rounded. None for all else (negative values, other ranges, volumes, what has a place in the world).
    """
    array = volume.array
    if volume.affine is not None or array.ndim != 3 or len(array) not in (1, 3):
        return None
    low, high = (int(array.min()), int(array.max())) if array.dtype.kind in "biu" else _whole_range(volume)
    kind = np.uint8 if high <= 255 else np.uint16
    if low < 0 or high > 65535:
        return None
    values = array if array.dtype.kind in "biu" else np.clip(np.round(array), low, high)
    return values[0].astype(kind) if len(array) == 1 else np.moveaxis(values, 0, -1).astype(kind)


def _whole_range(volume: Volume) -> tuple[int, int]:
    """(0, 255) or (0, 65535) of an image that is made of real numbers, or (-1, 0): neither."""
    known = volume.meta.get("range", (0, 255) if len(volume.array) == 3 else None)
    return tuple(known) if known is not None and tuple(known) in ((0, 255), (0, 65535)) else (-1, 0)
