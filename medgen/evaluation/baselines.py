"""What a model must beat: the source itself, and the best monotone curve from source to target intensities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.evaluation.masks import body_mask


def copy_source(source: Tensor) -> Tensor:
    """(1, K, *S) -> its first channel (1, 1, *S), unchanged."""
    return source[:, :1]


@dataclass(frozen=True)
class MonotoneCurve:
    """target = f(source) with f rising or falling everywhere, linear between knots and constant beyond them.

    Attributes:
        knots: (N,) rising source intensities.
        values: (N,) target intensities.
        outside: what is predicted outside the body, where the curve says nothing (the value of no signal).
    """

    knots: np.ndarray
    values: np.ndarray
    outside: float = -1.0

    def __call__(self, source: Tensor) -> Tensor:
        """(1, K, *S) -> (1, 1, *S), from the first channel."""
        mapped = np.interp(source[0, :1].cpu().numpy(), self.knots, self.values).astype(np.float32)
        return torch.where(body_mask(source[0, :1]), torch.from_numpy(mapped).to(source.device), self.outside)[None]

    @property
    def falling(self) -> bool:
        return bool(self.values[0] > self.values[-1])


def fit_curve(pairs: Iterable[tuple[Tensor, Tensor, Tensor]], bins: int = 512, outside: float = -1.0) -> MonotoneCurve:
    """The least-squares monotone curve of training voxels, rising or falling, whichever fits better.

    Source intensities are gathered in `bins` bins of equal count (or one per value, if fewer are distinct), and the bins' mean targets
    are made monotone by pooling adjacent violators: Barlow et al. 1972.

    Args:
        pairs: (source, target, mask) of each training volume, each (1, *S), the mask bool.

    Raises:
        MedgenError: no voxels inside the masks.
    """
    voxels = [(s[m].double().cpu().numpy(), t[m].double().cpu().numpy()) for s, t, m in pairs]
    if not sum(len(s) for s, _ in voxels):
        raise MedgenError("a curve cannot be fitted: there is no voxel inside the training masks")
    source, target = (np.concatenate(parts) for parts in zip(*voxels, strict=True))
    place = _bin(source, bins)
    count = np.bincount(place)
    used = count > 0
    count, knots, means = count[used], (np.bincount(place, source)[used] / count[used]), (np.bincount(place, target)[used] / count[used])
    fits = [sign * isotonic(sign * means, count) for sign in (1, -1)]
    best = min(fits, key=lambda fit: float((count * (fit - means) ** 2).sum()))
    return MonotoneCurve(knots, best, outside)


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence closest to `values` in weighted least squares, by pooling adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, float(weight), 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, mass, size = blocks.pop()
            total = mass + block[1]
            block = ((mean * mass + block[0] * block[1]) / total, total, size + block[2])
        blocks.append(block)
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])


def _bin(source: np.ndarray, bins: int) -> np.ndarray:
    """The bin of every voxel, from edges at even quantiles of the values."""
    distinct = np.unique(source)
    edges = distinct if len(distinct) <= bins else np.unique(np.quantile(source, np.linspace(0, 1, bins + 1)[:-1]))
    return np.searchsorted(edges, source, side="right") - 1
