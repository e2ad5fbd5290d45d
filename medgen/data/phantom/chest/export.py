"""Drawn chests as files: NIfTI volumes in Hounsfield units and a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medgen.core.volume import Volume
from medgen.data.columns import Column
from medgen.data.phantom.chest.anatomy import Chest
from medgen.data.phantom.chest.paint import TISSUES
from medgen.data.phantom.chest.scanner import Scanner
from medgen.data.phantom.chest.source import LABELS, ChestData, channel_values
from medgen.data.phantom.export import checked_splits, write_volumes

STORED = (-1024, 3071)  # what scanners keep of Hounsfield units in 12 bits


def write_chests(
    folder: str | Path,
    subjects: int = 4,
    channels: Sequence[str] = ("ct",),
    shape: Sequence[int] = (128, 128, 64),
    seed: int = 0,
    splits: Mapping[str, int] | None = None,
    scanner: Scanner | None = None,
) -> Path:
    """Write one NIfTI per subject and channel, CT in whole Hounsfield units, and a manifest.

    Args:
        folder: is created; existing files are refused.
        channels: any of ct, ct_low_dose, tissue, nodule.
        shape: of the volumes, which cover the scanner's field of view and 320 mm along z.
        splits: split -> number of subjects, adding up to `subjects`; by default one validation and one test subject.
        scanner: dose, noise, padding; the default one if None.

    Returns: path of `manifest.csv` with the columns subject, split, the channels, label, contrast and dose.
    """
    splits = checked_splits(splits, subjects)
    data = ChestData(channels=channels, size=tuple(shape), subjects=splits, seed=seed, scanner=scanner)

    def volumes(index: int) -> Iterable[tuple[str, Volume | float]]:
        chest, grid = Chest(data.seed, index), data.scanner.grid(data.size)
        stack = chest.stack(grid)
        for channel in data.channels:
            values = channel_values(data.scanner, chest, grid, stack, channel)
            label = channel in LABELS
            values = values.astype(np.uint8) if label else _stored(values, data.scanner.padding)
            yield channel, Volume(values[None], grid.affine, "label" if label else "HU")
        yield from data.attributes(chest).items()

    classes = {"tissue": TISSUES, "nodule": ("no nodule", "nodule")}
    columns = {name: Column("labels", classes=classes[name]) if name in LABELS else Column("image", "CT") for name in channels}
    columns |= {"label": Column("attribute", classes=("no nodule", "nodule")), "contrast": Column("attribute", classes=("none", "agent"))}
    return write_volumes(Path(folder), splits, columns | {"dose": Column("attribute")}, volumes)


def _stored(values: np.ndarray, padding: float | None) -> np.ndarray:
    """Whole Hounsfield units in a scanner's range; padding stays what it is."""
    whole = np.round(values)
    return np.where(whole == padding, whole, whole.clip(*STORED)).astype(np.float32)
