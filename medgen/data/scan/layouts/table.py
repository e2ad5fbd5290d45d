"""Files listed in a CSV or TSV beside them, such as metadata.csv with a column of paths and columns of attributes."""

from __future__ import annotations

import csv
import re
from pathlib import PurePosixPath

from medgen.core.errors import MedgenError
from medgen.data.columns import by_name, safe, sidecar
from medgen.data.manifest import Manifest
from medgen.data.scan.layout import SPLITS, Layout, Match, Table, Tree, parent, shortened, stem

_SUBJECT = re.compile(r"(subject|patient|participant|case)(_?(id|name|number))?|subj|pid|patid", re.I)
_SPLIT = re.compile(r"split|set|subset|partition|fold_?name", re.I)
_GENERAL = re.compile(r"(file|path|image|img)(_?(name|path|file|id|index))?s?", re.I)
_SHARE = 0.5  # of the cells that must name files


def fits(tree: Tree) -> Match | None:
    found = _tables(tree)
    if not found:
        return None
    name, lines, columns = found[0]
    return Match(3, f"{name} lists {len(lines)} files in its column{'s' if len(columns) > 1 else ''} {', '.join(columns)}")


def read(tree: Tree) -> Table:
    found = _tables(tree)
    if len(found) > 1:
        raise MedgenError(
            f"{tree.root}: several tables list files ({', '.join(name for name, _, _ in found)}); scan a folder with one of them"
        )
    name, lines, paths = found[0]
    here, header = parent(name), list(lines[0])
    subject = next((c for c in header if _SUBJECT.fullmatch(c)), None)
    split = next((c for c in header if _SPLIT.fullmatch(c) and _is_split(lines, c)), None)
    names = {c: "image" if len(paths) == 1 and _GENERAL.fullmatch(c) else safe(c) for c in header}
    table = Table([], {names[c]: by_name(names[c]) for c in paths})
    others = [c for c in header if c not in (*paths, subject, split) and names[c] not in ("subject", "split")]
    for line in lines:
        files = {names[c]: _path(here, line[c]) for c in paths}
        absent = [file for file in files.values() if file and file not in tree.files]
        row = {"subject": line[subject] if subject else stem(next(iter(files.values()))), **files}
        if absent or not row["subject"]:
            table.left_out[absent[0] if absent else next(iter(files.values()))] = (
                f"{name} lists it, and there is no such file" if absent else "no subject"
            )
            continue
        table.rows.append({**row, **({"split": SPLITS[line[split].lower()]} if split else {}), **{names[c]: line[c] for c in others}})
    if not table.rows:
        raise MedgenError(f"{tree.root / name}: none of the files that it lists is there")
    table.code([names[c] for c in others])
    if not subject:
        table.notes.append(f"{name} has no column of subjects: every file is its own subject; name that column 'subject' if there is one")
    if table.left_out:
        table.notes.append(f"{len(table.left_out)} lines of {name} have no file ({shortened(list(table.left_out))})")
    return table


def _tables(tree: Tree) -> list[tuple[str, list[dict[str, str]], list[str]]]:
    """(table, its lines, the columns that name files), for the tables in the root or one folder below."""
    found, known = [], set(tree.files)
    for name in tree.files:
        if not name.lower().endswith((".csv", ".tsv")) or name.count("/") > 1 or (tree.root / name).stat().st_size > 1 << 28:
            continue
        lines = _lines(tree, name)
        columns = [c for c in (lines[0] if lines else ()) if _share(parent(name), lines, c, known) >= _SHARE]
        if columns and not _is_manifest(tree, name):
            found.append((name, lines, columns))
    return found


def _lines(tree: Tree, name: str) -> list[dict[str, str]]:
    try:
        with (tree.root / name).open(newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if name.lower().endswith(".tsv") else csv.Sniffer().sniff(file.readline() or ",", ",;\t").delimiter
            file.seek(0)
            lines = [
                {(k or "").strip(): (v or "").strip() for k, v in line.items() if isinstance(v, str)}
                for line in csv.DictReader(file, delimiter=delimiter)
            ]
    except (UnicodeDecodeError, csv.Error):
        return []
    return [line for line in lines if any(line.values()) and len(line) == len(lines[0])]


def _is_manifest(tree: Tree, name: str) -> bool:
    """A manifest that an earlier scan left in the folder."""
    try:
        path = Manifest.read(tree.root / name).path
    except MedgenError:
        return False
    return sidecar(path).is_file()


def _share(here: str, lines: list[dict[str, str]], column: str, known: set[str]) -> float:
    cells = [line[column] for line in lines if line[column]]
    return sum(_path(here, cell) in known for cell in cells) / max(1, len(cells))


def _is_split(lines: list[dict[str, str]], column: str) -> bool:
    return all(line[column].lower() in SPLITS for line in lines)


def _path(here: str, cell: str) -> str:
    cell = cell.replace("\\", "/")
    return (PurePosixPath(here) / cell).as_posix().removeprefix("./") if cell else ""


LAYOUT = Layout("table", "a CSV or TSV beside the files that lists them with attributes", fits, read)
