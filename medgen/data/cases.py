"""Prepared rows of a manifest, and the cases that are cut from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.geometry import Placement
from medgen.core.intensity import BACKGROUND, IntensityMap
from medgen.core.neighbours import neighbours
from medgen.core.task import availability
from medgen.data.options import Cut
from medgen.data.source import Case


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
        return next(iter((self.images or self.labels).values())).shape

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
        row: of each piece, the place of its row.
        counts: of each piece, its cases.
        extra: of each row, what its cases carry besides: subject and attributes.
    """

    def __init__(self, rows: Sequence[Sequence[Prepared]]):
        self.pieces = [(row, piece) for row, pieces in enumerate(rows) for piece in pieces]
        self.row = np.array([row for row, _ in self.pieces], np.int64)
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
        labels: the label maps.
        neighbours: how many slices to either side come with a slice.
        flags: whether cases say which channels they have.
    """

    maps: Mapping[str, IntensityMap]
    labels: Sequence[str] = ()
    neighbours: int = 0
    flags: bool = False

    def plane(self, row: Prepared, number: int) -> Case:
        """One plane, (1, H, W) each."""
        last = row.shape[0] - 1
        images = {}
        for name, (channel, offset) in neighbours(row.images, self.neighbours).items():
            images[name] = self._mapped(row, channel, row.images[channel][min(max(number + offset, 0), last)][None])
        labels = {name: values[number][None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": row.affines[number].astype(np.float32)}
        return self._whole({**images, **labels, **place, **row.extra}, row)

    def window(self, row: Prepared, window: Placement) -> Case:
        """A window of the volume, (1, *size) each; what sticks out is background."""
        images = {name: self._mapped(row, name, window.apply(values, row.fill(name))[None]) for name, values in row.images.items()}
        labels = {name: window.apply(values, 0)[None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": window.moved(row.affines, first=0).astype(np.float32)}
        return self._whole({**images, **labels, **place, **row.extra}, row)

    def _mapped(self, row: Prepared, name: str, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "f":
            return values
        return self.maps[name].forward(values.astype(np.float32), **row.ranges[name]).astype(np.float32, copy=False)

    def _whole(self, case: Case, row: Prepared) -> Case:
        """With background for what the row lacks."""
        if not self.flags:
            return case
        shape = next(iter(case.values())).shape
        for name in neighbours(self.maps, self.neighbours):
            case.setdefault(name, np.full(shape, BACKGROUND, np.float32))
        for name in self.labels:
            case.setdefault(name, np.zeros(shape, np.int64))
        return case | {availability(name): float(name in row.images or name in row.labels) for name in (*self.maps, *self.labels)}


class RowCases:
    """Cases of which every row has one or several.

    Args:
        rows: pieces of prepared rows.
        counts: cases of each piece.
    """

    def __init__(self, rows: InMemory | Sequence[Prepared], counts: np.ndarray, cutter: Cutter):
        self.rows, self.cutter = rows, cutter
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def piece(self, index: int) -> tuple[Prepared, int]:
        """The piece of a case, and which of its cases it is."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.rows[number], index - (int(self.ends[number - 1]) if number else 0)

    def told(self, of_row: Sequence[Any]) -> np.ndarray:
        """What is said of each row, for each case."""
        return np.repeat(np.asarray(of_row)[self.rows.row], np.diff(self.ends, prepend=0))

    @property
    def subjects(self) -> list[str]:
        return self.told([extra["subject"] for extra in self.rows.extra]).tolist()

    def classes(self, name: str) -> np.ndarray:
        """The value of an attribute of each case.

        Raises:
            MedgenError: cases have no such attribute.
        """
        if any(name not in extra for extra in self.rows.extra):
            raise MedgenError(f"balance={name}: no such attribute; {nearest(name, (k for k in self.rows.extra[0] if k != 'subject'))}")
        return self.told([extra[name] for extra in self.rows.extra])


class Planes(RowCases):
    """Every plane that is worth showing, of every row, is a case."""

    varies = False

    def case(self, index: int, rng: np.random.Generator) -> Case:
        row, place = self.piece(index)
        return self.cutter.plane(row, place if row.kept is None else int(row.kept[place]))


class Patches(RowCases):
    """One patch of every row is a case: anywhere in it, or in its centre. A short axis is padded.

    Args:
        size: of a patch; with `cut.buckets` its largest.
        anywhere: whether patches move and follow `cut`, as in training.
    """

    def __init__(self, rows: Sequence[Prepared], size: tuple[int, ...], cutter: Cutter, anywhere: bool, cut: Cut | None = None):
        super().__init__(rows, np.ones(len(rows), np.int64), cutter)
        self.size, self.anywhere, self.cut = size, anywhere, cut or Cut()
        self.kinds = dict(self.cut.patches or {"uniform": 1.0})
        self.varies = anywhere and any(n > m for row in rows for n, m in zip(row.shape, size, strict=True))

    @property
    def buckets(self) -> np.ndarray | None:
        """A number for each case that cases of the same size share; None where all have one size."""
        if not self.anywhere or not self.cut.buckets:
            return None
        return np.unique([self._size(row.shape) for row in self.rows], axis=0, return_inverse=True)[1].ravel()

    def case(self, index: int, rng: np.random.Generator) -> Case:
        row, _ = self.piece(index)
        return self.cutter.window(row, self._window(row, rng))

    def _size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        step = self.cut.buckets
        return tuple(min(m, -(-n // step) * step) for n, m in zip(shape, self.size, strict=True)) if step and self.anywhere else self.size

    def _window(self, row: Prepared, rng: np.random.Generator) -> Placement:
        size = self._size(row.shape)
        centred = Placement.centred(row.shape, size)
        if not self.anywhere:
            return centred
        room = [n - m for n, m in zip(row.shape, size, strict=True)]
        spots = self._spots(row, rng)
        if spots is None:
            start = [int(rng.integers(0, r + 1)) if r > 0 else s for r, s in zip(room, centred.start, strict=True)]
        else:
            places = zip(spots[int(rng.integers(len(spots)))], size, room, centred.start, strict=True)
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


class Unpaired:
    """Cases whose channels come from two different cases: the second one is drawn anew every time.

    Args:
        cases: of all rows.
        first: the cases that have the channels of the first kind; these are counted.
        second: the cases that have `names`.
        names: channels and label maps of the second kind, with what is said of them.
    """

    varies = True

    def __init__(self, cases: RowCases, first: np.ndarray, second: np.ndarray, names: Sequence[str]):
        self.cases, self.first, self.second = cases, first, second
        self.names = (*names, *map(availability, names))

    def __len__(self) -> int:
        return len(self.first)

    def case(self, index: int, rng: np.random.Generator) -> Case:
        case = self.cases.case(int(self.first[index]), rng)
        other = self.cases.case(int(self.second[rng.integers(len(self.second))]), rng)
        return case | {name: other[name] for name in self.names if name in other}

    @property
    def subjects(self) -> list[str]:
        """Of the first kind."""
        own = self.cases.subjects
        return [own[index] for index in self.first]

    def classes(self, name: str) -> np.ndarray:
        """The value of an attribute of each case, which is that of the first kind."""
        return self.cases.classes(name)[self.first]
