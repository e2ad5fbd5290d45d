"""DICOM in: geometry and values against SimpleITK and against what was written, and what is said of series that are not whole."""

import random
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_samples import AXIAL, CORONAL, LPS, SAGITTAL, by_itk, enhanced, grid, image, pet, place, saved, series, turned, write_sample
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
)

from medgen.core.errors import MedgenError
from medgen.core.geometry import reoriented
from medgen.data.formats.dicom_series import series_in
from medgen.data.formats.format import LIMIT
from medgen.data.readers import format_of, peek, read, read_stored
from medgen.data.workers import Failure, Limits, each

SAMPLES = Path(pydicom.data.__file__).parent / "test_files"


@pytest.mark.parametrize(
    "affine", [AXIAL, SAGITTAL, CORONAL, turned(AXIAL), turned(SAGITTAL)], ids=["axial", "sagittal", "coronal", "o1", "o2"]
)
def test_a_ct_series_is_what_was_written_and_what_simpleitk_reads(tmp_path, affine):
    array = grid()
    volume = read_stored(series(tmp_path / "s", array, affine))
    assert volume.units == "HU" and volume.array.dtype == np.int16 and volume.meta["findings"] == []
    assert np.array_equal(volume.array[0], array)
    assert np.abs(volume.affine - affine).max() < 1e-5
    other = by_itk(tmp_path / "s")
    assert np.array_equal(volume.array, other.array) and np.abs(volume.affine - other.affine).max() < 1e-4
    head = peek(tmp_path / "s")
    assert head.shape == volume.shape and head.dtype == np.int16 and np.array_equal(head.affine, volume.affine)
    assert read(tmp_path / "s").array.dtype == np.float32


def test_slopes_of_their_own_per_slice(tmp_path):
    def scaled(data, k):
        data.RescaleSlope, data.RescaleIntercept = f"{0.25 * (k + 1):g}", str(k)

    array = grid()
    volume = read_stored(series(tmp_path / "s", array, turned(AXIAL), "MR", scaled))
    expected = array * (0.25 * np.arange(1, 7)) + np.arange(6)
    assert volume.units == "arbitrary (MR)" and volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0], expected.astype(np.float32))
    assert np.allclose(volume.array, by_itk(tmp_path / "s").array, rtol=1e-6)


def test_suv_of_a_known_patient(tmp_path):
    array, slopes = np.abs(grid()), [1.5, 2, 2.5, 3, 3.5, 4]
    volume = read_stored(pet(tmp_path / "s", array, AXIAL, slopes))
    activity = by_itk(tmp_path / "s").array
    assert np.allclose(activity[0], array * slopes)
    assert volume.units == "SUV" and volume.meta["findings"] == []
    # two half lives: a quarter of 370 MBq is left
    assert np.allclose(volume.array, activity * 70000 / (370e6 / 4), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "factor", "said"),
    [
        (lambda d, k: setattr(d, "DecayCorrection", "ADMIN"), 70000 / 370e6, None),
        (
            lambda d, k: setattr(d, "SeriesTime", "140000"),
            70000 / 370e6 * 2 ** (12060 / 6000),
            None,
        ),  # the series' time is of a later export
        (lambda d, k: delattr(d, "PatientWeight"), 1, "PatientWeight"),
        (lambda d, k: setattr(d, "CorrectedImage", ["DECY"]), 1, "ATTN"),
        (lambda d, k: setattr(d, "DecayCorrection", "NONE"), 1, "DecayCorrection"),
        (lambda d, k: delattr(d.RadiopharmaceuticalInformationSequence[0], "RadionuclideTotalDose"), 1, "RadionuclideTotalDose"),
        (lambda d, k: setattr(d, "Units", "CNTS"), 1, "CNTS"),
    ],
)
def test_suv_by_other_ways_and_what_it_lacks(tmp_path, change, factor, said):
    from copy import deepcopy

    def changed(data, k):
        data.RadiopharmaceuticalInformationSequence = deepcopy(data.RadiopharmaceuticalInformationSequence)
        change(data, k)

    array = np.abs(grid())
    volume = read_stored(pet(tmp_path / "s", array, AXIAL, [2] * 6, changed))
    assert np.allclose(volume.array[0], array * 2.0 * factor, rtol=1e-6)
    if said is None:
        assert volume.units == "SUV" and volume.meta["findings"] == []
    else:
        assert volume.units in ("BQML", "CNTS") and said in volume.meta["findings"][0]


