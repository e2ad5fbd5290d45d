"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) by SimpleITK.

ITK's world is LPS, medgen's RAS. The text in front of the voxels is read here first, so that nothing is handed to ITK that names files
elsewhere or that claims more bytes than there are, and so that an image without geometry is not given one: of a NRRD without `space` and
of a MetaImage without spacing, offset and directions the affine is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header, library
from medgen.data.paths import leaves

_TEXT = 1 << 20  # bytes that a header in text may have
_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6}
_META_GEOMETRY = ("elementspacing", "transformmatrix", "rotation", "orientation", "offset", "position", "origin")
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def header(path: Path, part: str | None) -> Header:
    text = _text(path)
    return _header(path, text, _reader(path, text))


def read(path: Path, part: str | None) -> Volume:
    text = _text(path)
    reader = _reader(path, text)
    told = _header(path, text, reader)
    itk = library("SimpleITK", "itk", "NRRD and MetaImage")
    image = reader.Execute()  # the view below does not keep it alive
    array = itk.GetArrayViewFromImage(image)  # (t, z, y, x, c), each of t, z and c only where the file has it
    vector = reader.GetNumberOfComponents() > 1
    array = array if vector else array[..., None]
    array = array.reshape(-1, *array.shape[-1 - len(told.shape) :]) if reader.GetDimension() > 3 else array[None]
    axes = (array.ndim - 1, 0, *(range(array.ndim - 2, 0, -1) if len(told.shape) == 3 else range(1, array.ndim - 1)))
    array = array.transpose(axes)  # (c, t, x, y, z) or (c, t, y, x)
    return Volume(np.array(array.reshape(told.channels, *told.shape), told.dtype, order="C"), told.affine, meta=dict(told.meta))


@dataclass(frozen=True)
class _Text:
    """The fields of a header by their names in lower case.

    Attributes:
        data: what it says of the files of its voxels; None where they follow in the same file.
        listed: names of files on lines of their own.
    """

    nrrd: bool
    fields: dict[str, str]
    data: str | None
    listed: tuple[str, ...] = ()


def _text(path: Path) -> _Text:
    with path.open("rb") as file:
        start = file.read(_TEXT)
    return _nrrd(start) if path.name.lower().endswith((".nrrd", ".nhdr")) else _metaimage(start)


def _nrrd(start: bytes) -> _Text:
    if not start.startswith(b"NRRD000"):
        raise ValueError("it does not begin with NRRD000")
    end = re.search(rb"\r?\n\r?\n", start)
    if end is None and len(start) == _TEXT:
        raise ValueError(f"no end of its header in {_TEXT} bytes")
    lines = (start if end is None else start[: end.start()]).decode("latin-1").splitlines()[1:]
    lines = [line for line in lines if not line.startswith("#") and ":=" not in line]
    fields, listed = {}, []
    for line in lines:
        name, found, value = line.partition(":")
        if found and "datafile" not in fields:
            name = name.strip().lower()
            fields["datafile" if name == "data file" else name] = value.strip()
        else:
            listed.append(line.strip())
    return _Text(True, fields, fields.get("datafile"), tuple(listed))


def _metaimage(start: bytes) -> _Text:
    end = re.search(rb"(?m)^[ \t]*ElementDataFile\s*[=:][^\n]*\n?", start)
    if end is None:
        raise ValueError(f"no ElementDataFile in its first {len(start)} bytes")
    pairs = [re.split(r"[=:]", line, maxsplit=1) for line in start[: end.end()].decode("latin-1").splitlines()]
    names = [pair[0].strip().lower() for pair in pairs if len(pair) == 2]
    if len(set(names)) < len(names):
        raise ValueError("a field appears twice in its header")
    fields = {pair[0].strip().lower(): pair[1].strip() for pair in pairs if len(pair) == 2}
    data = re.split(r"[=:]", end[0].decode("latin-1"), maxsplit=1)[1].strip()
    if data.upper() == "LOCAL":
        return _Text(False, fields, None)
    listed = start[end.end() :].decode("latin-1").splitlines() if data.upper().startswith("LIST") else ()
    return _Text(False, fields, data, tuple(line.strip() for line in listed if line.strip()))


def files(path: Path) -> tuple[Path, ...]:
    """The header and the files of voxels that it names, one by one or by a pattern."""
    text = _text(path)
    if text.data is None:
        return (path,)
    words = text.data.split()
    if "%" in text.data:
        named = sorted(path.parent.glob(re.sub(r"([*?[])", r"[\1]", words[0].partition("%")[0]) + "*"))
    else:
        named = [path.parent / name for name in ((text.data,) if words and words[0].upper() != "LIST" else text.listed)]
    return tuple(dict.fromkeys((path, *(file for file in named if file.is_file()))))


def _reader(path: Path, text: _Text) -> Any:
    """A SimpleITK reader that has read the header, and that can only be this format's."""
    _check_files(path, text)
    _check_claims(path, text)
    itk = library("SimpleITK", "itk", "NRRD and MetaImage")
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = itk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if text.nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(re.sub(r"(sitk::|ITK )ERROR: (\w+\(\w+\): )?", "", str(error).strip().splitlines()[-1])) from error
    return reader


