"""One tiny file of every format that medgen reads, and what time, transport and malice do to files.

A format is added by a line in `SAMPLES` here or in any module `tests/*_samples.py`: its ending (or `<something><ending>`, for another kind
of the same format), and a function that writes such a file into a folder and returns its path, or the folder itself for a series.
`tests/test_hostile.py` does the rest.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.readers import peek, read_stored

AFFINE = np.array([[-1.0, 0, 0, 9], [0, 0, 2.0, -5], [0, 1.5, 0, 3], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(-900, 2000, (1, 7, 6, 5)).astype(np.int16)


def saved(ending: str) -> Callable[[Path], Path]:
    return lambda folder: Volume(VALUES, AFFINE, "HU").save(folder / f"sample{ending}")


def series(ending: str) -> Callable[[Path], Path]:
    frames = {"planes": "time", "frame_seconds": 2.0}
    return lambda folder: Volume(np.concatenate([VALUES] * 3), AFFINE, meta=frames).save(folder / f"series{ending}")


def pair(folder: Path) -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti1Pair(VALUES[0], AFFINE), folder / "sample.hdr")
    return folder / "sample.hdr"


def second(folder: Path) -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti2Image(VALUES[0], AFFINE), folder / "sample2.nii")
    return folder / "sample2.nii"


def itk(ending: str, compressed: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import SimpleITK

        image = SimpleITK.GetImageFromArray(VALUES[0].transpose(2, 1, 0))
        image.SetSpacing((1.0, 1.5, 2.0))
        SimpleITK.WriteImage(image, str(folder / f"sample{ending}"), compressed)
        return folder / f"sample{ending}"

    return make


def tiff(ending: str, **options) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import tifffile

        tifffile.imwrite(folder / f"sample{ending}", np.abs(VALUES[0]).astype(options.get("dtype", np.uint16)), **options)
        return folder / f"sample{ending}"

    return make


def picture(ending: str, colour: bool = False, sixteen: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        grey = np.abs(VALUES[0, :, :, 0]).astype(np.uint16 if sixteen else np.uint8)
        path = folder / f"sample{ending}"
        if colour and sixteen:
            return Volume(np.stack([grey] * 3)).save(path)
        Image.fromarray(np.dstack([grey] * 3) if colour else grey).save(path)
        return path

    return make


def array(folder: Path) -> Path:
    np.save(folder / "sample.npy", VALUES)
    return folder / "sample.npy"


def archive(folder: Path) -> Path:
    np.savez_compressed(folder / "sample.npz", VALUES)
    return folder / "sample.npz"


SAMPLES: dict[str, Callable[[Path], Path]] = {
    ".nii": saved(".nii"),
    ".nii.gz": saved(".nii.gz"),
    "4d.nii.gz": series("4d.nii.gz"),
    "2.nii": second,
    ".hdr": pair,
    ".nrrd": itk(".nrrd"),
    "gz.nrrd": itk("gz.nrrd", compressed=True),
    ".nhdr": itk(".nhdr"),
    ".mha": itk(".mha"),
    "gz.mha": itk("gz.mha", compressed=True),
    ".mhd": itk(".mhd"),
    ".tif": saved(".tif"),
    "lzw.tif": tiff("lzw.tif", compression="lzw", imagej=False),
    "zlib.tif": tiff("zlib.tif", compression="zlib", tile=(16, 16)),
    "jpeg.tif": tiff("jpeg.tif", compression="jpeg", dtype=np.uint8),
    "zstd.tif": tiff("zstd.tif", compression="zstd"),
    "imagej.tif": tiff("imagej.tif", imagej=True),
    ".png": picture(".png"),
    "rgb.png": picture("rgb.png", colour=True),
    "16.png": picture("16.png", sixteen=True),
    "rgb16.png": picture("rgb16.png", colour=True, sixteen=True),
    ".jpg": picture(".jpg"),
    "rgb.jpg": picture("rgb.jpg", colour=True),
    ".npy": array,
    ".npz": archive,
}


def every_sample() -> dict[str, Callable[[Path], Path]]:
    """The samples of all modules."""
    found = dict(SAMPLES)
    for path in sorted(Path(__file__).parent.glob("*_samples.py")):
        found.update(getattr(import_module(path.stem), "SAMPLES", {}))
    return found


_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes after one to four faults, most of them near the beginning, where headers are."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        near = int(len(data) * rng.random() ** 3)
        kind = rng.integers(8)
        if kind == 0:
            del data[int(len(data) * rng.random()) :]
        elif kind <= 2:
            data[near] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            order, size = rng.choice(["little", "big"]), int(rng.choice([1, 2, 4, 8]))
            number = int(rng.choice(_NUMBERS)) & ((1 << 8 * size) - 1)
            data[near : near + size] = number.to_bytes(size, str(order))
        elif kind == 4:
            data[near : near + int(rng.integers(1, 64))] = bytes(int(rng.integers(1, 64)))
        elif kind == 5:
            start = int(len(data) * rng.random())
            data[near:near] = data[start : start + int(rng.integers(1, 256))]
        elif kind == 6:
            del data[near : near + int(rng.integers(1, 64))]
        else:
            digits = [i for i, byte in enumerate(data[:4096]) if 0x30 <= byte <= 0x39] or [near]
            place = int(rng.choice(digits))
            data[place : place + 1] = rng.choice([b"0", b"-", b"9", b"999999999", b"1e9", b"%s", b"./"])
    return bytes(data)


def _inside_gzip(data: bytes, rng: np.random.Generator) -> bytes:
    return gzip.compress(mutated(gzip.decompress(data), rng), 1)


def _inside_zip(data: bytes, rng: np.random.Generator) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as spoilt:
        for name in whole.namelist():
            spoilt.writestr(name, mutated(whole.read(name), rng))
    return made.getvalue()


def _inside_png(data: bytes, rng: np.random.Generator) -> bytes:
    """One chunk is spoilt and its checksum is put right."""
    chunks, at = [], 8
    while at < len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = int(rng.integers(len(chunks)))
    chunks[chosen] = (chunks[chosen][0], mutated(chunks[chosen][1], rng))
    return data[:8] + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)


_INSIDE = {".gz": _inside_gzip, ".npz": _inside_zip, ".png": _inside_png}


def read_mutated(item: tuple[str, str, int]) -> str:
    """Spoil one file of a sample by a seed and read what is left: "read", or MedgenError. It must name the file or its folder.

    Args:
        item: the sample's folder, the name of its file in it ("." for the folder), and the seed.
    """
    folder, name, seed = item
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as scratch:
        copy = Path(scratch) / "sample"
        shutil.copytree(folder, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        named = copy / name
        victim = named if named.is_file() and rng.random() < 0.8 else files[int(rng.integers(len(files)))]
        inside = _INSIDE.get(victim.suffix)
        change = inside if inside is not None and rng.random() < 0.5 else mutated
        victim.write_bytes(change(victim.read_bytes(), rng))
        try:
            peek(named)
            volume = read_stored(named)
        except MedgenError as error:
            if not {named.name, victim.name} & set(re.split(r"[/:# ,'()]+", str(error))):
                raise AssertionError(f"{name}, seed {seed}: '{error}' does not name the file") from error
            raise
        if volume.array.ndim not in (3, 4):
            raise AssertionError(f"{name}, seed {seed}: read as {volume.array.shape}")
    return "read"
