"""JPEG with 8 bits, whose pixels are not those that were taken: `meta["lossy"]` says so. Rotations that a camera notes are not applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header
from medgen.data.formats.pictures import any_size

_PLANES = {"L": 1, "RGB": 3}


def header(path: Path, part: str | None) -> Header:
    with any_size(), _opened(path) as image:
        return _header(path, image)


def read(path: Path, part: str | None) -> Volume:
    with any_size(), _opened(path) as image:
        told = _header(path, image)
        array = np.array(image)
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return Volume(np.ascontiguousarray(planes), meta=dict(told.meta))


def _opened(path: Path) -> Any:
    from PIL import Image

    return Image.open(path, formats=("JPEG",))


def _header(path: Path, image: Any) -> Header:
    if image.mode not in _PLANES:
        raise MedgenError(f"{path}: a JPEG of kind {image.mode}; expected grey or RGB: save it as PNG")
    channels = _PLANES[image.mode]
    meta = {"lossy": True, **({"planes": "colour"} if channels == 3 else {})}
    return Header((image.height, image.width), channels, np.dtype(np.uint8), meta=meta)


FORMAT = Format("JPEG", (".jpg", ".jpeg"), header, read)
