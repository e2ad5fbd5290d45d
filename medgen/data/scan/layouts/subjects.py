"""A folder per subject, perhaps below a split and above a session: [train/]patient07/[visit1/]T1.nii.gz."""

from __future__ import annotations

import re
from collections import Counter

from medgen.data.columns import Column, by_name, channel
from medgen.data.scan.layout import SPLITS, Layout, Match, Table, Tree, parent, shortened, stem

_MOST = 30  # channels


def fits(tree: Tree) -> Match | None:
    placed = _placed(tree)
    if not placed:
        return None
    folders = Counter(name for _, name in {(parent(file), name) for file, (_, name) in placed.items()})
    count = len({parent(file) for file in placed})
    recurring = [name for name, times in folders.items() if times > 1 and 2 * times >= count]
    known = [name for name in folders if by_name(name).kind == "labels" or by_name(name).modality]
    if any(name.isdigit() for name in folders) or len(folders) > _MOST or not (recurring or (count == 1 and known)):
        return None
    named = f"{count} folders with the files {shortened(sorted(recurring or known), 6)}"
    return Match(2 if set(recurring or known) & set(known) else 1, f"{named}, one folder per subject")


def read(tree: Tree) -> Table:
    table, rows = Table([], {}), {}
    for file, (place, word) in _placed(tree).items():
        subject, session, split = place
        row = rows.setdefault(
            place, {"subject": subject, **({"session": session} if session else {}), **({"split": split} if split else {})}
        )
        name = channel(word)
        if name in row:
            table.left_out[file] = f"a second {name} of {subject}"
            continue
        row[name] = file
        table.columns[name] = by_name(word)
    table.rows = [rows[key] for key in sorted(rows, key=lambda p: tuple(x or "" for x in p))]
    if any("session" in row for row in table.rows):
        table.columns["session"] = Column("text")
        table.notes.append("the folders between subject and files were taken as sessions")
    return table


def _placed(tree: Tree) -> dict[str, tuple[tuple[str, str | None, str | None], str]]:
    """File -> ((subject, session, split), channel); empty where the folders do not tell."""
    found, depths = {}, set()
    for file in tree.images:
        parts = [part for part in parent(file).split("/") if part]
        split = SPLITS.get(parts[0].lower()) if parts else None
        parts = parts[1:] if split else parts
        depths.add(len(parts))
        if not 1 <= len(parts) <= 2:
            return {}
        found[file] = ((parts[0], parts[1] if len(parts) == 2 else None, split), _channel(stem(file), parts))
    return found if len(depths) == 1 else {}


def _channel(name: str, folders: list[str]) -> str:
    """The file's name without the subject's and the session's."""
    for folder in folders:
        shorter = re.sub(rf"^{re.escape(folder)}[_-]|[_-]{re.escape(folder)}$", "", name, flags=re.I)
        name = shorter or name
    return name


LAYOUT = Layout("subjects", "a folder per subject with a file per channel: patient07/T1.nii.gz", fits, read)
