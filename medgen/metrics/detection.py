"""The overlap that a score could reach, and rates over subjects with honest intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medgen.metrics.statistics import Summary, summarise


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
