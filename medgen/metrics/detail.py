"""Is fine detail right, missing or invented: errors of edges, of high frequencies, and of the power spectrum; 2D and 3D."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.metrics.pixel import check_pair, windowed

FLOOR = 1e-4  # of the data range: amplitudes below it count as nothing in a spectrum
SMALLEST = 16  # voxels along an axis of which a spectrum says something
UPPER = 0.25  # cycles per voxel, half of the Nyquist frequency: above it lies "detail"


@torch.no_grad()
def gradient_error(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """sqrt(sum |grad x - grad target|^2 / sum |grad target|^2), forward differences along every axis, 0 at each axis' last voxel.

    0 for equal images, 1 for a constant x (all edges lost), more where edges are invented.

    Raises:
        MedgenError: a target without any edge where it is compared.
    """
    check_pair(x, target, data_range, mask)
    return _ratio(gradient_maps, x, target, mask, "gradient error")


@torch.no_grad()
def hfen(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """High-frequency error norm: |LoG(x - target)| / |LoG(target)|, as in Ravishankar and Bresler 2011, divided by the target's norm.

    LoG: the window of `ssim` (sigma 1.5), then second differences, on mirrored images. Their filter is a sampled derivative of the
    same sigma, as SciPy's `gaussian_laplace`, from which the ratio differs by about 1e-3.

    Raises:
        MedgenError: a target without detail where it is compared.
    """
    check_pair(x, target, data_range, mask)
    return _ratio(_laplacian_maps, x, target, mask, "HFEN")


@torch.no_grad()
def spectral_error(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Root-mean-square difference in dB of the radially averaged power spectra, over frequencies up to 0.5 cycles per voxel.

    It compares how much there is of every scale, wherever it is. See `radial_power` for the spectrum and the mask.
    """
    peak = check_pair(x, target, data_range, mask)
    gaps = [difference(*pair) for pair in _spectra(x, target, peak, mask)]
    return torch.stack([gap.square().mean().sqrt() for gap in gaps])


