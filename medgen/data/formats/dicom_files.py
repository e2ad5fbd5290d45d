"""Files of DICOM without their pixels: which files of a folder they are, and what each of their frames says of itself."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.formats.dicom_tags import KEYS, TAGS
from medgen.data.formats.format import library, read_limit

ENDINGS = (".dcm", ".dicom", ".ima")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Frame:
    """One plane of pixels.

    Attributes:
        position: of the centre of its first pixel, mm in DICOM's coordinates (LPS), or None.
        orientation: (6,) direction in which columns, then rows, are counted, or None.
        spacing: mm between rows, between columns, or None.
        slope, intercept: value = slope * stored + intercept.
        keys: name -> value of what may tell it from other images at its place.
    """

    image: Image
    index: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: tuple[float, float] | None
    slope: float
    intercept: float
    keys: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Image:
    """One file of pixels: its path and its data set without them."""

    path: Path
    tags: Any

    def get(self, name: str, default: Any = None) -> Any:
        value = self.tags.get(name, default)
        return default if value is None or (isinstance(value, str) and not value) else value

    def number(self, name: str, default: float | None = None) -> float | None:
        """A tag as a finite number; `default` where it is missing, empty or no number."""
        return finite(self.get(name), default)

    @property
    def frames(self) -> int:
        return max(1, int(self.number("NumberOfFrames", 1)))

    @property
    def size(self) -> tuple[int, int]:
        return int(self.get("Rows", 0)), int(self.get("Columns", 0))

    @property
    def units(self) -> str:
        """What the values are once they are rescaled; of PET before it becomes SUV."""
        modality = self.get("Modality", "")
        if modality == "CT" and self.get("RescaleSlope") is None and self.tags.get("SharedFunctionalGroupsSequence") is None:
            return "stored"
        if modality == "CT":
            return "HU" if self.get("RescaleType", "HU") in ("HU", "US") else str(self.get("RescaleType"))
        return {"MR": "arbitrary (MR)", "PT": str(self.get("Units", "stored"))}.get(modality, "stored")


@dataclass(frozen=True)
class Folder:
    """What a folder, or one file, holds."""

    images: tuple[Image, ...]
    others: int = 0  # files that are no DICOM
    without_pixels: int = 0  # reports, structures, plans
    damaged: tuple[str, ...] = ()  # names of files that begin as DICOM and cannot be read


def finite(value: Any, default: float | None = None) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if np.isfinite(number) else default


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark, or a folder has such files in it (not in the folders inside)."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return path.name.upper() != "DICOMDIR" and file.read(132)[128:] == b"DICM"
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file()) if path.is_dir() else []
    except OSError:
        return False
    return any(name.lower().endswith(ENDINGS) for name in names) or any(is_dicom(path / name) for name in names[:100])


def listed(path: Path) -> Folder:
    """What a folder or file holds. What was read last is kept, and read anew where a file has changed."""
    return _listed(path, _stamp(path))


def opened(path: Path) -> Folder:
    """As `listed`, of a place that has images.

    Raises:
        MedgenError: nothing there is an image.
    """
    found = listed(path)
    if not found.images:
        said = f"{len(found.damaged)} damaged files" if found.damaged else f"{found.without_pixels} DICOM files without pixels"
        raise MedgenError(f"{path}: no DICOM image ({said}, {found.others} other files); export the series again")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns of every value that breaks the standard; what matters here is told as a finding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def dataset(path: Path, pixels: bool = False) -> Any:
    """The file's data set, all of it or what `Image` needs.

    Raises:
        MedgenError: a deflated file that grows beyond what may be read.
    """
    pydicom = library("pydicom", "dicom", "DICOM")
    with quiet():
        with path.open("rb") as file:
            marked = file.read(132)[128:] == b"DICM"
        if marked:
            with _Held(path) as file:
                _check_deflated(path, pydicom.filereader.read_partial(file, stop_when=lambda tag, *_: tag.group != 2).file_meta)
        with _Held(path) as file:
            if pixels:
                return pydicom.dcmread(file, force=not marked)
            return pydicom.dcmread(file, force=not marked, stop_before_pixels=True, specific_tags=TAGS)


class _Held(io.BufferedReader):
    """A file of which nobody reads more than there is: Python sets memory aside for as much as a damaged length asks for."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, max(0, self._size - self.tell())))


