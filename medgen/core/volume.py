"""An image with its geometry and units. The only thing that medgen hands to a user and writes to disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError

NIFTI_UNITS = "medgen; units: "  # how the description of a written NIfTI begins


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

    def __repr__(self) -> str:
        place = "no geometry" if self.affine is None else f"{' x '.join(f'{s:.4g}' for s in self.spacing)} mm {self.orientation}"
        return f"Volume({' x '.join(map(str, self.array.shape))} {self.array.dtype}, {place}, {self.units})"

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
        """Write `.nii`, `.nii.gz`, `.tif`, `.npy`, `.png` or `.dcm` (of a volume a folder with one file per slice) by the file's ending.

        NIfTI keeps affine, units and planes, TIFF (OME) these and the spacing for other programs; npy keeps the array alone. A PNG keeps
        the values of a plain picture of 8 or 16 bits; of anything else it is an 8-bit view, which the file says of itself.

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
    array, meta = volume.array, volume.meta
    seconds = meta.get("frame_seconds") if meta.get("planes") == "time" and len(array) > 1 else None
    while array.ndim < 4:
        array = array[..., None]
    if meta.get("planes") == "colour" and array.dtype == np.uint8 and len(array) == 3:
        data = np.ascontiguousarray(np.moveaxis(array, 0, -1)).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    else:
        planes = tuple(meta.get("planes_shape", ()))[::-1]  # the order of the file's axes: time, vector
        planes = planes if np.prod(planes, dtype=int) == len(array) else (len(array),)
        data = storable(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1).reshape((*array.shape[1:], *planes), order="F"))
    kind = nibabel.Nifti1Image if max(data.shape) < 2**15 else nibabel.Nifti2Image
    image = kind(np.ascontiguousarray(data), volume.affine)
    image.header.set_xyzt_units("mm", "sec" if seconds else None)
    if seconds:
        image.header["pixdim"][4] = seconds
    image.header["descrip"] = f"{NIFTI_UNITS}{volume.units}"[:79].encode()
    nibabel.save(image, path)


def storable(array: np.ndarray) -> np.ndarray:
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
    from medgen.core.picture import VIEW, exact, picture

    pixels = exact(volume)
    if pixels is not None and pixels.ndim == 3 and pixels.dtype == np.uint16:
        path.write_bytes(writer("imagecodecs", "a 16-bit colour PNG").png_encode(np.ascontiguousarray(pixels)))
        return
    from PIL import Image, PngImagePlugin

    told = PngImagePlugin.PngInfo()
    if pixels is None:
        told.add_text(VIEW, f"8 bits of {volume.array.dtype} values ({volume.units}), to look at")
    Image.fromarray(picture(volume) if pixels is None else pixels).save(path, pnginfo=told)


def writer(name: str, what: str) -> ModuleType:
    """An optional library that writes.

    Raises:
        MedgenError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MedgenError(f"writing {what} needs {name}, which is not installed; run: pip install 'medgen[tiff]'") from error


def _write_tiff(volume: Volume, path: Path) -> None:
    from medgen.core.tiff import write

    write(volume, path)


WRITERS = {
    ".nii.gz": _write_nifti,
    ".nii": _write_nifti,
    ".npy": _write_npy,
    ".png": _write_png,
    ".tif": _write_tiff,
    ".tiff": _write_tiff,
    ".dcm": _write_dicom,
}
