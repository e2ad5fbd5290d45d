"""A row per study with a column per series description (or any other text), out of a row per series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, count

from medgen.core.errors import MedgenError, nearest
from medgen.data.columns import FILES, MODALITY_OF, Column, channel
from medgen.data.scan.layout import Table, shortened

_TOGETHER = ("study", "session")  # columns that tell the examinations of a subject apart
_Row = Mapping[str, str]


def columns_by(table: Table, name: str) -> Table:
    """The table's images side by side: rows of one subject, split and study become one, and each text of column `name` a column.

    Of several images with one text in a study, the first one is in the study's row and the others are in further rows of it. Columns that
    do not say the same of all images of a row are left out.

    Raises:
        MedgenError: there is no such column, or the table has several columns of images already.
    """
    images = [column for column, told in table.columns.items() if told.kind in FILES]
    if len(images) != 1:
        raise MedgenError(f"--columns-by is for rows of one image each, and these have {', '.join(images) or 'none'}; leave it out")
    others = [column for column in table.columns if column != images[0]]
    if name not in others:
        raise MedgenError(f"--columns-by {name}: no such column; {nearest(name, others)}")
    texts = {id(row): _text(table.columns[name], row.get(name, "")) for row in table.rows}
    studies: dict[tuple[str, ...], list[_Row]] = {}
    for row in table.rows:
        studies.setdefault((row["subject"], row.get("split", ""), *(row.get(key, "") for key in _TOGETHER)), []).append(row)
    kept = [column for column in others if column != name and all(len({row[column] for row in rows}) == 1 for rows in studies.values())]
    names = _named(dict.fromkeys(texts.values()), images[0], taken=("subject", "split", *kept))
    made = Table([], {}, list(table.notes), left_out=dict(table.left_out))
    for text, column in names.items():
        rows = [row for row in table.rows if texts[id(row)] == text]
        made.columns[column] = Column(table.columns[images[0]].kind, _modality(table, rows), about=text)
    made.columns |= {column: table.columns[column] for column in kept}
    again: dict[str, list[str]] = {}
    for rows in studies.values():
        _side_by_side(made, rows, [names[texts[id(row)]] for row in rows], images[0], kept, again)
    _tell(made, names, again, [column for column in others if column not in (name, *kept)])
    return made


def _side_by_side(
    made: Table, rows: Sequence[_Row], columns: Sequence[str], image: str, kept: Sequence[str], again: dict[str, list[str]]
) -> None:
    """Add the rows of a study; who has a column more than once is noted in `again`."""
    shared = {key: rows[0][key] for key in ("subject", "split", *kept) if key in rows[0]}
    joined: list[dict[str, str]] = []
    for row, column in zip(rows, columns, strict=True):
        home = next((other for other in joined if column not in other), None)
        if home is None:
            if joined:
                again.setdefault(column, []).append(row["subject"])
            joined.append(home := dict(shared))
        elif home is not joined[0]:
            again.setdefault(column, []).append(row["subject"])
        home[column] = row[image]
    made.rows += joined


def _text(column: Column, cell: str) -> str:
    """What a cell says: the name of its class, where it is one."""
    return column.classes[int(cell)] if column.classes and cell else cell


def _named(texts: Sequence[str] | Mapping[str, None], image: str, taken: Sequence[str]) -> dict[str, str]:
    """Text -> a column's name of its own."""
    names: dict[str, str] = {}
    for text in texts:
        base = channel(text) if text else image
        tries = chain([base], (f"{base}_{k}" for k in count(2)))
        names[text] = next(word for word in tries if word not in (*taken, *names.values()))
    return names


def _modality(table: Table, rows: Sequence[_Row]) -> str | None:
    words = {_text(table.columns["modality"], row["modality"]) for row in rows} if "modality" in table.columns else set()
    return MODALITY_OF.get(words.pop()) if len(words) == 1 else None


def _tell(made: Table, names: Mapping[str, str], again: Mapping[str, Sequence[str]], dropped: Sequence[str]) -> None:
    renamed = [f"{column} ('{text}')" for text, column in names.items() if text != column]
    if renamed:
        made.notes.append(f"columns are named after their text: {shortened(renamed, 12)}")
    for column, subjects in again.items():
        made.notes.append(f"{column} is there more than once in a study ({shortened(list(subjects))}): the others are rows of their own")
    if dropped:
        made.notes.append(f"left out, as they differ between the images of a row: {', '.join(dropped)}")
