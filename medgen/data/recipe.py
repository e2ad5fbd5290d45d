"""How a row of a manifest becomes arrays: read, checked, oriented, resampled, mapped and cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.geometry import Placement, fitted, reoriented, resampled, resized
from medgen.core.intensity import IntensityMap, intensity_map
from medgen.core.random import generator
from medgen.core.volume import Volume
from medgen.data.cases import Prepared
from medgen.data.checks import check_pair, one_plane
from medgen.data.formats.slide import ENDINGS as SLIDES
from medgen.data.formats.slide import Slide
from medgen.data.labelling import LabelRule
from medgen.data.readers import finite, parted, read_stored

VERSION = 2  # of what a recipe makes of a file; raise it where that changes
_TILES = 256  # of a slide that are in memory at once
_SPOTS = 2048  # centres of patches that are kept of each kind
_SPOT_STREAM = 0x73706F74


@dataclass(frozen=True)
class Recipe:
    """Plain data: its hash names a store.

    Attributes:
        columns: channel -> (column of the manifest, plane of the file or None for its only one).
        rules: channel -> intensity rule as `IntensityMap.describe` gives it.
        labels: label map -> how its numbers become classes.
        size, spacing: as in `medgen.data.files.FileData`.
        axes: across which slices are cut.
        min_foreground, resize: as in `medgen.data.options.Options`.
        kinds: kinds of places where patches are centred; see `medgen.data.options.Cut`.
        tiles: microns per pixel, stride and least share of tissue of a slide's tiles; see `medgen.data.options.Cut`.
    """

    columns: Mapping[str, tuple[str, int | None]]
    rules: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, LabelRule]
    size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    axes: tuple[int, ...] = ()
    min_foreground: float = 0.02
    resize: bool = False
    kinds: tuple[str, ...] = ()
    tiles: tuple[float | None, int | None, float] = (None, None, 0.5)

    def facts(self) -> dict[str, Any]:
        """What the result depends on, as plain data."""
        facts = {"version": VERSION, "order": list(self.columns), **asdict(self)}  # the first channel tells what is foreground
        facts["labels"] = {name: rule.classes for name, rule in self.labels.items()}
        if recoded := {name: rule.describe() for name, rule in self.labels.items() if not rule.plain}:
            facts["recoded"] = recoded  # not a key of older stores
        facts["rules"] = {name: {k: float(v) if isinstance(v, int) else v for k, v in rule.items()} for name, rule in self.rules.items()}
        if len(self.size) == 3:  # whole volumes are kept, from which windows are cut
            facts |= {"size": 3, "min_foreground": None, "tiles": None}
            facts |= {} if self.resize else {"axes": None}
            facts["frame"] = self.size[1:] if self.resize else None
        return facts

    @property
    def files(self) -> tuple[str, ...]:
        """The manifest's columns that are read."""
        return tuple(dict.fromkeys([*(column for column, _ in self.columns.values()), *self.labels]))

    @property
    def maps(self) -> dict[str, IntensityMap]:
        return {name: intensity_map(**rule) for name, rule in self.rules.items()}

    def check_kinds(self) -> None:
        """Refuse kinds of places that do not exist."""
        known = ["uniform", "foreground", *self.labels, *(f"{name}={k}" for name, rule in self.labels.items() for k in range(rule.classes))]
        for kind in self.kinds:
            if kind not in known:
                raise MedgenError(f"cut.patches: no kind of place '{kind}'; {nearest(kind, known)}")
        if self.kinds and len(self.size) != 3:
            raise MedgenError(f"cut.patches: kinds of places are for patches of volumes, and size is {list(self.size)}")

    def pieces(self, files: Mapping[str, str], where: str) -> Iterator[Prepared]:
        """The row as one or more pieces.

        Args:
            files: column -> cell with its path made absolute.
            where: the row, for messages.
        """
        slides = [cell for cell in files.values() if self._is_slide(cell)]
        if slides:
            if len(files) > 1 or self.labels:
                raise MedgenError(f"{where}: tiles of a slide come alone, found {', '.join(files)}; leave other images and label maps out")
            yield from self._tiles(slides[0])
            return
        stored = {column: read_stored(cell) for column, cell in files.items()}
        images, labels = self._checked({column: finite(volume) for column, volume in stored.items()}, where)
        ranges = {name: self.maps[name].fit(volume.array) for name, volume in images.items()}
        images, labels = ({name: self._turned(volume) for name, volume in group.items()} for group in (images, labels))
        kinds = {name: stored[self.columns[name][0]].array.dtype for name in images}
        volumetric = len(next(iter((images or labels).values())).shape) == 3
        for axis in self.axes if volumetric and len(self.size) == 2 else (None,):
            yield self._piece(images, labels, ranges, kinds, axis)

    def _piece(
        self,
        images: Mapping[str, Volume],
        labels: Mapping[str, Volume],
        ranges: dict[str, dict[str, float]],
        kinds: Mapping[str, np.dtype],
        axis: int | None,
    ) -> Prepared:
        placed = {name: self._spaced(volume, axis) for name, volume in images.items()}
        kept = {}
        for name, volume in placed.items():
            exact = volume.array is images[name].array and not self.resize
            kept[name] = _compact(volume.array[0], self.maps[name], ranges[name], kinds[name] if exact else None)
        maps = {name: self._spaced(volume, axis, labels=True) for name, volume in labels.items()}
        first = next(iter((placed or maps).values()))
        prepared = Prepared(
            images=kept,
            labels={name: _small(volume.array[0]) for name, volume in maps.items()},
            affines=first.affine,
            ranges=ranges,
            spacing=first.spacing,
            volumetric=len(first.shape) == 3,
        )
        return self._cut(prepared, first.array[0], axis)

    def _is_slide(self, cell: str) -> bool:
        """Whether a cell is a whole slide to be cut into tiles; with a part it is a picture."""
        path, part = parted(cell)
        endings = (*SLIDES, ".tif", ".tiff") if self.tiles[0] is not None else SLIDES
        return part is None and path.name.lower().endswith(endings)

    def _tiles(self, cell: str) -> Iterator[Prepared]:
        """The tiles of a slide, some at a time: the slide is never in memory as a whole."""
        slide, (mpp, stride, tissue) = Slide(cell), self.tiles
        if len(self.size) != 2 or self.size[0] != self.size[1]:
            raise MedgenError(f"{cell}: tiles of a slide are square, and size is {list(self.size)}; give the same number twice")
        places = slide.tiles(self.size[0], mpp, stride, tissue)
        if not places:
            found = f"no tile of {self.size[0]} pixels at {mpp or slide.mpp or '?'} microns is covered by tissue to {tissue:.0%}"
            raise MedgenError(f"{cell}: {found}; lower cut.tissue or the size, or leave it out")
        for first in range(0, len(places), _TILES):
            tiles = np.stack([slide.region(tile.y, tile.x, self.size[0], mpp=mpp) for tile in places[first : first + _TILES]])
            stack = Volume(np.moveaxis(tiles, 1, 0), meta={"file": cell})
            planes = {name: one_plane(stack, name, plane).array[0] for name, (_, plane) in self.columns.items()}
            ranges = {name: self.maps[name].fit(values) for name, values in planes.items()}
            kept = {name: _compact(values, self.maps[name], ranges[name], values.dtype) for name, values in planes.items()}
            yield Prepared(kept, {}, None, ranges, None, volumetric=False)

    def _checked(self, volumes: Mapping[str, Volume], where: str) -> tuple[dict[str, Volume], dict[str, Volume]]:
        """Channels and label maps of one grid."""
        columns = {channel: place for channel, place in self.columns.items() if place[0] in volumes}
        images = {channel: one_plane(volumes[column], channel, plane) for channel, (column, plane) in columns.items()}
        labels = {name: one_plane(volumes[name], name) for name in self.labels if name in volumes}
        check_pair({**images, **labels}, where)
        return images, {name: self.labels[name].apply(volume, name) for name, volume in labels.items()}

    def _turned(self, volume: Volume) -> Volume:
        if len(volume.shape) == 2 and len(self.size) == 3:
            raise MedgenError(f"{volume.meta['file']}: a picture of shape {volume.shape}, and size {list(self.size)} asks for volumes")
        if len(volume.shape) == 3 and len(self.size) == 2 and not self.axes:
            raise MedgenError(f"{volume.meta['file']}: a volume of shape {volume.shape}; set slice_axis (2 is axial) to cut slices")
        if volume.affine is None and self.spacing is not None:
            raise MedgenError(f"{volume.meta['file']}: has no geometry and cannot be brought to {list(self.spacing)} mm; set spacing: null")
        return volume if volume.affine is None else reoriented(volume, "RAS")

    def _spaced(self, volume: Volume, axis: int | None, labels: bool = False) -> Volume:
        """On the recipe's spacing, but across slices; the very same array where that is the volume's own."""
        if self.spacing is not None:
            return resampled(volume, [None if i == axis else s for i, s in enumerate(self.spacing)], labels)
        if self.resize and volume.affine is None and len(volume.shape) == 3:  # frames of a video keep their time
            size = (volume.shape[0], *self.size[-2:])
            return volume.with_array(resized(volume.array, size, labels))
        return volume

    def _cut(self, prepared: Prepared, stored: np.ndarray, axis: int | None) -> Prepared:
        if len(self.size) == 3:
            return replace(prepared, spots=self._spots(prepared, stored))
        return self._picture(prepared) if axis is None else self._slices(prepared, stored, axis)

    def _slices(self, prepared: Prepared, stored: np.ndarray, axis: int) -> Prepared:
        """Slices across `axis` on the model's grid; those that are nearly empty in the first channel are not kept."""
        bright = np.moveaxis(stored > stored.mean(), axis, 0)
        kept = np.flatnonzero(bright.mean((1, 2)) >= self.min_foreground)
        window = Placement.centred(bright.shape, self.size)
        images = {name: _stacked(values, axis, window, prepared.fill(name)) for name, values in prepared.images.items()}
        labels = {name: _stacked(values, axis, window, 0) for name, values in prepared.labels.items()}
        affines = None if prepared.affines is None else _plane_affines(prepared.affines, window, axis, bright.shape[0])
        return replace(prepared, images=images, labels=labels, affines=affines, kept=kept)

    def _picture(self, prepared: Prepared) -> Prepared:
        images = {name: self._sized(values[None], prepared.fill(name)) for name, values in prepared.images.items()}
        labels = {name: self._sized(values[None], 0, labels=True) for name, values in prepared.labels.items()}
        return replace(prepared, images=images, labels=labels)

    def _sized(self, array: np.ndarray, fill: float, labels: bool = False) -> np.ndarray:
        return resized(array, self.size, labels) if self.resize else fitted(array, self.size, fill)[0]

    def _spots(self, prepared: Prepared, stored: np.ndarray) -> dict[str, np.ndarray]:
        """A bounded table of places of each kind, the same at every preparation."""
        masks = {}
        for kind in self.kinds:
            name, _, number = kind.partition("=")
            if kind == "foreground":
                masks[kind] = stored > stored.mean()
            elif name in prepared.labels:
                masks[kind] = prepared.labels[name] == int(number) if number else prepared.labels[name] > 0
        return {kind: _drawn(mask) for kind, mask in masks.items()}


