"""Crops of the stained tissue tiles of nuclei_he (2018 Data Science Bowl, CC0) with their masks of nuclei, and a manifest.

`benchmarks/evaluate_zoo.py manifests` writes them; `experiment=nuclei_he` trains on them.
Many tiles of the set continue one another: they were cut from larger fields. A field lies in one split, or neighbours would
tell a model of a held-out tile.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SHARES = {"train": 0.60, "test": 0.33, "validation": 0.07}
SIDE, STRIDE = 64, 32  # of a crop and from crop to crop, in pixels of half the stored resolution
SEAM = 1.8  # times the change from row to row inside: neighbours' edges differ by 0.85 to 1.1, others' by 2.6 and more


def write_crops(data: Path, folder: Path) -> Path:
    """Cut DATA's tiles into `folder`, with `manifest.csv`: subject (the tile), split, field, image, nuclei (0 or 1)."""
    names = [path.stem for path in sorted((data / "images").glob("*.png"))]
    tiles = [np.asarray(Image.open(data / "images" / f"{name}.png").convert("RGB")) for name in names]
    fields = fields_of(tiles)
    split_of = _splits(tiles, fields)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "split", "field", "image", "nuclei"])
        for name, tile, field in zip(names, tiles, fields, strict=True):
            mask = np.asarray(Image.open(data / "masks" / f"{name}.png")) > 0
            image, nuclei = _halved(tile).round().astype(np.uint8), (_halved(mask) >= 0.5).astype(np.uint8)
            for top in range(0, len(image) - SIDE + 1, STRIDE):
                for left in range(0, image.shape[1] - SIDE + 1, STRIDE):
                    files = [f"{name}_{top}_{left}_{kind}.png" for kind in ("image", "nuclei")]
                    for picture, path in zip((image, nuclei), files, strict=True):
                        Image.fromarray(picture[top : top + SIDE, left : left + SIDE]).save(folder / path)
                    writer.writerow([name, split_of[field], f"field-{field:02d}", *files])
    return folder / "manifest.csv"


def fields_of(tiles: list[np.ndarray]) -> list[int]:
    """The number of the field that each tile (H, W, 3) was cut from: tiles whose edges continue one another share it."""
    group = list(range(len(tiles)))
    tops, lefts = ([tile.astype(float).transpose(order) for tile in tiles] for order in ((0, 1, 2), (1, 0, 2)))
    for turned in (tops, lefts):
        for i, above in enumerate(turned):
            for j, below in enumerate(turned):
                if i != j and _seam(above, below) < SEAM:
                    group = [group[j] if number == group[i] else number for number in group]
    return [sorted(set(group)).index(number) for number in group]


def _seam(above: np.ndarray, below: np.ndarray) -> float:
    """The change from `above`'s last row to `below`'s first, in units of the change from row to row inside."""
    inside = np.abs(above[-1] - above[-2]).mean() + np.abs(below[0] - below[1]).mean()
    return 2 * np.abs(above[-1] - below[0]).mean() / max(inside, 1e-9)


def _splits(tiles: list[np.ndarray], fields: list[int]) -> dict[int, str]:
    """Field -> split: fields by their stain, from red to blue, each to the split that lacks most tiles by now."""
    members = {field: [tile for tile, own in zip(tiles, fields, strict=True) if own == field] for field in set(fields)}
    hue = {field: float(np.mean([tile[..., 2].mean() - tile[..., 0].mean() for tile in own])) for field, own in members.items()}
    counts, chosen = dict.fromkeys(SHARES, 0), {}
    for field in sorted(members, key=hue.__getitem__):
        total = sum(counts.values()) + len(members[field])
        chosen[field] = max(SHARES, key=lambda split: SHARES[split] * total - counts[split])
        counts[chosen[field]] += len(members[field])
    return chosen


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels."""
    height, width = image.shape[:2]
    return image.reshape(height // 2, 2, width // 2, 2, *image.shape[2:]).mean((1, 3))
