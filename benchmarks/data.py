"""How fast images reach training, beside MONAI, TorchIO and a bare memory map; writes docs/results/data.md.

Usage: python benchmarks/data.py [--rounds 5] [--data FOLDER] [-o docs/results/data.md]

FOLDER holds T1.nii.gz and T2.nii.gz at any depth; without it heads are drawn. All rows of one kind run in turn, round after round.
TorchIO is measured where it can be imported.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import nibabel
import numpy as np
import torch
from _measure import Row
from torch.utils.data import DataLoader, Dataset

from medgen.data.files import FileData
from medgen.data.module import DataModule
from medgen.data.options import Keep, Options

SHAPE, PATCH, BATCH = (182, 218, 182), (64, 64, 64), 4
RULE = {"t1": {"name": "mr_percentile"}}
HEAD = """# Feeding

Written by `python benchmarks/data.py`. Volumes of {shape} voxels ({what}), batches of 4. One thread a process; in each round every
candidate makes its batches in turn; medians of wall time, of processor time for preparation. "Bare" cuts views out of float32 volumes
mapped by `numpy.memmap` and stacks them: it carries no geometry, no subject and no seed of a sample, and is the limit. What a reader
holds does not grow with the data: `tests/test_store.py` reads a store of 1.2 GB everywhere in a process that may take 200 MB of its own.
{machine}

| what | measured | target | |
| --- | --- | --- | --- |"""


class Bare(Dataset):
    """Random crops, or axial slices, of mapped float32 volumes, stacked into a batch by one copy, and nothing else."""

    def __init__(self, paths: Sequence[Path], slices: bool = False):
        self.maps, self.slices = [np.load(path, mmap_mode="r") for path in paths], slices

    def __len__(self) -> int:
        return 1 << 20

    def __getitems__(self, indices: Sequence[int]) -> list[np.ndarray]:
        rng = np.random.default_rng(indices[0])
        return [self._one(rng) for _ in indices]

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        volume = self.maps[int(rng.integers(len(self.maps)))]
        if self.slices:
            return volume[int(rng.integers(len(volume)))][None]
        x, y, z = (int(rng.integers(n - m + 1)) for n, m in zip(volume.shape, PATCH, strict=True))
        return volume[x : x + 64, y : y + 64, z : z + 64][None]


def stacked(views: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(views))


def bare(dataset: Dataset, workers: int = 0) -> Iterator:
    """Batches without end."""
    return iter(DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0, collate_fn=stacked))


def ours(manifest: Path, size: Sequence[int], workers: int = 0) -> Iterator:
    module = DataModule(FileData(str(manifest), RULE, size, options=Options(min_foreground=0.0)), batch_size=BATCH, workers=workers)
    module.resume(0, None, interval=1 << 30)
    return iter(module.train_dataloader())


def monai(files: Sequence[Path], kind: str, folder: Path, slices: bool = False) -> Iterator:
    """MONAI's data sets with the transforms of a usual recipe: the deterministic part is what they cache."""
    from monai.data import CacheDataset, PersistentDataset
    from monai.data import DataLoader as Loader
    from monai.data import Dataset as Plain
    from monai.transforms import Compose, RandSpatialCropd, SqueezeDimd

    crop = RandSpatialCropd("t1", (-1, -1, 1) if slices else PATCH, random_size=False)
    transform = Compose([*monai_preparation(), crop, *([SqueezeDimd("t1", -1)] if slices else [])])
    items = [{"t1": str(path)} for path in files]
    dataset = {
        "Dataset": lambda: Plain(items, transform),
        "CacheDataset": lambda: CacheDataset(items, transform, progress=False, num_workers=0),
        "CacheDataset without copies": lambda: CacheDataset(items, transform, progress=False, num_workers=0, copy_cache=False),
        "PersistentDataset": lambda: PersistentDataset(items, transform, cache_dir=folder / "persistent"),
    }[kind]()
    return itertools.chain.from_iterable(Loader(_Repeated(dataset), batch_size=BATCH) for _ in itertools.count())


def monai_preparation() -> list:
    from monai.transforms import EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityRangePercentilesd

    scale = ScaleIntensityRangePercentilesd("t1", 0, 99, -1, 1, clip=False)
    return [LoadImaged("t1"), EnsureChannelFirstd("t1"), Orientationd("t1", axcodes="RAS"), scale]


