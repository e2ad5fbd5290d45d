"""What a format tells of a file, and how a cell of a manifest names one image in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume

LIMIT = "MEDGEN_READ_LIMIT"  # environment: bytes that one image may take in memory


@dataclass(frozen=True)
class Header:
    """What is known of an image without its voxels.

    Attributes:
        shape: spatial axes, in the order of the array that reading gives.
        channels: planes of the channel axis.
        dtype: as `read_stored` gives it.
        affine: (4, 4) voxel index to world millimetres (RAS+), or None.
        units: as in `Volume`.
        meta: as in `Volume`, and what the format knows besides (modality, series, frame rate).
    """

    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype
    affine: np.ndarray | None = None
    units: str = "stored"
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of the array as float32, which is what it becomes at last."""
        total = self.channels * max(4, np.dtype(self.dtype).itemsize)
        for n in self.shape:
            total *= int(n)
        return total


@dataclass(frozen=True)
class Format:
    """How one kind of file is read. Functions may raise anything on a damaged file: `medgen.data.readers` names the file.

    Attributes:
        name: as users know it, such as "NIfTI".
        endings: lower case, with the dot.
        header: (path, part) -> Header, without reading voxels where the format allows it.
        read: (path, part) -> Volume with the values in the type that keeps them best, (C, *S).
        fits: whether a path is of this format though its ending does not say so (a folder of DICOM, a file without ending).
        extra: the extra of the package that brings its library, such as "dicom".
        asked: whether a part asks for this format though the file's ending is another's (`slide.tif#level=1`).
    """

    name: str
    endings: tuple[str, ...]
    header: Callable[[Path, str | None], Header]
    read: Callable[[Path, str | None], Volume]
    fits: Callable[[Path], bool] = lambda path: False
    extra: str | None = None
    asked: Callable[[Path, str], bool] = lambda path, part: False


def library(name: str, extra: str, what: str) -> ModuleType:
    """An optional library.

    Raises:
        MedgenError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MedgenError(f"reading {what} needs {name}, which is not installed; run: pip install 'medgen[{extra}]'") from error


def read_limit() -> int:
    """Bytes that one image may take: `MEDGEN_READ_LIMIT`, or half of the machine's memory."""
    said = os.environ.get(LIMIT)
    if said is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if not said.isdecimal() or int(said) < 1:
        raise MedgenError(f"{LIMIT}: expected a number of bytes, found '{said}'")
    return int(said)


def check_size(path: Path, header: Header) -> None:
    """Refuse a header that claims more than memory holds, before anything is allocated."""
    if min((*header.shape, header.channels), default=0) < 1:
        raise MedgenError(f"{path}: its header claims the shape {header.shape} with {header.channels} channels; copy or export it again")
    if header.nbytes > read_limit():
        claimed, limit = header.nbytes / 1e9, read_limit() / 1e9
        raise MedgenError(
            f"{path}: its header claims {header.shape} voxels ({claimed:.3g} GB) and {limit:.3g} GB are allowed; "
            f"it is damaged, or set {LIMIT} (bytes)"
        )
