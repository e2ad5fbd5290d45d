"""What a format tells of a file, and how a cell of a manifest names one image in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
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


class Said(str):
    """What a reader tells of one file in `meta["findings"]`: the sentence, and what to do about it.

    Attributes:
        remedy: a sentence of its own.
        code: short and stable; sentences of a file that share it are one matter.
        note: whether it is good to know and nothing to look into.
    """

    remedy: str
    code: str
    note: bool

    def __new__(cls, text: str, remedy: str = "see whether these images are what you need", code: str = "from-format", note: bool = False):
        made = super().__new__(cls, text)
        made.remedy, made.code, made.note = remedy, code, note
        return made


@dataclass(frozen=True)
class Format:
    """How one kind of file is read. Functions may raise anything on a damaged file: `medgen.data.readers` names the file.

    Attributes:
        name: as users know it, such as "NIfTI".
        endings: lower case, with the dot.
        header: (path, part) -> Header, without reading voxels where the format allows it.
        read: (path, part) -> Volume with the values in the type that keeps them best, (C, *S).
        fits: whether a path is of this format though its ending does not say so (a folder of DICOM, a file without ending).
        files: path -> all files that its image lies in, the path first: the voxels beside a header. Nothing is read but names.
        extra: the extra of the package that brings its library, such as "dicom".
        section: (path, part, axis, index) -> Volume of one slice (axis 0, 1, 2: one voxel thick) or one plane (axis 3) of a volume,
            without reading the rest. Where there is none, all is read and cut.
        asked: whether a part asks for this format though the file's ending is another's (`slide.tif#level=1`).
    """

    name: str
    endings: tuple[str, ...]
    header: Callable[[Path, str | None], Header]
    read: Callable[[Path, str | None], Volume]
    fits: Callable[[Path], bool] = lambda path: False
    files: Callable[[Path], Sequence[Path]] = lambda path: (path,)
    extra: str | None = None
    section: Callable[[Path, str | None, int, int], Volume] | None = None
    asked: Callable[[Path, str], bool] = lambda path, part: False


class MissingLibrary(MedgenError):
    """A file needs an optional library that is not installed."""


def library(name: str, extra: str, what: str) -> ModuleType:
    """An optional library.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingLibrary(f"reading {what} needs {name}, which is not installed; run: pip install 'medgen[{extra}]'") from error


def read_limit() -> int:
    """Bytes that one image may take: `MEDGEN_READ_LIMIT`, or half of the memory that this process may have."""
    said = os.environ.get(LIMIT)
    if said is None:
        return _memory() // 2
    if not said.isdecimal() or int(said) < 1:
        raise MedgenError(f"{LIMIT}: expected a number of bytes, found '{said}'")
    return int(said)


@cache
def _memory() -> int:
    """Bytes of the machine, or of the control group (container, batch job) that this process is in, where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _group_limits(groups: Path, root: Path) -> list[int]:
    """What version 2 (memory.max) and version 1 (memory.limit_in_bytes) of control groups allow, in each group that holds this process."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for _, controllers, group in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inner = top / group.lstrip("/")
        for folder in {top, inner, *(parent for parent in inner.parents if parent.is_relative_to(top))}:
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # no such file, or "max"
                continue
    return [limit for limit in limits if limit > 0]


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
