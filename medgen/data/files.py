"""Images listed in a manifest as cases: slices or patches of volumes, or plain pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.geometry import Placement, fitted, reoriented, resampled, resized
from medgen.core.intensity import IntensityMap, intensity_map
from medgen.core.task import MOMENTS
from medgen.core.volume import Volume
from medgen.data.cases import BACKGROUND, Patches, Planes, Prepared
from medgen.data.checks import attribute, check_labels, check_pair, one_plane
from medgen.data.manifest import Manifest
from medgen.data.planes import plane_of
from medgen.data.readers import read
from medgen.data.source import Cases

_RESERVED = ("subject", "split", "affine", "index", MOMENTS)


@dataclass(frozen=True)
class Options:
    """The finer points of `FileData`.

    Attributes:
        min_foreground: a slice with a smaller fraction of its voxels above the mean of the volume is left out.
        resize: scale pictures to `size` instead of cropping and padding them.
        about: "name", "licence", "attribution" of the data, for the contract.
    """

    min_foreground: float = 0.02
    resize: bool = False
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for key in self.about:
            if key not in (known := ("name", "licence", "attribution")):
                raise MedgenError(f"about: no entry '{key}'; {nearest(key, known)}")


class FileData:
    """A `Source` of the images in a manifest. A split is prepared once, at its first use, and stays in memory.

    Volumes are turned to RAS and resampled to `spacing`; for 2D models only in the plane of the slice. Intensities are mapped with
    parameters of the whole volume. What sticks out of an image is padded with the lower end of the map (no signal, air).
    A channel named `<column>_red`, `_green` or `_blue` is that plane of a colour picture, and `<column>_<number>` (from 0) any
    plane of a file that has several (a 4D NIfTI, a stack of channels).

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
        labels: Mapping[str, int] | None = None,
        attributes: Mapping[str, int] | None = None,
        spacing: Sequence[float] | None = None,
        slice_axis: int | None = 2,
        options: Options | None = None,
    ):
        self.manifest = Manifest.read(manifest)
        self.maps: dict[str, IntensityMap] = {name: intensity_map(**rule) for name, rule in channels.items()}
        self.size = tuple(int(n) for n in size)
        self.labels, self.attributes = dict(labels or {}), dict(attributes or {})
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.slice_axis = slice_axis if len(self.size) == 2 else None
        self.options = options or Options()
        self._check()
        self._prepared: dict[str, list[Prepared]] = {}

    def split(self, name: str) -> Cases:
        """The cases of a split, in memory.

        Raises:
            EmptySplit: no row has that split.
            MedgenError: a missing or damaged file, unpaired grids, a label or attribute out of range, no slice with foreground.
        """
        rows = self._rows(name)
        return Patches(rows, self.size, anywhere=name == "train") if len(self.size) == 3 else Planes(rows)

    def facts(self) -> dict[str, Any]:
        """What the training split decides of a contract; see `Source.facts`."""
        rows = self._rows("train")
        spacings = [row.spacing for row in rows if row.spacing is not None]
        native = tuple(round(float(s), 4) for s in np.median(spacings, 0)) if spacings else None
        return {
            "spatial_dims": len(self.size),
            "size": self.size,
            "labels": dict(self.labels),
            "attributes": dict(self.attributes),
            "intensity": {name: {**rule.describe(), "typical": _typical(rows, name)} for name, rule in self.maps.items()},
            "orientation": "RAS" if spacings else None,
            "spacing": self.spacing or native,
            "slice_axis": self.slice_axis if any(row.volumetric for row in rows) else None,
            "data": self._about(),
        }

    def prepare(self, row: Mapping[str, str]) -> Prepared:
        """Read, check, orient, resample, map and cut one row of the manifest."""
        images, labels = self._load(row)
        ranges = {name: self.maps[name].fit(volume.array) for name, volume in images.items()}
        images = {name: self._on_grid(volume) for name, volume in images.items()}
        labels = {name: self._on_grid(volume, labels=True) for name, volume in labels.items()}
        first = next(iter(images.values()))
        prepared = Prepared(
            images={name: self._mapped(name, volume, ranges[name]) for name, volume in images.items()},
            labels={name: volume.array[0].astype(np.int16) for name, volume in labels.items()},
            affines=first.affine,
            ranges=ranges,
            spacing=first.spacing,
            volumetric=len(first.shape) == 3,
            extra={"subject": row["subject"], **self._attributes(row)},
        )
        return self._cut(prepared, first)

    def _check(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise MedgenError(f"size: expected two numbers (slices, pictures) or three (patches), found {list(self.size)}")
        if not self.maps:
            raise MedgenError("channels: expected at least one, such as {t1: {name: mr_percentile}}")
        if self.spacing is not None and (len(self.spacing) != 3 or min(self.spacing) <= 0):
            raise MedgenError(f"spacing: expected three positive numbers of mm or null, found {list(self.spacing)}")
        if self.slice_axis not in (None, 0, 1, 2):
            raise MedgenError(f"slice_axis: expected 0 (sagittal), 1 (coronal) or 2 (axial), found {self.slice_axis}")
        names = [*self.maps, *self.labels, *self.attributes]
        for name in names:
            if names.count(name) > 1 or name in _RESERVED:
                raise MedgenError(f"'{name}' has two roles; a name is one channel, one label map or one attribute, and none of {_RESERVED}")
        self.manifest.require([*self._files(), *self.attributes])

    def _files(self) -> list[str]:
        return [*dict.fromkeys(self._column(channel)[0] for channel in self.maps), *self.labels]

    def _column(self, channel: str) -> tuple[str, int | None]:
        return plane_of(channel, self.manifest.columns)

    def _rows(self, split: str) -> list[Prepared]:
        if split not in self._prepared:
            manifest = self.manifest.split(split)
            manifest.require_files(self._files())
            rows = [self.prepare(row) for row in manifest.rows]
            if not any(row.shape[0] for row in rows):
                found = f"no slice of split '{split}' has {self.options.min_foreground:.1%} of its voxels above the mean"
                raise MedgenError(f"{manifest.path}: {found}; lower min_foreground")
            self._prepared[split] = rows
        return self._prepared[split]

    def _load(self, row: Mapping[str, str]) -> tuple[dict[str, Volume], dict[str, Volume]]:
        files = {column: read(self.manifest.file(row, column)) for column in self._files()}
        columns = {channel: self._column(channel) for channel in self.maps}
        images = {channel: one_plane(files[column], channel, plane) for channel, (column, plane) in columns.items()}
        labels = {name: one_plane(files[name], name) for name in self.labels}
        check_pair({**images, **labels}, f"{self.manifest.path}: subject {row['subject']}")
        for name, volume in labels.items():
            check_labels(volume, name, self.labels[name])
        return images, labels

    def _attributes(self, row: Mapping[str, str]) -> dict[str, int | float]:
        return {name: attribute(row, name, classes, self.manifest.path) for name, classes in self.attributes.items()}

    def _on_grid(self, volume: Volume, labels: bool = False) -> Volume:
        if len(volume.shape) == 2 and len(self.size) == 3:
            raise MedgenError(f"{volume.meta['file']}: a picture of shape {volume.shape}, and size {list(self.size)} asks for volumes")
        if len(volume.shape) == 3 and len(self.size) == 2 and self.slice_axis is None:
            raise MedgenError(f"{volume.meta['file']}: a volume of shape {volume.shape}; set slice_axis (2 is axial) to cut slices")
        if volume.affine is None and self.spacing is not None:
            raise MedgenError(f"{volume.meta['file']}: has no geometry and cannot be brought to {list(self.spacing)} mm; set spacing: null")
        if volume.affine is None:
            return volume
        spacing = [None if axis == self.slice_axis else s for axis, s in enumerate(self.spacing or (None, None, None))]
        return resampled(reoriented(volume, "RAS"), spacing, labels)

    def _mapped(self, channel: str, volume: Volume, fit: dict[str, float]) -> np.ndarray:
        return np.ascontiguousarray(self.maps[channel].forward(volume.array[0], **fit), np.float32)

    def _cut(self, prepared: Prepared, stored: Volume) -> Prepared:
        if len(self.size) == 3:
            return prepared
        return self._slices(prepared, stored.array[0]) if prepared.volumetric else self._picture(prepared)

    def _slices(self, prepared: Prepared, stored: np.ndarray) -> Prepared:
        """Slices across `slice_axis` on the model's grid, without those that are nearly empty in the first channel."""
        axis = self.slice_axis
        bright = np.moveaxis(stored > stored.mean(), axis, 0)
        kept = np.flatnonzero(bright.mean((1, 2)) >= self.options.min_foreground)
        window = Placement.centred(bright.shape, self.size)
        images = {name: _stacked(values, axis, window, BACKGROUND)[kept] for name, values in prepared.images.items()}
        labels = {name: _stacked(values, axis, window, 0)[kept] for name, values in prepared.labels.items()}
        affines = None if prepared.affines is None else _plane_affines(prepared.affines, window, axis, kept)
        return replace(prepared, images=images, labels=labels, affines=affines)

    def _picture(self, prepared: Prepared) -> Prepared:
        images = {name: self._sized(values[None], BACKGROUND) for name, values in prepared.images.items()}
        labels = {name: self._sized(values[None], 0, labels=True) for name, values in prepared.labels.items()}
        return replace(prepared, images=images, labels=labels)

    def _sized(self, array: np.ndarray, fill: float, labels: bool = False) -> np.ndarray:
        return resized(array, self.size, labels) if self.options.resize else fitted(array, self.size, fill)[0]

    def _about(self) -> dict[str, Any]:
        known = {"name": self.manifest.path.resolve().parent.name, "licence": "unknown", "attribution": "unknown"}
        return {**known, **self.options.about, "subjects": len(self.manifest.split("train").subjects)}


def _stacked(array: np.ndarray, axis: int, window: Placement, fill: float) -> np.ndarray:
    """(planes, H, W), plane after plane in memory."""
    return np.ascontiguousarray(window.apply(np.moveaxis(array, axis, 0), fill))


def _plane_affines(affine: np.ndarray, window: Placement, axis: int, kept: np.ndarray) -> np.ndarray:
    """(planes, 4, 4): the plane's two axes first, then the one that was cut, at the plane's place."""
    first = window.moved(affine[:, [i for i in range(3) if i != axis] + [axis, 3]])
    affines = np.repeat(first[None], len(kept), 0)
    affines[:, :3, 3] += kept[:, None] * first[:3, 2]
    return affines


def _typical(rows: list[Prepared], channel: str) -> dict[str, float]:
    ranges = [row.ranges[channel] for row in rows]
    return {key: float(np.median([r[key] for r in ranges])) for key in ranges[0]}
