"""Hippocampus volumes from label maps, in 3D: the numbers and pictures of docs/results/hippocampus.md.

    python benchmarks/hippocampus.py manifest DATA hippocampus.csv
    python train.py experiment=hippocampus_codec data.source.manifest=$PWD/hippocampus.csv run=runs/hippocampus/codec
    python train.py experiment=hippocampus_latent codec=runs/hippocampus/codec data.source.manifest=$PWD/hippocampus.csv \
        run=runs/hippocampus/latent
    python benchmarks/hippocampus.py segmenter hippocampus.csv runs/hippocampus    # a network that judges, trained on real volumes
    python benchmarks/hippocampus.py codec hippocampus.csv runs/hippocampus        # reconstructions of the validation subjects
    python benchmarks/hippocampus.py evaluate hippocampus.csv runs/hippocampus     # one volume for each test mask
    python benchmarks/hippocampus.py publish runs/hippocampus                      # into zoo/, with a card from the result files

DATA is the folder that holds images/ and labels/. Subjects are split 140, 20, 40; the test subjects are used by `evaluate` only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medgen.core.picture import gray, upright
from medgen.core.random import generator
from medgen.data.augment import Augment
from medgen.data.files import FileData
from medgen.data.module import DataModule
from medgen.evaluation.made import network_units
from medgen.evaluation.pictures import lettered
from medgen.evaluation.samples import evaluate_samples
from medgen.inference import Pretrained, load
from medgen.metrics.feature import nearest_distances
from medgen.metrics.pixel import psnr, ssim
from medgen.metrics.statistics import summarise

SPLIT = {"train": 140, "validation": 20, "test": 40}
SEED = 0
CLASSES = ("anterior", "posterior")
SEGMENTER = {"channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2}
STEPS, BATCH, RATE = 400, 4, 2e-3  # of the segmenter
SHIFT = 2  # voxels by which a copy may be displaced along each axis and is still found
COLOURS = np.array([[0, 0, 0], [255, 150, 40], [70, 150, 255]], np.uint8)
FAILURES = """\
- Softer than real volumes, and blotchy in axial planes: the codec keeps one position for 4 x 4 x 4 voxels.
- The thin hook of the anterior part is met less well than the rest of a mask.
- Trained on 140 crops around one hippocampus; it knows nothing of the rest of the brain, of pathology or of other sequences.
- Masks that no hippocampus could have were never tried.
- A third of the data's volumes are shorter than the grid and were padded with black: a sample may have a black rim."""
BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"


@dataclass
class Split:
    """The subjects of a split on the model's grid: images (N, 1, *S) in network units, label maps (N, *S)."""

    subjects: list[str]
    images: Tensor
    labels: Tensor


def write_manifest(data: Path, path: Path) -> None:
    """subject, split, t1, label, with absolute paths; who is in which split is drawn with `SEED`."""
    names = sorted(file.name.removesuffix(".nii.gz") for file in (data / "images").glob("*.nii.gz"))
    order = generator(SEED).permutation(len(names)).tolist()
    splits = [split for split, count in SPLIT.items() for _ in range(count)]
    split_of = {names[i]: split for i, split in zip(order, splits, strict=True)}
    lines = ["subject,split,t1,label"]
    for name in names:
        files = [(data / folder / f"{name}.nii.gz").resolve() for folder in ("images", "labels")]
        lines.append(",".join([name, split_of[name], *map(str, files)]))
    path.write_text("\n".join(lines) + "\n")


def source(model: Pretrained, manifest: Path) -> FileData:
    """The files on the grid and in the units of a trained model."""
    rule = {k: v for k, v in model.contract.intensity["t1"].items() if k != "typical"}
    return FileData(str(manifest), {"t1": rule}, model.contract.size, {"label": 1 + len(CLASSES)}, spacing=model.contract.spacing)


def centred(data: FileData, split: str) -> Split:
    """The centre of every volume of a split, in the order of the manifest."""
    cases, rng = data.split(split), np.random.default_rng(0)
    cases.anywhere = False  # training patches too, which are drawn from anywhere otherwise
    rows = [cases.case(i, rng) for i in range(len(cases))]
    images, labels = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("t1", "label"))
    return Split([row["subject"] for row in rows], images, labels[:, 0])


