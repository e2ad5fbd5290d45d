"""How good decisions are: ranks of a score, classes, overlap of label maps, lesions found."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counted half (Mann and Whitney 1947).

    NaN where one of the kinds is missing.
    """
    positive = np.asarray(positive, bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    order = np.argsort(scores, kind="stable")
    ordered = np.asarray(scores, float)[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(ordered)]
    ranks = np.empty(len(ordered))
    ranks[order] = np.repeat((starts + 1 + ends) / 2, ends - starts)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def macro_auroc(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Mean over the classes that are there of each one against the rest; of two classes the AUROC itself.

    Args:
        probabilities: (N, classes).
    """
    if probabilities.shape[1] == 2:
        return auroc(probabilities[:, 1], classes == 1)
    found = [auroc(probabilities[:, k], classes == k) for k in range(probabilities.shape[1])]
    found = [value for value in found if np.isfinite(value)]
    return float(np.mean(found)) if found else float("nan")


def macro_f1(predicted: np.ndarray, classes: np.ndarray) -> float:
    """Mean over the classes that occur, in truth or prediction, of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for k in np.union1d(predicted, classes):
        hit = int(((predicted == k) & (classes == k)).sum())
        wrong = int(((predicted == k) ^ (classes == k)).sum())
        scores.append(2 * hit / (2 * hit + wrong))
    return float(np.mean(scores))


def dice(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(classes - 1,) Sorensen-Dice coefficients of label maps of one shape, background left out; NaN where a class is in neither."""
    if predicted.shape != truth.shape:
        raise MedgenError(f"label maps of shapes {tuple(predicted.shape)} and {tuple(truth.shape)}; they must share one grid")
    values = []
    for k in range(1, classes):
        a, b = predicted == k, truth == k
        size = int(a.sum() + b.sum())
        values.append(2 * int((a & b).sum()) / size if size else float("nan"))
    return torch.tensor(values, dtype=torch.float64)


def hd95(predicted: Tensor, truth: Tensor, classes: int, spacing: tuple[float, ...] | None = None) -> Tensor:
    """(classes - 1,) 95th percentile of the symmetric surface distance, by MONAI, in the units of `spacing` (voxels without).

    NaN where a class is missing from one of the maps.
    """
    from monai.metrics import compute_hausdorff_distance
    from torch.nn.functional import one_hot

    maps = [one_hot(labels.long(), classes).movedim(-1, 0)[None].float() for labels in (predicted, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is missing, which gives NaN here; of arguments that MONAI gives itself
        found = compute_hausdorff_distance(*maps, percentile=95, spacing=None if spacing is None else list(spacing))[0]
    return torch.where(torch.isfinite(found), found, torch.nan).double()


def lesions(truth: np.ndarray, least: int = 3) -> list[np.ndarray]:
    """The connected parts (faces touch) of at least `least` voxels, each a mask of its own."""
    from scipy.ndimage import label

    parts, count = label(truth)
    return [found for k in range(1, count + 1) if int((found := parts == k).sum()) >= least]


def detected(predicted: np.ndarray, truth: np.ndarray, least: int = 3, share: float = 0.1) -> tuple[int, int, int]:
    """(lesions found, lesions there, false parts): a lesion is found where at least `share` of it is predicted; a predicted part that
    touches no lesion is false."""
    there = lesions(truth, least)
    found = sum(float(predicted[lesion].mean()) >= share for lesion in there)
    false = sum(not truth[part].any() for part in lesions(predicted, least))
    return int(found), len(there), int(false)
