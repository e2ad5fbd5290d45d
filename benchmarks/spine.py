"""T1 to T2 and T1 synthesis on real volumes: the numbers and pictures of docs/results/spine.md.

    python benchmarks/spine.py manifest DATA spine.csv
    python train.py experiment=t1_to_t2_regression data.source.manifest=$PWD/spine.csv run=runs/spine/regression   # and the other three
    python benchmarks/spine.py translation spine.csv runs/spine
    python benchmarks/spine.py synthesis spine.csv runs/spine
    python benchmarks/spine.py rim spine.csv runs/spine             # where the L1 model's error lies, printed

DATA is the folder that holds ms_brain/ and stroke_brain/. patient07 trains; patient19 and stroke01 (another scanner) test.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool3d

from medgen.core.picture import gray
from medgen.data.files import FileData
from medgen.data.manifest import Manifest
from medgen.evaluation.baselines import copy_source, fit_curve
from medgen.evaluation.made import network_units, real_images
from medgen.evaluation.pictures import heights, lettered, plane
from medgen.evaluation.pixel import protocol, score_case, summary
from medgen.evaluation.samples import write_samples_report
from medgen.evaluation.work import Case, Work
from medgen.inference import Pretrained, load

SUBJECTS = {"patient07": ("train", "ms_brain"), "patient19": ("test", "ms_brain"), "stroke01": ("test", "stroke_brain")}
MODELS = {"regression": "L1 U-Net", "gan": "conditional GAN", "diffusion": "conditional diffusion, one draw"}
SHORT = {
    "fitted monotone curve": "curve",
    "L1 U-Net": "L1 U-Net",
    "conditional GAN": "GAN",
    "conditional diffusion, one draw": "diffusion",
}
STEPS = 8  # of Heun's method, 15 evaluations a slice
METRICS = ("psnr", "ssim", "nmse")
BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"


def write_manifest(data: Path, path: Path) -> None:
    """subject, split, t1, t2, with absolute paths."""
    lines = ["subject,split,t1,t2"]
    for subject, (split, folder) in SUBJECTS.items():
        files = [(data / folder / subject / f"{contrast}.nii.gz").resolve() for contrast in ("T1", "T2")]
        lines.append(",".join([subject, split, *map(str, files)]))
    path.write_text("\n".join(lines) + "\n")


def work(model: Pretrained, manifest: Manifest, split: str) -> Work:
    """Whole volumes on the grid that all four models share, in network units, with their body masks."""
    return Work(model, manifest, Path("."), split)


def predictor(model: Pretrained) -> Callable[[Tensor], Tensor]:
    """Source on the grid -> prediction on the grid."""

    def predict(source: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(model.predict(source[0].numpy())))[None]

    return predict


def translation(manifest_path: Path, runs: Path, out: Path) -> None:
    """spine_translation.json and .png, and the first table."""
    manifest = Manifest.read(manifest_path)
    models = {name: load(runs / name / "checkpoints" / "last") for name in MODELS}
    models["diffusion"] = models["diffusion"].with_sampler(steps=STEPS)
    first = models["regression"]
    training = [(c.source[0], c.target[0], c.body[0]) for c in work(first, manifest, "train").cases()]
    test = list(work(first, manifest, "test").cases())
    methods = {"copy of the source": copy_source, "fitted monotone curve": fit_curve(training)}
    methods |= {MODELS[name]: predictor(model) for name, model in models.items()}
    made: dict[str, list[Tensor]] = {}
    for name, predict in methods.items():
        start = time.perf_counter()
        made[name] = [predict(case.source) for case in test]
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    rows = {
        name: [row for image, case in zip(images, test, strict=True) for row in score_case(image, case)] for name, images in made.items()
    }
    document = {name: {**summary(found), "protocol": protocol(work(first, manifest, "test"))} for name, found in rows.items()}
    (out / "spine_translation.json").write_text(json.dumps(document, indent=2) + "\n")
    Image.fromarray(translation_picture(made, test)).save(out / "spine_translation.png")
    lines = ["| method | " + " | ".join(f"{s} {m.upper()}" for s in ("patient19", "stroke01") for m in METRICS) + " |", "|---" * 7 + "|"]
    for name, found in rows.items():
        values = {(r.subject, m): r.values[m] for r in found if r.region == "body" for m in METRICS}
        cells = [f"{values[s, m]:.{2 if m == 'psnr' else 3}f}" for s in ("patient19", "stroke01") for m in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_block(out / "spine.md", "translation", lines)


def synthesis(manifest: Path, runs: Path, out: Path) -> None:
    """spine_synthesis.json and .png, and the second table: 64 samples beside patient07 (training) and patient19 (held out)."""
    model = load(runs / "synthesis" / "checkpoints" / "last")
    rule = {k: v for k, v in model.contract.intensity["t1"].items() if k != "typical"}
    data = FileData(str(manifest), {"t1": rule}, model.contract.size, spacing=model.contract.spacing)
    held_out = [data.split("test").case(i, np.random.default_rng(0)) for i in range(len(data.split("test")))]
    held_out = torch.from_numpy(np.stack([case["t1"] for case in held_out if case["subject"] == "patient19"]))
    made = torch.stack([network_units(model, v) for v in model.generate(64, seed=0)])
    report = write_samples_report(made, real_images(data, "train", ("t1",)), held_out, out, "spine_synthesis", overwrite=True)
    near = report["nearest_training"]
    lines = ["| quantity | value |", "|---|---|"]
    lines += [f"| feature distance over the real-against-real floor (n = {report['n']['in_ratio']}) | {report['frechet']['ratio']:.2f} |"]
    lines += [
        f"| RMS distance to the nearest training slice, {k.replace('_', ' ')} | {v:.3f} |" for k, v in near.items() if "share" not in k
    ]
    lines += [f"| share of samples nearer than the held-out 5th percentile | {near['share_nearer_than_5th_percentile']:.0%} |"]
    write_block(out / "spine.md", "synthesis", lines)


def rim(manifest_path: Path, runs: Path, out: Path) -> None:
    """Prints, per subject, what the outermost voxels of the body mask are like and how much of the L1 U-Net's error lies there."""
    manifest, model = Manifest.read(manifest_path), load(runs / "regression" / "checkpoints" / "last")
    for split in ("train", "test"):
        for case in work(model, manifest, split).cases():
            body = case.body.expand_as(case.target)
            inside = -max_pool3d(-body.float().reshape(1, 1, *body.shape[-3:]), 3, 1, 1).reshape(body.shape) > 0
            outermost = body & ~inside
            error = (predictor(model)(case.source) - case.target).square()
            counts, edges = np.histogram(case.source[body].numpy(), 64, (0.0, 1.2))
            print(
                f"{case.subject}: outermost voxels are {float(outermost.sum() / body.sum()):.0%} of the body and hold "
                f"{float(error[outermost].sum() / error[body].sum()):.0%} of the squared error; their median T1 is "
                f"{float(case.source[outermost].median()):.2f}; the brightest T1 peak is at {edges[counts.argmax()]:.2f}"
            )


