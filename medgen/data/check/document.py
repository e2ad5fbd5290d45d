"""A checked data set as plain data: report.json, and what the page is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from medgen.data.check.checker import Checked
from medgen.data.check.facts import QUANTILES, Image
from medgen.data.check.finding import ERROR, NOTE, SEVERITIES, WARNING, Data, Finding
from medgen.data.check.rules_images import modality
from medgen.data.check.rules_table import balance, classes_of
from medgen.data.columns import FILES

BINS = 64
_TAIL = 1  # quantiles at each end that the histogram leaves out


def document(checked: Checked) -> dict[str, Any]:
    """status ("fit" or "errors"), counts, splits, columns, attributes and findings, with every subject and every cell that they concern."""
    data = checked.data
    counts = Counter(finding.severity for finding in checked.findings)
    return {
        "manifest": str(data.manifest.path),
        "status": "fit" if checked.fit else "errors",
        "counts": {severity: counts[severity] for severity in SEVERITIES},
        "subjects": len(data.manifest.subjects),
        "rows": len(data.manifest),
        "splits": splits(data),
        "columns": {name: column(data, name) for name in data.of(*FILES)},
        "attributes": {name: attribute(data, name) for name in data.of("attribute")},
        "findings": [_finding(data, finding) for finding in checked.findings],
    }


def _finding(data: Data, finding: Finding) -> dict[str, Any]:
    """With every cell that it concerns, and why."""
    told = {k: v for k, v in asdict(finding).items() if k not in ("shown", "places", "reasons")}
    reasons = finding.reasons or ("",) * len(finding.places)
    cells = []
    for (row, column), reason in zip(finding.places, reasons, strict=True):
        entry = {"row": row + 1, "subject": data.subject(row), "column": column, "cell": data.manifest.rows[row][column]}
        cells.append(entry | ({"reason": reason} if reason else {}))
    return told | {"cells": cells}


def headline(checked: Checked) -> str:
    """The state in a line."""
    counts = Counter(finding.severity for finding in checked.findings)
    said = ", ".join(f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in (ERROR, WARNING, NOTE) if counts[s]) or "nothing found"
    return f"{said} in {len(checked.data.manifest.subjects)} subjects, {len(checked.data.manifest)} rows"


def splits(data: Data) -> dict[str, dict[str, int]]:
    """Split -> subjects and rows."""
    found = {}
    for split in data.manifest.splits:
        rows = [row for row in data.manifest.rows if row["split"] == split]
        found[split] = {"subjects": len({row["subject"] for row in rows}), "rows": len(rows)}
    return found


def column(data: Data, name: str) -> dict[str, Any]:
    """What the files of a column hold together."""
    images = [image for _, image in data.images(name)]
    valued = [image for _, image in data.valued(name)]
    told: dict[str, Any] = {
        "kind": data.columns[name].kind,
        "modality": modality(data, name),
        "files": len(images),
        "missing": sum(not row[name] for row in data.manifest.rows),
        "unreadable": sum(name in row.failures for row in data.rows),
        "shapes": _ranges([image.shape for image in images]),
        "channels": sorted({image.channels for image in images}),
        "spacings": _ranges([image.spacing for image in images if image.spacing]),
        "orientations": dict(Counter(image.orientation for image in images if image.orientation)),
        "dtypes": dict(Counter(image.dtype for image in images)),
        "low": min((image.low for image in valued), default=None),
        "high": max((image.high for image in valued), default=None),
    }
    if data.columns[name].kind == "labels":
        counts: Counter[float] = Counter()
        for image in valued:
            counts.update(image.values or {})
        told["values"] = {f"{value:g}": count for value, count in sorted(counts.items())} if all(im.values for im in valued) else None
    else:
        told["histogram"] = histogram(valued)
    return told


def attribute(data: Data, name: str) -> dict[str, Any]:
    """Rows of each class in each split, or the range of a quantity."""
    classes = classes_of(data, name)
    if classes:
        return {"classes": list(classes), "rows": balance(data, name, classes)}
    numbers = []
    for row in data.manifest.rows:
        try:
            numbers.append(float(row[name]))
        except ValueError:
            continue
    return {"low": min(numbers, default=None), "high": max(numbers, default=None), "filled": len(numbers)}


def histogram(images: Sequence[Image]) -> dict[str, list[float]] | None:
    """Edges, and the mean share of an image's voxels in each bin, from the quantiles of every image."""
    if not images:
        return None
    low = min(float(image.quantiles[_TAIL]) for image in images)
    high = max(float(image.quantiles[-1 - _TAIL]) for image in images)
    if not high > low:
        low, high = min(im.low for im in images), max(im.high for im in images)
    if not high > low:
        return None
    edges = np.linspace(low, high, BINS + 1)
    edges[-1] = np.nextafter(edges[-1], np.inf)  # the greatest value belongs to the last bin
    total = np.zeros(BINS)
    for image in images:
        total += np.diff(_below(image.quantiles, edges))
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "share": [round(float(share), 6) for share in total / len(images)]}


def _below(quantiles: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Share of an image below each value. A value that many voxels have is a step: they lie just above it."""
    points, first = np.unique(quantiles, return_index=True)
    last = np.append(first[1:], len(quantiles)) - 1
    places = np.stack([points, np.nextafter(points, np.inf)], 1).reshape(-1)
    return np.interp(values, places, np.stack([QUANTILES[first], QUANTILES[last]], 1).reshape(-1))


def _ranges(values: Sequence[tuple[float, ...]]) -> dict[str, Any] | None:
    """Least, greatest and most frequent value, axis by axis, and how many different ones there are."""
    if not values or len({len(value) for value in values}) > 1:
        return None
    rounded = [tuple(round(float(v), 4) for v in value) for value in values]
    common = Counter(rounded).most_common(1)[0][0]
    return {
        "least": np.min(rounded, 0).tolist(),
        "greatest": np.max(rounded, 0).tolist(),
        "common": list(common),
        "different": len(set(rounded)),
    }
