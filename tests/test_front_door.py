"""What a newcomer meets at the data's front door: wrong choices are told with the remedy, in sentences, before they cost anything."""

from __future__ import annotations

import re
import sys
import warnings
from html import escape
from pathlib import Path

import numpy as np
import pytest
from dicom_samples import AXIAL, series
from PIL import Image
from test_check import Set, found, head
from test_training import TINY

from medgen.checkpoint import build
from medgen.cli.configs import compose, resolved
from medgen.cli.main import main
from medgen.cli.run import contract_of
from medgen.cli.train import main as train
from medgen.core.errors import MedgenError, MedgenWarning
from medgen.core.volume import Volume
from medgen.data.check.checker import check
from medgen.data.check.document import document
from medgen.data.check.report import write
from medgen.data.columns import Column, read_columns
from medgen.data.files import FileData
from medgen.data.manifest import Manifest
from medgen.data.options import Options
from medgen.data.phantom.export import write_phantoms
from medgen.data.scan.pivot import columns_by
from medgen.data.scan.scanner import scan


def slices(manifest: Path, *words: str) -> list[str]:
    """A short training on the t1 slices of a manifest."""
    own = [word for word in TINY if not word.startswith("data.source.")]
    return [*own, "data=slices", f"data.source.manifest={manifest}", "data.source.size=[16,16]", "data.workers=0", *words]


@pytest.fixture
def images(tmp_path) -> Set:
    return Set(tmp_path)


# ---------------------------------------------------------------- warnings are sentences


def test_a_row_that_is_left_out_and_a_missing_validation_are_told_as_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    manifest = write_phantoms(tmp_path / "heads", subjects=3, shape=(20, 22, 20))
    head, *rows = manifest.read_text().splitlines()
    place = head.split(",").index("split")
    rows = [",".join("train" if i == place else cell for i, cell in enumerate(row.split(","))) for row in rows]
    manifest.write_text("\n".join([head, *rows]) + "\n")
    next((tmp_path / "heads").rglob("t1.nii.gz")).write_bytes(b"broken")
    train(slices(manifest, "data.source.options.keep.skip_broken=true", "run=r"))
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert any("1 of 3 rows of" in line and line.endswith("they are left out") for line in lines)
    assert any("training goes on without validation: " in line for line in lines)
    assert "Warning:" not in said and ".py" not in said
    train_manifest = f"data.source.manifest={manifest}"
    main(["data", "prepare", "data=slices", train_manifest, "data.source.size=[14,16]", "data.source.options.keep.skip_broken=true"])
    said = capsys.readouterr().err
    assert said.startswith("warning: 1 of 3 rows of") and ".py" not in said


# ---------------------------------------------------------------- choices that contradict each other


def test_volumes_that_are_asked_for_with_a_slice_axis_are_refused_with_the_remedy(tmp_path, capsys):
    manifest = write_phantoms(tmp_path / "heads", subjects=3, shape=(20, 22, 20))
    asked = ["data", "prepare", "data=slices", f"data.source.manifest={manifest}", "data.source.size=[16,16,16]"]
    with pytest.raises(SystemExit):
        main(asked)
    remedy = "data.source.slice_axis=null"
    assert f"set {remedy}" in capsys.readouterr().err
    main([*asked, remedy])
    assert "1 volumes" in capsys.readouterr().out
    assert FileData(str(manifest), {"t1": {"name": "mr_percentile"}}, (16, 16, 16)).facts()["slice_axis"] is None


# ---------------------------------------------------------------- masks of other numbers than classes


@pytest.fixture
def masked(tmp_path) -> Path:
    """Two pictures with a mask of 0 and 255 and one of numbered nuclei; a manifest of them."""
    rng = np.random.default_rng(0)
    rows = ["subject,split,image,mask,nuclei"]
    for i, split in enumerate(("train", "validation")):
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray((rng.random((16, 16)) < 0.4).astype(np.uint8) * 255).save(tmp_path / f"{i}_mask.png")
        Image.fromarray(np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) * (3 + i), np.ones((4, 4), np.uint8))).save(
            tmp_path / f"{i}_nuclei.png"
        )
        rows.append(f"s{i},{split},{i}.png,{i}_mask.png,{i}_nuclei.png")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "list.csv"


