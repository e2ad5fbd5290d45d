"""Prepared rows of a manifest, and the cases that are cut from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medgen.core.geometry import Placement
from medgen.core.intensity import IntensityMap
from medgen.data.source import Case

BACKGROUND = -1.0  # every intensity map sends its lower end (no signal, air, black) there


@dataclass(frozen=True)
class Prepared:
    """A row of the manifest, or a part of one, ready to be cut. In a store the arrays are views of mapped files.

    Attributes:
        images: channel -> (*S); for slices and pictures (planes, H, W). float32 in network units, or integers as stored, which the
            channel's map brings there when a case is cut.
        labels: label map -> the same shape, integers.
        affines: (4, 4), for slices (planes, 4, 4) with the axis that was cut last; None without geometry.
        ranges: channel -> fitted parameters of its intensity map.
        spacing: mm along R, A and S; None without geometry.
        volumetric: whether the file had three axes.
        kept: the planes that are worth showing; None for all of them.
        spots: kind of place -> (N, dims) voxels where patches of this kind are centred.
        extra: subject and attributes.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    affines: np.ndarray | None
    ranges: dict[str, dict[str, float]]
    spacing: tuple[float, ...] | None
    volumetric: bool
    kept: np.ndarray | None = None
    spots: dict[str, np.ndarray] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.images.values())).shape

    @property
    def cases(self) -> int:
        """How many of its planes are cases."""
        return self.shape[0] if self.kept is None else len(self.kept)

    def fill(self, channel: str) -> float:
        """Background in the numbers that the channel is kept in."""
        return BACKGROUND if self.images[channel].dtype.kind == "f" else self.ranges[channel]["low"]


class InMemory(Sequence[Prepared]):
    """Pieces of prepared rows that this process keeps.

    Attributes:
        counts: of each piece, its cases.
        extra: of each row, what its cases carry besides: subject and attributes.
    """

    def __init__(self, rows: Sequence[Sequence[Prepared]]):
        self.pieces = [(row, piece) for row, pieces in enumerate(rows) for piece in pieces]
        self.counts = np.array([piece.cases for _, piece in self.pieces], np.int64)
        self.extra: Sequence[Mapping[str, Any]] = [{}] * len(rows)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> Prepared:
        row, piece = self.pieces[number]
        return replace(piece, extra=self.extra[row])


@dataclass(frozen=True)
class Cutter:
    """Cuts the same piece out of all images and label maps of a row.

    Attributes:
        maps: channel -> its intensity map.
    """

    maps: Mapping[str, IntensityMap]

    def planes(self, row: Prepared, plane: int) -> Case:
        """One plane, (1, H, W) each."""
        images = {name: self._mapped(row, name, values[plane][None]) for name, values in row.images.items()}
        labels = {name: values[plane][None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": row.affines[plane].astype(np.float32)}
        return {**images, **labels, **place, **row.extra}

    def window(self, row: Prepared, window: Placement) -> Case:
        """A window of the volume, (1, *size) each; what sticks out is background."""
        images = {name: self._mapped(row, name, window.apply(values, row.fill(name))[None]) for name, values in row.images.items()}
        labels = {name: window.apply(values, 0)[None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": window.moved(row.affines, first=0).astype(np.float32)}
        return {**images, **labels, **place, **row.extra}

    def _mapped(self, row: Prepared, name: str, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "f":
            return values
        return self.maps[name].forward(values.astype(np.float32), **row.ranges[name]).astype(np.float32, copy=False)


class Planes:
    """Every plane that is worth showing, of every row, is a case.

    Args:
        rows: prepared rows.
        counts: planes of each row that are cases.
    """

    varies = False

    def __init__(self, rows: Sequence[Prepared], counts: np.ndarray, cutter: Cutter):
        self.rows, self.cutter = rows, cutter
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def case(self, index: int, rng: np.random.Generator) -> Case:
        r = int(np.searchsorted(self.ends, index, side="right"))
        row = self.rows[r]
        place = index - (int(self.ends[r - 1]) if r else 0)
        return self.cutter.planes(row, place if row.kept is None else int(row.kept[place]))


class Patches:
    """One patch of every row is a case: anywhere in it, or in its centre. A short axis is padded.

    Args:
        anywhere: whether patches move.
        kinds: kind of place -> how often patches are centred there, relative to each other; "uniform" is anywhere in the volume.
    """

    def __init__(
        self, rows: Sequence[Prepared], size: tuple[int, ...], cutter: Cutter, anywhere: bool, kinds: Mapping[str, float] | None = None
    ):
        self.rows, self.size, self.cutter, self.anywhere = rows, size, cutter, anywhere
        self.kinds = dict(kinds or {"uniform": 1.0})
        self.varies = anywhere and any(n > m for row in rows for n, m in zip(row.shape, size, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def case(self, index: int, rng: np.random.Generator) -> Case:
        row = self.rows[index]
        return self.cutter.window(row, self._window(row, rng))

    def _window(self, row: Prepared, rng: np.random.Generator) -> Placement:
        centred = Placement.centred(row.shape, self.size)
        if not self.anywhere:
            return centred
        room = [n - m for n, m in zip(row.shape, self.size, strict=True)]
        spots = self._spots(row, rng)
        if spots is None:
            start = [int(rng.integers(0, r + 1)) if r > 0 else s for r, s in zip(room, centred.start, strict=True)]
        else:
            spot = spots[int(rng.integers(len(spots)))]
            places = zip(spot, self.size, room, centred.start, strict=True)
            start = [min(max(int(p) - m // 2, 0), r) if r > 0 else s for p, m, r, s in places]
        return Placement(centred.shape, centred.axes, tuple(start), centred.size)

    def _spots(self, row: Prepared, rng: np.random.Generator) -> np.ndarray | None:
        """The centres to choose from; None for anywhere. A kind that the row has not is left out of the draw."""
        if self.kinds.keys() == {"uniform"}:
            return None
        there = {kind: weight for kind, weight in self.kinds.items() if kind == "uniform" or len(row.spots.get(kind, ()))}
        total, draw = sum(there.values()), rng.random()
        for kind, weight in there.items():
            draw -= weight / total if total else 0
            if draw < 0:
                return row.spots.get(kind)
        return None
