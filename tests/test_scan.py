"""Folders as manifests: a small copy of every layout, patterns, what is refused and what is told."""

import csv
import json
import shutil
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from monai.apps.utils import HashCheckError
from omegaconf import OmegaConf
from PIL import Image

from medgen.checkpoint import build
from medgen.cli.configs import compose, config_dir, resolved
from medgen.cli.main import main
from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.columns import Column, coded, read_columns
from medgen.data.files import FileData
from medgen.data.manifest import Manifest
from medgen.data.public import fetch, sets
from medgen.data.readers import read
from medgen.data.scan.scanner import layouts, scan
from medgen.data.scan.words import training_words
from medgen.data.scan.writing import write


def volume(path: Path, value: float = 1.0) -> Path:
    """A small NIfTI with two values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((1, 4, 5, 6), np.float32)
    array[:, 1:3, 1:4, 1:5] = value
    return Volume(array, np.diag([1.0, 2.0, 3.0, 1.0])).save(path)


def picture(path: Path, value: int = 9, colour: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 7, 3) if colour else (6, 7), value, np.uint8)
    pixels[0] = np.arange(21).reshape(7, 3) if colour else np.arange(7)
    Image.fromarray(pixels).save(path)
    return path


def cells(found, *names: str) -> list[tuple[str, ...]]:
    """The rows as tuples of these columns."""
    return [tuple(row.get(name, "") for name in names) for row in found.table.rows]


# ---------------------------------------------------------------- layouts


def test_bids_with_sessions_entities_and_participants(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x"}')
    brain = "derivatives/fsl/sub-02/ses-1/anat/sub-02_ses-1_desc-brain_T1w.nii.gz"
    for session in ("1", "2"):
        volume(tmp_path / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz")
    volume(tmp_path / "sub-02/ses-1/anat/sub-02_ses-1_run-1_T1w.nii.gz")
    volume(tmp_path / "sub-02/ses-1/anat/sub-02_ses-1_run-2_T1w.nii.gz")
    volume(tmp_path / "sub-02/ses-1/anat/sub-02_ses-1_acq-fat_FLAIR.nii.gz")
    volume(tmp_path / "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_desc-lesion_mask.nii.gz")
    volume(tmp_path / brain)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\tsite\nsub-01\t34\tF\tA\nsub-02\tn/a\tM\tB\n")
    (tmp_path / "participants.json").write_text('{"age": {"Description": "in years"}}')
    found = scan(tmp_path)
    assert found.layout == "bids" and "dataset_description.json" in found.reason
    assert cells(found, "subject", "session", "age", "sex") == [
        ("sub-01", "1", "34", "0"),
        ("sub-01", "2", "34", "0"),
        ("sub-02", "1", "", "1"),
    ]
    last = found.table.rows[2]
    assert last["t1w_run_1"].endswith("run-1_T1w.nii.gz") and last["t1w_run_2"].endswith("run-2_T1w.nii.gz")
    assert last["flair"].endswith("acq-fat_FLAIR.nii.gz") and last["mask"].startswith("derivatives/manual")
    assert found.table.columns["mask"] == Column("labels") and found.table.columns["sex"].classes == ("F", "M")
    assert found.table.columns["age"].about == "in years" and found.table.columns["flair"].modality == "MR"
    assert any("T1w occurs more than once" in note and "run" in note for note in found.table.notes)
    assert any("t1w_run_1 is missing in 2 of 3 rows (sub-01)" in note for note in found.table.notes)
    assert found.left_out == {brain: "of a derived or source copy; only masks are taken from derivatives"}


def test_nnunet_raw(tmp_path):
    told = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    for case in ("a", "b"):
        volume(tmp_path / f"labelsTr/{case}.nii.gz")
        volume(tmp_path / f"imagesTr/{case}_0000.nii.gz")
    volume(tmp_path / "imagesTr/a_0001.nii.gz")
    volume(tmp_path / "imagesTs/c_0000.nii.gz")
    volume(tmp_path / "labelsTr/stray.nii.gz")
    found = scan(tmp_path)
    assert found.layout == "nnunet"
    assert cells(found, "subject", "split", "t1", "flair", "label") == [
        ("a", "train", "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"),
        ("b", "train", "imagesTr/b_0000.nii.gz", "", "labelsTr/b.nii.gz"),
        ("c", "test", "imagesTs/c_0000.nii.gz", "", ""),
    ]
    assert found.table.columns["label"].classes == ("0: background", "1: tumour") and found.table.columns["t1"].modality == "MR"
    assert found.table.columns["label"].names() == {0: "background", 1: "tumour"}
    assert any("counts 3 training cases, and 2 are there" in note for note in found.table.notes)
    assert found.left_out == {"labelsTr/stray.nii.gz": "a label map without an image"}


@pytest.mark.parametrize(("channels", "told"), [(1, ""), (2, "image_0 (FLAIR), image_1 (T1w)")])
def test_decathlon_has_a_file_per_case(tmp_path, channels, told):
    names = {"0": "FLAIR", "1": "T1w"} if channels == 2 else {"0": "CT"}
    listed = [{"image": f"./imagesTr/c_{i}.nii.gz", "label": f"./labelsTr/c_{i}.nii.gz"} for i in (1, 2)]
    document = {"modality": names, "labels": {"0": "background", "1": "x"}, "training": listed, "numTraining": 2, "test": []}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    for i in (1, 2):
        array = np.random.default_rng(i).random((channels, 4, 5, 6), np.float32)
        (tmp_path / "imagesTr").mkdir(exist_ok=True)
        Volume(array, np.eye(4)).save(tmp_path / f"imagesTr/c_{i}.nii.gz")
        volume(tmp_path / f"labelsTr/c_{i}.nii.gz")
    found = scan(tmp_path)
    assert cells(found, "subject", "image", "label") == [(f"c_{i}", f"imagesTr/c_{i}.nii.gz", f"labelsTr/c_{i}.nii.gz") for i in (1, 2)]
    assert found.table.columns["image"].modality == ("MR" if channels == 2 else "CT")
    assert any(told in note for note in found.table.notes) if told else not found.table.notes


def test_an_image_and_a_label_folder(tmp_path):
    for name in ("h_1", "h_2"):
        volume(tmp_path / f"images/{name}.nii.gz")
        volume(tmp_path / f"labels/{name}.nii.gz")
    volume(tmp_path / "labels/h_3.nii.gz")
    found = scan(tmp_path)
    assert found.layout == "pairs"
    assert cells(found, "subject", "image", "label") == [(n, f"images/{n}.nii.gz", f"labels/{n}.nii.gz") for n in ("h_1", "h_2")]
    assert found.table.columns["label"].kind == "labels" and found.left_out == {"labels/h_3.nii.gz": "a label map without an image"}


def test_image_and_mask_folders_below_splits_with_other_endings(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(tmp_path / f"{split}/imgs/{name}.png", colour=True)
        picture(tmp_path / f"{split}/masks/{name}_mask.png")
    found = scan(tmp_path)
    assert cells(found, "subject", "split", "image", "mask") == [
        *((n, "train", f"train/imgs/{n}.png", f"train/masks/{n}_mask.png") for n in ("a", "b")),
        ("c", "validation", "val/imgs/c.png", "val/masks/c_mask.png"),
    ]
    assert found.table.columns["image"] == Column("image", "picture")


@pytest.mark.parametrize(
    ("case", "form", "subject", "session"),
    [("BraTS2021_00000", "{}_{}", "BraTS2021_00000", ""), ("BraTS-GLI-00005-001", "{}-{}", "BraTS-GLI-00005", "001")],
)
def test_brats_of_both_namings(tmp_path, case, form, subject, session):
    old = ("t1", "t1ce", "t2", "flair", "seg")
    names = old if "_{}" in form else ("t1n", "t1c", "t2w", "t2f", "seg")
    for name in names:
        volume(tmp_path / case / f"{form.format(case, name)}.nii.gz")
    found = scan(tmp_path)
    assert found.layout == "brats"
    assert cells(found, "subject", "session") == [(subject, session)]
    assert {c: Path(found.table.rows[0][c]).name for c in old} == {
        o: f"{form.format(case, n)}.nii.gz" for o, n in zip(old, names, strict=True)
    }
    assert found.table.columns["seg"].kind == "labels"


def test_medmnist_has_a_row_per_image_that_trains(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{k}_images": rng.integers(0, 255, (n, 8, 8), np.uint8) for k, n in (("train", 3), ("val", 2), ("test", 1))}
    labels = {f"{k}_labels": np.arange(n, dtype=np.uint8)[:, None] % 2 for k, n in (("train", 3), ("val", 2), ("test", 1))}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays, **labels)
    found = scan(tmp_path)
    assert found.layout == "medmnist" and len(found.subjects) == 6
    assert cells(found, "split", "image", "label")[3:5] == [
        ("validation", "pneumoniamnist.npz#val_images/0", "0"),
        ("validation", "pneumoniamnist.npz#val_images/1", "1"),
    ]
    path = write(found, tmp_path / "manifest.csv")
    source = FileData(str(path), {"image": {"name": "unit_range", "low": 0, "high": 255}}, [8, 8], attributes={"label": 2}, slice_axis=None)
    case = source.split("validation").case(1, np.random.default_rng(0))
    assert case["label"] == 1
    assert np.allclose((case["image"][0] + 1) * 127.5, arrays["val_images"][1], atol=1e-3)


def test_fastmri_takes_split_from_the_folder_and_patient_from_the_header(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    for folder, name, patient in (("multicoil_train", "f1", "p1"), ("multicoil_train", "f2", "p1"), ("multicoil_val", "f3", "p2")):
        (tmp_path / folder).mkdir(exist_ok=True)
        with h5py.File(tmp_path / folder / f"{name}.h5", "w") as file:
            file["kspace"] = (rng.normal(size=(2, 3, 8, 6)) + 1j * rng.normal(size=(2, 3, 8, 6))).astype(np.complex64)
            file.attrs["acquisition"], file.attrs["patient_id"] = "AXT2", patient
    found = scan(tmp_path)
    assert found.layout == "fastmri"
    assert cells(found, "subject", "split", "image", "scan") == [
        ("p1", "train", "multicoil_train/f1.h5", "f1"),
        ("p1", "train", "multicoil_train/f2.h5", "f2"),
        ("p2", "validation", "multicoil_val/f3.h5", "f3"),
    ]
    assert found.table.columns["acquisition"].classes == ("AXT2",)
    assert any("share a subject" in note for note in found.table.notes)


def test_a_folder_of_dicom_has_a_row_per_series(tmp_path):
    for patient, uid, place in (("A", "1.2.1", 0), ("A", "1.2.1", 1), ("A", "1.2.2", 0), ("B", "1.2.3", 0)):
        dicom(tmp_path / f"{patient}/{uid}_{place}.dcm", patient, uid, place)
    found = scan(tmp_path)
    assert found.layout == "dicom" and found.subjects == ("A", "B")
    assert len(found.table.rows) == 3 and found.table.columns["image"] == Column("image", "CT")
    assert any("1 of 2 patients have several series" in note for note in found.table.notes)
    assert not found.left_out
    assert sorted(read(tmp_path / row["image"]).shape for row in found.table.rows) == [(4, 6, 1), (4, 6, 1), (4, 6, 2)]


def dicom(path: Path, patient: str, uid: str, place: int) -> None:
    """One axial CT slice of 6 x 4 pixels."""
    pydicom = pytest.importorskip("pydicom")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{place + 1}"
    data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = patient, f"1.9.{ord(patient)}", uid, "1.8"
    data.Modality, data.SeriesNumber, data.SeriesDescription = "CT", int(uid[-1]), "chest"
    data.Rows, data.Columns, data.PixelSpacing, data.SliceThickness = 6, 4, [1.0, 1.0], 2.0
    data.ImagePositionPatient, data.ImageOrientationPatient = [0.0, 0.0, 2.0 * place], [1, 0, 0, 0, 1, 0]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel, data.PhotometricInterpretation = 15, 1, 1, "MONOCHROME2"
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = (np.arange(24, dtype=np.int16) + 24 * place).tobytes()
    data.save_as(path, enforce_file_format=True)


def test_folders_by_class(tmp_path):
    for name, count in (("benign", 3), ("malign", 2)):
        for i in range(count):
            picture(tmp_path / f"train/{name}/{i}.png")
    picture(tmp_path / "test/benign/0.png")
    found = scan(tmp_path)
    assert found.layout == "classes" and found.table.columns["label"].classes == ("benign", "malign")
    assert sorted(cells(found, "subject", "split", "label"))[:2] == [("test_benign_0", "test", "0"), ("train_benign_0", "train", "0")]
    assert [row["label"] for row in found.table.rows if "malign" in row["image"]] == ["1", "1"]
    assert any("no patients" in note and "--pattern" not in note for note in found.table.notes)


def test_a_table_beside_the_files(tmp_path):
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / f"images/{name}.png")
    (tmp_path / "metadata.csv").write_text(
        "file,patient_id,finding,age,note\n"
        'images/a.png,p1,oedema,61,"long, with a comma"\nimages/b.png,p1,none,,\n'
        "images/c.png,p2,none,44,seen\nimages/gone.png,p3,none,50,\n"
    )
    found = scan(tmp_path)
    assert found.layout == "table"
    assert cells(found, "subject", "image", "finding", "age", "note") == [
        ("p1", "images/a.png", "1", "61", "long, with a comma"),
        ("p1", "images/b.png", "0", "", ""),
        ("p2", "images/c.png", "0", "44", "seen"),
    ]
    assert found.table.columns["finding"].classes == ("none", "oedema") and found.table.columns["note"].kind == "text"
    assert found.left_out == {
        "images/d.png": "no part of this layout",
        "images/gone.png": "metadata.csv lists it, and there is no such file",
    }


def test_a_table_may_name_files_without_folder_and_ending(tmp_path):
    """As the ISIC and many Kaggle sets do; the column may be that of the subjects."""
    for name in ("ISIC_1", "ISIC_2", "ISIC_3"):
        picture(tmp_path / f"pictures/{name}.png", colour=True)
    (tmp_path / "labels.csv").write_text("image_id;dx;set\nISIC_1;nv;train\nISIC_2;mel;train\nISIC_3;nv;test\n")
    found = scan(tmp_path)
    assert found.layout == "table"
    assert cells(found, "subject", "split", "image", "dx") == [
        ("ISIC_1", "train", "pictures/ISIC_1.png", "1"),
        ("ISIC_2", "train", "pictures/ISIC_2.png", "0"),
        ("ISIC_3", "test", "pictures/ISIC_3.png", "1"),
    ]
    (tmp_path / "labels.csv").write_text("patient_id,dx\nISIC_1,nv\nISIC_2,mel\n")
    assert cells(scan(tmp_path), "subject", "image") == [("ISIC_1", "pictures/ISIC_1.png"), ("ISIC_2", "pictures/ISIC_2.png")]


def test_a_folder_per_subject_with_a_missing_contrast(tmp_path):
    for subject in ("patient07", "patient19"):
        for name in ("T1", "FLAIR", "lesion"):
            volume(tmp_path / subject / f"{name}.nii.gz")
    (tmp_path / "patient19/FLAIR.nii.gz").unlink()
    found = scan(tmp_path)
    assert found.layout == "subjects"
    assert cells(found, "subject", "t1", "flair", "lesion")[1] == ("patient19", "patient19/T1.nii.gz", "", "patient19/lesion.nii.gz")
    assert found.table.columns["lesion"].kind == "labels" and found.table.columns["flair"].modality == "MR"
    assert any(note.startswith("flair is missing in 1 of 2 rows (patient19)") for note in found.table.notes)


def test_single_files_and_channels_in_names(tmp_path):
    picture(tmp_path / "one/only.png")
    for name in ("s1_T1", "s1_T2", "s1_seg", "s2_T1", "s2_T2", "s10_T1"):
        volume(tmp_path / f"two/{name}.nii.gz")
    assert cells(scan(tmp_path / "one"), "subject", "image") == [("only", "only.png")]
    found = scan(tmp_path / "two")
    assert cells(found, "subject", "t1", "seg") == [
        ("s1", "s1_T1.nii.gz", "s1_seg.nii.gz"),
        ("s2", "s2_T1.nii.gz", ""),
        ("s10", "s10_T1.nii.gz", ""),
    ]
    assert found.table.columns["seg"].kind == "labels"


# ---------------------------------------------------------------- patterns and choices


def test_a_pattern_with_a_repeated_name_and_attributes(tmp_path):
    for site, subject in (("Guys", "IXI002"), ("HH", "IXI012")):
        for channel in ("T1", "T2"):
            volume(tmp_path / f"IXI-{channel}/{subject}-{site}-0828-{channel}.nii.gz")
    volume(tmp_path / "IXI-T1/IXI012-HH-0828-T2.nii.gz")
    found = scan(tmp_path, pattern="IXI-{channel}/{subject}-{site}-{_}-{channel}.nii.gz")
    assert cells(found, "subject", "site", "t1") == [
        ("IXI002", "0", "IXI-T1/IXI002-Guys-0828-T1.nii.gz"),
        ("IXI012", "1", "IXI-T1/IXI012-HH-0828-T1.nii.gz"),
    ]
    assert found.table.columns["site"].classes == ("Guys", "HH")
    assert found.left_out == {"IXI-T1/IXI012-HH-0828-T2.nii.gz": "no part of this layout"}


def test_a_pattern_of_files_without_channels_and_with_splits(tmp_path):
    for split, subject, i in (("training", "p1", 1), ("training", "p1", 2), ("val", "p2", 1)):
        picture(tmp_path / f"{split}/{subject}_{i}.png")
    found = scan(tmp_path, pattern="{split}/{subject}_*.png")
    assert cells(found, "subject", "split", "image") == [
        ("p1", "train", "training/p1_1.png"),
        ("p1", "train", "training/p1_2.png"),
        ("p2", "validation", "val/p2_1.png"),
    ]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{subject}/{kind}/x.png", r"fits none of 2 files, such as a/1\.png.*try --pattern '\{label\}/\{subject\}\.png'"),
        ("{channel}/1.png", "no {subject}"),
        ("{sub ject}/1.png", "no {subject}"),
        ("{split}/{subject}.png", "{split} is 'a'"),
    ],
)
def test_a_pattern_that_cannot_be_is_explained(tmp_path, pattern, said):
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/2.png")
    with pytest.raises(MedgenError, match=said):
        scan(tmp_path, pattern=pattern)


def test_equally_good_readings_are_not_guessed(tmp_path):
    for folder in ("one", "two"):
        for name in ("x", "y"):
            picture(tmp_path / folder / f"{name}.png")
    with pytest.raises(MedgenError, match=r"several ways: .*--layout classes.*--layout pairs.*--layout subjects"):
        scan(tmp_path)
    assert scan(tmp_path, layout="classes").table.columns["label"].classes == ("one", "two")
    assert scan(tmp_path, layout="subjects").subjects == ("one", "two")


def test_what_fits_nothing_gets_a_pattern_to_start_from(tmp_path):
    volume(tmp_path / "a/b/c/T1.nii.gz")
    volume(tmp_path / "a/b/d/T1.nii.gz")
    with pytest.raises(MedgenError, match=r"such as a/b/c/T1\.nii\.gz.*--pattern '\{_\}/\{_\}/\{subject\}/\{channel\}\.nii\.gz'"):
        scan(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.docx").write_text("")
    with pytest.raises(MedgenError, match=r"none of its 1 files has an ending that medgen reads \(1 of \.docx\)"):
        scan(tmp_path / "text")
    with pytest.raises(MedgenError, match="no layout 'bid'; did you mean 'bids'"):
        scan(tmp_path, layout="bid")
    with pytest.raises(MedgenError, match="no such folder"):
        scan(tmp_path / "nowhere")


def test_a_subject_in_two_splits_is_told(tmp_path):
    for split in ("train", "test"):
        volume(tmp_path / f"{split}/images/p.nii.gz")
        volume(tmp_path / f"{split}/labels/p.nii.gz")
    assert any("1 subjects are in more than one split (p)" in note for note in scan(tmp_path).table.notes)


def test_every_layout_has_a_name_and_a_line():
    names = [known.name for known in layouts()]
    assert len(set(names)) == len(names) >= 11
    assert all(known.about for known in layouts())


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("name", "given", "cells", "kind", "classes"),
    [
        ("age", ["61", "n/a", "4e1"], ["61", "", "4e1"], "attribute", ()),
        ("sex", ["M", "F", "NaN", "M"], ["1", "0", "", "1"], "attribute", ("F", "M")),
        ("code", ["aa", "bb", "cc", "dd"], ["aa", "bb", "cc", "dd"], "text", ()),
        ("note", ["1", "2", "1", "2"], ["1", "2", "1", "2"], "text", ()),
    ],
)
def test_cells_become_numbers_classes_or_text(name, given, cells, kind, classes):
    made = coded(name, given)
    assert (made.cells, made.column.kind, made.column.classes) == (cells, kind, classes)


# ---------------------------------------------------------------- public sets


@pytest.mark.parametrize("name", ["brats", "decathlon", "fastmri", "ixi", "medmnist", "nct_crc"])
def test_the_configuration_of_a_public_set_trains_on_its_layout(tmp_path, name):
    """A small copy of the set as it lies after unpacking, through scan and the set's configuration to a case."""
    made = public_copy(tmp_path, name)
    pattern = "IXI-{channel}/{subject}-{site}-{number}-{channel}.nii.gz" if name == "ixi" else None
    path = write(scan(made, pattern=pattern), tmp_path / "manifest.csv")
    command = next(line for line in (config_dir() / "data" / f"{name}.yaml").read_text().splitlines() if "python train.py" in line)
    words = [word for word in command.split() if "=" in word and not word.startswith("data.source.manifest")]
    size = "data.source.size=[16,16,16]" if name == "decathlon" else "data.source.size=[16,16]"
    config = OmegaConf.to_container(compose([*words, f"data.source.manifest={path}", size, "data.workers=0"]), resolve=True)
    source = build(config["data"], trusted=True).source
    case = source.split("train").case(0, np.random.default_rng(0))
    channels = config["data"]["source"]["channels"]
    assert set(channels) | set(config["data"]["source"]["attributes"]) < set(case)
    assert all(np.isfinite(case[channel]).all() and np.ptp(case[channel]) > 0.1 for channel in channels)


