"""Any image that a manifest names to `Volume`. The formats are the modules of `medgen.data.formats`.

A cell of a manifest is a path, or a path and a part of it after `#`: a series of a DICOM folder, an array of an .npz and a row of it,
a level of a slide.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.volume import Volume
from medgen.data import formats as package
from medgen.data.formats.format import Format, Header, check_size


def read(source: str | Path) -> Volume:
    """The image in `source` as float32 (C, *S) with the geometry its format knows.

    Raises:
        MedgenError: no such file, an ending that no format has, a damaged file, voxels that are not finite.
    """
    return finite(read_stored(source))


def read_stored(source: str | Path) -> Volume:
    """As `read`, with the values in the type that the file keeps them in, finite or not."""
    path, part = parted(source)
    format = format_of(path, part)
    header = _told(format, path, lambda: format.header(path, part))
    check_size(path, header)
    volume = _told(format, path, lambda: format.read(path, part))
    return volume.with_array(volume.array, meta={"file": str(source), **volume.meta})


def finite(volume: Volume) -> Volume:
    """What `read_stored` gave, as float32.

    Raises:
        MedgenError: a voxel is not finite.
    """
    array = np.ascontiguousarray(volume.array, np.float32)
    wrong = array.size - int(np.isfinite(array).sum()) if volume.array.dtype.kind == "f" else 0
    if wrong:
        raise MedgenError(f"{volume.meta['file']}: {wrong} of {array.size} voxels are NaN or infinite; repair or mask the image first")
    return volume.with_array(array)


def read_section(source: str | Path, axis: int, index: int) -> Volume:
    """One slice of a volume (`axis` 0, 1 or 2: one voxel thick, at its place in the world) or one of its planes (`axis` 3: a frame, a
    channel), as stored. Where the format can, nothing else is read.

    Raises:
        MedgenError: as `read_stored`; an axis or index that the image has not.
    """
    path, part = parted(source)
    format = format_of(path, part)
    header = _told(format, path, lambda: format.header(path, part))
    check_size(path, header)
    extent = (*header.shape, header.channels)
    if len(extent) != 4 or axis not in range(4) or not 0 <= index < extent[axis]:
        raise MedgenError(f"{source}: no section {index} of axis {axis}; its axes and planes are {extent}")
    if format.section is not None:
        volume = _told(format, path, lambda: format.section(path, part, axis, index))
    else:
        volume = _told(format, path, lambda: _cut(format.read(path, part), axis, index))
    return volume.with_array(volume.array, meta={"file": str(source), **volume.meta})


def _cut(volume: Volume, axis: int, index: int) -> Volume:
    if axis == 3:
        return volume.with_array(volume.array[index : index + 1])
    affine = None if volume.affine is None else volume.affine.copy()
    if affine is not None:
        affine[:3, 3] += index * affine[:3, axis]
    return volume.with_array(np.take(volume.array, [index], axis + 1), affine=affine)


def peek(source: str | Path) -> Header:
    """What `source` says of its image, without the voxels.

    Raises:
        MedgenError: no such file, an ending that no format has, a damaged header.
    """
    path, part = parted(source)
    format = format_of(path, part)
    return _told(format, path, lambda: format.header(path, part))


def parted(source: str | Path) -> tuple[Path, str | None]:
    """The path of a cell, and the part behind `#`. A file whose own name has a `#` is taken as it is."""
    path = Path(source)
    if "#" not in str(source) or path.exists():
        return path, None
    place, _, part = str(source).rpartition("#")
    return Path(place), part


def format_of(path: Path, part: str | None = None) -> Format:
    """The format of an existing file or folder, or of what is asked of it.

    Raises:
        MedgenError: nothing is there, or no format takes it.
    """
    known = formats()
    wanted = next((format for format in known if part and format.asked(path, part)), None)
    if wanted and path.is_file():
        return wanted
    name = path.name.lower()
    by_ending = [(ending, format) for format in known for ending in format.endings if name.endswith(ending)]
    if by_ending and not path.is_dir():
        if not path.is_file():
            raise MedgenError(f"{path}: no such file; check the path (relative paths in a manifest start at the manifest's folder)")
        return max(by_ending, key=lambda pair: len(pair[0]))[1]
    found = next((format for format in known if path.exists() and format.fits(path)), None)
    if found is None:
        endings = [ending for format in known for ending in format.endings]
        if path.is_dir():
            raise MedgenError(f"{path}: a folder without a DICOM series; give a file, or the folder that holds the series")
        seen = "".join(path.suffixes[-2:]) or "no ending"
        raise MedgenError(f"{path}: cannot read files ending in '{seen}'; {nearest(seen, endings)}")
    return found


@cache
def formats() -> tuple[Format, ...]:
    """All formats, in the order of their modules' names."""
    modules = [import_module(f"{package.__name__}.{found.name}") for found in iter_modules(package.__path__)]
    return tuple(module.FORMAT for module in modules if hasattr(module, "FORMAT"))


def _told(format: Format, path: Path, call):
    """The call's result; whatever a decoder raises on a damaged file becomes one sentence that names the file."""
    try:
        return call()
    except MedgenError:
        raise
    except MemoryError as error:
        raise MedgenError(f"{path}: takes more memory than there is; read a part of it, or give medgen more memory") from error
    except Exception as error:  # the decoders of damaged files raise everything that there is
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MedgenError(f"{path}: a damaged or truncated {format.name} ({first}); copy or export it again") from error
