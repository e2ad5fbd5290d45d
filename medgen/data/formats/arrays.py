"""numpy arrays (.npy, .npz), which have no geometry.

What is behind `#` in a cell: in an .npz the name of an array; then `/12` for one entry along its first axis (MedMNIST's layout), then
`axis=-1` for the axis of channels. Each is optional, and they are joined by `/`:

    cube.npy#axis=-1      (X, Y, Z, C)
    cubes.npy#12          the 13th entry of (N, ...)
    set.npz#train_images/12
    set.npz#train_images/12/axis=none      no axis of channels, however short the first axis is

Without `axis=`, two axes are a picture, three are (C, H, W) if the first is at most 4 long and a volume if not, four are (C, *S). Entries
of 8-bit arrays that end in an axis of 3 are colour pictures, (H, W, 3). Complex numbers are k-space and are left to its reader.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header, check_size, read_limit

_CHUNK = 1 << 20
_SHARE = 8  # unpacked arrays are kept up to this part of what one image may take


def header(path: Path, part: str | None) -> Header:
    array, axis = _chosen(path, part)
    if array.dtype.kind == "c":
        return Header(_kspace(path, array).image_shape(array.shape), 1, np.dtype(np.float32), meta=_shown())
    shape = array.shape if axis is None else tuple(n for i, n in enumerate(array.shape) if i != axis)
    return Header(shape, 1 if axis is None else array.shape[axis], array.dtype.newbyteorder("="))


def read(path: Path, part: str | None) -> Volume:
    array, axis = _chosen(path, part)
    if array.dtype.kind == "c":
        check_size(path, Header(array.shape, 1, array.dtype))
        return Volume(_kspace(path, array).image_of(array), meta=_shown())
    array = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return Volume(np.array(array, array.dtype.newbyteorder("="), order="C"))


def section(path: Path, part: str | None, axis: int, index: int) -> Volume:
    """One slice or one channel; of a .npy of real numbers the rest of the file is not read."""
    array, channels = _chosen(path, part)
    if array.dtype.kind == "c":
        array, channels = read(path, part).array, 0
    array = array[None] if channels is None else np.moveaxis(array, channels, 0)
    array = array[(slice(None),) * ((axis + 1) % 4) + (slice(index, index + 1),)]
    return Volume(np.array(array, array.dtype.newbyteorder("="), order="C"))


@dataclass(frozen=True)
class _Part:
    """A part of a cell, taken apart."""

    name: str | None = None
    row: int | None = None
    axis: int | str | None = None  # None: not said; "none": there is none

    @staticmethod
    def of(path: Path, part: str | None, named: bool) -> _Part:
        words = part.split("/") if part else []
        name = row = axis = None
        if named and words and not words[0].startswith("axis="):
            name = words.pop(0)
        if words and words[0].isdecimal():
            row = int(words.pop(0))
        if words and words[0].startswith("axis="):
            said = words.pop(0).removeprefix("axis=")
            axis = said if said == "none" else int(said) if said.removeprefix("-").isdecimal() else None
            words += [] if axis is not None else [said]
        if words:
            form = "name/row/axis=k" if named else "row/axis=k"
            raise MedgenError(
                f"{path}: no part '{part}'; expected #{form} or some of these, such as #{'images/12' if named else 'axis=-1'}"
            )
        return _Part(name, row, axis)


def _chosen(path: Path, part: str | None) -> tuple[np.ndarray, int | None]:
    """The array that a part names, not read yet where it is a .npy, and its axis of channels."""
    packed = path.name.lower().endswith(".npz")
    said = _Part.of(path, part, packed)
    array = _member(path, said.name) if packed else _mapped(path)
    if said.row is not None:
        if array.ndim < 2 or said.row >= len(array):
            raise MedgenError(f"{path}: no entry {said.row} in an array of shape {array.shape}")
        array = array[said.row]
    if array.dtype.kind not in "fiubc" or (array.dtype.kind != "c" and array.ndim not in (2, 3, 4)):
        raise MedgenError(
            f"{path}: shape {array.shape} of {array.dtype}; expected real numbers on 2 or 3 axes, with or without a channel axis in front: "
            "of a set of images name one, such as #12"
        )
    return array, _channel_axis(path, array, said)


def _channel_axis(path: Path, array: np.ndarray, said: _Part) -> int | None:
    if said.axis == "none":
        axis = None
    elif said.axis is not None:
        if not -array.ndim <= said.axis < array.ndim:
            raise MedgenError(f"{path}: no axis {said.axis} in an array of shape {array.shape}")
        axis = said.axis % array.ndim
    elif said.row is not None and array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8:
        axis = 2
    else:
        axis = 0 if array.ndim == 4 or (array.ndim == 3 and len(array) <= 4) else None
    if array.dtype.kind != "c" and array.ndim - (axis is not None) not in (2, 3):
        raise MedgenError(f"{path}: shape {array.shape} with channels on axis {axis}; expected 2 or 3 axes beside them")
    return axis


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, EOFError, ValueError, OverflowError) as error:
        first = str(error).splitlines()[0]
        raise MedgenError(f"{path}: a damaged .npy, or one with Python objects ({first}); save a plain array again") from error


_unpacked: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()  # arrays of .npz files, the one that was used last at the end


def _member(path: Path, name: str | None) -> np.ndarray:
    """An array of an .npz, unpacked once in this process and kept while there is room."""
    state = path.stat()
    key = (str(path.resolve()), state.st_mtime_ns, state.st_size, name)
    if key not in _unpacked:
        _unpacked[key] = _unpack(path, name)
    _unpacked.move_to_end(key)
    while len(_unpacked) > 1 and sum(array.nbytes for array in _unpacked.values()) > read_limit() // _SHARE:
        _unpacked.popitem(last=False)
    return _unpacked[key]


def _unpack(path: Path, name: str | None) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        if name is None and len(names) != 1:
            raise MedgenError(f"{path}: holds {', '.join(names)}; name one of them, such as {path.name}#{names[0] if names else 'name'}")
        chosen = names[0] if name is None else name
        if chosen not in names:
            raise MedgenError(f"{path}: holds no array '{chosen}'; {nearest(chosen, names)}")
        with archive.open(archive.infolist()[names.index(chosen)]) as file:
            return _array(path, file)


def _array(path: Path, file: BinaryIO) -> np.ndarray:
    """What the array's own header claims, if that is allowed, and no more, read to the checksum."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"arrays of version {version}")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if dtype.hasobject:
        raise MedgenError(f"{path}: an array of Python objects, which may hold programs; save a plain array again")
    check_size(path, Header(shape, 1, dtype))
    array = np.empty(shape[::-1] if fortran else shape, dtype)
    view, got = memoryview(array.reshape(-1).view(np.uint8)), 0
    while got < len(view):
        count = file.readinto(view[got : got + _CHUNK])
        if not count:
            raise EOFError(f"it ends after {got} of {len(view)} bytes")
        got += count
    if file.read(1):
        raise ValueError(f"it holds more than the {len(view)} bytes that it claims")
    array.flags.writeable = False
    return array.transpose() if fortran else array


def _shown() -> dict[str, Any]:
    """What is said of a complex array; a new dictionary each time."""
    told = "complex numbers, taken as k-space: the image is the root sum of squares of their inverse transform; of complex images save the"
    return {"image": "rss", "findings": [f"{told} magnitude"]}


def _kspace(path: Path, array: np.ndarray) -> ModuleType:
    """The reader of complex numbers."""
    try:
        return import_module("medgen.data.formats.kspace")
    except ImportError as error:
        raise MedgenError(f"{path}: shape {array.shape} of {array.dtype}; expected real numbers") from error


FORMAT = Format("numpy", (".npy", ".npz"), header, read, section=section)
