"""`medgen data scan`: a manifest of a folder, and what was recognised in it."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path, PurePosixPath

from medgen.data.columns import sidecar
from medgen.data.manifest import Manifest
from medgen.data.scan.scanner import Scan, scan
from medgen.data.scan.words import training_line
from medgen.data.scan.writing import free, write

SHOWN = 5  # files that are left out


def run(options: argparse.Namespace) -> None:
    """Write the CSV and its JSON and say what they hold."""
    path = Path(options.output)
    free([path, sidecar(path)], options.overwrite)  # before a long walk
    found = scan(options.folder, options.layout, options.pattern, options.columns_by)
    write(found, path, options.overwrite)
    written = f"manifest: {path} ({len(found.table.rows)} rows), columns described in {sidecar(path)}"
    print("\n".join([*lines(found), written, *training_line(Manifest.parse(path), found.table.columns)]))


def lines(found: Scan) -> list[str]:
    """What was recognised and why, subjects, columns, notes, what was left out."""
    table = found.table
    said = [f"layout: {found.layout} ({found.reason})", f"subjects: {len(found.subjects)}, rows: {len(table.rows)}"]
    if any("split" in row for row in table.rows):
        counts = Counter(row["split"] for row in table.rows)
        said.append("split: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    for name, column in table.columns.items():
        filled = sum(bool(row[name]) for row in table.rows)
        classes = (
            f"; {', '.join(f'{i} {c}' for i, c in enumerate(column.classes))}" if column.kind == "attribute" and column.classes else ""
        )
        kind = {"labels": "label map", "kspace": "k-space"}.get(column.kind, column.kind)
        said.append(
            f"column {name}: {kind}{f' ({column.modality})' if column.modality else ''}, {filled} of {len(table.rows)} cells{classes}"
        )
    said += [f"note: {note}" for note in table.notes]
    return said + _left_out(found)


def _left_out(found: Scan) -> list[str]:
    files = list(found.left_out.items())
    if not files:
        return ["left out: nothing"]
    kinds = Counter(PurePosixPath(file).suffix for file, _ in files)
    head = f"left out: {len(files)} files ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common(4))})"
    more = [f"  and {len(files) - SHOWN} more"] if len(files) > SHOWN else []
    return [head, *(f"  {file}: {why}" for file, why in files[:SHOWN]), *more]