def _check_files(path: Path, text: _Text) -> None:
    """Refuse data files outside of the header's folder, and patterns that are more than a number."""
    said = text.data
    if said is None:
        return
    words, names = said.split(), (said,)
    if not words or words[0].upper() == "LIST":
        names = text.listed
    elif "%" in said:
        if re.fullmatch(r"[^%]*%0?\d{0,2}d[^%]*", words[0]) is None:
            raise ValueError(f"its data files are named by '{words[0]}'")
        names = (words[0],)
    for name in (*names, *text.listed):
        if leaves(path.parent, name):
            raise MedgenError(f"{path}: its voxels are said to lie in {name}, outside of its folder; put header and data into one folder")


def _check_claims(path: Path, text: _Text) -> None:
    """Refuse what would make ITK allocate without need: its own readers trust these numbers."""
    sizes = [int(n) for n in text.fields.get("sizes" if text.nrrd else "dimsize", "").split()]
    axes = text.fields.get("dimension" if text.nrrd else "ndims", "")
    if not 1 <= len(sizes) <= 5 or min(sizes) < 1 or axes != str(len(sizes)):
        raise ValueError(f"its {axes} axes have the sizes {sizes}")
    claimed = 0 if text.nrrd else int(text.fields.get("compresseddatasize", 0))
    place = path if text.data is None else path.parent / text.data
    if claimed and place.is_file() and claimed > place.stat().st_size:
        raise ValueError(f"it claims {claimed} compressed bytes and has {place.stat().st_size}")


def _header(path: Path, text: _Text, reader: Any) -> Header:
    count, size, channels = reader.GetDimension(), reader.GetSize(), reader.GetNumberOfComponents()
    if count not in (2, 3, 4):
        raise MedgenError(f"{path}: {count} axes; expected 2, 3 or 4 (a series of volumes): save one file per volume")
    dtype = _dtype(path, reader)
    frames = size[3] if count == 4 else 1
    meta: dict[str, Any] = {}
    if channels * frames > 1:
        colour = channels == 3 and "-color" in text.fields.get("kinds", "").lower()
        meta["planes"] = "colour" if colour and frames == 1 else "channel"
        if channels > 1 and frames > 1:
            meta["planes_shape"] = (channels, frames)
    shape = tuple(reversed(size)) if count == 2 else tuple(size[:3])
    affine = None
    if _has_geometry(text):
        scale = _unit(text)
        if count == 2:
            meta["spacing"] = tuple(s * scale for s in reversed(reader.GetSpacing()))
        else:
            affine = _affine(path, reader, scale)
    return Header(shape, channels * frames, dtype, affine, meta=meta)


def _dtype(path: Path, reader: Any) -> np.dtype:
    itk = library("SimpleITK", "itk", "NRRD and MetaImage")
    kind = itk.GetPixelIDValueAsString(reader.GetPixelID())
    found = re.search(r"(unsigned|signed)? ?(8|16|32|64)[- ]bit (integer|float|unsigned integer|signed integer)", kind)
    if found is None or "complex" in kind:
        raise MedgenError(f"{path}: voxels of type {kind}; expected one real number per voxel and channel")
    if "float" in found[3]:
        return np.dtype(f"f{int(found[2]) // 8}")
    return np.dtype(f"{'u' if 'unsigned' in kind else 'i'}{int(found[2]) // 8}")


def _has_geometry(text: _Text) -> bool:
    if text.nrrd:
        return "space directions" in text.fields
    return any(name in text.fields for name in _META_GEOMETRY)


def _unit(text: _Text) -> float:
    units = set(re.findall(r'"([^"]*)"', text.fields.get("space units", "")))
    if len(units) > 1:
        raise ValueError(f"its space units differ: {', '.join(sorted(units))}")
    return _MM.get(units.pop().strip().lower(), 1.0) if units else 1.0


def _affine(path: Path, reader: Any, scale: float) -> np.ndarray:
    """LPS directions, spacing and origin to the RAS affine; of four axes the first three, which must be apart from the fourth."""
    count = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(count, count)
    if count == 4 and (direction[3, :3].any() or direction[:3, 3].any()):
        raise MedgenError(f"{path}: its fourth axis has a direction in space; save one file per volume")
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * np.array(reader.GetSpacing()[:3]) * scale
    affine[:3, 3] = np.array(reader.GetOrigin()[:3]) * scale
    affine = _TO_RAS @ affine
    if not np.isfinite(affine).all() or np.linalg.cond(affine[:3, :3]) > 1e7:
        raise MedgenError(f"{path}: its directions are singular, so voxels have no place in the world; repair the header")
    return affine


FORMAT = Format("NRRD or MetaImage", (".nrrd", ".nhdr", ".mha", ".mhd"), header, read, files=files, extra="itk")
