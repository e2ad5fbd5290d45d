"""Radiomics, a feature space without weights: first order, co-occurrence, wavelets; the idea of FRD (Konz et al. 2024)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from medgen.core.errors import MedgenError
from medgen.metrics.cooccurrence import NAMES, cooccurrence, cooccurrence_features
from medgen.metrics.space import Space

LEVELS = 16  # of grey, over the range of the image or of a band
DETAIL = 0.25  # half the range of grey levels of a wavelet's detail: what lies outside counts as its end
LEAST = 6  # voxels along an axis: the filter's length
FIRST_ORDER = (
    "energy",
    "entropy",
    "minimum",
    "percentile_10",
    "percentile_90",
    "maximum",
    "mean",
    "median",
    "interquartile_range",
    "range",
    "mean_absolute_deviation",
    "robust_mean_absolute_deviation",
    "root_mean_square",
    "skewness",
    "kurtosis",
    "variance",
    "uniformity",
)


def radiomics() -> Space:
    """The space: in 2D 200, in 3D 360 features of one channel; each is to be divided by its spread over real images."""
    return Space("radiomics", 0, radiomic_features, standard=True)


def names(dims: int, channels: int = 1) -> list[str]:
    """What each feature of `radiomic_features` is, such as "wavelet_lh.contrast"."""
    bands = ["original", *("wavelet_" + "".join(band) for band in itertools.product("lh", repeat=dims))]
    more = [f"channel_{c}.{name}" for c in range(channels) if channels > 1 for name in FIRST_ORDER]
    return [f"{band}.{name}" for band in bands for name in (*FIRST_ORDER, *NAMES)] + more


@torch.no_grad()
def radiomic_features(images: Tensor) -> Tensor:
    """Features (B, F) float64 of images (B, C, *S) in network units ([-1, 1]): `names` says which.

    Of the whole image, without a mask: 17 first order and 23 co-occurrence features of the image and of the bands of one level of the
    undecimated wavelet transform, of the mean of the channels; then the first order features of each channel, where there are several.
    Grey levels are 16 bins over [-1, 1] (in wavelet bands with detail over [-0.25, 0.25]), the same for every image, so that brightness
    and contrast count; values outside go into the outer bins.

    Raises:
        MedgenError: axes shorter than 6, values that are not finite.
    """
    if images.ndim not in (4, 5) or min(images.shape[2:]) < LEAST:
        raise MedgenError(f"radiomics needs (B, C, *S) with 2 or 3 axes of at least {LEAST}, got {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise MedgenError("an image holds NaN or infinite values; repair it before its features are computed")
    share = max(1, 2**18 // math.prod(images.shape[2:]))  # images at once: some 64 MiB of work
    return torch.cat([_features(part.double()) for part in images.split(share)])


def _features(x: Tensor) -> Tensor:
    mean = x.mean(1)
    bands = [(mean, 1.0), *((band, DETAIL if detail else 1.0) for detail, band in wavelet_bands(mean))]
    found = []
    for band, edge in bands:
        levels = grey_levels(band, edge)
        found += [first_order(band, levels), cooccurrence_features(cooccurrence(levels, LEVELS))]
    if x.shape[1] > 1:
        found += [first_order(channel, grey_levels(channel, 1.0)) for channel in x.unbind(1)]
    return torch.cat(found, 1)


def grey_levels(x: Tensor, edge: float, count: int = LEVELS) -> Tensor:
    """Bins 1 to `count` of equal width over [-edge, edge]."""
    return ((x + edge) * (count / (2 * edge))).floor().clamp(0, count - 1).long() + 1


@torch.no_grad()
def first_order(x: Tensor, levels: Tensor) -> Tensor:
    """Features (B, 17) of values (B, *S), by the definitions of pyradiomics (radiomics.firstorder): `FIRST_ORDER` names them.

    Kurtosis is not the excess. Entropy (bits) and uniformity are of the `levels`, the rest of the values. TotalEnergy is left out, which
    is the energy times a voxel's volume. Skewness and kurtosis of a constant image are 0.
    """
    flat, bins = x.double().flatten(1), levels.flatten(1)
    ordered = flat.sort(1).values
    low, quarter, median, three, high = (_percentile(ordered, q) for q in (10, 25, 50, 75, 90))
    mean, energy = flat.mean(1), flat.square().sum(1)
    centred = flat - mean[:, None]
    variance = centred.square().mean(1)
    some = variance > 1e-24
    spread = torch.where(some, variance, 1.0)
    top = int(bins.max()) + 1
    counts = torch.bincount((bins + top * torch.arange(len(bins))[:, None]).flatten(), minlength=top * len(bins))
    shares = counts.reshape(len(bins), top).double() / flat.shape[1]
    return torch.stack(
        [
            energy,
            -(shares * (shares + 2.2e-16).log2()).sum(1),
            ordered[:, 0],
            low,
            high,
            ordered[:, -1],
            mean,
            median,
            three - quarter,
            ordered[:, -1] - ordered[:, 0],
            centred.abs().mean(1),
            _robust_deviation(flat, low, high),
            (energy / flat.shape[1]).sqrt(),
            torch.where(some, (centred**3).mean(1) / spread**1.5, 0.0),
            torch.where(some, (centred**4).mean(1) / spread**2, 0.0),
            variance,
            shares.square().sum(1),
        ],
        1,
    )


def wavelet_bands(x: Tensor) -> list[tuple[bool, Tensor]]:
    """(whether it has detail, band) of (B, *S): one level of the undecimated transform with the first Coiflet, periodic; low bands first.

    As in pyradiomics, but each filter is divided by sqrt(2): the low band keeps the image's scale, and the bands' energies add up to that
    of the image.
    """
    low, high = coiflet()
    bands = [(False, x)]
    for axis in range(1, x.ndim):
        bands = [(detail or last, _filtered(band, axis, taps)) for detail, band in bands for last, taps in ((False, low), (True, high))]
    return bands


def coiflet() -> tuple[Tensor, Tensor]:
    """Low and high pass of the first Coiflet (Daubechies 1992, section 8.3; in closed form), the low one with sum 1."""
    r = math.sqrt(7)
    low = torch.tensor([1 - r, 5 + r, 14 + 2 * r, 14 - 2 * r, 1 - r, -3 + r], dtype=torch.float64) / 32
    return low, low.flip(0) * torch.tensor([1, -1, 1, -1, 1, -1])


def _filtered(x: Tensor, axis: int, taps: Tensor) -> Tensor:
    """Periodic correlation along one axis; the result is not shifted against the image by more than half a voxel."""
    rows = x.movedim(axis, -1)
    padded = functional.pad(rows.reshape(-1, 1, rows.shape[-1]), (2, 3), mode="circular")
    return functional.conv1d(padded, taps[None, None]).reshape(rows.shape).movedim(-1, axis)


def _percentile(ordered: Tensor, q: float) -> Tensor:
    """Between neighbours linearly, as numpy's."""
    place = q / 100 * (ordered.shape[1] - 1)
    low = int(place)
    high = min(low + 1, ordered.shape[1] - 1)
    return ordered[:, low] + (place - low) * (ordered[:, high] - ordered[:, low])


def _robust_deviation(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mean absolute deviation of the values between two percentiles from their own mean."""
    inside = ((x >= low[:, None]) & (x <= high[:, None])).double()
    count = inside.sum(1).clamp(min=1)
    mean = (inside * x).sum(1) / count
    return (inside * (x - mean[:, None]).abs()).sum(1) / count
