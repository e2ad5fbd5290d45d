"""What the built-in encoders learn from: drawn images, and the training subjects of real sets. Planes of colour images stand alone."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.core.intensity import CTWindow, IntensityMap, MRPercentile, UnitRange
from medgen.core.random import generator
from medgen.data.manifest import Manifest
from medgen.data.phantom.chest.source import ChestData
from medgen.data.phantom.histology.source import HistologyData
from medgen.data.phantom.source import PhantomData
from medgen.data.readers import read
from medgen.data.scan.scanner import scan
from medgen.data.scan.writing import write
from medgen.data.source import Source
from medgen.data.splitting import Plan, split

sys.path.insert(0, str(Path(__file__).parent))

Images = Mapping[str, list[Tensor]]  # set -> images (*S) of one channel in network units, float16
ABOUT = {
    "phantom": {"name": "medgen's drawn brains, chests and stained tissues", "licence": "Apache-2.0", "attribution": "medgen"},
    "ms_brain": {
        "name": "MS brain, patient07",
        "licence": "CC BY",
        "attribution": "Lesjak et al., Neuroinformatics 2017, doi 10.1007/s12021-017-9348-7",
    },
    "hippocampus": {
        "name": "Medical Segmentation Decathlon Task04 (hippocampus), 140 subjects",
        "licence": "CC BY-SA 4.0",
        "attribution": "Antonelli et al., Nature Communications 2022, doi 10.1038/s41467-022-30695-9",
    },
    "ct_chest": {
        "name": "TCGA-LUAD chest CT slices",
        "licence": "CC BY 3.0",
        "attribution": "The Cancer Imaging Archive, siim-medical-images",
    },
    "nuclei_he": {"name": "stained tiles of the 2018 Data Science Bowl, stage 1", "licence": "CC0", "attribution": "corrected by lopuhin"},
    "slide": {"name": "CMU-1-Small-Region", "licence": "CC0", "attribution": "OpenSlide test data"},
    "ultrasound_lung": {"name": "POCUS lung ultrasound", "licence": "CC BY 4.0", "attribution": "Born et al."},
    "chest_xray": {
        "name": "radiographs of covid-chestxray-dataset",
        "licence": "CC BY 3.0 and 4.0",
        "attribution": "ieee8023 and its sources",
    },
    "pneumoniamnist": {"name": "PneumoniaMNIST", "licence": "CC BY 4.0", "attribution": "Yang et al., MedMNIST v2, 2023"},
}
MOST = 1200  # images of a set
BRAIN, COLOURS = ("t1", "t2", "pd", "flair", "ct"), ("image_red", "image_green", "image_blue")
CONTRASTS = ("t1", "t1post", "t2", "flair")
SIZES = {2: {(64, 64): 40, (96, 96): 20, (128, 128): 20}, 3: {(48, 48, 48): 24, (64, 64, 64): 16}}  # size -> subjects


def drawn(dims: int, name: str = "train") -> Images:
    """A set per contrast, chest CT and (2D) the stains."""
    found: dict[str, list[Tensor]] = {}
    for size, count in SIZES[dims].items():
        subjects = {name: count}
        sources: list[tuple[str, Source, tuple[str, ...]]] = [("phantom_brain", PhantomData(BRAIN, size, subjects), BRAIN)]
        sources.append(("phantom_chest", ChestData(("ct",), size, {name: count // 2}), ("ct",)))
        if dims == 2:
            sources.append(("phantom_histology", HistologyData(COLOURS, size, {name: count // 2}, tiles=8), COLOURS))
        for label, source, channels in sources:
            cases, rng = source.split(name), generator(0)
            for i in range(len(cases)):
                case = cases.case(i, rng)
                for channel in channels:
                    key = label if channels == COLOURS else f"{label}_{channel}"
                    found.setdefault(key, []).append(torch.from_numpy(case[channel][0]).half())
    return found


def real(dims: int, data: Path) -> Images:
    """The sets that lie in the folder `data`; those that do not are left out.

    Who is for training is what `medgen data split` says by default, what the set itself says, or what the other benchmarks hold to.
    """
    sets = (
        (_ms_brain, _hippocampus) if dims == 3 else (_ms_brain_slices, _ct_chest, _nuclei_he, _slide, _ultrasound, _chest_xray, _pneumonia)
    )
    found: dict[str, list[Tensor]] = {}
    for each in sets:
        found |= each(data)
    return {name: _some(images) for name, images in found.items() if images}


def _ms_brain(data: Path) -> Images:
    """Whole volumes at 1 and 2 mm, in blocks; the second patient is the test set of docs/results/spine.md."""
    blocks = {}
    for name, volume in _ms_volumes(data):
        for scaled in (volume, smaller(volume, 2)):
            edge = 64 if scaled is volume else 48
            parts = [p for a in scaled.split(edge, 0) for b in a.split(edge, 1) for p in b.split(edge, 2)]
            parts = [p for p in parts if min(p.shape) >= 32 and float((p > -0.95).float().mean()) > 0.2]
            blocks.setdefault(f"ms_brain_{name}", []).extend(part.contiguous() for part in parts)
    return blocks


def _ms_brain_slices(data: Path) -> Images:
    """Every third plane across each axis at 1 mm, and axial ones at 2 mm."""
    found = {}
    for name, volume in _ms_volumes(data):
        planes = [volume.select(axis, i) for axis in range(3) for i in range(0, volume.shape[axis], 3)]
        half = smaller(volume, 2)
        planes += [half.select(2, i) for i in range(half.shape[2])]
        found[f"ms_brain_{name}"] = [p.contiguous() for p in planes if float((p > -0.95).float().mean()) > 0.1]
    return found


def _ms_volumes(data: Path) -> Iterable[tuple[str, Tensor]]:
    for row, manifest in _rows(data / "ms_brain", None):
        if row["subject"] == "patient07":
            for name in CONTRASTS:
                yield name, _image(manifest.file(row, name), MRPercentile())[0]


def _hippocampus(data: Path) -> Images:
    """The training subjects of docs/results/hippocampus.md."""
    from hippocampus import write_manifest

    if not (data / "hippocampus").is_dir():
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "hippocampus.csv"
        write_manifest(data / "hippocampus", path)
        manifest = Manifest.read(path).split("train")
        return {"hippocampus": [_image(manifest.file(row, "t1"), MRPercentile())[0] for row in manifest.rows]}


def _ct_chest(data: Path) -> Images:
    """Slices at about 0.7, 1.4 and 2.8 mm."""
    rule, found = CTWindow(floor=-1024.0), []
    for row, manifest in _rows(data / "ct_chest"):
        plane = _image(manifest.file(row, "image"), rule)[0].select(2, 0)
        found += [plane, smaller(plane, 2), smaller(plane, 4)]
    return {"ct_chest": found}


def _nuclei_he(data: Path) -> Images:
    images = [_image(manifest.file(row, "image"), UnitRange()) for row, manifest in _rows(data / "nuclei_he")]
    return {"nuclei_he": [plane for image in images for scaled in (image, smaller(image, 2)) for plane in scaled]}


def _slide(data: Path) -> Images:
    """Tiles of 128 pixels of the slide and of its half."""
    found = []
    for row, manifest in _rows(data / "slide", None):
        image = _image(manifest.file(row, "image"), UnitRange())
        for scaled in (image, smaller(image, 2)):
            found += [t.contiguous() for plane in scaled for a in plane.split(128) for t in a.split(128, 1) if min(t.shape) == 128]
    return {"slide": [tile for tile in found if float(tile.float().std()) > 0.1]}


def _ultrasound(data: Path) -> Images:
    """Every twentieth frame, at a quarter to half of its size."""
    found = []
    for row, manifest in _rows(data / "ultrasound_lung"):
        frames = _image(manifest.file(row, "image"), UnitRange())[0][::20]
        found += [smaller(frame, 4 if max(frame.shape) > 700 else 2) for frame in frames]
    return {"ultrasound_lung": [frame for frame in found if min(frame.shape) >= 64]}


def _chest_xray(data: Path) -> Images:
    images = [_image(manifest.file(row, "image"), UnitRange())[0] for row, manifest in _rows(data / "chest_xray")]
    return {"chest_xray": [smaller(image, factor) for image in images for factor in (2, 4)]}


def _pneumonia(data: Path) -> Images:
    rows = _rows(data / "pneumoniamnist", None)
    rows = [(row, manifest) for row, manifest in rows if row["split"] == "train"]
    chosen = generator(0).permutation(len(rows))[:MOST]
    return {"pneumoniamnist": [_image(rows[i][1].file(rows[i][0], "image"), UnitRange())[0] for i in chosen]}


def _rows(folder: Path, plan: Plan | None = Plan()) -> list[tuple[dict[str, str], Manifest]]:  # noqa: B008
    """The rows of a set's training subjects under `plan`, or all; none where the folder is not there."""
    if not folder.is_dir():
        return []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "manifest.csv"
        write(scan(folder), path)
        manifest = Manifest.read(path)
    placed = split(manifest, plan) if plan is not None else {}
    return [(row, manifest) for row in manifest.rows if placed.get(row["subject"], "train") == "train"]


def _image(cell: str | Path, rule: IntensityMap) -> Tensor:
    """(C, *S) in network units, float16."""
    array = read(cell).array
    return torch.from_numpy(rule.forward(array, **rule.fit(array))).half()


def smaller(image: Tensor, factor: int) -> Tensor:
    """Means of cells of `factor` voxels a side, over the last two axes (2D, also of planes) or all three."""
    pool = F.avg_pool3d if image.ndim == 3 and image.shape[0] > 3 else F.avg_pool2d
    dims = 3 if pool is F.avg_pool3d else 2
    stacked = image.float().reshape(1, -1, *image.shape[-dims:])
    return pool(stacked, factor).reshape(*image.shape[:-dims], *(n // factor for n in image.shape[-dims:])).half()


def _some(images: list[Tensor]) -> list[Tensor]:
    """At most `MOST`, chosen evenly."""
    every = -(-len(images) // MOST)
    return images[::every]
