"""Whole-slide images (SVS, NDPI, MRXS, pyramidal TIFF, ...) by OpenSlide: regions at any microns per pixel, tissue, a grid of tiles.

A cell is `slide.svs` (all of level 0), `slide.svs#level=1`, `slide.svs#mpp=2`, or a region such as `slide.svs#mpp=1&y=512&x=0&size=256`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats.format import Format, Header, check_size, library
from medgen.data.formats.parts import settings, whole

ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif")
_BLOCK = 2048  # pixels of the slide along one side that are in memory at once while resampling
_COLOUR = (10, 40)  # of 255: background has less colour than the first, tissue more than the second
_SAME = 1e-3  # relative difference of two pixel sizes up to which pixels are taken as they are


class Level(NamedTuple):
    """One resolution of a slide: shape (H, W) and how many pixels of level 0 one of its pixels is wide."""

    shape: tuple[int, int]
    downsample: float


class Tile(NamedTuple):
    """A place on the tile grid: `slide.region(tile.y, tile.x, size, mpp=mpp)` reads it. `fraction` is the share that is tissue."""

    y: int
    x: int
    fraction: float


@dataclass(frozen=True)
class _Grid:
    """Pixels to read: one level, or a resampling of it.

    Attributes:
        level: the level that is read.
        factor: pixels of that level per pixel of the grid, (y, x); 1 takes them as they are.
        shape: (H, W) of the whole slide on this grid.
        mpp: microns per pixel of the grid, or None.
    """

    level: int
    factor: tuple[float, float]
    shape: tuple[int, int]
    mpp: float | None


class Slide:
    """A whole-slide image, of which only what is asked for is read.

    It pickles as its path, and each process opens the file for itself, so that it may be handed to loader workers, forked or not.

    Args:
        path: any file that OpenSlide knows, whatever its ending.

    Attributes:
        levels: resolutions, the finest first.
        mpp: microns per pixel of level 0 (mean of both axes), or None where the file does not say.
        objective: magnification, such as 20.0, or None.

    Raises:
        MedgenError: no such file, no slide, a damaged file. The methods raise it as well.
    """

    levels: tuple[Level, ...]
    mpp: float | None
    objective: float | None

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._opened, self._process = None, -1
        if not self.path.is_file():
            raise MedgenError(f"{path}: no such file; check the path")
        with self._told() as handle:
            sizes, downsamples = handle.level_dimensions, handle.level_downsamples
            said = [_positive(handle.properties.get(f"openslide.mpp-{axis}")) for axis in "yx"]
            self.objective = _positive(handle.properties.get("openslide.objective-power"))
        self.levels = tuple(Level((h, w), float(d)) for (w, h), d in zip(sizes, downsamples, strict=True))
        self._mpp = None if None in said else (said[0], said[1])
        self.mpp = None if self._mpp is None else math.sqrt(said[0] * said[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return Slide, (self.path,)

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r}, {self.levels[0].shape}, mpp={self.mpp}, {len(self.levels)} levels)"

    def shape(self, level: int | None = None, mpp: float | None = None) -> tuple[int, int]:
        """(H, W) of the whole slide at a level, or at microns per pixel; by default at level 0."""
        return self._grid(level, mpp).shape

    def region(self, y: int, x: int, size: int | tuple[int, int], level: int | None = None, mpp: float | None = None) -> np.ndarray:
        """(3, H, W) uint8 of the rectangle whose upper left pixel is (y, x); what is outside of the slide or transparent is white.

        Args:
            y, x, size: in pixels of `level` or `mpp` (level 0 without either); size is one number or (H, W).
            mpp: microns per pixel of the result. The next finer level is read and resampled by a triangle filter as wide as
                the coarser pixels, so that neighbouring regions join and details do not alias.
        """
        height, width = (size, size) if isinstance(size, int) else size
        return self._read(self._grid(level, mpp), int(y), int(x), int(height), int(width))

    def thumbnail(self, longest: int = 1024) -> np.ndarray:
        """(3, H, W) uint8 of the whole slide with `longest` pixels along its longer side, or fewer where it has no more."""
        grid = self._by(max(1.0, max(self.levels[0].shape) / longest))
        return self._read(grid, 0, 0, *grid.shape)

    def tissue(self, mpp: float | None = None) -> np.ndarray:
        """(H, W) bool mask of the whole slide: where there is stained tissue.

        Colour (after the background is balanced to white) against the slide's own threshold (Otsu 1979), held within fixed limits, so that
        an empty slide has no tissue and one full of it no background. Specks and holes thinner than about 3 pixels go (median filter).
        Pen marks count as tissue; unstained tissue and grey or black areas do not.

        Args:
            mpp: microns per pixel of the mask. By default 8, or one pixel in 16 where the slide does not say; at most 4096 pixels a side.
        """
        grid = self._mask_grid(mpp)
        return _tissue(self._read(grid, 0, 0, *grid.shape))

    def tiles(
        self, size: int, mpp: float | None = None, stride: int | None = None, min_tissue: float = 0.5, mask: np.ndarray | None = None
    ) -> list[Tile]:
        """The places of a regular grid of tiles, row by row, that lie on the slide as a whole and on tissue.

        Args:
            size: of a tile, in pixels at `mpp` (of level 0 without it).
            stride: from tile to tile; `size` by default.
            min_tissue: the least share of a tile that is tissue; 0 takes all tiles.
            mask: (H, W) bool over the whole slide, in place of `tissue()`.
        """
        stride = size if stride is None else stride
        if size < 1 or stride < 1:
            raise MedgenError(f"{self.path}: tiles of {size} pixels every {stride}; both must be at least 1")
        height, width = self._grid(None, mpp).shape
        ys, xs = (np.arange(0, n - size + 1, stride) for n in (height, width))
        if not len(ys) or not len(xs):
            return []
        share = _covered(self.tissue() if mask is None else np.asarray(mask, bool), (height, width), ys, xs, size)
        return [Tile(int(ys[i]), int(xs[j]), float(share[i, j])) for i, j in zip(*np.nonzero(share >= min_tissue), strict=True)]

    def _grid(self, level: int | None, mpp: float | None) -> _Grid:
        if level is not None and mpp is not None:
            raise MedgenError(f"{self.path}: give a level or microns per pixel, not both")
        if mpp is not None:
            if self._mpp is None:
                raise MedgenError(f"{self.path}: does not say its microns per pixel; ask for a level of 0 to {len(self.levels) - 1}")
            if not (math.isfinite(mpp) and mpp > 0):
                raise MedgenError(f"{self.path}: microns per pixel must be above 0, found {mpp}")
            return self._by(mpp / self._mpp[0], mpp / self._mpp[1], mpp)
        level = level or 0
        if not 0 <= level < len(self.levels):
            raise MedgenError(f"{self.path}: no level {level}; it has the levels 0 to {len(self.levels) - 1}")
        return _Grid(level, (1.0, 1.0), self.levels[level].shape, self.mpp and self.mpp * self.levels[level].downsample)

    def _by(self, y: float, x: float | None = None, mpp: float | None = None) -> _Grid:
        """The grid whose pixels are `y` times `x` pixels of level 0, from the coarsest level that is not coarser."""
        x = y if x is None else x
        level = max(i for i, one in enumerate(self.levels) if i == 0 or one.downsample <= min(y, x) * (1 + _SAME))
        down, full = self.levels[level].downsample, self.levels[0].shape
        shape = tuple(max(1, math.floor(n / f + 1e-6)) for n, f in zip(full, (y, x), strict=True))
        return _Grid(level, (y / down, x / down), shape, mpp or (self.mpp and self.mpp * y))

    def _mask_grid(self, mpp: float | None) -> _Grid:
        if mpp is not None:
            return self._grid(None, mpp)
        factor = 16.0 if self.mpp is None else max(1.0, 8.0 / self.mpp)
        return self._by(max(factor, max(self.levels[0].shape) / 4096))

    def _read(self, grid: _Grid, y: int, x: int, height: int, width: int) -> np.ndarray:
        """Blocks of the result one after the other, so that the pixels they are made of are never all in memory."""
        check_size(self.path, Header((height, width), 3, np.dtype(np.uint8)))
        made = np.empty((3, height, width), np.uint8)
        steps = [max(1, int(_BLOCK / max(f, 1.0))) for f in grid.factor]
        for top in range(0, height, steps[0]):
            for left in range(0, width, steps[1]):
                h, w = min(steps[0], height - top), min(steps[1], width - left)
                made[:, top : top + h, left : left + w] = self._block(grid, y + top, x + left, h, w)
        return made

    def _block(self, grid: _Grid, y: int, x: int, height: int, width: int) -> np.ndarray:
        starts = [n * f for n, f in zip((y, x), grid.factor, strict=True)]
        if all(abs(f - 1) <= _SAME for f in grid.factor):
            return self._pixels(grid.level, round(starts[0]), round(starts[1]), height, width)
        ends = [s + n * f for s, n, f in zip(starts, (height, width), grid.factor, strict=True)]
        first, last = [], []
        for start, end, factor, limit in zip(starts, ends, grid.factor, self.levels[grid.level].shape, strict=True):
            margin, inside = math.ceil(max(factor, 1.0)) + 1, start >= 0 and end <= limit + _SAME
            # the filter's foot is on the slide where the region is, so that white from beside it does not bleed in
            first.append(max(math.floor(start) - margin, 0 if inside else -(2**40)))
            last.append(min(math.ceil(end - _SAME) + margin, limit if inside else 2**40))
        ends = [min(end, stop) for end, stop in zip(ends, last, strict=True)]
        pixels = self._pixels(grid.level, first[0], first[1], last[0] - first[0], last[1] - first[1])
        box = (starts[1] - first[1], starts[0] - first[0], ends[1] - first[1], ends[0] - first[0])
        from PIL import Image

        image = Image.fromarray(np.moveaxis(pixels, 0, -1).copy())
        return np.moveaxis(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box)), -1, 0)

    def _pixels(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        """(3, H, W) of a level, its alpha laid over white."""
        from PIL import Image

        down = self.levels[level].downsample
        check_size(self.path, Header((height, width), 4, np.dtype(np.uint8)))
        with self._told() as handle:
            image = handle.read_region((round(x * down), round(y * down)), level, (width, height))
        if image.getextrema()[3][0] < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.moveaxis(np.asarray(image)[..., :3], -1, 0)

    @contextmanager
    def _told(self) -> Iterator[Any]:
        """This process's handle. What OpenSlide refuses becomes a sentence; a handle that failed once is not used again."""
        openslide = library("openslide", "slides", "whole-slide images")
        try:
            if self._opened is None or self._process != os.getpid():
                self._opened, self._process = openslide.OpenSlide(self.path), os.getpid()
            yield self._opened
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise MedgenError(f"{self.path}: no whole-slide image that OpenSlide knows; expected one of tiles, such as SVS") from error
        except MemoryError:
            raise
        except Exception as error:  # the decoders of damaged files raise everything that there is
            self._opened = None
            raise MedgenError(f"{self.path}: a damaged or truncated slide ({error}); copy or export it again") from error


