"""The chest phantom as a data set: axial slices or whole volumes of subjects that are drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from medgen.core.intensity import CTWindow
from medgen.core.random import generator
from medgen.data.phantom.chest.anatomy import Chest, nodule_mask
from medgen.data.phantom.chest.paint import TISSUES
from medgen.data.phantom.chest.scanner import IMAGES, Scanner
from medgen.data.phantom.drawn import DrawnCases, check_drawn, drawn_split
from medgen.data.phantom.grid import Grid
from medgen.data.source import Case

LABELS = {"tissue": len(TISSUES), "nodule": 2}
HEIGHTS = (-115.0, 65.0)


class ChestData:
    """A source of drawn chests (`medgen.data.source.Source`).

    Args:
        channels: any of ct, ct_low_dose (images of the same subject), tissue, nodule (label maps).
        size: two numbers for axial slices, three for volumes.
        subjects: split -> number of subjects. Splits draw from disjoint ranges, so more training subjects never change the test set.
        slices: slices per subject in 2D; in a subject with nodules three of four cut the largest one.
        seed: of the population.
        scanner: field of view, slice thickness, dose, noise, padding; the default one if None.

    Every case has the attributes `label` (1: has a nodule), `contrast` (1: was given contrast medium) and `dose`. Images are in the
    window of `ct_hu` (-1024 to 2000 HU).

    Raises:
        MedgenError: an unknown channel or split, or a size without two or three numbers.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("ct",),
        size: Sequence[int] = (64, 64),
        subjects: Mapping[str, int] | None = None,
        slices: int = 8,
        seed: int = 0,
        scanner: Scanner | None = None,
    ):
        self.channels, self.size = tuple(channels), tuple(int(n) for n in size)
        self.subjects = dict(subjects) if subjects is not None else {"train": 64, "validation": 8, "test": 8}
        self.slices, self.seed, self.scanner = int(slices), int(seed), scanner or Scanner()
        check_drawn(self.channels, (*IMAGES, *LABELS), self.subjects, self.size, self.slices)

    def split(self, name: str) -> DrawnCases:
        """The cases of "train", "validation" or "test"."""
        return drawn_split(self.draw, name, self.subjects, self.slices if len(self.size) == 2 else 1)

    def draw(self, index: int, number: int) -> Case:
        """Slice `number` of subject `index` of the population, or its volume."""
        chest = _chest(self.seed, index)
        grid = self.grid(chest, number)
        stack = chest.stack(grid)
        case: Case = {name: self._channel(name, chest, grid, stack) for name in self.channels}
        return case | {
            **self.attributes(chest),
            "affine": grid.affine.astype(np.float32),
            "subject": f"chest-{chest.seed}-{chest.index:07d}",
        }

    def facts(self) -> dict[str, Any]:
        flat, window = len(self.size) == 2, CTWindow()
        intensity = {**window.describe(), "typical": window.fit(np.zeros(1))}
        return {
            "spatial_dims": len(self.size),
            "size": self.size,
            "labels": {name: LABELS[name] for name in self.channels if name in LABELS},
            "attributes": {"label": 2, "contrast": 2, "dose": 0},
            "intensity": {name: intensity for name in self.channels if name in IMAGES},
            "orientation": "RAS",
            "spacing": self.scanner.grid(self.size).spacing,
            "slice_axis": 2 if flat else None,
            "data": {"name": "medgen chest phantom", "licence": "Apache-2.0", "subjects": sum(self.subjects.values())},
        }

    def attributes(self, chest: Chest) -> dict[str, float]:
        """What is known of a subject beside its images; see `facts`."""
        return {"label": int(chest.has_nodule), "contrast": int(chest.traits.contrast), "dose": self.scanner.dose_of(chest)}

    def grid(self, chest: Chest, number: int) -> Grid:
        """The grid of slice `number` of a subject, or of its volume."""
        return self.scanner.grid(self.size, slice_height(chest, number, self.slices))

    def _channel(self, name: str, chest: Chest, grid: Grid, stack: np.ndarray) -> np.ndarray:
        values = channel_values(self.scanner, chest, grid, stack, name)
        if name in IMAGES:
            window = CTWindow()
            values = window.forward(values, **window.fit(values)).astype(np.float32)
        return (values[..., 0] if len(self.size) == 2 else values)[None]


def channel_values(scanner: Scanner, chest: Chest, grid: Grid, stack: np.ndarray, name: str) -> np.ndarray:
    """One channel (*S): Hounsfield units, or classes as int64."""
    if name == "tissue":
        return stack.argmax(0)
    if name == "nodule":
        return nodule_mask(stack).astype(np.int64)
    return scanner.image(chest, grid, stack, name)


def slice_height(chest: Chest, number: int, slices: int) -> float:
    """World height (mm) of slice `number`: spread over the lungs with a jitter, three of four through the largest nodule."""
    u = float(generator(chest.seed, chest.index, 5, number).random())
    if chest.nodules and number % 4:
        largest = chest.nodules[0]
        return float(largest.centre[2] + (u - 0.5) * largest.radii[2])
    low, high = HEIGHTS
    return low + (high - low) * (number + u) / slices


@lru_cache(maxsize=64)
def _chest(seed: int, index: int) -> Chest:
    return Chest(seed, index)
