"""Damaged and malicious files: each is one sentence that names it, whatever it claims, and costs no other file anything."""

from __future__ import annotations

import ctypes
import gzip
import itertools
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from samples import AFFINE, VALUES, every_sample, read_mutated

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.formats import nifti
from medgen.data.manifest import Manifest
from medgen.data.readers import peek, read, read_stored
from medgen.data.workers import GIB, Failure, Limits, each

LIMIT = 1 << 28


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[tuple[str, str]]:
    """(folder, name of the file in it) of every sample."""
    made = []
    for number, make in enumerate(every_sample().values()):
        folder = tmp_path_factory.mktemp(f"{number:02d}") / "whole"
        folder.mkdir()
        path = make(folder)
        read_stored(path)
        made.append((str(folder), str(path.relative_to(folder))))
    return made


def survey(samples, count: int, workers: int, seconds: float) -> dict[str, int]:
    """What became of `count` spoilt files; a fault of a reader is a RuntimeError."""
    items = [(*sample, seed) for seed, sample in zip(range(count), itertools.cycle(samples), strict=False)]
    found: dict[str, int] = {"read": 0, "refused": 0, "died": 0, "slow": 0, "hungry": 0}
    for place, result in each(read_mutated, items, workers, Limits(seconds=seconds, memory=GIB)):
        reason = result.reason if isinstance(result, Failure) else result
        kinds = {"ended the process": "died", "took longer": "slow", "memory than there is": "hungry", "GiB of memory": "hungry"}
        kind = next((kinds[text] for text in kinds if text in reason), "read" if reason == "read" else "refused")
        found[kind] += 1
        if kind in ("died", "slow", "hungry"):
            print(kind, items[place], reason)
    return found


def test_spoilt_files_are_refused_or_read(samples, monkeypatch):
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(LIMIT))
    found = survey(samples, 300, workers=2, seconds=60)
    assert sum(found.values()) == 300
    assert found["slow"] == found["hungry"] == 0 and found["died"] <= 2  # OpenSlide's library ends the process over some damaged slides
    assert found["refused"] > 150 and found["read"] > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_spoilt_files(samples, monkeypatch):
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(LIMIT))
    found = survey(samples, 10_000, workers=2, seconds=30)
    print(found)
    assert sum(found.values()) == 10_000
    assert found["died"] + found["slow"] + found["hungry"] <= 10 and found["read"] > 500


def read_or_crash(path: str) -> str:
    """Reads with a decoder that ends the process over one of the files, as only C can."""
    if Path(path).name == "crash.nii.gz":
        nifti._voxels = lambda file, stored, compressed: ctypes.string_at(0)
    return str(read(path).shape)


def test_a_crash_of_a_decoder_costs_one_file(tmp_path):
    names = ["a.nii.gz", "crash.nii.gz", "b.nii.gz", "c.nii.gz"]
    paths = [str(Volume(VALUES, AFFINE).save(tmp_path / name)) for name in names]
    found = dict(each(read_or_crash, paths, 1, Limits(seconds=30, memory=GIB)))
    assert [found[i] for i in (0, 2, 3)] == [str(VALUES.shape[1:])] * 3
    assert isinstance(found[1], Failure) and "its decoder ended the process (signal 11)" in found[1].reason


# --- claims --------------------------------------------------------------------------------------------------------------------

HUGE = 10_000  # along each of three axes: 10^12 voxels


def nifti_claim(path):
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape((HUGE,) * 3)
    header.set_data_dtype(np.int16)
    path.write_bytes(header.binaryblock + bytes(1000))