def test_the_words_that_check_gives_make_a_mask_of_0_and_255_train(masked, capsys):
    checked = check(masked, workers=1)
    word = re.search(r"'(\+data\.source\.labels\.mask=.*?)'", found(checked, "label-gaps").remedy)[1]
    assert word == "+data.source.labels.mask={values: [0, 255]}"
    own = [f"data.source.manifest={masked}", "data.source.size=[16,16]", "~data.source.channels", "data.workers=0"]
    own += ["+data.source.channels.image.name=unit_range"]
    task = ["task=synthesis_mask", "task.target=[image]", "~task.labels.tissue", "+task.labels.mask=2"]
    with pytest.raises(SystemExit):
        main(["data", "prepare", "data=pictures", *own, "+data.source.labels.mask=2"])
    assert "has the value 255" in (said := capsys.readouterr().err) and f"'{word}'" in said
    config = resolved(compose(["data=pictures", *own, *task, word]))
    data = build(config["data"], trusted=True)
    assert contract_of(build(config["task"], trusted=True), data.facts()).labels == {"mask": 2}
    mask = data.source.split("train").case(0, None)["mask"]
    assert np.array_equal(mask[0] * 255, np.asarray(Image.open(masked.with_name("0_mask.png"))))


def test_values_are_classes_in_their_order_and_part_of_the_stores_key(masked):
    rule, size = {"image": {"name": "unit_range"}}, (16, 16)
    stored = np.asarray(Image.open(masked.with_name("0_nuclei.png")))
    read = [FileData(str(masked), rule, size, {"mask": {"values": values}, "nuclei": {"binary": True}}) for values in ([0, 255], [255, 0])]
    cases = [source.split("train").case(0, None) for source in read]
    assert np.array_equal(cases[0]["mask"], 1 - cases[1]["mask"]) and cases[0]["mask"].max() == 1
    assert np.array_equal(cases[0]["nuclei"][0], stored != 0) and read[0].facts()["labels"] == {"mask": 2, "nuclei": 2}
    keys = {FileData(str(masked), rule, size, {"mask": entry}).store.folder for entry in (2, {"values": [0, 255]}, {"binary": True})}
    assert len(keys) == 3
    with pytest.raises(MedgenError, match=r"has the value 255; expected one of its values 0, 254"):
        FileData(str(masked), rule, size, {"mask": {"values": [0, 254]}}).split("train")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"value": [0, 255]}, "did you mean 'values'"),
        ({"classes": 2}, "expected a number of classes"),
        ({"values": [0, 255], "binary": True}, "expected a number of classes"),
        ({"values": [0, 255], "classes": 3}, "a different number for each"),
        ({"values": [1, 1]}, "a different number for each"),
        ({"values": [0, 0.5]}, "whole numbers, found 0.5"),
        ("two", "whole numbers, found 'two'"),
    ],
)
def test_an_entry_of_labels_that_says_nothing_is_refused(masked, entry, said):
    with pytest.raises(MedgenError, match=said):
        FileData(str(masked), {"image": {"name": "unit_range"}}, (16, 16), {"mask": entry})


# ---------------------------------------------------------------- maps that do not fit


def said_of(folder: Path, rule: str, capsys: pytest.CaptureFixture, *words: str) -> list[str]:
    """What preparing the drawn heads with a rule for t1 warns of."""
    manifest = folder / "heads" / "manifest.csv"
    if not manifest.exists():
        write_phantoms(folder / "heads", subjects=3, shape=(20, 22, 20))
    main(["data", "prepare", "data=slices", f"data.source.manifest={manifest}", "data.source.size=[16,16]", *words, *rule.split()])
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_a_map_of_another_modality_is_told(tmp_path, capsys):
    rule = "data.source.channels.t1.name="
    assert said_of(tmp_path, f"{rule}mr_percentile", capsys) == []
    (said,) = said_of(tmp_path, f"{rule}ct_hu", capsys)[:1]
    fits = "mr_percentile fits (data.source.channels.t1.name=mr_percentile)"
    assert said == f"warning: column t1 is MR (manifest.columns.json); ct_hu expects Hounsfield units; {fits}"
    (said,) = said_of(tmp_path, f"{rule}unit_range", capsys)[:1]
    assert said == f"warning: column t1 is MR (manifest.columns.json); unit_range expects values from 0 to 255; {fits}"
    (tmp_path / "heads" / "manifest.columns.json").unlink()
    assert "column t1 is MR (by its name)" in said_of(tmp_path, f"{rule}ct_hu +data.source.channels.t1.low=-900", capsys)[0]


