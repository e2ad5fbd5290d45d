"""Recognise the layout of a folder and read it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath
from pkgutil import iter_modules

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.data.columns import Column, by_name
from medgen.data.formats.format import MissingLibrary
from medgen.data.readers import parted, peek
from medgen.data.scan import layouts as package
from medgen.data.scan import pattern as by_pattern
from medgen.data.scan.layout import Layout, Match, Table, Tree, shortened
from medgen.data.scan.pivot import columns_by

_STRAY = 10  # times as many files as a layout takes make another one, as sure of itself, the right one


@dataclass(frozen=True)
class Scan:
    """What was found in a folder.

    Attributes:
        root: the folder.
        layout: name of the layout that was read, or "pattern".
        reason: why it was taken as that.
        table: rows and columns; images relative to the root.
        left_out: file -> why no row names it.
    """

    root: Path
    layout: str
    reason: str
    table: Table
    left_out: dict[str, str]

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row["subject"] for row in self.table.rows))


def scan(folder: str | Path, layout: str | None = None, pattern: str | None = None, columns: str | None = None) -> Scan:
    """The images of a folder as rows of a manifest.

    Args:
        layout: take it as this layout.
        pattern: of the files' paths; see `medgen.data.scan.pattern.read`.
        columns: text column, such as "description", whose texts become columns of images; see `medgen.data.scan.pivot`.

    Raises:
        MedgenError: nothing there, no layout fits, several fit as well as each other, or the folder breaks the rules of its layout.
    """
    if layout and pattern:
        raise MedgenError("--layout and --pattern exclude each other; give one of them")
    tree = Tree.walk(Path(folder))
    if pattern:
        name, reason, table = "pattern", f"the pattern '{pattern}'", by_pattern.read(tree, pattern)
    else:
        chosen, reason, others = _choose(tree, layout)
        name, table = chosen.name, chosen.read(tree)
        table.notes += [f"it also looks like '{other}' ({why}); if it is that: --layout {other}" for other, why in others]
    if columns:
        table = columns_by(table, columns)
    table.notes[:0] = table.of_rows
    table.fill()
    _look(tree.root, table)
    _named_after(tree.root, table)
    _agree(table)
    return Scan(tree.root, name, reason, table, _left_out(tree, table))


@cache
def layouts() -> tuple[Layout, ...]:
    """All layouts, in the order of their modules' names."""
    modules = [import_module(f"{package.__name__}.{found.name}") for found in iter_modules(package.__path__)]
    return tuple(module.LAYOUT for module in modules if hasattr(module, "LAYOUT"))


def _choose(tree: Tree, forced: str | None) -> tuple[Layout, str, list[tuple[str, str]]]:
    """The layout to read, why, and which others look possible."""
    if forced is not None:
        chosen = next((known for known in layouts() if known.name == forced), None)
        if chosen is None:
            raise MedgenError(f"--layout: no layout '{forced}'; {nearest(forced, [known.name for known in layouts()])}")
        return chosen, "--layout", []
    fitting = [(known, match) for known in layouts() if (match := known.fits(tree))]
    if not fitting:
        raise MedgenError(_unknown(tree))
    fitting.sort(key=lambda pair: -pair[1].certainty)
    best = [pair for pair in fitting if pair[1].certainty == fitting[0][1].certainty]
    most = max(_files(tree, match) for _, match in best)
    best = [pair for pair in best if _STRAY * _files(tree, pair[1]) > most]  # not what a stray picture among a series suggests
    if len(best) > 1:
        told = "; or ".join(f"{match.reason} (--layout {known.name})" for known, match in best)
        raise MedgenError(f"{tree.root}: may be read in several ways: {told}; say which, or give a --pattern")
    others = [(known.name, match.reason) for known, match in fitting[1:] if _worth_telling(match, best[0][1])]
    return best[0][0], best[0][1].reason, others


def _files(tree: Tree, match: Match) -> int:
    return len(tree.images) if match.files is None else match.files


def _worth_telling(match: Match, best: Match) -> bool:
    """Not what only the shape of the tree suggests."""
    return min(match.certainty, best.certainty) >= 2


def _unknown(tree: Tree) -> str:
    names = ", ".join(known.name for known in layouts())
    shown = ", ".join((tree.images or tree.files)[:3])
    if not tree.images:
        kinds = Counter(PurePosixPath(file).suffix or "no ending" for file in tree.files)
        told = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(4))
        return f"{tree.root}: none of its {len(tree.files)} files has an ending that medgen reads ({told}), and no layout fits ({names})"
    pattern = by_pattern.suggested(tree)
    return f"{tree.root}: no known layout ({names}) fits files such as {shown}; describe them, such as --pattern '{pattern}'"


def _look(root: Path, table: Table) -> None:
    """Correct the kinds of columns by the header of their first image."""
    for name, column in list(table.columns.items()):
        first = next((row[name] for row in table.rows if row.get(name)), None)
        if column.kind != "image" or first is None:
            continue
        try:
            header = peek(root / first)
        except MissingLibrary:
            raise
        except MedgenError as error:
            table.notes.append(f"{name}: the header of its first file cannot be read ({error})")
            continue
        if np.dtype(header.dtype).kind == "c":
            table.columns[name] = Column("kspace", column.modality or "MR")
        elif column.modality is None and header.affine is None and header.channels == 3 and len(header.shape) == 2:
            table.columns[name] = Column("image", "picture", column.classes, column.about)


def _named_after(root: Path, table: Table) -> None:
    """The modality of images that nothing names, from the folder's name."""
    told = by_name(root.resolve().name).modality
    for name, column in table.columns.items():
        if column == Column("image") and told:
            table.columns[name] = Column("image", told)
            table.notes.append(f"{name}: taken as {told}, as the folder's name says")


def _agree(table: Table) -> None:
    """Tell what a manifest will refuse: a subject in two splits."""
    of: dict[str, set[str]] = {}
    for row in table.rows:
        of.setdefault(row["subject"], set()).add(row.get("split", "train"))
    several = [subject for subject, splits in of.items() if len(splits) > 1]
    if several:
        table.notes.append(
            f"{len(several)} subjects are in more than one split ({shortened(several)}), which training refuses: "
            "make a new split by subject with `medgen data split --resplit`"
        )


def _left_out(tree: Tree, table: Table) -> dict[str, str]:
    images = [name for name, column in table.columns.items() if column.kind in ("image", "kspace", "labels")]
    used = {parted(tree.root / row[name])[0].relative_to(tree.root).as_posix() for row in table.rows for name in images if row[name]}
    listed = [file for file in tree.images if not _covered(file, used)]
    return {file: table.left_out.get(file, "no part of this layout") for file in [*listed, *(f for f in table.left_out if f not in listed)]}


def _covered(file: str, used: set[str]) -> bool:
    """Whether a row names the file or a folder that it is in."""
    return file in used or any(folder.as_posix() in used for folder in PurePosixPath(file).parents)
