"""NIfTI 1 and 2 (.nii, .nii.gz)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header


def header(path: Path, part: str | None) -> Header:
    import nibabel

    image = nibabel.load(path)
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.names or dtype.kind not in "fiu":
        raise MedgenError(f"{path}: voxels of type {dtype} (colour or complex); expected one real number per voxel")
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise MedgenError(f"{path}: shape {shape}; expected three axes: split a series or a multi-channel file into one file per volume")
    if abs(np.linalg.det(image.affine[:3, :3])) < 1e-12 or not np.isfinite(image.affine).all():
        raise MedgenError(f"{path}: its affine is singular, so voxels have no place in the world; repair the header")
    return Header(shape[:3] + (1,) * (3 - len(shape)), 1, np.dtype(np.float32), np.array(image.affine, np.float64))


def read(path: Path, part: str | None) -> Volume:
    import nibabel

    image = nibabel.load(path)
    if path.name.lower().endswith(".gz"):
        # nibabel stops at the last voxel, before the checksum that tells a damaged archive
        image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
    array = image.get_fdata(dtype=np.float32, caching="unchanged")
    array = array.reshape(array.shape[:3] + (1,) * (3 - array.ndim))
    return Volume(np.ascontiguousarray(array)[None], np.array(image.affine, np.float64))


FORMAT = Format("NIfTI", (".nii", ".nii.gz"), header, read)
