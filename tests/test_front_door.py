"""What a newcomer meets at the data's front door: wrong choices are told with the remedy, in sentences, before they cost anything."""

from __future__ import annotations

from pathlib import Path

from test_training import TINY

from medgen.cli.main import main
from medgen.cli.train import main as train
from medgen.data.phantom.export import write_phantoms


def slices(manifest: Path, *words: str) -> list[str]:
    """A short training on the t1 slices of a manifest."""
    own = [word for word in TINY if not word.startswith("data.source.")]
    return [*own, "data=slices", f"data.source.manifest={manifest}", "data.source.size=[16,16]", "data.workers=0", *words]


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
