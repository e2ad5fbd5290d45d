"""What a layout tells of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from medgen.core.errors import MedgenError
from medgen.data.columns import Column, coded
from medgen.data.readers import formats

SPLITS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}
_JUNK = {"__MACOSX", "Thumbs.db", "lost+found"}


@dataclass(frozen=True)
class Tree:
    """The files below a folder, hidden ones left out.

    Attributes:
        root: the folder.
        files: paths relative to it with '/', sorted.
    """

    root: Path
    files: tuple[str, ...]

    @staticmethod
    def walk(root: Path) -> Tree:
        """Every file below `root`; a folder that is reached twice by links is walked once.

        Raises:
            MedgenError: no such folder, or nothing in it.
        """
        if not root.is_dir():
            raise MedgenError(f"{root}: no such folder; give the folder that holds the images")
        found, seen = [], set()
        for folder, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _JUNK)
            place = Path(folder).relative_to(root)
            found += [(place / file).as_posix() for file in files if not file.startswith(".") and file not in _JUNK]
        if not found:
            raise MedgenError(f"{root}: holds no file; give the folder that holds the images")
        return Tree(root, tuple(sorted(found)))

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The files whose ending a format takes."""
        found = [file for file in self.files if ending(file)]
        headers = {file.removesuffix(".gz")[:-4] for file in found if file.lower().removesuffix(".gz").endswith(".hdr")}
        voxels = (".img", ".img.gz")  # the other half of an .hdr
        return tuple(f for f in found if not (f.lower().endswith(voxels) and f.removesuffix(".gz")[:-4] in headers))

    @cached_property
    def folders(self) -> dict[str, list[str]]:
        """Folder ('' is the root) -> image files directly in it."""
        found: dict[str, list[str]] = {}
        for file in self.images:
            found.setdefault(parent(file), []).append(file)
        return found


@dataclass(frozen=True)
class Match:
    """How sure a layout is: 3 there is a file that only it has, 2 names fit, 1 the shape of the tree fits, 0 last resort; and how
    many files it would take, None for all images.
    """

    certainty: int
    reason: str
    files: int | None = None


@dataclass
class Table:
    """What a layout read.

    Attributes:
        rows: column -> cell; "subject" and perhaps "split", images as paths relative to the root (with `#part`).
        columns: all others than subject and split.
        notes: what the user should know: ambiguities, choices, what is missing.
        of_rows: notes on what a row is, which hold until rows are joined.
        left_out: file -> why no row names it, where there is a reason beyond "no part of this layout".
    """

    rows: list[dict[str, str]]
    columns: dict[str, Column]
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    of_rows: list[str] = field(default_factory=list)

    def code(self, names: list[str]) -> None:
        """Turn texts of these columns into what FileData takes."""
        for name in names:
            made = coded(name, [row.get(name, "") for row in self.rows])
            for row, cell in zip(self.rows, made.cells, strict=True):
                row[name] = cell
            self.columns[name] = made.column

    def fill(self) -> None:
        """Give every row every column, and say which images are missing."""
        for name, column in self.columns.items():
            without = [row["subject"] for row in self.rows if not row.get(name)]
            for row in self.rows:
                row.setdefault(name, "")
            if without and column.kind in ("image", "kspace", "labels"):
                self.notes.append(
                    f"{name} is missing in {len(without)} of {len(self.rows)} rows ({shortened(without)}): their cells are empty"
                )


@dataclass(frozen=True)
class Layout:
    """A way to lay out a data set.

    Attributes:
        name: what `--layout` takes.
        about: a line for users.
        fits: whether a tree looks like it.
        read: its table.
    """

    name: str
    about: str
    fits: Callable[[Tree], Match | None]
    read: Callable[[Tree], Table]


def ending(file: str) -> str:
    """The ending by which a format takes this file, as it is written; '' where none does."""
    name = file.rpartition("/")[2]
    lower = name.lower()
    if not lower.endswith(_endings()):
        return ""
    longest = next((e for e in _endings() if lower.endswith(e) and len(name) > len(e)), "")
    return name[len(name) - len(longest) :] if longest else ""


@cache
def _endings() -> tuple[str, ...]:
    """Of all formats, the longest first."""
    return tuple(sorted({e for format in formats() for e in format.endings}, key=lambda e: (-len(e), e)))


def stem(file: str) -> str:
    """The name without folder and image ending."""
    name, end = file.rpartition("/")[2], ending(file)
    return name[: len(name) - len(end)] if end else name.rpartition(".")[0] or name


def parent(file: str) -> str:
    """The folder of a file, '' for the root."""
    return file.rpartition("/")[0]


def safe_subject(name: str) -> str:
    """A subject's name without what paths and command lines trip over."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def natural(text: str) -> list[int | str]:
    """Sorts x2 before x10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def shortened(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