def public_copy(folder: Path, name: str) -> Path:
    root, rng = folder / name, np.random.default_rng(0)
    root.mkdir()
    if name == "brats":
        for contrast in ("t1", "t1ce", "t2", "flair", "seg"):
            volume(root / f"BraTS2021_00000/BraTS2021_00000_{contrast}.nii.gz")
    elif name == "ixi":
        volume(root / "IXI-T1/IXI002-Guys-0828-T1.nii.gz")
    elif name == "decathlon":
        volume(root / "imagesTr/h_001.nii.gz")
        volume(root / "labelsTr/h_001.nii.gz")
        listed = [{"image": "./imagesTr/h_001.nii.gz", "label": "./labelsTr/h_001.nii.gz"}]
        (root / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": {"0": "background"}, "training": listed}))
    elif name == "fastmri":
        (root / "multicoil_train").mkdir()
        with pytest.importorskip("h5py").File(root / "multicoil_train/f.h5", "w") as file:
            file["kspace"] = (rng.normal(size=(2, 3, 16, 16)) + 1j * rng.normal(size=(2, 3, 16, 16))).astype(np.complex64)
            file["reconstruction_rss"] = rng.random((2, 16, 16), np.float32)
    elif name == "medmnist":
        np.savez(root / "pneumoniamnist.npz", train_images=rng.integers(0, 255, (2, 28, 28), np.uint8), train_labels=np.array([[1], [0]]))
    else:
        for kind, code in (("ADI", "AAAFLCLY"), ("TUM", "TCGABCDE")):
            picture(root / f"{kind}/{kind}-{code}.tif", colour=True)
    return root


def test_a_set_is_fetched_checked_and_unpacked_once(tmp_path, monkeypatch, capsys):
    """With a local file in the network's place."""
    source = tmp_path / "IXI-T1.tar"
    volume(tmp_path / "IXI002-Guys-0828-T1.nii.gz")
    with tarfile.open(source, "w") as archive:
        archive.add(tmp_path / "IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T1.nii.gz")
    asked = []

    def served(url, filepath, hash_val, hash_type, progress):
        asked.append((url, hash_val))
        shutil.copy(source, filepath)

    monkeypatch.setattr("monai.apps.download_url", served)
    for _ in range(2):
        main(["data", "get", "ixi_t1", "-o", str(tmp_path / "ixi")])
    assert asked == [("http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI/IXI-T1.tar", "34901a0593b41dd19c1a1f746eac2d58")]
    assert [p.name for p in (tmp_path / "ixi/IXI-T1").iterdir()] == ["IXI002-Guys-0828-T1.nii.gz"]
    assert "CC BY-SA 3.0" in capsys.readouterr().out
    source.write_bytes(b"not an archive")
    shutil.rmtree(tmp_path / "ixi")
    with pytest.raises(MedgenError, match="cannot be unpacked"):
        fetch("ixi_t1", tmp_path / "ixi")
    assert [p.name for p in (tmp_path / "ixi").iterdir()] == ["IXI-T1.tar"]


@pytest.mark.parametrize(
    ("name", "raised", "said"),
    [
        ("pneumoniamnist", URLError("Name or service not known"), "check the network, or download it elsewhere"),
        ("pneumoniamnist", HashCheckError("x"), "its checksum is not the published one"),
        ("brats", None, "without an account: make an account at synapse.org"),
        ("brat", None, "did you mean 'brats'"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_a_sentence(tmp_path, monkeypatch, name, raised, said):
    def offline(*arguments, **options):
        raise raised

    monkeypatch.setattr("monai.apps.download_url", offline)
    with pytest.raises(MedgenError, match=said):
        fetch(name, tmp_path)


def test_every_public_set_has_a_configuration_and_a_licence():
    known = sets()
    assert {"Task04_Hippocampus", "pneumoniamnist", "ixi_t1", "nct_crc_he_100k", "brats", "fastmri"} <= set(known)
    for found in known.values():
        assert (config_dir() / "data" / f"{found.config}.yaml").is_file() and found.licence and bool(found.archives) != bool(found.register)


# ---------------------------------------------------------------- the command


def test_the_command_writes_a_manifest_that_trains_and_replaces_nothing(tmp_path, capsys):
    for subject in ("s1", "s2"):
        volume(tmp_path / f"data/{subject}/T1.nii.gz")
        volume(tmp_path / f"data/{subject}/seg.nii.gz")
    command = ["data", "scan", str(tmp_path / "data"), "-o", str(tmp_path / "manifest.csv")]
    main(command)
    said = capsys.readouterr().out
    assert "layout: subjects" in said and "subjects: 2, rows: 2" in said and "column seg: label map" in said and "left out: nothing" in said
    manifest = Manifest.read(tmp_path / "manifest.csv")
    assert manifest.columns == ("subject", "t1", "seg") and manifest.rows[0]["t1"] == "data/s1/T1.nii.gz"
    assert read_columns(tmp_path / "manifest.csv")["seg"] == Column("labels")
    case = (
        FileData(str(manifest.path), {"t1": {"name": "mr_percentile"}}, [4, 5], {"seg": 2}).split("train").case(0, np.random.default_rng(0))
    )
    assert int(case["seg"].max()) == 1
    assert f"train: medgen train data=slices data.source.manifest={manifest.path}\n" in said  # t1 is there already
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2 and "exists" in capsys.readouterr().err
    main([*command, "--overwrite"])


@pytest.mark.parametrize(
    ("name", "modality", "words"),
    [
        ("a.nii.gz", None, "data=slices {} ~data.source.channels.t1 +data.source.channels.image.name=mr_percentile task.target=[image]"),
        ("a.nii.gz", "CT", "data=slices {} ~data.source.channels.t1 +data.source.channels.image.name=ct_hu task.target=[image]"),
        ("a.png", None, "data=pictures {} task.target=[image]"),
        (
            "c.png",
            None,
            "data=pictures {} ~data.source.channels.image +data.source.channels.image_red.name=unit_range "
            "+data.source.channels.image_green.name=unit_range +data.source.channels.image_blue.name=unit_range "
            "task.target=[image_red,image_green,image_blue]",
        ),
    ],
)
def test_the_words_for_training_fit_the_column_and_compose(tmp_path, name, modality, words):
    if name.endswith(".png"):
        grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
        Image.fromarray(grey if name == "a.png" else np.stack([grey, grey[::-1], grey.T], -1)).save(tmp_path / name)
    else:
        volume(tmp_path / name)
    (tmp_path / "m.csv").write_text(f"subject,image\ns1,{name}\ns2,{name}\n")
    manifest = Manifest.read(tmp_path / "m.csv")
    found = training_words(manifest, {"image": Column("image", modality)})
    assert " ".join(found) == words.format(f"data.source.manifest={tmp_path / 'm.csv'}")
    config = resolved(compose(found))
    source, target = build(config["data"]["source"], trusted=True), config["task"]["target"]
    case = source.split("train").case(0, np.random.default_rng(0))
    assert set(target) == set(source.maps) and all(np.isfinite(case[channel]).all() for channel in target)
    assert training_words(manifest, {"image": Column("text")}) == []


def test_files_outside_the_manifests_folder_are_written_in_full(tmp_path):
    volume(tmp_path / "data/s1/T1.nii.gz")
    volume(tmp_path / "data/s2/T1.nii.gz")
    path = write(scan(tmp_path / "data"), tmp_path / "elsewhere/m.csv")
    with path.open() as file:
        first = next(csv.DictReader(file))
    assert first["t1"] == str(tmp_path / "data/s1/T1.nii.gz")
    Manifest.read(path).require_files(["t1"])


@pytest.mark.shared_data
def test_the_real_sets_are_recognised(shared_data):
    expected = {
        "hippocampus": ("pairs", 200, 200),
        "ms_brain": ("subjects", 2, 2),
        "stroke_brain": ("subjects", 1, 1),
        "chest_xray": ("table", 42, 80),
        "ultrasound_lung": ("table", 5, 26),
        "nuclei_he": ("pairs", 75, 75),
        "pneumoniamnist": ("medmnist", 4406, 4406),
        "brain_kspace": ("flat", 1, 1),
        "slide": ("flat", 1, 1),
        "ct_chest": ("dicom", 34, 59),
    }
    for name, told in expected.items():
        found = scan(shared_data / name)
        assert (found.layout, len(found.subjects), len(found.table.rows)) == told, name
        assert not found.left_out