class _Repeated(Dataset):
    """A small data set that a loader does not come to the end of."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int):
        return self.dataset[index % len(self.dataset)]


def torchio(files: Sequence[Path]) -> Iterator:
    import torchio as tio

    preload = [tio.Subject(t1=tio.ScalarImage(tensor=tio.ScalarImage(path).data.float())) for path in files]
    queue = tio.Queue(tio.SubjectsDataset(preload), 64, 16, tio.UniformSampler(PATCH), num_workers=0)
    return itertools.chain.from_iterable(tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0) for _ in itertools.count())


def rates(candidates: Mapping[str, tuple[Iterator, int]], rounds: int) -> dict[str, float]:
    """Images a second of each: median over the rounds. A candidate is its batches and how many of them a round takes."""
    for batches, _ in candidates.values():
        next(batches), next(batches)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, (batches, count) in candidates.items():
            began = time.perf_counter()
            for _ in range(count):
                next(batches)
            seconds[name].append((time.perf_counter() - began) / count)
    return {name: BATCH / statistics.median(times) for name, times in seconds.items()}


def crops(files: Sequence[Path], manifest: Path, folder: Path, rounds: int) -> Iterator[Row]:
    arrays = bare_arrays(files, folder / "bare", slices=False)
    candidates = {
        "bare": (bare(Bare(arrays)), 50),
        "medgen": (ours(manifest, PATCH), 50),
        "MONAI Dataset": (monai(files, "Dataset", folder), 1),
        "CacheDataset": (monai(files, "CacheDataset", folder), 3),
        "CacheDataset without copies": (monai(files, "CacheDataset without copies", folder), 20),
        "PersistentDataset": (monai(files, "PersistentDataset", folder), 5),
    }
    with contextlib.suppress(ImportError):
        candidates["TorchIO queue"] = (torchio(files), 10)
    found = rates(candidates, rounds)
    told = ", ".join(f"{name} {rate:.0f}" for name, rate in found.items())
    share, times = found["medgen"] / found["bare"], found["medgen"] / found["CacheDataset"]
    yield Row(
        "64^3 crops/s, one process",
        f"{share:.2f} x bare, {times:.0f} x CacheDataset; {told}",
        "0.65 x, 10 x",
        share >= 0.65 and times >= 10,
    )
    found = rates({"bare": (bare(Bare(arrays), 2), 100), "medgen": (ours(manifest, PATCH, 2), 100)}, rounds)
    share = found["medgen"] / found["bare"]
    told = ", ".join(f"{name} {rate:.0f}" for name, rate in found.items())
    yield Row("64^3 crops/s, 2 workers", f"{share:.2f} x bare; {told}", "0.55 x", share >= 0.55)


def slices(files: Sequence[Path], manifest: Path, folder: Path, rounds: int) -> Iterator[Row]:
    arrays = bare_arrays(files, folder / "bare_slices", slices=True)
    candidates = {
        "bare": (bare(Bare(arrays, slices=True)), 100),
        "medgen": (ours(manifest, SHAPE[:2]), 100),
        "CacheDataset": (monai(files, "CacheDataset", folder, slices=True), 3),
        "CacheDataset without copies": (monai(files, "CacheDataset without copies", folder, slices=True), 20),
    }
    found = rates(candidates, rounds)
    told = ", ".join(f"{name} {rate:.0f}" for name, rate in found.items())
    share, times = found["medgen"] / found["bare"], found["medgen"] / found["CacheDataset"]
    yield Row("axial slices/s", f"{share:.2f} x bare, {times:.0f} x CacheDataset; {told}", "0.65 x, 40 x", share >= 0.65 and times >= 40)


def preparation(files: Sequence[Path], folder: Path, rounds: int) -> Iterator[Row]:
    """A volume from its file to what training reads: as arrays in memory, and on disk."""
    from monai.data import PersistentDataset
    from monai.transforms import Compose

    import medgen.data.formats.nifti as nifti

    pipeline, path = Compose(monai_preparation()), files[0]
    one, count = folder / "one.csv", itertools.count()
    one.write_text(f"subject,t1\na,{path.resolve()}\n")

    def prepare(place: str) -> None:
        FileData(str(one), RULE, PATCH, options=Options(keep=Keep(place, workers=0))).prepared("train")

    def without_isal() -> None:
        with plain_gzip(nifti):
            prepare("memory")

    found = processor_times(
        {"medgen": lambda: prepare("memory"), "medgen without isal": without_isal, "MONAI": lambda: pipeline({"t1": str(path)})}, rounds
    )
    told = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in found.items())
    fast, plain = (found["MONAI"] / found[name] for name in ("medgen", "medgen without isal"))
    what = f"preparing one volume of {path.stat().st_size / 1e6:.1f} MB in memory"
    yield Row(what, f"{fast:.2f} x as fast as MONAI, {plain:.2f} x without isal; {told}", "1.5 x, 1.2 x", fast >= 1.5 and plain >= 1.2)

    def store() -> None:
        prepare(str(folder / f"store{next(count)}"))

    def persistent() -> None:
        PersistentDataset([{"t1": str(path)}], pipeline, cache_dir=folder / f"cache{next(count)}")[0]

    found = processor_times({"medgen's store": store, "PersistentDataset": persistent}, rounds)
    told = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in found.items())
    gain = found["PersistentDataset"] / found["medgen's store"]
    yield Row("the same onto disk, with a hash of the content", f"{gain:.2f} x as fast as PersistentDataset; {told}", "faster", gain > 1)
    yield Row(
        "the same values", f"largest difference {difference(path, pipeline):.1e} of the scale", "1e-3", difference(path, pipeline) < 1e-3
    )


def processor_times(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds, the first round left out."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def difference(path: Path, pipeline: Callable) -> float:
    """Between MONAI's volume and ours, both scaled so that the largest value is 1."""
    from medgen.data.recipe import Recipe

    recipe = Recipe({"t1": ("t1", None)}, RULE, {}, PATCH)
    (piece,) = recipe.pieces({"t1": str(path)}, "one")
    values = piece.images["t1"].astype(np.float32)
    theirs = np.asarray(pipeline({"t1": str(path)})["t1"])[0]
    both = [(a - a.min()) / (a.max() - a.min()) for a in (values, theirs)]
    return float(np.abs(both[0] - both[1]).max())


