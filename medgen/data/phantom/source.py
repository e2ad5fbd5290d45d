"""The phantom as a data set: axial slices or whole volumes of subjects that are drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from medgen.core.intensity import CTWindow, IntensityMap, MRPercentile
from medgen.core.random import generator
from medgen.data.phantom.anatomy import Brain
from medgen.data.phantom.contrast import IMAGES, bias_field, check_field, clean, noisy, typical_high
from medgen.data.phantom.drawn import DrawnCases, check_drawn, drawn_split
from medgen.data.phantom.grid import Grid
from medgen.data.phantom.paint import LESION, TISSUES
from medgen.data.source import Case

LABELS = {"tissue": len(TISSUES), "lesion": 2}
HEIGHTS = (-24.0, 64.0)


class PhantomData:
    """A source of drawn heads (`medgen.data.source.Source`).

    Args:
        channels: any of t1, t2, pd, flair, ct (images), tissue, lesion (label maps).
        size: two numbers for axial slices, three for volumes; the field of view is 224 mm in every direction.
        subjects: split -> number of subjects. Splits draw from disjoint ranges, so more training subjects never change the test set.
        slices: slices per subject in 2D; in a subject with a lesion three of four cut it.
        seed: of the population.
        field: 1.5 or 3.0 tesla.
        noise: Rician sigma over the contrast's white level; CT noise is 250 HU times this.
        bias: standard deviation of the logarithm of the MR bias field.

    Slices are scaled by one constant per contrast (so that a slice does not need its volume), volumes by their own percentile.

    Raises:
        MedgenError: an unknown channel, split or field strength, or a size without two or three numbers.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("t1",),
        size: Sequence[int] = (64, 64),
        subjects: Mapping[str, int] | None = None,
        slices: int = 8,
        seed: int = 0,
        field: float = 3.0,
        noise: float = 0.02,
        bias: float = 0.08,
    ):
        self.channels, self.size = tuple(channels), tuple(int(n) for n in size)
        self.subjects = dict(subjects) if subjects is not None else {"train": 64, "validation": 8, "test": 8}
        self.slices, self.seed, self.field, self.noise, self.bias = int(slices), int(seed), float(field), float(noise), float(bias)
        check_drawn(self.channels, (*IMAGES, *LABELS), self.subjects, self.size, self.slices)
        check_field(self.field)

    def split(self, name: str) -> DrawnCases:
        """The cases of "train", "validation" or "test"."""
        return drawn_split(self.draw, name, self.subjects, self.slices if len(self.size) == 2 else 1)

    def draw(self, index: int, number: int) -> Case:
        """Slice `number` of subject `index` of the population, or its volume."""
        brain = _brain(self.seed, index)
        grid = self.grid(brain, number)
        stack = brain.stack(grid)
        case: Case = {name: self._channel(name, brain, grid, stack, number) for name in self.channels}
        return case | {
            "label": int(brain.has_lesion),
            "affine": grid.affine.astype(np.float32),
            "subject": f"phantom-{brain.seed}-{brain.index:07d}",
        }

    def facts(self) -> dict[str, Any]:
        flat = len(self.size) == 2
        spacing = Grid.centred((*self.size, self.size[0]) if flat else self.size).spacing
        return {
            "spatial_dims": len(self.size),
            "size": self.size,
            "labels": {name: LABELS[name] for name in self.channels if name in LABELS},
            "attributes": {"label": 2},
            "intensity": {name: self._intensity(name) for name in self.channels if name in IMAGES},
            "orientation": "RAS",
            "spacing": spacing,
            "slice_axis": 2 if flat else None,
            "data": {"name": "medgen brain phantom", "licence": "Apache-2.0", "subjects": sum(self.subjects.values())},
        }

    def grid(self, brain: Brain, number: int) -> Grid:
        """The grid of slice `number` of a subject, or of its volume."""
        if len(self.size) == 3:
            return Grid.centred(self.size)
        return Grid.axial(self.size, slice_height(brain, number, self.slices))

    def image(self, brain: Brain, grid: Grid, stack: np.ndarray, channel: str, number: int = 0) -> np.ndarray:
        """One image channel (*S) in scanner units; noise and bias depend on the subject, the channel and the slice only."""
        picture = clean(stack, channel, self.field)
        if channel != "ct" and self.bias > 0:
            picture = picture * bias_field(brain.seed, brain.index, channel, grid, self.bias)
        return noisy(picture, channel, self.noise, self.field, generator(brain.seed, brain.index, 4, IMAGES.index(channel), number))

    def scaled(self, picture: np.ndarray, channel: str) -> np.ndarray:
        """Scanner units to network units."""
        rule = _map(channel)
        fixed = channel != "ct" and len(self.size) == 2
        limits = {"low": 0.0, "high": typical_high(channel, self.field)} if fixed else rule.fit(picture)
        return rule.forward(picture, **limits).astype(np.float32)

    def _intensity(self, channel: str) -> dict[str, Any]:
        rule = _map(channel)
        typical = rule.fit(np.zeros(1)) if channel == "ct" else {"low": 0.0, "high": typical_high(channel, self.field)}
        return {**rule.describe(), "typical": typical}

    def _channel(self, name: str, brain: Brain, grid: Grid, stack: np.ndarray, number: int) -> np.ndarray:
        if name == "tissue":
            values = stack.argmax(0)
        elif name == "lesion":
            values = (stack[LESION] > 0.5).astype(np.int64)
        else:
            values = self.scaled(self.image(brain, grid, stack, name, number), name)
        return (values[..., 0] if len(self.size) == 2 else values)[None]


def slice_height(brain: Brain, number: int, slices: int) -> float:
    """World height (mm) of slice `number`: spread over the brain with a jitter, three of four near the lesion where there is one."""
    u = float(generator(brain.seed, brain.index, 5, number).random())
    centre = brain.lesion_centre
    if centre is not None and number % 4:
        return float(centre[2] + (u - 0.5) * brain.traits.blobs[0, 5])
    low, high = HEIGHTS
    return low + (high - low) * (number + u) / slices


@lru_cache(maxsize=512)
def _brain(seed: int, index: int) -> Brain:
    return Brain(seed, index)


def _map(channel: str) -> IntensityMap:
    return CTWindow() if channel == "ct" else MRPercentile()