def test_the_modality_of_a_dicom_header_counts_and_mr_percentile_does_not_fit_ct(tmp_path):
    series(tmp_path / "a", body(1), AXIAL, PatientID="A")
    (tmp_path / "list.csv").write_text("subject,image\na,a\n")
    source = FileData(str(tmp_path / "list.csv"), {"image": {"name": "mr_percentile"}}, (16, 16))
    with pytest.warns(MedgenWarning, match=r"column image is CT \(its first header\); mr_percentile expects a magnitude .* ct_hu fits"):
        source.split("train")
    with warnings.catch_warnings():
        warnings.simplefilter("error", MedgenWarning)
        FileData(str(tmp_path / "list.csv"), {"image": {"name": "ct_hu"}}, (16, 16)).split("train")


@pytest.mark.parametrize(
    ("high", "low_to", "high_to"), [(10, -1, 39), (100000, -1, -1), (200, -1, 1)], ids=["beyond", "a sliver", "as it should be"]
)
def test_values_that_come_to_lie_far_from_the_networks_range_are_told(tmp_path, high, low_to, high_to):
    image = np.tile(np.linspace(0, 200, 32, dtype=np.float32)[:, None, None], (1, 32, 4))
    Volume(image[None], np.eye(4)).save(tmp_path / "a.nii.gz")
    (tmp_path / "list.csv").write_text("subject,image\na,a.nii.gz\n")
    source = FileData(str(tmp_path / "list.csv"), {"image": {"name": "unit_range", "high": high}}, (32, 32))
    with warnings.catch_warnings(record=True) as told:
        source.split("train")
    if high == 200:
        assert not told
        return
    (said,) = [str(warning.message) for warning in told]
    low, top = map(float, re.search(r"1 of 1 images that were looked at lie in about \[(.*), (.*)\]", said).groups())
    assert abs(low - low_to) < 0.5 and abs(top - high_to) < 0.5 and said.startswith("image: unit_range brings values")


@pytest.mark.parametrize(("others", "count"), [((0, 255), 0), ((200, 210), 4)], ids=["among others", "all alike"])
def test_an_empty_picture_of_8_bits_is_no_sign_of_a_wrong_map(tmp_path, others, count):
    """Glass without tissue among tiles with some; where no tile has contrast, it is told."""
    for i, (low, high) in enumerate(((200, 210), others, others, others)):
        Image.fromarray(np.linspace(low, high, 256).round().astype(np.uint8).reshape(16, 16)).save(tmp_path / f"{i}.png")
    (tmp_path / "list.csv").write_text("subject,image\n" + "".join(f"{i},{i}.png\n" for i in range(4)))
    source = FileData(str(tmp_path / "list.csv"), {"image": {"name": "unit_range"}}, (16, 16))
    with warnings.catch_warnings(record=True) as told:
        source.split("train")
    assert [f"{count} of 4 images that were looked at" in str(warning.message) for warning in told] == [True] * bool(count)


# ---------------------------------------------------------------- what a check says


def test_unsigned_negative_numbers_of_ct_are_an_error_and_metal_is_not(images):
    ct = head(1) - 1000
    images.add("wrapped", ct=ct.astype(np.int16).view(np.uint16).astype(np.float32))
    metal = ct.copy()
    metal[20, 20, 12] = 9000
    images.add("metal", ct=metal)
    images.add("plain", ct=head(2) - 1000)
    checked = images.checked()
    overflow = found(checked, "ct-overflow")
    assert overflow.severity == "error" and overflow.subjects == ("wrapped",) and "sign or overflow" in overflow.found
    assert "int16" in overflow.remedy
    assert found(checked, "ct-metal").subjects == ("metal",) and not [f for f in checked.findings if f.code == "ct-offset"]


def test_an_example_of_duplicates_names_a_split_only_where_there_are_splits(images):
    images.add("a", t1=head(1))
    images.add("b", t1=head(1))
    said = found(images.checked(), "duplicate-across-subjects").found
    assert "such as a (train, a_0_t1.nii.gz) and b (train, b_1_t1.nii.gz)" in said
    for row in images.rows:
        del row["split"]
    said = found(images.checked(), "duplicate-across-subjects").found
    assert "such as a (a_0_t1.nii.gz) and b (b_1_t1.nii.gz)" in said


def scanned(folder: Path) -> Path:
    main(["data", "scan", str(folder), "-o", str(folder / "manifest.csv"), "--overwrite"])
    return folder / "manifest.csv"


def body(seed: int, shape: tuple[int, int, int] = (24, 22, 6)) -> np.ndarray:
    """A lump with texture in air, in Hounsfield units."""
    rng = np.random.default_rng(seed)
    inside = sum(np.linspace(-1, 1, n).reshape([-1 if i == k else 1 for i in range(3)]) ** 2 for k, n in enumerate(shape)) < 0.8
    return np.where(inside, rng.normal(40, 60, shape), -1000).astype(np.int16)


