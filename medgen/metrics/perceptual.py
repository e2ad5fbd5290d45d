"""A perceptual distance by the feature maps of any encoder: 2D, 2.5D (planes across the axes of a volume) and 3D."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medgen.core.errors import MedgenError

Features = Callable[[Tensor], Sequence[Tensor]]
EPS, BATCH = 1e-10, 32  # the former as in Zhang et al.; planes through the encoder at once


@torch.no_grad()
def perceptual(
    x: Tensor, target: Tensor, features: Features, mask: Tensor | None = None, axes: Sequence[int] = (), every: int = 1
) -> Tensor:
    """Mean squared distance of unit-length features, averaged over space and then over layers: Zhang et al. 2018 (LPIPS), equation 1,
    with equal weights w_l. 0 for equal images; (B,) float64. Numbers compare only for one encoder.

    Args:
        x, target: (B, C, *S) in the encoder's units.
        features: (b, C, *T) -> the feature maps (b, F_l, *U_l) of its layers, each on a grid over the whole input.
        mask: (B, 1, *S) bool: each place of a map counts with the share of it that is inside; planes without any are left out.
        axes: for a 2D encoder and volumes: the axes across which planes are cut (2.5D), such as (0, 1, 2); empty: images go in whole.
        every: of the planes, each `every`-th is used.

    Raises:
        MedgenError: shapes that differ; axes for a picture; a result that is not a list of maps; an empty mask.
    """
    if x.shape != target.shape or x.ndim not in (4, 5):
        raise MedgenError(f"a pair must share one (B, C, *S), got {tuple(x.shape)} and {tuple(target.shape)}")
    if axes and (x.ndim != 5 or not set(axes) <= {0, 1, 2} or every < 1):
        raise MedgenError(f"planes are cut across axes 0 to 2 of volumes, each `every` >= 1; got axes {tuple(axes)} for {tuple(x.shape)}")
    if mask is not None:
        _check_mask(mask, x)
    found = []
    for i in range(len(x)):
        total, weight = torch.zeros(2, dtype=torch.float64, device=x.device)
        for a, b, m in _parts(x[i : i + 1], target[i : i + 1], None if mask is None else mask[i : i + 1], axes, every):
            distances, weights = _distance(features, a, b, m)
            total, weight = total + (distances * weights).sum(), weight + weights.sum()
        if not float(weight):
            raise MedgenError("no plane of a volume meets its mask; pass a smaller `every`")
        found.append(total / weight)
    return torch.stack(found)


def _check_mask(mask: Tensor, x: Tensor) -> None:
    expected = (len(x), 1, *x.shape[2:])
    if mask.dtype != torch.bool or mask.shape != expected or not bool(mask.flatten(1).any(1).all()):
        raise MedgenError(f"a mask must be boolean of shape {expected} and nowhere empty, got {mask.dtype} of shape {tuple(mask.shape)}")


Part = tuple[Tensor, Tensor, Tensor | None]


def _parts(
    x: Tensor, target: Tensor, mask: Tensor | None, axes: Sequence[int], every: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """What goes through the encoder at once: the image, or batches of planes (b, C, H, W)."""
    if not axes:
        yield x, target, mask
    for axis in axes:
        a, b, m = (None if v is None else v[0].movedim(axis + 1, 0)[::every] for v in (x, target, mask))
        if m is not None:
            kept = m.flatten(1).any(1)
            a, b, m = a[kept], b[kept], m[kept]
        for start in range(0, len(a), BATCH):
            rows = slice(start, start + BATCH)
            yield a[rows].contiguous(), b[rows].contiguous(), None if m is None else m[rows].contiguous()


def _distance(features: Features, x: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Distance and weight (b,) of each image: a plane weighs as much as there is inside it."""
    firsts, seconds = features(x), features(target)
    if isinstance(firsts, Tensor) or not len(firsts) or any(f.ndim != x.ndim or len(f) != len(x) for f in firsts):
        raise MedgenError("the encoder must give a list of feature maps (B, F, *S), one entry per layer; wrap a single map as [map]")
    layers = []
    for first, second in zip(firsts, seconds, strict=True):
        gap = (_unit(first) - _unit(second)).square().sum(1)
        share = torch.ones_like(gap) if mask is None else _share(mask, tuple(gap.shape[1:]))
        layers.append((gap * share).flatten(1).sum(1) / share.flatten(1).sum(1))
    weights = torch.ones(len(x), dtype=torch.float64, device=x.device) if mask is None else mask.flatten(1).sum(1).double()
    return torch.stack(layers).mean(0), weights


def _unit(features: Tensor) -> Tensor:
    features = features.double()
    return features / (features.square().sum(1, keepdim=True).sqrt() + EPS)


def _share(mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    pool = functional.adaptive_avg_pool2d if len(grid) == 2 else functional.adaptive_avg_pool3d
    return pool(mask.double(), grid)[:, 0]
