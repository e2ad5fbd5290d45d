"""Put trained runs into zoo/ with cards whose numbers come from the result files, never from a keyboard.

python benchmarks/publish.py runs/spine                # after benchmarks/spine.py translation
python benchmarks/publish.py --second runs/second      # after benchmarks/second_half.py flow and benchmarks/reconstruction.py run
python benchmarks/hippocampus.py publish runs/hippocampus    # that page's own model
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from medgen.checkpoint import read_document, write_document
from medgen.cli.main import main as medgen

ROOT = Path(__file__).parents[1]
MS = {
    "name": "MS brain (Lesjak et al. 2017), patient07",
    "licence": "CC BY",
    "attribution": "Lesjak et al., Neuroinformatics 2017, doi 10.1007/s12021-017-9348-7; registered copies from muschellij2/open_ms_data",
    "subjects": 1,
}
TRANSLATOR_FAILURES = """\
- Trained on one skull-stripped head with MS from one scanner: on another scanner the scores fall (see the second column).
- Lesions and vessels are where a translator invents or omits structure; do not read pathology from its output.
- Expects brain-extracted T1 in native MR intensities; images with skull are outside what it has seen.
- Values leave in the training set's typical T2 scale, not in the scale of the patient's own T2.
- Slices are made one by one; planes across them can show steps."""

RECONSTRUCTOR_FAILURES = """\
- Trained on one skull-stripped head with MS: what a quarter of k-space leaves open is filled with what that head looked like.
- Small lesions can be smoothed away or made up; do not read pathology from its output.
- One simulated coil, real images, noise of 1 % of the contrast; other noise, other masks and real coils are outside what it has seen.
- One answer without an uncertainty: for that take a diffusion prior and `solver="mmps"`."""


@dataclass(frozen=True)
class Entry:
    """One model of the zoo: where it was trained, which result is its own, what a user must know."""

    name: str
    run: Path
    title: str
    summary: str
    command: str
    data: dict[str, Any]
    metrics: dict[str, str]
    table: str
    failures: str
    licence: str = "Apache-2.0, with the attribution of the data above"


def translator(name: str, run: Path, method: str, title: str, summary: str, spine: dict[str, Any]) -> Entry:
    """A T1 to T2 model with its scores in the body mask of both test volumes, beside the fitted curve's."""
    body = {m: spine[m]["regions"]["body"] for m in (method, "fitted monotone curve")}
    rows = [f"| {m} | " + " | ".join(f"{v:.3f}" for k in ("psnr", "ssim", "nmse") for v in values(body[m], k)) + " |" for m in body]
    head = [
        "| method | PSNR patient19 | stroke01 | SSIM patient19 | stroke01 | NMSE patient19 | stroke01 |",
        "|---|---|---|---|---|---|---|",
    ]
    metrics = {
        "PSNR patient19": f"{values(body[method], 'psnr')[0]:.2f} dB (curve {values(body['fitted monotone curve'], 'psnr')[0]:.2f})",
        "SSIM": f"{values(body[method], 'ssim')[0]:.3f} (curve {values(body['fitted monotone curve'], 'ssim')[0]:.3f})",
    }
    command = f"python train.py experiment={name_of(run)} data.source.manifest=spine.csv"
    note = "\n\nPer volume in the body mask, data range 2; one volume a column: the value, no interval. Protocol: docs/results/spine.md."
    return Entry(name, run, title, summary, command, MS, metrics, "\n".join(head + rows) + note, TRANSLATOR_FAILURES)


def values(region: dict[str, Any], metric: str) -> list[float]:
    """The metric of each volume, patient19 first."""
    return [volume["value"] for volume in region[metric]["volumes"]]


def name_of(run: Path) -> str:
    """The experiment that a spine run came from."""
    return {"regression": "t1_to_t2_regression", "gan": "t1_to_t2_gan", "diffusion": "t1_to_t2_diffusion", "flow": "t1_to_t2_flow"}[
        run.name
    ]


