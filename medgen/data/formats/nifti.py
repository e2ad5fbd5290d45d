"""NIfTI 1 and 2: one file (.nii, .nii.gz) or a pair (.hdr with .img).

Where an image is in the world: the sform if its code says that there is one, else the qform, else the voxel sizes alone, as nibabel has
it; a sform that is singular is passed over for the qform. A fourth axis is planes of one grid: frames if the header counts it in
seconds, else channels.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import NIFTI_UNITS, Volume
from medgen.data.formats.format import Format, Header

_MM = {1: 1000.0, 2: 1.0, 3: 1e-3}  # code of the space unit: metre, millimetre, micrometre
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # code of the time unit: second, millisecond, microsecond
_EXTENSIONS = 256 << 20  # bytes that header extensions may take before the voxels
_SLACK = 1 << 20  # bytes after the voxels that are no reason to mistrust a compressed file
_CHUNK = 1 << 20
_BLOCK = 64
_COLOURS = {("R", "G", "B"): 3, ("R", "G", "B", "A"): 4}


def header(path: Path, part: str | None) -> Header:
    return _stored(path).header


def read(path: Path, part: str | None) -> Volume:
    stored = _stored(path)
    with _opened(stored.file) as (file, compressed):
        _skip(file, stored.offset)
        array = _voxels(file, stored, compressed)
    return stored.volume(array.reshape(stored.shape, order="F"))


def section(path: Path, part: str | None, axis: int, index: int) -> Volume:
    """One slice (axis 0 to 2) or one plane (axis 3) without the rest of the file; of a compressed file no checksum is checked."""
    from nibabel.fileslice import fileslice

    stored = _stored(path)
    slices = [slice(None)] * 4
    if axis < 3 or not stored.dtype.names:
        slices[axis] = slice(index, index + 1)
    with _opened(stored.file) as (file, _):
        array = fileslice(file, tuple(slices), stored.shape, stored.dtype, stored.offset, order="F")
    volume = stored.volume(array)
    if axis == 3 and stored.dtype.names:
        return volume.with_array(volume.array[index : index + 1])
    if axis < 3:
        volume.affine[:3, 3] += index * volume.affine[:3, axis]
    return volume


@dataclass(frozen=True)
class _Stored:
    """Where the voxels lie: (X, Y, Z, planes) of `dtype` in Fortran order at `offset` of `file`, and what they mean."""

    file: Path
    offset: int
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    scale: tuple[float, float] | None
    header: Header

    @property
    def nbytes(self) -> int:
        total = self.dtype.itemsize
        for n in self.shape:
            total *= n
        return total

    def volume(self, array: np.ndarray) -> Volume:
        """(x, y, z, planes) as stored to (C, x, y, z) as they are meant."""
        told = self.header
        if array.dtype.names:
            array = _colours(array)
        array = _planes_first(array, told.dtype)
        if self.scale is not None:
            array *= told.dtype.type(self.scale[0])
            array += told.dtype.type(self.scale[1])
        return Volume(array, told.affine.copy(), told.units, dict(told.meta))


def _stored(path: Path) -> _Stored:
    where, voxels = _pair(path)
    with _opened(where) as (file, _):
        head = _head(file, where, single=where == voxels)
    shape, dtype = tuple(int(n) for n in head.get_data_shape()), head.get_data_dtype()
    dtype = dtype if dtype.names else dtype.newbyteorder(head.endianness)
    if dtype.kind not in "fiu" and dtype.names not in _COLOURS:
        raise MedgenError(f"{path}: voxels of type {dtype}; expected one real number or an RGB colour per voxel")
    shape += (1,) * (4 - len(shape))
    planes = _planes(path, head, shape, colour=bool(dtype.names))
    slope, inter = head.get_slope_inter()
    scaled = not dtype.names and (slope, inter) not in ((None, None), (1.0, 0.0))
    kind = np.dtype(np.uint8) if dtype.names else np.result_type(dtype, np.float32) if scaled else dtype.newbyteorder("=")
    affine, form = _affine(path, head)
    count = len(dtype.names[:3]) if dtype.names else _product(shape[3:])
    meta = {**planes, "geometry": form}
    offset = int(head["vox_offset"])
    return _Stored(
        file=voxels,
        offset=max(offset, head.single_vox_offset) if where == voxels else offset,
        shape=(*shape[:3], _product(shape[3:])),
        dtype=dtype,
        scale=(float(slope), float(inter)) if scaled else None,
        header=Header(shape[:3], count, kind, affine, _units(head), meta),
    )


def files(path: Path) -> tuple[Path, ...]:
    """The file, and the other half of a pair."""
    return tuple(dict.fromkeys((path, *_pair(path))))


def _pair(path: Path) -> tuple[Path, Path]:
    """The file of the header and the file of the voxels."""
    name = path.name
    for ours, other, first in ((".hdr", ".img", True), (".img", ".hdr", False)):
        stem, found, zipped = name.lower().rpartition(ours)
        if found and zipped in ("", ".gz"):
            cut = len(stem)
            twin = path.with_name(name[:cut] + (other.upper() if name[cut : cut + 4].isupper() else other) + name[cut + 4 :])
            if not twin.is_file():
                raise MedgenError(f"{path}: the other half of the pair, {twin.name}, is not beside it; copy both files")
            return (path, twin) if first else (twin, path)
    return path, path


class _opened:
    """A file to read from, and whether it is compressed, which is seen by its first bytes and not by its name."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self.compressed = file.read(2) == b"\x1f\x8b"
        self.file = _gzip(path) if self.compressed else path.open("rb")

    def __enter__(self) -> tuple[BinaryIO, bool]:
        return self.file, self.compressed

    def __exit__(self, *error: object) -> None:
        self.file.close()


