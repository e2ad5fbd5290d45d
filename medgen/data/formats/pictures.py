"""PNG, 8 and 16 bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header


def header(path: Path, part: str | None) -> Header:
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as image:
        image.verify()
        channels = 1 if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;") else 3
        return Header((image.height, image.width), channels, np.dtype(np.uint16 if _bit_depth(path) == 16 else np.uint8))


def read(path: Path, part: str | None) -> Volume:
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as image:
        grey = image.mode == "LA"
        array = np.asarray(image.convert("RGBA") if image.mode in ("P", "PA", "LA") else image)
    if array.ndim == 3 and _bit_depth(path) == 16:
        raise MedgenError(f"{path}: 16-bit colour would be cut to 8 bits; save 8-bit colour, 16-bit grey, or .npy")
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if len(planes) == 4:
        planes = _opaque(path, planes)[: 1 if grey else 3]
    return Volume(np.ascontiguousarray(planes))


def _bit_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


def _opaque(path: Path, planes: np.ndarray) -> np.ndarray:
    if (planes[3] != 255).any():
        raise MedgenError(f"{path}: has transparent pixels, whose colour is undefined; save the picture without an alpha channel")
    return planes[:3]


FORMAT = Format("PNG", (".png",), header, read)
