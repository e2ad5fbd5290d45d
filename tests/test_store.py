"""The store: prepared once, whatever interrupts it, and only what changed is prepared again."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medgen.core.errors import MedgenError
from medgen.data import recipe as recipes
from medgen.data.files import FileData
from medgen.data.options import Cut, Keep, Options
from medgen.data.store import Store
from medgen.data.workers import each

SHAPE = (14, 12, 10)
HU = {"name": "ct_hu", "low": -1000, "high": 1000}
MR = {"name": "mr_percentile"}


@pytest.fixture
def scans(tmp_path) -> Path:
    """Four subjects with a CT in whole Hounsfield units, an MR with fractions and a label map."""
    rows = ["subject,split,ct,t1,mask"]
    for i in range(4):
        rng = np.random.default_rng(i)
        write(tmp_path / f"{i}_ct.nii.gz", rng.integers(-1024, 1500, SHAPE).astype(np.int16))
        write(tmp_path / f"{i}_t1.nii.gz", rng.gamma(2, 50, SHAPE).astype(np.float32))
        inside = np.pad(rng.random([n - 2 for n in SHAPE]) < 0.02, 1)
        write(tmp_path / f"{i}_mask.nii.gz", inside.astype(np.uint8) * 2)
        rows.append(f"s{i},{'validation' if i == 3 else 'train'},{i}_ct.nii.gz,{i}_t1.nii.gz,{i}_mask.nii.gz")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def write(path: Path, array: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def data(folder: Path, size=(8, 8, 8), options=None, **changes) -> FileData:
    settings = {"channels": {"ct": HU, "t1": MR}, "labels": {"mask": 3}, "options": Options(**(options or {}))}
    return FileData(str(folder / "list.csv"), size=size, **{**settings, **changes})


@pytest.fixture
def prepared(monkeypatch) -> list[str]:
    """The rows that were really prepared, in order."""
    rows, real = [], recipes.Recipe.pieces

    def spy(self, files, where):
        rows.append(where.rpartition(" ")[2])
        return real(self, files, where)

    monkeypatch.setattr(recipes.Recipe, "pieces", spy)
    return rows


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 8)])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.0, 2.0)])
def test_a_store_holds_the_values_that_memory_holds(scans, size, spacing):
    ours = data(scans, size, spacing=spacing).split("train")
    theirs = data(scans, size, {"keep": Keep("memory")}, spacing=spacing).split("train")
    assert len(ours) == len(theirs) > 0
    for index in range(len(ours)):
        one, other = (cases.case(index, np.random.default_rng(index)) for cases in (ours, theirs))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_whole_numbers_are_kept_as_they_are_where_nothing_was_interpolated(scans):
    row = data(scans).prepared("train")[0]
    assert (row.images["ct"].dtype, row.images["t1"].dtype, row.labels["mask"].dtype) == (np.int16, np.float32, np.uint8)
    np.testing.assert_array_equal(row.images["ct"], nibabel.load(scans / "0_ct.nii.gz").get_fdata())
    assert data(scans, spacing=(1.5, 1, 2)).prepared("train")[0].images["ct"].dtype == np.float32


def test_a_second_run_prepares_nothing(scans, prepared):
    data(scans).split("train")
    data(scans).split("validation")
    assert prepared == ["s0", "s1", "s2", "s3"]
    data(scans).split("train")
    data(scans).split("validation")
    assert len(prepared) == 4


def test_only_what_changed_is_prepared_again(scans, prepared):
    before = data(scans).split("train").case(1, np.random.default_rng(0))["t1"]
    write(scans / "1_t1.nii.gz", np.full(SHAPE, 7, np.float32) + np.arange(10, dtype=np.float32))
    after = data(scans).split("train").case(1, np.random.default_rng(0))["t1"]
    assert prepared == ["s0", "s1", "s2", "s1"]
    assert not np.array_equal(before, after)


def test_a_touched_or_moved_file_is_recognised_by_its_content(scans, prepared, tmp_path):
    data(scans).split("train")
    os.utime(scans / "1_t1.nii.gz", ns=(1, 1))
    (scans / "2_t1.nii.gz").rename(scans / "renamed.nii.gz")
    (scans / "list.csv").write_text((scans / "list.csv").read_text().replace("2_t1.nii.gz", "renamed.nii.gz"))
    data(scans).split("train")
    data(scans).split("train")
    assert len(prepared) == 3


def test_another_recipe_has_a_store_of_its_own(scans, prepared):
    data(scans).split("train")
    data(scans, channels={"ct": {**HU, "high": 900}, "t1": MR}).split("train")
    assert len(prepared) == 6
    assert len(list((scans / ".medgen").iterdir())) == 2


def test_an_interrupted_preparation_goes_on_where_it_was(scans, prepared, monkeypatch):
    real = recipes.Recipe.pieces

    def stopped(self, files, where):
        if where.endswith("s2"):
            raise KeyboardInterrupt
        return real(self, files, where)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(recipes.Recipe, "pieces", stopped)
        data(scans).split("train")
    assert prepared == ["s0", "s1"]
    data(scans).split("train")
    assert prepared == ["s0", "s1", "s2"]


def test_a_torn_index_costs_its_last_row(scans, prepared):
    first = data(scans).split("train").case(0, np.random.default_rng(0))
    (index,) = (scans / ".medgen").glob("*/index.jsonl")
    index.write_bytes(index.read_bytes()[:-30])
    for _ in range(2):
        np.testing.assert_array_equal(data(scans).split("train").case(0, np.random.default_rng(0))["ct"], first["ct"])
    assert prepared == ["s0", "s1", "s2", "s2"]


def test_a_broken_file_costs_its_row_and_training_is_refused_unless_told(scans):
    (scans / "1_t1.nii.gz").write_bytes(b"no image")
    with pytest.raises(MedgenError, match=r"1_t1\.nii\.gz: a damaged or truncated NIfTI"):
        data(scans).split("train")
    with pytest.warns(UserWarning, match=r"1 of 3 rows .*1_t1.*left out"):
        cases = data(scans, options={"keep": Keep(skip_broken=True)}).split("train")
    assert [cases.case(i, np.random.default_rng(0))["subject"] for i in range(len(cases))] == ["s0", "s2"]


def test_worker_processes_prepare_the_same(scans):
    here = data(scans).split("train")
    there = data(scans, options={"keep": Keep(str(scans / "other"), workers=2)}).split("train")
    for index in range(3):
        one, other = (cases.case(index, np.random.default_rng(index)) for cases in (here, there))
        np.testing.assert_array_equal(one["t1"], other["t1"])
        assert one["subject"] == other["subject"]


def prepare_all(folder: str) -> int:
    return len(data(Path(folder), options={"keep": Keep(workers=0)}).split("train"))


def test_two_processes_at_once_prepare_every_row_once(scans):
    results = dict(each(prepare_all, [str(scans)] * 3, workers=3))
    assert results == {0: 3, 1: 3, 2: 3}
    (index,) = (scans / ".medgen").glob("*/index.jsonl")
    assert len(index.read_text().splitlines()) == 3


def test_pruning_leaves_the_newest_arrays_of_the_rows_that_are_named(scans):
    source = data(scans)
    source.split("train")
    write(scans / "1_t1.nii.gz", np.full(SHAPE, 7, np.float32) + np.arange(10, dtype=np.float32))
    expected = data(scans).split("train").case(1, np.random.default_rng(0))["t1"]
    wanted = source.wanted(source.manifest.split("train"))
    store = Store(scans / ".medgen", source.recipe)
    held = sum(path.stat().st_size for path in store.folder.glob("*.bin"))
    freed = store.prune(wanted)
    assert 0.2 * held < freed < 0.3 * held  # one of four rows
    np.testing.assert_array_equal(data(scans).split("train").case(1, np.random.default_rng(0))["t1"], expected)
    assert store.prune(wanted) == 0


def test_a_worker_has_the_limits_that_are_set(scans):
    (scans / "1_t1.nii.gz").write_bytes((scans / "1_t1.nii.gz").read_bytes())
    with pytest.raises(MedgenError, match=r"3 of 3 rows .*longer than 0 s .*options\.keep\.seconds"):
        data(scans, options={"keep": Keep(workers=1, seconds=0.0)}).split("train")


def test_a_file_system_without_locks_is_told(scans, monkeypatch):
    import fcntl

    def without(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(MedgenError, match=r"this file system has no locks.*on a local disk"):
        data(scans).split("train")


def test_a_slide_needs_planes_as_a_picture_does(tmp_path):
    from special_samples import write_slide

    write_slide(tmp_path / "slide.svs")
    (tmp_path / "list.csv").write_text("subject,image\na,slide.svs\n")
    cut = Options(cut=Cut(tissue=0.0), keep=Keep("memory"))
    with pytest.raises(MedgenError, match=r"has 3 channels and 'image' takes one; use channels image_red"):
        FileData(str(tmp_path / "list.csv"), {"image": {"name": "unit_range"}}, (32, 32), options=cut).split("train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_one_sentence(scans, workers):
    """A limit on the size of files stands for the disk; it is inherited by the processes that prepare."""
    script = f"""
        import resource
        from tests_store import data
        from medgen.data.options import Keep
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        data(Path({str(scans)!r}), options={{"keep": Keep(workers={workers})}}).split("train")
    """
    script = textwrap.dedent(script).replace("tests_store", "test_store")
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert "could not keep prepared data in" in done.stderr.splitlines()[-1] and "File too large" in done.stderr.splitlines()[-1]
    assert "set data.source.options.keep.folder to another place" in done.stderr


def test_the_order_of_channels_is_part_of_the_recipe(scans):
    """The first one says which slices are worth showing."""
    one, other = (data(scans, channels=channels) for channels in ({"ct": HU, "t1": MR}, {"t1": MR, "ct": HU}))
    assert one.store.folder != other.store.folder


def test_what_lies_beside_a_header_belongs_to_it(tmp_path):
    def seen_mean(cell: str) -> float:
        (tmp_path / "list.csv").write_text(f"subject,ct\na,{cell}\n")
        cases = FileData(str(tmp_path / "list.csv"), {"ct": HU}, (8, 8), options=Options(min_foreground=0)).split("train")
        return float(cases.case(0, None)["ct"].mean())

    for value in (100, 700):
        nibabel.save(nibabel.Nifti1Pair(np.full((8, 8, 4), value, np.int16), np.eye(4)), tmp_path / "pair.hdr")
        (tmp_path / "voxels.raw").write_bytes(np.full((4, 8, 8), value, "<i2").tobytes())
        fields = ["NDims = 3", "DimSize = 8 8 4", "ElementType = MET_SHORT", "ElementByteOrderMSB = False", "ElementDataFile = voxels.raw"]
        (tmp_path / "apart.mhd").write_text("\n".join(["ObjectType = Image", *fields]) + "\n")
        assert seen_mean("pair.hdr") == pytest.approx(value / 1000) == seen_mean("apart.mhd")


def test_the_parts_of_an_ome_tiff_and_of_a_packed_pair_belong_to_it(tmp_path):
    import gzip

    import tifffile

    from medgen.data.sources import seen

    parts = "".join(
        f'<TiffData FirstZ="{z}" IFD="0"><UUID FileName="{name}.ome.tif">urn:uuid:{name}</UUID></TiffData>' for z, name in enumerate("ab")
    )
    pixels = '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="8" SizeY="8" SizeZ="2" SizeC="1" SizeT="1">'
    schema = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a"'
    head = f'<?xml version="1.0" encoding="UTF-8"?><OME {schema}><Image ID="Image:0">{pixels}{parts}</Pixels></Image></OME>'
    states = []
    for value in (9, 200):
        tifffile.imwrite(tmp_path / "a.ome.tif", np.full((8, 8), 9, np.uint8), description=head, metadata=None)
        tifffile.imwrite(tmp_path / "b.ome.tif", np.full((8, 8), value, np.uint8), description=head, metadata=None)
        nibabel.save(nibabel.Nifti1Pair(np.full((8, 8, 4), value, np.int16), np.eye(4)), tmp_path / "pair.hdr")
        for name in ("pair.hdr", "pair.img"):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes(), mtime=0))
        states.append([seen(str(tmp_path / name)).digested().digest for name in ("a.ome.tif", "pair.hdr.gz", "pair.img.gz")])
    assert all(before != after for before, after in zip(*states, strict=True))


def test_what_does_not_change_whole_volumes_does_not_prepare_them_again(scans, prepared):
    for size, options in (((8, 8, 8), {}), ((4, 4, 4), {}), ((8, 8, 8), {"min_foreground": 0.5})):
        data(scans, size, options).split("train")
    data(scans, channels={"ct": {**HU, "low": -1000.0}, "t1": MR}).split("train")
    assert len(prepared) == 3
    data(scans, (8, 8)).split("train")
    data(scans, (8, 6)).split("train")
    assert len(prepared) == 9


def test_other_content_of_the_same_size_and_time_is_seen(scans):
    path, before = scans / "1_t1.nii", (scans / "1_t1.nii.gz").stat()
    (scans / "list.csv").write_text((scans / "list.csv").read_text().replace("1_t1.nii.gz", "1_t1.nii"))
    means = []
    for value in (10, 20):
        write(path, np.full(SHAPE, value, np.float32) + np.arange(10, dtype=np.float32))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        means.append(data(scans).prepared("train")[1].ranges["t1"]["high"])
    assert means[1] - means[0] == pytest.approx(10)


def test_a_file_that_changes_while_others_are_prepared_is_prepared_again_next_time(scans, prepared):
    def meddle(done, of):
        if done == 2:
            write(scans / "0_t1.nii.gz", np.random.default_rng(9).gamma(2, 50, SHAPE).astype(np.float32))

    assert len(data(scans).prepared("train", meddle)) == 3
    data(scans).split("train")
    assert prepared == ["s0", "s1", "s2", "s0"]


def test_a_file_that_vanishes_costs_its_row(scans):
    def meddle(done, of):
        (scans / "2_t1.nii.gz").unlink(missing_ok=True)

    for workers in (0, 1):
        write(scans / "2_t1.nii.gz", np.ones(SHAPE, np.float32) + np.arange(10, dtype=np.float32))
        keep = Keep(str(scans / f"store{workers}"), workers=workers, skip_broken=True)
        with pytest.warns(UserWarning, match=r"1 of 3 rows .*2_t1\.nii\.gz: No such file"):
            assert len(data(scans, options={"keep": keep}).prepared("train", meddle)) == 2


def test_arrays_that_are_gone_are_made_again(scans, prepared):
    first = data(scans).split("train").case(0, np.random.default_rng(0))
    (shard,) = (scans / ".medgen").glob("*/*.bin")
    for spoil in (lambda: os.truncate(shard, 100), shard.unlink):
        spoil()
        np.testing.assert_array_equal(data(scans).split("train").case(0, np.random.default_rng(0))["ct"], first["ct"])
    assert len(prepared) == 6  # the truncated file costs three rows, and is needed by none when it goes


def test_a_store_on_a_read_only_disk_serves(scans, prepared, monkeypatch):
    data(scans).split("train")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(scans)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(scans / "cache"))
    os.utime(scans / "0_t1.nii.gz", ns=(1, 1))  # touched, with the same content
    data(scans).split("train")
    assert len(prepared) == 3 and not (scans / "cache").exists()
    data(scans).split("validation")  # which it lacks
    assert len(prepared) == 4 and (scans / "cache").exists()


def test_parts_of_one_file_are_hashed_once(tmp_path, monkeypatch):
    from medgen.data import sources

    np.savez(tmp_path / "set.npz", images=np.random.default_rng(0).integers(0, 255, (30, 8, 8), np.uint8))
    (tmp_path / "list.csv").write_text("subject,image\n" + "".join(f"s{i},set.npz#images/{i}\n" for i in range(30)))
    read, real = [], Path.open

    def counted(self, *arguments, **options):
        read.append(self.name)
        return real(self, *arguments, **options)

    sources._content.cache_clear()
    monkeypatch.setattr(Path, "open", counted)
    keep = Options(min_foreground=0, keep=Keep(workers=0))
    assert (
        len(FileData(str(tmp_path / "list.csv"), {"image": {"name": "unit_range"}}, (8, 8), slice_axis=None, options=keep).split("train"))
        == 30
    )
    assert read.count("set.npz") <= 2


def test_readers_close_what_they_opened(scans):
    for _ in range(3):
        data(scans).split("train").case(0, np.random.default_rng(0))
    held = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        data(scans).split("train").case(0, np.random.default_rng(0))
    assert len(os.listdir("/proc/self/fd")) <= held + 2


def test_a_folder_that_cannot_be_written_is_served_from_the_cache(scans, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(scans / "cache"))
    assert len(data(scans).split("train")) == 3
    assert not (scans / ".medgen").exists() and list((scans / "cache" / "medgen" / "stores").iterdir())


def test_rows_travel_to_other_processes_without_their_voxels(scans):
    rows = data(scans).prepared("train")
    rows[0]
    sent = pickle.dumps(rows)
    assert len(sent) < 5_000 < rows[0].images["t1"].nbytes
    np.testing.assert_array_equal(pickle.loads(sent)[1].images["t1"], rows[1].images["t1"])


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")
def test_the_memory_of_a_reader_does_not_grow_with_the_store(scans):
    """A store of 1.2 GB (with holes, so that the disk does not fill) is read everywhere by a process that may take 200 MB of its own."""
    rows = data(scans).prepared("train")
    store = rows.folder
    record = json.loads((store / "index.jsonl").read_text().splitlines()[0])
    piece = record["pieces"][0]
    shape, count = [200, 250, 300], 20
    for number in range(count):
        with (store / f"big{number}.bin").open("wb") as file:
            file.truncate(4 * int(np.prod(shape)))
    lines = [{**record, "pieces": [{**piece, "arrays": {"images/t1": [f"big{n}.bin", 0, shape, "<f4"]}}]} for n in range(count)]
    (store / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = f"""
        import resource
        import numpy as np
        from medgen.data.cases import Cutter, Patches
        from medgen.data.store import Index, Rows
        from pathlib import Path

        held = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData"))) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + 200_000_000,) * 2)
        store = Path({str(store)!r})
        index = Index(store)
        rows = Rows(store, index.places, index.cases)
        cases = Patches(rows, (64, 64, 64), Cutter({{}}), anywhere=True)
        total = sum(float(cases.case(n % {count}, np.random.default_rng(n))["t1"].sum()) for n in range(200))
        try:
            np.ones(300_000_000 // 8)
        except MemoryError:
            print("read", total)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "read 0.0\n", done.stderr


def test_patches_are_centred_on_the_kinds_of_places_that_are_asked_for(scans):
    weights = {"mask=2": 3.0, "uniform": 1.0}
    cases = data(scans, (3, 3, 3), {"cut": Cut(patches=weights)}).split("train")
    rng = np.random.default_rng(0)
    middle = np.mean([cases.case(n % 3, rng)["mask"][0, 1, 1, 1] == 2 for n in range(600)])
    assert 0.68 < middle < 0.82  # 3 of 4, and a few more by chance
    only = data(scans, (3, 3, 3), {"cut": Cut(patches={"mask": 1.0})}).split("train")
    assert all((only.case(n % 3, rng)["mask"] == 2).any() for n in range(50))
    with pytest.raises(MedgenError, match=r"no kind of place 'masks'; did you mean 'mask"):
        data(scans, (3, 3, 3), {"cut": Cut(patches={"masks": 1.0})})
    with pytest.raises(MedgenError, match=r"kinds of places are for patches of volumes"):
        data(scans, (3, 3), {"cut": Cut(patches={"mask": 1.0})})