def test_an_injection_before_midnight(tmp_path):
    def night(data, k):
        data.SeriesTime = data.AcquisitionTime = "010000"
        data.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "231959.999999"

    array = np.abs(grid())
    volume = read_stored(pet(tmp_path / "s", array, AXIAL, [2] * 6, night))
    assert np.allclose(volume.array[0], array * 2.0 * 70000 / (370e6 / 2), rtol=1e-5)


def test_missing_slices_are_refused_and_filled_where_asked(tmp_path):
    x, y, z = np.meshgrid(np.arange(5), np.arange(4), np.arange(6), indexing="ij")
    ramp = (100 * x + 10 * y + 4 * z).astype(np.int16)
    folder = series(tmp_path / "s", ramp, turned(AXIAL))
    next(p for p in folder.iterdir() if np.allclose(place_of(p), LPS @ (turned(AXIAL) @ [0, 0, 2, 1])[:3], atol=1e-4)).unlink()
    assert any("1 slice is missing" in finding for finding in peek(folder).meta["findings"])
    with pytest.raises(MedgenError, match=r"1 slice is missing .*'\+even'"):
        read_stored(folder)
    for part in ("+even", "1+even", "1.2.3.2+even"):
        volume = read_stored(f"{folder}#{part}")
        assert np.allclose(volume.array[0], ramp, atol=1e-3) and np.allclose(volume.affine, turned(AXIAL), atol=1e-5)


def place_of(path: Path) -> np.ndarray:
    return np.array(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient, float)


def test_uneven_distances_are_refused_and_interpolated_where_asked(tmp_path):
    places = np.array([0, 1.0, 2.6, 3.1, 4.3, 5.0])
    ramp = np.broadcast_to((100 * places).astype(np.int16), (5, 4, 6))
    folder = series(tmp_path / "s", ramp, AXIAL, change=lambda data, k: place(data, AXIAL, places[k]))
    with pytest.raises(MedgenError, match=r"uneven distances between slices: from 1\.25 to 4 mm"):
        read_stored(folder)
    volume = read_stored(f"{folder}#+even")
    assert np.allclose(volume.array[0, 0, 0], 100 * np.arange(6), atol=1e-2) and np.allclose(volume.affine, AXIAL)


def test_slightly_rounded_positions_are_told_and_kept(tmp_path):
    places = np.array([0, 1.0, 2.05, 3.0, 4.0, 5.0])
    volume = read_stored(series(tmp_path / "s", grid(), AXIAL, change=lambda data, k: place(data, AXIAL, places[k])))
    assert np.allclose(volume.affine, AXIAL) and "0.125 mm off an even grid" in volume.meta["findings"][0]


def test_gantry_tilt_is_a_sheared_affine_and_upright_where_asked(tmp_path):
    sheared = AXIAL.copy()
    sheared[1, 2] = -2.5 * np.tan(np.radians(12))
    x, y, z = np.meshgrid(np.arange(5), np.arange(30), np.arange(6), indexing="ij")
    height = sheared @ np.stack([x, y, z, np.ones_like(x)]).reshape(4, -1)
    world = (10 * height[0] + 20 * height[1] + 30 * height[2]).reshape(x.shape)  # linear in the world: interpolation is exact
    volume = read_stored(series(tmp_path / "s", np.rint(world).astype(np.int16), sheared))
    assert np.abs(volume.affine - sheared).max() < 1e-5
    assert "gantry tilt of 12.00 degrees" in volume.meta["findings"][0]
    assert np.abs(volume.affine - by_itk(tmp_path / "s").affine)[:, :2].max() < 1e-4
    upright = read_stored(f"{tmp_path / 's'}#+even")
    axes = upright.affine[:3, :3] / upright.spacing
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6) and upright.spacing == pytest.approx((0.7, 0.8, 2.5))
    index = np.stack([*np.meshgrid(*map(np.arange, upright.shape), indexing="ij"), np.ones(upright.shape)]).reshape(4, -1)
    place_ = upright.affine @ index
    expected = (10 * place_[0] + 20 * place_[1] + 30 * place_[2]).reshape(upright.shape)
    inside = upright.array[0] != -1024
    assert np.abs(upright.array[0] - expected)[inside].max() < 20  # half a voxel at an edge, where the edge value goes on
    assert np.median(np.abs(upright.array[0] - expected)[inside]) < 0.6 and inside.mean() > 0.8


