"""Files listed in a CSV or TSV beside them, such as metadata.csv with a column of paths and columns of attributes.

A cell is a path relative to the table, or, where no column is, the name of a file anywhere below, or that name without its ending.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from medgen.core.errors import MedgenError
from medgen.data.columns import by_name, safe, sidecar
from medgen.data.scan.layout import SPLITS, Layout, Match, Table, Tree, parent, shortened, stem

_SUBJECT = re.compile(r"(subject|patient|participant|case)(_?(id|name|number))?|subj|pid|patid", re.I)
_SPLIT = re.compile(r"split|set|subset|partition|fold_?name", re.I)
_GENERAL = re.compile(r"(file|path|image|img)(_?(name|path|file|id|index))?s?", re.I)
_SHARE = 0.5  # of the cells that must name files
_LARGEST = 1 << 28  # bytes of a table


@dataclass(frozen=True)
class _Listing:
    """A table that lists files: its lines, and column -> the file that each line names ('' for none)."""

    name: str
    lines: list[dict[str, str]]
    files: dict[str, list[str]]


def fits(tree: Tree) -> Match | None:
    found = _listings(tree)
    if not found:
        return None
    first = found[0]
    columns = f"column{'s' if len(first.files) > 1 else ''} {', '.join(first.files)}"
    return Match(3, f"{first.name} lists {len(first.lines)} files in its {columns}")


def read(tree: Tree) -> Table:
    found = _listings(tree)
    if len(found) > 1:
        names = ", ".join(listing.name for listing in found)
        raise MedgenError(f"{tree.root}: several tables list files ({names}); scan a folder with one of them")
    listing = found[0]
    header, name = list(listing.lines[0]), listing.name
    subject = next((c for c in header if _SUBJECT.fullmatch(c)), None)
    split = next((c for c in header if _SPLIT.fullmatch(c) and _is_split(listing.lines, c)), None)
    alone = len(listing.files) == 1
    images = {c: "image" if alone and (c == subject or _GENERAL.fullmatch(c)) else safe(c) for c in listing.files}
    table = Table([], {made: by_name(made) for made in images.values()})
    others = {c: safe(c) for c in header if c not in (*images, subject, split) and safe(c) not in ("subject", "split", *images.values())}
    for k, line in enumerate(listing.lines):
        files = {images[c]: listing.files[c][k] for c in images}
        told = next((line[c] for c in images if line[c]), f"line {k + 2} of {name}")
        if not any(files.values()):
            table.left_out[told] = f"{name} lists it, and there is no such file"
            continue
        row = {"subject": line[subject] if subject else stem(next(filter(None, files.values()))), **files}
        if not row["subject"]:
            table.left_out[told] = f"{name} gives it no {subject}"
            continue
        table.rows.append({**row, **({"split": SPLITS[line[split].lower()]} if split else {}), **{others[c]: line[c] for c in others}})
    table.code(list(others.values()))
    if not subject:
        table.notes.append(f"{name} has no column of subjects: every file is its own subject; name that column 'subject' if there is one")
    if table.left_out:
        table.notes.append(f"{len(table.left_out)} lines of {name} have no file ({shortened(list(table.left_out))})")
    return table


def _listings(tree: Tree) -> list[_Listing]:
    """The tables in the root or one folder below that name files."""
    found, known = [], set(tree.files)
    for name in tree.files:
        if not name.lower().endswith((".csv", ".tsv")) or name.count("/") > 1 or (tree.root / name).stat().st_size > _LARGEST:
            continue
        lines = _lines(tree, name)
        if lines and not _is_manifest(tree, name) and (files := _files(tree, name, lines, known)):
            found.append(_Listing(name, lines, files))
    return found


def _files(tree: Tree, name: str, lines: list[dict[str, str]], known: set[str]) -> dict[str, list[str]]:
    """The columns of which at least half of the cells name files, as paths if any column does, else as names, else without ending."""
    here = parent(name)
    by_path = {c: [path if (path := _path(here, line[c])) in known else "" for line in lines] for c in lines[0]}
    if found := _enough(by_path, lines):
        return found
    names = Counter(key for file in tree.images for key in {file.rpartition("/")[2], stem(file)})
    unique = {key: file for file in tree.images for key in (file.rpartition("/")[2], stem(file)) if names[key] == 1}
    return _enough({c: [unique.get(line[c].rpartition("/")[2], "") for line in lines] for c in lines[0]}, lines)


def _enough(files: dict[str, list[str]], lines: list[dict[str, str]]) -> dict[str, list[str]]:
    return {c: some for c, some in files.items() if any(some) and sum(map(bool, some)) >= _SHARE * sum(bool(line[c]) for line in lines)}


def _lines(tree: Tree, name: str) -> list[dict[str, str]]:
    try:
        with (tree.root / name).open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            lines = [
                {(k or "").strip(): (v or "").strip() for k, v in line.items() if isinstance(v, str)}
                for line in csv.DictReader(file, delimiter=max(",;\t", key=first.count))
            ]
    except (UnicodeDecodeError, csv.Error):
        return []
    return [line for line in lines if any(line.values()) and len(line) == len(lines[0])]


def _is_manifest(tree: Tree, name: str) -> bool:
    """A manifest that an earlier scan left in the folder."""
    return sidecar(tree.root / name).is_file()


def _is_split(lines: list[dict[str, str]], column: str) -> bool:
    return all(line[column].lower() in SPLITS for line in lines)


def _path(here: str, cell: str) -> str:
    cell = cell.replace("\\", "/")
    return (PurePosixPath(here) / cell).as_posix().removeprefix("./") if cell else ""


LAYOUT = Layout("table", "a CSV or TSV beside the files that lists them with attributes", fits, read)
