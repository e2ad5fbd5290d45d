"""Write report.html and report.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from medgen.core.errors import MedgenError
from medgen.core.volume import folder_for
from medgen.data.check.checker import Checked, Progress, source
from medgen.data.check.document import document
from medgen.data.check.page import page
from medgen.data.check.pictures import Views, draw
from medgen.data.columns import FILES
from medgen.data.workers import Failure, each

SAMPLE = 8  # rows that show what the set looks like
_MOST = 60  # rows that are drawn


def paths(folder: str | Path, overwrite: bool = False) -> tuple[Path, Path]:
    """report.html and report.json of a folder, which is made.

    Raises:
        MedgenError: one of them exists and `overwrite` is not set.
    """
    made = Path(folder) / "report.html", Path(folder) / "report.json"
    for path in made:
        if path.exists() and not overwrite:
            raise MedgenError(f"{path} exists; choose another folder or pass --overwrite")
    folder_for(Path(folder))
    return made


def write(
    checked: Checked, folder: str | Path, overwrite: bool = False, workers: int = 1, progress: Progress | None = None
) -> tuple[Path, Path]:
    """Draw what is worth a look, and write the page and the JSON."""
    html, plain = paths(folder, overwrite)
    told = document(checked)
    pictures, sample = drawn(checked, workers, progress)
    plain.write_text(as_json(told), encoding="utf-8")
    html.write_text(page(checked, told, pictures, sample), encoding="utf-8")
    return html, plain


def as_json(told: Any) -> str:
    """JSON without NaN: what is not finite becomes null."""
    return json.dumps(_finite(told), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def drawn(checked: Checked, workers: int, progress: Progress | None = None) -> tuple[dict[tuple[int, str], bytes], list[int]]:
    """(row, column) -> PNG for a sample of the rows and for what findings show; and the sample."""
    data, names = checked.data, checked.data.of(*FILES)
    count = min(SAMPLE, len(data.rows))
    sample = [round(i * (len(data.rows) - 1) / max(1, count - 1)) for i in range(count)]
    wanted = {row: list(names) for row in sample}
    for row, column in (place for finding in checked.findings for place in finding.shown):
        if row in wanted or len(wanted) < _MOST:
            wanted.setdefault(row, [])
            wanted[row] += [column] if column not in wanted[row] else []
    rows = list(wanted)
    views = [
        Views(tuple((c, source(data, row, c), data.columns[c].kind) for c in wanted[row] if c in data.rows[row].images)) for row in rows
    ]
    made: dict[tuple[int, str], bytes] = {}
    for done, (place, result) in enumerate(each(draw, views, workers), 1):
        if progress:
            progress("drawing", done, len(views))
        if not isinstance(result, Failure):
            made.update({(rows[place], column): png for column, png in result.items()})
    return made, sample


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
