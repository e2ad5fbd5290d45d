"""Grey level co-occurrence (Haralick 1973) of images and volumes, with the features and definitions of pyradiomics."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

NAMES = (
    "autocorrelation",
    "joint_average",
    "cluster_prominence",
    "cluster_shade",
    "cluster_tendency",
    "contrast",
    "correlation",
    "difference_average",
    "difference_entropy",
    "difference_variance",
    "joint_energy",
    "joint_entropy",
    "imc1",
    "imc2",
    "idm",
    "idmn",
    "id",
    "idn",
    "inverse_variance",
    "maximum_probability",
    "sum_entropy",
    "sum_squares",
    "mcc",
)
TINY = 2.2e-16


@torch.no_grad()
def cooccurrence(levels: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """Symmetric co-occurrence probabilities of direct neighbours, for each direction: (B, D, count, count) float64.

    Args:
        levels: (B, *S) integers, 1 to `count`.
        mask: (B, *S) bool; pairs with a voxel outside do not count.

    D is 4 in 2D and 13 in 3D. A direction without a pair is all zeros.
    """
    batch, dims = len(levels), levels.ndim - 1
    inside = levels.long() - 1
    if mask is not None:
        inside = torch.where(mask, inside, count)
    wide = count + (mask is not None)
    offset = torch.arange(batch).reshape(-1, *[1] * dims) * wide * wide
    matrices = []
    for step in directions(dims):
        here, there = _shifted(inside, step)
        codes = (here * wide + there + offset).flatten()
        found = torch.bincount(codes, minlength=batch * wide * wide).reshape(batch, wide, wide)[:, :count, :count]
        matrices.append(found + found.mT)
    stacked = torch.stack(matrices, 1).double()
    return stacked / stacked.sum((2, 3), keepdim=True).clamp(min=1)


def directions(dims: int) -> list[tuple[int, ...]]:
    """One of each pair of opposite neighbours."""
    return [step for step in itertools.product((-1, 0, 1), repeat=dims) if step > (0,) * dims]


@torch.no_grad()
def cooccurrence_features(p: Tensor) -> Tensor:
    """Features (B, len(NAMES)) of probabilities (B, D, N, N): each direction's, averaged over the directions that have pairs.

    Definitions of the pyradiomics documentation (radiomics.glcm), which for these are those of IBSI (3.6). Left out, because they repeat
    others: SumAverage (twice the joint average), and what pyradiomics itself has withdrawn. N of `idmn` and `idn` is the number of levels.
    Where a direction has one level alone, correlation and mcc are 1, imc1 and imc2 are 0 (pyradiomics takes an mcc of 0 for it beside other
    directions; all else is the same, see benchmarks/radiomics_oracle.py).
    """
    there = p.sum((2, 3)) > 0
    values = torch.stack([*_joint(p), *_marginal(p)], -1)
    found = dict(zip((*_JOINT, *_MARGINAL), values.unbind(-1), strict=True))
    ordered = torch.stack([found[name] for name in NAMES], -1)
    return torch.where(there[..., None], ordered, 0.0).sum(1) / there.sum(1).clamp(min=1)[:, None]


_JOINT = (
    "autocorrelation",
    "joint_average",
    "cluster_prominence",
    "cluster_shade",
    "cluster_tendency",
    "contrast",
    "correlation",
    "joint_energy",
    "joint_entropy",
    "maximum_probability",
    "sum_squares",
    "imc1",
    "imc2",
    "mcc",
)
_MARGINAL = (
    "difference_average",
    "difference_entropy",
    "difference_variance",
    "idm",
    "idmn",
    "id",
    "idn",
    "inverse_variance",
    "sum_entropy",
)


def _joint(p: Tensor) -> list[Tensor]:
    """Features of the matrix itself and of its rows' sums, each (B, D)."""
    n = p.shape[-1]
    i = torch.arange(1, n + 1, dtype=p.dtype)
    rows, columns = i[:, None], i[None, :]
    px = p.sum(3)
    mean = (px * i).sum(2)
    variance = (px * (i - mean[..., None]).square()).sum(2)
    centred = rows + columns - 2 * mean[..., None, None]
    product = (p * rows * columns).sum((2, 3))
    flat = variance < 1e-12
    correlation = torch.where(flat, 1.0, (product - mean.square()) / variance.clamp(min=1e-12))
    hx, hxy = _entropy(px, (2,)), _entropy(p, (2, 3))
    outer = px[..., :, None] * px[..., None, :]
    hxy1, hxy2 = -(p * (outer + TINY).log2()).sum((2, 3)), _entropy(outer, (2, 3))
    imc1 = torch.where(hx > 1e-12, (hxy - hxy1) / hx.clamp(min=1e-12), 0.0)
    imc2 = (1 - (-2 * (hxy2 - hxy)).exp()).clamp(min=0).sqrt()
    return [
        product,
        mean,
        (p * centred**4).sum((2, 3)),
        (p * centred**3).sum((2, 3)),
        (p * centred.square()).sum((2, 3)),
        (p * (rows - columns).square()).sum((2, 3)),
        correlation,
        p.square().sum((2, 3)),
        hxy,
        p.amax((2, 3)),
        variance,
        imc1,
        imc2,
        torch.where(flat, 1.0, _second_singular_value(p, px)),
    ]


def _marginal(p: Tensor) -> list[Tensor]:
    """Features of the distributions of |i - j| and of i + j, each (B, D)."""
    n = p.shape[-1]
    i = torch.arange(n)
    k = torch.arange(n, dtype=p.dtype)
    gaps, sums = (i[:, None] - i).abs(), i[:, None] + i
    difference = torch.zeros(*p.shape[:2], n, dtype=p.dtype).index_add_(2, gaps.flatten(), p.flatten(2))
    total = torch.zeros(*p.shape[:2], 2 * n - 1, dtype=p.dtype).index_add_(2, sums.flatten(), p.flatten(2))
    mean = (difference * k).sum(2)
    return [
        mean,
        _entropy(difference, (2,)),
        (difference * (k - mean[..., None]).square()).sum(2),
        (difference / (1 + k.square())).sum(2),
        (difference / (1 + k.square() / n**2)).sum(2),
        (difference / (1 + k)).sum(2),
        (difference / (1 + k / n)).sum(2),
        (difference[..., 1:] / k[1:].square()).sum(2),
        _entropy(total, (2,)),
    ]


def _shifted(x: Tensor, step: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(B, *S) twice: every voxel that has a neighbour at `step`, and that neighbour."""
    here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, x.shape[1:], strict=True))
    there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, x.shape[1:], strict=True))
    return x[:, *here], x[:, *there]


def _entropy(p: Tensor, axes: tuple[int, ...]) -> Tensor:
    """In bits."""
    return -(p * (p + TINY).log2()).sum(axes)


def _second_singular_value(p: Tensor, px: Tensor) -> Tensor:
    """The root of the second largest eigenvalue of sum_k p(i, k) p(j, k) / (px(i) py(k)): p is symmetric, so it is that of a matrix."""
    root = px.clamp(min=0).sqrt()
    inverse = torch.where(root > 0, 1 / root.clamp(min=TINY), 0.0)
    return torch.linalg.eigvalsh(inverse[..., :, None] * p * inverse[..., None, :]).abs().sort(-1).values[..., -2].clamp(max=1)