@contextlib.contextmanager
def plain_gzip(nifti) -> Iterator[None]:
    """Python's own gzip, as where isal is not installed."""
    import gzip

    fast, nifti._gzip = nifti._gzip, gzip.open
    try:
        yield
    finally:
        nifti._gzip = fast


def bare_arrays(files: Sequence[Path], folder: Path, slices: bool) -> list[Path]:
    folder.mkdir()
    paths = []
    for number, file in enumerate(files):
        array = nibabel.as_closest_canonical(nibabel.load(file)).get_fdata(dtype=np.float32)
        np.save(path := folder / f"{number}.npy", np.ascontiguousarray(array.transpose(2, 0, 1) if slices else array))
        paths.append(path)
    return paths


def drawn(folder: Path) -> list[Path]:
    """Two heads as 16-bit files."""
    from medgen.data.phantom.export import write_phantoms

    paths = []
    write_phantoms(folder / "heads", 3, ["t1"], SHAPE)
    for path in sorted((folder / "heads").glob("*/t1.nii.gz")):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.round(image.get_fdata()).astype(np.int16), image.affine), path)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder with T1.nii.gz and T2.nii.gz at any depth")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/data.md"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = sorted(given.data.rglob("T[12].nii.gz")) if given.data else drawn(folder)
        manifest = folder / "list.csv"
        manifest.write_text("subject,t1\n" + "".join(f"s{i},{path.resolve()}\n" for i, path in enumerate(files)))
        found = [
            *crops(files, manifest, folder, given.rounds),
            *slices(files, manifest, folder, given.rounds),
            *preparation(files, folder, given.rounds),
        ]
    shape = nibabel.load(files[0]).shape if given.data else SHAPE
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "numpy", "isal"))
    machine = (
        f"Here: {packages}; Python {platform.python_version()}; {platform.machine()}, {os.cpu_count()} processors shared with other work."
    )
    what = f"{len(files)} files of {given.data.name}" if given.data else f"{len(files)} drawn heads"
    head = HEAD.format(shape=" x ".join(map(str, shape)), what=what, machine=machine)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("\n".join([head, *map(str, found)]) + "\n")
    print("\n".join(map(str, found)))


if __name__ == "__main__":
    main()
