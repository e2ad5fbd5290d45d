"""Named intensity maps between stored values and the network's units, each with its exact inverse.

No map clips unless told: load -> map -> inverse -> save returns the voxels. The rule belongs to the contract; its parameters are global
(CT, RGB, labels) or fitted per volume (MR), because MR scanners have no common scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, nearest

BACKGROUND = -1.0  # every map sends its lower end (no signal, air, black) there


class IntensityMap(ABC):
    """`forward(values, **fit(values))` maps to about [-1, 1]; `inverse` undoes it. Works on numpy arrays and tensors alike."""

    name: str
    units: str

    @abstractmethod
    def fit(self, values: np.ndarray) -> dict[str, float]:
        """The parameters of one volume: `low` maps to -1, `high` to +1."""

    def forward(self, values: Any, low: float, high: float) -> Any:
        mapped = values - low
        mapped *= 2.0 / (high - low)  # in place: of a whole volume, new memory costs more than the arithmetic
        mapped -= 1.0
        return mapped

    def inverse(self, values: Any, low: float, high: float) -> Any:
        return (values + 1.0) * ((high - low) / 2.0) + low

    def describe(self) -> dict[str, Any]:
        """The rule as plain data; `intensity_map(**map.describe())` gives it back."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class CTWindow(IntensityMap):
    """Hounsfield units: a global window, default -1024 to 2000 HU for the whole body.

    Attributes:
        floor: values below it are no tissue but padding, and are taken as `floor`: the one thing that the inverse does not give back.
            None takes all values as they are.
    """

    low: float = -1024.0
    high: float = 2000.0
    floor: float | None = None
    name = "ct_hu"
    units = "HU"

    def __post_init__(self):
        if self.floor is not None and self.floor > self.low:
            raise MedgenError(f"ct_hu: floor {self.floor:g} lies above low {self.low:g}, so nothing would be background; raise low to it")

    def fit(self, values: np.ndarray) -> dict[str, float]:
        return {"low": self.low, "high": self.high}

    def forward(self, values: Any, low: float, high: float) -> Any:
        return super().forward(values if self.floor is None else values.clip(self.floor, None), low, high)


@dataclass(frozen=True)
class MRPercentile(IntensityMap):
    """Magnitude MR: zero signal maps to -1 and a percentile of the voxels brighter than the mean maps to +1, per volume."""

    percentile: float = 99.0
    name = "mr_percentile"
    units = "arbitrary (MR)"

    def fit(self, values: np.ndarray) -> dict[str, float]:
        foreground = values[values > values.mean()]
        high = float(np.percentile(foreground, self.percentile)) if foreground.size else 1.0
        return {"low": 0.0, "high": high if high > 0 else 1.0}


@dataclass(frozen=True)
class UnitRange(IntensityMap):
    """A known range such as 0 to 255 (8-bit images), the same for every image."""

    low: float = 0.0
    high: float = 255.0
    name = "unit_range"
    units = "stored"

    def fit(self, values: np.ndarray) -> dict[str, float]:
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True)
class Identity(IntensityMap):
    """Values that are already in network units, and label maps."""

    name = "identity"
    units = "normalised"

    def fit(self, values: np.ndarray) -> dict[str, float]:
        return {"low": -1.0, "high": 1.0}

    def forward(self, values: Any, low: float, high: float) -> Any:
        return values

    def inverse(self, values: Any, low: float, high: float) -> Any:
        return values


MAPS: dict[str, type[IntensityMap]] = {c.name: c for c in (CTWindow, MRPercentile, UnitRange, Identity)}


def intensity_map(name: str, **parameters: float) -> IntensityMap:
    """The map called `name`, e.g. `intensity_map("ct_hu", low=-160, high=240)`."""
    if name not in MAPS:
        raise MedgenError(f"no intensity map '{name}'; {nearest(name, MAPS)}")
    try:
        return MAPS[name](**parameters)
    except TypeError as error:
        known = list(MAPS[name].__dataclass_fields__)
        raise MedgenError(f"intensity map '{name}' takes {', '.join(known) or 'no parameters'}; got {', '.join(parameters)}") from error
