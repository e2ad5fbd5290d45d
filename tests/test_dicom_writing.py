"""DICOM out: it comes back voxel for voxel at its place, other libraries open it, and it says what it is and nothing of the patient."""

import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_samples import AXIAL, by_itk, grid, image, saved, series, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage
from test_cli import CT, METRIC, PLACE, UNET, stored

from medgen.cli.main import main
from medgen.core.contract import Contract
from medgen.core.dicom import save_dicom
from medgen.core.errors import MedgenError
from medgen.core.geometry import reoriented
from medgen.core.volume import Volume
from medgen.data.formats.dicom_series import series_in
from medgen.data.readers import read_stored

# Type 1 (a value) and type 2 (may be empty) attributes of the modules that PS3.3 tables A.3-1, A.4-1 and A.8-1 make mandatory.
GENERAL = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SamplesPerPixel PhotometricInterpretation Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelData"
)
EMPTY = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber SeriesNumber "
    "Manufacturer InstanceNumber"
)
PLANE = ("FrameOfReferenceUID PixelSpacing ImageOrientationPatient ImagePositionPatient", "PositionReferenceIndicator SliceThickness")
MODULES = {
    CTImageStorage: (
        f"{GENERAL} {PLANE[0]} ImageType RescaleIntercept RescaleSlope",
        f"{EMPTY} {PLANE[1]} KVP AcquisitionNumber PatientPosition",
    ),
    MRImageStorage: (
        f"{GENERAL} {PLANE[0]} ImageType ScanningSequence SequenceVariant",
        f"{EMPTY} {PLANE[1]} ScanOptions MRAcquisitionType EchoTime EchoTrainLength RepetitionTime PatientPosition",
    ),
    SecondaryCaptureImageStorage: (f"{GENERAL} ConversionType", EMPTY),
}


