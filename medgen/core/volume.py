"""An image with its geometry and units. The only thing that medgen hands to a user and writes to disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError


@dataclass(frozen=True)
class Volume:
    """An image on a grid.

    Attributes:
        array: (C, *S); spatial axes in the order of the affine's columns (NIfTI order), or (C, H, W) for a plain picture.
        affine: (4, 4) voxel index to world millimetres (RAS+), or None for an image that has no geometry.
        units: what the values are: "HU", "arbitrary (MR)", "normalised", "label".
        meta: anything else worth keeping (source file, seed, subject).
    """

    array: np.ndarray
    affine: np.ndarray | None = None
    units: str = "stored"
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape, without the channel."""
        return tuple(self.array.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel size in millimetres along each of the affine's three axes."""
        return None if self.affine is None else tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str | None:
        """Three letters such as "RAS": the direction in which each axis grows, to the closest anatomical axis."""
        if self.affine is None:
            return None
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(self.affine))

    def with_array(self, array: np.ndarray, **changes: Any) -> Volume:
        """The same grid with other values."""
        return replace(self, array=array, **changes)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write `.nii`, `.nii.gz`, `.npy` or `.png` by the file's ending.

        Raises:
            MedgenError: a NIfTI without geometry; an existing file without `overwrite`; an unknown ending.
        """
        path = Path(path)
        ending = next((e for e in WRITERS if path.name.lower().endswith(e)), None)
        if ending is None:
            raise MedgenError(f"cannot write {path.name}: the file must end in one of {', '.join(WRITERS)}")
        if path.exists() and not overwrite:
            raise MedgenError(f"{path} exists; choose another name or pass overwrite=True (--overwrite)")
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[ending](self, path)
        return path


def _write_nifti(volume: Volume, path: Path) -> None:
    import nibabel

    if volume.affine is None:
        raise MedgenError(f"{path.name}: a NIfTI needs an affine, and this volume has no geometry; save .npy or .png, or set `affine`")
    array = volume.array
    while array.ndim < 4:
        array = array[..., None]
    data = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    image = nibabel.Nifti1Image(np.ascontiguousarray(data), volume.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"medgen; units: {volume.units}"[:79].encode()
    nibabel.save(image, path)


def _write_npy(volume: Volume, path: Path) -> None:
    np.save(path, volume.array)


def _write_png(volume: Volume, path: Path) -> None:
    from PIL import Image

    from medgen.core.picture import picture

    Image.fromarray(picture(volume)).save(path)


WRITERS = {".nii.gz": _write_nifti, ".nii": _write_nifti, ".npy": _write_npy, ".png": _write_png}
