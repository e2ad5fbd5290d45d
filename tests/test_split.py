"""Splits: exact counts, whole subjects and groups, strata, folds, stability, and what is not replaced."""

import csv
import random
from collections import Counter
from pathlib import Path

import pytest

from medgen.cli.main import main
from medgen.core.errors import MedgenError
from medgen.data.columns import Column, describe, read_columns, sidecar
from medgen.data.manifest import Manifest
from medgen.data.splitting import Plan, folds, split


def table(path: Path, rows: list[dict[str, str]]) -> Manifest:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Manifest.parse(path)


def people(count: int, **columns) -> list[dict[str, str]]:
    """Subjects p0, p1, ...; every column is a function of the number."""
    return [{"subject": f"p{i}", **{name: str(value(i)) for name, value in columns.items()}} for i in range(count)]


# ---------------------------------------------------------------- by subject


@pytest.mark.parametrize(("count", "expected"), [(100, (80, 10, 10)), (37, (29, 4, 4)), (5, (3, 1, 1)), (3, (1, 1, 1))])
def test_counts_are_exact_and_no_split_is_empty(tmp_path, count, expected):
    placed = split(table(tmp_path / "m.csv", people(count)), Plan())
    counts = Counter(placed.values())
    assert (counts["train"], counts["validation"], counts["test"]) == expected


def test_rows_of_a_subject_stay_together_and_their_order_does_not_matter(tmp_path):
    rows = [{"subject": f"p{i % 20}", "image": f"{i}.png"} for i in range(100)]
    first = split(table(tmp_path / "m.csv", rows), Plan(seed=3))
    random.Random(0).shuffle(rows)
    assert split(table(tmp_path / "n.csv", rows), Plan(seed=3)) == first and len(first) == 20
    assert split(table(tmp_path / "n.csv", rows), Plan(seed=4)) != first


def test_one_more_subject_moves_at_most_one_other_over_each_border(tmp_path):
    for count in range(20, 60):
        before = split(table(tmp_path / "m.csv", people(count)), Plan())
        after = split(table(tmp_path / "m.csv", people(count + 1)), Plan())
        assert sum(before[subject] != after[subject] for subject in before) <= 2


# ---------------------------------------------------------------- strata and groups


def test_every_stratum_keeps_its_share(tmp_path):
    rows = people(200, label=lambda i: int(i % 10 == 0))
    placed = split(table(tmp_path / "m.csv", rows), Plan(stratify="label"))
    rare = Counter(placed[row["subject"]] for row in rows if row["label"] == "1")
    assert rare == {"train": 16, "validation": 2, "test": 2}
    assert Counter(placed.values()) == {"train": 160, "validation": 20, "test": 20}


