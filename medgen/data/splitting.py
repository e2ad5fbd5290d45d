"""Share the subjects of a manifest out to splits or folds.

What belongs together stays together: rows of a subject always, and those of a group (a site, a scanner) where one is named. The order
of the draw is a hash of the seed and the subject's name: it depends neither on the order of the rows nor on the other subjects. Counts are
exact, so adding a subject moves at most one other subject over each border between splits (of each stratum). Groups differ in size and
are placed, the largest first, where the wanted counts are furthest from fulfilled.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.columns import is_number
from medgen.data.manifest import Manifest

SPLITS = ("train", "validation", "test")
_BINS = 4  # that a number is stratified in
_CLASSES = 10  # distinct numbers up to which each is a stratum


@dataclass(frozen=True)
class Plan:
    """How to share out.

    Attributes:
        fractions: of the subjects, for train, validation and test.
        by: a column whose equal values stay together, beside the subject.
        group: the same, for sites.
        stratify: a column whose values keep their shares in every split; numbers with more than 10 values in quarters.
        seed: of the order.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    by: str = "subject"
    group: str | None = None
    stratify: str | None = None
    seed: int = 0

    def __post_init__(self):
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise MedgenError(
                f"--fractions {' '.join(f'{f:g}' for f in self.fractions)}: expected three numbers of at least 0 that add up to 1"
            )


@dataclass(frozen=True)
class _Unit:
    """Subjects that cannot be parted, with the stratum of each."""

    subjects: tuple[str, ...]
    strata: tuple[str, ...]


def split(manifest: Manifest, plan: Plan) -> dict[str, str]:
    """Subject -> split.

    Raises:
        MedgenError: no such column, empty cells in it, or fewer units than splits.
    """
    return _shared(_units(manifest, plan), dict(zip(SPLITS, plan.fractions, strict=True)), plan)


def folds(manifest: Manifest, plan: Plan, count: int) -> dict[str, int | None]:
    """Subject -> fold from 0, or None for those that the plan's last fraction holds out as test.

    Raises:
        MedgenError: as `split`, and a single fold.
    """
    if count < 2:
        raise MedgenError(f"--folds {count}: expected at least 2")
    units, test = _units(manifest, plan), plan.fractions[2]
    held = _shared(units, {"train": 1 - test, "test": test}, plan)
    rest = [unit for unit in units if held[unit.subjects[0]] == "train"]
    placed = _shared(rest, {str(k): 1 / count for k in range(count)}, plan)
    return {subject: int(placed[subject]) if subject in placed else None for subject in held}


def _units(manifest: Manifest, plan: Plan) -> list[_Unit]:
    """Connected subjects: those that share a value of `by` or `group`, directly or over others."""
    named = [column for column in dict.fromkeys((plan.by, plan.group)) if column and column != "subject"]
    manifest.require([*named, *([plan.stratify] if plan.stratify else [])])
    leader: dict[str, str] = {subject: subject for subject in manifest.subjects}

    def top(subject: str) -> str:
        while leader[subject] != subject:
            leader[subject] = leader[leader[subject]]
            subject = leader[subject]
        return subject

    for column in named:
        first: dict[str, str] = {}
        for row in manifest.rows:
            if not row[column]:
                raise MedgenError(
                    f"{manifest.path}: subject {row['subject']} has no '{column}'; fill the cell, or split without that column"
                )
            leader[top(row["subject"])] = top(first.setdefault(row[column], row["subject"]))
    together: dict[str, list[str]] = {}
    for subject in sorted(manifest.subjects):
        together.setdefault(top(subject), []).append(subject)
    strata = _strata(manifest, plan.stratify)
    return [_Unit(tuple(subjects), tuple(strata[s] for s in subjects)) for subjects in together.values()]


