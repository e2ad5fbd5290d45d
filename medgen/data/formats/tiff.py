"""TIFF, OME-TIFF and ImageJ's TIFF by tifffile, in the type that they are stored in.

Pages of one shape are a volume, in the order (X, Y, Z) of its affine as everywhere in medgen; `stack.tif#3` is the page number 3 alone, as
a picture (rows, columns). Channels and times are planes. Spacings that OME or ImageJ state in a unit of length stand in `meta["spacing"]`
in millimetres in the order of the image's axes; with all three a volume has an affine, along its axes: a microscope knows no patient.
Resolutions of other TIFFs (mostly 72 dpi) are not believed.

The numbers that are stored are read, as Fiji and tifffile do, also where the file asks for a palette or for white as zero (masks of both
programs do): `meta["shown"]` says so.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.tiff import MARK
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header, check_size, library
from medgen.data.paths import leaves

_DEPTH = "ZIQ"  # depth, or pages that nothing is said of
_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "micron": 1e-3, "\\u00B5m": 1e-3, "nm": 1e-6, "inch": 25.4}
_MANY = 1_000_000  # planes; more are a damaged header


def header(path: Path, part: str | None) -> Header:
    with _opened(path) as file:
        return _Image(path, file, part).header()


def read(path: Path, part: str | None) -> Volume:
    with _opened(path) as file:
        image = _Image(path, file, part)
        told = image.header()
        image.check()
        array = image.array()
    return Volume(np.array(array.reshape(told.channels, *told.shape), told.dtype, order="C"), told.affine, told.units, dict(told.meta))


def _opened(path: Path) -> Any:
    tifffile = library("tifffile", "tiff", "TIFF")
    _check_pages(path)
    file = tifffile.TiffFile(path, is_mmstack=False, is_ndtiff=False)
    try:
        if file.is_ome:
            _check_ome(path, file.ome_metadata)
    except BaseException:
        file.close()
        raise
    return file


class _Image:
    """The first image of a file, or one page of it."""

    def __init__(self, path: Path, file: Any, part: str | None):
        self.path, self.file = path, file
        if part is None:
            self.source = file.series[0]
            self.axes, self.shape = self.source.get_axes(False), self.source.get_shape(False)
            self.page = self.source.keyframe
        else:
            if not part.isdecimal() or int(part) >= len(file.pages):
                raise MedgenError(f"{path}: no page '{part}'; it has the pages 0 to {len(file.pages) - 1}")
            self.source = self.page = file.pages[int(part)].aspage()
            self.axes, self.shape = self.page.axes, self.page.shape
        self.notes = _Notes() if part is not None else _notes(file)
        self.order = self._order()

    def _order(self) -> tuple[int, ...]:
        """The places of channels, times, X, Y and Z, or of channels, times, Y and X, in the file's axes."""
        extra = [a for a, n in zip(self.axes, self.shape, strict=True) if a not in "YXCST" + _DEPTH and n > 1]
        thin = len(self.notes.medgen.get("shape", ())) == 4  # a volume of one slice, which TIFF alone does not tell from a picture
        depth = [i for i, (a, n) in enumerate(zip(self.axes, self.shape, strict=True)) if a in _DEPTH and (n > 1 or (thin and a == "Z"))]
        if extra or len(depth) > 1 or self.axes.count("Y") != 1 or self.axes.count("X") != 1:
            raise MedgenError(f"{self.path}: axes {self.axes} of {self.shape}; expected Y, X and at most one depth, channels and times")
        found = {a: i for i, a in enumerate(self.axes)}
        planes = [i for i, a in enumerate(self.axes) if a in "CS"] + [i for i, a in enumerate(self.axes) if a == "T"]
        space = [found["X"], found["Y"], *depth] if depth else [found["Y"], found["X"]]
        return (*planes, *space)

    def header(self) -> Header:
        photometric = int(self.page.photometric)
        dtype = np.dtype(np.uint8) if self.page.dtype == bool else np.dtype(self.page.dtype).newbyteorder("=")
        if dtype.kind not in "fiu":
            raise MedgenError(f"{self.path}: pixels of type {dtype}; expected real numbers")
        if photometric not in (0, 1, 2, 3, 6):  # white or black is zero, RGB, a palette, YCbCr that is decoded to RGB
            raise MedgenError(f"{self.path}: pixels are {self.page.photometric.name}; expected grey, RGB or a palette: save it as RGB")
        space = 3 if any(self.axes[i] in _DEPTH for i in self.order) else 2
        shape = tuple(self.shape[i] for i in self.order[-space:])
        channels, frames = (_product(self.shape[i] for i in self.order[:-space] if (self.axes[i] == "T") == t) for t in (False, True))
        alpha = self._alpha()
        meta = self._meta(channels - alpha, frames, shape)
        affine = self._affine(shape, meta)
        return Header(shape, (channels - alpha) * frames, dtype, affine, str(self.notes.medgen.get("units", "stored")), meta)

    def _alpha(self) -> int:
        """Whether there is a plane of opacity."""
        return int(bool(self.page.extrasamples) and int(self.page.extrasamples[0]) in (1, 2))

    def _meta(self, channels: int, frames: int, shape: tuple[int, ...]) -> dict[str, Any]:
        meta: dict[str, Any] = {key: value for key, value in self.notes.medgen.items() if key in ("planes", "planes_shape")}
        if int(self.page.photometric) in (0, 3):
            meta["shown"] = "inverted" if int(self.page.photometric) == 0 else "by a palette"
        if int(self.page.compression) in (6, 7, 34892, 33007):
            meta["lossy"] = True
        if channels * frames > 1 and "planes" not in meta:
            colour = int(self.page.photometric) in (2, 6) and channels == 3 and frames == 1
            meta["planes"] = "colour" if colour else "time" if channels == 1 else "channel"
            if channels > 1 and frames > 1:
                meta["planes_shape"] = (channels, frames)
        if meta.get("planes") == "time" and self.notes.seconds:
            meta["frame_seconds"] = self.notes.seconds
        steps = [self.notes.spacing.get(axis) for axis in ("XYZ" if len(shape) == 3 else "YX")]
        if any(step is not None for step in steps):
            meta["spacing"] = tuple(steps)
        return meta

    def _affine(self, shape: tuple[int, ...], meta: dict[str, Any]) -> np.ndarray | None:
        said = self.notes.medgen.get("affine")
        if said is not None:
            affine = np.array(said, np.float64)
            if affine.shape != (4, 4) or not np.isfinite(affine).all():
                raise ValueError("its description has no affine of 4 x 4 numbers")
            meta.pop("spacing", None)
            return affine
        spacing = meta.get("spacing", ())
        if len(shape) < 3 or len(spacing) < 3 or None in spacing or "affine" in self.notes.medgen:
            return None
        return np.diag([*spacing, 1.0])

    def check(self) -> None:
        """Refuse planes that are missing, which tifffile fills with zeros, and strips that end beyond the file."""
        pages = [self.source] if self.source is self.page else list(self.source)
        size = self.file.filehandle.size
        check_size(self.path, Header(tuple(self.page.chunks), 1, np.dtype(self.page.dtype)))  # of one tile
        for page in pages:
            if page is None:
                raise MedgenError(f"{self.path}: planes of the image are missing; copy all of its files into one folder")
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                if count < 1 or (page.parent is self.file and offset + count > size):
                    raise EOFError("a part of its pixels is missing")

    def array(self) -> np.ndarray:
        """(planes..., *shape), without a plane of opacity."""
        if self.source is not self.page and any(page.parent is not self.file for page in self.source):
            # tifffile takes the offset of a contiguous image for one of the first file, whosever it is
            with warnings.catch_warnings(action="ignore"):  # that the other files are opened once more
                array = np.stack([page.asarray(maxworkers=1) for page in self.source]).reshape(self.shape)
        else:
            array = self.source.asarray(maxworkers=1).reshape(self.shape)
        if self._alpha():
            array = self._opaque(array)
        return self._ordered(array)

    def _ordered(self, array: np.ndarray) -> np.ndarray:
        dropped = [i for i in range(array.ndim) if i not in self.order]
        return np.squeeze(array.transpose(*dropped, *self.order), tuple(range(len(dropped))))

    def _opaque(self, array: np.ndarray) -> np.ndarray:
        axis = self.axes.index("S")
        alpha = np.take(array, -1, axis)
        if array.dtype.kind == "u" and (alpha != np.iinfo(array.dtype).max).any():
            raise MedgenError(f"{self.path}: has transparent pixels, whose colour is undefined; save the picture without an alpha channel")
        return np.delete(array, -1, axis)