def orientations() -> list[np.ndarray]:
    """The 48 ways to lay three axes of 0.7, 0.8 and 2.5 mm along the world's."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for column, (row, sign, step) in enumerate(zip(order, signs, (0.7, 0.8, 2.5), strict=True)):
                affine[row, column] = sign * step
            affine[:3, 3] = 3, -4, 5
            found.append(affine)
    return found


def files(path: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(p) for p in sorted(path.iterdir())] if path.is_dir() else [pydicom.dcmread(path)]


@pytest.mark.parametrize("turn", [False, True])
def test_any_orientation_comes_back_at_its_place(tmp_path, turn):
    for i, affine in enumerate(orientations()):
        affine = turned(affine) if turn else affine
        volume = Volume(grid()[None], affine, "HU")
        back = read_stored(volume.save(tmp_path / f"{i}.dcm"))
        again, first = reoriented(back, volume.orientation), by_itk(tmp_path / f"{i}.dcm")
        assert again.array.dtype == np.int16 and np.array_equal(again.array, volume.array)
        assert np.abs(again.affine - affine).max() < 1e-4
        assert np.array_equal(first.array, back.array) and np.abs(first.affine - back.affine).max() < 1e-4
        assert back.orientation[:2] in ("LP", "PI", "LI") or turn  # as viewers show a plane


def test_a_series_comes_back_axis_for_axis(tmp_path):
    right_handed = [affine for affine in orientations() if np.linalg.det(affine[:3, :3]) > 0]
    assert len(right_handed) == 24
    for i, affine in enumerate([*right_handed, turned(AXIAL)]):
        first = read_stored(series(tmp_path / f"s{i}", grid(), affine))
        second = read_stored(first.save(tmp_path / f"{i}.dcm"))
        assert np.array_equal(second.array, first.array) and np.abs(second.affine - first.affine).max() < 1e-4


def test_a_sheared_grid_is_written_exactly_and_a_skewed_plane_refused(tmp_path):
    sheared = AXIAL.copy()
    sheared[1, 2] = -0.6
    back = read_stored(Volume(grid()[None], sheared, "HU").save(tmp_path / "a.dcm"))
    assert np.array_equal(back.array[0], grid()) and np.abs(back.affine - sheared).max() < 1e-6
    skewed = AXIAL.copy()
    skewed[0, 1] = 0.1
    with pytest.raises(MedgenError, match="not at a right angle"):
        Volume(grid()[None], skewed, "HU").save(tmp_path / "b.dcm")
    assert not list(tmp_path.glob("*b.dcm*"))


@pytest.mark.parametrize(
    ("volume", "sop_class", "kind", "count"),
    [
        (Volume(grid()[None], AXIAL, "HU"), CTImageStorage, "CT", 6),
        (Volume(grid()[None] + np.float32(0.3), AXIAL, "arbitrary (MR)"), MRImageStorage, "MR", 6),
        (Volume(grid()[None, :, :, :1], AXIAL, "HU"), CTImageStorage, "CT", 1),
        (Volume(grid()[None] / np.float32(500), AXIAL, "SUV"), SecondaryCaptureImageStorage, "OT", 6),
        (Volume(grid()[None, :, :, 0], None, "stored"), SecondaryCaptureImageStorage, "OT", 1),
        (Volume(np.arange(60, dtype=np.uint8).reshape(3, 4, 5)), SecondaryCaptureImageStorage, "OT", 1),
        (Volume(np.arange(45, dtype=np.uint8).reshape(3, 3, 5)), SecondaryCaptureImageStorage, "OT", 1),
    ],
)
def test_what_is_written_is_whole_and_says_what_it_is(tmp_path, volume, sop_class, kind, count, monkeypatch):
    path = volume.save(tmp_path / "a.dcm")
    assert path.is_dir() == (count > 1)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    found = files(path)
    assert len(found) == count and len({str(data.SOPInstanceUID) for data in found}) == count
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "PatientID"):
        assert len({str(data.get(name)) for data in found}) == 1
    values, present = (text.split() for text in MODULES[sop_class])
    for data in found:
        data.decode()
        assert all(data[name].value is not NotImplemented for name in data.dir())  # reading each value validates it
        assert data.SOPClassUID == data.file_meta.MediaStorageSOPClassUID == sop_class and data.Modality == kind
        assert [name for name in values if name not in data or data[name].is_empty] == []
        assert [name for name in present if name not in data] == []
        assert data.ImageType[:2] == ["DERIVED", "SECONDARY"] and data.ImageType[-1] == "SYNTHETIC"
        assert data.ImageType[2] == ("AXIAL" if kind == "CT" else "OTHER" if kind == "MR" else "SYNTHETIC")
        assert data.SyntheticData == "YES" and data.SeriesDescription.startswith("SYNTHETIC") and data.BurnedInAnnotation == "NO"
        assert data.ContentQualification == "RESEARCH" and "Synthetic image made by medgen" in data.DerivationDescription
        assert data.PatientIdentityRemoved == "YES" and data.DeidentificationMethod and data.PatientName == "SYNTHETIC"
        assert not any(element.tag.is_private for element in data)
    assert (sop_class == SecondaryCaptureImageStorage) == (found[0].get("ConversionType") == "SYN")
    assert ("ImagePositionPatient" in found[0]) == (volume.affine is not None)
    back = read_stored(path)
    turned_back = reoriented(back, volume.orientation) if volume.affine is not None else back
    assert np.abs(turned_back.array.astype(float) - volume.array).max() <= np.ptp(volume.array.astype(float)) / 65535


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=6, max_size=6))
def test_the_rounding_error_is_below_its_bound_and_told(tmp_path_factory, values):
    array = np.array(values, np.float32).reshape(1, 2, 3)
    path = Volume(array).save(tmp_path_factory.getbasetemp() / "rounding.dcm", overwrite=True)
    data = pydicom.dcmread(path)
    back = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    error, span = np.abs(back - array[0]).max(), float(array.max()) - float(array.min())
    assert error <= span / 65535
    if "largest rounding error" in data.DerivationDescription:
        told = float(data.DerivationDescription.split("largest rounding error ")[1].split(". ")[0])
        assert error <= told * 1.01
    else:
        assert error == 0


def reference(folder: Path) -> Path:
    def told(data: pydicom.Dataset, k: int) -> None:
        data.PatientBirthDate, data.AccessionNumber, data.ReferringPhysicianName = "19500101", "A1", "Doe^Jane"
        data.PatientPosition, data.InstitutionName, data.BodyPartExamined = "HFS", "A Hospital", "CHEST"
        data.add_new((0x0009, 0x0010), "LO", "VENDOR")

    return series(folder, grid(), AXIAL, change=told)


def test_patient_and_study_are_kept_only_when_asked(tmp_path):
    original = reference(tmp_path / "orig")
    volume = read_stored(original)
    plain = volume.save(tmp_path / "plain.dcm")
    beside = volume.save_dicom(tmp_path / "beside.dcm", original)
    kept = volume.save_dicom(tmp_path / "kept.dcm", reference=original, keep_patient=True)
    for path in (plain, beside):
        for data in files(path):
            body = str(data)
            assert not any(secret in body for secret in ("Real", "P17", "19500101", "20200102", "A1\n", "Doe", "Hospital", "VENDOR"))
            assert data.StudyInstanceUID != "1.2.3.1"
    assert files(plain)[0].FrameOfReferenceUID != "1.2.3.3" and files(beside)[0].FrameOfReferenceUID == "1.2.3.3"
    assert files(beside)[0].PatientPosition == "HFS" and files(beside)[0].BodyPartExamined == "CHEST"
    for data in files(kept):
        assert (data.PatientName, data.PatientID, data.PatientBirthDate) == ("Real^Name", "P17", "19500101")
        assert (data.StudyInstanceUID, data.AccessionNumber) == ("1.2.3.1", "A1") and data.SeriesInstanceUID != "1.2.3.2"
        assert "PatientIdentityRemoved" not in data and "InstitutionName" not in data and data.SeriesDescription.startswith("SYNTHETIC")
    (listed,) = series_in(kept)
    assert listed.patient == "P17" and listed.shapes == ((5, 4, 6),)


def test_the_frame_of_reference_is_kept_only_for_its_geometry(tmp_path):
    original = reference(tmp_path / "orig")
    volume = read_stored(original)
    far, askew = volume.affine.copy(), turned(volume.affine)
    far[0, 3] += 1000
    for i, affine in enumerate((far, askew)):
        path = volume.with_array(volume.array, affine=affine).save_dicom(tmp_path / f"{i}.dcm", original)
        assert files(path)[0].FrameOfReferenceUID != "1.2.3.3"
    path = reoriented(volume, "RAS").save_dicom(tmp_path / "ras.dcm", next(original.iterdir()))
    assert files(path)[0].FrameOfReferenceUID == "1.2.3.3"
    back = read_stored(path)
    assert np.array_equal(back.array, volume.array) and np.allclose(back.affine, volume.affine)  # turned back to the original's axes


def test_what_cannot_be_written_is_refused_in_a_sentence(tmp_path):
    original = reference(tmp_path / "orig")
    refused = {
        "2 channels or time points": Volume(np.stack([grid(), grid()]), AXIAL),
        "without geometry": Volume(grid()[None]),
        "a picture of 2 channels": Volume(np.zeros((2, 4, 5))),
        "NaN or infinite": Volume(np.full((1, 4, 5), np.nan)),
        "colour from 0 to 300": Volume(np.linspace(0, 300, 60).reshape(3, 4, 5)),
    }
    for words, volume in refused.items():
        with pytest.raises(MedgenError, match=words):
            volume.save(tmp_path / "a.dcm")
    volume = Volume(grid()[None], AXIAL, "HU")
    with pytest.raises(MedgenError, match="keep_patient needs a reference"):
        volume.save_dicom(tmp_path / "a.dcm", keep_patient=True)
    with pytest.raises(MedgenError, match=r"must end in \.dcm"):
        save_dicom(volume, tmp_path / "a.nii", original)
    saved(image(grid()[:, :, 0].copy(), StudyInstanceUID="1.2.9"), original / "other")
    with pytest.raises(MedgenError, match="images of one study, found 2"):
        volume.save_dicom(tmp_path / "a.dcm", original)
    assert not (tmp_path / "a.dcm").exists()


def test_nothing_is_replaced_silently_and_nothing_half_is_left(tmp_path, monkeypatch):
    volume = Volume(grid()[None], AXIAL, "HU")
    path = volume.save(tmp_path / "a.dcm")
    before = sorted(p.read_bytes() for p in path.iterdir())
    with pytest.raises(MedgenError, match="exists"):
        volume.save(path)
    monkeypatch.setattr("medgen.core.dicom._place", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MedgenError, match="No space left"):
        volume.save(path, overwrite=True)
    assert sorted(p.read_bytes() for p in path.iterdir()) == before and [p.name for p in tmp_path.iterdir()] == ["a.dcm"]
    monkeypatch.undo()
    volume.with_array(volume.array[..., :2]).save(path, overwrite=True)
    assert len(list(path.iterdir())) == 2 and [p.name for p in tmp_path.iterdir()] == ["a.dcm"]
    volume.with_array(volume.array[..., :1]).save(path, overwrite=True)
    assert path.is_file()
    volume.save(path, overwrite=True)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(MedgenError, match="more than a DICOM series"):
        volume.save(path, overwrite=True)


def test_float_slices_of_a_coarse_axis_and_a_thin_one(tmp_path):
    coronal = np.array([[1, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = Volume(grid()[None], coronal, "HU").save(tmp_path / "a.dcm")
    assert len(list(path.iterdir())) == 4  # slices along the coarse axis
    assert read_stored(path).orientation[:2] == "LI"
    thin = Volume(grid()[None, :1], np.eye(4), "HU").save(tmp_path / "b.dcm")
    assert thin.is_file() and read_stored(thin).orientation[:2] == "PI"


def test_labels_and_bools_keep_their_values(tmp_path):
    mask = grid() > 100
    back = read_stored(Volume(mask[None], AXIAL, "label").save(tmp_path / "a.dcm"))
    assert np.array_equal(back.array[0], mask) and back.affine[0, 0] == -0.7


@pytest.fixture
def translator(tmp_path) -> Path:
    """A 2D regression of random weights from CT to CT."""
    model = {"_target_": "medgen.models.regression.Regression", "network": {**UNET, "in_channels": 0, "condition": {"dense": 1}}}
    task = {"_target_": "medgen.tasks.translation.Translation", "source": ["ct"], "target": ["full"], "metric": METRIC}
    contract = Contract(2, (16, 16), ("full",), ("ct",), intensity={"full": CT, "ct": CT}, **PLACE)
    return stored(tmp_path / "translator", model, task, contract)


@pytest.fixture
def generator(tmp_path) -> Path:
    """A 2D diffusion model of random weights that draws CT."""
    model = {
        "_target_": "medgen.models.diffusion.Diffusion",
        "network": {**UNET, "in_channels": 1},
        "preconditioning": {"_target_": "medgen.models.preconditioning.EDM"},
        "levels": {"_target_": "medgen.core.levels.LogNormal"},
        "sampler": {"_target_": "medgen.samplers.heun.Heun", "grid": {"_target_": "medgen.core.levels.Karras"}, "steps": 1},
    }
    task = {"_target_": "medgen.tasks.synthesis.Synthesis", "target": ["ct"], "metric": METRIC}
    return stored(tmp_path / "generator", model, task, Contract(2, (8, 8), ("ct",), intensity={"ct": CT}, **PLACE))


def test_translate_writes_a_series_beside_its_input(translator, tmp_path, capsys):
    original = reference(tmp_path / "orig")
    main(["translate", str(translator), str(original), "-o", str(tmp_path / "a.dcm")])
    main(["translate", str(translator), f"{original}#1", "-o", str(tmp_path / "b.dcm"), "--keep-patient"])
    volume, made = read_stored(original), read_stored(tmp_path / "a.dcm")
    assert made.units == "HU" and made.shape == volume.shape and np.allclose(made.affine, volume.affine)
    first, second = files(tmp_path / "a.dcm")[0], files(tmp_path / "b.dcm")[0]
    assert first.PatientName == "SYNTHETIC" and first.FrameOfReferenceUID == "1.2.3.3" and first.SeriesDescription == "SYNTHETIC translator"
    assert second.PatientID == "P17" and second.StudyInstanceUID == "1.2.3.1" and second.SyntheticData == "YES"
    main(["translate", str(translator), str(original), "-o", str(tmp_path / "c.nii.gz")])
    nifti = read_stored(tmp_path / "c.nii.gz")
    assert np.abs(nifti.array - made.array).max() <= np.ptp(nifti.array) / 65535 and np.allclose(nifti.affine, made.affine)
    for arguments in ([original, "-o", tmp_path / "d.nii.gz"], [tmp_path / "c.nii.gz", "-o", tmp_path / "d.dcm"]):
        with pytest.raises(SystemExit):
            main(["translate", str(translator), *map(str, arguments), "--keep-patient"])
        assert "--keep-patient takes a DICOM series" in capsys.readouterr().err
    assert not list(tmp_path.glob("d.*"))


def test_generate_writes_one_series_per_image(generator, tmp_path, capsys):
    arguments = ["generate", str(generator), "-n", "2", "-o", str(tmp_path / "out"), "--format", "dicom"]
    main(arguments)
    first, second = (pydicom.dcmread(tmp_path / "out" / f"sample_00{i}.dcm") for i in range(2))
    assert first.SOPClassUID == CTImageStorage and first.StudyInstanceUID != second.StudyInstanceUID
    assert "seed 0" in first.DerivationDescription and first.SeriesDescription == "SYNTHETIC generator"
    with pytest.raises(SystemExit):
        main(arguments)
    assert "exists" in capsys.readouterr().err


def test_reconstruct_writes_image_view_and_deviation(generator, tmp_path):
    affine = np.diag([1.0, 2, 3, 1])
    original = series(tmp_path / "orig", np.tile(grid(), (2, 2, 1))[:8, :8], affine)
    options = ["--simulate", "--draws", "2", "--solver-steps", "2", "--slices", "0:2", "--keep-patient"]
    main(["reconstruct", str(generator), str(original), "-o", str(tmp_path / "r.dcm"), *options])
    for name in ("r", "r_view", "r_std"):
        found = files(tmp_path / f"{name}.dcm")
        assert (
            len(found) == 2
            and {data.PatientID for data in found} == {"P17"}
            and {data.FrameOfReferenceUID for data in found} == {"1.2.3.3"}
        )
