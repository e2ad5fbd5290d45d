"""Files to batches: what is read, what is refused, and that step s of a run is the same batch however it is reached."""

import csv
import gzip
import inspect
import itertools
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.files import FileData
from medgen.data.manifest import EmptySplit, Manifest
from medgen.data.module import DataModule, collate
from medgen.data.options import Options
from medgen.data.order import Shuffled
from medgen.data.readers import read
from medgen.data.stream import StepBatches

MR = {"name": "mr_percentile"}
SHAPE = (12, 10, 8)
LPS = np.diag([-2.0, -2.0, 3.0, 1.0])
LPS[:3, 3] = (10, 8, -6)


def write_csv(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def head(seed: int, shape=SHAPE) -> np.ndarray:
    """A bright noisy box in the dark, different for every seed."""
    values = np.random.default_rng(seed).uniform(50, 100, shape) * (seed + 1)
    values[:2] = values[-2:] = values[:, :2] = values[:, -2:] = values[..., :1] = values[..., -1:] = 0
    return values.astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray = LPS) -> None:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def brains(tmp_path) -> Path:
    """Five subjects with t1, t2, a mask, age and sex: three to train, one to validate, one to test."""
    rows = []
    for i, split in enumerate(["train"] * 3 + ["validation", "test"]):
        save(tmp_path / f"s{i}_t1.nii.gz", head(i))
        save(tmp_path / f"s{i}_t2.nii.gz", head(i + 10))
        save(tmp_path / f"s{i}_mask.nii.gz", (head(i) > 60 * (i + 1)).astype(np.uint8))
        rows.append(f"s{i},{split},s{i}_t1.nii.gz,s{i}_t2.nii.gz,s{i}_mask.nii.gz,{40 + i}.5,{i % 2}")
    write_csv(tmp_path / "list.csv", "subject,split,t1,t2,mask,age,sex", *rows)
    return tmp_path


def file_data(folder: Path, **changes) -> FileData:
    settings = {"channels": {"t1": MR, "t2": MR}, "size": (12, 10), "labels": {"mask": 2}, "attributes": {"age": 0, "sex": 2}}
    return FileData(str(folder / "list.csv"), **{**settings, **changes})


# --- readers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_applies_its_scale_and_keeps_its_affine(tmp_path, ending):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(stored, LPS)
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / f"ct{ending}")
    volume = read(tmp_path / f"ct{ending}")
    slope, inter = 2.0, -1024.0
    raw = nibabel.load(tmp_path / f"ct{ending}")
    np.testing.assert_array_equal(volume.array[0], np.asarray(raw.dataobj.get_unscaled()) * slope + inter)
    np.testing.assert_array_equal(volume.affine, LPS)
    assert volume.array.dtype == np.float32


def test_nifti_axes(tmp_path):
    save(tmp_path / "one.nii", np.ones((3, 4, 5, 1), np.float32))
    assert read(tmp_path / "one.nii").array.shape == (1, 3, 4, 5)
    save(tmp_path / "flat.nii", np.ones((3, 4), np.float32))
    assert read(tmp_path / "flat.nii").array.shape == (1, 3, 4, 1)
    save(tmp_path / "series.nii", np.ones((3, 4, 5, 6), np.float32))
    assert read(tmp_path / "series.nii").array.shape == (6, 3, 4, 5)
    save(tmp_path / "k.nii", np.ones((3, 4, 5), np.complex64))
    with pytest.raises(MedgenError, match=r"complex64; expected one real number"):
        read(tmp_path / "k.nii")


