"""What is told of a data set: a finding, and what findings are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from medgen.data.check.facts import Image, Row
from medgen.data.columns import Column
from medgen.data.manifest import Manifest

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
SHOWN = 4  # pictures beside a finding


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        severity: "error" (training refuses it, or learns something false), "warning" (look at it), "note" (good to know).
        code: short and stable, for scripts.
        found: what was found, a sentence.
        remedy: what to do.
        columns, subjects: whom it concerns, all of them.
        shown: (row, column) of images worth a look.
        places: (row, column) of every cell that it concerns, where it is about cells.
        reasons: of each of these what is wrong with it; empty where `found` says it for all.
    """

    severity: str
    code: str
    found: str
    remedy: str
    columns: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    shown: tuple[tuple[int, str], ...] = ()
    places: tuple[tuple[int, str], ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass
class Data:
    """A manifest, what its columns hold, and the summary of each row."""

    manifest: Manifest
    columns: dict[str, Column]
    rows: list[Row] = field(default_factory=list)

    def of(self, *kinds: str) -> list[str]:
        """The columns of these kinds, in the manifest's order."""
        return [name for name in self.manifest.columns if name in self.columns and self.columns[name].kind in kinds]

    def images(self, column: str) -> Iterator[tuple[int, Image]]:
        """(row, image) of every file of a column that was read."""
        for i, row in enumerate(self.rows):
            if column in row.images:
                yield i, row.images[column]

    def valued(self, column: str) -> list[tuple[int, Image]]:
        """Those whose values were read and are not all NaN."""
        return [(i, image) for i, image in self.images(column) if image.quantiles is not None]

    def subject(self, row: int) -> str:
        return self.manifest.rows[row]["subject"]

    def split(self, row: int) -> str:
        return self.manifest.rows[row]["split"]

    def tail(self, row: int, column: str) -> str:
        """What tells a cell from others in a few letters: its last folder and name, and the part of it."""
        path, mark, part = self.manifest.rows[row][column].rpartition("#")
        path, mark, part = (path, mark, part) if mark else (part, "", "")
        return "/".join(path.rstrip("/").split("/")[-2:]) + (mark and f"#{part}")

    def told(self, rows: Sequence[int], column: str, reasons: Sequence[str] = ()) -> dict:
        """The part of a finding that names whom it concerns, and why each."""
        subjects, places = tuple(dict.fromkeys(self.subject(row) for row in rows)), tuple((row, column) for row in rows)
        return {"columns": (column,), "subjects": subjects, "shown": places[:SHOWN], "places": places, "reasons": tuple(reasons)}


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 image`, `3 images`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def spread(values: Sequence[float]) -> str:
    """`3`, or `1 to 5` for values that differ."""
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def tally(values: Sequence[str], most: int = 5) -> str:
    """`a in 12, b in 3`, the most frequent first."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    more = f" and {len(ordered) - most} others" if len(ordered) > most else ""
    return ", ".join(f"{value} in {count}" for value, count in ordered[:most]) + more
