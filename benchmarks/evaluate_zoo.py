"""The full evaluation of every checkpoint of the zoo: docs/results/evaluation.md and its pictures.

    python benchmarks/evaluate_zoo.py manifests DATA out/zoo     # phantoms, and manifests of the real sets in DATA
    python benchmarks/evaluate_zoo.py run out/zoo                # every model on every set that fits it; goes on where it stopped
    python benchmarks/evaluate_zoo.py run out/zoo --only brain_phantom --quick
    python benchmarks/evaluate_zoo.py write out/zoo              # the document, from what has been run

DATA is the folder that holds ms_brain/, stroke_brain/, hippocampus/, pneumoniamnist/ and nuclei_he/.
The pages themselves are out/zoo/<model>-<set>/evaluation.html.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medgen.cli.main import main as medgen
from medgen.core.volume import Volume
from medgen.data.columns import sidecar
from medgen.data.manifest import Manifest
from medgen.data.phantom.export import write_phantoms
from medgen.data.phantom.source import HEIGHTS
from medgen.data.readers import read
from medgen.evaluation.card import measured_lines, spaced

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LESIONS = {"ms_brain/patient07": "train", "ms_brain/patient19": "test", "stroke_brain/stroke01": "test"}
TISSUES = 10  # classes of the phantom's label map


@dataclass(frozen=True)
class Plan:
    """A model on a set: the set's manifest is <folder>/<data>.csv or <folder>/<data>/manifest.csv."""

    model: str
    data: str
    options: tuple[str, ...] = ()
    how: str = ""  # what sets it apart from another plan of the two

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.model, self.data, self.how.replace(" ", "_"))))

    @property
    def title(self) -> str:
        return f"{self.model} on {self.data}" + (f", {self.how}" if self.how else "")


HEADS = ("--labels", f"tissue={TISSUES}")
FEWER = ("--steps", "6")  # of Heun's 18: eleven calls of the network a slice instead of 35, so that all of it takes an hour
PLANS = (
    Plan("brain_phantom", "slices", ("-n", "128")),
    Plan("brain_phantom", "heads", ("--labels", "lesion=2", "--parts", "anomaly")),
    Plan("xray_class", "xrays", ("-n", "256", "--split", "validation")),
    Plan("nuclei_he", "nuclei", ("-n", "128")),
    Plan("hippocampus_latent", "hippocampus", ("-n", "40")),
    Plan("t1_reconstruction", "heads", HEADS),
    Plan("t1_reconstruction", "brains", ("--domain", "site")),
    Plan("t1_to_t2_flow", "heads", (*HEADS, *FEWER)),
    Plan("t1_to_t2_flow", "brains", ("--domain", "site", *FEWER, "--quick")),
    Plan("t1_to_t2_diffusion", "heads", (*HEADS, *FEWER)),
    Plan("t1_to_t2_flow", "two_heads", ("--parts", "pixel"), "all 18 steps"),
    Plan("t1_to_t2_diffusion", "two_heads", (*FEWER, "--parts", "pixel", "calibration", "--draws", "6"), "six draws"),
    Plan("t1_to_t2_diffusion", "brains", ("--domain", "site", *FEWER, "--quick")),
)
SETS = {
    "slices": "drawn heads between the heights that the prior was trained on; 64 of the 512 of training and 24 others",
    "xrays": "PneumoniaMNIST, 28 x 28, normal or pneumonia: its training and its validation pictures, each picture once",
    "nuclei": "64 x 64 crops of stained tissue tiles with masks of their nuclei: 44 tiles to train, 6 to validate, 25 to test; "
    "tiles of one field of view, which continue one another, lie in one split",
    "heads": "4 drawn heads with skull, 3.5 mm voxels: for models of stripped heads a test of what they never saw; translations by 6 steps "
    "unless said",
    "two_heads": "the first two of the heads above",
    "brains": "patient07 (trained on), patient19 and stroke01 (another site), all skull-stripped; translations by 6 steps unless said",
    "hippocampus": "Medical Segmentation Decathlon Task04, 140 subjects to train, 20 to validate, 40 to test",
}


