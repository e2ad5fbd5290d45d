"""Scores as a public benchmark counts them, by its name: for comparison with its published numbers, and with nothing else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medgen.core.errors import MedgenError

WINDOW = 7  # the uniform window of scikit-image's default
NAMES = ("fastmri",)


def by_convention(x: Tensor, target: Tensor, convention: str, slice_axis: int = 0) -> dict[str, Tensor]:
    """The scores of the convention of that name: metric -> (B,) float64.

    Raises:
        MedgenError: an unknown name.
    """
    if convention not in NAMES:
        raise MedgenError(f"no convention is named {convention}; known: {', '.join(NAMES)}")
    return fastmri(x, target, slice_axis)


@torch.no_grad()
def fastmri(x: Tensor, target: Tensor, slice_axis: int = 0) -> dict[str, Tensor]:
    """NMSE, PSNR and SSIM of magnitude volumes as `fastmri/evaluate.py` computes them (Zbontar et al. 2018, arXiv 1811.08839).

    The range of PSNR and SSIM is the maximum of the target volume; NMSE and PSNR are over the whole volume; SSIM is the mean over
    slices of the 2D index with a 7 x 7 uniform window and sample covariance, less a border of 3 pixels. There is no mask. The
    challenge crops both to the middle square of the target's last axis first: crop before the call.

    Args:
        x, target: (B, 1, *S): volumes, or images that are one slice each; not negative, in the same units.
        slice_axis: the spatial axis of the slices of a volume.

    Raises:
        MedgenError: other shapes; values that are not finite; a target without a positive maximum or with negative values; slices
            smaller than the window.
    """
    if x.shape != target.shape or target.ndim not in (4, 5) or target.shape[1] != 1:
        raise MedgenError(f"fastMRI's scores need a pair of magnitudes (B, 1, *S), got {tuple(x.shape)} and {tuple(target.shape)}")
    if not bool(torch.isfinite(x).all() & torch.isfinite(target).all()):
        raise MedgenError("an image holds NaN or infinite values; repair it before scoring")
    if bool((target < 0).any()) or not bool((target.flatten(1).amax(1) > 0).all()):
        raise MedgenError("fastMRI's scores are of magnitudes: the target must be positive somewhere and never negative")
    planes = [v.double()[:, 0].movedim(slice_axis + 1, 1) if v.ndim == 5 else v.double() for v in (x, target)]
    if min(planes[0].shape[2:]) < WINDOW:
        raise MedgenError(f"fastMRI's SSIM needs slices of at least {WINDOW} x {WINDOW}, got {tuple(planes[0].shape[2:])}")
    x, target = planes
    peak = target.flatten(1).amax(1)
    squared = (x - target).square().flatten(1)
    return {
        "nmse": squared.sum(1) / target.square().flatten(1).sum(1),
        "psnr": 10 * torch.log10(peak**2 / squared.mean(1)),
        "ssim": torch.stack([_mean_ssim(*volume) for volume in zip(x, target, peak, strict=True)]),
    }


def _mean_ssim(x: Tensor, y: Tensor, peak: Tensor) -> Tensor:
    return torch.stack([_ssim(a, b, peak) for a, b in zip(x, y, strict=True)]).mean()


def _ssim(x: Tensor, y: Tensor, peak: Tensor) -> Tensor:
    """Of one slice (H, W): scikit-image's `structural_similarity(y, x, data_range=peak)`."""
    count = WINDOW**2
    mx, my, xx, yy, xy = functional.avg_pool2d(torch.stack([x, y, x * x, y * y, x * y])[:, None], WINDOW, stride=1)[:, 0]
    variances = (xx - mx * mx + yy - my * my) * count / (count - 1)
    covariance = (xy - mx * my) * count / (count - 1)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return ((2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (variances + c2))).mean()