def test_identical_copies_are_left_out_and_different_ones_refused(tmp_path):
    array = grid()
    folder = series(tmp_path / "s", array, AXIAL)
    one = pydicom.dcmread(folder / "im002")
    one.save_as(folder / "copy")
    volume = read_stored(folder)
    assert np.array_equal(volume.array[0], array)
    assert volume.meta["findings"] == ["1 position held more than once", "1 identical copy of slices left out"]
    one.PixelData = bytes(len(one.PixelData))
    one.save_as(folder / "copy")
    with pytest.raises(MedgenError, match="different images of the same position"):
        read_stored(folder)


def test_slices_that_drift_sideways_are_refused(tmp_path):
    def drift(data, k):
        data.ImagePositionPatient[0] += 3 * (k == 2)

    with pytest.raises(MedgenError, match="shifted sideways against each other by up to 3 mm"):
        read_stored(f"{series(tmp_path / 's', grid(), AXIAL, change=drift)}#+even")


def test_several_series_are_listed_and_chosen(tmp_path):
    array = grid()
    series(tmp_path, array, AXIAL, SeriesNumber=3, SeriesDescription="Thorax", SeriesInstanceUID="1.5.3")
    series(tmp_path, array[..., :2] + 5, SAGITTAL, "MR", first=100, SeriesNumber=4, SeriesInstanceUID="1.5.4")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(MedgenError, match=r"holds 2 series; choose one: '#3' CT Thorax, 6 slices; '#4' MR, 2 slices"):
        peek(tmp_path)
    with pytest.raises(MedgenError, match="no series '7'"):
        peek(f"{tmp_path}#7")
    assert np.array_equal(read_stored(f"{tmp_path}#3").array[0], array)
    assert np.array_equal(read_stored(f"{tmp_path}#1.5.4").array[0], array[..., :2] + 5)
    assert read_stored(f"{tmp_path}#3").meta["findings"] == ["skipped in the folder: 1 other file(s), 0 DICOM file(s) without pixels"]
    three, four = series_in(tmp_path)
    assert (three.part, three.modality, three.files, three.description, three.shapes) == ("3", "CT", 6, "Thorax", ((5, 4, 6),))
    assert (four.uid, four.patient, four.study, four.shapes) == ("1.5.4", "P17", "1.2.3.1", ((5, 4, 2),))
    inside = series_in(tmp_path.parent, recursive=True)
    assert {s.uid for s in inside if s.folder == tmp_path} == {"1.5.3", "1.5.4"}


def test_localizers_in_three_orientations_are_chosen_one_by_one(tmp_path):
    for first, affine in ((0, AXIAL), (100, SAGITTAL), (200, CORONAL)):
        series(tmp_path, grid()[..., :3] + first, affine, "MR", lambda d, k, n=first: setattr(d, "InstanceNumber", n + k + 1), first)
    with pytest.raises(MedgenError, match=r"'#1:1' axial 5x4x3; '#1:2' sagittal 5x4x3; '#1:3' coronal 5x4x3"):
        read_stored(tmp_path)
    volume = read_stored(f"{tmp_path}#1:2")
    assert np.array_equal(volume.array[0], grid()[..., :3] + 100) and np.allclose(volume.affine, SAGITTAL)
    (found,) = series_in(tmp_path)
    assert found.shapes == ((5, 4, 3),) * 3 and "3 groups that do not fit on one grid" in found.findings