def frames_of(image: Image) -> list[Frame]:
    """The planes of a file, in its order; of a clip, whose frames have no place of their own, the first one alone."""
    with quiet():
        shared = _first(image.tags.get("SharedFunctionalGroupsSequence"))
        own = image.tags.get("PerFrameFunctionalGroupsSequence") or []
        if own and len(own) != image.frames:
            raise MedgenError(f"{image.path}: {image.frames} frames and {len(own)} descriptions of frames; it is damaged: export it again")
        if own:
            return [_frame(image, i, shared, group) for i, group in enumerate(own)]
        one = _frame(image, 0, shared, None)
        if image.frames == 1:
            return [one]
        offsets = _offsets(image)
        if offsets is None or one.position is None or one.orientation is None:
            return [replace(one, position=None)]
        normal = np.cross(one.orientation[:3], one.orientation[3:])
        return [replace(one, index=i, position=one.position + offset * normal) for i, offset in enumerate(offsets)]


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    entries = [entry for entry in os.scandir(path) if entry.is_file()] if path.is_dir() else [path]
    stats = [(entry.name, entry.stat()) for entry in entries]
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@lru_cache(maxsize=4)
def _listed(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> Folder:
    library("pydicom", "dicom", "DICOM")
    names = [path] if path.is_file() else [path / name for name, _, _ in stamp]
    images, others, without, damaged = [], 0, 0, []
    for name in names:
        if name.name.upper() == "DICOMDIR":
            continue
        if not (is_dicom(name) or name.name.lower().endswith(ENDINGS)):
            others += 1
            continue
        try:
            tags = dataset(name)
            image = Image(name, tags)
            if tags.get("SOPClassUID") == _DIRECTORY:
                continue
            if len(tags) == 0:
                damaged.append(name.name)
                continue
            if min(image.size) < 1 or image.get("BitsAllocated") is None:
                without += 1
                continue
            images.append(image)
        except MedgenError:
            raise
        except Exception:  # pydicom raises everything that there is
            if len(names) == 1:
                raise
            damaged.append(name.name)
    return Folder(tuple(images), others, without, tuple(damaged))


def _check_deflated(path: Path, meta: Any) -> None:
    """Inflate piece by piece and forget, so that a bomb is seen before it goes off."""
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    inflate, total, limit = zlib.decompressobj(-zlib.MAX_WBITS), 0, read_limit()
    with path.open("rb") as file:
        file.seek(144 + int(meta.get("FileMetaInformationGroupLength", 0)))
        rest = file.read(1 << 20)
        while rest:
            total += len(inflate.decompress(rest, 1 << 22))
            if total > limit:
                raise MedgenError(f"{path}: unpacks to more than {limit / 1e9:.3g} GB; it is damaged, or set MEDGEN_READ_LIMIT (bytes)")
            rest = inflate.unconsumed_tail or (b"" if inflate.eof else file.read(1 << 20))


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _grouped(name: str, group: str | None, image: Image, shared: Any, own: Any) -> Any:
    """A tag in the frame's own functional group, else in the shared one, else at the top of the file."""
    for holder in (own, shared):
        item = _first(holder.get(group)) if holder is not None and group is not None else None
        if item is not None and item.get(name) is not None:
            return item.get(name)
    return image.get(name)


def _frame(image: Image, index: int, shared: Any, own: Any) -> Frame:
    def tag(name: str, group: str | None = None) -> Any:
        return _grouped(name, group, image, shared, own)

    spacing = _numbers(tag("PixelSpacing", "PixelMeasuresSequence"), 2)
    slope = tag("RescaleSlope", "PixelValueTransformationSequence")
    intercept = tag("RescaleIntercept", "PixelValueTransformationSequence")
    if slope is None and image.get("Modality") == "RTDOSE":
        slope = image.get("DoseGridScaling")
    keys = {name: _plain(tag(inner or name, group)) for name, (_, group, inner) in KEYS.items()}
    index_values = tag("DimensionIndexValues", "FrameContentSequence")
    for axis, value in enumerate(np.atleast_1d(index_values) if index_values is not None else ()):
        keys[f"dimension {axis + 1}"] = int(value)
    return Frame(
        image,
        index,
        _numbers(tag("ImagePositionPatient", "PlanePositionSequence"), 3),
        _directions(_numbers(tag("ImageOrientationPatient", "PlaneOrientationSequence"), 6)),
        None if spacing is None or min(spacing) <= 0 else (float(spacing[0]), float(spacing[1])),
        _number(image, "RescaleSlope", slope, 1.0),
        _number(image, "RescaleIntercept", intercept, 0.0),
        {name: value for name, value in keys.items() if value is not None},
    )


def _number(image: Image, name: str, value: Any, default: float) -> float:
    if value is None or value == "":
        return default
    number = finite(value)
    if number is None or (name == "RescaleSlope" and number == 0):
        raise MedgenError(f"{image.path}: {name} is '{value}'; expected a number that is not zero: repair the header")
    return number


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """`count` finite numbers, or None."""
    try:
        array = np.array([float(v) for v in value], np.float64)
    except (TypeError, ValueError):
        return None
    return array if len(array) == count and np.isfinite(array).all() and np.abs(array).max() < 1e6 else None


def _directions(values: np.ndarray | None) -> np.ndarray | None:
    """Two unit vectors at a right angle, or None where a header has something else."""
    if values is None:
        return None
    rows = values.reshape(2, 3)
    lengths = np.linalg.norm(rows, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(rows[0] @ rows[1]) > 0.01:
        return None
    return (rows / lengths[:, None]).reshape(6)


def _plain(value: Any) -> Any:
    """A value that can be compared and sorted with its like."""
    if value is None or value == "" or isinstance(value, (list, tuple)):
        return None if value is None or value == "" else "\\".join(map(str, value))
    if type(value).__name__ == "MultiValue":
        return "\\".join(map(str, value)) or None
    number = finite(value)
    return str(value) if number is None else number


def _offsets(image: Image) -> np.ndarray | None:
    """mm along the normal of the frames of a dose grid."""
    values = image.get("GridFrameOffsetVector")
    offsets = None if values is None else _numbers(values, image.frames)
    return None if offsets is None else offsets - offsets[0]
