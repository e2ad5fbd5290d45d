"""An image with its geometry and units. The only thing that medgen hands to a user and writes to disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
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
        """Write `.nii`, `.nii.gz`, `.npy`, `.png` or `.dcm` (of a volume a folder with one file per slice) by the file's ending.

        Raises:
            MedgenError: a NIfTI without geometry; an existing file without `overwrite`; an unknown ending; a place that cannot be
                written. What was there before stays until the new file is complete.
        """
        path = Path(path)
        ending = writable(path, overwrite)
        return placed(path, ending, lambda partial: WRITERS[ending](self, partial))

    def save_dicom(
        self, path: str | Path, reference: str | Path | None = None, keep_patient: bool = False, overwrite: bool = False
    ) -> Path:
        """Write a derived series beside its `reference`: see `medgen.core.dicom.save_dicom`."""
        from medgen.core.dicom import save_dicom

        return save_dicom(self, path, reference, keep_patient, overwrite)


def placed(path: Path, ending: str, write: Callable[[Path], None]) -> Path:
    """What `write` makes, a file or a folder, under its name once it is complete.

    Raises:
        MedgenError: the place cannot be written.
    """
    partial, old = path.with_name(f".{path.name}.partial{ending}"), path.with_name(f".{path.name}.old")
    try:
        _removed(partial)
        write(partial)
        if path.is_dir() or (partial.is_dir() and path.exists()):
            _removed(old)
            os.replace(path, old)
        os.replace(partial, path)
        _removed(old)
    except OSError as error:
        raise MedgenError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _removed(partial)
    return path


def _removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def writable(path: Path, overwrite: bool = False) -> str:
    """The ending of a file that `Volume.save` can write; its folder is made. Ask before hours of work, not after.

    Raises:
        MedgenError: an unknown ending, an existing file without `overwrite`, a folder in its place or one that cannot be written.
    """
    ending = next((e for e in WRITERS if path.name.lower().endswith(e)), None)
    if ending is None:
        raise MedgenError(f"cannot write {path.name}: the file must end in one of {', '.join(WRITERS)}")
    folder_for(path.parent)
    if path.is_dir() and ending != ".dcm":
        raise MedgenError(f"{path} is a folder; choose a file name")
    if path.is_dir() and any(inside.is_dir() or inside.suffix.lower() != ".dcm" for inside in path.iterdir()):
        raise MedgenError(f"{path} is a folder with more than a DICOM series in it; choose another name")
    if path.exists() and not overwrite:
        raise MedgenError(f"{path} exists; choose another name or pass overwrite=True (--overwrite)")
    return ending


def folder_for(folder: Path) -> Path:
    """`folder`, made where it is missing.

    Raises:
        MedgenError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedgenError(f"cannot make the folder {folder}: {error.strerror}; choose another place") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MedgenError(f"cannot write into the folder {folder}: permission denied; choose another place")
    return folder


def _write_nifti(volume: Volume, path: Path) -> None:
    import nibabel

    if volume.affine is None:
        raise MedgenError(f"{path.name}: a NIfTI needs an affine, and this volume has no geometry; save .npy or .png, or set `affine`")
    array = volume.array
    while array.ndim < 4:
        array = array[..., None]
    data = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    image = nibabel.Nifti1Image(_storable(np.ascontiguousarray(data)), volume.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"medgen; units: {volume.units}"[:79].encode()
    nibabel.save(image, path)


def _storable(array: np.ndarray) -> np.ndarray:
    """Types that NIfTI has not, or that few programs read, in the next one that holds their values."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        small = bool(array.size) and array.min() >= -(2**31) and array.max() < 2**31
        return array.astype(np.int32 if small else np.float64)
    return array


def _write_npy(volume: Volume, path: Path) -> None:
    np.save(path, volume.array)


def _write_dicom(volume: Volume, path: Path) -> None:
    from medgen.core.dicom import write

    write(volume, path)


def _write_png(volume: Volume, path: Path) -> None:
    from PIL import Image

    from medgen.core.picture import picture

    Image.fromarray(picture(volume)).save(path)


WRITERS = {".nii.gz": _write_nifti, ".nii": _write_nifti, ".npy": _write_npy, ".png": _write_png, ".dcm": _write_dicom}