@pytest.mark.parametrize(
    ("tag", "values", "name"),
    [
        ("EchoTime", (4.6, 12.5), "echo time (ms) 4.6"),
        ("TemporalPositionIdentifier", (1, 2), "temporal position 1"),
        ("AcquisitionTime", ("101500", "101600"), "acquisition time 101500"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "image type ORIGINAL\\PRIMARY\\M"),
    ],
)
def test_several_images_at_each_place_are_planes(tmp_path, tag, values, name):
    for i, value in enumerate(values):
        series(tmp_path, grid() + i, AXIAL, "MR", first=100 * (1 - i), **{tag: value})
    volume = read_stored(tmp_path)
    assert volume.array.shape == (2, 5, 4, 6) and volume.meta["planes"][0] == name
    assert np.array_equal(volume.array, np.stack([grid(), grid() + 1]))
    assert peek(tmp_path).channels == 2


def test_times_that_differ_from_slice_to_slice_are_ranked(tmp_path):
    for i in range(3):
        series(tmp_path, grid() + i, AXIAL, "MR", lambda d, k, i=i: setattr(d, "TriggerTime", 100 * i + k), 100 * i)
    volume = read_stored(tmp_path)
    assert np.array_equal(volume.array, np.stack([grid() + i for i in range(3)]))
    assert volume.meta["planes"][2] == "trigger time (ms) number 3"
    for path in sorted(tmp_path.iterdir())[:2]:
        path.unlink()
    with pytest.raises(MedgenError, match="an echo or time point is not complete"):
        read_stored(tmp_path)


def test_a_multi_frame_file_with_functional_groups(tmp_path):
    array = np.stack([grid(), grid() + 9])
    path = saved(enhanced(array, turned(AXIAL), echoes=(5, 20), slope=0.5), tmp_path / "mr")
    volume = read_stored(path)
    assert volume.meta["planes"] == ["echo time (ms) 5", "echo time (ms) 20"]
    assert np.allclose(volume.array, array * (0.5 * np.arange(1, 7)) - 5) and np.allclose(volume.affine, turned(AXIAL), atol=1e-5)
    one = saved(enhanced(array[:1], SAGITTAL, "CT"), tmp_path / "ct.dcm")
    volume = read_stored(one)
    assert volume.array.shape == (1, 5, 4, 6) and np.allclose(volume.affine, SAGITTAL, atol=1e-6)


@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (63536, None), (-2000, -1990)])
def test_declared_padding_of_ct_becomes_air(tmp_path, value, limit):
    array = grid()
    array[0, :, :3] = -2000
    array[1, 0, 0] = -1995

    def padded(data, k):
        data.RescaleIntercept = -1024
        data.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", "SS", limit)

    volume = read_stored(series(tmp_path / "s", array, AXIAL, change=padded))
    expected = array - 1024
    expected[array == -2000] = -1024
    if limit is not None:
        expected[1, 0, 0] = -1024
    assert np.array_equal(volume.array[0], expected)
    share = np.mean((array == -2000) | (array == -1995) & (limit is not None))
    assert f"{share:.1%} of the voxels are declared padding (values from -3024)" in volume.meta["findings"][0]


def test_each_slice_declares_its_own_padding(tmp_path):
    array = grid()
    array[0, 0] = -2000

    def change(data, k):
        if k > 0:
            data.add_new("PixelPaddingValue", "SS", -2000)

    volume = read_stored(series(tmp_path / "s", array, AXIAL, change=change))
    assert volume.array[0, 0, 0].tolist()[0] == -2000 and set(volume.array[0, 0, 0].tolist()[1:]) == {-1024}