def manifests(data: Path, folder: Path) -> None:
    """Draw the phantoms and list the real sets; what is there already is kept."""
    if not (folder / "heads" / "manifest.csv").exists():
        write_phantoms(folder / "heads", 16, ("t1", "t2", "tissue", "lesion"), (64, 64, 64), splits={"train": 12, "test": 4})
    if not (folder / "slices" / "manifest.csv").exists():
        write_phantoms(folder / "slices", 88, ("t1",), (64, 64, 64), splits={"train": 64, "test": 24})
    _crop(folder / "slices" / "manifest.csv")
    _two(folder / "heads" / "manifest.csv", folder / "two_heads.csv")
    lines = [["subject", "split", "site", "t1", "t2"]]
    for place, split in LESIONS.items():
        site, subject = place.split("/")
        lines.append([subject, split, site, *(str((data / place / f"{name}.nii.gz").resolve()) for name in ("T1", "T2"))])
    with (folder / "brains.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    from hippocampus import write_manifest
    from nuclei import write_crops

    if not (folder / "nuclei" / "manifest.csv").exists():
        write_crops(data / "nuclei_he", folder / "nuclei")
    write_manifest(data / "hippocampus", folder / "hippocampus.csv")
    if not (folder / "pneumoniamnist.csv").exists():
        medgen(["data", "scan", str(data / "pneumoniamnist"), "-o", str(folder / "pneumoniamnist.csv")])
    _each_once(folder / "pneumoniamnist.csv", folder / "xrays.csv")


def _two(manifest: Path, out: Path) -> None:
    """The training rows and two held-out ones, for what takes long."""
    listed = Manifest.read(manifest)
    rows = [*listed.split("train").rows, *listed.split("test").rows[:2]]
    files = [column for column in listed.columns if "/" in rows[0][column]]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, listed.columns)
        writer.writeheader()
        writer.writerows({**row, **{column: f"{manifest.parent.name}/{row[column]}" for column in files}} for row in rows)


def _each_once(manifest: Path, out: Path) -> None:
    """The rows whose picture is no copy of another's; of copies one that is held out stays."""
    listed, seen, kept = Manifest.read(manifest), set(), []
    for row in sorted(listed.rows, key=lambda row: row["split"] == "train"):
        content = read(listed.file(row, "image")).array.tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(row)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, listed.columns)
        writer.writeheader()
        writer.writerows(kept)
    shutil.copyfile(sidecar(manifest), sidecar(out))


def _crop(manifest: Path) -> None:
    """Keep the heights of the head that the demo's slices come from."""
    listed = Manifest.read(manifest)
    for row in listed.rows:
        path = listed.file(row, "t1")
        volume = read(path)
        heights = volume.affine[2, 3] + volume.affine[2, 2] * np.arange(volume.shape[2])
        first, last = np.flatnonzero((heights >= HEIGHTS[0]) & (heights <= HEIGHTS[1]))[[0, -1]]
        if last - first == len(heights) - 1:
            continue
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, 2] * first
        Volume(volume.array[..., first : last + 1], affine, volume.units).save(path, overwrite=True)


def run(folder: Path, only: list[str], extra: list[str]) -> None:
    """`medgen evaluate` for every plan that has no report yet."""
    for plan in PLANS:
        out = folder / plan.name
        if (out / "evaluation.json").exists() or (only and plan.model not in only):
            continue
        table = folder / f"{plan.data}.csv"
        table = table if table.exists() else folder / plan.data / "manifest.csv"
        print(f"== {plan.name}", flush=True)
        medgen(["evaluate", plan.model, "--data", str(table), "-o", str(out), *plan.options, *extra])


def write(folder: Path, out: Path) -> None:
    """The document: for each model and set its table of verdicts, and the picture of its worst cases."""
    lines = ["# Every model of the zoo, evaluated", "Written by `benchmarks/evaluate_zoo.py`; its first lines have the commands."]
    lines.append("Of each part: *passes* or *fails* its yardstick, *look at it* before use, or *measured* and not judged.")
    for plan in PLANS:
        place = folder / plan.name / "evaluation.json"
        if not place.exists():
            print(f"not run yet: {plan.name}", file=sys.stderr)
            continue
        report = json.loads(place.read_text())
        lines += [f"## {plan.title}", f"{SETS[plan.data][:1].upper()}{SETS[plan.data][1:]}.", *measured_lines(report)]
        picture = next(iter(sorted((folder / plan.name / "figures").glob("*_1.png"), key=_first)), None)
        if picture is not None:
            target = f"evaluation-{plan.name}.png"
            shutil.copyfile(picture, out / target)
            lines.append(f"![{plan.title}]({target})")
    (out / "evaluation.md").write_text(spaced(lines))
    print(f"written: {out / 'evaluation.md'}")


def _first(path: Path) -> bool:
    """Cases and samples before everything else."""
    return not path.name.startswith(("pixel", "samples"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    made = actions.add_parser("manifests")
    made.add_argument("data", type=Path)
    made.add_argument("folder", type=Path)
    runs = actions.add_parser("run", help="further options go to `medgen evaluate`")
    runs.add_argument("folder", type=Path)
    runs.add_argument("--only", nargs="+", default=[], metavar="MODEL")
    written = actions.add_parser("write")
    written.add_argument("folder", type=Path)
    written.add_argument("-o", "--out", type=Path, default=RESULTS)
    options, extra = parser.parse_known_args()
    if options.action == "manifests":
        options.folder.mkdir(parents=True, exist_ok=True)
        manifests(options.data, options.folder)
    elif options.action == "run":
        run(options.folder, options.only, extra)
    else:
        write(options.folder, options.out)


if __name__ == "__main__":
    main()
