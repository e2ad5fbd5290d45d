"""What a data set offers to training: cases by split, and the facts that go into a checkpoint's contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Case = dict[str, Any]


class Cases(Protocol):
    """The cases of one split: slices, patches, pictures or volumes.

    A case is a dictionary:
        <image channel>: (1, *S) float32 in the network's units;
        <label map>: (1, *S) int64;
        <attribute>: int (class) or float;
        "affine": (4, 4) float32 of the case's own grid (absent for pictures without geometry);
        "subject": str.
    """

    subjects: Sequence[str]  # of each case
    varies: bool  # whether `case` uses its random numbers: a case then looks different in every epoch

    def __len__(self) -> int: ...

    def case(self, index: int, rng: np.random.Generator | None) -> Case:
        """Case `index`; random choices (patch position) come from `rng` alone, which may be None where nothing varies."""
        ...


class Source(Protocol):
    """A data set. `facts()` gives the fields of `medgen.core.contract.Contract` that the data decide: spatial_dims, size,
    labels (name -> classes, for every label map it can offer), attributes (name -> classes, 0 for a real number),
    intensity (channel -> {"name", its parameters, "typical": {"low", "high"}}), orientation, spacing, slice_axis,
    data (name, licence, attribution, subjects)."""

    def split(self, name: str) -> Cases:
        """The cases of "train", "validation" or "test"."""
        ...

    def facts(self) -> dict[str, Any]: ...
