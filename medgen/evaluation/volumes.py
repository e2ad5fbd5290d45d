"""Translated volumes against their targets: one score per volume, never a mean over its slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.picture import upright
from medgen.evaluation.masks import body_mask
from medgen.metrics.pixel import RADIUS, mae, nmse, psnr, ssim

METRICS = ("psnr", "ssim", "nmse", "mae")
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PairedCase:
    """One volume (or image) with its truth, in normalised units on one grid.

    Attributes:
        source: (1, K, *S).
        target: (1, C, *S).
        mask: (1, 1, *S) bool, the body; None: found in source and target together.
    """

    subject: str
    source: Tensor
    target: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """The scores of one volume in one region, "body" or "whole"."""

    subject: str
    region: str
    values: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """Planes of one case for the eye: each name to (H, W) float arrays from several heights, the right way up."""

    subject: str
    planes: dict[str, list[np.ndarray]]


@dataclass
class Evaluation:
    """Everything that a report needs. `protocol` says how the numbers came about, in words."""

    rows: list[Row] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    data_range: float = 2.0
    protocol: dict[str, str] = field(default_factory=dict)


def evaluate_translation(
    predict: Predict, cases: Iterable[PairedCase], data_range: float = 2.0, zero: float = -1.0, show: int = 4, slice_axis: int = 2
) -> Evaluation:
    """Translate every case and score it in the body and in the whole image.

    Args:
        predict: source (1, K, *S) in normalised units -> (1, C, *S) in the target's normalised units.
        data_range: full range of the target's units; 2 for [-1, 1].
        zero: the target's value of no signal, from which NMSE counts.
        show: how many cases are kept for the picture.
        slice_axis: spatial axis that the picture cuts.

    Raises:
        MedgenError: no cases; a prediction on another grid or with values that are not finite.
    """
    result = Evaluation(data_range=data_range, protocol=_protocol(data_range, zero))
    for case in cases:
        made = _predicted(predict, case)
        mask = body_mask(torch.cat([case.source, case.target], 1)[0])[None] if case.mask is None else case.mask
        result.rows += score(made, case.target, mask, case.subject, data_range, zero)
        if len(result.shown) < show:
            result.shown.append(_shown(case, made, mask, slice_axis))
    if not result.rows:
        raise MedgenError("there is nothing to evaluate: the list of cases is empty")
    return result


def score(made: Tensor, target: Tensor, mask: Tensor, subject: str, data_range: float, zero: float) -> list[Row]:
    """The four metrics of one volume (1, C, *S) in the body and in the whole image; SSIM is NaN where an axis is too short for it."""
    rows = []
    for region, where in (("body", mask), ("whole", None)):
        values = {
            "psnr": psnr(made, target, data_range, where),
            "ssim": ssim(made, target, data_range, where) if min(target.shape[2:]) > 2 * RADIUS else math.nan,
            "nmse": nmse(made, target, data_range, where, zero=zero),
            "mae": mae(made, target, data_range, where),
        }
        rows.append(Row(subject, region, {name: float(value) for name, value in values.items()}))
    return rows


def _predicted(predict: Predict, case: PairedCase) -> Tensor:
    with torch.no_grad():
        made = predict(case.source).to(case.target)
    if made.shape != case.target.shape:
        raise MedgenError(f"{case.subject}: the prediction has shape {tuple(made.shape)}, the target {tuple(case.target.shape)}")
    if not bool(torch.isfinite(made).all()):
        raise MedgenError(f"{case.subject}: the prediction holds NaN or infinite values; the model has diverged or its input is broken")
    return made


def _protocol(data_range: float, zero: float) -> dict[str, str]:
    return {
        "unit": "one score per volume over all its voxels at once; the mean is over subjects, the 95 % interval resamples subjects",
        "scale": f"normalised units of the target, data_range {data_range:g}; nothing is clipped or rescaled to the target",
        "body": "voxels that differ from the background in source or target: the largest connected part, holes filled",
        "ssim": "Gaussian window of 11 taps, sigma 1.5, over all axes; body: mean of the map in the mask; whole: less a border of 5 voxels",
        "nmse": f"squared error over squared signal, signal counted from {zero:g}",
    }


def _shown(case: PairedCase, made: Tensor, mask: Tensor, axis: int) -> Shown:
    images = {"source": case.source, "target": case.target, "result": made}
    heights = _heights(mask[0, 0], axis)
    return Shown(case.subject, {name: [_plane(image[0, 0], axis, h) for h in heights] for name, image in images.items()})


def _heights(mask: Tensor, axis: int) -> list[int]:
    """Three slices through the body, at 35, 50 and 65 % of its extent; of a picture the picture."""
    if mask.ndim == 2:
        return [0]
    others = tuple(a for a in range(3) if a != axis)
    inside = torch.nonzero(mask.any(others[1]).any(others[0])).flatten().tolist()
    return [inside[round(part * (len(inside) - 1))] for part in (0.35, 0.5, 0.65)]


def _plane(image: Tensor, axis: int, height: int) -> np.ndarray:
    """A picture as it is; a slice of a volume upright."""
    array = image.float().cpu().numpy()
    return array if array.ndim == 2 else upright(np.take(array, height, axis))
