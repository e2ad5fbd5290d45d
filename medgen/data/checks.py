"""What a row of a manifest must fulfil before it may train anything."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError, MedgenWarning
from medgen.core.volume import Volume
from medgen.data.readers import read

_TOLERANCE = 0.05  # voxels by which two headers of the same grid may differ


def opened(image: str | Path | Volume, name: str) -> Volume:
    """A file or Volume with finite voxels on (C, *S), and a name for messages."""
    if not isinstance(image, Volume):
        if not isinstance(image, (str, Path)):
            raise MedgenError(
                f"'{name}' must be a file or a medgen.Volume, got {type(image).__name__}; wrap arrays as Volume(array, affine)"
            )
        return read(image)
    if image.array.ndim not in (3, 4) or min(image.array.shape) < 1 or (image.affine is not None and image.array.ndim != 4):
        raise MedgenError(f"'{name}': a Volume's array has a channel axis in front, (C, *S); got shape {tuple(image.array.shape)}")
    if not np.isfinite(image.array).all():
        raise MedgenError(f"'{name}' holds NaN or infinite voxels; repair or mask the image first")
    return image if "file" in image.meta else image.with_array(image.array, meta={**image.meta, "file": f"'{name}'"})


def one_plane(volume: Volume, name: str, plane: int | None = None) -> Volume:
    """The volume with one channel: its only one, plane number `plane`, or grey that was saved as colour."""
    count = len(volume.array)
    if plane is not None and plane < count:
        return volume.with_array(volume.array[plane : plane + 1])
    if plane is not None:
        raise MedgenError(
            f"{volume.meta['file']}: has {count} channels (0 to {count - 1}), so there is none for '{name}'; "
            "expected a colour picture or a file of several planes"
        )
    if count > 1 and not (volume.array == volume.array[:1]).all():
        named = f"{name}_red, {name}_green, {name}_blue" if count == 3 and volume.affine is None else f"{name}_0 to {name}_{count - 1}"
        grey = "; a video is read in grey with '#planes=1' behind its path" if "frame_seconds" in volume.meta else ""
        raise MedgenError(f"{volume.meta['file']}: has {count} channels and '{name}' takes one; use channels {named}{grey}")
    return volume.with_array(volume.array[:1])


def check_contrast(volume: Volume, name: str) -> None:
    """Warn of an image of a single value: empty, or lost on its way."""
    if volume.array.size > 1 and volume.array.min() == volume.array.max():
        value = float(volume.array.flat[0])
        warnings.warn(f"'{name}': an image without contrast, every voxel is {value:g}; check the file", MedgenWarning, stacklevel=4)


def check_pair(volumes: Mapping[str, Volume], where: str) -> None:
    """Refuse images of one row that are not on one grid."""
    (first, reference), *others = volumes.items()
    for name, volume in others:
        if volume.shape != reference.shape:
            raise MedgenError(f"{where}: {first} has shape {reference.shape}, {name} {volume.shape}: a pair must share its grid")
        if (volume.affine is None) != (reference.affine is None):
            raise MedgenError(f"{where}: only one of {first} and {name} has geometry: a pair must share its grid")
        if volume.affine is not None and (apart := _apart(reference, volume)) > _TOLERANCE * min(reference.spacing):
            raise MedgenError(f"{where}: the affines of {first} and {name} place a corner {apart:.2f} mm apart: a pair must share its grid")


def check_labels(volume: Volume, name: str, classes: int) -> None:
    """Refuse values of a label map that are not whole numbers below `classes`."""
    values = np.unique(volume.array)
    wrong = values[(values < 0) | (values >= classes) | (values != np.floor(values))]
    if wrong.size:
        expected = f"whole numbers from 0 to {classes - 1} ({classes} classes)"
        raise MedgenError(f"{volume.meta['file']}: label map '{name}' has the value {wrong[0]:g}; expected {expected}")


def attribute(row: Mapping[str, str], name: str, classes: int, path: Path) -> int | float:
    """The number in a cell: a class below `classes`, or a real number where `classes` is 0."""
    cell = row[name]
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise MedgenError(f"{path}: subject {row['subject']}: attribute '{name}' is '{cell}', not a number; write classes as 0, 1, 2, ...")
    if classes == 0:
        return value
    if value != int(value) or not 0 <= value < classes:
        raise MedgenError(f"{path}: subject {row['subject']}: attribute '{name}' is {cell}; expected a class from 0 to {classes - 1}")
    return int(value)


def _apart(a: Volume, b: Volume) -> float:
    """The largest distance in mm between the same corner of two grids."""
    corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in a.shape))]).T
    return float(np.linalg.norm((a.affine @ corners - b.affine @ corners)[:3], axis=0).max())
