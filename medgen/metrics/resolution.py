"""Up to which frequency a result agrees with the truth, window by window: scanning Fourier ring correlation (sFRC, Kc et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.errors import MedgenError

SIZE, THRESHOLD = 16, 0.5
FLAT = 0.03  # of the range: a window of the truth that varies less holds noise, and nothing to resolve
_AT_ONCE = 2048  # windows


@dataclass(frozen=True)
class ResolutionMap:
    """What windows of an image say.

    Attributes:
        crossing: (W,) frequency at which each window's correlation first falls below the threshold, as a fraction of Nyquist; 1: never.
        start: (W, dims) first voxel of each window.
        size: voxels along a window's side.
        shape: of the image.
    """

    crossing: Tensor
    start: Tensor
    size: int
    shape: tuple[int, ...]

    def share_below(self, least: float) -> float:
        """Share of the windows whose agreement ends below the frequency `least`."""
        return float((self.crossing < least).double().mean())

    def image(self) -> Tensor:
        """(*S) mean crossing of the windows over each voxel; NaN where there is none."""
        total, count = torch.zeros(self.shape, dtype=torch.float64), torch.zeros(self.shape, dtype=torch.float64)
        for value, corner in zip(self.crossing.tolist(), self.start.tolist(), strict=True):
            place = tuple(slice(c, c + self.size) for c in corner)
            total[place] += value
            count[place] += 1
        return total / torch.where(count > 0, count, torch.nan)


def ring_correlation(x: Tensor, target: Tensor) -> Tensor:
    """Fourier ring (2D) or shell (3D) correlation of windows (W, *n), cubes of n voxels: (W, n // 2), rings of one frequency step each.

    Re sum(X conj(Y)) / sqrt(sum |X|^2 sum |Y|^2) over each ring from 1 to n // 2 cycles per window (inscribed in the square), after the
    mean is taken away and a Hann window is laid over. Saxton and Baumeister 1982; van Heel and Schatz 2005. A ring in which both are
    empty correlates with 1, one in which only one is empty with 0.
    """
    dims, size = x.ndim - 1, x.shape[-1]
    taper, ring = _taper(size, dims, x), _rings(size, dims, x.device)
    axes = tuple(range(1, x.ndim))
    a, b = (torch.fft.fftn((v - v.mean(axes, keepdim=True)) * taper, dim=axes).flatten(1) for v in (x.double(), target.double()))
    count = size // 2 + 1

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(len(values), count + 1, dtype=torch.float64, device=values.device).index_add_(1, ring, values)[:, 1:count]

    cross, mine, theirs = summed((a * b.conj()).real), summed(a.abs().square()), summed(b.abs().square())
    least = 1e-20 * (mine.sum(1, keepdim=True) + theirs.sum(1, keepdim=True)) + torch.finfo(torch.float64).tiny
    empty = (mine <= least) & (theirs <= least)
    return torch.where(empty, 1.0, cross / (mine * theirs).sqrt().clamp_min(torch.finfo(torch.float64).tiny))


def crossing(curves: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """(W, rings) -> (W,): the fraction of Nyquist where a curve first falls below `threshold`, linear between rings; 1 where it never does.

    At frequency 0 the correlation counts as 1.
    """
    whole = torch.cat([torch.ones_like(curves[:, :1]), curves], 1)
    below = whole < threshold
    after = torch.where(below.any(1), below.int().argmax(1), whole.shape[1] - 1).clamp_min(1)[:, None]
    high, low = whole.gather(1, after - 1)[:, 0], whole.gather(1, after)[:, 0]
    part = ((high - threshold) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return torch.where(below.any(1), (after[:, 0] - 1 + part) / curves.shape[1], 1.0)


@torch.no_grad()
def resolution_map(
    x: Tensor,
    target: Tensor,
    data_range: float,
    mask: Tensor | None = None,
    size: int = SIZE,
    threshold: float = THRESHOLD,
) -> ResolutionMap:
    """Scan windows of `size` voxels, half a window apart, over images (*S) of 2 or 3 axes.

    Windows of the truth that are flat (standard deviation under 3 % of the range), or less than half in `mask` (*S), are left out.

    Raises:
        MedgenError: images of different shapes, axes shorter than a window, or no window left.
    """
    if x.shape != target.shape or x.ndim not in (2, 3):
        raise MedgenError(f"the images have shapes {tuple(x.shape)} and {tuple(target.shape)}; a pair must share one grid of 2 or 3 axes")
    if size < 4 or size > min(x.shape):
        raise MedgenError(f"windows of {size} voxels do not fit images of {tuple(x.shape)}; expected 4 to {min(x.shape)}")
    step, dims = size // 2, x.ndim
    corners = torch.cartesian_prod(*(torch.arange(0, n - size + 1, step) for n in x.shape)).reshape(-1, dims)
    windows = [_windows(v.double(), size, step) for v in (x, target)]
    inside = torch.ones(len(corners)) if mask is None else _windows(mask.double(), size, step).flatten(1).mean(1)
    chosen = torch.nonzero((inside >= 0.5) & (windows[1].flatten(1).std(1) > FLAT * data_range))[:, 0]
    if not len(chosen):
        raise MedgenError("no window of the truth lies in the body and holds a structure; take smaller windows")
    curves = [ring_correlation(windows[0][part], windows[1][part]) for part in chosen.split(_AT_ONCE)]
    return ResolutionMap(crossing(torch.cat(curves), threshold), corners[chosen], size, tuple(x.shape))


def _windows(image: Tensor, size: int, step: int) -> Tensor:
    """(W, *n) in the order of `cartesian_prod`."""
    for axis in range(image.ndim):
        image = image.unfold(axis, size, step)
    return image.reshape(-1, *(size,) * (image.ndim // 2))


def _taper(size: int, dims: int, like: Tensor) -> Tensor:
    one = torch.hann_window(size + 1, periodic=False, dtype=torch.float64, device=like.device)[:size]
    whole = one
    for _ in range(dims - 1):
        whole = whole[..., None] * one
    return whole


def _rings(size: int, dims: int, device: torch.device) -> Tensor:
    """(size^dims,) ring of each frequency; everything beyond the inscribed circle is ring n // 2 + 1."""
    axis = torch.fft.fftfreq(size, device=device).double() * size
    radius = torch.stack(torch.meshgrid(*(axis,) * dims, indexing="ij")).square().sum(0).sqrt().flatten()
    return radius.round().long().clamp_max(size // 2 + 1)