def test_png_depths_and_colours(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(np.uint16)
    colour = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    Image.fromarray((grey >> 8).astype(np.uint8)).save(tmp_path / "grey8.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(np.dstack([colour, np.full((5, 7), 255, np.uint8)])).save(tmp_path / "opaque.png")
    Image.fromarray(np.dstack([colour, np.full((5, 7), 100, np.uint8)])).save(tmp_path / "glass.png")
    np.testing.assert_array_equal(read(tmp_path / "grey16.png").array, grey[None])
    np.testing.assert_array_equal(read(tmp_path / "grey8.png").array, grey[None] >> 8)
    for name in ("colour.png", "opaque.png"):
        np.testing.assert_array_equal(read(tmp_path / name).array, np.moveaxis(colour, -1, 0))
    with pytest.raises(MedgenError, match="transparent"):
        read(tmp_path / "glass.png")


@pytest.mark.parametrize(
    ("stored", "expected"), [((6, 7), (1, 6, 7)), ((3, 6, 7), (3, 6, 7)), ((5, 6, 7), (1, 5, 6, 7)), ((1, 5, 6, 7), (1, 5, 6, 7))]
)
def test_npy_axes(tmp_path, stored, expected):
    values = np.random.default_rng(0).normal(size=stored).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    volume = read(tmp_path / "a.npy")
    assert volume.affine is None
    np.testing.assert_array_equal(volume.array, values.reshape(expected))


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(MedgenError, match=r"t1\.nii\.gz: no such file"):
        read(tmp_path / "t1.nii.gz")
    (tmp_path / "t1.nii.gzz").write_text("")
    with pytest.raises(MedgenError, match=r"'\.nii\.gzz'; did you mean '\.nii\.gz'"):
        read(tmp_path / "t1.nii.gzz")


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz", "t1.png", "t1.npy"])
@pytest.mark.parametrize("kept", [0.0, 0.03, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, name, kept):
    path = tmp_path / name
    values = np.random.default_rng(0).integers(0, 255, (40, 40, 20)).astype(np.uint8)
    Volume(values[None, ..., 0] if name.endswith("png") else values[None].astype(np.float32), LPS).save(path)
    assert np.isfinite(read(path).array).all()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(MedgenError, match=r"t1\..*damaged"):
        read(path)


def test_a_corrupted_gz_is_refused(tmp_path):
    save(tmp_path / "t1.nii.gz", head(0, (30, 30, 30)))
    damaged = bytearray((tmp_path / "t1.nii.gz").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "t1.nii.gz").write_bytes(damaged)
    with pytest.raises(MedgenError, match=r"damaged or truncated NIfTI"):
        read(tmp_path / "t1.nii.gz")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"not an image" * 100))
    with pytest.raises(MedgenError, match=r"damaged or truncated NIfTI"):
        read(tmp_path / "text.nii.gz")


def test_voxels_that_are_not_numbers_are_counted(tmp_path):
    values = head(0)
    values[3, 3, :2], values[4, 4, 4] = np.nan, np.inf
    save(tmp_path / "t1.nii", values)
    with pytest.raises(MedgenError, match=f"3 of {values.size} voxels are NaN or infinite"):
        read(tmp_path / "t1.nii")


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(MedgenError, match="Python objects"):
        read(tmp_path / "a.npy")


# --- manifest ------------------------------------------------------------------------------------------------------------------


def test_manifest_splits_subjects(brains):
    manifest = Manifest.read(brains / "list.csv")
    assert manifest.subjects == ("s0", "s1", "s2", "s3", "s4")
    assert manifest.split("train").subjects == ("s0", "s1", "s2")
    assert manifest.split("test").rows[0]["age"] == "44.5"
    assert manifest.splits == ("train", "validation", "test")


def test_manifest_without_splits_trains_and_val_means_validation(tmp_path):
    manifest = Manifest.read(write_csv(tmp_path / "a.csv", "subject,t1", "a,x", "a,y", "b,z"))
    assert manifest.split("train").subjects == ("a", "b")
    assert len(manifest.split("train")) == 3
    manifest = Manifest.read(write_csv(tmp_path / "a.csv", "\ufeffsubject, split ,t1", "a,val,x", "", "b,validation,y"))
    assert manifest.split("validation").subjects == ("a", "b")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("subjet,t1", "a,x"), "needs a column 'subject'; found subjet, t1"),
        (("subject,split,t1", "a,train,x", "b,test,y", "a,test,z"), "subject a is in two splits, train and test"),
        (("subject,t1", "a,x", "b,y", "a,x"), r"subject a has the same row twice \(a, x"),
        (("subject,t1", "a,x,y"), "line 2 has 3 cells, the header 2"),
        (("subject,t1",), "without rows"),
        (("subject,t1", ",x"), "a row without subject"),
        (("subject,split,t1", "a,,x"), "a row without split"),
        (("subject,t1,t1", "a,x,y"), "a column appears twice"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path, lines, message):
    with pytest.raises(MedgenError, match=message):
        Manifest.read(write_csv(tmp_path / "a.csv", *lines))