def _positive(text: str | None) -> float | None:
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _tissue(picture: np.ndarray) -> np.ndarray:
    """(H, W) bool of (3, H, W) uint8: colour above a threshold, cleaned."""
    from PIL import Image, ImageFilter

    colour = _colour(picture)
    threshold = min(max(otsu(colour), _COLOUR[0]), _COLOUR[1])
    mask = Image.fromarray((colour > threshold).astype(np.uint8) * 255)
    closed = mask.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.MinFilter(3))
    return np.asarray(closed.filter(ImageFilter.MedianFilter(5))) > 0


def _colour(picture: np.ndarray) -> np.ndarray:
    """(H, W) uint8 difference of the largest and the smallest plane, with the background brought to white.

    The background is the median of the brightest twentieth, where that is bright and nearly grey: in a slide full of tissue it is not.
    """
    light = picture.min(0)
    bright = picture[:, light >= np.percentile(light, 95)]
    background = np.median(bright, axis=1)
    if background.min() < 180 or np.ptp(background) > 40:
        background = np.full(3, 255.0)
    planes = [np.minimum(p * np.float32(255 / b), 255).astype(np.uint8) for p, b in zip(picture, background, strict=True)]
    return np.maximum.reduce(planes) - np.minimum.reduce(planes)


def otsu(values: np.ndarray) -> int:
    """The threshold t of uint8 values for which `values > t` and the rest differ most (largest variance between the two; Otsu 1979)."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))


def _covered(mask: np.ndarray, full: tuple[int, int], ys: np.ndarray, xs: np.ndarray, size: int) -> np.ndarray:
    """(len(ys), len(xs)) share of each tile that the mask covers, exact for tiles that cut its pixels: integrals of the mask,
    which are linear between its pixels along each axis."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    np.cumsum(np.cumsum(mask, 0, dtype=np.float64), 1, out=total[1:, 1:])
    scale = [m / n for m, n in zip(mask.shape, full, strict=True)]

    def at(rows: np.ndarray, axis: int, table: np.ndarray) -> np.ndarray:
        place = np.clip(rows * scale[axis], 0, mask.shape[axis])
        low = np.minimum(place.astype(int), mask.shape[axis] - 1)
        weight = (place - low).reshape((-1, 1) if axis == 0 else (1, -1))
        return np.take(table, low, axis) * (1 - weight) + np.take(table, low + 1, axis) * weight

    strips = at(ys + size, 0, total) - at(ys, 0, total)
    return np.clip((at(xs + size, 1, strips) - at(xs, 1, strips)) / (size * scale[0] * size * scale[1]), 0, 1)


