"""How well a score tells what is there from what is not: ROC, area, overlap, and rates over subjects with honest intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.metrics.statistics import Summary, summarise


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic.

    Attributes:
        false, true: rates as the threshold falls, from (0, 0) to (1, 1).
        threshold: that gives them: scores of at least this count as found; the first is infinite.
    """

    false: np.ndarray
    true: np.ndarray
    threshold: np.ndarray

    @property
    def area(self) -> float:
        """Chance that a positive scores above a negative, ties half."""
        return float(np.trapezoid(self.true, self.false)) if hasattr(np, "trapezoid") else float(np.trapz(self.true, self.false))


def roc(positive: Sequence[float], negative: Sequence[float]) -> Curve:
    """The curve of scores that should be high against scores that should be low.

    Raises:
        MedgenError: one of the groups is empty.
    """
    positive, negative = (np.sort(np.asarray(v, np.float64)) for v in (positive, negative))
    if not len(positive) or not len(negative):
        raise MedgenError(f"{len(positive)} positives and {len(negative)} negatives: a ROC needs both")
    threshold = np.unique(np.concatenate([positive, negative]))[::-1]
    found = [(len(v) - np.searchsorted(v, threshold, "left")) / len(v) for v in (negative, positive)]
    return Curve(np.r_[0.0, found[0]], np.r_[0.0, found[1]], np.r_[np.inf, threshold])


def dice(a: Tensor, b: Tensor) -> float:
    """2 |a and b| / (|a| + |b|) of two masks; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def best_dice(score: Tensor, truth: Tensor, candidates: int = 200) -> tuple[float, float]:
    """The largest Dice over thresholds of a score (N,) for a truth (N,) bool, and the threshold: what a threshold chosen with the truth
    in hand could reach, an upper bound.

    Thresholds are the score's quantiles, spread so that between one voxel and all are selected on a logarithmic scale.
    """
    ordered, place = score.sort(descending=True)
    hits = truth[place].cumsum(0).double()
    count = torch.logspace(0, float(np.log10(len(score))), candidates, dtype=torch.float64).round().long().clamp(1, len(score)).unique()
    values = 2 * hits[count - 1] / (count + truth.sum()).double()
    best = int(values.argmax())
    return float(values[best]), float(ordered[count[best] - 1])


def rate(outcomes: Sequence[bool], subjects: Sequence[str]) -> Summary:
    """Share of outcomes that are true: the mean over subjects of each one's share, with its 95 % interval by resampling subjects.

    Where all subjects have the same share, 0 or 1, resampling sees no spread, and the interval is that of Clopper and Pearson (1934) for
    as many subjects: 0 of 5 could still be 52 %.
    """
    summary = summarise([float(o) for o in outcomes], subjects)
    if summary.mean not in (0.0, 1.0) or summary.interval is None:
        low, high = summary.interval or (0.0, 0.0)
        return summary if summary.interval is None else Summary(summary.mean, (max(low, 0.0), min(high, 1.0)), summary.subjects)
    reach = 1 - 0.025 ** (1 / summary.subjects)
    return Summary(summary.mean, (0.0, reach) if summary.mean == 0 else (1 - reach, 1.0), summary.subjects)
