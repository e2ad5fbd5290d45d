"""The data report: every fault that is put into a set is found and named, and a clean set is left alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgen.cli.main import main
from medgen.core.errors import MedgenError
from medgen.core.volume import Volume
from medgen.data.check.checker import check
from medgen.data.check.coarse import coarse
from medgen.data.check.document import column, document, histogram
from medgen.data.check.facts import QUANTILES, Job, summarise
from medgen.data.check.pairs import compared
from medgen.data.check.report import write
from medgen.data.columns import columns_of
from medgen.data.manifest import Manifest
from medgen.data.phantom.chest.export import write_chests
from medgen.data.phantom.export import write_phantoms
from medgen.data.phantom.histology.export import write_tiles
from medgen.data.workers import Failure

AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])


def head(seed: int, shape: tuple[int, int, int] = (40, 44, 24)) -> np.ndarray:
    """A smooth lump with texture on zero: what a skull-stripped head is to these rules."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(0) < 0.6
    coarse_noise = rng.uniform(0.3, 1.0, [n // 4 for n in shape])
    texture = np.kron(coarse_noise, np.ones((4, 4, 4)))
    return (np.where(inside, 300 * texture + rng.normal(0, 4, shape), 0)).clip(0).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume(array[None], affine).save(path)
    return path.name


class Set:
    """A manifest in the making."""

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, []

    def add(self, subject: str, split: str = "train", affine: np.ndarray = AFFINE, **files: np.ndarray | str) -> None:
        cells = {}
        for name, value in files.items():
            plain = isinstance(value, str)
            cells[name] = value if plain else save(self.folder / f"{subject}_{len(self.rows)}_{name}.nii.gz", value, affine)
        self.rows.append({"subject": subject, "split": split, **cells})

    def checked(self, **said: str):
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [",".join(columns), *(",".join(row.get(c, "") for c in columns) for row in self.rows)]
        (self.folder / "manifest.csv").write_text("\n".join(lines) + "\n")
        return check(self.folder / "manifest.csv", said, workers=1)


def found(checked, code: str):
    """The one finding of a code."""
    (finding,) = [f for f in checked.findings if f.code == code]
    return finding


@pytest.fixture
def images(tmp_path) -> Set:
    return Set(tmp_path)


# ---------------------------------------------------------------- a clean set, and the table


def test_a_clean_set_is_left_alone(images):
    for i in range(12):
        t1 = head(i)
        split = "train" if i < 6 else "validation" if i < 9 else "test"
        images.add(f"s{i}", split, t1=t1, t2=t1.max() - t1, label=str(i % 2))
    checked = images.checked()
    assert checked.fit and {f.code for f in checked.findings} == {"small-split"}


def test_the_same_subject_in_two_splits_is_an_error(images):
    images.add("s1", "train", t1=head(1))
    images.add("s1", "test", t1=head(2))
    images.add("s2", "train", t1=head(3))
    finding = found(images.checked(), "subject-leakage")
    assert finding.severity == "error" and finding.subjects == ("s1",) and "--resplit" in finding.remedy


def test_missing_cells_and_files(images):
    images.add("s1", t1=head(1), flair=head(2), age="40")
    images.add("s2", t1=head(3))
    images.add("s3", t1="nowhere.nii.gz", flair="../other.nii.gz", age="50")
    checked = images.checked()
    assert found(checked, "missing-channel").subjects == ("s2",) and found(checked, "missing-channel").columns == ("flair",)
    assert found(checked, "missing-attribute").subjects == ("s2",)
    assert found(checked, "missing-file").subjects == ("s3",) and "nowhere.nii.gz" in found(checked, "missing-file").found
    assert "leaves the manifest's folder" in found(checked, "unreadable").found


def test_class_balance_by_split(images):
    for i in range(24):
        images.add(f"s{i}", "train" if i else "validation", t1=head(0)[:6, :6, :6] + i, label="1" if i in (1,) else "0")
    checked = images.checked()
    assert found(checked, "class-imbalance").found == "label: '0' has 23 rows and '1' 1"
    assert "validation has no '1'" in found(checked, "class-absent").found
    assert document(checked)["attributes"]["label"]["rows"] == {"validation": [1, 0], "train": [22, 1]}


# ---------------------------------------------------------------- values and headers


def test_a_broken_file_costs_only_itself(images):
    images.add("s1", t1=head(1), t2=head(2))
    images.add("s2", t1=head(3), t2=head(4))
    damaged = images.folder / images.rows[0]["t2"]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    checked = images.checked()
    assert found(checked, "unreadable").subjects == ("s1",) and str(damaged) in found(checked, "unreadable").found
    assert [set(row.images) for row in checked.data.rows] == [{"t1"}, {"t1", "t2"}]


def test_a_row_whose_process_died_is_read_again_file_by_file(images, monkeypatch):
    """As when a decoder ends the process: nobody knows yet which of the row's files it was."""
    images.add("s1", t1=head(1), t2=head(2))

    def dying(function, jobs, workers):
        for place, job in enumerate(jobs):
            dies = any("t2" in file[0] for file in job.files)
            yield place, Failure("its decoder ended the process (signal 11); the file is damaged") if dies else function(job)

    monkeypatch.setattr("medgen.data.check.checker.each", dying)
    checked = images.checked()
    assert list(checked.data.rows[0].images) == ["t1"] and found(checked, "unreadable").columns == ("t2",)
    assert "signal 11" in found(checked, "unreadable").found


def test_nan_constant_and_negative_voxels(images):
    broken, stripped = head(1), head(2)
    broken[10, 10, 10] = np.nan
    stripped[20, 20, 10:14] = -7
    images.add("s1", t1=broken)
    images.add("s2", t1=np.full((8, 8, 8), 5, np.float32))
    images.add("s3", t1=stripped)
    checked = images.checked()
    assert found(checked, "not-finite").subjects == ("s1",) and "1 of them" in found(checked, "not-finite").found
    assert found(checked, "constant").subjects == ("s2",)
    negative = found(checked, "mr-negative")
    assert negative.subjects == ("s3",) and "down to -7" in negative.found and "after skull stripping" in negative.found
    assert not checked.fit


@pytest.mark.parametrize(
    ("shift", "scale", "code", "severity", "part"),
    [
        (0, 1, "ct-padding", "warning", "least -3024 in 1"),
        (3024, 1, "ct-offset", "error", "no value below 0"),
        (3024, 255 / 4024, "ct-8bit", "error", "8-bit"),
        (0, 9, "ct-metal", "note", "exceeds 4000 HU (up to 9000)"),
    ],
)
def test_ct_ranges(images, shift, scale, code, severity, part):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 6)).astype(np.float32)
    array[0, 0, 0], array[:2, 1:] = 1000, -3024
    values = (array + shift) * scale
    images.add("s1", ct=np.floor(values))
    finding = found(images.checked(), code)
    assert finding.severity == severity and part in finding.found and finding.subjects == ("s1",)


