"""What a checkpoint promises about its inputs and outputs, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from medgen.core.errors import MedgenError
from medgen.core.intensity import IntensityMap, intensity_map


@dataclass(frozen=True)
class Contract:
    """Geometry, channels, units and provenance of a model.

    Attributes:
        spatial_dims: 2 or 3.
        size: the grid it was trained on, one number per dimension.
        target: names of the channels it makes.
        source: names of the image channels it is given on the grid.
        labels: names of the label maps (masks) it is given on the grid -> number of classes.
        attributes: names of the vector attributes it is given -> number of classes (0: a real number).
        intensity: channel -> rule of its intensity map and, under "typical", the median parameters of the training set.
        orientation: anatomical axes of the grid, such as "RAS"; None for images without geometry.
        spacing: millimetres along the three axes; None for images without geometry.
        slice_axis: for 2D models of volumes, the axis that is cut (2 is axial in RAS); else None.
        data: name, licence, attribution and number of subjects of the training data.
    """

    spatial_dims: int
    size: tuple[int, ...]
    target: tuple[str, ...]
    source: tuple[str, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, int] = field(default_factory=dict)
    intensity: dict[str, dict[str, Any]] = field(default_factory=dict)
    orientation: str | None = None
    spacing: tuple[float, ...] | None = None
    slice_axis: int | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def map_of(self, channel: str) -> IntensityMap:
        """The intensity map of a channel."""
        rule = self.intensity.get(channel)
        if not isinstance(rule, dict) or "name" not in rule:
            raise MedgenError(f"not a medgen contract: the intensity of {channel} is {rule!r}, expected a mapping with a name")
        return intensity_map(**{k: v for k, v in rule.items() if k != "typical"})

    def typical(self, channel: str) -> dict[str, float]:
        """Parameters for a volume that has none of its own: the training set's median."""
        return dict(self.intensity[channel]["typical"])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Contract:
        unknown = set(values) - {f.name for f in fields(Contract)}
        missing = {"spatial_dims", "size", "target"} - set(values)
        if unknown or missing:
            raise MedgenError(f"not a medgen contract: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
        for name in ("labels", "attributes", "intensity", "data"):
            if not isinstance(values.get(name, {}), dict):
                raise MedgenError(f"not a medgen contract: {name} is {values[name]!r}, expected a mapping")
        tuples = {"size", "target", "source", "spacing"}
        try:
            return Contract(**{k: tuple(v) if k in tuples and v is not None else v for k, v in values.items()})
        except TypeError as error:
            raise MedgenError(f"not a medgen contract: size, target, source and spacing are lists ({error})") from error
