"""T1 to T2 moved to another scanner with six slices: the numbers and the picture of docs/results/second-half.md, part 3.

    python benchmarks/finetuning.py manifest DATA stacks          # stacks of slices as NIfTI, and stacks/manifest.csv
    D="data=slices data.source.manifest=$PWD/stacks/manifest.csv training.steps=300 training.precision=bf16-mixed training.validate_every=300"
    A="data.augment={_target_: medgen.data.augment.Augment, mirror: 0, probability: 0.5, rotation: 10, scale: 0.1, shift: 0.05}"
    python train.py init_from=runs/second/flow $D "$A" training.optimizer.lr=2e-4 training.ema.decay=0.98 run=runs/second/ft_full
    python train.py init_from=runs/second/flow $D "$A" finetune=lora finetune.rank=8 training.optimizer.lr=1e-3 training.ema.decay=0.98 run=runs/second/ft_lora
    python train.py experiment=t1_to_t2_flow data.source.manifest=$PWD/stacks/manifest.csv training.steps=300 training.ema.decay=0.98 run=runs/second/ft_scratch
    python benchmarks/finetuning.py run stacks runs/second

stroke01 (another scanner and preparation than ms_brain) gives six slices to train; its slices at least 3 mm away from those test, and every
sixth slice of patient19 tells what was forgotten of the first set. Stacks are scaled as volumes, `mr_percentile` each.
"""  # noqa: E501 (commands are to be copied)

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from spine import write_block
from torch import Tensor

from medgen.core.picture import gray, upright
from medgen.core.random import Rng
from medgen.core.volume import Volume
from medgen.data.files import FileData
from medgen.evaluation.baselines import copy_source, fit_curve
from medgen.evaluation.masks import body_mask
from medgen.evaluation.pictures import lettered
from medgen.inference import Pretrained, load
from medgen.metrics.pixel import psnr, ssim

TRAIN = (38, 50, 62, 74, 86, 98)  # axial slices of stroke01
APART = 3
STEPS = 8  # of Heun's method
MODELS = {"before": "flow", "fine-tuned in full": "ft_full", "fine-tuned by LoRA": "ft_lora", "from scratch": "ft_scratch"}


def write_stacks(data: Path, out: Path) -> None:
    """stroke_few (train), stroke_rest and ms (test): T1 and T2 stacks, and the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    rest = [z for z in range(30, 112, 2) if min(abs(z - t) for t in TRAIN) >= APART]
    stacks = {
        "stroke_few": ("train", data / "stroke_brain/stroke01", TRAIN),
        "stroke_rest": ("test", data / "stroke_brain/stroke01", rest),
        "ms": ("test", data / "ms_brain/patient19", range(50, 140, 6)),
    }
    lines = ["subject,split,t1,t2"]
    for subject, (split, folder, places) in stacks.items():
        for contrast in ("T1", "T2"):
            volume = nibabel.as_closest_canonical(nibabel.load(folder / f"{contrast}.nii.gz"))
            array = np.asarray(volume.dataobj, np.float32)[..., list(places)]
            Volume(array[None], volume.affine).save(out / f"{subject}_{contrast.lower()}.nii.gz", overwrite=True)
        lines.append(f"{subject},{split},{subject}_t1.nii.gz,{subject}_t2.nii.gz")
    (out / "manifest.csv").write_text("\n".join(lines) + "\n")


def pairs(stacks: Path, split: str, subject: str) -> tuple[Tensor, Tensor, Tensor]:
    """T1, T2 (N, 1, 128, 128) in network units and the body mask found in both."""
    rule = {"name": "mr_percentile"}
    data = FileData(str(stacks / "manifest.csv"), {"t1": rule, "t2": rule}, (128, 128), spacing=(1.4, 1.4, 1.0))
    cases = data.split(split)
    rows = [cases.case(i, np.random.default_rng(0)) for i in range(len(cases))]
    t1, t2 = (torch.from_numpy(np.stack([row[c] for row in rows if row["subject"] == subject])) for c in ("t1", "t2"))
    return t1, t2, torch.stack([body_mask(torch.cat([a, b])) for a, b in zip(t1, t2, strict=True)])


def translator(model: Pretrained) -> Callable[[Tensor], Tensor]:
    """One draw per slice, all slices under one field of noise."""

    @torch.no_grad()
    def translate(t1: Tensor) -> Tensor:
        rng = Rng(0, 0, [0] * len(t1))
        return model.model.sample(model.task.condition({"t1": t1}), tuple(t1.shape), rng).float()

    return translate


def run(stacks: Path, runs: Path, out: Path) -> None:
    """second-half-finetuning.json and .png, and the table."""
    few = pairs(stacks, "train", "stroke_few")
    curve = fit_curve([tuple(t[i] for t in few) for i in range(len(few[0]))])
    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "copy of the source": copy_source,
        "curve fitted to the six slices": lambda t1: torch.cat([curve(x[None]) for x in t1]),
    }
    methods |= {name: translator(load(runs / run / "checkpoints" / "last").with_sampler(steps=STEPS)) for name, run in MODELS.items()}
    document: dict[str, Any] = {}
    shown: list[Tensor] = []
    for name, method in methods.items():
        for subject in ("stroke_rest", "ms"):
            t1, t2, mask = pairs(stacks, "test", subject)
            made = torch.cat([method(part) for part in t1.split(8)])
            document.setdefault(name, {})[subject] = {
                "n": len(t1),
                "psnr": [float(psnr(made[i : i + 1], t2[i : i + 1], 2.0, mask[i : i + 1])) for i in range(len(t1))],
                "ssim": [float(ssim(made[i : i + 1], t2[i : i + 1], 2.0, mask[i : i + 1])) for i in range(len(t1))],
            }
            if subject == "stroke_rest":
                shown.append(made[[len(t1) // 3, 2 * len(t1) // 3]])
        print(name, {s: round(float(np.mean(v["psnr"])), 2) for s, v in document[name].items()}, flush=True)
    (out / "second-half-finetuning.json").write_text(json.dumps(document, indent=2) + "\n")
    t1, t2, _ = pairs(stacks, "test", "stroke_rest")
    places = [len(t1) // 3, 2 * len(t1) // 3]
    rows = [[gray(upright(x[i, 0].numpy()), -1.0, 1.0) for x in (t1[places], t2[places], *shown[1:])] for i in (0, 1)]
    titles = ["T1", "T2", "curve", "before", "full", "LoRA", "scratch"]
    Image.fromarray(lettered(rows, titles, ["stroke01", "stroke01"])).save(out / "second-half-finetuning.png")
    table(out, document)


def table(out: Path, document: dict[str, Any]) -> None:
    lines = ["| method | PSNR other slices of stroke01 | SSIM | PSNR patient19 (forgetting) | SSIM |", "|---" * 5 + "|"]
    for name, found in document.items():
        cells = [f"{np.mean(found[s][m]):.{2 if m == 'psnr' else 3}f}" for s in ("stroke_rest", "ms") for m in ("psnr", "ssim")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_block(out / "second-half.md", "finetuning", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    manifest = actions.add_parser("manifest")
    manifest.add_argument("data", type=Path)
    manifest.add_argument("stacks", type=Path)
    result = actions.add_parser("run")
    result.add_argument("stacks", type=Path)
    result.add_argument("runs", type=Path, help="folder with flow/, ft_full/, ft_lora/ and ft_scratch/")
    result.add_argument("-o", "--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if options.action == "manifest":
        write_stacks(options.data, options.stacks)
    else:
        run(options.stacks, options.runs, options.out)


if __name__ == "__main__":
    main()