def test_each_matter_of_a_dicom_series_has_its_own_remedy_once(tmp_path):
    undeclared = body(1)
    undeclared[0] = -3024
    series(tmp_path / "a", undeclared, AXIAL, PatientID="A", SeriesInstanceUID="1.2.1")
    declared = body(2)
    declared[0] = -2000
    series(tmp_path / "b", declared, AXIAL, PatientID="B", SeriesInstanceUID="1.2.2", PixelPaddingValue=-2000)
    series(tmp_path / "c", body(3), AXIAL, PatientID="C", SeriesInstanceUID="1.2.3")
    series(tmp_path / "c", body(3)[:, :, :1], AXIAL, PatientID="C", SeriesInstanceUID="1.2.3", first=50)
    (tmp_path / "c" / "read.me").write_text("no image")
    findings = {f.code: f for f in check(scanned(tmp_path), workers=1).findings}
    assert {code: f.severity for code, f in findings.items() if f.columns == ("image",) and not code.startswith("near")} == {
        "ct-padding": "warning",
        "padding-declared": "note",
        "slices-repeated": "note",
        "files-skipped": "note",
    }
    assert len({f.remedy for f in findings.values()}) == len(findings)
    assert "+data.source.channels.image.floor=-1024" in findings["ct-padding"].remedy
    assert findings["ct-padding"].subjects == ("A",) and "not declared" in findings["ct-padding"].reasons[0]
    assert "1 identical copy" in findings["slices-repeated"].found and "held more than once" in findings["slices-repeated"].found


def test_a_truncated_slice_is_named_and_every_cell_says_why_it_cannot_be_read(tmp_path):
    for k in range(3):
        series(tmp_path / "P" / f"s{k}", body(k), AXIAL, PatientID="P", SeriesInstanceUID=f"1.2.{k}", SeriesNumber=k + 1)
    for k, cut in ((0, 100), (2, 300)):
        path = tmp_path / "P" / f"s{k}" / "im003"
        path.write_bytes(path.read_bytes()[:-cut])
    manifest = scanned(tmp_path)
    checked = check(manifest, workers=1)
    unread = found(checked, "unreadable")
    assert [checked.data.manifest.rows[i]["image"] for i, _ in unread.places] == ["P/s0#1", "P/s2#3"]
    assert all(f"/s{k}/im003: a truncated DICOM file, with " in why for k, why in zip((0, 2), unread.reasons, strict=True))
    told = next(f for f in document(checked)["findings"] if f["code"] == "unreadable")
    assert [(c["row"], c["cell"], c["reason"]) for c in told["cells"]] == [
        (1, "P/s0#1", unread.reasons[0]),
        (3, "P/s2#3", unread.reasons[1]),
    ]
    page = write(checked, tmp_path / "report")[0].read_text()
    assert escape(unread.reasons[1]) in page and "P, image: P/s2#3" in page


def test_pictures_of_a_finding_say_which_series_they_are(tmp_path):
    for k in range(2):
        series(tmp_path / "P" / f"s{k}", body(k) + 2000, AXIAL, PatientID="P", SeriesInstanceUID=f"1.2.{k}", SeriesNumber=k + 1)
    checked = check(scanned(tmp_path), workers=1)
    page = write(checked, tmp_path / "report")[0].read_text()
    assert "<figcaption>P, image, P/s0#1</figcaption>" in page and "<figcaption>P, image, P/s1#2</figcaption>" in page


# ---------------------------------------------------------------- what a scan leaves out


def test_a_stray_picture_among_dicom_is_left_out(tmp_path, capsys):
    for k in range(3):
        series(tmp_path / f"PAT{k}", body(k), AXIAL, PatientID=f"PAT{k}", SeriesInstanceUID=f"1.2.{k}")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "PAT1" / "photo.jpg")
    read = scan(tmp_path)
    assert read.layout == "dicom" and len(read.table.rows) == 3 and read.left_out == {"PAT1/photo.jpg": "no DICOM"}


def test_an_h5_of_something_else_is_left_out_with_the_reason(tmp_path):
    h5py = pytest.importorskip("h5py")
    for name, key in (("a.h5", "kspace"), ("weights.h5", "layers")):
        with h5py.File(tmp_path / name, "w") as file:
            file[key] = np.ones((2, 8, 8), np.complex64)
    read = scan(tmp_path)
    assert [row["image"] for row in read.table.rows] == ["a.h5"]
    assert read.left_out == {"weights.h5": "holds layers; expected fastMRI's 'kspace'"}
    (tmp_path / "a.h5").unlink()
    with pytest.raises(MedgenError, match=r"none of its 1 \.h5 files holds fastMRI's 'kspace'"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("library", "extra", "name"), [("h5py", "kspace", "a.h5"), ("openslide", "slides", "a.svs"), ("pydicom", "dicom", "a")]
)
def test_a_scan_of_images_whose_library_is_missing_names_the_extra(tmp_path, monkeypatch, library, extra, name):
    if name == "a":
        series(tmp_path / "data", body(1), AXIAL)
    else:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / name).write_bytes(b"content")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MedgenError, match=rf"pip install 'medgen\[{extra}\]'"):
        scan(tmp_path / "data")


