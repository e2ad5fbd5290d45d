"""A scan as a CSV and the JSON that describes its columns."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medgen.core.errors import MedgenError
from medgen.core.volume import folder_for
from medgen.data.columns import FILES, KINDS, describe, sidecar
from medgen.data.scan.scanner import Scan


def write(scan: Scan, path: str | Path, overwrite: bool = False) -> Path:
    """The manifest at `path`. Files below its own folder are written relative to it, others with their whole path.

    Raises:
        MedgenError: the CSV or its JSON exists and `overwrite` is not set; a place that cannot be written.
    """
    path = Path(path)
    free([path, sidecar(path)], overwrite)
    columns = dict(sorted(scan.table.columns.items(), key=lambda item: KINDS.index(item[1].kind)))
    rows = [
        {**row, **{name: _cell(scan.root, row[name], path) for name, c in columns.items() if c.kind in FILES}} for row in scan.table.rows
    ]
    split = ["split"] if any("split" in row for row in rows) else []
    save_rows(path, ["subject", *split, *columns], rows)
    save(sidecar(path), describe(columns, layout=scan.layout, source=str(scan.root)))
    return path


def free(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace files, and make their folders."""
    for path in paths:
        if path.is_dir():
            raise MedgenError(f"{path} is a folder; give a file name such as {path / 'manifest.csv'}")
        if path.exists() and not overwrite:
            raise MedgenError(f"{path} exists; choose another name or pass --overwrite")
        folder_for(path.parent)


def save_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """A CSV in UTF-8, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: row[name] for name in columns} for row in rows)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def as_cell(file: Path, manifest: Path) -> str:
    """How a manifest names a file: relative where it is below the manifest's folder."""
    whole, folder = Path(os.path.abspath(file)), Path(os.path.abspath(manifest)).parent
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else whole.as_posix()


def _cell(root: Path, cell: str, manifest: Path) -> str:
    return as_cell(root / cell, manifest) if cell else ""