def _drawn(mask: np.ndarray) -> np.ndarray:
    """(N, dims) int16 of at most `_SPOTS` places."""
    places = np.flatnonzero(mask)
    if len(places) > _SPOTS:
        places = np.sort(generator(len(places), _SPOT_STREAM).choice(places, _SPOTS, replace=False))
    return np.stack(np.unravel_index(places, mask.shape), 1).astype(np.int16 if max(mask.shape) < 2**15 else np.int32)


def _compact(values: np.ndarray, rule: IntensityMap, fit: Mapping[str, float], kind: np.dtype | None) -> np.ndarray:
    """Integers of at most 16 bits as they are stored (`kind`), where background is one of them; else float32 in network units."""
    if kind is not None and kind.kind in "iu" and kind.itemsize <= 2:
        limits = np.iinfo(kind)
        if float(fit["low"]).is_integer() and limits.min <= fit["low"] <= limits.max:
            return np.ascontiguousarray(values, kind)
    return np.ascontiguousarray(rule.forward(values, **fit), np.float32)


def _small(labels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(labels, np.uint8 if labels.max(initial=0) < 256 else np.int16)


def _stacked(array: np.ndarray, axis: int, window: Placement, fill: float) -> np.ndarray:
    """(planes, H, W), plane after plane in memory."""
    return np.ascontiguousarray(window.apply(np.moveaxis(array, axis, 0), fill))


def _plane_affines(affine: np.ndarray, window: Placement, axis: int, planes: int) -> np.ndarray:
    """(planes, 4, 4): the plane's two axes first, then the one that was cut, at the plane's place."""
    first = window.moved(affine[:, [i for i in range(3) if i != axis] + [axis, 3]])
    affines = np.repeat(first[None], planes, 0)
    affines[:, :3, 3] += np.arange(planes)[:, None] * first[:3, 2]
    return affines
