"""Fidelity to a target on the same grid: PSNR, SSIM, NMSE, MAE, ME and the relative error, in 2D and 3D.

Every function takes `x` and `target` (B, C, *S), the declared `data_range` of the units they are in, and an optional
`mask` (B, 1, *S), and returns one number per image (B,), summed in float64. The range is an argument because a range
read from an image changes the score with the image; values that cannot belong to the declared range are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medgen.core.errors import MedgenError

RADIUS, SIGMA = 5, 1.5  # the 11-tap Gaussian window of Wang et al. 2004
MANY = 256  # grey values: an image with more of them is not a quantised one
SLAB, BLOCK, LAST_BLOCK = 16, 64, 16  # planes held at once; outputs per dense block of a banded product (fewer on the last axis)


def psnr(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """10 log10(data_range^2 / mean squared error) in decibels; infinite for equal images."""
    peak = check_pair(x, target, data_range, mask)
    return 10 * torch.log10(peak**2 / _mean((x.double() - target.double()).square(), mask))


def mae(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None, unit: float = 1.0) -> Tensor:
    """Mean absolute error in the units of the images, times `unit`.

    Args:
        unit: physical units in one unit of the images: 1000 where [-1, 1] stands for -1000 to 1000 HU.
    """
    check_pair(x, target, data_range, mask)
    return unit * _mean((x.double() - target.double()).abs(), mask)


def me(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None, unit: float = 1.0) -> Tensor:
    """Mean error x - target (bias), positive where x is too bright, in the units of the images, times `unit` as in `mae`."""
    check_pair(x, target, data_range, mask)
    return unit * _mean(x.double() - target.double(), mask)


def relative_error(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None, zero: float = 0.0) -> Tensor:
    """Sum of absolute errors over the sum of absolute signal, sum|x - target| / sum|target - zero|; `zero` as in `nmse`.

    Raises:
        MedgenError: a target without signal.
    """
    check_pair(x, target, data_range, mask)
    signal = _mean((target.double() - zero).abs(), mask)
    if bool((signal == 0).any()):
        raise MedgenError(f"the relative error is not defined: a target is {zero:g} everywhere it is compared; leave that image out")
    return _mean((x.double() - target.double()).abs(), mask) / signal


def nmse(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None, zero: float = 0.0) -> Tensor:
    """Sum of squared errors over the sum of squared signal, sum((x - target)^2) / sum((target - zero)^2).

    Args:
        zero: the value that means "no signal". In [-1, 1] network units it is -1: with 0 the score would depend on the offset.

    Raises:
        MedgenError: a target without signal, for which the ratio is not defined.
    """
    check_pair(x, target, data_range, mask)
    signal = _mean((target.double() - zero).square(), mask)
    if bool((signal == 0).any()):
        raise MedgenError(f"NMSE is not defined: a target is {zero:g} everywhere it is compared; leave that image out")
    return _mean((x.double() - target.double()).square(), mask) / signal


@torch.no_grad()
def ssim(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Structural similarity with an 11-tap Gaussian window of sigma 1.5 over all spatial axes: Wang et al. 2004.

    Without a mask the mean leaves out the 5 voxels at each border, where the window sees reflected values; with a mask it is
    the mean of the similarity map (of the whole images) over the mask. Agrees with scikit-image's `structural_similarity(
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`. Multi-channel images: the mean over channels.

    Raises:
        MedgenError: an axis shorter than the window.
    """
    peak = check_pair(x, target, data_range, mask)
    if min(target.shape[2:]) <= 2 * RADIUS:
        raise MedgenError(f"SSIM needs at least {2 * RADIUS + 1} voxels along each axis, got {tuple(target.shape[2:])}")
    masks = interior(target) if mask is None else mask
    return torch.stack([_ssim_of(a, b, peak, m) for a, b, m in zip(x, target, masks.expand(len(x), *masks.shape[1:]), strict=True)])


@torch.no_grad()
def ssim_map(x: Tensor, target: Tensor, data_range: float | None = None) -> Tensor:
    """The similarity at every voxel, (B, C, *S); its mean over a mask is `ssim` with that mask."""
    peak = check_pair(x, target, data_range, None)
    maps = [torch.cat([part for _, part in _similarity(a, b, peak)]) for a, b in zip(x.flatten(0, 1), target.flatten(0, 1), strict=True)]
    return torch.stack(maps).reshape(target.shape)