def _gzip(path: Path) -> BinaryIO:
    """By the faster library where it is installed; both give the same bytes and check the checksum at the end."""
    try:
        from isal import igzip
    except ImportError:
        return gzip.open(path)
    return igzip.open(path)


def _head(file: BinaryIO, path: Path, single: bool) -> Any:
    import nibabel
    from nibabel.nifti1 import Nifti1PairHeader
    from nibabel.nifti2 import Nifti2PairHeader

    begin = file.read(348)
    size = {int.from_bytes(begin[:4], order) for order in ("little", "big")} & {348, 540}
    if not size:
        raise ValueError("it does not begin with the header of a NIfTI")
    begin += file.read(540 - 348) if size == {540} else b""
    magic = begin[4:8] if size == {540} else begin[344:348]
    if magic[:2] not in (b"n+", b"ni"):
        remedy = "it is ANALYZE 7.5, which does not store left and right" if path.suffix != ".nii" and magic == b"\0\0\0\0" else "no NIfTI"
        raise MedgenError(f"{path}: a damaged header, or {remedy}; convert the image to NIfTI with the program that made it")
    if single != (magic[:2] == b"n+"):
        remedy = "rename it to .hdr beside its .img" if single else "give it the ending .nii"
        raise MedgenError(f"{path}: its header is that of {'a pair of files' if single else 'a single file'}; {remedy}")
    one, two = (nibabel.Nifti1Header, nibabel.Nifti2Header) if single else (Nifti1PairHeader, Nifti2PairHeader)
    return (two if size == {540} else one)(begin)


