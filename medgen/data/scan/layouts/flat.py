"""All files in one folder: one image each, or case_T1.nii.gz, case_seg.nii.gz where the last word names the channel."""

from __future__ import annotations

import re

from medgen.data.columns import Column, by_name, channel
from medgen.data.scan.layout import Layout, Match, Table, Tree, natural, stem

_LAST = re.compile(r"(.+)[_-]([A-Za-z]\w*?)")


def fits(tree: Tree) -> Match | None:
    if len(tree.folders) != 1:
        return None
    folder = next(iter(tree.folders))
    cases = _cases(tree)
    channels = sorted({name for case in cases.values() for name in case})
    told = f"the last words of their names are channels ({', '.join(channels)})" if channels != ["image"] else "one image each"
    return Match(0, f"{len(tree.images)} files in {folder or 'the folder itself'}, {told}")


def read(tree: Tree) -> Table:
    table, cases = Table([], {}), _cases(tree)
    for case in sorted(cases, key=natural):
        table.rows.append({"subject": case, **cases[case]})
        for name in cases[case]:
            table.columns[name] = by_name(name) if name != "image" else Column("image")
    if len(cases) > 1:
        table.notes.append(
            "every file name is taken as a subject of its own; if it holds the patient, give a pattern such as '{subject}_{_}.png'"
        )
    return table


def _cases(tree: Tree) -> dict[str, dict[str, str]]:
    """Case -> channel -> file. Names end in channels when all that do not are the rest of one that does."""
    split = {file: _told(stem(file)) for file in tree.images}
    bases = {base for base, name in split.values() if name}
    named = bool(bases) and all(name or base in bases for base, name in split.values())
    cases: dict[str, dict[str, str]] = {}
    for file, (base, name) in split.items():
        column = channel(name) if name else "image"
        if named and column not in cases.get(base, {}):
            cases.setdefault(base, {})[column] = file
        else:
            cases.setdefault(stem(file), {})["image"] = file
    return cases


def _told(name: str) -> tuple[str, str | None]:
    """The case and the channel of a file name whose last word is a known channel."""
    match = _LAST.fullmatch(name)
    column = by_name(match[2]) if match else Column("image")
    return (match[1], match[2]) if match and (column.kind == "labels" or column.modality) else (name, None)


LAYOUT = Layout("flat", "all files in one folder: one image each, or case_<channel>", fits, read)
