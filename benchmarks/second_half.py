"""A flow in the table of T1 to T2, and T1 synthesis in latent space beside pixel space: docs/results/second-half.md, part 1.

    python benchmarks/spine.py manifest DATA spine.csv
    python train.py experiment=t1_to_t2_flow data.source.manifest=$PWD/spine.csv run=runs/second/flow
    python train.py experiment=t1_prior data.source.manifest=$PWD/spine.csv run=runs/second/prior
    C="data.batch_size=4 training.steps=1500 model.start=700"
    python train.py experiment=t1_codec $C data.source.manifest=$PWD/spine.csv run=runs/second/codec
    L="latents.cache=true latents.versions=6 training.steps=1000"
    python train.py experiment=t1_latent $L codec=runs/second/codec data.source.manifest=$PWD/spine.csv run=runs/second/latent
    python benchmarks/second_half.py flow spine.csv runs/second
    python benchmarks/second_half.py synthesis spine.csv runs/second
    python benchmarks/second_half.py codec spine.csv runs/second

The stored latent run was started with training.steps=1500, stopped after 308 steps and resumed with training.steps=1000, so that its rate
fell along another cosine for the first third. The other rows of T1 to T2 are those that `benchmarks/spine.py translation` stored in
docs/results/spine_translation.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from spine import METRICS, STEPS, predictor, work, write_block
from torch import Tensor

from medgen.core.picture import gray, upright
from medgen.data.files import FileData
from medgen.data.manifest import Manifest
from medgen.evaluation.made import network_units, real_images
from medgen.evaluation.masks import body_mask
from medgen.evaluation.pictures import heights, lettered, plane
from medgen.evaluation.pixel import protocol, score_case, summary
from medgen.evaluation.samples import write_samples_report
from medgen.inference import Pretrained, load
from medgen.metrics.pixel import psnr, ssim

FLOW = "rectified flow, one draw"
SPACES = {"pixel space": "prior", "latent space": "latent"}


def flow(manifest: Path, runs: Path, out: Path) -> None:
    """Scores the flow by the protocol of the spine and writes the whole table."""
    model = load(runs / "flow" / "checkpoints" / "last").with_sampler(steps=STEPS)
    predict, setting = predictor(model), work(model, Manifest.read(manifest), "test")
    made = [(predict(case.source), case) for case in setting.cases()]
    scores = {**summary([row for image, case in made for row in score_case(image, case)]), "protocol": protocol(setting)}
    document = json.loads((out / "spine_translation.json").read_text()) | {FLOW: scores}
    (out / "spine_translation.json").write_text(json.dumps(document, indent=2) + "\n")
    subjects = ("patient19", "stroke01")
    lines = ["| method | " + " | ".join(f"{s} {m.upper()}" for s in subjects for m in METRICS) + " |", "|---" * 7 + "|"]
    for name, method in document.items():
        body = {m: {v["subject"]: v["value"] for v in method["regions"]["body"][m]["volumes"]} for m in METRICS}
        cells = [f"{body[m][s]:.{2 if m == 'psnr' else 3}f}" for s in subjects for m in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_block(out / "spine.md", "translation", lines)
    write_block(out / "second-half.md", "translation", lines)
    rows = []
    for image, case in made:
        height = heights(case.body[0, 0], 2)[1]
        source, target, result = (plane(shown, 2, height) for shown in (case.source, case.target, image))
        rows.append([*(gray(p, -1.0, 1.0) for p in (source, target, result)), gray(np.abs(result - target), 0.0, 1.0)])
    subjects = [case.subject for _, case in made]
    Image.fromarray(lettered(rows, ["T1", "T2", "flow", "error"], subjects)).save(out / "second-half-flow.png")


def held_out(model: Pretrained, manifest: Path) -> tuple[FileData, Tensor]:
    rule = {k: v for k, v in model.contract.intensity["t1"].items() if k != "typical"}
    data = FileData(str(manifest), {"t1": rule}, model.contract.size, spacing=model.contract.spacing)
    rows = [data.split("test").case(i, np.random.default_rng(0)) for i in range(len(data.split("test")))]
    return data, torch.from_numpy(np.stack([row["t1"] for row in rows if row["subject"] == "patient19"]))


def synthesis(manifest: Path, runs: Path, out: Path) -> None:
    """64 samples of each space beside patient07 (training) and patient19 (held out)."""
    lines = ["| quantity | " + " | ".join(SPACES) + " |", "|---" * (1 + len(SPACES)) + "|"]
    reports: list[dict[str, Any]] = []
    for run in SPACES.values():
        model = load(runs / run / "checkpoints" / "last")
        data, real = held_out(model, manifest)
        made = torch.stack([network_units(model, v) for v in model.generate(64, seed=0)])
        name = f"second-half-synthesis-{run}"
        reports.append(write_samples_report(made, real_images(data, "train", ("t1",)), real, out, name, overwrite=True))
    n = reports[0]["n"]["in_ratio"]
    ratios = [f"{r['frechet']['ratio']:.2f}" for r in reports]
    lines.append(f"| feature distance over the real-against-real floor (n = {n}) | {' | '.join(ratios)} |")
    for key in reports[0]["nearest_training"]:
        values = [r["nearest_training"][key] for r in reports]
        text = [f"{v:.0%}" if "share" in key else f"{v:.3f}" for v in values]
        lines.append(f"| RMS distance to the nearest training slice: {key.replace('_', ' ')} | {' | '.join(text)} |")
    write_block(out / "second-half.md", "synthesis", lines)


def codec(manifest: Path, runs: Path, out: Path) -> None:
    """What the codec keeps of slices it has not seen: PSNR and SSIM in the body of patient19, and a picture."""
    model = load(runs / "codec" / "checkpoints" / "last")
    _, real = held_out(model, manifest)
    with torch.no_grad():
        autoencoder = model.model.autoencoder
        made = torch.cat([autoencoder.decode(autoencoder.encode(part).mean, part.shape[2:]) for part in real.split(16)])
    masks = torch.stack([body_mask(x) for x in real])
    scores = {name: [float(f(made[i : i + 1], real[i : i + 1], 2.0, masks[i : i + 1])) for i in range(len(real))] for name, f in SCORES}
    lines = ["| codec on patient19 | mean over slices | lowest | highest |", "|---|---|---|---|"]
    lines += [f"| {k} | {np.mean(v):.3f} | {min(v):.3f} | {max(v):.3f} |" for k, v in scores.items()]
    write_block(out / "second-half.md", "codec", lines)
    places = np.linspace(0.2, 0.8, 6) * len(real)
    rows = [[gray(upright(t[int(p), 0].numpy()), -1.0, 1.0) for p in places] for t in (real, made)]
    Image.fromarray(lettered(rows, [""] * 6, ["real", "decoded"])).save(out / "second-half-codec.png")


SCORES = (("PSNR (dB)", psnr), ("SSIM", ssim))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("flow", "synthesis", "codec"))
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, help="folder with flow/, prior/, codec/ and latent/")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    {"flow": flow, "synthesis": synthesis, "codec": codec}[options.action](options.manifest, options.runs, options.out)


if __name__ == "__main__":
    main()
