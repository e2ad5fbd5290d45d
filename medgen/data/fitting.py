"""Whether intensity maps fit what a manifest's columns hold: told before and after preparation, because nothing fails where they do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.intensity import IntensityMap, UnitRange
from medgen.data.cases import Prepared
from medgen.data.columns import MODALITY_OF, by_name, read_columns, sidecar
from medgen.data.formats.format import Header
from medgen.data.manifest import Manifest
from medgen.data.readers import peek

_EXPECTS = {"ct_hu": "Hounsfield units", "mr_percentile": "a magnitude whose 0 is no signal"}
_FITS = {"CT": "ct_hu", "MR": "mr_percentile", "PET": "unit_range with low 0 and high your largest SUV"}
_LOOKED_AT = 16  # images, to see where their values come to lie
_SAMPLED = 1 << 16  # voxels of each
_FAR, _OFTEN = 3.0, 0.05  # network units beyond which at most this share of an image may lie
_NARROW = 0.2  # of the network's range of 2 that an image must take up


@dataclass(frozen=True)
class _Known:
    """What is known of a column before it is prepared."""

    modality: str | None
    why: str
    header: Header | None


def unfit(manifest: Manifest, columns: Mapping[str, tuple[str, int | None]], maps: Mapping[str, IntensityMap]) -> Iterator[str]:
    """A sentence for each channel whose map is made for another modality than its column's.

    Args:
        columns: channel -> (column, plane).
    """
    known = {column: _known(manifest, column) for column in dict.fromkeys(column for column, _ in columns.values())}
    for channel, rule in maps.items():
        told = known[columns[channel][0]]
        if told.modality is None or not _wrong(rule, told):
            continue
        expects = _EXPECTS.get(rule.name) or f"values from {rule.low:g} to {rule.high:g}"
        fits = _FITS.get(told.modality, "unit_range")
        remedy = f" (data.source.channels.{channel}.name={fits})" if " " not in fits else ""
        yield f"column {columns[channel][0]} is {told.modality} ({told.why}); {rule.name} expects {expects}; {fits} fits{remedy}"


def far(rows: Sequence[Prepared], maps: Mapping[str, IntensityMap]) -> Iterator[str]:
    """A sentence for each channel with images that its map brings far from [-1, 1], or into a small part of it."""
    count = min(len(rows), _LOOKED_AT)
    pieces = [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]
    for channel, rule in maps.items():
        having = [piece for piece in pieces if channel in piece.images]
        mapped = [_values(piece, channel, rule) for piece in having]
        eight_bits = all(piece.images[channel].dtype == np.uint8 for piece in having)
        dull = eight_bits and bool(mapped) and np.ptp(np.concatenate(mapped)) >= _NARROW  # 8-bit pictures share a scale: some are empty
        odd = [values for values in mapped if np.mean(np.abs(values) > _FAR) > _OFTEN or (not dull and 0 < np.ptp(values) < _NARROW)]
        if odd:
            low, high = np.quantile(odd[0], (0.01, 0.99))
            lie = f"{len(odd)} of {len(mapped)} images that were looked at lie in about [{low:.3g}, {high:.3g}]"
            yield f"{channel}: {rule.name} brings values to about [-1, 1] where it fits, and {lie}; choose another map, or its low and high"


def _wrong(rule: IntensityMap, told: _Known) -> bool:
    if rule.name == "ct_hu":
        return told.modality != "CT"
    if rule.name == "mr_percentile":
        return told.modality == "CT"
    eight_bits = told.header is not None and told.header.dtype == np.uint8
    return rule == UnitRange() and told.modality in _FITS and not eight_bits


def _known(manifest: Manifest, column: str) -> _Known:
    """What the JSON beside the manifest declares, else the header of the first file, else the column's name."""
    cell = next((manifest.file(row, column) for row in manifest.rows if row[column]), None)
    header = None
    with suppress(MedgenError):  # reading tells it better
        header = None if cell is None else peek(cell)
    declared = read_columns(manifest.path).get(column)
    if declared is not None and declared.modality:
        return _Known(declared.modality, sidecar(manifest.path).name, header)
    word = str(header.meta.get("modality", "")).upper() if header else ""
    if word in MODALITY_OF:
        return _Known(MODALITY_OF[word], "its first header", header)
    return _Known(by_name(column).modality, "by its name", header)


def _values(piece: Prepared, channel: str, rule: IntensityMap) -> np.ndarray:
    """Some of an image's values in network units."""
    values = piece.images[channel].reshape(-1)
    values = values[:: max(1, values.size // _SAMPLED)]
    return values if values.dtype.kind == "f" else rule.forward(values.astype(np.float32), **piece.ranges[channel])
