"""Unconditional samples: are they as close to real images as real images are, and are they copies of the training set?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.picture import gray, montage
from medgen.core.volume import folder_for
from medgen.evaluation.nearest import nearest_of, stacks
from medgen.evaluation.pictures import middle_plane, seen
from medgen.evaluation.section import Figure, Level, Section, Table, skipped
from medgen.evaluation.training_set import read_targets
from medgen.evaluation.work import Work
from medgen.metrics.feature import describe, frechet, frechet_floor, nearest_images
from medgen.metrics.kernels import kid

NAME, TITLE = "samples", "Samples at a glance"
COLUMNS = 8  # of the picture
PICTURE = "First row: samples. Second row: the training image nearest to each. Third row: real images that training did not see."
PROTOCOL = {
    "feature": "fixed histogram, texture and layout statistics (medgen.metrics.feature.describe); not comparable with Inception distances",
    "ratio": "distance of samples to held-out images over that of as many training images to the same held-out images; 1 is perfect",
    "copies": "root-mean-square difference to the nearest training image; held-out images set the scale: of new images 5 % are nearer than "
    "the held-out images' 5th percentile. Blurred images are nearer than sharp ones, copies much nearer than either",
}


def section(work: Work) -> Section:
    """Pictures of samples beside their nearest training images, and one distance that needs no network."""
    if work.kind != "synthesis":
        return skipped(NAME, TITLE, "The model makes an image for a given one, not images from nothing.")
    made, training, held_out = work.drawn(), read_targets(work, "train")[0], work.reals(work.split)
    if made.shape[1:] != held_out.shape[1:]:
        raise MedgenError(f"samples have shape {tuple(made.shape[1:])}, the data's images {tuple(held_out.shape[1:])}")
    if len(made) < 2:
        return skipped(NAME, TITLE, "1 sample: at least 2 are needed; draw more with -n.")
    found = evaluate_samples(made, training, held_out)
    ratio, near = found["frechet"]["ratio"], found["nearest_training"]
    share, count = near["share_nearer_than_5th_percentile"], found["n"]["in_ratio"]
    rows = [["samples", near["samples_minimum"], near["samples_median"]]]
    rows += [["real held-out images", near["held_out_minimum"], near["held_out_median"]]]
    note = f"In network units. {share:.0%} of samples are nearer than the held-out images' 5th percentile; about 5 % would be usual."
    copies = int((nearest_of(held_out, training).distances == 0).sum())
    found["held_out_copies"] = copies
    verdict = f"By a fixed feature, {count} samples are {ratio:.3g} times as far from held-out images as {count} images of the manifest's "
    verdict += "train split are; 1 is as near as real ones."
    if copies:
        verdict += f" {copies} of {len(held_out)} held-out images are copies of training images: they are not held out."
    return Section(
        NAME,
        TITLE,
        verdict,
        Level.WATCH if copies else Level.NONE,
        numbers={name: value for name, value in found.items() if name != "protocol"},
        tables=[Table("Root-mean-square difference to the nearest training image", ["images", "least", "median"], rows, note)],
        figures=[Figure("Samples, their nearest training images, real images", work_picture(work, made, training, held_out), PICTURE)],
        protocol=PROTOCOL,
    )


def evaluate_samples(samples: Tensor, training: Sequence[Tensor], held_out: Tensor, seed: int = 0) -> dict[str, Any]:
    """Realism and novelty of samples (N, C, *S) against training images (C, *S) and held-out ones (H, C, *S), in [-1, 1] units. Of the
    training images, which may be read when they are asked for, few are held at once.

    Returns plain data for JSON. At most as many samples as there are training images enter the ratio: the floor has their number.
    """
    size = min(len(samples), len(training))
    features = {name: describe(images) for name, images in (("samples", samples), ("held_out", held_out))}
    features["training"] = torch.cat([describe(stack) for stack in stacks(training)])
    distance = frechet(features["samples"][:size], features["held_out"])
    floor = frechet_floor(features["training"], features["held_out"], size, seed)
    return {
        "n": {"samples": len(samples), "training": len(training), "held_out": len(held_out), "in_ratio": size},
        "frechet": {"samples": distance, "floor": floor, "ratio": distance / floor},
        "kernel": {name: kid(features[name], features["held_out"]).value for name in ("samples", "training")},
        "nearest_training": _novelty(samples, training, held_out),
        "protocol": PROTOCOL,
    }


def write_samples_report(
    samples: Tensor,
    training: Tensor,
    held_out: Tensor,
    folder: str | Path,
    name: str = "samples",
    overwrite: bool = False,
    turn: bool = True,
) -> dict[str, Any]:
    """`<name>.json`, and `<name>.png` with samples, each one's nearest training image and held-out images, row by row.

    Args:
        turn: the images are planes in the order of a NIfTI file's axes and are turned upright; False for ordinary pictures.

    Raises:
        MedgenError: one of the files exists and `overwrite` is not set.
    """
    from PIL import Image

    paths = [folder_for(Path(folder)) / f"{name}.{ending}" for ending in ("json", "png")]
    for path in paths:
        if path.exists() and not overwrite:
            raise MedgenError(f"{path} exists; choose another folder or pass overwrite=True")
    report = evaluate_samples(samples, training, held_out)
    paths[0].write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    Image.fromarray(sample_picture(samples, training, held_out, turn=turn)).save(paths[1])
    return report


def work_picture(work: Work, samples: Tensor, training: Sequence[Tensor], held_out: Tensor) -> np.ndarray:
    """`sample_picture` of a model's images as they are looked at; of the training images, the nearest ones alone are held."""
    nearest = torch.stack([training[row] for row in nearest_of(samples[:COLUMNS], training).rows.tolist()])
    pictures = [seen(images, work.model.task.target) for images in (samples, nearest, held_out)]
    return sample_picture(*pictures, turn=work.model.contract.spacing is not None)  # ordinary pictures are upright


def sample_picture(samples: Tensor, training: Tensor, held_out: Tensor, columns: int = COLUMNS, turn: bool = True) -> np.ndarray:
    """Three rows of uint8 planes: samples, the training image nearest to each, held-out images (evenly spread)."""
    shown = samples[:columns]
    copies = training[nearest_images(shown, training).rows]
    spread = torch.linspace(0, len(held_out) - 1, min(columns, len(held_out))).round().long()
    return montage([[gray(middle_plane(image, turn), -1.0, 1.0) for image in row] for row in (shown, copies, held_out[spread])])


def _novelty(samples: Tensor, training: Sequence[Tensor], held_out: Tensor) -> dict[str, float]:
    made, new = nearest_of(samples, training).distances, nearest_of(held_out, training).distances
    new = new[new > 0] if bool((new > 0).any()) else new  # copies of training images are not new
    limit = float(new.quantile(0.05))
    return {
        "samples_minimum": float(made.min()),
        "samples_median": float(made.median()),
        "held_out_minimum": float(new.min()),
        "held_out_5th_percentile": limit,
        "held_out_median": float(new.median()),
        "share_nearer_than_5th_percentile": float((made < limit).double().mean()),
    }
