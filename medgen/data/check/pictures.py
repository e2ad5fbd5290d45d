"""Small pictures of a row's images, made in worker processes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.geometry import reoriented
from medgen.core.volume import Volume
from medgen.data.readers import peek, read_stored

HEIGHT = 112  # pixels of the longer side
_LARGEST = 1 << 32  # bytes
_COLOURS = np.array(
    [[0, 0, 0], [86, 180, 233], [230, 159, 0], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167], [0, 114, 178]], np.uint8
)


@dataclass(frozen=True)
class Views:
    """A row to draw: (column, source, kind) of its files."""

    files: tuple[tuple[str, str, str], ...]


def draw(views: Views) -> dict[str, bytes]:
    """Column -> PNG of one slice, the same in all files of the row; a file that cannot be read has none.

    Volumes are shown axially, front up and the patient's right on the left, at the slice with the most labels or in the middle.
    """
    volumes: dict[str, tuple[Volume, str]] = {}
    for column, source, kind in views.files:
        try:
            if peek(source).nbytes <= _LARGEST:
                volumes[column] = _turned(read_stored(source)), kind
        except MedgenError:
            continue
    marked = next((volume for volume, kind in volumes.values() if kind == "labels" and len(volume.shape) == 3), None)
    made = {}
    for column, (volume, kind) in volumes.items():
        plane, aspect = _plane(volume, marked if marked is not None and marked.shape == volume.shape else None)
        made[column] = _png(_labelled(plane) if kind == "labels" else _grey(plane), aspect)
    return made


def _turned(volume: Volume) -> Volume:
    return reoriented(volume, "RAS") if volume.affine is not None and len(volume.shape) == 3 else volume


def _plane(volume: Volume, marked: Volume | None) -> tuple[np.ndarray, float]:
    """(C, H, W) and how much taller than wide a pixel is."""
    array = np.abs(volume.array) if volume.array.dtype.kind == "c" else volume.array
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, posinf=0.0, neginf=0.0)
    if volume.array.dtype.kind == "c":
        array = np.log1p(array / (float(np.median(array)) or 1.0)).mean(0, keepdims=True)
    if array.ndim == 3:
        return array, 1.0
    while array.ndim > 4:
        array = array[:, array.shape[1] // 2]
    thin = [axis for axis, n in enumerate(array.shape[1:]) if n == 1]
    axis = (2 if volume.affine is not None else 0) if not thin else thin[0]
    if axis == 2 and not thin and volume.affine is None:
        axis = 0
    place = array.shape[axis + 1] // 2
    if marked is not None:
        amount = (marked.array[0] > 0).sum(tuple(k for k in range(3) if k != axis))
        place = int(amount.argmax()) if amount.any() else place
    plane = np.take(array, place, axis + 1)
    if volume.affine is None:
        return plane, 1.0
    across, down = (spacing for k, spacing in enumerate(volume.spacing) if k != axis)
    flipped = plane[:, ::-1, ::-1] if axis != 0 else plane[:, :, ::-1]
    return flipped.swapaxes(1, 2), down / across


def _grey(plane: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8, from the 1st to the 99th percentile of the slice; air below -1024 HU is cut off."""
    colour = len(plane) == 3 and not (plane == plane[:1]).all()
    if colour and plane.dtype == np.uint8:
        return np.moveaxis(plane, 0, -1)
    values = plane[0].astype(np.float64)
    low, high = np.quantile(values, (0.01, 0.99))
    low = max(low, -1024.0) if high > -1024 else low
    if not high > low:
        low, high = float(values.min()), float(values.max())
    return (np.clip((values - low) / (high - low if high > low else 1.0), 0, 1) * 255 + 0.5).astype(np.uint8)


def _labelled(plane: np.ndarray) -> np.ndarray:
    values = np.clip(plane[0], 0, None).astype(np.int64)
    return _COLOURS[np.where(values > 0, (values - 1) % (len(_COLOURS) - 1) + 1, 0)]


def _png(pixels: np.ndarray, aspect: float) -> bytes:
    from PIL import Image

    height, width = pixels.shape[0] * aspect, pixels.shape[1]
    scale = HEIGHT / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    file = io.BytesIO()
    smooth = (
        Image.Resampling.NEAREST
        if pixels.ndim == 3 and len(np.unique(pixels.reshape(-1, 3)[:4096], axis=0)) <= len(_COLOURS)
        else Image.Resampling.BOX
    )
    Image.fromarray(pixels).resize(size, smooth if scale < 1 else Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return file.getvalue()
