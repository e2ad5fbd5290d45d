"""How the numbers of a label map's files become classes 0, 1, 2, ...: as they are, by a list of values, or anything but 0 as one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.volume import Volume
from medgen.data.checks import check_labels

_KEYS = ("classes", "values", "binary")


@dataclass(frozen=True)
class LabelRule:
    """What is taken for a class.

    Attributes:
        classes: how many there are, with the background.
        values: the stored number of class 0, 1, 2, ...; empty where numbers are classes.
        binary: any number but 0 is class 1: masks of 0 and 255, numbered instances.
    """

    classes: int
    values: tuple[int, ...] = ()
    binary: bool = False

    @staticmethod
    def said(name: str, entry: int | Mapping[str, Any]) -> LabelRule:
        """The rule of an entry of `labels`: a number of classes, `{values: [0, 255]}` or `{binary: true}`.

        Raises:
            MedgenError: anything else.
        """
        if not isinstance(entry, Mapping):
            return LabelRule(_whole(name, entry))
        for key in entry:
            if key not in _KEYS:
                raise MedgenError(f"labels.{name}: no entry '{key}'; {nearest(key, _KEYS)}")
        values, binary = tuple(entry.get("values") or ()), bool(entry.get("binary"))
        if bool(values) == binary:
            raise MedgenError(f"labels.{name}: expected a number of classes, {{values: [0, 255]}} or {{binary: true}}, found {dict(entry)}")
        values = tuple(_whole(name, value) for value in values)
        classes = 2 if binary else len(values)
        if len(set(values)) < len(values) or entry.get("classes", classes) != classes:
            raise MedgenError(f"labels.{name}: expected a different number for each of its classes, found {dict(entry)}")
        return LabelRule(classes, values, binary)

    @property
    def plain(self) -> bool:
        """Whether numbers are classes."""
        return not self.values and not self.binary

    def describe(self) -> Any:
        """As plain data, for the key of what is prepared."""
        return "binary" if self.binary else list(self.values)

    def apply(self, volume: Volume, name: str) -> Volume:
        """The map in classes.

        Raises:
            MedgenError: a number that is no class.
        """
        if self.binary:
            return volume.with_array((volume.array != 0).astype(np.float32))
        if not self.values:
            return _plain(volume, name, self.classes)
        order = np.argsort(self.values)
        stored = np.asarray(self.values, np.float64)[order]
        place = np.searchsorted(stored, volume.array).clip(0, len(stored) - 1)
        wrong = volume.array != stored[place]
        if wrong.any():
            expected = ", ".join(map(str, self.values))
            found = f"label map '{name}' has the value {volume.array[wrong].flat[0]:g}"
            raise MedgenError(f"{volume.meta['file']}: {found}; expected one of its values {expected}")
        return volume.with_array(order[place].astype(np.float32))


def words(name: str, values: Sequence[float] = ()) -> str:
    """What to add to a command so that a map with these numbers (none: any) is read as classes."""
    entry = f"values: [{', '.join(f'{value:g}' for value in values)}]" if values else "binary: true"
    return f"'+data.source.labels.{name}={{{entry}}}'"


def _plain(volume: Volume, name: str, classes: int) -> Volume:
    try:
        check_labels(volume, name, classes)
    except MedgenError as error:
        remedy = f"name other numbers of classes, such as {words(name, (0, 255))}, or take all but 0 as one by {words(name)}"
        remedy += f" (of `medgen evaluate`: --labels {name}=0,255 or --labels {name}=binary)"
        raise MedgenError(f"{error}; {remedy}") from error
    return volume


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 0:
        raise MedgenError(f"labels.{name}: expected whole numbers, found {value!r}")
    return int(value)
