"""Is fine detail right, missing or invented: errors of edges, of high frequencies, and of the power spectrum; 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.metrics.pixel import check_pair, real, windowed

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
    same sigma, as SciPy's `gaussian_laplace`, from which the ratio differs by 1 to 4 %.

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
    return torch.stack([gap.square().mean().sqrt() for gap in _gaps(x, target, peak, mask)])


@torch.no_grad()
def detail_power(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Mean difference in dB of the same spectra above 0.25 cycles per voxel: negative is too smooth, positive is noise or invention."""
    peak = check_pair(x, target, data_range, mask)
    return torch.stack([upper_mean(gap) for gap in _gaps(x, target, peak, mask)])


def spectral_gap(x: Tensor, target: Tensor, peak: float) -> Tensor:
    """Difference in dB of the radial powers of x and target (C, *S), (rings,)."""
    powers = radial_power([x, target], peak)
    return 10 * torch.log10(powers[0] / powers[1])


def upper_mean(gap: Tensor) -> Tensor:
    """Mean of a difference (rings,) above a quarter cycle per voxel."""
    edges = torch.arange(1, len(gap) + 1, device=gap.device) * (0.5 / len(gap))
    return gap[edges > UPPER].mean()


def radial_power(images: Sequence[Tensor], peak: float) -> Tensor:
    """Power of each of the images (C, *S) of one shape, in units of `peak` squared, in rings of equal width up to 0.5 cycles per voxel.

    The image less its mean, under a Hann window (or the borders would look like detail). There are as many rings as half the
    shortest axis has voxels; the first one (the mean and the slowest waves, which the window mixes) is left out. A floor of 1e-4 of the
    range is added, so that silence is not compared with silence. (images, rings) float64; holds one channel's transform of all of them.

    Raises:
        MedgenError: an axis shorter than 16.
    """
    shape = tuple(images[0].shape[1:])
    if min(shape) < SMALLEST:
        raise MedgenError(f"a spectrum needs at least {SMALLEST} voxels along each axis, got {shape}; leave it out for this region")
    count = min(shape) // 2
    power = torch.zeros(len(images), count + 2, dtype=torch.float64, device=images[0].device)
    counts = torch.zeros_like(power[0])
    for channel in range(len(images[0])):
        spectra = [torch.fft.rfftn(_windowed(image[channel])) for image in images]
        for ring, *parts in zip(_rings(shape, images[0].device), *spectra, strict=True):
            counts += torch.bincount(ring, minlength=count + 2)
            for total, part in zip(power, parts, strict=True):
                real, imaginary = torch.view_as_real(part).unbind(-1)
                values = (real * real).addcmul_(imaginary, imaginary).double()
                total += torch.bincount(ring, values.flatten(), minlength=count + 2)
    energy = math.prod(float(torch.hann_window(n, dtype=torch.float64).square().sum()) for n in shape)
    return (power / (counts * energy * peak**2))[:, 2:-1] + FLOOR**2


def _windowed(channel: Tensor) -> Tensor:
    """(*S) less its mean, under the Hann window of each axis."""
    channel = real(channel)
    channel = channel - channel.mean()
    for axis, n in enumerate(channel.shape):
        w = torch.hann_window(n, dtype=channel.dtype, device=channel.device)
        channel *= w.reshape([-1 if a == axis else 1 for a in range(channel.ndim)])
    return channel


def box_of(mask: Tensor) -> tuple[slice, ...]:
    """The smallest box around a mask (*S)."""
    ends = [torch.nonzero(mask.movedim(axis, 0).flatten(1).any(1)) for axis in range(mask.ndim)]
    return tuple(slice(int(e[0]), int(e[-1]) + 1) for e in ends)


def gradient_maps(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, |grad (a - b)|^2, |grad b|^2) of two images (*S), a slab at a time."""
    for start in range(0, len(a), SMALLEST):
        rows, more = slice(start, start + SMALLEST), slice(start, start + SMALLEST + 1)
        count = len(a[rows])
        first, second = real(a[more]), real(b[more])
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


Maps = Callable[[Tensor, Tensor], Iterator[tuple[slice, Tensor, Tensor]]]


def _ratio(maps: Maps, x: Tensor, target: Tensor, mask: Tensor | None, name: str) -> Tensor:
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


def _gaps(x: Tensor, target: Tensor, peak: float, mask: Tensor | None) -> Iterator[Tensor]:
    """The spectral gap of each pair, in the smallest box around its mask."""
    for i in range(len(x)):
        box = (...,) if mask is None else (slice(None), *box_of(mask[i, 0]))
        yield spectral_gap(x[i][box], target[i][box], peak)


def _rings(shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
    """The rings of a real transform's coefficients, one row of its first axis at a time; beyond 0.5 cycles per voxel the last number."""
    count = min(shape) // 2
    axes = [torch.fft.fftfreq(n, device=device) for n in shape[:-1]] + [torch.fft.rfftfreq(shape[-1], device=device)]
    others = sum(f.square().reshape([-1 if a == i else 1 for a in range(1, len(shape))]) for i, f in enumerate(axes[1:], 1))
    for first in axes[0].square():
        yield (others + first).sqrt_().mul_(2 * count).round_().clamp_(max=count + 1).long().flatten()