@pytest.mark.parametrize(
    ("half", "dated", "hours", "said"),
    [
        (6586.2, "20200110090000", 1, None),
        (6586.2, "20200109233000", 10.5, None),
        (6586.2, "20191201090000", 1, "the injection is dated 2019-12-01 and the scan 2020-01-10: only its clock time is used"),
        (6586.2, "20210110090000", 1, "the injection is dated 2021-01-10"),
        (6586.2, "20200109090000", 1, "the injection is dated 2020-01-09"),  # 25 hours of F-18 leave nothing to scan
        (282240.0, "20200105090000", 121, None),  # Zr-89 is scanned days later
        (282240.0, "20190105090000", None, "no SUV: lacks a believable time of the injection"),
    ],
)
def test_the_date_of_an_injection_is_believed_where_it_can_be(tmp_path, half, dated, hours, said):
    from copy import deepcopy

    def change(data, k):
        data.SeriesDate = data.AcquisitionDate = "20200110"
        data.SeriesTime = data.AcquisitionTime = "100000"
        data.RadiopharmaceuticalInformationSequence = deepcopy(data.RadiopharmaceuticalInformationSequence)
        drug = data.RadiopharmaceuticalInformationSequence[0]
        drug.RadiopharmaceuticalStartDateTime, drug.RadionuclideHalfLife = dated, half

    array = np.abs(grid())
    volume = read_stored(pet(tmp_path / "s", array, AXIAL, [2] * 6, change))
    assert (volume.meta["findings"] == []) if said is None else said in volume.meta["findings"][0]
    factor = 1 if hours is None else 70000 / (370e6 * 2 ** (-hours * 3600 / half))
    assert np.allclose(volume.array[0], array * 2.0 * factor, rtol=1e-4)
    assert volume.units == ("BQML" if hours is None else "SUV")


def test_undeclared_padding_is_told_and_kept_and_that_of_mr_is_the_lowest_value(tmp_path):
    array = grid()
    array[0] = -3024
    volume = read_stored(series(tmp_path / "ct", array, AXIAL))
    assert volume.array.min() == -3024 and "20.0% of the voxels lie below -1024 HU (lowest -3024)" in volume.meta["findings"][0]
    array[0] = -32768
    volume = read_stored(series(tmp_path / "mr", array, AXIAL, "MR", lambda d, k: d.add_new("PixelPaddingValue", "SS", -32768)))
    assert volume.array[0, 0].min() == volume.array[0, 0].max() == array[1:].min()


def test_bits_below_others_and_signs(tmp_path):
    values = np.arange(20, dtype=np.int64).reshape(4, 5) * 100 - 900  # 12 bits, signed
    words = ((values & 0xFFF) << 2 | 0xC003).astype(np.uint16)  # an overlay in the bits above and below
    data = image(words, "MR", BitsStored=12, HighBit=13, PixelRepresentation=1)
    place(data, AXIAL, 0)
    assert np.array_equal(read_stored(saved(data, tmp_path / "a.dcm")).array[0, :, :, 0].T, values)
    words = (values & 0xFFF | 0xF000).astype(np.uint16)
    data = image(words, "MR", BitsStored=12, HighBit=11, PixelRepresentation=1)
    place(data, AXIAL, 0)
    assert np.array_equal(read_stored(saved(data, tmp_path / "b.dcm")).array[0, :, :, 0].T, values)


def test_radiographs_are_pictures_and_monochrome1_is_inverted(tmp_path):
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5) * 50
    tags = dict(BitsStored=12, HighBit=11, ImagerPixelSpacing=[0.2, 0.1])
    plain = read_stored(saved(image(pixels, "DX", **tags), tmp_path / "a.dcm"))
    assert plain.affine is None and np.array_equal(plain.array, pixels[None])
    assert plain.meta["spacing"] == (0.2, 0.1) and plain.meta["spacing_from"] == "ImagerPixelSpacing"
    data = image(pixels, "DX", PhotometricInterpretation="MONOCHROME1", **tags)
    inverted = read_stored(saved(data, tmp_path / "b.dcm"))
    assert np.array_equal(inverted.array, 4095 - pixels[None]) and inverted.meta["inverted"] is True
    data = image(pixels.astype(np.int16), "CT", PhotometricInterpretation="MONOCHROME1")
    place(data, AXIAL, 0)
    kept = read_stored(saved(data, tmp_path / "c.dcm"))
    assert np.array_equal(kept.array[0, :, :, 0].T, pixels) and "values in HU are kept" in kept.meta["findings"][-1]


def test_colour_and_palettes_become_three_planes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    assert np.array_equal(read_stored(saved(image(pixels, "OT"), tmp_path / "a.dcm")).array, np.moveaxis(pixels, -1, 0))
    table = np.random.default_rng(1).integers(0, 256, (3, 256), np.uint8)
    data = image(pixels[..., 0].copy(), "US", PhotometricInterpretation="PALETTE COLOR")
    for name, row in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(data, f"{name}PaletteColorLookupTableData", row.tobytes())
    volume = read_stored(saved(data, tmp_path / "b.dcm"))
    assert volume.array.dtype == np.uint8 and np.array_equal(volume.array, table[:, pixels[..., 0]])


