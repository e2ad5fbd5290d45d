"""Phantoms as files: NIfTI volumes and a manifest, as a user's own data would lie on disk."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.phantom.anatomy import Brain
from medgen.data.phantom.drawn import FIRST
from medgen.data.phantom.grid import Grid
from medgen.data.phantom.source import LABELS, PhantomData


def write_phantoms(
    folder: str | Path,
    subjects: int = 4,
    channels: Sequence[str] = ("t1", "t2"),
    shape: Sequence[int] = (64, 72, 64),
    seed: int = 0,
    splits: Mapping[str, int] | None = None,
) -> Path:
    """Write one NIfTI per subject and channel and a manifest with the columns subject, split and the channels.

    Args:
        folder: is created; existing files are refused.
        shape: of the volumes; the field of view is 224 mm in every direction, so the voxels follow from it.
        splits: split -> number of subjects, adding up to `subjects`; by default one validation and one test subject.

    Returns: path of `manifest.csv`; its image paths are relative to it.
    """
    splits = dict(splits) if splits is not None else _default_splits(subjects)
    if sum(splits.values()) != subjects:
        raise MedgenError(f"splits {splits} hold {sum(splits.values())} subjects; expected {subjects}")
    data = PhantomData(channels=channels, size=tuple(shape), subjects=splits, seed=seed)
    manifest = Path(folder) / "manifest.csv"
    if manifest.exists():
        raise MedgenError(f"{manifest} exists; choose another folder")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    names = [(split, FIRST[split] + i) for split, count in splits.items() for i in range(count)]
    rows = [_write_subject(manifest.parent, data, f"sub-{n:02d}", split, index) for n, (split, index) in enumerate(names)]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", "split", *channels])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def _default_splits(subjects: int) -> dict[str, int]:
    if subjects < 3:
        raise MedgenError(f"{subjects} subjects cannot fill train, validation and test; ask for at least 3, or pass splits")
    return {"train": subjects - 2, "validation": 1, "test": 1}


def _write_subject(folder: Path, data: PhantomData, subject: str, split: str, index: int) -> dict[str, str]:
    brain = Brain(data.seed, index)
    grid = Grid.centred(data.size)
    stack = brain.stack(grid)
    row = {"subject": subject, "split": split}
    for channel in data.channels:
        row[channel] = f"{subject}/{channel}.nii.gz"
        _volume(data, brain, grid, stack, channel).save(folder / row[channel])
    return row


def _volume(data: PhantomData, brain: Brain, grid: Grid, stack: np.ndarray, channel: str) -> Volume:
    if channel in LABELS:
        values = stack.argmax(0) if channel == "tissue" else brain.lesion(grid)
        return Volume(values.astype(np.uint8)[None], grid.affine, "label")
    image = data.image(brain, grid, stack, channel)
    image = np.round(image) if channel == "ct" else image * 1000.0
    return Volume(image.astype(np.float32)[None], grid.affine, "HU" if channel == "ct" else "arbitrary (MR)")