def reconstructor(run: Path) -> Entry:
    """The L1 U-Net of 4x accelerated T1 slices with its scores beside zero-filling and total variation."""
    scores = json.loads((ROOT / "docs/results/second-half-reconstruction.json").read_text())
    names = ("L1 U-Net, made consistent", "total variation", "zero-filled")
    rows = ["| lines | method | PSNR | SSIM | residual / noise |", "|---|---|---|---|---|"]
    for lines, found in scores.items():
        for name in names:
            s = found[name]
            low, high = min(s["psnr"]), max(s["psnr"])
            numbers = f"{mean(s['psnr']):.2f} ({low:.2f} to {high:.2f}) | {mean(s['ssim']):.3f} | {s['residual_over_noise']:.2f}"
            rows.append(f"| {lines} | {name} | {numbers} |")
    note = "\n\nIn the body, 8 slices of patient19: mean and range; one subject, no interval. Protocol: docs/results/second-half.md."
    best, zero = (mean(scores["random"][name]["psnr"]) for name in (names[0], names[2]))
    return Entry(
        "t1_reconstruction",
        run,
        "T1 slices from a quarter of k-space, L1 U-Net",
        "Reconstructs single-coil T1 slices of 4x undersampled k-space (random or equispaced lines) in one pass.",
        "python train.py experiment=t1_reconstruction_regression data.source.manifest=spine.csv",
        MS,
        {"PSNR patient19, random lines": f"{best:.2f} dB (zero-filled {zero:.2f})"},
        "\n".join(rows) + note,
        RECONSTRUCTOR_FAILURES,
    )


def count(subjects: int) -> str:
    return f"{subjects} subject" + "s" * (subjects != 1)


def card(entry: Entry) -> str:
    data = entry.data
    return f"""\
# {entry.title}

{entry.summary}

Load: `medgen.load("{entry.name}")`. Research only; not a medical device.

## Training

- Data: {data["name"]}; licence {data["licence"]}; {data["attribution"]}. {count(data["subjects"])}, split by subject.
- Command: `{entry.command}`, seed 0, on a processor.
- Weights: exponential moving average, kept in float16; licence {entry.licence}.

## Measured

{entry.table}

## Known failures

{entry.failures}
"""


def publish(entry: Entry) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "card.md"
        path.write_text(card(entry))
        source, exported = entry.run / "checkpoints" / "last", Path(scratch) / "exported"
        medgen(["export", str(source), "-o", str(exported), "--card", str(path), "--force", "trained on one subject: privacy has no test"])
        medgen(["zoo", "add", str(exported), entry.name, "--zoo", str(ROOT / "zoo"), "--card", str(path), "--half", "--overwrite"])
    folder = ROOT / "zoo" / entry.name
    document = read_document(folder)
    document["contract"]["data"] = entry.data
    document["metrics"] = entry.metrics
    write_document(folder, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spine", type=Path, nargs="?", help="folder of the spine runs")
    parser.add_argument("--second", type=Path, help="folder with flow/ and rec_l1/")
    options = parser.parse_args()
    spine = json.loads((ROOT / "docs/results/spine_translation.json").read_text())
    if options.second is not None:
        summary = "Draws one plausible T2 for a T1 along straight paths, slice by slice."
        flow = options.second / "flow"
        publish(translator("t1_to_t2_flow", flow, "rectified flow, one draw", "T1 to T2, rectified flow", summary, spine))
        publish(reconstructor(options.second / "rec_l1"))
    if options.spine is None:
        return
    method, title = "conditional diffusion, one draw", "T1 to T2, conditional diffusion"
    summary = "Draws one plausible T2 for a T1, slice by slice."
    publish(translator("t1_to_t2_diffusion", options.spine / "diffusion", method, title, summary, spine))


if __name__ == "__main__":
    main()
