"""Prepared rows of a manifest, and the cases that are cut from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medgen.core.geometry import Placement
from medgen.data.source import Case

BACKGROUND = -1.0  # every intensity map sends its lower end (no signal, air, black) there


@dataclass(frozen=True)
class Prepared:
    """One row of the manifest, ready to be cut: what a memory-mapped store would keep.

    Attributes:
        images: channel -> (*S) float32 in network units; for slices and pictures (planes, H, W).
        labels: label map -> the same shape, int16.
        affines: (4, 4), for slices (planes, 4, 4) with the axis that was cut last; None without geometry.
        ranges: channel -> fitted parameters of its intensity map.
        spacing: mm along R, A and S; None without geometry.
        volumetric: whether the file had three axes.
        extra: subject and attributes.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    affines: np.ndarray | None
    ranges: dict[str, dict[str, float]]
    spacing: tuple[float, ...] | None
    volumetric: bool
    extra: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.images.values())).shape


class Planes:
    """Every plane of every row is a case."""

    varies = False

    def __init__(self, rows: list[Prepared]):
        self.rows = rows
        self.table = [(r, plane) for r, row in enumerate(rows) for plane in range(row.shape[0])]

    def __len__(self) -> int:
        return len(self.table)

    def case(self, index: int, rng: np.random.Generator) -> Case:
        r, plane = self.table[index]
        row = self.rows[r]
        images = {name: values[plane][None] for name, values in row.images.items()}
        labels = {name: values[plane][None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": row.affines[plane].astype(np.float32)}
        return {**images, **labels, **place, **row.extra}


class Patches:
    """One patch of every row is a case: anywhere in it, or in its centre. A short axis is padded."""

    def __init__(self, rows: list[Prepared], size: tuple[int, ...], anywhere: bool):
        self.rows, self.size, self.anywhere = rows, size, anywhere
        self.varies = anywhere and any(n > m for row in rows for n, m in zip(row.shape, size, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def case(self, index: int, rng: np.random.Generator) -> Case:
        row = self.rows[index]
        window = self._window(row.shape, rng)
        images = {name: window.apply(values, BACKGROUND)[None] for name, values in row.images.items()}
        labels = {name: window.apply(values, 0)[None].astype(np.int64) for name, values in row.labels.items()}
        place = {} if row.affines is None else {"affine": window.moved(row.affines, first=0).astype(np.float32)}
        return {**images, **labels, **place, **row.extra}

    def _window(self, shape: tuple[int, ...], rng: np.random.Generator) -> Placement:
        centred = Placement.centred(shape, self.size)
        if not self.anywhere:
            return centred
        room = [n - m for n, m in zip(shape, self.size, strict=True)]
        start = tuple(int(rng.integers(0, r + 1)) if r > 0 else s for r, s in zip(room, centred.start, strict=True))
        return Placement(centred.shape, centred.axes, start, centred.size)