def test_clips_have_a_time_axis(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 6), np.uint8)
    data = image(pixels, "US", UltrasoundMultiFrameImageStorage, NumberOfFrames=7, FrameTime="40")
    region = pydicom.Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    data.SequenceOfUltrasoundRegions = Items([region])
    volume = read_stored(saved(data, tmp_path / "us.dcm"))
    assert np.array_equal(volume.array, pixels[None]) and volume.affine is None
    assert volume.meta["frame_seconds"] == 0.04 and volume.meta["spacing"] == pytest.approx((0.3, 0.2))
    colour = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)
    data = image(colour, "US", NumberOfFrames=7, CineRate=20)
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 4, 6, 3, "RGB", 0
    volume = read_stored(saved(data, tmp_path / "colour.dcm"))
    assert np.array_equal(volume.array, colour.transpose(3, 0, 1, 2)) and volume.meta["frame_seconds"] == 0.05


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_transfer_syntaxes(tmp_path, syntax):
    array, folder = np.repeat(np.repeat(grid(), 8, 0), 8, 1), tmp_path / "s"
    for k in range(6):
        data = image(array[:, :, k].T.copy())
        place(data, AXIAL, k)
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        if syntax in (RLELossless, JPEG2000Lossless):
            data.compress(syntax, generate_instance_uid=False)
        saved(data, folder / f"{k}", syntax)
    assert np.array_equal(read_stored(folder).array[0], array)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("CT_small.dcm", None),
        ("693_J2KI.dcm", None),
        ("JPGExtended.dcm", None),
        ("examples_palette.dcm", None),
        ("examples_ybr_color.dcm", None),
        ("SC_rgb_small_odd_big_endian.dcm", None),
        ("rtdose.dcm", None),
    ],
)
def test_files_of_other_programs(name, same):
    if not (SAMPLES / name).is_file():
        pytest.skip("this pydicom has no such sample")
    volume, head = read_stored(SAMPLES / name), peek(SAMPLES / name)
    assert volume.array.dtype == head.dtype and volume.array.shape == (head.channels, *head.shape) and volume.array.std() > 0
    if same is not None:
        assert np.array_equal(volume.array, read_stored(SAMPLES / same).array)
    if volume.affine is not None and volume.shape[2] == 1:
        other = by_itk(SAMPLES / name)
        assert np.allclose(volume.affine[:, [0, 1, 3]], other.affine[:, [0, 1, 3]], atol=1e-3)
        kept = other.array != -3024  # the declared padding of one of them
        assert np.array_equal(volume.array[kept], other.array[kept]) and kept.mean() > 0.99


