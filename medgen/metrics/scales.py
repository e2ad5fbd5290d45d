"""Structural similarity over scales: Wang, Simoncelli and Bovik 2003, in 2D and 3D by one definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medgen.core.errors import MedgenError
from medgen.metrics.pixel import RADIUS, check_pair, factors, interior, real, windowed

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # their section 3.2, the finest scale first


@torch.no_grad()
def ms_ssim(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None, scales: int = len(WEIGHTS)) -> Tensor:
    """Product over scales of the mean contrast-and-structure, the coarsest one times luminance, each to the power of its weight.

    The window of `ssim` at every scale; between scales means of 2 (2D) or 8 (3D) neighbours, an odd last voxel left out. Means are
    over channels and space, without a mask less the 5 voxels at each border; with one, each voxel of a coarse scale counts with the
    share of it that is inside. A negative mean counts as 0. With fewer scales the first weights are used, divided by their sum.
    Agrees with MONAI in 2D and 3D; torchmetrics keeps the borders of the coarsest scale (a
    difference of 1e-3 on 177 x 190 pixels).

    Args:
        scales: 1 to 5; the paper's five need 176 voxels along each axis. `most_scales(shape)` is the most that fit.

    Raises:
        MedgenError: an axis too short for the scales; a mask that lies wholly in voxels that a coarse scale leaves out.
    """
    peak = check_pair(x, target, data_range, mask)
    most = most_scales(tuple(target.shape[2:]))
    if not 1 <= scales <= most:
        need = (2 * RADIUS + 1) * 2 ** (scales - 1)
        remedy = f"pass scales={most}" if most else "leave MS-SSIM out"
        raise MedgenError(f"MS-SSIM of {scales} scales needs {need} voxels along each axis, got {tuple(target.shape[2:])}; {remedy}")
    masks = [None] * len(x) if mask is None else mask[:, :1]
    return torch.stack([one_pair(a, b, peak, m, scales) for a, b, m in zip(x, target, masks, strict=True)])


def one_pair(x: Tensor, target: Tensor, peak: float, mask: Tensor | None, scales: int) -> Tensor:
    """The score of one image (C, *S) and its target, neither checked."""
    whole = interior(target[None])[0]
    weights = whole if mask is None else torch.cat([whole, mask])
    means = [_mean(x, target, peak, weights, last=scales == 1), *coarse_means(x, target, peak, weights, scales)]
    if bool(torch.isnan(means[-1][-1])):
        raise MedgenError("MS-SSIM: a mask is too small for the coarsest scale; pass fewer scales")
    return combined(torch.stack(means))[-1]


def most_scales(shape: tuple[int, ...]) -> int:
    """How many scales fit into images of this spatial shape: 0 to 5."""
    return sum(min(shape) >> scale >= 2 * RADIUS + 1 for scale in range(len(WEIGHTS)))


def combined(means: Tensor) -> Tensor:
    """(scales, R) means, the coarsest one with luminance -> (R,) scores."""
    weights = torch.tensor(WEIGHTS[: len(means)], dtype=means.dtype, device=means.device)
    if len(means) < len(WEIGHTS):
        weights = weights / weights.sum()
    return (means.clamp(min=0) ** weights[:, None]).prod(0)


def coarse_means(x: Tensor, target: Tensor, peak: float, weights: Tensor, scales: int) -> list[Tensor]:
    """The means (R,) of the second and later scales of one image.

    Args:
        x, target: (C, *S) of the finest scale.
        weights: (R, *S), bool or share, of the finest scale; the first one stands for the whole image less the border of each scale.
        scales: in all, with the finest.
    """
    found = []
    for scale in range(1, scales):
        x, target = halved(x), halved(target)
        whole = interior(x[None])[0].to(x.dtype)
        weights = torch.cat([whole, *(halved(one[None]) for one in weights[1:])])  # one by one: masks in floating point are large
        found.append(_mean(x, target, peak, weights, last=scale == scales - 1))
    return found


def halved(x: Tensor) -> Tensor:
    """(C, *S) -> means of neighbouring pairs along each axis; an odd last voxel is left out."""
    pool = functional.avg_pool3d if x.ndim == 4 else functional.avg_pool2d
    return pool(real(x), 2)


def _mean(x: Tensor, target: Tensor, peak: float, weights: Tensor, last: bool) -> Tensor:
    """Mean (R,) over channels and space of contrast-and-structure, at the last scale of the similarity; NaN without weight."""
    total = torch.zeros(len(weights), dtype=torch.float64, device=x.device)
    for a, b in zip(x, target, strict=True):
        for rows, _, moments in windowed(a, b):
            luminance, structure = factors(moments, peak)
            values = structure.mul_(luminance) if last else structure
            total += (weights[:, rows].to(values.dtype) * values).flatten(1).sum(1)
    return total / (weights.flatten(1).sum(1, dtype=torch.float64) * len(x))