def _check_pages(path: Path) -> None:
    """Refuse a list of pages that is a circle, which tifffile walks for ever, or that ends beyond the file, where it stops without a word
    (TIFF 6.0, section 2; with 64-bit offsets in BigTIFF).
    """
    with path.open("rb") as file:
        size, start = path.stat().st_size, file.read(16)
        order = {b"II": "little", b"MM": "big"}.get(start[:2])
        version = int.from_bytes(start[2:4], order or "little")
        if order is None or version not in (42, 43) or len(start) < 8:
            raise ValueError("it does not begin as a TIFF")
        width, entry, counter, at = (4, 12, 2, start[4:8]) if version == 42 else (8, 20, 8, start[8:16])
        seen, place = set(), int.from_bytes(at, order)
        while place:
            if place in seen:
                raise ValueError("its list of pages is a circle")
            seen.add(place)
            file.seek(place)
            count = int.from_bytes(file.read(counter), order)
            following = place + counter + entry * count
            if following + width > size:
                raise EOFError("its list of pages ends beyond the file")
            file.seek(following)
            place = int.from_bytes(file.read(width), order)


def files(path: Path) -> tuple[Path, ...]:
    """The file, and those that an OME header names."""
    with library("tifffile", "tiff", "TIFF").TiffFile(path) as file:
        text = file.ome_metadata if file.is_ome else None
    elements = ElementTree.fromstring(text).iter() if text else ()
    named = [path.parent / other for e in elements if (other := e.get("FileName") or e.get("MetadataFile"))]
    return tuple(dict.fromkeys((path, *(other for other in named if other.is_file()))))


