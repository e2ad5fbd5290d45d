"""Phantoms as files: NIfTI volumes and a manifest, as a user's own data would lie on disk."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.columns import Column, describe, sidecar
from medgen.data.phantom.anatomy import Brain
from medgen.data.phantom.drawn import FIRST
from medgen.data.phantom.grid import Grid
from medgen.data.phantom.paint import NAMES
from medgen.data.phantom.source import LABELS, PhantomData


def write_phantoms(
    folder: str | Path,
    subjects: int = 4,
    channels: Sequence[str] = ("t1", "t2", "tissue"),
    shape: Sequence[int] = (64, 72, 64),
    seed: int = 0,
    splits: Mapping[str, int] | None = None,
) -> Path:
    """Write one NIfTI per subject and channel of heads, and a manifest with the columns subject, split, the channels and label (1 for a
    head with a lesion).

    Args:
        folder: is created; existing files are refused.
        channels: of t1, t2, pd, flair, ct (images), tissue, lesion (label maps).
        shape: of the volumes; the field of view is 224 mm in every direction, so the voxels follow from it.
        splits: split -> number of subjects, adding up to `subjects`; by default one validation and one test subject.

    Returns: path of `manifest.csv`; its image paths are relative to it.
    """
    splits = checked_splits(splits, subjects)
    data = PhantomData(channels=channels, size=tuple(shape), subjects=splits, seed=seed)

    def volumes(index: int) -> Iterable[tuple[str, Volume | float]]:
        brain, grid = Brain(data.seed, index), Grid.centred(data.size)
        stack = brain.stack(grid)
        yield from ((channel, _volume(data, brain, grid, stack, channel)) for channel in data.channels)
        yield "label", int(brain.has_lesion)

    columns = {name: _column(name) for name in channels}
    return write_volumes(Path(folder), splits, columns | {"label": Column("attribute", classes=("healthy", "lesion"))}, volumes)


def checked_splits(splits: Mapping[str, int] | None, subjects: int) -> dict[str, int]:
    """`splits` if they add up to `subjects`; by default one validation and one test subject."""
    if splits is None and subjects < 3:
        raise MedgenError(f"{subjects} subjects cannot fill train, validation and test; ask for at least 3, or pass splits")
    splits = dict(splits) if splits is not None else {"train": subjects - 2, "validation": 1, "test": 1}
    if sum(splits.values()) != subjects:
        raise MedgenError(f"splits {splits} hold {sum(splits.values())} subjects; expected {subjects}")
    return splits


def write_volumes(
    folder: Path, splits: Mapping[str, int], columns: Mapping[str, Column], subject: Callable[[int], Iterable[tuple[str, Volume | float]]]
) -> Path:
    """Save what `subject(index)` gives by column, volumes as files and the rest as cells of the manifest, and return its path."""
    manifest = folder / "manifest.csv"
    if manifest.exists():
        raise MedgenError(f"{manifest} exists; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    places = [(split, FIRST[split] + i) for split, count in splits.items() for i in range(count)]
    rows = []
    for n, (split, index) in enumerate(places):
        row: dict[str, Any] = {"subject": f"sub-{n:02d}", "split": split}
        for column, value in subject(index):
            row[column] = value
            if isinstance(value, Volume):
                row[column] = f"{row['subject']}/{column}.nii.gz"
                value.save(folder / row[column])
        rows.append(row)
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", "split", *columns])
        writer.writeheader()
        writer.writerows(rows)
    sidecar(manifest).write_text(describe(columns))
    return manifest


def _column(channel: str) -> Column:
    if channel in LABELS:
        return Column("labels", classes=NAMES if channel == "tissue" else ("no lesion", "lesion"))
    return Column("image", "CT" if channel == "ct" else "MR")


def _volume(data: PhantomData, brain: Brain, grid: Grid, stack: np.ndarray, channel: str) -> Volume:
    if channel in LABELS:
        values = stack.argmax(0) if channel == "tissue" else brain.lesion(grid)
        return Volume(values.astype(np.uint8)[None], grid.affine, "label")
    image = data.image(brain, grid, stack, channel)
    image = np.round(image) if channel == "ct" else image * 1000.0
    return Volume(image.astype(np.float32)[None], grid.affine, "HU" if channel == "ct" else "arbitrary (MR)")
