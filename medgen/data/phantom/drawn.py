"""What all drawn data sets share: splits from disjoint ranges of subjects, and cases that are drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.data.manifest import EmptySplit
from medgen.data.source import Case

FIRST = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
_KEEP = 64 << 20


class DrawnCases:
    """The cases of one split: `each` of every subject. The first 64 MiB drawn in a process are kept.

    Args:
        draw: (subject's index in the population, number of the case within the subject) -> case.
        first, count: the subjects' range.
    """

    varies = False

    def __init__(self, draw: Callable[[int, int], Case], first: int, count: int, each: int):
        self._draw, self.first, self.count, self._each = draw, first, count, each
        self._kept: dict[int, Case] = {}
        self._room = _KEEP

    def __len__(self) -> int:
        return self.count * self._each

    @property
    def subjects(self) -> list[str]:
        names = [self.case(subject * self._each, None)["subject"] for subject in range(self.count)]
        return [name for name in names for _ in range(self._each)]

    def case(self, index: int, rng: np.random.Generator | None) -> Case:
        """Case `index`; nothing in it is random beyond the population's seed, so `rng` is not used."""
        if not 0 <= index < len(self):
            raise IndexError(f"case {index} of {len(self)}")
        case = self._kept.get(index) or self._keep(index)
        return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in case.items()}

    def _keep(self, index: int) -> Case:
        subject, number = divmod(index, self._each)
        case = self._draw(self.first + subject, number)
        size = sum(value.nbytes for value in case.values() if isinstance(value, np.ndarray))
        if self._room >= size:
            self._room -= size
            self._kept[index] = case
        return case


def drawn_split(draw: Callable[[int, int], Case], name: str, subjects: Mapping[str, int], each: int) -> DrawnCases:
    """The cases of "train", "validation" or "test"."""
    if name not in FIRST:
        raise MedgenError(f"the phantom has no split '{name}'; {nearest(name, FIRST)}")
    if not subjects.get(name):
        raise EmptySplit(f"the phantom has no subjects in split '{name}'; set subjects: {{{name}: 8}}")
    return DrawnCases(draw, FIRST[name], subjects[name], each)


def check_drawn(channels: Iterable[str], known: Iterable[str], subjects: Mapping[str, int], size: Sequence[int], slices: int) -> None:
    """Refuse channels and splits that do not exist, splits that would overlap, and sizes that are neither slices nor volumes."""
    known = tuple(known)
    for name in channels:
        if name not in known:
            raise MedgenError(f"the phantom has no channel '{name}'; {nearest(name, known)}")
    for name, count in subjects.items():
        if name not in FIRST:
            raise MedgenError(f"the phantom has no split '{name}'; {nearest(name, FIRST)}")
        if not 0 <= count <= FIRST["validation"]:
            raise MedgenError(f"split '{name}' has {count} subjects; expected 0 to {FIRST['validation']}, so that splits stay apart")
    if len(size) not in (2, 3) or min(size) < 1:
        raise MedgenError(f"size {tuple(size)}: give two numbers for slices or three for volumes")
    if slices < 1:
        raise MedgenError(f"slices is {slices}; a subject needs at least one slice")
