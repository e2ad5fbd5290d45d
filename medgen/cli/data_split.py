"""`medgen data split`: a manifest with a column `split`, or one manifest per fold."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from medgen.core.errors import MedgenError
from medgen.data.check.finding import Data
from medgen.data.check.rules_table import classes_of
from medgen.data.columns import FILES, Column, columns_of, describe, sidecar
from medgen.data.manifest import Manifest
from medgen.data.scan.words import training_line
from medgen.data.scan.writing import as_cell, free, save, save_rows
from medgen.data.splitting import Plan, folds, split

NO_TEST = (1.0, 0.0, 0.0)


def run(options: argparse.Namespace) -> None:
    """Write the new manifest or manifests and print who went where."""
    manifest = Manifest.parse(options.manifest)
    if "split" in manifest.columns and not options.resplit:
        found = ", ".join(manifest.splits)
        raise MedgenError(f"{manifest.path} has a split already ({found}); pass --resplit to give it up")
    if "subject" not in manifest.columns or not manifest.rows:
        Manifest.read(manifest.path)  # says why
    columns = columns_of(manifest, {})
    fractions = tuple(options.fractions) if options.fractions else (NO_TEST if options.folds else Plan().fractions)
    plan = Plan(fractions, options.by, options.group, options.stratify, options.seed)
    output = Path(options.output)
    written = [output] if not options.folds else [output, *(_fold(output, k) for k in range(options.folds))]
    free([file for path in written for file in (path, sidecar(path))], options.overwrite)
    if options.folds:
        _folds(manifest, columns, plan, written)
    else:
        placed = split(manifest, plan)
        _write(manifest, columns, output, placed, {})
        print("\n".join(table(manifest, columns, placed)))
    print(f"manifest: {output}" + (f", and a manifest per fold: {written[1]} to {written[-1].name}" if options.folds else ""))
    print("\n".join(training_line(Manifest.parse(written[-1]), columns)))


def table(manifest: Manifest, columns: Mapping[str, Column], placed: Mapping[str, str]) -> list[str]:
    """Subjects, rows and classes of each split, tab-separated."""
    data = Data(manifest, dict(columns))
    named = {name: classes for name in data.of("attribute") if (classes := classes_of(data, name))}
    lines = ["\t".join(["split", "subjects", "rows", *named])]
    for part in dict.fromkeys(sorted(placed.values(), key=lambda p: ("train", "validation", "test", p).index(p))):
        rows = [row for row in manifest.rows if placed[row["subject"]] == part]
        counts = [Counter(row[name] for row in rows) for name in named]
        told = [" ".join(f"{cell or '-'}:{n}" for cell, n in sorted(count.items())) for count in counts]
        lines.append("\t".join([part, str(len({row["subject"] for row in rows})), str(len(rows)), *told]))
    return lines


def _folds(manifest: Manifest, columns: Mapping[str, Column], plan: Plan, written: list[Path]) -> None:
    """The table of all folds, and for each fold a manifest in which it is the validation split."""
    fold = folds(manifest, plan, len(written) - 1)
    named = {subject: "" if k is None else str(k) for subject, k in fold.items()}
    held = {subject: "test" if k is None else "train" for subject, k in fold.items()}
    _write(manifest, columns, written[0], held, named)
    for k, path in enumerate(written[1:]):
        placed = {subject: "validation" if fold[subject] == k else held[subject] for subject in fold}
        _write(manifest, columns, path, placed, named)
        print(f"fold {k}\n" + "\n".join(table(manifest, columns, placed)))


def _write(manifest: Manifest, columns: Mapping[str, Column], path: Path, placed: Mapping[str, str], fold: Mapping[str, str]) -> None:
    files = [name for name, column in columns.items() if column.kind in FILES]
    others = [name for name in manifest.columns if name not in ("subject", "split", "fold")]
    rows = []
    for row in manifest.rows:
        cells = {name: as_cell(manifest.file(row, name), path) for name in files if row[name]}
        rows.append({**row, **cells, "split": placed[row["subject"]], "fold": fold.get(row["subject"], "")})
    save_rows(path, ["subject", "split", *(["fold"] if fold else []), *others], rows)
    described = {name: column for name, column in columns.items() if name in others}
    save(sidecar(path), describe(described, source=str(manifest.path)))


def _fold(path: Path, k: int) -> Path:
    return path.with_name(f"{path.stem}_fold{k}{path.suffix}")
