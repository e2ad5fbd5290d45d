"""numpy arrays (.npy), which have no geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header


def header(path: Path, part: str | None) -> Header:
    array = _mapped(path)
    _, channels, shape = _axes(array)
    return Header(shape, channels, array.dtype)


def read(path: Path, part: str | None) -> Volume:
    array = _mapped(path)
    plain, _, _ = _axes(array)
    return Volume(np.array(array[None] if plain else array))


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise MedgenError(f"{path}: a damaged .npy, or one with Python objects ({first}); save a plain array again") from error
    if array.ndim not in (2, 3, 4) or array.dtype.kind not in "fiub":
        raise MedgenError(
            f"{path}: shape {array.shape} of {array.dtype}; expected real numbers on 2 or 3 axes, with or without a channel axis in front"
        )
    return array


def _axes(array: np.ndarray) -> tuple[bool, int, tuple[int, ...]]:
    """2D is one plane; three axes are (C, H, W) when the first is at most 4, else one volume; four are (C, *S)."""
    plain = array.ndim == 2 or (array.ndim == 3 and len(array) > 4)
    return plain, 1 if plain else len(array), array.shape if plain else array.shape[1:]


FORMAT = Format("npy", (".npy",), header, read)
