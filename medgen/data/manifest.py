"""A CSV that lists subjects, their split, their files and their attributes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medgen.core.errors import MedgenError, nearest
from medgen.data.paths import leaves
from medgen.data.readers import parted

_SPLITS = ("train", "validation", "test")
_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}


class EmptySplit(MedgenError):
    """Nothing is listed for a split. Training may go on without validation; nothing else may."""


@dataclass(frozen=True)
class Manifest:
    """Rows of a CSV with a column `subject`, optionally `split`, and columns of files and attributes.

    A subject may have several rows (slices, pictures). Without a column `split` every row is for training.

    Attributes:
        path: the CSV; its files are relative to its folder.
        columns: in the order of the file.
        rows: column -> cell, blanks stripped.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    @staticmethod
    def read(path: str | Path) -> Manifest:
        """Read and check a CSV.

        Raises:
            MedgenError: no such file, no rows, no column `subject`, a ragged or repeated row, a subject in two splits.
        """
        manifest = Manifest.parse(path)
        manifest._check()
        return manifest

    @staticmethod
    def parse(path: str | Path) -> Manifest:
        """The rows of a CSV as they are, for those who look for what is wrong with them.

        Raises:
            MedgenError: no such file, not a CSV, a ragged row.
        """
        path = Path(path)
        if not path.is_file():
            raise MedgenError(f"{path}: no such manifest; expected a CSV with a column 'subject' and one column per image")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                header, *lines = list(csv.reader(file)) or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise MedgenError(f"{path}: not a CSV in UTF-8 ({error}); export it again as 'CSV UTF-8'") from error
        columns = tuple(cell.strip() for cell in header)
        rows = tuple(_row(path, columns, number, cells) for number, cells in enumerate(lines, 2) if any(cells))
        return Manifest(path, columns, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Without repetition, in the order of the file."""
        return tuple(dict.fromkeys(row["subject"] for row in self.rows))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are, in the order of the file."""
        return tuple(dict.fromkeys(row["split"] for row in self.rows))

    def split(self, name: str) -> Manifest:
        """The rows of one split.

        Raises:
            EmptySplit: there are none.
        """
        name = _ALIASES.get(name, name)
        rows = tuple(row for row in self.rows if row["split"] == name)
        if not rows:
            counts = ", ".join(f"{s} ({sum(row['split'] == s for row in self.rows)} rows)" for s in self.splits)
            lacks = "" if "split" in self.columns else "; without a column 'split' all rows are for training: see `medgen data split`"
            raise EmptySplit(f"{self.path}: no row has split '{name}'; the splits there are: {counts}{lacks}")
        return Manifest(self.path, self.columns, rows)

    def require(self, columns: Iterable[str]) -> None:
        """Refuse a column that the CSV does not have."""
        for column in columns:
            if column not in self.columns:
                raise MedgenError(f"{self.path}: no column '{column}'; {nearest(column, self.columns)}")

    def require_files(self, columns: Sequence[str], blank: bool = False) -> None:
        """Refuse an empty cell (with `blank`: a row of nothing but empty cells) or a path to nothing in any of the columns."""
        self.require(columns)
        for row in self.rows:
            if blank and not any(row[column] for column in columns):
                raise MedgenError(f"{self.path}: subject {row['subject']} has no file at all ({', '.join(columns)}); leave the row out")
        for column in columns:
            for row in self.rows:
                if not row[column] and blank:
                    continue
                if not row[column]:
                    remedy = "fill the cell, leave the row out, or set data.source.options.missing=true"
                    raise MedgenError(f"{self.path}: subject {row['subject']} has no file for '{column}'; {remedy}")
                if not parted(self.file(row, column))[0].exists():
                    raise MedgenError(f"{self.path}: subject {row['subject']}: no file {self.file(row, column)} for '{column}'")

    def file(self, row: dict[str, str], column: str) -> Path:
        """The path in a cell, relative to the CSV's folder.

        Raises:
            MedgenError: a relative path that leaves that folder. A manifest that came with its data stays in it; a path elsewhere is
                written in full, where everyone sees it.
        """
        cell = row[column]
        if not Path(cell).is_absolute() and leaves(self.path.parent, cell):
            raise MedgenError(
                f"{self.path}: subject {row['subject']}: '{cell}' leaves the manifest's folder; put the manifest above its files, "
                "or write the whole path"
            )
        return self.path.parent / cell

    def _check(self) -> None:
        mark = next((mark for mark in (";", "\t") if len(self.columns) == 1 and mark in self.columns[0]), None)
        if mark is not None:
            raise MedgenError(f"{self.path}: its columns are separated by {mark!r}; the separator must be a comma: export it again")
        if "subject" not in self.columns:
            raise MedgenError(f"{self.path}: a manifest needs a column 'subject'; found {', '.join(self.columns) or 'no columns'}")
        if len(set(self.columns)) < len(self.columns):
            raise MedgenError(f"{self.path}: a column appears twice: {', '.join(self.columns)}")
        if not self.rows:
            raise MedgenError(f"{self.path}: a manifest without rows; expected one row per subject")
        seen: set[tuple[str, ...]] = set()
        split_of: dict[str, str] = {}
        for row in self.rows:
            self._check_row(row, seen, split_of)

    def _check_row(self, row: dict[str, str], seen: set[tuple[str, ...]], split_of: dict[str, str]) -> None:
        subject, cells = row["subject"], tuple(row.values())
        if not subject or not row["split"]:
            raise MedgenError(f"{self.path}: a row without {'split' if subject else 'subject'}: {', '.join(cells)}")
        if cells in seen:
            raise MedgenError(f"{self.path}: subject {subject} has the same row twice ({', '.join(cells)}); remove one")
        if split_of.setdefault(subject, row["split"]) != row["split"]:
            raise MedgenError(
                f"{self.path}: subject {subject} is in two splits, {split_of[subject]} and {row['split']}; a subject belongs to one"
            )
        seen.add(cells)


def _row(path: Path, columns: tuple[str, ...], line: int, cells: list[str]) -> dict[str, str]:
    if len(cells) != len(columns):
        raise MedgenError(f"{path}: line {line} has {len(cells)} cells, the header {len(columns)}")
    row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
    split = row.get("split", "train")
    known = split.strip().lower()
    return {**row, "split": known if known in _SPLITS else _ALIASES.get(known, split)}
