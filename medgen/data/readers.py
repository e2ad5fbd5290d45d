"""Files to `Volume`. A format is one function and one line of `READERS`."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.volume import Volume


def read(path: str | Path) -> Volume:
    """The image in `path` as float32 (C, *S) with the geometry its format knows.

    Raises:
        MedgenError: no such file, an ending that no reader takes, a damaged file, voxels that are not finite.
    """
    path = Path(path)
    name = path.name.lower()
    ending = next((e for e in READERS if name.endswith(e)), None)
    if ending is None:
        found = "".join(path.suffixes[-2:]) or "no ending"
        raise MedgenError(f"{path}: cannot read files ending in '{found}'; {nearest(found, READERS)}")
    if not path.is_file():
        raise MedgenError(f"{path}: no such file; check the path (relative paths in a manifest start at the manifest's folder)")
    volume = READERS[ending](path)
    wrong = volume.array.size - int(np.isfinite(volume.array).sum())
    if wrong:
        raise MedgenError(f"{path}: {wrong} of {volume.array.size} voxels are NaN or infinite; repair or mask the image first")
    return volume


def _read_nifti(path: Path) -> Volume:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        image = nibabel.load(path)
        _check_nifti(path, image)
        if path.name.lower().endswith(".gz"):
            # nibabel stops at the last voxel, before the checksum that tells a damaged archive
            image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
        array = image.get_fdata(dtype=np.float32, caching="unchanged")
    except MedgenError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        raise MedgenError(f"{path}: a damaged or truncated NIfTI ({_first_line(error)}); copy or export it again") from error
    array = array.reshape(array.shape[:3] + (1,) * (3 - array.ndim))
    return Volume(np.ascontiguousarray(array)[None], np.array(image.affine, np.float64), meta={"file": str(path)})


def _check_nifti(path: Path, image) -> None:
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.names or dtype.kind not in "fiu":
        raise MedgenError(f"{path}: voxels of type {dtype} (colour or complex); expected one real number per voxel")
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise MedgenError(f"{path}: shape {shape}; expected three axes: split a series or a multi-channel file into one file per volume")
    if abs(np.linalg.det(image.affine[:3, :3])) < 1e-12 or not np.isfinite(image.affine).all():
        raise MedgenError(f"{path}: its affine is singular, so voxels have no place in the world; repair the header")


def _read_png(path: Path) -> Volume:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()
        with Image.open(path, formats=("PNG",)) as image:
            grey = image.mode == "LA"
            array = np.asarray(image.convert("RGBA") if image.mode in ("P", "PA", "LA") else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise MedgenError(f"{path}: a damaged or truncated PNG ({_first_line(error)}); copy or export it again") from error
    if array.ndim == 3 and _bit_depth(path) == 16:
        raise MedgenError(f"{path}: 16-bit colour would be cut to 8 bits; save 8-bit colour, 16-bit grey, or .npy")
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if len(planes) == 4:
        planes = _opaque(path, planes)[: 1 if grey else 3]
    return Volume(np.ascontiguousarray(planes, np.float32), meta={"file": str(path)})


def _bit_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


def _opaque(path: Path, planes: np.ndarray) -> np.ndarray:
    if (planes[3] != 255).any():
        raise MedgenError(f"{path}: has transparent pixels, whose colour is undefined; save the picture without an alpha channel")
    return planes[:3]


def _read_npy(path: Path) -> Volume:
    """2D is one plane; three axes are (C, H, W) when the first is at most 4, else one volume; four are (C, *S)."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise MedgenError(f"{path}: a damaged .npy, or one with Python objects ({_first_line(error)}); save a plain array again") from error
    if array.ndim not in (2, 3, 4) or array.dtype.kind not in "fiub":
        raise MedgenError(
            f"{path}: shape {array.shape} of {array.dtype}; expected real numbers on 2 or 3 axes, with or without a channel axis in front"
        )
    if array.ndim == 2 or (array.ndim == 3 and len(array) > 4):
        array = array[None]
    return Volume(np.ascontiguousarray(array, np.float32), meta={"file": str(path)})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[Path], Volume]] = {".nii.gz": _read_nifti, ".nii": _read_nifti, ".png": _read_png, ".npy": _read_npy}
