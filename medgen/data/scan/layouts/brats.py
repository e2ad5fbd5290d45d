"""BraTS: a folder per subject, BraTS2021_00000_t1ce.nii.gz, and since 2023 BraTS-GLI-00000-000-t1c.nii.gz (last number: time point)."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from medgen.data.columns import Column
from medgen.data.scan.layout import SPLITS, Layout, Match, Table, Tree, stem

_OLD = {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}
_NEW = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair", "seg": "seg"}
_NAME = re.compile(rf"(?P<case>.+?)(?:_(?P<old>{'|'.join(_OLD)})|-(?P<new>{'|'.join(_NEW)}))", re.I)
_VISIT = re.compile(r"(BraTS-\w+-\d+)-(\d+)", re.I)
_GRADES = ("HGG", "LGG")


def fits(tree: Tree) -> Match | None:
    matches = [match for file in tree.images if (match := _match(file))]
    kinds = {_contrast(match) for match in matches}
    if len(kinds & {"t1", "t1ce", "t2", "flair"}) < 3 or "t1ce" not in kinds:
        return None
    return Match(3, f"a folder per subject with files *_t1ce or *-t1c and {len(kinds) - 1} other kinds ({', '.join(sorted(kinds))})")


def read(tree: Tree) -> Table:
    table = Table([], {})
    rows: dict[str, dict[str, str]] = {}
    for file in tree.images:
        if not (match := _match(file)):
            continue
        case, above = match["case"], PurePosixPath(file).parts[:-2]
        visit = _VISIT.fullmatch(case)
        row = rows.setdefault(case, {"subject": visit[1] if visit else case})
        if visit:
            row["session"] = visit[2]
        for part in above:
            if part.upper() in _GRADES:
                row["grade"] = part.upper()
            elif part.lower() in SPLITS:
                row["split"] = SPLITS[part.lower()]
        if _contrast(match) in row:
            table.left_out[file] = f"a second {_contrast(match)} of {case}"
            continue
        row[_contrast(match)] = file
        if match["new"] and _contrast(match) == "t1ce":
            _note(table, "the names of 2023 (t1n, t1c, t2w, t2f) are brought to t1, t1ce, t2, flair")
    table.rows = [rows[case] for case in sorted(rows)]
    for name in dict.fromkeys(_OLD.values()):
        if any(name in row for row in table.rows):
            table.columns[name] = (
                Column("labels", about="1 necrosis, 2 oedema, 3 or 4 enhancing") if name == "seg" else Column("image", "MR")
            )
    if any("session" in row for row in table.rows):
        table.columns["session"] = Column("text")
        _note(table, "the last number of a case is its time point: all time points of a patient are one subject")
    if any("grade" in row for row in table.rows):
        table.code(["grade"])
    _splits(table)
    return table


def _match(file: str) -> re.Match[str] | None:
    match = _NAME.fullmatch(stem(file))
    folder = PurePosixPath(file).parent.name
    return match if match and match["case"].lower() == folder.lower() else None


def _contrast(match: re.Match[str]) -> str:
    return _OLD[match["old"].lower()] if match["old"] else _NEW[match["new"].lower()]


def _splits(table: Table) -> None:
    """Some folders with a split and some without: those without train."""
    if any("split" in row for row in table.rows):
        for row in table.rows:
            row.setdefault("split", "train")


def _note(table: Table, text: str) -> None:
    if text not in table.notes:
        table.notes.append(text)


LAYOUT = Layout("brats", "BraTS: subject/subject_{t1,t1ce,t2,flair,seg}.nii.gz and the names of 2023", fits, read)
