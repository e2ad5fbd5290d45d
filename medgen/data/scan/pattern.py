"""Paths that follow a pattern of the user's, such as '{subject}/{channel}.nii.gz'."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from medgen.core.errors import MedgenError
from medgen.data.columns import Column, by_name, channel
from medgen.data.scan.layout import SPLITS, Table, Tree, ending, parent, stem

_FIELD = re.compile(r"\{(\w*)\}|(\*)")
_OWN = ("subject", "channel", "split", "_")


def read(tree: Tree, pattern: str) -> Table:
    """The files that fit the pattern as rows. A name stands for one or more characters other than '/', as many as fit; a name that
    occurs twice must be the same text; `{_}` and `*` are ignored. Without `{channel}` every file is a row.

    Raises:
        MedgenError: a pattern without {subject}, a name that cannot be one, no file that fits, a split that is none.
    """
    expression = _compiled(pattern)
    table, rows = Table([], {}), {}
    for file in tree.images:
        if not (match := expression.fullmatch(file)):
            continue
        told = match.groupdict()
        word = told.pop("channel", None)
        name = channel(word) if word else "image"
        key = tuple(told.values()) if word else file
        row = rows.setdefault(key, dict(told))
        if name in row:
            table.left_out[file] = f"a second {name} of {told['subject']}; name what tells them apart, such as {{session}}"
            continue
        row[name] = file
        table.columns[name] = by_name(name) if word else Column("image")
    if not rows:
        raise MedgenError(_nothing(tree, pattern))
    table.rows = list(rows.values())
    _split(table, pattern)
    extra = [k for k in expression.groupindex if k not in _OWN]
    table.code([name for name in extra if name != "session"])
    if "session" in extra:
        table.columns["session"] = Column("text")
    return table


def suggested(tree: Tree) -> str:
    """A pattern that the first image file would fit."""
    file = (tree.images or tree.files)[0]
    folders, end = PurePosixPath(parent(file)).parts, ending(file) or PurePosixPath(file).suffix
    if not folders:
        return f"{{subject}}{end}"
    twice = [other for other in tree.images if stem(other) == stem(file)]
    last = ["{subject}", f"{{channel}}{end}"] if len(twice) > 1 or len(tree.images) == 1 else ["{label}", f"{{subject}}{end}"]
    before = ["{split}" if folder.lower() in SPLITS else "{_}" for folder in folders[:-1]]
    return "/".join([*before, *last])


def _compiled(pattern: str) -> re.Pattern[str]:
    text, seen, place = "", set(), 0
    for field in _FIELD.finditer(pattern):
        text += re.escape(pattern[place : field.start()])
        place, name = field.end(), field[1]
        if field[2]:
            text += "[^/]*"
        elif name == "_":
            text += "[^/]+"
        elif not name or not name.isidentifier():
            raise MedgenError(
                f"--pattern '{pattern}': {{{name}}} is no name; write {{subject}}, {{channel}}, {{split}}, {{label}} or a word of your own"
            )
        else:
            text += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
    text += re.escape(pattern[place:])
    if "subject" not in seen:
        raise MedgenError(
            f"--pattern '{pattern}': no {{subject}}; say which part of a path names the subject, such as '{{subject}}/{{channel}}.nii.gz'"
        )
    return re.compile(text)


def _split(table: Table, pattern: str) -> None:
    for row in table.rows:
        if "split" in row and row["split"].lower() not in SPLITS:
            raise MedgenError(
                f"--pattern '{pattern}': {{split}} is '{row['split']}'; expected {', '.join(SPLITS)}: give that part another name"
            )
        if "split" in row:
            row["split"] = SPLITS[row["split"].lower()]


def _nothing(tree: Tree, pattern: str) -> str:
    first = (tree.images or tree.files)[:3]
    more = "" if tree.images else "; and no file has an ending that medgen reads"
    return (
        f"--pattern '{pattern}' fits none of {len(tree.files)} files, such as {', '.join(first)}{more}; try --pattern '{suggested(tree)}'"
    )