def test_ct_is_recognised_by_its_air(images):
    array = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 6)).astype(np.float32)
    array[:, :8] = -1000
    images.add("s1", image=array)
    assert document(images.checked())["columns"]["image"]["modality"] == "CT"


def test_mixed_types_scales_sizes_spacings_and_orientations(images):
    for i in range(4):
        images.add(f"s{i}", t1=head(i))
    images.add("s4", t1=(head(5) * 0.05).astype(np.uint8), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    images.add("s5", t1=(head(6) * 1000)[:20], affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    checked = images.checked()
    types = found(checked, "mixed-types")
    assert types.severity == "warning" and types.subjects == ("s4",) and "uint8 in 1" in types.found
    assert set(found(checked, "other-scale").subjects) == {"s4", "s5"}
    assert found(checked, "mixed-spacing").subjects == ("s4",) and "spacing=[1, 1, 2]" in found(checked, "mixed-spacing").remedy
    assert "LAS in 4, RAS in 2" in found(checked, "mixed-orientations").found
    assert found(checked, "mixed-sizes").found == "t1: 2 different sizes, from 20 x 44 x 24 to 40 x 44 x 24"


def test_pictures_of_several_sizes_and_kinds(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("a", (20, 30)), ("b", (24, 30, 3)), ("c", (20, 32))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / f"{name}.png")
    grey = rng.integers(0, 255, (20, 30, 1), np.uint8).repeat(3, 2)
    Image.fromarray(grey).save(tmp_path / "d.png")
    images = Set(tmp_path)
    for name in "abcd":
        images.add(name, image=f"{name}.png")
    checked = images.checked()
    assert found(checked, "mixed-channels").subjects == ("a", "c") and found(checked, "grey-as-colour").subjects == ("d",)
    assert "from 20 x 30 to 24 x 32" in found(checked, "mixed-sizes").found


# ---------------------------------------------------------------- copies


def test_copies_across_splits_subjects_and_columns(images):
    one, two, three = head(1), head(2), head(3)
    images.add("s1", "train", t1=one, t2=two)
    images.add("s2", "test", t1=one[::-1], affine=AFFINE @ np.diag([-1, 1, 1, 1]) + np.outer([1, 0, 0, 0], [0, 0, 0, -39.0]), t2=head(7))
    images.add("s3", "train", t1=three, t2=three)
    images.add("s4", "train", t1=head(4), t2=two)
    checked = images.checked()
    across = found(checked, "duplicate-across-splits")
    assert across.severity == "error" and across.subjects == ("s1", "s2")  # turned and converted, and the same in the world
    assert found(checked, "duplicate-across-subjects").subjects == ("s1", "s4")
    assert found(checked, "same-image-twice-in-row").subjects == ("s3",)


def test_a_noisy_rescaled_copy_is_nearly_the_same_and_another_patient_is_not(images):
    rng = np.random.default_rng(0)
    copy = (head(1) * 1.7 + rng.normal(0, 10, head(1).shape)).clip(0).astype(np.float32)
    images.add("s1", "train", t1=head(1))
    images.add("s2", "test", t1=copy)
    images.add("s3", "test", t1=head(3))
    checked = images.checked()
    near = found(checked, "near-duplicate-across-splits")
    assert near.severity == "warning" and near.subjects == ("s1", "s2")


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("moved", [(4, 0, 0), (0, -6, 2), (-3, 5, -3)])
def test_a_shift_is_estimated_in_millimetres_across_contrasts(moved):
    first = head(1, (60, 64, 40))
    other = np.roll(np.where(first > 0, 400 - first, 0), moved, (0, 1, 2))
    pair = compared("t1", coarse(Volume(first[None], AFFINE)), "t2", coarse(Volume(other[None].astype(np.float32), AFFINE)))
    assert np.allclose(pair.shift, AFFINE[:3, :3] @ moved, atol=0.8)
    assert pair.there > pair.here


def test_a_shift_of_pictures_is_told_in_pixels():
    rng = np.random.default_rng(0)
    first = np.kron(rng.uniform(0, 255, (20, 24)), np.ones((16, 16))).astype(np.float32)
    pair = compared("a", coarse(Volume(first[None])), "b", coarse(Volume(255 - np.roll(first, (9, -15), (0, 1))[None])))
    assert pair.unit == "pixels" and np.allclose(pair.shift, (9, -15), atol=2)


def test_grids_that_differ_images_that_lie_apart_and_shifted_pairs(images):
    for i in range(2):
        t1 = head(i)
        images.add(f"fine{i}", t1=t1, t2=400 - t1)
    images.add("cut", t1=head(3), t2=head(3)[:-4])
    images.add("moved", t1=head(4), t2=np.roll(head(4), 8, 1))
    images.add("apart", t1=head(5), t2=head(5))
    far = AFFINE.copy()
    far[0, 3] = 500
    save(images.folder / images.rows[-1]["t2"].replace("t2", "x"), head(5) * 0.9 + 1, far)
    images.rows[-1]["t2"] = images.rows[-1]["t2"].replace("t2", "x")
    checked = images.checked()
    assert found(checked, "grids-differ").subjects == ("cut",) and found(checked, "grids-differ").severity == "error"
    assert found(checked, "headers-differ").subjects == ("apart",) and "500 mm apart" in found(checked, "headers-differ").found
    assert found(checked, "no-overlap").subjects == ("apart",)
    shifted = found(checked, "shifted")
    assert shifted.subjects == ("moved",) and shifted.severity == "warning"
    assert re.search(r"about (7\.\d|8\.\d) mm in moved", shifted.found) and "front +" in shifted.found


def test_label_maps_against_their_images(images):
    for i in range(2):
        t1 = head(i)
        images.add(f"fine{i}", t1=t1, seg=(t1 > 200).astype(np.uint8) + 3 * (t1 > 250).astype(np.uint8))
    outside = np.zeros((40, 44, 24), np.uint8)
    outside[:3, :3] = 1
    images.add("beside", t1=head(5), seg=outside)
    images.add("empty", t1=head(6), seg=np.zeros((40, 44, 24), np.uint8))
    images.add("soft", t1=head(7), seg=(head(7) / 300).astype(np.float32))
    checked = images.checked()
    assert found(checked, "label-outside").subjects == ("beside",) and found(checked, "label-outside").severity == "error"
    assert found(checked, "label-empty").subjects == ("empty",)
    assert found(checked, "label-values").subjects == ("soft",) and found(checked, "label-values").severity == "error"


def test_gaps_in_label_values_and_instances(images):
    rng = np.random.default_rng(0)
    images.add("s1", t1=head(1), seg=rng.choice([0, 1, 2, 4], (40, 44, 24)).astype(np.uint8), cells_mask=head(2).astype(np.uint16))
    images.rows[0]["mask"] = save(images.folder / "mask.nii.gz", (head(1) > 0).astype(np.uint8) * 255)
    checked = images.checked()
    gaps = {f.columns[0]: f for f in checked.findings if f.code == "label-gaps"}
    assert "'+data.source.labels.mask={values: [0, 255]}'" in gaps["mask"].remedy
    assert "0, 1, 2, 4" in gaps["seg"].found and "5 classes" in gaps["seg"].remedy
    assert found(checked, "label-instances").columns == ("cells_mask",)


# ---------------------------------------------------------------- the report


def test_the_page_holds_everything_in_one_file_and_escapes_what_it_is_given(images, tmp_path):
    for i in range(10):
        images.add(f"<b>{i}<i>", t1=head(i), label=str(i % 2))
    images.add("bad", t1=np.full((8, 8, 8), 5, np.float32), label="1")
    checked = images.checked()
    html, plain = write(checked, tmp_path / "report")
    text = html.read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:image/png;base64,)|url\(|@import|<script", text)
    assert "<b>0<i>" not in text and "&lt;b&gt;0&lt;i&gt;" in text and "prefers-color-scheme: dark" in text
    assert text.index("constant") < text.index("no-split")  # the worst first
    assert text.count("data:image/png") >= 8 and "<svg" in text
    told = json.loads(plain.read_text())
    assert told["status"] == "errors" and told["counts"]["error"] == 1 and told["subjects"] == 11
    assert [f["subjects"] for f in told["findings"] if f["code"] == "constant"] == [["bad"]]
    with pytest.raises(MedgenError, match="exists"):
        write(checked, tmp_path / "report")


def test_the_histogram_is_that_of_the_voxels():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(5000), rng.normal(100, 10, 15000)])
    image = type("Image", (), {"quantiles": np.quantile(values, QUANTILES), "low": values.min(), "high": values.max()})
    told = histogram([image])
    edges, share = np.array(told["edges"]), np.array(told["share"])
    exact = np.histogram(values, edges)[0] / values.size
    assert abs(share[0] - 0.25) < 0.01  # the point mass at zero
    assert np.abs(share - exact).max() < 0.01


