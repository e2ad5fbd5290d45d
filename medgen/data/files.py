"""Images listed in a manifest as cases: slices or patches of volumes, or plain pictures."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, MedgenWarning, nearest
from medgen.core.intensity import IntensityMap, intensity_map
from medgen.core.neighbours import neighbour, neighbours
from medgen.core.task import MOMENTS
from medgen.data.cases import Cutter, InMemory, Patches, Planes, RowCases, Unpaired
from medgen.data.checks import attribute
from medgen.data.fitting import far, unfit
from medgen.data.formats.format import read_limit
from medgen.data.labelling import LabelRule
from medgen.data.manifest import Manifest
from medgen.data.options import Options
from medgen.data.planes import plane_of
from medgen.data.recipe import Recipe
from medgen.data.source import Cases
from medgen.data.store import Progress, Rows, Store, Wanted
from medgen.data.workers import Limits

_RESERVED = ("subject", "split", "affine", "index", MOMENTS)
_ROBUST = (".nii", ".nii.gz", ".npy", ".png")  # decoders that have never ended a process
_SMALL = 64 << 20  # bytes of files that are prepared sooner than a worker process has started


class FileData:
    """A `Source` of the images in a manifest. A split is prepared at its first use into a store that later runs find (see
    `medgen.data.store`).

    Volumes are turned to RAS and resampled to `spacing`; for 2D models only in the plane of the slice. Intensities are mapped with
    parameters of the whole volume. What sticks out of an image is padded with the lower end of the map (no signal, air).
    A channel named `<column>_red`, `_green` or `_blue` is that plane of a colour picture, and `<column>_<number>` (from 0) any
    plane of a file that has several (a 4D NIfTI, a stack of channels).

    Args:
        manifest: path of the CSV.
        channels: column -> intensity rule, such as {"t1": {"name": "mr_percentile"}}.
        size: two numbers for slices and pictures, three for patches.
        labels: column of a label map -> number of classes, or how its numbers become classes: {"values": [0, 255]} (the stored number of
            class 0, 1, ...), {"binary": True} (anything but 0 is class 1).
        attributes: column of an attribute -> number of classes, or 0 for a real number.
        spacing: mm along R, A and S; None keeps what the files have.
        slice_axis: the axis that 2D slices are cut across; 2 is axial. Several, such as [0, 1, 2], cut across each; the first one is the
            contract's, across which a volume is cut at last. "auto" is 2 for slices and none for patches.
    """

    def __init__(
        self,
        manifest: str,
        channels: Mapping[str, Mapping[str, Any]],
        size: Sequence[int],
        labels: Mapping[str, int | Mapping[str, Any]] | None = None,
        attributes: Mapping[str, int] | None = None,
        spacing: Sequence[float] | None = None,
        slice_axis: int | Sequence[int] | str | None = "auto",
        options: Options | None = None,
    ):
        self.manifest = Manifest.read(manifest)
        self.maps: dict[str, IntensityMap] = {name: intensity_map(**rule) for name, rule in channels.items()}
        self.size = tuple(int(n) for n in size)
        self.label_rules = {name: LabelRule.said(name, entry) for name, entry in (labels or {}).items()}
        self.labels = {name: rule.classes for name, rule in self.label_rules.items()}
        self.attributes = dict(attributes or {})
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.slice_axes = _axes(slice_axis, flat=len(self.size) == 2)
        self.options = options or Options()
        self._check()
        self._has: dict[str, list[set[str]]] = {}
        self._prepared: dict[str, Rows | InMemory] = {}

    def split(self, name: str) -> Cases:
        """The cases of a split.

        Raises:
            EmptySplit: no row has that split.
            MedgenError: a missing or damaged file, unpaired grids, a label or attribute out of range, no slice with foreground.
        """
        cut = self.options.cut
        rows, cutter = self.prepared(name), Cutter(self.maps, tuple(self.labels), cut.neighbours, self.options.missing)
        if len(self.size) == 3:
            cases = Patches(rows, self.size, cutter, anywhere=name == "train", cut=cut)
        else:
            cases = Planes(rows, rows.counts, cutter)
        return self._unpaired(cases, name) if cut.unpaired else cases

    def facts(self) -> dict[str, Any]:
        """What the training split decides of a contract; see `Source.facts`."""
        rows = self.prepared("train")
        known = [(row.spacing, row.volumetric, row.ranges) for row in rows]
        spacings = [spacing for spacing, _, _ in known if spacing is not None]
        channels = neighbours(self.maps, self.options.cut.neighbours)
        native = tuple(round(float(s), 4) for s in np.median(spacings, 0)) if spacings else None
        return {
            "spatial_dims": len(self.size),
            "size": self.size,
            "labels": dict(self.labels),
            "attributes": dict(self.attributes),
            "intensity": {name: self._intensity(channel, known) for name, (channel, _) in channels.items()},
            "orientation": "RAS" if spacings else None,
            "spacing": self.spacing or native,
            "slice_axis": self.slice_axes[0] if self.slice_axes and any(volumetric for _, volumetric, _ in known) else None,
            "data": self._about(),
        }

    @property
    def recipe(self) -> Recipe:
        """What is made of a row."""
        cut = self.options.cut
        return Recipe(
            columns={name: plane_of(name, self.manifest.columns) for name in self.maps},
            rules={name: rule.describe() for name, rule in self.maps.items()},
            labels=self.label_rules,
            size=self.size,
            spacing=self.spacing,
            axes=self.slice_axes,
            min_foreground=self.options.min_foreground,
            resize=self.options.resize,
            kinds=tuple(sorted(kind for kind in cut.patches if kind != "uniform")),
            tiles=(cut.mpp, cut.stride, cut.tissue),
        )

    def prepared(self, split: str, progress: Progress | None = None) -> Rows | InMemory:
        """The rows of a split, ready to be cut; `progress` is told (done, of) while they are prepared."""
        if split not in self._prepared:
            manifest = self.manifest.split(split)
            manifest.require_files(self.recipe.files, blank=self.blank)
            extra = [{"subject": row["subject"], **self._attributes(row)} for row in manifest.rows]
            first = not self._prepared
            self._warn(unfit(manifest, self.recipe.columns, self.maps) if first else ())
            rows, failures = self._rows(manifest, progress)
            self._report(manifest, failures)
            rows.extra = [e for place, e in enumerate(extra) if place not in failures]
            self._has[split] = [set(row.files) for place, row in enumerate(self.wanted(manifest)) if place not in failures]
            if not rows.counts.sum():
                found = f"no slice of split '{split}' has {self.options.min_foreground:.1%} of its voxels above the mean"
                raise MedgenError(f"{manifest.path}: {found}; lower min_foreground")
            self._warn(far(rows, self.maps) if first else ())
            self._prepared[split] = rows
        return self._prepared[split]

    def wanted(self, manifest: Manifest) -> list[Wanted]:
        """The rows of a manifest as the store takes them."""
        wanted = []
        for row in manifest.rows:
            files = {column: os.path.abspath(manifest.file(row, column)) for column in self.recipe.files if row[column]}
            wanted.append(Wanted(files, f"{manifest.path}: subject {row['subject']}"))
        return wanted

    @property
    def store(self) -> Store | None:
        """Where prepared rows are kept; None keeps them in memory."""
        folder = self.options.keep.folder
        if folder == "memory":
            return None
        return Store(Path(folder) if folder else default_store(self.manifest.path), self.recipe)

    def _rows(self, manifest: Manifest, progress: Progress | None) -> tuple[Rows | InMemory, dict[int, str]]:
        wanted, store = self.wanted(manifest), self.store
        if store is None:
            return InMemory([list(self.recipe.pieces(row.files, row.where)) for row in wanted]), {}
        if not os.access(store.folder.parent, os.W_OK) and store.folder.parent.is_dir() and store.complete(wanted) is None:
            store = Store(_cache(manifest.path), self.recipe)  # a store on a read-only disk that lacks something
        return store.rows(wanted, self._workers(wanted), progress or progress_bar(f"preparing {manifest.path}"), self._limits)

    @property
    def _limits(self) -> Limits:
        keep = self.options.keep
        return Limits(keep.seconds, read_limit() if keep.memory is None else keep.memory)

    def _workers(self, wanted: Sequence[Wanted]) -> int:
        """Few small files of robust formats are prepared here and now; others in processes that may die of them."""
        if self.options.keep.workers is not None:
            return self.options.keep.workers
        cells = [cell for row in wanted for cell in row.files.values()]
        robust = all(cell.lower().endswith(_ROBUST) for cell in cells)
        small = robust and sum(os.path.getsize(cell) for cell in cells) < _SMALL
        return 0 if small else max(1, min(16, os.cpu_count() or 1))

    def _warn(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            warnings.warn(sentence, MedgenWarning, stacklevel=3)

    def _report(self, manifest: Manifest, failures: Mapping[int, str]) -> None:
        if not failures:
            return
        first = next(iter(failures.values()))
        several = f"{len(failures)} of {len(manifest)} rows of {manifest.path} cannot be prepared; the first: {first}"
        if self.options.keep.skip_broken and len(failures) < len(manifest):
            warnings.warn(f"{several}; they are left out", MedgenWarning, stacklevel=4)
        else:
            raise MedgenError(first if len(failures) == 1 else several)

    def _check(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise MedgenError(f"size: expected two numbers (slices, pictures) or three (patches), found {list(self.size)}")
        if not self.maps:
            raise MedgenError("channels: expected at least one, such as {t1: {name: mr_percentile}}")
        if self.spacing is not None and (len(self.spacing) != 3 or min(self.spacing) <= 0):
            raise MedgenError(f"spacing: expected three positive numbers of mm or null, found {list(self.spacing)}")
        if self.slice_axes and len(self.size) == 3:
            found = f"size {list(self.size)} asks for volumes and slice_axis {list(self.slice_axes)} for slices"
            raise MedgenError(f"{found}; set data.source.slice_axis=null, or give two numbers of size")
        if not set(self.slice_axes) <= {0, 1, 2} or len(set(self.slice_axes)) < len(self.slice_axes):
            raise MedgenError(f"slice_axis: expected 0 (sagittal), 1 (coronal) or 2 (axial), or several, found {list(self.slice_axes)}")
        names = [*self.maps, *self.labels, *self.attributes]
        for name in names:
            if names.count(name) > 1 or name in _RESERVED:
                raise MedgenError(f"'{name}' has two roles; a name is one channel, one label map or one attribute, and none of {_RESERVED}")
        for name in self.maps:
            base, away = neighbour(name)
            if away:
                remedy = f"rename the column, or take the slices beside '{base}' by cut.neighbours"
                raise MedgenError(
                    f"channel '{name}' is named like the slice {abs(away)} {'after' if away > 0 else 'before'} '{base}'; {remedy}"
                )
        self.manifest.require([*self.recipe.files, *self.attributes])
        self.recipe.check_kinds()
        self._check_cut()

    def _check_cut(self) -> None:
        cut, flat = self.options.cut, len(self.size) == 2
        for name, wrong, kind in (("buckets", cut.buckets and flat, "volumes"), ("neighbours", cut.neighbours and not flat, "slices")):
            if wrong:
                raise MedgenError(f"cut.{name} is for {kind}, and size is {list(self.size)}; leave it out")
        for name in cut.unpaired:
            if name not in (known := [*self.maps, *self.labels]):
                raise MedgenError(f"cut.unpaired: no channel or label map '{name}'; {nearest(name, known)}")
        if cut.unpaired and set(self.maps) <= set(cut.unpaired):
            raise MedgenError(f"cut.unpaired names every channel ({', '.join(cut.unpaired)}); leave those out that it starts from")

    @property
    def blank(self) -> bool:
        """Whether a row may lack files."""
        return self.options.missing or bool(self.options.cut.unpaired)

    def _unpaired(self, cases: RowCases, split: str) -> Unpaired:
        names = self.options.cut.unpaired
        second = {plane_of(name, self.manifest.columns)[0] for name in names}
        first = {column for column in self.recipe.files if column not in second}
        pools = [np.flatnonzero(cases.told([need <= has for has in self._has[split]])) for need in (first, second)]
        for pool, need in zip(pools, (first, second), strict=True):
            if not len(pool):
                raise MedgenError(f"{self.manifest.path}: no row of split '{split}' has {', '.join(sorted(need))}; see cut.unpaired")
        own = [name for name in names if name in self.maps]
        return Unpaired(cases, pools[0], pools[1], [*names, *neighbours(own, self.options.cut.neighbours)])

    def _intensity(self, channel: str, known: Sequence[tuple[Any, bool, Mapping[str, Any]]]) -> dict[str, Any]:
        return {**self.maps[channel].describe(), "typical": _typical(known, channel)}

    def _attributes(self, row: Mapping[str, str]) -> dict[str, int | float]:
        return {name: attribute(row, name, classes, self.manifest.path) for name, classes in self.attributes.items()}

    def _about(self) -> dict[str, Any]:
        known = {"name": self.manifest.path.resolve().parent.name, "licence": "unknown", "attribution": "unknown"}
        return {**known, **self.options.about, "subjects": len(self.manifest.split("train").subjects)}


def _axes(said: int | Sequence[int] | str | None, flat: bool) -> tuple[int, ...]:
    if said == "auto":
        return (2,) if flat else ()
    return () if said is None else (said,) if isinstance(said, int) else tuple(said)


def default_store(manifest: Path) -> Path:
    """`.medgen` beside the manifest, or a folder of its own in the user's cache where that cannot be written."""
    folder = manifest.resolve().parent
    if os.access(folder, os.W_OK | os.X_OK) or (folder / ".medgen").is_dir():
        return folder / ".medgen"
    return _cache(manifest)


def _cache(manifest: Path) -> Path:
    """A folder for this manifest's data in the user's cache."""
    folder = manifest.resolve().parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "medgen" / "stores" / hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def progress_bar(title: str) -> Progress:
    """A bar on stderr, for what takes longer than a second."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    bar, began = Bar(console=Console(stderr=True)), time.monotonic()
    task = bar.add_task(title)

    def told(done: int, of: int) -> None:
        if not bar.live.is_started and time.monotonic() - began > 1 and done < of:
            bar.start()
        bar.update(task, completed=done, total=of)
        if done == of and bar.live.is_started:
            bar.stop()

    return told


def _typical(known: Sequence[tuple[Any, bool, Mapping[str, Any]]], channel: str) -> dict[str, float]:
    ranges = [ranges[channel] for _, _, ranges in known if channel in ranges]
    if not ranges:
        raise MedgenError(f"no training row has a file for '{channel}'; fill cells of its column or leave the channel out")
    return {key: float(np.median([r[key] for r in ranges])) for key in ranges[0]}
