"""What every part of an evaluation hands over: a verdict, numbers, tables and pictures. The page and the JSON are made of these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np


class Level(StrEnum):
    """How a part went, for the first screen of the page and for the gate of `medgen export`."""

    GOOD = "good"
    WATCH = "watch"  # look at it before use
    BAD = "bad"
    NONE = "none"  # a measurement without a judgement, or a part that does not apply


WORDS = {Level.GOOD: "passes", Level.WATCH: "look at it", Level.BAD: "fails", Level.NONE: "measured"}  # on the page and the card


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: usually a mean over subjects.
        interval: 95 %, or None with `reason`.
        n: subjects (or samples) behind it.
        unit: such as "dB" or "HU".
        reason: why there is no interval.
    """

    value: float
    interval: tuple[float, float] | None = None
    n: int = 0
    unit: str = ""
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if self.interval is not None:
            text += f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        return f"{text} {self.unit}".rstrip()

    def apart(self, other: Estimate) -> bool:
        """Whether the intervals do not overlap; False where one is missing."""
        if self.interval is None or other.interval is None:
            return False
        return self.interval[0] > other.interval[1] or self.interval[1] < other.interval[0]


@dataclass(frozen=True)
class Table:
    """Attributes:
    title: a line above it.
    columns: headings; the first one names the rows.
    rows: cells are text, numbers or `Estimate`.
    note: how it was made, in a sentence.
    unlike: columns whose rows have no common scale, so that their intervals are not drawn.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    unlike: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """Attributes:
    title: what is to be seen.
    picture: (H, W) or (H, W, 3) uint8.
    note: colours, windows and ranges, in a sentence.
    """

    title: str
    picture: np.ndarray
    note: str = ""


@dataclass
class Section:
    """One part of an evaluation.

    Attributes:
        name: its key in the JSON, such as "pixel".
        title: its heading on the page.
        verdict: one sentence with the number that matters most, for the first screen.
        level: how that is to be taken.
        numbers: plain data for the JSON: everything that the tables show, and more.
        worst: (subject, what is wrong with it) of the worst cases, the worst first.
        protocol: how the numbers came about: name -> sentence.
        skipped: why this part could not be done here; empty where it was.
    """

    name: str
    title: str
    verdict: str = ""
    level: Level = Level.NONE
    numbers: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    worst: list[tuple[str, str]] = field(default_factory=list)
    protocol: dict[str, str] = field(default_factory=dict)
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data: JSON without NaN."""
        data = {"title": self.title, "verdict": self.verdict, "level": str(self.level), "protocol": self.protocol}
        data |= {"numbers": plain(self.numbers), "worst": [list(pair) for pair in self.worst]}
        return data | ({"skipped": self.skipped} if self.skipped else {})


def skipped(name: str, title: str, reason: str) -> Section:
    """A part that does not apply, or cannot be done, and the sentence that says why."""
    return Section(name, title, verdict=reason, skipped=reason)


def plain(value: Any) -> Any:
    """Numbers, text, lists and dictionaries for JSON; what is not finite becomes None."""
    if isinstance(value, Estimate):
        told = {"value": value.value, "interval": value.interval, "n": value.n, "unit": value.unit, "reason": value.reason}
        return {key: plain(item) for key, item in told.items() if item != ""}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