def test_what_a_column_holds_is_summed_up(images):
    images.add("s1", t1=head(1), seg=(head(1) > 0).astype(np.uint8))
    images.add("s2", t1=head(2), seg=(head(2) > 0).astype(np.uint8))
    data = images.checked().data
    told = column(data, "t1")
    assert (told["files"], told["modality"], told["orientations"], told["dtypes"]) == (2, "MR", {"LAS": 2}, {"float32": 2})
    assert told["shapes"]["common"] == [40, 44, 24] and told["spacings"]["common"] == [1, 1, 2]
    marked = int((head(1) > 0).sum() + (head(2) > 0).sum())
    assert column(data, "seg")["values"] == {"0": 2 * 40 * 44 * 24 - marked, "1": marked}


def test_kept_summaries_are_small(tmp_path):
    import pickle

    path = tmp_path / "t1.nii.gz"
    save(path, head(0, (64, 64, 64)))
    row = summarise(Job((("t1", str(path), "image"),)))
    assert len(pickle.dumps(row)) < 8000 < 64**3


def test_the_command_ends_with_1_on_errors_and_0_without(images, capsys):
    for i in range(3):
        images.add(f"s{i}", ("train", "validation", "test")[i], t1=head(i))
    images.checked()
    path, out = str(images.folder / "manifest.csv"), str(images.folder / "report")
    main(["data", "check", path, "-o", out])
    assert "1 note in 3 subjects, 3 rows" in capsys.readouterr().out and (Path(out) / "report.html").is_file()
    with pytest.raises(SystemExit) as end:
        main(["data", "check", path, "-o", out])
    assert end.value.code == 2 and "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["data", "check", path, "--json", "--column", "t1=CT"])
    assert end.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "errors" and told["findings"][0]["code"] == "ct-offset"
    with pytest.raises(SystemExit) as end:
        main(["data", "check", path, "--json", "--column", "t3=CT"])
    assert end.value.code == 2 and "did you mean 't1'" in capsys.readouterr().err


