"""PNG with 1 to 16 bits, grey, colour or a palette.

A PNG with a palette is read as the colours that it shows; `mask.png#index` reads the numbers of the palette instead (label maps).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.picture import VIEW
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header, library

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE, _GREY_ALPHA = 0, 3, 4  # colour types with other than three planes
INDEX = "index"


def header(path: Path, part: str | None) -> Header:
    png = _Png.of(path)
    _check_part(path, part, png)
    channels = 1 if png.colour in (_GREY, _GREY_ALPHA) or part == INDEX else 3
    kind = np.uint16 if png.bits == 16 else np.uint8
    return Header((png.height, png.width), channels, np.dtype(kind), meta={"planes": "colour"} if channels == 3 else {})


def read(path: Path, part: str | None) -> Volume:
    told, png = header(path, part), _Png.of(path)
    _check_sums(path)
    if png.bits == 16 and png.colour != _GREY:
        array, meta = library("imagecodecs", "tiff", "a 16-bit colour PNG").png_decode(path.read_bytes()), {}
    else:
        array, meta = _by_pillow(path, part)
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if len(planes) == told.channels + 1:
        planes = _opaque(path, planes)
    if planes.shape != (told.channels, *told.shape):
        raise ValueError(f"{planes.shape} pixels where its header says {(told.channels, *told.shape)}")
    return Volume(np.array(planes, told.dtype, order="C"), meta={**told.meta, **meta})


@dataclass(frozen=True)
class _Png:
    """What the first chunk says (PNG specification, 11.2.1)."""

    width: int
    height: int
    bits: int
    colour: int

    @staticmethod
    def of(path: Path) -> _Png:
        with path.open("rb") as file:
            start = file.read(33)
        if len(start) < 33 or start[:8] != _SIGNATURE or start[12:16] != b"IHDR":
            raise ValueError("it does not begin with the header of a PNG")
        if zlib.crc32(start[12:29]) != struct.unpack(">I", start[29:])[0]:
            raise ValueError("its header does not match its checksum")
        return _Png(*struct.unpack(">IIBB", start[16:26]))


def _check_part(path: Path, part: str | None, png: _Png) -> None:
    if part not in (None, INDEX):
        raise MedgenError(f"{path}: a PNG has no part '{part}'; leave it out, or say #{INDEX} for the numbers of a palette")
    if part == INDEX and png.colour != _PALETTE:
        raise MedgenError(f"{path}: has no palette, so its values are its pixels; leave #{INDEX} out")


def _check_sums(path: Path) -> None:
    """The checksums of all chunks, which decoders do not look at."""
    from PIL import Image

    with any_size(), Image.open(path, formats=("PNG",)) as image:
        image.verify()


def _by_pillow(path: Path, part: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    from PIL import Image

    with any_size(), Image.open(path, formats=("PNG",)) as image:
        meta = {"view": image.info[VIEW]} if VIEW in image.info else {}
        grey = image.mode == "LA"
        array = np.array(image.convert("RGBA") if image.mode in ("P", "PA", "LA") and part != INDEX else image)
    return array[..., [0, 3]] if grey else array, meta


def _opaque(path: Path, planes: np.ndarray) -> np.ndarray:
    if (planes[-1] != np.iinfo(planes.dtype).max).any():
        raise MedgenError(f"{path}: has transparent pixels, whose colour is undefined; save the picture without an alpha channel")
    return planes[:-1]


@contextmanager
def any_size() -> Iterator[None]:
    """Pictures of any size: `check_size` has judged the header by the memory that there is, Pillow by a number of pixels."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


FORMAT = Format("PNG", (".png",), header, read)