def test_a_file_without_meta_information(tmp_path):
    pixels = np.arange(20, dtype=np.int16).reshape(4, 5)
    image(pixels, "OT").save_as(tmp_path / "a.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "a.dcm").read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_stored(tmp_path / "a.dcm").array[0], pixels)


def test_what_is_no_image_is_told(tmp_path):
    folder = series(tmp_path / "s", grid(), AXIAL)
    report = pydicom.Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "1.2", "SR"
    saved(report, folder / "report.dcm")
    (folder / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\xff\xff")
    volume = read_stored(folder)
    assert np.array_equal(volume.array[0], grid())
    assert volume.meta["findings"] == [
        "1 damaged DICOM file(s) skipped: broken.dcm",
        "skipped in the folder: 0 other file(s), 1 DICOM file(s) without pixels",
    ]
    (folder / "broken.dcm").unlink()
    saved(report, tmp_path / "t" / "report.dcm")
    with pytest.raises(MedgenError, match="no DICOM image"):
        read_stored(tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedgenError, match="a folder without a DICOM series"):
        peek(tmp_path / "empty")
    assert format_of(next(p for p in folder.iterdir() if not p.suffix)).name == "DICOM"


def test_a_header_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    pixels = np.zeros((4, 5), np.int16)
    data = image(pixels, "US", NumberOfFrames=1)
    data.Rows = data.Columns = 65535
    data.NumberOfFrames = 2**31 - 1
    with pytest.raises(MedgenError, match="its header claims"):
        read_stored(saved(data, tmp_path / "a.dcm"))
    body = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    saved(image(pixels, "US"), tmp_path / "b.dcm", DeflatedExplicitVRLittleEndian)
    start = (tmp_path / "b.dcm").read_bytes()
    length = 144 + pydicom.filereader.read_file_meta_info(tmp_path / "b.dcm").FileMetaInformationGroupLength
    bomb = body.compress(bytes(64_000_000)) + body.flush()
    (tmp_path / "b.dcm").write_bytes(start[:length] + bomb)
    monkeypatch.setenv(LIMIT, "10000000")
    with pytest.raises(MedgenError, match="unpacks to more than"):
        read_stored(tmp_path / "b.dcm")


def test_a_compressed_image_of_another_size_than_its_header_is_refused(tmp_path):
    data = image(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), "OT")
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.compress(JPEG2000Lossless)
    data.Rows = 32
    with pytest.raises(MedgenError, match="its compressed image is 64x64x1 and its header says 32x64x1"):
        read_stored(saved(data, tmp_path / "a.dcm", JPEG2000Lossless))


def damaged(path: str) -> str:
    """What becomes of a mutated file: a shape, or the sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f"read {read(path).shape}"
    except MedgenError as error:
        return f"refused {error}"


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_end_in_a_volume_or_a_sentence(tmp_path, count):
    draw = random.Random(1)
    originals = [write_sample(tmp_path / "sample.dcm").read_bytes()]
    originals += [p.read_bytes() for p in (SAMPLES / n for n in ("MR_small_RLE.dcm", "693_J2KI.dcm", "JPGExtended.dcm")) if p.is_file()]
    paths = []
    for i in range(count):
        body = bytearray(originals[i % len(originals)])
        for _ in range(draw.choice((1, 3, 20))):
            body[draw.randrange(132, min(len(body), draw.choice((1500, len(body)))))] = draw.randrange(256)
        body = body[: draw.randrange(132, len(body))] if draw.random() < 0.2 else body
        paths.append(tmp_path / f"{i}.dcm")
        paths[-1].write_bytes(body)
    results = dict(each(damaged, [str(p) for p in paths], 1, Limits(20, 1 << 30)))
    assert len(results) == count
    lost = [r.reason for r in results.values() if isinstance(r, Failure)]
    assert not any("longer than" in reason or "memory" in reason for reason in lost)
    assert len(lost) <= count // 20  # a decoder in C may end its process, which costs that file alone
    read_well = sum(isinstance(r, str) and r.startswith("read") for r in results.values())
    assert count // 10 < read_well < count
    assert all("\n" not in r for r in results.values() if isinstance(r, str))


@pytest.mark.shared_data
def test_every_series_of_the_real_chest_ct_reads_in_hounsfield_units(shared_data):
    found = series_in(shared_data / "ct_chest", recursive=True)
    assert len({s.patient for s in found}) == 34 and len(found) == 59 and sum(s.files for s in found) == 63
    lows, told = set(), []
    for one in found:
        volume = read_stored(f"{one.folder}#{one.part}")
        assert volume.units == "HU" and volume.shape == (512, 512, 1) and volume.array.max() > 800
        inner = volume.array[0, 156:356, 156:356, 0]
        assert (inner > -1024).mean() > 0.99
        lows.add(int(volume.array.min()))
        told += volume.meta["findings"]
    assert lows == {-1024, -2048}
    assert sum("declared padding (values from -3024): set to -1024 HU" in t for t in told) == 5
    assert sum("lowest -2048" in t for t in told) == 16 and sum("identical copy" in t for t in told) == 4


def test_a_series_keeps_its_world_when_it_is_turned(tmp_path):
    volume = read_stored(series(tmp_path / "s", grid(), SAGITTAL))
    assert np.array_equal(reoriented(volume, "RAS").array, reoriented(by_itk(tmp_path / "s"), "RAS").array)
