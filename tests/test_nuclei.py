"""The crops of stained tiles: benchmarks/nuclei.py."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BLOCK = (64, 96)  # of a tile; its crops have half the resolution


@pytest.fixture(scope="module")
def nuclei():
    spec = importlib.util.spec_from_file_location("nuclei", Path(__file__).parents[1] / "benchmarks" / "nuclei.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def field(seed: int, down: int, across: int) -> np.ndarray:
    """A smooth colour picture of `down` x `across` tiles."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4 * down, 4 * across, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((BLOCK[1] * across, BLOCK[0] * down), Image.Resampling.BICUBIC))


def cut(picture: np.ndarray) -> list[np.ndarray]:
    return [part for row in np.split(picture, picture.shape[0] // BLOCK[0]) for part in np.split(row, row.shape[1] // BLOCK[1], axis=1)]


def test_tiles_that_continue_one_another_are_one_field(nuclei):
    """Two by two, a row of three and a single one, shuffled: who belongs together is found, also along a chain."""
    tiles = [*cut(field(0, 2, 2)), *cut(field(1, 1, 3)), *cut(field(2, 1, 1))]
    truth, order = [0, 0, 0, 0, 1, 1, 1, 2], np.random.default_rng(3).permutation(8)
    found = nuclei.fields_of([tiles[i] for i in order])
    pairs = [(found[i] == found[j], truth[order[i]] == truth[order[j]]) for i in range(8) for j in range(8)]
    assert all(together == expected for together, expected in pairs) and len(set(found)) == 3


def test_crops_cover_tiles_and_a_field_lies_in_one_split(nuclei, tmp_path, monkeypatch):
    monkeypatch.setattr(nuclei, "SIDE", 32)
    monkeypatch.setattr(nuclei, "STRIDE", 16)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    tiles = [tile for seed in range(12) for tile in cut(field(seed, 1, 2))]
    for i, tile in enumerate(tiles):
        mask = np.zeros(BLOCK, np.uint16)
        mask[10:31, 20:44] = 300 + i  # half resolution: rows 5 to 15 (row 15 by half), columns 10 to 22
        Image.fromarray(tile).save(tmp_path / "images" / f"{i:02d}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i:02d}.png")
    rows = list(csv.DictReader(nuclei.write_crops(tmp_path, tmp_path / "out").open()))
    assert len(rows) == 24 * 2  # columns 0 and 16 of a tile that is 32 x 48 at half resolution
    splits = {name: {row["split"] for row in rows if row["field"] == name} for name in {row["field"] for row in rows}}
    assert len(splits) == 12 and all(len(own) == 1 for own in splits.values())
    tiles_in = {name: len({row["subject"] for row in rows if row["split"] == name}) for name in nuclei.SHARES}
    assert tiles_in == {"train": 14, "test": 8, "validation": 2}
    second = next(row for row in rows if row["subject"] == "03" and "_16_" in row["image"])
    image, mask = (np.asarray(Image.open(tmp_path / "out" / second[name])).astype(float) for name in ("image", "nuclei"))
    expected = tiles[3].astype(float).reshape(32, 2, 48, 2, 3).mean((1, 3))[:, 16:]
    assert np.abs(image - expected).max() <= 0.5
    assert np.argwhere(mask == 1).min(0).tolist() == [5, 0] and np.argwhere(mask == 1).max(0).tolist() == [15, 5]
    assert set(np.unique(mask)) == {0, 1}
