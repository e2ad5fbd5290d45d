"""TIFF as OME has it (OME-TIFF 2016-06), which Fiji, QuPath, napari and Bio-Formats open with its spacing.

OME has no place for directions in the world, nor for units of values. Both stand as JSON in the image's description, where other programs
show them as text and medgen finds them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume, storable, writer

MARK = "medgen: "  # how the description of a written TIFF begins


def write(volume: Volume, path: Path) -> None:
    """Planes of a picture as Y X, of a volume (X, Y, Z) as Z Y X; colours of 8 and 16 bits as RGB, other planes as channels or times."""
    tifffile = writer("tifffile", "TIFF")
    array = storable(volume.array)
    if array.dtype.itemsize > 8 or array.dtype.kind == "c":
        raise MedgenError(f"{path.name}: a TIFF holds numbers of up to 64 bits, found {array.dtype}; save .npy")
    flat = array.ndim == 3
    spacing = volume.spacing or volume.meta.get("spacing")
    times = volume.meta.get("planes") == "time" and len(array) > 1
    colour = flat and len(array) == 3 and array.dtype in (np.uint8, np.uint16) and not times
    data = array if flat else array.transpose(0, 3, 2, 1)
    data = np.moveaxis(data, 0, -1) if colour else data
    metadata: dict[str, Any] = {"axes": "YXS" if colour else ("T" if times else "C") + ("YX" if flat else "ZYX")}
    if spacing is not None:  # in the order of the array's axes
        names = "YX" if flat else "XYZ"
        known = {name: step for name, step in zip(names, spacing, strict=False) if step is not None}
        metadata.update(
            {f"PhysicalSize{name}": step for name, step in known.items()}, **{f"PhysicalSize{name}Unit": "mm" for name in known}
        )
    if times and "frame_seconds" in volume.meta:
        metadata.update(TimeIncrement=volume.meta["frame_seconds"], TimeIncrementUnit="s")
    metadata["Description"] = MARK + json.dumps(_told(volume))
    photometric = "rgb" if colour else "minisblack"
    tifffile.imwrite(path, np.ascontiguousarray(data), ome=True, photometric=photometric, metadata=metadata, software="medgen")


def _told(volume: Volume) -> dict[str, Any]:
    affine = None if volume.affine is None else np.asarray(volume.affine, float).tolist()
    kept = {key: volume.meta[key] for key in ("planes", "planes_shape") if key in volume.meta}
    return {"units": volume.units, "affine": affine, "shape": list(volume.array.shape), **kept}