def gzip_claim(path):
    nifti_claim(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def nrrd_claim(path):
    fields = f"type: short\ndimension: 3\nsizes: {HUGE} {HUGE} {HUGE}\nencoding: raw\nendian: little\n\n"
    path.write_bytes(b"NRRD0004\n" + fields.encode() + bytes(1000))


def meta_claim(path):
    fields = f"ObjectType = Image\nNDims = 3\nDimSize = {HUGE} {HUGE} {HUGE}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    path.write_bytes(fields.encode() + bytes(1000))


def npy_claim(path):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i2", "fortran_order": False, "shape": (HUGE,) * 3})
        file.write(bytes(1000))


def npz_claim(path):
    npy_claim(path)
    data = path.read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", data)


def tiff_claim(path):
    import tifffile

    tifffile.imwrite(path, np.zeros((8, 8), np.uint16))
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = file.pages[0].tags[name]
            tag.overwrite(HUGE * 100, dtype="I") if tag.dtype.name == "LONG" else tag.overwrite(65535)


def png_claim(path):
    head = b"IHDR" + struct.pack(">IIBBBBB", HUGE * 100, HUGE * 100, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data, b"IEND"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


CLAIMS = {
    "a.nii": nifti_claim,
    "a.nii.gz": gzip_claim,
    "a.nrrd": nrrd_claim,
    "a.mha": meta_claim,
    "a.npy": npy_claim,
    "a.npz": npz_claim,
    "a.tif": tiff_claim,
    "a.png": png_claim,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path, name, monkeypatch):
    monkeypatch.setenv("MEDGEN_READ_LIMIT", str(LIMIT))
    CLAIMS[name](tmp_path / name)
    with pytest.raises(MedgenError, match=rf"{name}: .*(claims .* voxels .* are allowed|damaged)"):
        read(tmp_path / name)
    if name not in ("a.npy",):  # whose size is known before anything is opened
        with pytest.raises(MedgenError, match="MEDGEN_READ_LIMIT"):
            read(tmp_path / name)


def measured(function) -> tuple[int, str]:
    """Bytes of the largest allocations that Python and numpy made in a call, and what it said."""
    tracemalloc.start()
    try:
        with pytest.raises(MedgenError) as caught:
            function()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    Volume(VALUES, AFFINE).save(tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    with gzip.open(tmp_path / "a.nii.gz", "wb", 9) as file:
        file.write(whole)
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert (tmp_path / "a.nii.gz").stat().st_size < 400_000
    taken, said = measured(lambda: read(tmp_path / "a.nii.gz"))
    assert taken < 5 << 20 and f"holds more than the {VALUES.nbytes} bytes that its header claims" in said


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    whole = (tmp_path / "a.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w", force_zip64=True) as file:
        file.write(whole)
        for _ in range(300):
            file.write(bytes(1 << 20))
    taken, said = measured(lambda: read(tmp_path / "a.npz"))
    assert taken < 5 << 20 and f"holds more than the {VALUES.nbytes} bytes" in said


def test_a_png_bomb_is_not_unpacked(tmp_path):
    png_claim(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 8, 8)
    bomb = b"IDAT" + zlib.compress(bytes(100 << 20), 9)
    head = bytes(data[12:29])
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, bomb, b"IEND"))
    (tmp_path / "a.png").write_bytes(bytes(data[:8]) + chunks)
    tracemalloc.start()
    read(tmp_path / "a.png")
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 5 << 20


# --- programs in data ----------------------------------------------------------------------------------------------------------


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_a_pickle_is_never_opened(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")] * 4, object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "b.npz", a=trap)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("a.npy", pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("a.npy", "b.npz", "c.npy", "d.npz"):
        for ask in (read, peek):
            with pytest.raises(MedgenError, match=name):
                ask(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(MedgenError, match="Python objects"):
        read(tmp_path / "b.npz")


# --- paths ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    """Bytes that lie outside of the folder of the data."""
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.raw").write_bytes(VALUES.tobytes())
    return tmp_path / "secret.raw"


def nhdr(data: str, more: str = "") -> str:
    return f"NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\n{more}data file: {data}\n"


def mhd(data: str, more: str = "") -> str:
    return f"ObjectType = Image\nNDims = 3\nDimSize = 7 6 5\n{more}ElementType = MET_SHORT\nElementDataFile = {data}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.nhdr", nhdr("../secret.raw")),
        ("a.nhdr", nhdr("{secret}")),
        ("a.nhdr", nhdr("x/../../secret.raw")),
        ("a.nhdr", nhdr("LIST\n../secret.raw")),
        ("a.nhdr", nhdr("../secret.raw", "note:=data file: inside.raw\n")),
        ("a.nhdr", nhdr("../secret.raw", "data file:=inside.raw\n")),
        ("a.nrrd", nhdr("../secret.raw") + "\n"),
        ("a.mhd", mhd("../secret.raw")),
        ("a.mhd", mhd("{secret}")),
        ("a.mhd", mhd("LIST\n../secret.raw")),
        ("a.mhd", mhd("../secret%d.raw 1 5 1")),
        ("a.mhd", mhd("../secret.raw", "elementdatafile = LOCAL\n")),
        ("a.mha", mhd("../secret.raw")),
    ],
)
def test_a_header_reads_no_file_of_another_folder(secret, name, text):
    path = secret.parent / "data" / name
    path.write_text(text.replace("{secret}", str(secret)))
    with pytest.raises(MedgenError, match=rf"{name}: .*(outside of its folder|appears twice)"):
        read(path)