def check_pair(x: Tensor, target: Tensor, data_range: float | None, mask: Tensor | None) -> float:
    """Refuse what cannot be compared, and give back the range.

    Raises:
        MedgenError: different shapes; values that are not finite; a missing or impossible range; a mask of another shape or empty;
            a pair that was scaled image by image.
    """
    if x.shape != target.shape or target.ndim < 3:
        raise MedgenError(f"the images have shapes {tuple(x.shape)} and {tuple(target.shape)}; a pair must share one (B, C, *S)")
    if not all(bool(torch.isfinite(end)) for image in (x, target) for end in image.detach().aminmax()):
        raise MedgenError("an image holds NaN or infinite values; repair it before scoring")
    if mask is not None:
        _check_mask(mask, target)
    peak = check_range(target, data_range)
    _check_scaling(x, target, peak)
    return peak


def check_range(target: Tensor, data_range: float | None) -> float:
    """The declared range, refused where `target` cannot be in those units (a robust spread, as MR has a few very bright voxels)."""
    if data_range is None or not data_range > 0:
        raise MedgenError(f"data_range must be a positive number, got {data_range}: state the full range of the units (2.0 for [-1, 1])")
    values = target.detach().flatten()
    sample = values[:: max(1, values.numel() // 100_000)].double()
    low, high = sample.quantile(0.01).item(), sample.quantile(0.99).item()
    if data_range == 1 and low < -0.5:
        raise MedgenError(f"data_range is 1 but the target goes down to {low:.3g}: in [-1, 1] units the range is 2.0")
    if high - low > 1.5 * data_range:
        raise MedgenError(f"data_range is {data_range:g} but the target spans {low:.4g} to {high:.4g}: state the range of its units")
    spread = float(torch.diff(torch.stack(values.aminmax())))
    if 0 < spread < 0.01 * data_range:
        raise MedgenError(f"data_range is {data_range:g} but the target spans only {spread:.3g}: state the range of its units")
    return float(data_range)


def real(x: Tensor) -> Tensor:
    """Single or double precision, for arithmetic: differences of bytes wrap, and half precision is too coarse."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _check_scaling(x: Tensor, target: Tensor, peak: float) -> None:
    """Refuse a pair of which both images were stretched to the ends of the range by their own minimum and maximum.

    The sign: both touch both ends, the bright end in one voxel each and not the same one. Clipping and saturation reach an end in
    many voxels and pass; so do images of few grey values, where chance would do it. A score of such a pair hides every error of scale.
    """
    if x.detach().aminmax() != target.detach().aminmax():
        return
    for a, b in zip(x.detach().flatten(1), target.detach().flatten(1), strict=True):
        (low, high), ends = a.aminmax(), b.aminmax()
        stretched = (low, high) == ends and abs(float(high - low) - peak) < 1e-6 * peak and float(low) in (0.0, -peak / 2)
        if not stretched or bool(a.argmax() == b.argmax()) or int((a == high).sum()) > 1 or int((b == high).sum()) > 1:
            continue
        if len(a[:: max(1, len(a) // MANY**2)].unique()) > MANY:
            raise MedgenError(
                "both images of a pair fill the data range exactly, each by its own minimum and maximum: scores would hide every"
                " error of scale; bring both to one scale by one map"
            )


def _check_mask(mask: Tensor, target: Tensor) -> None:
    if mask.dtype != torch.bool or mask.shape != (len(target), 1, *target.shape[2:]):
        expected = (len(target), 1, *target.shape[2:])
        raise MedgenError(f"a mask must be boolean of shape {expected}, got {mask.dtype} of shape {tuple(mask.shape)}")
    if not bool(mask.flatten(1).any(1).all()):
        raise MedgenError("a mask is empty: there is nothing to score in one of the images")


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, C, *S) per image, over the mask; (B,) float64."""
    if mask is None:
        return values.flatten(1).mean(1)
    total = torch.where(mask, values, 0.0).flatten(1).sum(1)
    return total / (mask.flatten(1).sum(1) * values.shape[1])


def interior(target: Tensor) -> Tensor:
    """(1, 1, *S) bool: the voxels whose window lies inside the image."""
    inside = torch.zeros((1, 1, *target.shape[2:]), dtype=torch.bool, device=target.device)
    inside[(..., *(slice(RADIUS, n - RADIUS) for n in target.shape[2:]))] = True
    return inside


def _ssim_of(x: Tensor, target: Tensor, peak: float, mask: Tensor) -> Tensor:
    """Mean similarity of one image (C, *S) over mask (1, *S)."""
    total = torch.zeros((), dtype=torch.float64, device=target.device)
    for a, b in zip(x, target, strict=True):
        for rows, part in _similarity(a, b, peak):
            total += part.mul_(mask[0, rows].to(part.dtype)).sum()  # a pairwise sum; slabs are added in float64
    return total / (mask.sum() * len(target))


def _similarity(x: Tensor, y: Tensor, peak: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows of the first axis, similarity map of those rows) of two images (*S), slab by slab so that little memory is held."""
    for rows, _, moments in windowed(x, y):
        yield rows, _formula(moments, peak)


def windowed(x: Tensor, y: Tensor, halo: int = 0) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, the same rows and `halo` more where there are more, moments (4, rows with halo, ...)) of two images (*S), slab by slab.

    The moments are the windowed means of x, y, x^2 + y^2 and xy: four suffice, since only the sum of the two variances is needed.
    """
    dtype = real(x[:0]).dtype
    windows = [window(n, dtype, x.device) for n in x.shape]
    for start, stop, first, last in _bands(len(x), SLAB, halo):
        low, high = max(0, first - RADIUS), min(len(x), last + RADIUS)
        moments = _moments(x[low:high].to(dtype), y[low:high].to(dtype))
        moments = (windows[0][first:last, low:high] @ moments.flatten(2)).unflatten(2, x.shape[1:])
        for axis in range(1, x.ndim):
            moments = _along(moments, windows[axis], axis + 1)
        yield slice(start, stop), slice(first, last), moments


def _moments(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y, (x * x).addcmul_(y, y), x * y])


def _formula(moments: Tensor, peak: float) -> Tensor:
    """Equation 13 of Wang et al. 2004 from windowed means."""
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    x, y, squares, product = moments
    means, cross = x.square().addcmul_(y, y), x * y
    covariance = (product - cross).mul_(2).add_(c2)
    variance = (squares - means).add_(c2)
    return cross.mul_(2).add_(c1).mul_(covariance).div_(means.add_(c1).mul_(variance))


def factors(moments: Tensor, peak: float) -> tuple[Tensor, Tensor]:
    """(luminance, contrast times structure) of which the similarity is the product: equations 6 and 9 with 10 there."""
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    x, y, squares, product = moments
    means, cross = x.square().addcmul_(y, y), x * y
    structure = (product - cross).mul_(2).add_(c2).div_((squares - means).add_(c2))
    return cross.mul_(2).add_(c1).div_(means.add_(c1)), structure


def window(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, size) banded matrix of the Gaussian window on an axis that is mirrored at its ends (d c b a | a b c d)."""
    offsets = torch.arange(-RADIUS, RADIUS + 1)
    weights = torch.exp(-0.5 * (offsets.double() / SIGMA) ** 2)
    weights /= weights.sum()
    columns = (torch.arange(size)[:, None] + offsets) % (2 * size)
    columns = torch.where(columns >= size, 2 * size - 1 - columns, columns)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, columns, weights.expand(size, -1)).to(device, dtype)


def _bands(size: int, block: int, reach: int = RADIUS) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop) of each block of outputs and (low, high) of the inputs it needs."""
    for start in range(0, size, block):
        stop = min(start + block, size)
        yield start, stop, max(0, start - reach), min(size, stop + reach)


def _along(values: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """`matrix` applied along `axis` of a contiguous tensor, block by block of its band."""
    out = torch.empty_like(values)
    size = values.shape[axis]
    if axis == values.ndim - 1:
        flat, flat_out = values.view(-1, size), out.view(-1, size)
        for start, stop, low, high in _bands(size, LAST_BLOCK):
            torch.mm(flat[:, low:high], matrix[start:stop, low:high].T, out=flat_out[:, start:stop])
        return out
    inner = values.flatten(axis + 1).flatten(0, axis - 1)
    inner_out = out.view(inner.shape)
    for plane, plane_out in zip(inner, inner_out, strict=True):
        for start, stop, low, high in _bands(size, BLOCK):
            torch.mm(matrix[start:stop, low:high], plane[low:high], out=plane_out[start:stop])
    return out
