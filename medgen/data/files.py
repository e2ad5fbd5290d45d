"""Images listed in a manifest as cases: slices or patches of volumes, or plain pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.geometry import Placement, fitted, reoriented, resampled, resized
from medgen.core.intensity import IntensityMap, intensity_map
from medgen.core.volume import Volume
from medgen.data.checks import attribute, check_labels, check_pair, one_plane
from medgen.data.manifest import Manifest
from medgen.data.readers import read
from medgen.data.source import Case, Cases

_PLANES = {"_red": 0, "_green": 1, "_blue": 2}


@dataclass(frozen=True)
class Options:
    """The finer points of `FileData`.

    Attributes:
        min_foreground: a slice with a smaller fraction of voxels above its volume's mean is left out.
        resize: scale pictures to `size` instead of cropping and padding them.
        about: "name", "licence", "attribution" of the data, for the contract.
    """

    min_foreground: float = 0.02
    resize: bool = False
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for key in self.about:
            if key not in ("name", "licence", "attribution"):
                raise MedgenError(f"about: no entry '{key}'; {nearest(key, ('name', 'licence', 'attribution'))}")


@dataclass
class Prepared:
    """One row of the manifest, ready to be cut: what a memory-mapped store would keep.

    Attributes:
        images: channel -> (*S) or, for slices and pictures, (planes, H, W) float32 in network units.
        labels: label map -> the same shape, int16.
        affines: (4, 4), or (planes, 4, 4); None without geometry.
        ranges: channel -> fitted parameters of its intensity map.
        spacing: mm, in RAS; None without geometry.
        extra: subject and attributes.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    affines: np.ndarray | None
    ranges: dict[str, dict[str, float]]
    spacing: tuple[float, ...] | None
    extra: dict[str, Any]


