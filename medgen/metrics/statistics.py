"""Means over subjects with honest 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError
from medgen.core.random import generator

Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Summary:
    """`interval` is None where one subject cannot tell how much subjects differ."""

    mean: float
    interval: tuple[float, float] | None
    subjects: int


def summarise(values: Sequence[float], subjects: Sequence[str], seed: int = 0, draws: int = 4000) -> Summary:
    """Mean over subjects (of each subject's mean) and its 95 % interval by resampling subjects, never volumes or slices.

    The percentile interval is widened by sqrt(n / (n - 1)) t / z, as resampling n subjects underestimates the spread:
    Hesterberg 2015, "What teachers should know about the bootstrap", section 4. Deterministic in `seed`.

    Raises:
        MedgenError: no values, values that are not finite, or another number of subjects.
    """
    if not len(values) or len(values) != len(subjects):
        raise MedgenError(f"{len(values)} values for {len(subjects)} subjects: one subject's name per value is needed, and at least one")
    if not np.isfinite(values).all():
        raise MedgenError("a mean over values that are not finite means nothing; leave them out and say so")
    means = np.array([np.mean([v for v, s in zip(values, subjects, strict=True) if s == name]) for name in sorted(set(subjects))])
    n, mean = len(means), float(means.mean())
    if n == 1:
        return Summary(mean, None, 1)
    picks = generator(seed).integers(n, size=(draws, n))
    ends = np.quantile(means[picks].mean(1), (0.025, 0.975))
    low, high = mean + (ends - mean) * math.sqrt(n / (n - 1)) * student_point(n - 1) / Z
    return Summary(mean, (float(low), float(high)), n)


def student_point(freedom: int) -> float:
    """97.5 % point of Student's t: exact for 1 and 2 degrees of freedom, else Abramowitz and Stegun 26.7.5 (to 1 %)."""
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3