def test_a_missing_or_binary_manifest_is_refused(tmp_path):
    with pytest.raises(MedgenError, match="no such manifest"):
        Manifest.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"subject\n\xff\xfe")
    with pytest.raises(MedgenError, match="not a CSV in UTF-8"):
        Manifest.read(tmp_path / "b.csv")


# --- cases of files ------------------------------------------------------------------------------------------------------------


def every(cases) -> list[dict]:
    return [cases.case(i, np.random.default_rng(i)) for i in range(len(cases))]


def test_slices_are_the_stored_voxels_at_their_place(brains):
    source = file_data(brains)
    cases = every(source.split("train"))
    assert len(cases) == 3 * 6  # the first and the last slice of each head are empty
    rule = source.maps["t1"]
    for case in cases:
        i = int(case["subject"][1])
        stored = read(brains / f"s{i}_t1.nii.gz")
        fit = rule.fit(stored.array)
        assert case["t1"].shape == case["mask"].shape == (1, 12, 10)
        assert (case["t1"].dtype, case["mask"].dtype) == (np.float32, np.int64)
        assert (case["age"], case["sex"]) == (40.5 + i, i % 2)
        index = np.linalg.inv(stored.affine) @ case["affine"]  # voxel of the case -> voxel of the file
        for x, y in itertools.product((2, 6, 9), (2, 5, 7)):
            voxel = tuple(np.rint(index @ (x, y, 0, 1)).astype(int)[:3])
            np.testing.assert_allclose(rule.inverse(case["t1"][0, x, y], **fit), stored.array[0][voxel], rtol=1e-5)
            assert case["mask"][0, x, y] == (head(i) > 60 * (i + 1))[voxel]


def test_intensities_are_fitted_per_volume_before_cropping(brains):
    whole, cropped = file_data(brains), file_data(brains, size=(4, 4))
    np.testing.assert_array_equal(cropped.split("train").case(3, None)["t1"], whole.split("train").case(3, None)["t1"][:, 4:8, 3:7])
    highs = [whole.maps["t1"].fit(read(brains / f"s{i}_t1.nii.gz").array)["high"] for i in range(3)]
    facts = whole.facts()
    assert facts["intensity"]["t1"]["typical"] == {"low": 0.0, "high": np.median(highs)}


def test_padding_is_no_signal(brains):
    case = file_data(brains, size=(16, 8)).split("train").case(0, None)
    assert (case["t1"][:, :2] == -1).all()
    assert (case["t1"][:, -2:] == -1).all()
    assert (case["mask"][:, :2] == 0).all()
    inner = file_data(brains, size=(12, 8)).split("train").case(0, None)
    np.testing.assert_array_equal(case["t1"][:, 2:-2], inner["t1"])
    np.testing.assert_allclose(case["affine"] @ (2, 0, 0, 1), inner["affine"] @ (0, 0, 0, 1))


def test_facts(brains):
    source = file_data(brains, options=Options(about={"licence": "CC0"}))
    facts = source.facts()
    assert facts.pop("intensity").keys() == {"t1", "t2"}
    assert facts == {
        "spatial_dims": 2,
        "size": (12, 10),
        "labels": {"mask": 2},
        "attributes": {"age": 0, "sex": 2},
        "orientation": "RAS",
        "spacing": (2.0, 2.0, 3.0),
        "slice_axis": 2,
        "data": {"name": brains.name, "licence": "CC0", "attribution": "unknown", "subjects": 3},
    }


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_any_axis(brains, axis):
    source = file_data(brains, size=(6, 6), slice_axis=axis, spacing=(1.5, 1.5, 1.5))
    case = source.split("train").case(0, None)
    steps = np.linalg.norm(case["affine"][:3, :3], axis=0)
    native = (2, 2, 3)[axis]
    np.testing.assert_allclose(steps, [1.5, 1.5, native], rtol=1e-6)
    assert np.abs(case["affine"][:3, 2]).argmax() == axis
    assert np.linalg.det(case["affine"][:3, :3]) * (-1) ** axis > 0


def test_slices_without_foreground_are_left_out(brains):
    everything = file_data(brains, options=Options(min_foreground=0.0))
    assert len(everything.split("train")) == 3 * 8
    with pytest.raises(MedgenError, match="lower min_foreground"):
        file_data(brains, options=Options(min_foreground=0.99)).split("train")