class FileData:
    """A `Source` of the images in a manifest. A split is prepared once, at its first use, and stays in memory.

    Volumes are turned to RAS and resampled to `spacing`; for 2D models only in the plane of the slice. Intensities are mapped with
    parameters of the whole volume. What sticks out of an image is padded with the value of the map's lower end (no signal, air).
    A channel named `<column>_red`, `_green` or `_blue` is that plane of a colour picture.

    Args:
        manifest: path of the CSV.
        channels: column -> intensity rule, such as {"t1": {"name": "mr_percentile"}}.
        size: two numbers for slices and pictures, three for patches.
        labels: column of a label map -> number of classes.
        attributes: column of an attribute -> number of classes, or 0 for a real number.
        spacing: mm along R, A and S; None keeps what the files have.
        slice_axis: the axis that 2D slices are cut across; 2 is axial.
    """

    def __init__(
        self,
        manifest: str,
        channels: Mapping[str, Mapping[str, Any]],
        size: Sequence[int],
        labels: Mapping[str, int] = {},
        attributes: Mapping[str, int] = {},
        spacing: Sequence[float] | None = None,
        slice_axis: int | None = 2,
        options: Options = Options(),
    ):
        self.manifest = Manifest.read(manifest)
        self.maps: dict[str, IntensityMap] = {name: intensity_map(**rule) for name, rule in channels.items()}
        self.size = tuple(int(n) for n in size)
        self.labels, self.attributes = dict(labels), dict(attributes)
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.slice_axis = slice_axis if len(self.size) == 2 else None
        self.options = options
        self._check()
        self._prepared: dict[str, list[Prepared]] = {}

    def split(self, name: str) -> Cases:
        """The cases of a split, in memory.

        Raises:
            MedgenError: an empty split, a missing or damaged file, unpaired grids, a label or attribute out of range.
        """
        rows = self._rows(name)
        if len(self.size) == 3:
            return Patches(rows, self.size, anywhere=name == "train")
        return Planes(rows)

    def facts(self) -> dict[str, Any]:
        """What the training split decides of a contract; see `Source.facts`."""
        rows = self._rows("train")
        spacings = [row.spacing for row in rows if row.spacing is not None]
        return {
            "spatial_dims": len(self.size),
            "size": self.size,
            "labels": dict(self.labels),
            "attributes": dict(self.attributes),
            "intensity": {name: {**rule.describe(), "typical": _typical(rows, name)} for name, rule in self.maps.items()},
            "orientation": "RAS" if spacings else None,
            "spacing": self.spacing or (tuple(round(float(s), 4) for s in np.median(spacings, 0)) if spacings else None),
            "slice_axis": self.slice_axis if any(len(row.images[c]) > 1 for row in rows for c in row.images) or spacings else None,
            "data": self._about(),
        }

    def prepare(self, row: Mapping[str, str]) -> Prepared:
        """Read, check, orient, resample and map one row of the manifest."""
        images = {name: self._read(row, name) for name in self.maps}
        labels = {name: one_plane(read(self.manifest.file(row, name)), name) for name in self.labels}
        check_pair({**images, **labels}, f"{self.manifest.path}: subject {row['subject']}")
        for name, volume in labels.items():
            check_labels(volume, name, self.labels[name])
        ranges = {name: self.maps[name].fit(volume.array) for name, volume in images.items()}
        extra = {name: attribute(row, name, n, self.manifest.path) for name, n in self.attributes.items()}
        extra["subject"] = row["subject"]
        images = {name: self._on_grid(volume) for name, volume in images.items()}
        labels = {name: self._on_grid(volume, labels=True) for name, volume in labels.items()}
        first = next(iter(images.values()))
        mapped = {name: _mapped(self.maps[name], v.array[0], ranges[name]) for name, v in images.items()}
        masks = {name: v.array[0].astype(np.int16) for name, v in labels.items()}
        prepared = Prepared(mapped, masks, first.affine, ranges, first.spacing, extra)
        if len(self.size) == 3:
            return prepared
        return self._sliced(prepared, first.array[0]) if first.array.ndim == 4 else self._picture(prepared)

    def _check(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise MedgenError(f"size: expected two numbers (slices, pictures) or three (patches), found {list(self.size)}")
        if not self.maps:
            raise MedgenError("channels: expected at least one, such as {t1: {name: mr_percentile}}")
        if self.spacing is not None and (len(self.spacing) != 3 or min(self.spacing) <= 0):
            raise MedgenError(f"spacing: expected three numbers of mm or null, found {list(self.spacing)}")
        if self.slice_axis not in (None, 0, 1, 2):
            raise MedgenError(f"slice_axis: expected 0 (sagittal), 1 (coronal) or 2 (axial), found {self.slice_axis}")
        self.manifest.require([*(self._column(c)[0] for c in self.maps), *self.labels, *self.attributes])

    def _rows(self, split: str) -> list[Prepared]:
        if split not in self._prepared:
            manifest = self.manifest.split(split)
            manifest.require_files([*(self._column(c)[0] for c in self.maps), *self.labels])
            rows = [self.prepare(row) for row in manifest.rows]
            if len(self.size) == 2 and not any(len(next(iter(row.images.values()))) for row in rows):
                raise MedgenError(
                    f"{manifest.path}: split '{split}' has no slice with {self.options.min_foreground:.0%} foreground; lower min_foreground"
                )
            self._prepared[split] = rows
        return self._prepared[split]

    def _column(self, channel: str) -> tuple[str, int | None]:
        """The manifest's column of a channel, and the plane of the picture it is (None: the only one)."""
        for ending, plane in _PLANES.items():
            column = channel.removesuffix(ending)
            if channel not in self.manifest.columns and column != channel and column in self.manifest.columns:
                return column, plane
        return channel, None

    def _read(self, row: Mapping[str, str], channel: str) -> Volume:
        column, plane = self._column(channel)
        return one_plane(read(self.manifest.file(row, column)), channel, plane)

    def _on_grid(self, volume: Volume, labels: bool = False) -> Volume:
        if volume.affine is None:
            if self.spacing is not None:
                raise MedgenError(
                    f"{volume.meta['file']}: has no geometry, so it cannot be resampled to {list(self.spacing)} mm; set spacing: null"
                )
            return volume
        volume = reoriented(volume, "RAS")
        if self.spacing is None:
            return volume
        return resampled(volume, [None if axis == self.slice_axis else s for axis, s in enumerate(self.spacing)], labels)

    def _sliced(self, prepared: Prepared, stored: np.ndarray) -> Prepared:
        """Slices along `slice_axis`, on the model's grid, without those that are empty."""
        axis = self.slice_axis
        cut, placement = self._planes(stored, -np.inf)
        kept = np.flatnonzero((cut > stored.mean()).mean((1, 2)) >= self.options.min_foreground)
        prepared.images = {k: self._planes(v, _background(self.maps[k], prepared.ranges[k]))[0][kept] for k, v in prepared.images.items()}
        prepared.labels = {k: self._planes(v, 0)[0][kept] for k, v in prepared.labels.items()}
        if prepared.affines is not None:
            order = [i for i in range(3) if i != axis] + [axis, 3]
            first = placement.moved(prepared.affines[:, order])
            prepared.affines = np.stack([_shifted(first, i) for i in kept]) if len(kept) else np.empty((0, 4, 4))
        return prepared

    def _planes(self, array: np.ndarray, fill: float) -> tuple[np.ndarray, Placement]:
        return fitted(np.moveaxis(array, self.slice_axis, 0), self.size, fill)

    def _picture(self, prepared: Prepared) -> Prepared:
        def on_size(array: np.ndarray, fill: float, labels: bool) -> np.ndarray:
            return resized(array[None], self.size, labels) if self.options.resize else fitted(array[None], self.size, fill)[0]

        prepared.images = {k: on_size(v, _background(self.maps[k], prepared.ranges[k]), False) for k, v in prepared.images.items()}
        prepared.labels = {k: on_size(v, 0, True) for k, v in prepared.labels.items()}
        return prepared

    def _about(self) -> dict[str, Any]:
        known = {"name": self.manifest.path.resolve().parent.name, "licence": "unknown", "attribution": "unknown"}
        return {**known, **self.options.about, "subjects": len(self.manifest.split("train").subjects)}


class Planes:
    """Cases that are planes of prepared rows."""

    def __init__(self, rows: list[Prepared]):
        self.rows = rows
        counts = [len(next(iter(row.images.values()))) for row in rows]
        self.table = np.array([(r, plane) for r, count in enumerate(counts) for plane in range(count)])

    def __len__(self) -> int:
        return len(self.table)

    def case(self, index: int, rng: np.random.Generator) -> Case:
        r, plane = self.table[index]
        row = self.rows[r]
        arrays = {name: values[plane][None] for name, values in row.images.items()}
        masks = {name: values[plane][None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": row.affines[plane].astype(np.float32)}
        return {**arrays, **masks, **place, **row.extra}


class Patches:
    """Cases that are one patch of each prepared volume: anywhere in it, or in its centre."""

    def __init__(self, rows: list[Prepared], size: tuple[int, ...], anywhere: bool):
        self.rows, self.size, self.anywhere = rows, size, anywhere

    def __len__(self) -> int:
        return len(self.rows)

    def case(self, index: int, rng: np.random.Generator) -> Case:
        row = self.rows[index]
        window = self._window(next(iter(row.images.values())).shape, rng)
        arrays = {name: window.apply(values, -1.0)[None] for name, values in row.images.items()}
        masks = {name: window.apply(values, 0)[None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": window.moved(row.affines, first=0).astype(np.float32)}
        return {**arrays, **masks, **place, **row.extra}

    def _window(self, shape: tuple[int, ...], rng: np.random.Generator) -> Placement:
        centred = Placement.centred(shape, self.size)
        if not self.anywhere:
            return centred
        room = [n - m for n, m in zip(shape, self.size, strict=True)]
        start = tuple(int(rng.integers(0, r + 1)) if r > 0 else s for r, s in zip(room, centred.start, strict=True))
        return Placement(centred.shape, centred.axes, start, centred.size)


def _mapped(rule: IntensityMap, values: np.ndarray, fitted_range: dict[str, float]) -> np.ndarray:
    return np.ascontiguousarray(rule.forward(values, **fitted_range), np.float32)


def _background(rule: IntensityMap, fitted_range: dict[str, float]) -> float:
    return float(rule.forward(fitted_range["low"], **fitted_range))


def _shifted(affine: np.ndarray, index: int) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += index * affine[:3, 2]
    return moved


def _typical(rows: list[Prepared], channel: str) -> dict[str, float]:
    ranges = [row.ranges[channel] for row in rows]
    return {key: float(np.median([r[key] for r in ranges])) for key in ranges[0]}