def _check_ome(path: Path, text: str) -> None:
    """Refuse what would make tifffile open files elsewhere, or make lists without end."""
    root = ElementTree.fromstring(text)
    owners = {element.text for element in root.iter() if element.tag.endswith("}UUID")}
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        other = element.get("FileName") or element.get("MetadataFile")
        if other is not None and leaves(path.parent, other):
            raise MedgenError(f"{path}: a part of its image is said to lie in {other}, outside of its folder; put all into one folder")
        renamed = element.text == root.get("UUID") or (root.get("UUID") is None and len(owners) == 1)
        if other is not None and not renamed and not (path.parent / other).is_file():
            raise MedgenError(f"{path}: a part of its image is missing: {other}; copy all of its files into one folder")
        if name.startswith("ModuloAlong"):
            raise MedgenError(f"{path}: an OME-TIFF with more than five axes; save one file per image")
        planes = _product(int(element.get(f"Size{axis}", 1)) for axis in "ZCT")
        counts = [int(element.get(key, 0)) for key in ("PlaneCount", "NumPlanes")]
        if max(planes, *counts) > _MANY:
            raise ValueError(f"it claims {max(planes, *counts)} planes")


@dataclass(frozen=True)
class _Notes:
    """What a file says beside its pixels: mm along "X", "Y", "Z", seconds between frames, and what medgen wrote."""

    spacing: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    medgen: dict[str, Any] = field(default_factory=dict)


def _notes(file: Any) -> _Notes:
    if file.is_ome:
        return _ome_notes(file.ome_metadata)
    if file.is_imagej:
        return _imagej_notes(file)
    return _Notes()


def _ome_notes(text: str) -> _Notes:
    image = next((e for e in ElementTree.fromstring(text).iter() if e.tag.endswith("}Image")), None)
    pixels = None if image is None else next((e for e in image if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return _Notes()
    spacing = {axis: _millimetres(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XYZ"}
    seconds = float(pixels.get("TimeIncrement", 0)) if pixels.get("TimeIncrementUnit", "s") == "s" else 0.0
    said = next((e.text or "" for e in image if e.tag.endswith("}Description")), "")
    ours = json.loads(said.removeprefix(MARK)) if said.startswith(MARK) else {}
    return _Notes({axis: step for axis, step in spacing.items() if step}, seconds or None, ours)


def _imagej_notes(file: Any) -> _Notes:
    said, tags = file.imagej_metadata or {}, file.pages[0].tags
    unit, spacing = str(said.get("unit", "")), {}
    for axis in "XY":
        over, under = tags.valueof(f"{axis}Resolution", (0, 1))
        spacing[axis] = _millimetres(under / over, unit) if over else None
    spacing["Z"] = _millimetres(said.get("spacing"), unit)
    return _Notes({axis: step for axis, step in spacing.items() if step}, float(said.get("finterval", 0)) or None)


def _millimetres(step: Any, unit: str) -> float | None:
    value = float(step or 0) * _MM.get(unit, 0.0)
    return value if 0 < value < np.inf else None


def _product(numbers: Any) -> int:
    total = 1
    for n in numbers:
        total *= int(n)
    return total


FORMAT = Format("TIFF", (".tif", ".tiff"), header, read, files=files, extra="tiff")
