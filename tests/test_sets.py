"""Every real set from its folder to a batch, by the commands of docs/results/sets.md, and the traps that are known to be in it."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from medgen.checkpoint import build
from medgen.cli.configs import compose, resolved
from medgen.cli.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "results" / "sets.md").read_text()
COMMANDS = {re.search(r"manifest=(\w+)\.csv", line)[1]: line for line in PAGE.splitlines() if line.startswith("python train.py")}
SETS = re.search(r"for set in (.*); do", PAGE)[1].split()
TRAPS = {
    "ms_brain": ["mr-negative: .*negative voxels .*after skull stripping"],
    "hippocampus": ["mixed-types: image: mixed data types: float32 in 152, uint8 in 48", "other-scale: image: 21 images"],
    "ct_chest": [
        r"padding-declared: .*declared padding \(values from -3024\): set to -1024 HU \(the first of 5",
        "ct-padding: .*16 of 59 CT images have values below -1024",
        "several-rows: 15 of 34 subjects",
    ],
    "nuclei_he": ["label-instances: mask: .*more than 64 values"],
    "ultrasound_lung": ["mixed-sizes: image: 22 different sizes", "mixed-channels: image: files of 1 and 3 channels"],
    "pneumoniamnist": ["duplicate-across-splits: .*8 cases"],
}
pytestmark = pytest.mark.shared_data


def test_the_page_has_a_command_for_each_set():
    assert sorted(COMMANDS) == sorted(SETS) and len(SETS) == 10


def checked(manifest: Path, report: Path) -> str:
    """The findings, a line each; the status is 1 where there is an error among them."""
    try:
        main(["data", "check", str(manifest), "-o", str(report)])
    except SystemExit as status:
        assert status.code == 1
    assert (report / "report.html").stat().st_size > 10_000
    findings = json.loads((report / "report.json").read_text())["findings"]
    return "\n".join(f"{f['code']}: {f['found']}" for f in findings)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "ultrasound_lung" else ()) for n in SETS])
def test_a_set_from_its_folder_to_a_batch(shared_data, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["data", "scan", str(shared_data / name), "-o", f"{name}.csv"])
    said = checked(Path(f"{name}.csv"), Path("report"))
    for trap in TRAPS.get(name, ()):
        assert re.search(trap, said), said
    manifest = Path(f"{name}.csv")
    manifest.write_text(manifest.read_text().replace(".mov,", ".mov#planes=1,"))
    words = shlex.split(COMMANDS[name])[2:]
    main(["data", "prepare", *words])
    assert list(Path(".medgen").glob("*/index.jsonl"))
    config = resolved(compose([*words, "data.workers=0", "data.batch_size=2"]))
    module, task = build(config["data"], trusted=True), build(config["task"], trusted=True)
    module.resume(0, 1, interval=1)
    (batch,) = module.train_dataloader()
    example = task.example(batch, None)
    assert example.x.shape == (2, len(config["task"]["target"]), *config["data"]["source"]["size"])
    assert torch.isfinite(example.x).all() and -1.2 < example.x.min() < -0.5 and example.x.max() > -0.5


def test_a_deleted_contrast_is_told_and_trains(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared_data / "ms_brain", tmp_path / "set")
    missing = tmp_path / "set" / "patient19" / "FLAIR.nii.gz"
    missing.parent.chmod(0o755)
    missing.unlink()
    main(["data", "scan", "set", "-o", "set.csv"])
    assert re.search(r"flair is missing in 1 of 2 rows", checked(Path("set.csv"), Path("report")))
    words = "data=slices data.source.manifest=set.csv +data.source.channels.flair.name=mr_percentile data.source.options.missing=true"
    module = build(resolved(compose([*words.split(), "data.workers=0", "data.batch_size=228"]))["data"], trusted=True)
    module.resume(0, 1, interval=1)
    (batch,) = module.train_dataloader()
    there = [subject == "patient07" for subject in batch["subject"]]
    assert batch["flair_available"].tolist() == [float(t) for t in there] and 0 < sum(there) < 228
