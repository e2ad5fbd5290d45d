"""The whole first tier of a pair at once: every pixel metric in every region, from one walk over the volume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.metrics import detail
from medgen.metrics.haar import haar_scores, plane_axes
from medgen.metrics.pixel import check_pair, factors, interior, windowed
from medgen.metrics.scales import coarse_means, combined, most_scales


class Metric(NamedTuple):
    """What a number of the panel is: its unit ("" for none, "intensity" for the images' own), which way is better, and a sentence."""

    unit: str
    best: str
    meaning: str


METRICS = {
    "psnr": Metric("dB", "max", "10 log10(range^2 / mean squared error) over all voxels at once"),
    "ssim": Metric("", "max", "Gaussian window of 11 taps, sigma 1.5, over all axes; whole: less a border of 5 voxels"),
    "ms_ssim": Metric("", "max", "the same over scales: Wang 2003"),
    "haarpsi": Metric("", "max", "Haar perceptual similarity: Reisenhofer 2018; volumes by planes across three axes"),
    "mae": Metric("intensity", "min", "mean absolute error"),
    "me": Metric("intensity", "zero", "mean error, made less true: the bias"),
    "nmse": Metric("", "min", "squared error over squared signal"),
    "relative_error": Metric("", "min", "absolute error over absolute signal"),
    "gradient_error": Metric("", "min", "error of the gradient over the target's gradient; 1: all edges lost"),
    "hfen": Metric("", "min", "error under a Laplacian of Gaussian (sigma 1.5) over the target's"),
    "spectral_error": Metric("dB", "min", "root-mean-square difference of radially averaged power spectra"),
    "detail_power": Metric("dB", "zero", "power above 0.25 cycles per voxel against the target's: negative is too smooth, positive noisy"),
}
SPECTRAL = ("whole", "body")  # regions that a spectrum is taken of, as it needs a box
ERROR, ABSOLUTE, SQUARED, SIGNAL, POWER, EDGE_ERROR, EDGE, FINE_ERROR, FINE, SIMILAR, STRUCTURE = range(11)


@dataclass(frozen=True)
class Panel:
    """Attributes:
    values: region -> metric -> (B,) float64; NaN where a metric is not defined (a region that an image lacks, an axis too short).
    scales: of MS-SSIM: as many of its five as fit, 0 for none.
    padding: (B,) share of the voxels that are empty border, see `padding_share`: what a score of "whole" is partly earned on.
    protocol: metric -> how it was computed, in words.
    """

    values: dict[str, dict[str, Tensor]]
    scales: int
    padding: Tensor
    protocol: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def all_pixel(
    x: Tensor,
    target: Tensor,
    data_range: float | None = None,
    regions: Mapping[str, Tensor] | None = None,
    zero: float = 0.0,
    unit: float = 1.0,
    rgb: bool = False,
) -> Panel:
    """Every metric of `METRICS` in the whole image and in each region, one number per image, equal to the functions of those names.

    It walks over slabs of 16 planes, so that a region costs little more and memory stays near that of SSIM; the spectra alone
    hold the transform of one channel. Sums of single-precision images are taken plane by plane in single precision, then in double.

    Args:
        x, target: (B, C, *S) in units of which `data_range` is the full range.
        regions: name -> (B, 1, *S) bool, such as "body"; `label_regions` makes them of a label map.
        zero: the value of no signal (-1 in [-1, 1]), for NMSE, the relative error and HaarPSI.
        unit: physical units in one unit of the images, for MAE and ME.
        rgb: the three channels are colours, for HaarPSI.

    Raises:
        MedgenError: what `check_pair` refuses; a region of another shape or type, or named "whole".
    """
    peak = check_pair(x, target, data_range, None)
    regions = dict(regions or {})
    for name, mask in regions.items():
        if name == "whole" or mask.dtype != torch.bool or mask.shape != (len(x), 1, *x.shape[2:]):
            expected = (len(x), 1, *x.shape[2:])
            raise MedgenError(f"region {name} must be boolean of shape {expected} and not be named whole, got {tuple(mask.shape)}")
    names = ["whole", *regions]
    scales = most_scales(tuple(x.shape[2:]))
    rows = []
    for i in range(len(x)):
        masks = torch.cat([torch.ones_like(target[i, :1], dtype=torch.bool), *(mask[i] for mask in regions.values())])
        found = _image(x[i], target[i], peak, masks, scales, zero, rgb) | _spectral(x[i], target[i], peak, masks, names)
        found["mae"], found["me"] = found["mae"] * unit, found["me"] * unit
        empty = torch.tensor([not bool(mask.any()) for mask in masks], device=x.device)
        rows.append({metric: found[metric].masked_fill(empty, math.nan) for metric in METRICS})
    values = {name: {metric: torch.stack([row[metric][k] for row in rows]) for metric in METRICS} for k, name in enumerate(names)}
    return Panel(values, scales, padding_share(target), _protocol(scales, zero, unit, peak))


def label_regions(labels: Tensor, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Label map (B, 1, *S) of whole numbers -> name -> (B, 1, *S) bool, for the labels that occur in any image.

    Raises:
        MedgenError: labels that are not whole numbers, or one without a name (0 may lack one: it is left out).
    """
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise MedgenError("a label map must hold whole numbers; resample it with the nearest neighbour")
    found = [int(value) for value in labels.unique()]
    unnamed = [value for value in found if value and value not in names]
    if unnamed:
        raise MedgenError(f"labels {unnamed} have no name; known are {dict(names)}")
    return {names[value]: labels == value for value in found if value in names}


def padding_share(target: Tensor) -> Tensor:
    """Share (B,) of voxels with the value that more than half of the border holds in every channel; 0 where it holds no such value."""
    shares = []
    for image in target:
        padded = torch.ones_like(image[0], dtype=torch.bool)
        for channel in image:
            border = torch.cat([channel.select(axis, end).flatten() for axis in range(channel.ndim) for end in (0, -1)])
            air = border.median()
            padded &= (channel == air) if (border == air).double().mean() > 0.5 else torch.zeros_like(padded)
        shares.append(int(padded.count_nonzero()) / padded.numel())
    return torch.tensor(shares, dtype=torch.float64, device=target.device)


def _image(x: Tensor, target: Tensor, peak: float, masks: Tensor, scales: int, zero: float, rgb: bool) -> dict[str, Tensor]:
    """(R,) of each metric but the spectral ones."""
    inner = torch.cat([interior(target[None])[0], masks])  # what similarity is averaged over in the whole image, then the regions
    sums, counts = torch.zeros(11, len(inner), dtype=torch.float64, device=x.device), torch.zeros((), dtype=torch.float64, device=x.device)
    for a, b in zip(x, target, strict=True):
        for rows, maps in _maps(a, b, peak, zero):
            weights = inner[:, rows].flatten(2).movedim(1, 0).to(maps.dtype)
            sums += torch.bmm(maps, weights.mT).double().sum(0)
            counts = counts + weights.sum(2).double().sum(0)
    whole = sums[:, 1:] / counts[1:]
    similar = torch.cat([sums[:, :1] / counts[0], whole[:, 1:]], 1)[SIMILAR:]
    coarse = coarse_means(x, target, peak, inner, scales) if scales > 1 else []
    steps = [similar[1], *(torch.cat([step[:1], step[2:]]) for step in coarse)] if scales > 1 else [similar[0]]
    missing = torch.full_like(whole[0], math.nan)
    return {
        "psnr": 10 * torch.log10(peak**2 / whole[SQUARED]),
        "ssim": similar[0] if scales else missing,
        "ms_ssim": combined(torch.stack(steps)) if scales else missing,
        "haarpsi": haar_scores(x, target, peak, masks, zero, rgb) if plane_axes(tuple(x.shape[1:])) else missing,
        "mae": whole[ABSOLUTE],
        "me": whole[ERROR],
        "nmse": _defined(whole[SQUARED], whole[POWER]),
        "relative_error": _defined(whole[ABSOLUTE], whole[SIGNAL]),
        "gradient_error": _defined(whole[EDGE_ERROR], whole[EDGE]).sqrt(),
        "hfen": _defined(whole[FINE_ERROR], whole[FINE]).sqrt(),
    }


def _maps(a: Tensor, b: Tensor, peak: float, zero: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows, maps (rows, 11, voxels of a row)) of two images (*S); the memory of the maps is used again for the next rows."""
    gradients = detail.gradient_maps(a, b)
    memory = None
    for rows, seen, moments in windowed(a, b, halo=1):
        x, y = a[rows].to(moments.dtype), b[rows].to(moments.dtype)
        memory = torch.empty(len(x), 11, *x.shape[1:], dtype=x.dtype, device=x.device) if memory is None else memory
        out = memory[: len(x)].unbind(1)
        torch.sub(x, y, out=out[ERROR])
        torch.abs(out[ERROR], out=out[ABSOLUTE])
        torch.mul(out[ERROR], out[ERROR], out=out[SQUARED])
        torch.abs(y - zero, out=out[SIGNAL])
        torch.mul(out[SIGNAL], out[SIGNAL], out=out[POWER])
        for place, edges in zip((EDGE_ERROR, EDGE), next(gradients)[1:], strict=True):
            out[place].copy_(edges)
        fine_x, fine = detail.laplacian(moments[:2], rows, seen, len(a))
        torch.mul(fine_x.sub_(fine), fine_x, out=out[FINE_ERROR])
        torch.mul(fine, fine, out=out[FINE])
        luminance, structure = factors(moments[:, rows.start - seen.start : rows.stop - seen.start], peak)
        torch.mul(luminance, structure, out=out[SIMILAR])
        out[STRUCTURE].copy_(structure)
        yield rows, memory[: len(x)].flatten(2)


def _spectral(x: Tensor, target: Tensor, peak: float, masks: Tensor, names: list[str]) -> dict[str, Tensor]:
    found = torch.full((2, len(names)), math.nan, dtype=torch.float64, device=x.device)
    known: dict[tuple[tuple[int, int], ...], Tensor] = {}
    for k, name in enumerate(names):
        if name not in SPECTRAL or not bool(masks[k].any()):
            continue
        box = detail.box_of(masks[k]) if k else tuple(slice(0, n) for n in masks.shape[1:])
        key = tuple((side.start, side.stop) for side in box)
        if key not in known and min(stop - start for start, stop in key) >= detail.SMALLEST:
            known[key] = detail.spectral_gap(x[(slice(None), *box)], target[(slice(None), *box)], peak)
        if key in known:
            found[0, k], found[1, k] = known[key].square().mean().sqrt(), detail.upper_mean(known[key])
    return {"spectral_error": found[0], "detail_power": found[1]}


def _defined(above: Tensor, below: Tensor) -> Tensor:
    """The ratio, NaN where there is nothing to divide by."""
    return torch.where(below > 0, above / below, math.nan)


def _protocol(scales: int, zero: float, unit: float, peak: float) -> dict[str, str]:
    """How each number came about."""
    said = {name: metric.meaning for name, metric in METRICS.items()}
    said["psnr"] += f"; range {peak:g}"
    said["ms_ssim"] += f"; {scales} of 5 scales fit" + ("" if scales == 5 else ", weights divided by their sum")
    said["nmse"] += f", signal counted from {zero:g}"
    said["mae"] += f"; one unit of the images is {unit:g}"
    return said