@pytest.mark.shared_data
def test_the_real_sets_show_their_traps(shared_data, tmp_path):
    def codes(name: str) -> dict[str, str]:
        path = tmp_path / name / "manifest.csv"
        main(["data", "scan", str(shared_data / name), "-o", str(path)])
        findings = check(path, workers=2).findings
        return {code: "; ".join(f.found for f in findings if f.code == code) for code in {f.code for f in findings}}

    assert "after skull stripping" in codes("ms_brain")["mr-negative"]
    hippocampus = codes("hippocampus")
    assert "uint8 in 48" in hippocampus["mixed-types"] and "21 images" in hippocampus["other-scale"]
    ct = codes("ct_chest")
    assert "least -2048 in 16" in ct["ct-padding"] and "15 of 34 subjects" in ct["several-rows"]
    assert not [code for code in ct if "duplicate" in code]


@pytest.mark.parametrize("phantom", ["brain", "chest", "histology"])
def test_drawn_data_as_files_pass_their_own_check(tmp_path, phantom):
    folder = tmp_path / phantom
    if phantom == "brain":
        manifest = write_phantoms(folder, 3, ("t1", "tissue", "lesion"), (24, 24, 24))
    elif phantom == "chest":
        manifest = write_chests(folder, 3, ("ct", "tissue", "nodule"), (32, 32, 16))
    else:
        manifest = write_tiles(folder, tiles=2, size=(64, 64))
    main(["data", "check", str(manifest), "-o", str(tmp_path / "report")])  # the status is 1 where there is an error
    columns = columns_of(Manifest.read(manifest), {})
    kinds = {"nodule": "labels", "instances": "labels", "tissue": "labels", "ct": "image", "caption": "text", "label": "attribute"}
    assert all(columns[name].kind == kind for name, kind in kinds.items() if name in columns)
