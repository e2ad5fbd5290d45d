"""Drawn H&E tiles as files: colour PNG, label maps, 16-bit instance masks, and a manifest, as a user's own data would lie on disk."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.columns import Column, describe, sidecar
from medgen.data.phantom.drawn import FIRST
from medgen.data.phantom.histology.source import HistologyData
from medgen.data.phantom.histology.stain import DOMAINS
from medgen.data.phantom.histology.tissue import CLASSES, TISSUES

_COLUMNS = {
    "image": Column("image", "picture"),
    "tissue": Column("labels", classes=TISSUES),
    "nuclei": Column("labels", classes=("no nucleus", "nucleus")),
    "instances": Column("labels", about="numbered nuclei"),
    "class": Column("text"),
    "label": Column("attribute", classes=CLASSES),
    "domain": Column("attribute", classes=tuple(DOMAINS)),
    "density": Column("attribute"),
    "caption": Column("text"),
}


def write_tiles(
    folder: str | Path,
    splits: Mapping[str, int] | None = None,
    tiles: int = 4,
    size: Sequence[int] = (256, 256),
    seed: int = 0,
    mpp: float = 0.5,
    domains: Sequence[str] = tuple(DOMAINS),
) -> Path:
    """Write tiles and a manifest with one row per tile.

    Args:
        folder: is created; a manifest in it is refused.
        splits: split -> number of subjects; by default two for training, one for validation, one for testing.
        tiles: per subject.
        size, seed, mpp, domains: as in `HistologyData`.

    Returns: path of `manifest.csv`. Its column `class` is a word and `label` its number; `domain` is a number; paths are relative to it.
    """
    splits = dict(splits) if splits is not None else {"train": 2, "validation": 1, "test": 1}
    data = HistologyData(size=size, subjects=splits, tiles=tiles, seed=seed, mpp=mpp, domains=domains)
    manifest = Path(folder) / "manifest.csv"
    if manifest.exists():
        raise MedgenError(f"{manifest} exists; choose another folder")
    subjects = [(split, FIRST[split] + i) for split, count in splits.items() for i in range(count)]
    rows = [_write(data, manifest.parent, f"sub-{n:02d}", split, index) for n, (split, index) in enumerate(subjects)]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", "split", *_COLUMNS])
        writer.writeheader()
        writer.writerows(row for subject in rows for row in subject)
    sidecar(manifest).write_text(describe(_COLUMNS))
    return manifest


def _write(data: HistologyData, folder: Path, subject: str, split: str, index: int) -> list[dict[str, Any]]:
    (folder / subject).mkdir(parents=True, exist_ok=True)
    return [{"subject": subject, "split": split, **_tile(data, folder, subject, index, number)} for number in range(data.tiles)]


def _tile(data: HistologyData, folder: Path, subject: str, index: int, number: int) -> dict[str, Any]:
    from PIL import Image

    tile, name = data.tile(index, number)
    colour = np.moveaxis(data.image(tile, index, number, data.domain_of(index)), 0, -1)
    pictures = {
        "image": colour.round().astype(np.uint8),
        "tissue": tile.tissue.astype(np.uint8),
        "nuclei": (tile.instances > 0).astype(np.uint8),
        "instances": tile.instances.astype(np.uint16),
    }
    row: dict[str, Any] = {column: f"{subject}/{number:03d}_{column}.png" for column in pictures}
    for column, picture in pictures.items():
        Image.fromarray(picture).save(folder / row[column])
    return row | {"class": name, "label": CLASSES.index(name), **data.said(tile, name, index)}