@torch.no_grad()
def detail_power(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Mean difference in dB of the same spectra above 0.25 cycles per voxel: negative is too smooth, positive is noise or invention."""
    peak = check_pair(x, target, data_range, mask)
    return torch.stack([upper_mean(difference(*pair)) for pair in _spectra(x, target, peak, mask)])


def difference(x: Tensor, target: Tensor) -> Tensor:
    """10 log10 of the ratio of two radial powers (bins,)."""
    return 10 * torch.log10(x / target)


def upper_mean(gap: Tensor) -> Tensor:
    """Mean of a difference (bins,) above a quarter cycle per voxel."""
    edges = torch.arange(1, len(gap) + 1, device=gap.device) * (0.5 / len(gap))
    return gap[edges > UPPER].mean()


def radial_power(image: Tensor, peak: float) -> Tensor:
    """Power of (C, *S), in units of `peak` squared, in rings of equal width from the first frequency to 0.5 cycles per voxel.

    The image less its mean, under a Hann window (or the borders would look like detail). There are as many rings as half the
    shortest axis has voxels; the first one (the mean and the slowest waves, which the window mixes) is left out. A floor of 1e-4 of the
    range is added, so that silence is not compared with silence. (rings,) float64; transforms one whole channel at a time.

    Raises:
        MedgenError: an axis shorter than 16.
    """
    shape = image.shape[1:]
    if min(shape) < SMALLEST:
        raise MedgenError(f"a spectrum needs at least {SMALLEST} voxels along each axis, got {tuple(shape)}; leave it out for this region")
    rings = _rings(tuple(shape), image.device)
    count = min(shape) // 2
    power, energy = torch.zeros(count + 1, dtype=torch.float64, device=image.device), 1.0
    windows = [torch.hann_window(n, dtype=torch.float64, device=image.device) for n in shape]
    for channel in image:
        channel = channel - channel.mean(dtype=torch.float64).to(channel.dtype)
        for axis, w in enumerate(windows):
            channel = channel * w.to(channel.dtype).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        spectrum = torch.view_as_real(torch.fft.rfftn(channel if channel.dtype == torch.float64 else channel.float()))
        for ring, part in zip(rings, spectrum, strict=True):
            values = part.square().sum(-1).double().flatten()
            power += torch.bincount(ring.flatten().long(), values, minlength=count + 2)[: count + 1]
    for w in windows:
        energy *= float(w.square().sum())
    counts = sum(torch.bincount(ring.flatten().long(), minlength=count + 2)[: count + 1] for ring in rings)
    return (power / counts / (len(image) * energy * peak**2))[2:] + FLOOR**2


def box_of(mask: Tensor) -> tuple[slice, ...]:
    """The smallest box around a mask (*S)."""
    ends = [torch.nonzero(mask.movedim(axis, 0).flatten(1).any(1)) for axis in range(mask.ndim)]
    return tuple(slice(int(e[0]), int(e[-1]) + 1) for e in ends)


def gradient_maps(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, |grad (a - b)|^2, |grad b|^2) of two images (*S), a slab at a time."""
    for start in range(0, len(a), SMALLEST):
        rows, more = slice(start, start + SMALLEST), slice(start, start + SMALLEST + 1)
        count = len(a[rows])
        first, second = a[more], b[more]
        yield rows, edge_energy(first - second, count), edge_energy(second, count)


def edge_energy(x: Tensor, count: int) -> Tensor:
    """Squared gradient of the first `count` rows of x, which has one row more where there is one."""
    total = torch.zeros_like(x[:count])
    step = x.diff(dim=0)
    total[: len(step)] += step * step
    for axis in range(1, x.ndim):
        step = x[:count].diff(dim=axis)
        total.narrow(axis, 0, step.shape[axis]).addcmul_(step, step)
    return total


def laplacian(smooth: Tensor, rows: slice, seen: slice, size: int) -> Tensor:
    """Second differences of the `rows` of smoothed images (K, rows with a halo, ...) whose rows are `seen` of `size`; mirrored borders."""
    first, last = rows.start - seen.start, rows.stop - seen.start
    centre = smooth[:, first:last]
    above = smooth[:, first - 1 : last - 1] if rows.start else torch.cat([centre[:, :1], smooth[:, first : last - 1]], 1)
    below = smooth[:, first + 1 : last + 1] if rows.stop < size else torch.cat([smooth[:, first + 1 : last], centre[:, -1:]], 1)
    total = above + below - 2 * centre
    for axis in range(2, smooth.ndim):
        step = centre.diff(dim=axis)
        size = step.shape[axis]
        total.narrow(axis, 0, size).add_(step)
        total.narrow(axis, 1, size).sub_(step)
    return total


def _laplacian_maps(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for rows, seen, moments in windowed(a, b, halo=1):
        first, second = laplacian(moments[:2], rows, seen, len(a))
        yield rows, (first - second).square(), second.square()


def _ratio(maps, x: Tensor, target: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Root of the ratio of two summed maps, per image."""
    found = []
    for i in range(len(x)):
        sums = torch.zeros(2, dtype=torch.float64, device=x.device)
        for a, b in zip(x[i], target[i], strict=True):
            for rows, *parts in maps(a, b):
                inside = 1.0 if mask is None else mask[i, 0, rows]
                sums += torch.stack([(part * inside).sum(dtype=torch.float64) for part in parts])
        if not float(sums[1]):
            raise MedgenError(f"the {name} is not defined: a target is constant where it is compared; leave that image out")
        found.append((sums[0] / sums[1]).sqrt())
    return torch.stack(found)


def _spectra(x: Tensor, target: Tensor, peak: float, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Radial powers of each pair, of the smallest box around its mask."""
    for i in range(len(x)):
        box = (...,) if mask is None else (slice(None), *box_of(mask[i, 0]))
        yield radial_power(x[i][box], peak), radial_power(target[i][box], peak)


def _rings(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The ring of every coefficient of a real transform; those beyond 0.5 cycles per voxel share the last number."""
    count = min(shape) // 2
    axes = [torch.fft.fftfreq(n, device=device) for n in shape[:-1]] + [torch.fft.rfftfreq(shape[-1], device=device)]
    squares = sum(f.square().reshape([-1 if a == i else 1 for a in range(len(shape))]) for i, f in enumerate(axes))
    return squares.sqrt_().mul_(2 * count).round_().clamp_(max=count + 1).to(torch.int16)