def test_many_small_strata_add_up_to_the_wanted_counts(tmp_path):
    placed = split(table(tmp_path / "m.csv", people(100, label=lambda i: i // 10)), Plan(stratify="label"))
    assert Counter(placed.values()) == {"train": 80, "validation": 10, "test": 10}


def test_a_number_is_stratified_in_quarters(tmp_path):
    rows = people(200, age=lambda i: 20 + i * 0.3)
    placed = split(table(tmp_path / "m.csv", rows), Plan((0.5, 0.0, 0.5), stratify="age"))
    for quarter in range(4):
        some = [placed[f"p{i}"] for i in range(50 * quarter, 50 * quarter + 50)]
        assert Counter(some) == {"train": 25, "test": 25}


def test_whole_sites_are_held_out(tmp_path):
    sizes = {"A": 50, "B": 20, "C": 15, "D": 10, "E": 5}
    names = [site for site, n in sizes.items() for _ in range(n)]
    rows = people(100, site=lambda i: names[i])
    placed = split(table(tmp_path / "m.csv", rows), Plan((0.7, 0.15, 0.15), group="site"))
    by_site = {site: {placed[row["subject"]] for row in rows if row["site"] == site} for site in sizes}
    assert all(len(splits) == 1 for splits in by_site.values())
    counts = Counter(placed.values())
    assert counts["train"] == 70 and counts["validation"] == counts["test"] == 15


def test_subjects_joined_by_any_named_column_stay_together(tmp_path):
    rows = [
        {"subject": "scan1", "patient": "x", "site": "A"},
        {"subject": "scan2", "patient": "x", "site": "B"},
        {"subject": "scan3", "patient": "y", "site": "B"},
        *({"subject": f"other{i}", "patient": f"o{i}", "site": f"s{i}"} for i in range(12)),
    ]
    for seed in range(10):
        placed = split(table(tmp_path / "m.csv", rows), Plan(by="patient", group="site", seed=seed))
        assert placed["scan1"] == placed["scan2"] == placed["scan3"]


# ---------------------------------------------------------------- folds


def test_every_subject_is_in_one_fold_and_test_is_held_out_of_all(tmp_path):
    manifest = table(tmp_path / "m.csv", people(53, label=lambda i: i % 3))
    fold = folds(manifest, Plan((0.8, 0.0, 0.2), stratify="label"), 5)
    counts = Counter(fold.values())
    assert counts.pop(None) == 11 and sorted(counts) == [0, 1, 2, 3, 4] and max(counts.values()) - min(counts.values()) <= 1
    assert folds(manifest, Plan((1, 0, 0)), 53).keys() == fold.keys()


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_is_refused(tmp_path):
    manifest = table(tmp_path / "m.csv", people(2, site=lambda i: "" if i else "A"))
    with pytest.raises(MedgenError, match="2 subjects cannot be shared out to 3 parts"):
        split(manifest, Plan())
    with pytest.raises(MedgenError, match="add up to 1"):
        Plan((0.8, 0.1, 0.2))
    with pytest.raises(MedgenError, match="subject p1 has no 'site'"):
        split(manifest, Plan((0.5, 0.5, 0), group="site"))
    with pytest.raises(MedgenError, match="no column 'sit'; did you mean 'site'"):
        split(manifest, Plan((0.5, 0.5, 0), group="sit"))
    with pytest.raises(MedgenError, match="at least 2"):
        folds(manifest, Plan((1, 0, 0)), 1)


# ---------------------------------------------------------------- the command


def test_the_command_keeps_paths_and_descriptions_and_replaces_nothing(tmp_path, capsys):
    rows = people(10, t1=lambda i: f"images/{i}.nii.gz", label=lambda i: i % 2)
    manifest = table(tmp_path / "a/m.csv", rows)
    sidecar(manifest.path).write_text(describe({"t1": Column("image", "MR"), "label": Column("attribute", classes=("no", "yes"))}))
    command = ["data", "split", str(manifest.path), "-o", str(tmp_path / "b/split.csv"), "--stratify", "label"]
    main(command)
    assert "train\t8\t8\t0:4 1:4" in capsys.readouterr().out
    made = Manifest.read(tmp_path / "b/split.csv")
    assert made.columns == ("subject", "split", "t1", "label") and made.rows[0]["t1"] == str(tmp_path / "a/images/0.nii.gz")
    assert read_columns(made.path)["label"].classes == ("no", "yes")
    for arguments, said in (
        (command, "exists"),
        (["data", "split", str(made.path), "-o", str(tmp_path / "c.csv")], "has a split already (train, test, validation); pass --resplit"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2 and said in capsys.readouterr().err
    main(["data", "split", str(made.path), "-o", str(tmp_path / "a/c.csv"), "--resplit", "--seed", "1"])
    assert Manifest.read(tmp_path / "a/c.csv").rows[0]["t1"] == "images/0.nii.gz"


def test_the_command_writes_a_manifest_per_fold(tmp_path, capsys):
    manifest = table(tmp_path / "m.csv", people(20))
    main(["data", "split", str(manifest.path), "-o", str(tmp_path / "cv.csv"), "--folds", "4", "--fractions", "0.8", "0", "0.2"])
    whole = Manifest.read(tmp_path / "cv.csv")
    fold = {row["subject"]: row["fold"] for row in whole.rows}
    assert Counter(fold.values()) == {"": 4, "0": 4, "1": 4, "2": 4, "3": 4}
    for k in range(4):
        made = Manifest.read(tmp_path / f"cv_fold{k}.csv")
        assert {row["subject"] for row in made.split("validation").rows} == {s for s, f in fold.items() if f == str(k)}
        assert {row["subject"] for row in made.split("test").rows} == {s for s, f in fold.items() if f == ""}
    assert "fold 3" in capsys.readouterr().out
