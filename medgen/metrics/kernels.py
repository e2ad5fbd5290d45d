"""Kernel distances between two sets of features: KID, MMD with a Gaussian kernel and CMMD, unbiased, in blocks, with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from medgen.core.errors import MedgenError

ROWS = 1024  # of a block of kernel values: 8 MiB
PARTS = 32  # of each set, for the standard error
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, F), (M, F) -> (N, M)


class Measured(NamedTuple):
    """A distance and its standard error."""

    value: float
    error: float


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / F + 1)^3, the kernel of KID: Binkowski et al. 2018."""
    base = (x @ y.T).div_(x.shape[1]).add_(1)
    return base * base * base


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""
    return lambda x, y: squared_distances(x, y).mul_(-0.5 / sigma**2).exp_()


def kid(a: Tensor, b: Tensor) -> Measured:
    """Unbiased squared maximum mean discrepancy of features (N, F), (M, F) with the cubic kernel. May be negative."""
    return discrepancy(a, b, polynomial)


def mmd(a: Tensor, reals: Tensor, sigma: float | None = None) -> Measured:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel: Gretton et al. 2012, equation 3.

    Args:
        sigma: its width; None is `median_distance(reals)`.
    """
    return discrepancy(a, reals, gaussian(median_distance(reals) if sigma is None else sigma))


def cmmd(a: Tensor, b: Tensor) -> Measured:
    """1000 times the unbiased squared discrepancy of features of length 1 with a Gaussian kernel of width 10: Jayasumana et al. 2024.

    The published number is of CLIP features and keeps the diagonal of the kernel matrices, which adds about 1000 (1 / N + 1 / M) times
    the mean of 1 - kernel; other features give other numbers.
    """
    value, error = discrepancy(unit_length(a), unit_length(b), gaussian(CMMD_SIGMA))
    return Measured(CMMD_SCALE * value, CMMD_SCALE * error)


@torch.no_grad()
def discrepancy(a: Tensor, b: Tensor, kernel: Kernel) -> Measured:
    """Unbiased squared maximum mean discrepancy and its jackknife error over 32 parts of either set, deleted two by two.

    Memory does not grow with the number of pairs. Parts are runs of rows, so that images of one subject that lie together are left out
    together. For equal distributions, where the statistic is degenerate, the error is too large by about sqrt(2).

    Raises:
        MedgenError: features that are not (N, F) and (M, F) with at least 2 rows each, or not finite.
    """
    a, b = check_features(a, b)
    count = min(PARTS, len(a), len(b))
    first, second = (_membership(len(x), count) for x in (a, b))
    sums = torch.stack([_within(a, first, kernel), _within(b, second, kernel), _between(a, b, first, second, kernel)])
    n, m = first.sum(0), second.sum(0)
    pairs = torch.stack([torch.outer(n, n) - torch.diag(n), torch.outer(m, m) - torch.diag(m), torch.outer(n, m)])
    value = _combined(sums.sum((1, 2)), pairs.sum((1, 2)))
    if min(len(a), len(b)) < 3:
        return Measured(float(value), float("nan"))
    left = _combined(_without(sums), _without(pairs))
    return Measured(float(value), float(((count - 1) / count * (left - left.mean()).square().sum()).sqrt()))


def median_distance(reals: Tensor, most: int = 1000) -> float:
    """The median distance between two of the reals (of `most`, evenly spread); 1 where they are all alike. The usual width of a kernel."""
    rows = torch.linspace(0, len(reals) - 1, min(most, len(reals))).round().long()
    some = reals[rows].double()
    apart = squared_distances(some, some)
    places = torch.triu_indices(len(some), len(some), 1)
    median = float(apart[places[0], places[1]].median().sqrt()) if len(some) > 1 else 0.0
    return median if median > 0 else 1.0


def unit_length(x: Tensor) -> Tensor:
    """Rows divided by their Euclidean length; a row of zeros stays."""
    return torch.nn.functional.normalize(x.double(), dim=1)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, F), (M, F) -> (N, M). Centred first, so that what all rows share costs no digits."""
    centre = y.mean(0)
    x, y = x - centre, y - centre
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_(min=0)


def check_features(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64.

    Raises:
        MedgenError: as `discrepancy`.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise MedgenError(f"features must be (N, F) with one F and N of at least 2, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        raise MedgenError("features hold NaN or infinite values; look at the images that they come from")
    return a.double(), b.double()


def _membership(rows: int, parts: int) -> Tensor:
    """(rows, parts): 1 where a row belongs to a part."""
    return torch.nn.functional.one_hot(torch.arange(rows) * parts // rows, parts).double()


def _within(x: Tensor, parts: Tensor, kernel: Kernel) -> Tensor:
    """Sums (P, P) of kernel values between the parts of a set, each row with itself left out."""
    total = torch.zeros(parts.shape[1], parts.shape[1], dtype=torch.float64)
    blocks = list(zip(x.split(ROWS), parts.split(ROWS), strict=True))
    for i, (a, p) in enumerate(blocks):
        total += p.T @ (kernel(a, a).fill_diagonal_(0) @ p)
        for b, q in blocks[i + 1 :]:
            block = p.T @ (kernel(a, b) @ q)
            total += block + block.T
    return total


def _between(x: Tensor, y: Tensor, first: Tensor, second: Tensor, kernel: Kernel) -> Tensor:
    """Sums (P, Q) of kernel values between the parts of two sets."""
    total = torch.zeros(first.shape[1], second.shape[1], dtype=torch.float64)
    for a, p in zip(x.split(ROWS), first.split(ROWS), strict=True):
        for b, q in zip(y.split(ROWS), second.split(ROWS), strict=True):
            total += p.T @ (kernel(a, b) @ q)
    return total


def _without(sums: Tensor) -> Tensor:
    """(3, P, P) -> (3, P): the sums with each part left out."""
    return sums.sum((1, 2))[:, None] - sums.sum(1) - sums.sum(2) + sums.diagonal(dim1=1, dim2=2)


def _combined(sums: Tensor, pairs: Tensor) -> Tensor:
    means = sums / pairs
    return means[0] + means[1] - 2 * means[2]