def _planes(path: Path, head: Any, shape: tuple[int, ...], colour: bool) -> dict[str, Any]:
    frames, others = shape[3], _product(shape[4:])
    if colour:
        if frames * others > 1:
            raise MedgenError(f"{path}: a series of colour volumes, shape {shape}; save one file per volume")
        return {"planes": "colour"}
    if frames * others == 1:
        return {}
    if len([n for n in shape[4:] if n > 1]) > 1:
        raise MedgenError(f"{path}: shape {shape}; expected at most five axes: save one file per volume")
    unit = _SECONDS.get(int(head["xyzt_units"]) & 0x38)
    seconds = float(head["pixdim"][4]) * (unit or 0.0)
    if others > 1:
        return {"planes": "channel", **({"planes_shape": (others, frames)} if frames > 1 else {})}
    if unit is None or not np.isfinite(seconds) or seconds <= 0:
        return {"planes": "channel"}
    return {"planes": "time", "frame_seconds": round(seconds, 9)}


def _affine(path: Path, head: Any) -> tuple[np.ndarray, str]:
    """In millimetres, and where it is from."""
    forms = []
    if int(head["sform_code"]) > 0:
        forms.append(("sform", head.get_sform))
    if int(head["qform_code"]) > 0:
        forms.append(("qform", head.get_qform))
    for name, form in forms or [("voxel sizes", head.get_base_affine)]:
        try:
            affine = np.array(form(), np.float64)
        except ValueError:  # a quaternion longer than one
            continue
        affine[:3] *= _MM.get(int(head["xyzt_units"]) & 0x07, 1.0)
        if np.isfinite(affine).all() and np.linalg.cond(affine[:3, :3]) < 1e7:
            return affine, name
    raise MedgenError(f"{path}: its affine is singular, so voxels have no place in the world; repair the header")


def _units(head: Any) -> str:
    """What medgen wrote into the description when it saved the file."""
    said = head["descrip"].item().decode("latin-1")
    return said.removeprefix(NIFTI_UNITS) if said.startswith(NIFTI_UNITS) else "stored"


def _skip(file: BinaryIO, offset: int) -> None:
    if offset > _EXTENSIONS:
        raise ValueError(f"its voxels are said to begin at byte {offset}")
    file.seek(offset)


def _voxels(file: BinaryIO, stored: _Stored, compressed: bool) -> np.ndarray:
    """What the header claims and no more, read to the checksum."""
    if not compressed and (size := stored.file.stat().st_size) < stored.offset + stored.nbytes:
        raise EOFError(f"{size} bytes, and its header claims {stored.offset + stored.nbytes}")
    array = np.empty(stored.nbytes, np.uint8)
    view, got = memoryview(array), 0
    while got < stored.nbytes:
        count = file.readinto(view[got : got + _CHUNK])
        if not count:
            raise EOFError(f"it ends after {got} of {stored.nbytes} bytes of voxels")
        got += count
    rest = 0
    while compressed and (tail := file.read(1 << 16)):
        rest += len(tail)
        if rest > _SLACK:
            raise ValueError(f"it holds more than the {stored.nbytes} bytes that its header claims")
    return array.view(stored.dtype)


def _planes_first(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """(X, Y, Z, C) in Fortran order to (C, X, Y, Z) in C order, in blocks that the cache holds: two to six times as fast as one copy."""
    made = np.empty((array.shape[3], *array.shape[:3]), dtype)
    for plane, x, z in product(range(array.shape[3]), range(0, array.shape[0], _BLOCK), range(0, array.shape[2], _BLOCK)):
        made[plane, x : x + _BLOCK, :, z : z + _BLOCK] = array[x : x + _BLOCK, :, z : z + _BLOCK, plane]
    return made


def _colours(array: np.ndarray) -> np.ndarray:
    """(X, Y, Z, 1) of structures to (X, Y, Z, 3)."""
    if "A" in array.dtype.names and len(np.unique(array["A"])) > 1:
        raise ValueError("transparent voxels, whose colour is undefined")
    return np.stack([array[name][..., 0] for name in "RGB"], -1)


def _product(numbers: tuple[int, ...]) -> int:
    total = 1
    for n in numbers:
        total *= n
    return total


FORMAT = Format("NIfTI", (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"), header, read, files=files, section=section)
