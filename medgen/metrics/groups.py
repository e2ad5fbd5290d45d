"""Whether two groups of different people differ, and how far an input is from those of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics.statistics import holm, student_point, subject_means

NEIGHBOURS = 3


@dataclass(frozen=True)
class Unpaired:
    """Attributes:
    difference: mean over subjects of the first group less that of the second.
    interval: 95 % (Welch 1947); None where a group has one subject or does not vary at all.
    p: two-sided, of the studentised permutation test (Janssen 1997), which holds also for unequal spreads in the limit.
    adjusted: `p` after Holm's correction over those that `unpaired_all` compared.
    """

    difference: float
    interval: tuple[float, float] | None
    p: float
    adjusted: float
    subjects: tuple[int, int]


Group = tuple[Sequence[float], Sequence[str]]  # values, and the subject of each


def unpaired(first: Group, second: Group, seed: int = 0, draws: int = 4000) -> Unpaired:
    """Two groups of subjects; a subject's values are averaged first.

    Raises:
        MedgenError: as `medgen.metrics.statistics.subject_means`.
    """
    a, b = (np.array(list(subject_means(*group).values())) for group in (first, second))
    n, m = len(a), len(b)
    gap = float(a.mean() - b.mean())
    if min(n, m) < 2:
        return Unpaired(gap, None, 1.0, 1.0, (n, m))
    own, spread = _studentised(np.concatenate([a, b])[None], n)
    if not spread[0] > 0:
        return Unpaired(gap, None, 1.0, 1.0, (n, m))
    parts = a.var(ddof=1) / n, b.var(ddof=1) / m
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
    half = student_point(max(1, math.floor(freedom))) * float(spread[0])
    orders = generator(seed, n, m).permuted(np.tile(np.concatenate([a, b]), (draws, 1)), axis=1)
    drawn, _ = _studentised(orders, n)
    hits = int((np.abs(drawn) >= abs(own[0]) - 1e-12).sum())
    p = (hits + 1) / (draws + 1)
    return Unpaired(gap, (gap - half, gap + half), p, p, (n, m))


def unpaired_all(pairs: Sequence[tuple[Group, Group]], seed: int = 0) -> list[Unpaired]:
    """Several comparisons, corrected together."""
    found = [unpaired(first, second, seed) for first, second in pairs]
    return [replace(one, adjusted=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def _studentised(rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Welch's statistic of the first `n` of each row against the rest, and its standard error; 0 where nothing varies."""
    a, b = rows[:, :n], rows[:, n:]
    spread = np.sqrt(a.var(1, ddof=1) / n + b.var(1, ddof=1) / b.shape[1])
    gap = a.mean(1) - b.mean(1)
    return np.divide(gap, spread, out=np.where(gap == 0, 0.0, np.copysign(np.inf, gap)), where=spread > 0), spread


@dataclass(frozen=True)
class Novelty:
    """How far inputs are from those of training.

    Attributes:
        scores: (N,) mean distance to the 3 nearest training vectors over the median of the same among training vectors: 1 is usual.
        places: (N,) share of training vectors that are nearer to the other training vectors than this input.
        training: (M,) scores of the training vectors themselves, each without itself.
    """

    scores: np.ndarray
    places: np.ndarray
    training: np.ndarray


def novelty(inputs: Tensor, training: Tensor) -> Novelty:
    """Distance to the nearest neighbours in a feature space (Ramaswamy et al. 2000; Sun et al. 2022), on the scale of the training set.

    Args:
        inputs: (N, F).
        training: (M, F), one vector a subject, at least 5.

    Raises:
        MedgenError: other shapes, or too few.
    """
    if training.ndim == 2 and len(training) < NEIGHBOURS + 2:
        raise MedgenError(
            f"{len(training)} subjects of a training split are too few to say what is far from it ({NEIGHBOURS + 2} are needed)"
        )
    if inputs.ndim != 2 or training.ndim != 2 or inputs.shape[1] != training.shape[1]:
        raise MedgenError(
            f"novelty needs inputs (N, F) and training vectors (M, F) of one F, got {tuple(inputs.shape)} and {tuple(training.shape)}"
        )
    a, b = inputs.double(), training.double()
    near = torch.cdist(a, b).topk(NEIGHBOURS, largest=False).values.mean(1).numpy()
    among = torch.cdist(b, b).fill_diagonal_(math.inf).topk(NEIGHBOURS, largest=False).values.mean(1).numpy()
    scale = max(float(np.median(among)), 1e-12)
    places = (among[None] < near[:, None]).mean(1)
    return Novelty(near / scale, places, among / scale)
