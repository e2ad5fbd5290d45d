"""The perceptual distance of results to their truth, by the encoder that comes with medgen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medgen.evaluation.encoder import built_in, built_in_maps
from medgen.evaluation.section import Estimate, Section, Table
from medgen.evaluation.work import Case, Work
from medgen.metrics.perceptual import perceptual
from medgen.metrics.statistics import summarise

PLANES = 8  # at most, across each axis of a volume
NOTE = (
    "0 for equal images, lower is better: squared difference of the unit-length features of {name}, averaged over the body and over "
    "scales (Zhang 2018, equal weights). It compares under this name only."
)
ONE = "one subject cannot tell how much subjects differ"


@dataclass
class Perception:
    """Distances of several methods on the same cases.

    Attributes:
        name: of the encoder, with the digest of its weights.
        maps: images (b, C, H, W) -> its feature maps.
        axes: of a volume, across which planes are compared.
        found: method -> (subject, distance) of each case.
    """

    name: str
    maps: Callable[[Tensor], Sequence[Tensor]]
    axes: tuple[int, ...]
    found: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def add(self, method: str, image: Tensor, case: Case) -> None:
        """One result (1, C, *S); of a volume about 8 planes across each axis, evenly spread over the body's box."""
        box = (..., *body_box(case.body))
        x, target, mask = image.to(case.target)[box], case.target[box], case.body[box]
        axes = self.axes if x.ndim == 5 else ()
        totals = [perceptual(x, target, self.maps, mask, (a,), -(-x.shape[a + 2] // PLANES)) for a in axes]
        distance = torch.stack(totals).mean() if totals else perceptual(x, target, self.maps, mask)
        self.found.setdefault(method, []).append((case.subject, float(distance)))

    def tell(self, told: Section, titles: Mapping[str, str]) -> None:
        """Add the table, the numbers and how they came about to a section; `titles` name the methods."""
        estimates = {method: _mean(rows) for method, rows in self.found.items()}
        told.numbers["perceptual"] = {"encoder": self.name, **estimates}
        rows = [[titles.get(method, method), value] for method, value in estimates.items()]
        told.tables.append(Table("Perceptual distance in the body", ["method", self.name], rows, NOTE.format(name=self.name)))
        told.protocol["perceptual distance"] = f"{self.name}; of a volume up to {PLANES} planes across the axes {list(self.axes)}"


def perception(work: Work) -> Perception | None:
    """What measures it for a model: in planes across its slices' axis, or all three of a volume; None without the encoder's weights."""
    space, maps = built_in(2), built_in_maps(2)
    if space is None or maps is None:
        return None
    axis = work.model.contract.slice_axis
    return Perception(space.name, maps, (0, 1, 2) if axis is None else (axis,))


def body_box(body: Tensor) -> tuple[slice, ...]:
    """Slices of the spatial axes around a mask (1, 1, *S) that is not empty."""
    places = body[0, 0].nonzero()
    ends = zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True)
    return tuple(slice(first, last + 1) for first, last in ends)


def _mean(rows: Sequence[tuple[str, float]]) -> Estimate:
    found = summarise([value for _, value in rows], [subject for subject, _ in rows])
    return Estimate(found.mean, found.interval, found.subjects, reason=ONE if found.interval is None else "")
