"""Whether the spread of posterior draws says how wrong they are, corrected for the number of draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.errors import MedgenError

LEVELS = (0.5, 0.8, 0.9, 0.95)
QUANTILES = tuple(i / 20 for i in range(1, 20))


@dataclass(frozen=True)
class Calibration:
    """One image's draws against its truth, over the voxels of a mask.

    Attributes:
        coverage: level -> share of voxels whose truth lies in the central interval of that level.
        below: share of voxels whose truth lies below the predicted quantile, for each of QUANTILES.
        ranks: (D + 1,) share of voxels by the number of draws below the truth; even (1 / (D + 1)) where the draws are right.
        expected_error: mean |below - quantile|: the calibration error of quantiles (ECE for regression, Kuleshov et al. 2018).
        correlation: Spearman's, of the spread and the absolute error of the draws' mean.
        attainable: the same with one of the draws in the truth's place: what it would be if the draws were right; NaN for two draws.
        ratio: spread over error, sqrt((D + 1) / D mean variance) / RMSE; 1 where right, under 1 overconfident (Fortin et al. 2014).
        crps: mean continuous ranked probability score, unbiased for D draws (Ferro 2014); lower is better, in the units of the image.
        rmse: of the draws' mean.
        voxels: how many.
    """

    coverage: dict[float, float]
    below: tuple[float, ...]
    ranks: tuple[float, ...]
    expected_error: float
    correlation: float
    attainable: float
    ratio: float
    crps: float
    rmse: float
    voxels: int


@torch.no_grad()
def calibration(draws: Tensor, truth: Tensor, mask: Tensor | None = None) -> Calibration:
    """Draws (D, C, *S) against truth (C, *S) within `mask` (1, *S).

    Intervals and quantiles are those of a next draw after D of a Gaussian: mean + sqrt(1 + 1 / D) std t, with t of Student's
    distribution with D - 1 degrees of freedom, so that the coverage is exact for few draws too. The ranks assume no shape.

    Raises:
        MedgenError: fewer than two draws, other shapes, values that are not finite, an empty mask.
    """
    if len(draws) < 2:
        raise MedgenError(f"{len(draws)} draw has no spread; the calibration of uncertainty needs at least 2, better 8")
    if draws.shape[1:] != truth.shape:
        raise MedgenError(f"draws of {tuple(draws.shape[1:])} and a truth of {tuple(truth.shape)}; they must share one grid")
    inside = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask.expand_as(truth)
    x, y = draws[:, inside].double(), truth[inside].double()
    if not len(y) or not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise MedgenError("there is nothing to compare: the mask is empty, or a value is not finite")
    mean, std = x.mean(0), x.std(0)
    p = predictive(y, mean, std, len(x))
    below = tuple(float((p < q).double().mean()) for q in QUANTILES)
    rmse = float((y - mean).square().mean().sqrt())
    spread = float((std.square().mean() * (1 + 1 / len(x))).sqrt())
    return Calibration(
        coverage={level: float(((2 * p - 1).abs() <= level).double().mean()) for level in LEVELS},
        below=below,
        ranks=tuple(rank_histogram(x, y).tolist()),
        expected_error=sum(abs(b - q) for b, q in zip(below, QUANTILES, strict=True)) / len(QUANTILES),
        correlation=spearman(std, (y - mean).abs()),
        attainable=spearman(x[1:].std(0), (x[0] - x[1:].mean(0)).abs()) if len(x) > 2 else math.nan,
        ratio=spread / rmse if rmse > 0 else math.inf if spread > 0 else 1.0,
        crps=float(crps(x, y).mean()),
        rmse=rmse,
        voxels=len(y),
    )


def predictive(y: Tensor, mean: Tensor, std: Tensor, draws: int) -> Tensor:
    """The probability of a value below y, given mean and standard deviation of `draws` draws; 1/2 where all of them equal y."""
    scale = std * math.sqrt(1 + 1 / draws)
    gap = y - mean
    return student_cdf(torch.where(gap == 0, 0.0, gap / scale), draws - 1)


def student_cdf(t: Tensor, freedom: int) -> Tensor:
    """Distribution function of Student's t, exact for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = torch.atan(t / math.sqrt(freedom))
    cos2, odd = angle.cos().square(), freedom % 2
    term = angle.cos() if odd else torch.ones_like(t)
    total = torch.zeros_like(t) if freedom == 1 else term.clone()
    for k in range(2 + odd, freedom - 1, 2):
        term = term * cos2 * ((k - 1) / k)
        total += term
    inside = angle.sin() * total
    return 0.5 + 0.5 * ((angle + inside) * (2 / math.pi) if odd else inside)


def rank_histogram(draws: Tensor, truth: Tensor) -> Tensor:
    """(D + 1,) shares of voxels by how many of the draws (D, N) lie below the truth (N,); a tie counts in equal parts for every rank that
    it could have (Hamill 2001)."""
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    counts = torch.zeros(len(draws) + 1, dtype=torch.float64)
    for ties in equal.unique().tolist():
        ranks = below[equal == ties]
        for k in range(ties + 1):
            counts += torch.bincount(ranks + k, minlength=len(counts)).double() / (ties + 1)
    return counts / truth.numel()


def crps(draws: Tensor, truth: Tensor) -> Tensor:
    """(N,) continuous ranked probability score of draws (D, N), fair: mean |x_i - y| - sum_ij |x_i - x_j| / (2 D (D - 1))."""
    count = len(draws)
    weight = 2 * torch.arange(1, count + 1, dtype=draws.dtype) - count - 1  # sum_ij |x_i - x_j| = 2 sum_i (2 i - D - 1) x_(i)
    gaps = (weight[:, None] * draws.sort(0).values).sum(0)
    return (draws - truth).abs().mean(0) - gaps / (count * (count - 1))


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors, ties with their mean rank; NaN where one does not vary."""
    ranks = [_ranks(v) for v in (a, b)]
    centred = [r - r.mean() for r in ranks]
    length = (centred[0].square().sum() * centred[1].square().sum()).sqrt()
    return float((centred[0] * centred[1]).sum() / length) if length > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]
