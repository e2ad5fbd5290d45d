"""MedMNIST: one .npz with arrays train_images, train_labels, val_images, ...; a row per image."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.columns import Column
from medgen.data.scan.layout import Layout, Match, Table, Tree, stem

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def fits(tree: Tree) -> Match | None:
    files = _files(tree)
    return Match(3, f"{files[0]} holds train_images or val_images and their labels, as MedMNIST does") if files else None


def read(tree: Tree) -> Table:
    files = _files(tree)
    if len(files) != 1:
        raise MedgenError(f"{tree.root}: expected one MedMNIST .npz, found {len(files)} ({', '.join(files)}); scan a folder that holds one")
    (file,) = files
    table = Table([], {"image": Column("image")})
    table.notes.append("MedMNIST names no patients: every image is its own subject, so patients may be shared between splits that you make")
    with np.load(tree.root / file, allow_pickle=False) as arrays:
        for key, split in _SPLITS.items():
            if f"{key}_images" in arrays.files:
                table.rows += _rows(tree.root / file, file, key, split, arrays)
    names = [name for name in dict.fromkeys(n for row in table.rows for n in row) if name.startswith("label")]
    known = {"pneumoniamnist": ("normal", "pneumonia")}.get(stem(file).split("_")[0], ())
    for name in names:
        table.columns[name] = Column("attribute", classes=known if name == "label" else ())
    return table


def _files(tree: Tree) -> list[str]:
    return [file for file in tree.files if file.lower().endswith(".npz") and _is_medmnist(tree.root / file)]


def _is_medmnist(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return any({f"{key}_images", f"{key}_labels"} <= names for key in _SPLITS)


def _rows(path: Path, file: str, key: str, split: str, arrays: np.lib.npyio.NpzFile) -> list[dict[str, str]]:
    labels = arrays[f"{key}_labels"] if f"{key}_labels" in arrays.files else None
    count = _length(path, f"{key}_images")
    if labels is not None and len(labels) != count:
        raise MedgenError(f"{path}: {count} {key}_images and {len(labels)} {key}_labels; copy it again")
    rows = []
    for i in range(count):
        row = {"subject": f"{key}_{i:06d}", "split": split, "image": f"{file}#{key}_images/{i}"}
        if labels is not None:
            values = np.ravel(labels[i])
            row.update({"label" if values.size == 1 else f"label_{j}": f"{value:g}" for j, value in enumerate(values)})
        rows.append(row)
    return rows


def _length(path: Path, name: str) -> int:
    """The first axis of an array of the archive, from its header."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        reads = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return int(reads(file)[0][0])


LAYOUT = Layout("medmnist", "MedMNIST: one .npz, a row per image with its label and split", fits, read)