def translation_picture(made: dict[str, list[Tensor]], test: list[Case]) -> np.ndarray:
    """Two rows per subject: source, target and every method's result; below, the absolute error on one scale."""
    made = {name: images for name, images in made.items() if "copy" not in name}
    rows, marks = [], []
    for index, case in enumerate(test):
        height = heights(case.body[0, 0], 2)[1]
        source, target, *results = (plane(image, 2, height) for image in (case.source, case.target, *(m[index] for m in made.values())))
        rows.append([gray(shown, -1.0, 1.0) for shown in (source, target, *results)])
        rows.append([gray(np.zeros_like(target), 0.0, 1.0)] * 2 + [gray(np.abs(result - target), 0.0, 1.0) for result in results])
        marks += [case.subject, "absolute error"]
    return lettered(rows, ["T1", "T2", *(SHORT[name] for name in made)], marks)


def write_block(path: Path, name: str, lines: list[str]) -> None:
    """Replace a generated block of a page."""
    head, rest = path.read_text().split(BEGIN.format(name))
    _, tail = rest.split(END.format(name))
    path.write_text(head + "\n".join([BEGIN.format(name), *lines, END.format(name)]) + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    manifest = actions.add_parser("manifest")
    manifest.add_argument("data", type=Path)
    manifest.add_argument("path", type=Path)
    for name in ("translation", "synthesis", "rim"):
        result = actions.add_parser(name)
        result.add_argument("manifest", type=Path)
        result.add_argument("runs", type=Path, help="folder with regression/, gan/, diffusion/ and synthesis/")
        result.add_argument("-o", "--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if options.action == "manifest":
        write_manifest(options.data, options.path)
    else:
        {"translation": translation, "synthesis": synthesis, "rim": rim}[options.action](options.manifest, options.runs, options.out)


if __name__ == "__main__":
    main()