class Segmenter(nn.Module):
    """MONAI's residual U-Net on padded grids: (B, 1, *S) -> logits (B, classes, *S)."""

    def __init__(self) -> None:
        from monai.networks.nets import UNet

        super().__init__()
        self.network = UNet(3, 1, 1 + len(CLASSES), **SEGMENTER)

    def forward(self, x: Tensor) -> Tensor:
        missing = [width for size in reversed(x.shape[2:]) for width in (0, -size % 2 ** len(SEGMENTER["strides"]))]
        logits = self.network(nn.functional.pad(x, missing, mode="replicate"))
        return logits[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """(N, 1, *S) -> label maps (N, *S)."""
        return torch.cat([self(part).argmax(1) for part in images.split(8)])


def train_segmenter(manifest: Path, runs: Path) -> None:
    """`segmenter.safetensors` in `runs`: Dice and cross-entropy on real training volumes; printed: Dice on the validation subjects."""
    from monai.losses import DiceCELoss
    from safetensors.torch import save_file

    data = source(load(runs / "codec" / "checkpoints" / "last"), manifest)
    torch.manual_seed(SEED)
    network = Segmenter()
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    augment = Augment(probability=0.5, rotation=10.0, scale=0.1, shift=0.0, gamma={"t1": 0.2}, gain={"t1": 0.1})
    batches = DataModule(data, BATCH, seed=SEED, augment=augment)
    batches.resume(0, STEPS, STEPS)
    for batch in batches.train_dataloader():
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch["t1"])
        loss = criterion(logits.float(), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    real = centred(data, "validation")
    found = dice(network.eval().label(real.images), real.labels)
    print(f"validation Dice: {', '.join(f'{name} {float(found[:, i].mean()):.3f}' for i, name in enumerate(CLASSES))}")
    save_file(network.state_dict(), runs / "segmenter.safetensors")


def load_segmenter(runs: Path) -> Segmenter:
    """What `train_segmenter` left."""
    from safetensors.torch import load_file

    network = Segmenter()
    network.load_state_dict(load_file(runs / "segmenter.safetensors"))
    return network.eval()


def dice(found: Tensor, given: Tensor) -> Tensor:
    """Dice of label maps (N, *S), per class and for the whole hippocampus: (N, classes + 1) float64."""
    pairs = [(found == i, given == i) for i in range(1, 1 + len(CLASSES))] + [(found > 0, given > 0)]
    return torch.stack([2 * _count(a & b) / (_count(a) + _count(b)) for a, b in pairs], 1)


def reconstruct(model: Pretrained, images: Tensor) -> Tensor:
    """Images through the codec of a latent model, or through a codec, and back."""
    autoencoder = getattr(model.model, "codec", model.model).autoencoder
    with torch.no_grad():
        return torch.cat([autoencoder.decode(autoencoder.encode(x).mean, x.shape[2:]) for x in images.split(4)])


def codec(manifest: Path, runs: Path, out: Path) -> None:
    """Fidelity of reconstructions on the validation subjects: the first table of the page and hippocampus_codec.json and .png."""
    model = load(runs / "codec" / "checkpoints" / "last")
    real = centred(source(model, manifest), "validation")
    made = reconstruct(model, real.images)
    values = {"PSNR (dB)": psnr(made, real.images, 2.0), "SSIM": ssim(made, real.images, 2.0)}
    document = {name: interval(v, real.subjects) for name, v in values.items()}
    (out / "hippocampus_codec.json").write_text(json.dumps(document, indent=2) + "\n")
    rows = [[*planes(a[0], m), *planes(b[0], m)] for a, b, m in list(zip(real.images, made, real.labels, strict=True))[:4]]
    titles = [f"{what} {plane}" for what in ("real", "rebuilt") for plane in ("axial", "coronal", "sagittal")]
    Image.fromarray(lettered(rows, titles, real.subjects[:4])).save(out / "hippocampus_codec.png")
    rows = [f"| {name} | {text(found, 2 if 'dB' in name else 3)} |" for name, found in document.items()]
    write_block(out / "hippocampus.md", "codec", ["| codec, validation subjects | mean [95 % interval] |", "|---|---|", *rows])


def generated(model: Pretrained, real: Split, shown: Sequence[int] | None = None) -> Tensor:
    """One volume for each label map, subject i with seed i: (N, 1, *S) in network units."""
    made = [model.generate(1, seed=i, given={"label": real.labels[i].numpy()})[0] for i in shown or range(len(real.subjects))]
    return torch.stack([network_units(model, volume) for volume in made])


def evaluate(manifest: Path, runs: Path, out: Path, split: str) -> None:
    """hippocampus.json and .png and the page's tables."""
    model, judge = load(runs / "latent" / "checkpoints" / "last"), load_segmenter(runs)
    data = source(model, manifest)
    real, training = centred(data, split), centred(data, "train")
    made, rebuilt = generated(model, real), reconstruct(model, real.images)
    found = {"real": judge.label(real.images), "rebuilt": judge.label(rebuilt), "generated": judge.label(made)}
    others = real.labels.roll(1, 0)
    scores = {
        "real volumes (ceiling)": dice(found["real"], real.labels),
        "rebuilt by the codec": dice(found["rebuilt"], real.labels),
        "generated": dice(found["generated"], real.labels),
        "generated, another subject's mask (floor)": dice(found["generated"], others),
    }
    names = (*CLASSES, "whole")
    table = {row: {name: interval(values[:, i], real.subjects) for i, name in enumerate(names)} for row, values in scores.items()}
    mirrored = torch.cat([training.images, training.images.flip(2)])
    realism = {"generated": evaluate_samples(made, mirrored, real.images), "rebuilt": evaluate_samples(rebuilt, mirrored, real.images)}
    copies = novelty(made, real.images, mirrored)
    if split == "test":
        document = {"dice": table, "realism": realism, "displaced copies": copies, "n": len(real.subjects)}
        (out / "hippocampus.json").write_text(json.dumps(document, indent=2) + "\n")
        write_block(out / "hippocampus.md", "dice", dice_table(table))
        write_block(out / "hippocampus.md", "realism", realism_table(realism, copies))
        Image.fromarray(picture(real, made, found["generated"])).save(out / "hippocampus.png")
    print("\n".join([*dice_table(table), "", *realism_table(realism, copies)]))


def novelty(made: Tensor, held_out: Tensor, training: Tensor) -> dict[str, float]:
    """Distance to the nearest training volume where each may be shifted by up to `SHIFT` voxels, over the grid without its rim."""

    def inside(x: Tensor, shift: Sequence[int] = (0, 0, 0)) -> Tensor:
        cut = [slice(SHIFT + s, n - SHIFT + s) for s, n in zip(shift, x.shape[2:], strict=True)]
        return x[(slice(None), slice(None), *cut)].contiguous()

    images = inside(torch.cat([made, held_out]))
    shifts = product(range(-SHIFT, SHIFT + 1), repeat=3)
    nearest = torch.stack([nearest_distances(images, inside(training, shift)) for shift in shifts]).amin(0)
    parts = {"generated": nearest[: len(made)], "held out": nearest[len(made) :]}
    return {f"{name} {part}": float(v) for name, d in parts.items() for part, v in (("minimum", d.min()), ("median", d.median()))}


def publish(runs: Path, out: Path) -> None:
    """The latent model, which contains its codec, into the zoo."""
    from publish import Entry
    from publish import publish as put

    found = json.loads((out / "hippocampus.json").read_text())
    scores = {row: found["dice"][row] for row in ("generated", "real volumes (ceiling)")}
    generated_, real = ({name: f"{cells[name]['mean']:.3f}" for name in CLASSES} for cells in scores.values())
    data = load(runs / "latent" / "checkpoints" / "last").contract.data
    tables = [*dice_table(found["dice"]), "", *realism_table(found["realism"], found["displaced copies"])]
    note = (
        f"n = {found['n']} test subjects, one volume for each mask, mean [95 % bootstrap interval]. Protocol: docs/results/hippocampus.md."
    )
    put(
        Entry(
            "hippocampus_latent",
            runs / "latent",
            "Hippocampus, T1-weighted, 3D, from a label map",
            "Latent diffusion that draws a T1 volume of 31 x 47 x 33 mm for a map of background (0), anterior (1) and posterior (2) "
            'hippocampus: `generate(1, given={"label": array})`.',
            "python train.py experiment=hippocampus_latent codec=<run of hippocampus_codec> data.source.manifest=hippocampus.csv",
            data,
            {"Dice of the label map": f"{', '.join(generated_.values())} (real volumes {', '.join(real.values())})"},
            "\n".join([*tables, "", note]),
            FAILURES,
            "CC BY-SA 4.0, as that of the data",
        )
    )


def dice_table(table: dict[str, dict[str, Any]]) -> list[str]:
    names = list(next(iter(table.values())))
    rows = [f"| {row} | {' | '.join(text(cells[name], 3) for name in names)} |" for row, cells in table.items()]
    return [f"| volumes | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|", *rows]


def realism_table(realism: dict[str, Any], copies: dict[str, float]) -> list[str]:
    near, n = realism["generated"]["nearest_training"], realism["generated"]["n"]["in_ratio"]
    ratios = {what: f"{report['frechet']['ratio']:.2f}" for what, report in realism.items()}
    rows = {
        f"feature distance over the real-against-real floor (n = {n}), generated": ratios["generated"],
        "the same of the codec's reconstructions of the real test volumes": ratios["rebuilt"],
        "RMS distance to the nearest training volume, minimum and median: generated": both(near["samples_minimum"], near["samples_median"]),
        "the same of the real test volumes": both(near["held_out_minimum"], near["held_out_median"]),
        f"shifted by up to {SHIFT} voxels to fit: generated": both(copies["generated minimum"], copies["generated median"]),
        "shifted: the real test volumes": both(copies["held out minimum"], copies["held out median"]),
    }
    return ["| quantity | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def picture(real: Split, made: Tensor, found: Tensor, count: int = 4) -> np.ndarray:
    """A row per subject: mask, real volume, generated volume and its segmentation, in three planes through the mask's middle."""
    rows, shown = [], range(0, len(real.subjects), len(real.subjects) // count)
    for i in list(shown)[:count]:
        mask = real.labels[i]
        rows.append([*planes(mask, mask), *planes(real.images[i, 0], mask), *planes(made[i, 0], mask), *planes(found[i], mask)])
    titles = [f"{what}, {p}" for what in ("mask", "real", "generated", "segmented") for p in ("axial", "coronal", "sagittal")]
    return lettered(rows, titles, [real.subjects[i] for i in list(shown)[:count]])


def planes(volume: Tensor, mask: Tensor) -> list[np.ndarray]:
    """Axial, coronal and sagittal plane through the middle of the mask, as squares; label maps in colour."""
    middle, side = (mask > 0).nonzero().double().mean(0).round().long().tolist(), max(volume.shape)
    cut = [upright(volume.select(axis, middle[axis]).numpy()) for axis in (2, 1, 0)]
    shown = [gray(p, -1.0, 1.0) if volume.is_floating_point() else COLOURS[p] for p in cut]
    return [_square(p, side) for p in shown]


def _square(plane: np.ndarray, side: int) -> np.ndarray:
    before = [(side - n) // 2 for n in plane.shape[:2]]
    widths = [(b, side - n - b) for b, n in zip(before, plane.shape[:2], strict=True)]
    return np.pad(plane, widths + [(0, 0)] * (plane.ndim - 2))


def _count(mask: Tensor) -> Tensor:
    return mask.flatten(1).sum(1).double()


def interval(values: Tensor, subjects: Sequence[str]) -> dict[str, Any]:
    """Mean over subjects with its 95 % bootstrap interval, and the values."""
    found = summarise(values.double().tolist(), subjects)
    return {"mean": found.mean, "interval": found.interval, "n": found.subjects, "values": [round(v, 5) for v in values.tolist()]}


def text(entry: dict[str, Any], digits: int) -> str:
    low, high = entry["interval"]
    return f"{entry['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def both(first: float, second: float) -> str:
    return f"{first:.3f}, {second:.3f}"


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
    zoo = actions.add_parser("publish")
    zoo.add_argument("runs", type=Path)
    zoo.add_argument("-o", "--out", type=Path, default=Path("docs/results"), help="where evaluate wrote")
    for name in ("segmenter", "codec", "evaluate"):
        action = actions.add_parser(name)
        action.add_argument("manifest", type=Path)
        action.add_argument("runs", type=Path, help="folder with codec/ and latent/")
        if name != "segmenter":
            action.add_argument("-o", "--out", type=Path, default=Path("docs/results"))
    action.add_argument("--split", choices=("validation", "test"), default="test", help="validation: printed only, for development")
    options = parser.parse_args()
    if options.action == "manifest":
        write_manifest(options.data, options.path)
    elif options.action == "publish":
        publish(options.runs, options.out)
    elif options.action == "segmenter":
        train_segmenter(options.manifest, options.runs)
    elif options.action == "codec":
        codec(options.manifest, options.runs, options.out)
    else:
        evaluate(options.manifest, options.runs, options.out, options.split)


if __name__ == "__main__":
    main()