# ---------------------------------------------------------------- several series of a study


@pytest.fixture
def studies(tmp_path) -> Path:
    """Two patients with T1 +C and FLAIR of one study each; the second one has FLAIR twice, and the third nothing but T1 +C."""
    wanted = [(0, "T1 +C"), (0, "FLAIR"), (1, "T1 +C"), (1, "FLAIR"), (1, "FLAIR"), (2, "T1 +C")]
    for k, (patient, description) in enumerate(wanted):
        tags = {"PatientID": f"P{patient}", "StudyInstanceUID": f"1.3.{patient}", "SeriesInstanceUID": f"1.2.{k}", "SeriesNumber": k + 1}
        series(tmp_path / "data" / f"P{patient}", body(k) + 1000, AXIAL, "MR", first=10 * k, SeriesDescription=description, **tags)
    return tmp_path / "data"


def test_series_of_a_study_come_side_by_side(studies, capsys):
    main(["data", "scan", str(studies), "-o", str(studies / "list.csv"), "--columns-by", "description"])
    said = capsys.readouterr().out
    manifest = Manifest.read(studies / "list.csv")
    assert [[row[name] for name in ("subject", "t1_c", "flair")] for row in manifest.rows] == [
        ["P0", "P0#1", "P0#2"],
        ["P1", "P1#3", "P1#4"],
        ["P1", "", "P1#5"],
        ["P2", "P2#6", ""],
    ]
    assert read_columns(manifest.path)["t1_c"] == Column("image", "MR", about="T1 +C")
    assert "note: flair is there more than once in a study (P1): the others are rows of their own" in said
    assert "t1_c ('T1 +C')" in said and "one row each" not in said and "series" not in manifest.columns and "study" in manifest.columns
    pair = FileData(str(manifest.path), {c: {"name": "mr_percentile"} for c in ("t1_c", "flair")}, (16, 16), options=Options(missing=True))
    assert {"t1_c", "flair"} <= pair.split("train").case(0, None).keys()


def test_texts_that_make_one_name_are_kept_apart_and_wrong_columns_are_told(tmp_path, studies):
    series(tmp_path / "data" / "P0", body(9), AXIAL, "MR", first=90, PatientID="P0", SeriesInstanceUID="1.2.9", SeriesDescription="t1 (C)")
    assert [name for name, column in scan(studies, columns="description").table.columns.items() if column.kind == "image"] == [
        "t1_c",
        "flair",
        "t1_c_2",
    ]
    with pytest.raises(MedgenError, match="--columns-by descripton: no such column; did you mean 'description'"):
        scan(studies, columns="descripton")
    with pytest.raises(MedgenError, match="for rows of one image each, and these have t1_c, flair"):
        columns_by(scan(studies, columns="description").table, "study")


def test_contrasts_in_one_column_are_told_by_scan_and_check(studies, capsys):
    checked = check(scanned(studies), workers=1)
    assert "2 studies hold series of different descriptions (FLAIR and T1 +C)" in capsys.readouterr().out
    mixed = found(checked, "mixed-series")
    assert mixed.severity == "warning" and mixed.subjects == ("P0", "P1") and "--columns-by description" in mixed.remedy
    assert "T1 +C in 3, FLAIR in 3" in mixed.found


def test_rules_of_a_modality_hold_for_its_images_in_a_mixed_column(tmp_path):
    for k in range(4):
        modality = "CT" if k == 3 else "MR"
        series(tmp_path / f"P{k}", body(k) + 1000, AXIAL, modality, PatientID=f"P{k}", SeriesInstanceUID=f"1.2.{k}", SeriesDescription="a")
    checked = check(scanned(tmp_path), workers=1)
    offset, mixed = found(checked, "ct-offset"), found(checked, "mixed-modalities")
    assert offset.subjects == ("P3",) and "1 of 1 CT images" in offset.found
    assert (
        mixed.severity == "warning" and "MR in 3, CT in 1" in mixed.found and not [f for f in checked.findings if f.code == "mixed-series"]
    )