def test_patches_move_in_training_and_stay_central_elsewhere(brains):
    source = file_data(brains, size=(4, 6, 8))
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test)) == (3, 1)
    a, b, again = (train.case(0, np.random.default_rng(seed)) for seed in (0, 1, 0))
    np.testing.assert_array_equal(a["t1"], again["t1"])
    assert not np.array_equal(a["affine"], b["affine"])
    starts = {tuple(train.case(0, np.random.default_rng(s))["affine"][:3, 3]) for s in range(400)}
    assert len(starts) == (12 - 4 + 1) * (10 - 6 + 1)
    central = test.case(0, np.random.default_rng(3))
    assert central["t1"].shape == central["mask"].shape == (1, 4, 6, 8)
    stored = read(brains / "s4_t1.nii.gz")
    expected = source.maps["t1"].forward(stored.array[0][::-1, ::-1][4:8, 2:8], **source.maps["t1"].fit(stored.array))
    np.testing.assert_allclose(central["t1"][0], expected, rtol=1e-5)


def test_a_patch_larger_than_the_volume_is_padded(brains):
    case = file_data(brains, size=(12, 10, 16)).split("train").case(0, np.random.default_rng(0))
    assert (case["t1"][..., :4] == -1).all()
    assert (case["t1"][..., 5:11] > -1).any()


def test_pictures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 11)).astype(np.uint8)
    for i in (0, 1):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
    path = write_csv(tmp_path / "list.csv", "subject,image,kind", "a,0.png,1", "a,1.png,0")
    rule = {"image": {"name": "unit_range"}}
    source = FileData(path, rule, (7, 15), attributes={"kind": 2}, slice_axis=None)
    case = source.split("train").case(1, None)
    assert set(case) == {"image", "kind", "subject"}
    np.testing.assert_allclose(case["image"][0, :, 2:13], pixels[1, 1:8] / 127.5 - 1, atol=1e-6)
    assert (case["image"][..., :2] == -1).all()
    assert source.facts()["orientation"] is source.facts()["spacing"] is source.facts()["slice_axis"] is None
    whole = FileData(path, rule, (9, 11), options=Options(resize=True)).split("train").case(0, None)
    np.testing.assert_allclose(whole["image"][0], pixels[0] / 127.5 - 1, atol=1e-6)
    small = FileData(path, rule, (3, 5), options=Options(resize=True)).split("train").case(0, None)
    assert small["image"].shape == (1, 3, 5)
    assert abs(small["image"].mean() - whole["image"].mean()) < 0.15


def test_colour_pictures_are_three_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = write_csv(tmp_path / "list.csv", "subject,image", "a,a.png")
    rule = {"name": "unit_range"}
    case = FileData(path, {f"image_{c}": rule for c in ("red", "green", "blue")}, (6, 6)).split("train").case(0, None)
    planes = np.concatenate([case[f"image_{c}"] for c in ("red", "green", "blue")])
    np.testing.assert_allclose(np.moveaxis(planes, 0, -1), pixels / 127.5 - 1, atol=1e-6)
    with pytest.raises(MedgenError, match="has 3 channels and 'image' takes one; use channels image_red"):
        FileData(path, {"image": rule}, (6, 6)).split("train")
    Image.fromarray(np.repeat(pixels[..., :1], 3, -1)).save(tmp_path / "a.png")
    grey = FileData(path, {"image": rule}, (6, 6)).split("train").case(0, None)
    np.testing.assert_allclose(grey["image"][0], pixels[..., 0] / 127.5 - 1, atol=1e-6)


def test_load_prepare_save_returns_voxels_and_affine(brains, tmp_path):
    """A patch of the whole grid, mapped and unmapped, written by `Volume` and compared with the file."""
    from medgen.core.geometry import resampled_like

    stored = read(brains / "s4_t1.nii.gz")
    source = file_data(brains, size=SHAPE)
    case = source.split("test").case(0, None)
    fit = source.maps["t1"].fit(stored.array)
    back = Volume(source.maps["t1"].inverse(case["t1"], **fit), case["affine"].astype(float))
    resampled_like(back, stored.shape, stored.affine).save(tmp_path / "back.nii.gz")
    again = nibabel.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(again.affine, LPS)
    np.testing.assert_allclose(again.get_fdata(), head(4), atol=1e-5 * head(4).max())