@lru_cache(maxsize=16)
def _known(path: Path, changed: int, size: int) -> Slide:
    return Slide(path)


def opened(path: Path) -> Slide:
    """The slide of a path, opened once per process as long as the file stays the same."""
    if not path.is_file():
        raise MedgenError(f"{path}: no such file; check the path")
    state = path.stat()
    return _known(path, state.st_mtime_ns, state.st_size)


class _Asked(NamedTuple):
    """What a part asks for: the rectangle in pixels of a level or at microns per pixel."""

    y: int
    x: int
    height: int
    width: int
    level: int | None
    mpp: float | None


def _asked(path: Path, part: str | None, slide: Slide) -> _Asked:
    said = settings(path, part, ("level", "mpp", "y", "x", "size"))
    level = whole(path, "level", said["level"]) if "level" in said else None
    mpp = _positive(said.get("mpp"))
    if "mpp" in said and mpp is None:
        raise MedgenError(f"{path}: 'mpp' takes microns per pixel above 0, found '{said['mpp']}'")
    given = [name for name in ("y", "x", "size") if name in said]
    height, width = slide.shape(level, mpp)
    if not given:
        return _Asked(0, 0, height, width, level, mpp)
    if len(given) < 3:
        raise MedgenError(f"{path}: '#{part}' gives {' and '.join(given)}; a region takes y, x and size")
    y, x = (whole(path, name, said[name]) for name in "yx")
    h, _, w = said["size"].partition("x")
    h, w = whole(path, "size", h), whole(path, "size", w or h)
    if y + h > height or x + w > width:
        raise MedgenError(f"{path}: '#{part}' reaches {y + h} x {x + w} pixels and the slide has {height} x {width} there")
    return _Asked(y, x, h, w, level, mpp)


def header(path: Path, part: str | None) -> Header:
    slide = opened(path)
    asked = _asked(path, part, slide)
    return Header((asked.height, asked.width), 3, np.dtype(np.uint8), meta=_meta(slide, asked))


def read(path: Path, part: str | None) -> Volume:
    slide = opened(path)
    asked = _asked(path, part, slide)
    array = slide.region(asked.y, asked.x, (asked.height, asked.width), asked.level, asked.mpp)
    return Volume(array, meta=_meta(slide, asked))


def _meta(slide: Slide, asked: _Asked) -> dict[str, Any]:
    mpp = asked.mpp or (slide.mpp and slide.mpp * slide.levels[asked.level or 0].downsample)
    known = {"mpp": mpp, "objective": slide.objective}
    return {"planes": "colour", "levels": len(slide.levels), **{k: v for k, v in known.items() if v is not None}}


def asks(path: Path, part: str) -> bool:
    """Whether a part of a TIFF asks for a level, or for microns per pixel."""
    return path.name.lower().endswith((".tif", ".tiff")) and part.startswith(("level=", "mpp="))


FORMAT = Format("whole-slide image", ENDINGS, header, read, asked=asks, extra="slides")
