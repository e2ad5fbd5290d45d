"""What a newcomer meets at the data's front door: wrong choices are told with the remedy, in sentences, before they cost anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_check import Set, found, head
from test_training import TINY

from medgen.cli.main import main
from medgen.cli.train import main as train
from medgen.data.files import FileData
from medgen.data.phantom.export import write_phantoms


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