def test_a_split_is_read_once(brains):
    source = file_data(brains)
    first = source.split("train")
    (brains / "s0_t1.nii.gz").unlink()
    np.testing.assert_array_equal(first.case(2, None)["t1"], source.split("train").case(2, None)["t1"])


# --- what is refused ------------------------------------------------------------------------------------------------------------


def spoil_shape(folder):
    save(folder / "s1_t2.nii.gz", head(1, (6, 5, 8)))


def spoil_affine(folder):
    moved = LPS.copy()
    moved[0, 3] += 2.3
    save(folder / "s1_t2.nii.gz", head(1), moved)


def spoil_label(folder):
    save(folder / "s1_mask.nii.gz", (head(1) > 0).astype(np.uint8) * 3)


def spoil_file(folder):
    (folder / "s1_t1.nii.gz").unlink()


def spoil_nan(folder):
    save(folder / "s1_t1.nii.gz", np.full(SHAPE, np.nan, np.float32))


def replaced(old, new):
    return lambda folder: (folder / "list.csv").write_text((folder / "list.csv").read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shape, r"subject s1: t1 has shape \(12, 10, 8\), t2 \(6, 5, 8\): a pair must share its grid"),
        (spoil_affine, "subject s1: the affines of t1 and t2 place a corner 2.30 mm apart: a pair must share its grid"),
        (spoil_label, r"s1_mask\.nii\.gz: label map 'mask' has the value 3; expected whole numbers from 0 to 1 \(2 classes\)"),
        (spoil_file, r"subject s1: no file .*s1_t1\.nii\.gz for 't1'"),
        (spoil_nan, r"s1_t1\.nii\.gz: 960 of 960 voxels are NaN"),
        (replaced("s1_t2.nii.gz", ""), "subject s1 has no file for 't2'"),
        (replaced("41.5", "old"), "subject s1: attribute 'age' is 'old', not a number"),
        (replaced("41.5,1", "41.5,2"), "subject s1: attribute 'sex' is 2; expected a class from 0 to 1"),
        (replaced("train", "fit"), r"no row has split 'train'; the splits there are: fit \(3 rows\), validation \(1 rows\), test"),
        (replaced("t2,mask", "T2w,mask"), "no column 't2'; did you mean '(t1|T2w)'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(brains, spoil, message):
    spoil(brains)
    with pytest.raises(MedgenError, match=message) as caught:
        file_data(brains).split("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": {"t3": MR}}, "no column 't3'; did you mean 't2'"),
        ({"channels": {"t1": {"name": "mr_percentil"}}}, "did you mean 'mr_percentile'"),
        ({"channels": {}}, "at least one"),
        ({"size": (4,)}, "size: expected two numbers"),
        ({"spacing": (1, 1)}, "spacing: expected three positive numbers"),
        ({"slice_axis": 3}, "slice_axis: expected 0"),
        ({"labels": {"t1": 2}}, "'t1' has two roles"),
        ({"slice_axis": None}, "set slice_axis"),
    ],
)
def test_bad_settings_are_refused(brains, changes, message):
    with pytest.raises(MedgenError, match=message):
        file_data(brains, **changes).split("train")


def test_mistyped_provenance_is_refused():
    with pytest.raises(MedgenError, match="did you mean 'licence'"):
        Options(about={"license": "MIT"})


# --- the stream -----------------------------------------------------------------------------------------------------------------


def drawn(batches: StepBatches, times: int) -> list:
    return [batch for _ in range(times) for batch in batches]