def test_a_header_reads_files_of_its_folder(tmp_path):
    (tmp_path / "a.raw").write_bytes(VALUES.tobytes())
    for number, plane in enumerate(VALUES[0].transpose(2, 1, 0)):
        (tmp_path / f"s{number}.raw").write_bytes(plane.tobytes())
    whole = np.frombuffer(VALUES.tobytes(), np.int16).reshape(5, 6, 7).transpose(2, 1, 0)
    names = "\n".join(f"s{i}.raw" for i in range(5))
    for name, text, expected in [
        ("a.nhdr", nhdr("a.raw"), whole),
        ("b.nhdr", nhdr(f"{tmp_path}/a.raw"), whole),
        ("c.nhdr", nhdr(f"LIST\n{names}"), VALUES[0]),
        ("a.mhd", mhd("a.raw"), whole),
        ("b.mhd", mhd(f"LIST\n{names}\n"), VALUES[0]),
        ("c.mhd", mhd("s%d.raw 0 4 1"), VALUES[0]),
    ]:
        (tmp_path / name).write_text(text)
        np.testing.assert_array_equal(read_stored(tmp_path / name).array[0], expected, name)


def test_a_format_string_is_no_name(tmp_path):
    for number, said in enumerate(("%s.raw 1 5 1", "%n%n 1 5 1", "%d%d.raw 1 5 1", "%999d 1 5 1")):
        (tmp_path / f"{number}.mhd").write_text(mhd(said))
        with pytest.raises(MedgenError, match=f"{number}.mhd"):
            read(tmp_path / f"{number}.mhd")


def test_an_ome_tiff_opens_no_file_of_another_folder(tmp_path):
    import tifffile

    (tmp_path / "data").mkdir()
    image = np.arange(48, dtype=np.uint16).reshape(6, 8)
    tifffile.imwrite(tmp_path / "secret.tif", image)
    for where, said in (("data", "../secret.tif"), (".", "secret.tif")):
        told = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            'DimensionOrder="XYZCT" Type="uint16" SizeX="8" SizeY="6" SizeZ="1" SizeC="1" SizeT="1"><TiffData IFD="0" PlaneCount="1">'
            f'<UUID FileName="{said}">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / where / "a.ome.tif", image * 0, description=told, metadata=None)
    with pytest.raises(MedgenError, match=r"a\.ome\.tif: .*outside of its folder"):
        read(tmp_path / "data" / "a.ome.tif")
    np.testing.assert_array_equal(read_stored(tmp_path / "a.ome.tif").array[0], image)
    (tmp_path / "secret.tif").unlink()
    with pytest.raises(MedgenError, match=r"a\.ome\.tif: .*missing"):
        read(tmp_path / "a.ome.tif")


def test_a_manifest_stays_in_its_folder(tmp_path):
    inside = Volume(VALUES, AFFINE).save(tmp_path / "set" / "images" / "a.nii")
    outside = Volume(VALUES, AFFINE).save(tmp_path / "b.nii")
    (tmp_path / "set" / "linked.nii").symlink_to(outside)
    table = {"images/a.nii": inside, "images/../linked.nii": tmp_path / "set" / "linked.nii", str(outside): outside}
    for cell, expected in table.items():
        (tmp_path / "set" / "list.csv").write_text(f"subject,t1\na,{cell}\n")
        manifest = Manifest.read(tmp_path / "set" / "list.csv")
        assert manifest.file(manifest.rows[0], "t1").samefile(expected)
    for cell in ("../b.nii", "images/../../b.nii", "../set2/a.nii", "a#/../../b.nii"):
        (tmp_path / "set" / "list.csv").write_text(f"subject,t1\na,{cell}\n")
        manifest = Manifest.read(tmp_path / "set" / "list.csv")
        with pytest.raises(MedgenError, match=r"list\.csv: subject a: '.*' leaves the manifest's folder"):
            manifest.file(manifest.rows[0], "t1")


def test_a_list_of_pages_that_never_ends(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 6, 8), np.uint16), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        first, last = file.pages[0].offset, file.pages[2].offset
    data = bytearray((tmp_path / "a.tif").read_bytes())
    after = last + 2 + 12 * int.from_bytes(data[last : last + 2], "little")
    for place, said in ((first, "circle"), (len(data) + 5, "ends beyond the file")):
        data[after : after + 4] = place.to_bytes(4, "little")
        (tmp_path / "a.tif").write_bytes(data)
        with pytest.raises(MedgenError, match=rf"a\.tif: .*{said}"):
            peek(tmp_path / "a.tif")