def _strata(manifest: Manifest, column: str | None) -> dict[str, str]:
    """Subject -> the value that most of its rows have (numbers: the quarter of its mean)."""
    cells: dict[str, list[str]] = {}
    for row in manifest.rows:
        cells.setdefault(row["subject"], []).append(row[column] if column else "")
    filled = [cell for some in cells.values() for cell in some if cell]
    if not filled or len(set(filled)) <= _CLASSES or not all(map(is_number, filled)):
        return {subject: min(Counter(some).items(), key=lambda item: (-item[1], item[0]))[0] for subject, some in cells.items()}
    means = {subject: np.mean([float(c) for c in some if c]) for subject, some in cells.items() if any(some)}
    borders = np.quantile(list(means.values()), np.linspace(0, 1, _BINS + 1)[1:-1])
    return {subject: str(int(np.searchsorted(borders, means[subject], side="right"))) if subject in means else "" for subject in cells}


def _shared(units: Sequence[_Unit], fractions: dict[str, float], plan: Plan) -> dict[str, str]:
    """Subject -> name of its share."""
    wanted = [name for name, fraction in fractions.items() if fraction > 0]
    if len(units) < len(wanted):
        what = f"{len(units)} {'groups' if any(len(u.subjects) > 1 for u in units) else 'subjects'}"
        raise MedgenError(
            f"{what} cannot be shared out to {len(wanted)} parts ({', '.join(wanted)}); give others --fractions, or fewer --folds"
        )
    ordered = sorted(units, key=lambda unit: _hash(plan.seed, unit.subjects[0]))
    shares = np.array([fractions[name] for name in wanted])
    if all(len(unit.subjects) == 1 for unit in units):
        placed = _counted_out(ordered, shares)
    else:
        placed = _balanced(sorted(ordered, key=lambda unit: -len(unit.subjects)), shares)
    return {subject: wanted[k] for k, some in enumerate(placed) for unit in some for subject in unit.subjects}


def _counted_out(ordered: Sequence[_Unit], shares: np.ndarray) -> list[list[_Unit]]:
    """Single subjects: the first of each stratum to the first share, and so on, with counts by largest remainders."""
    strata: dict[str, list[_Unit]] = {}
    for unit in ordered:
        strata.setdefault(unit.strata[0], []).append(unit)
    counts, owed = {}, np.zeros(len(shares))
    for name in sorted(strata):
        ideal = shares * len(strata[name]) + owed
        counts[name] = _whole(ideal, len(strata[name]))
        owed = ideal - counts[name]
    _none_empty(counts)
    placed: list[list[_Unit]] = [[] for _ in shares]
    for name, some in strata.items():
        ends = np.cumsum(counts[name])
        for k, end in enumerate(ends):
            placed[k] += some[end - counts[name][k] : end]
    return placed


def _whole(ideal: np.ndarray, total: int) -> np.ndarray:
    """Numbers of at least 0 near the ideal ones that add up to the total: the largest remainders are rounded up."""
    counts = np.floor(np.maximum(ideal, 0) + 1e-9).astype(int)
    while counts.sum() > total:
        counts[int(np.argmax(counts - ideal))] -= 1
    while counts.sum() < total:
        counts[int(np.argmax(np.round(ideal - counts, 9)))] += 1
    return counts


def _none_empty(counts: dict[str, np.ndarray]) -> None:
    """Give a share that came out empty one subject of the largest."""
    for k in np.flatnonzero(sum(counts.values()) == 0):
        name, largest = max(((name, int(np.argmax(some))) for name, some in counts.items()), key=lambda place: counts[place[0]][place[1]])
        counts[name][largest] -= 1
        counts[name][k] += 1


def _balanced(ordered: Sequence[_Unit], shares: np.ndarray) -> list[list[_Unit]]:
    """Groups: each goes where it brings the counts of all strata nearest to the wanted ones."""
    names = sorted({stratum for unit in ordered for stratum in unit.strata})
    sizes = np.array([[unit.strata.count(name) for name in names] for unit in ordered], float)
    wanted = shares[:, None] * sizes.sum(0)
    have, placed = np.zeros_like(wanted), [[] for _ in shares]
    for n, (unit, size) in enumerate(zip(ordered, sizes, strict=True)):
        cost = ((have + size - wanted) ** 2 - (have - wanted) ** 2).sum(1)
        empty = [k for k in range(len(shares)) if not placed[k]]
        choice = empty if len(ordered) - n <= len(empty) else range(len(shares))
        best = min(choice, key=lambda k: (round(float(cost[k]), 9), k))
        placed[best].append(unit)
        have[best] += size
    return placed


def _hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest()