def test_every_case_once_per_epoch_in_a_new_order():
    samples = list(itertools.chain(*drawn(StepBatches(Shuffled(10, seed=0), 4, interval=5), 3)))
    assert [n for n, _ in samples] == list(range(60))
    epochs = [[case for _, case in samples[e * 10 : e * 10 + 10]] for e in range(6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    other = list(itertools.chain(*drawn(StepBatches(Shuffled(10, seed=1), 4, interval=5), 3)))
    assert other != samples


def test_an_iteration_is_an_interval():
    batches = StepBatches(Shuffled(7, seed=0), 2, interval=4, start=6, stop=13)
    assert [len(list(batches)) for _ in range(4)] == [2, 4, 1, 0]
    with pytest.raises(TypeError):
        len(batches)


@pytest.mark.parametrize("start", [0, 1, 4, 7, 11])
def test_resuming_at_any_step_goes_on_alike(start):
    whole = drawn(StepBatches(Shuffled(7, seed=5), 3, interval=4, stop=12), 3)
    rest = drawn(StepBatches(Shuffled(7, seed=5), 3, interval=4, start=start, stop=12), 4)
    assert rest == whole[start:]


def test_ranks_share_a_step():
    alone = drawn(StepBatches(Shuffled(11, seed=0), 6, interval=9), 1)
    ranks = [drawn(StepBatches(Shuffled(11, seed=0), 2, interval=9, rank=r, world=3), 1) for r in range(3)]
    for step, batch in enumerate(alone):
        assert sorted(itertools.chain(*(rank[step] for rank in ranks))) == batch
        assert ranks[1][step] == batch[1::3]


def batches_of(brains, workers, start=0, stop=9, **changes):
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    module = DataModule(file_data(brains, **changes), batch_size=4, workers=workers, seed=3)
    module.resume(start, stop, interval=5)
    loader = module.train_dataloader()
    return [batch for _ in range(2) for batch in loader]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("size", [(12, 10), (4, 4, 4)])
def test_batches_do_not_depend_on_workers_or_interruption(brains, size):
    whole = batches_of(brains, 0, size=size)
    assert len(whole) == 9
    assert torch.equal(torch.cat([b["index"] for b in whole]), torch.arange(36))
    for workers in (1, 3):
        assert all(map(same, whole, batches_of(brains, workers, size=size)))
    for start, workers in ((2, 0), (5, 2), (7, 3)):
        rest = batches_of(brains, workers, start=start, size=size)
        assert len(rest) == 9 - start
        assert all(map(same, whole[start:], rest))


def test_a_sample_does_not_depend_on_the_batch_size(brains):
    def stream(batch_size):
        module = DataModule(file_data(brains, size=(4, 4, 4)), batch_size=batch_size, seed=3)
        module.resume(0, 12 // batch_size, interval=100)
        return torch.cat([batch["t1"] for batch in module.train_dataloader()])

    assert torch.equal(stream(2), stream(6))


def test_a_case_is_cut_anew_in_every_epoch(brains):
    places = {tuple(b["affine"][i, :3, 3].tolist()) for b in batches_of(brains, 0, size=(4, 4, 4)) for i in range(4)}
    assert len(places) > 25  # 36 samples of 3 volumes, each with 9 * 7 * 5 places


def test_augmentation_draws_from_the_sample_number(brains):
    def stream(start, workers):
        def brighter(case, rng):
            return {**case, "t1": case["t1"] + np.float32(rng.random())}

        module = DataModule(file_data(brains), batch_size=4, workers=workers, augment=brighter)
        module.resume(start, 10, interval=100)
        return [batch["t1"] for batch in module.train_dataloader()]

    whole = stream(0, 0)
    assert all(map(torch.equal, whole[6:], stream(6, 2)))
    lifted = torch.cat(whole).amin((1, 2, 3)) + 1
    assert lifted.unique().numel() == 40
    plain = DataModule(file_data(brains), batch_size=6).val_dataloader()
    assert (next(iter(plain))["t1"].amin((1, 2, 3)) == -1).all()


def test_batch_contents(brains):
    batch = batches_of(brains, 0)[0]
    assert {k: v.dtype for k, v in batch.items() if torch.is_tensor(v)} == {
        "t1": torch.float32,
        "t2": torch.float32,
        "mask": torch.int64,
        "age": torch.float32,
        "sex": torch.int64,
        "affine": torch.float32,
        "index": torch.int64,
    }
    assert batch["affine"].shape == (4, 4, 4)
    assert set(batch["subject"]) <= {"s0", "s1", "s2"}


def test_test_cases_come_in_order_and_validation_cases_in_one_fixed_mixture(brains):
    module = DataModule(file_data(brains), batch_size=4, workers=1)
    for make, subject, mixed in ((module.val_dataloader, "s3", True), (module.test_dataloader, "s4", False)):
        batches = list(make())
        assert [len(b["subject"]) for b in batches] == [4, 2]
        order = torch.cat([b["index"] for b in batches])
        assert torch.equal(order.sort().values, torch.arange(6)) and torch.equal(order, torch.arange(6)) != mixed
        assert torch.equal(order, torch.cat([b["index"] for b in make()]))
        assert {s for b in batches for s in b["subject"]} == {subject}
        heights = torch.cat([b["affine"] for b in batches])[:, 2, 3]
        assert torch.allclose(heights[order.argsort()].diff(), torch.full((5,), 3.0))


def test_without_validation_training_goes_on_and_says_so(brains):
    replaced(",validation,", ",train,")(brains)
    module = DataModule(file_data(brains))
    with pytest.warns(UserWarning, match="without validation: .*no row has split 'validation'"):
        assert module.val_dataloader() == []
    replaced(",test,", ",train,")(brains)
    with pytest.raises(EmptySplit, match="the splits there are: train"):
        DataModule(file_data(brains)).test_dataloader()


def test_cases_with_other_entries_are_not_joined():
    with pytest.raises(MedgenError, match=r"subject b: has other entries than subject a \(t2\)"):
        collate([{"subject": "a", "t1": np.zeros(1)}, {"subject": "b", "t2": np.zeros(1), "t1": np.zeros(1)}])


def test_lightning_walks_the_stream_once(brains):
    import lightning

    class Notes(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.seen, self.automatic_optimization = [], False

        def training_step(self, batch, batch_idx):
            self.seen += batch["index"].tolist()

        def validation_step(self, batch, batch_idx):
            self.seen.append("v")

        def configure_optimizers(self):
            return None

    module, notes = DataModule(file_data(brains), batch_size=2, workers=2), Notes()
    module.resume(3, 10, interval=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, accelerator="cpu", use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(notes, module)
    validation = ["v"] * 3
    assert notes.seen == [6, 7, *validation, *range(8, 16), *validation, *range(16, 20), *validation]


# --- configs ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channel"), [("slices", "t1"), ("volumes", "t1"), ("pictures", "image")])
def test_a_config_lists_every_argument_and_makes_batches(brains, name, channel):
    from hydra.utils import get_class, instantiate
    from omegaconf import OmegaConf

    path = Path(__file__).parents[1] / "configs" / "data" / f"{name}.yaml"
    assert path.read_text().startswith("# ")
    config = OmegaConf.create({"seed": 4, "data": OmegaConf.load(path)}).data
    options = config.source.options
    for part in (config, config.source, options, options.cut, options.keep):
        assert list(part)[1:] == list(inspect.signature(get_class(part._target_)).parameters)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(brains / "a.png")
    write_csv(brains / "pictures.csv", "subject,image", "a,a.png")
    config.source.manifest = str(brains / ("pictures.csv" if name == "pictures" else "list.csv"))
    config.workers = 0
    module = instantiate(config)
    batch = next(iter(module.train_dataloader()))
    assert batch[channel].shape == (config.batch_size, 1, *config.source.size)
    assert isinstance(module.facts()["size"], tuple)


# --- real files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_a_real_head(shared_data, tmp_path):
    from medgen.core.geometry import resampled_like

    path, head_file = tmp_path / "list.csv", shared_data / "stroke_brain" / "stroke01"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["subject", "t1", "t2"], ["stroke01", head_file / "T1.nii.gz", head_file / "T2.nii.gz"]])
    source = FileData(str(path), {"t1": MR, "t2": MR}, (124, 160, 140))
    stored = read(head_file / "T2.nii.gz")
    case = source.split("train").case(0, np.random.default_rng(0))
    rule = source.maps["t2"]
    back = Volume(rule.inverse(case["t2"], **rule.fit(stored.array)), case["affine"].astype(float))
    again = read(resampled_like(back, stored.shape, stored.affine).save(tmp_path / "t2.nii.gz"))
    np.testing.assert_allclose(again.array, stored.array, atol=1e-5 * stored.array.max())
    np.testing.assert_allclose(again.affine, stored.affine, atol=1e-6)


@pytest.mark.shared_data
@pytest.mark.parametrize("folder", ["chest_xray", "nuclei_he"])
def test_real_pictures(shared_data, folder):
    for file in sorted((shared_data / folder / "images").glob("*.png"))[:10]:
        assert len(read(file).array) in (1, 3)


def test_names_of_splits_are_known_in_any_case(tmp_path):
    (tmp_path / "m.csv").write_text("subject,split,t1\na,Training,a.nii\nb,VAL,b.nii\nc,Test,c.nii\nd,External,d.nii\n")
    assert Manifest.read(tmp_path / "m.csv").splits == ("train", "validation", "test", "External")
