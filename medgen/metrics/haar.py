"""The Haar wavelet perceptual similarity index: Reisenhofer, Bosse, Kutyniok and Wiegand 2018."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from medgen.core.errors import MedgenError
from medgen.metrics.pixel import check_pair, real

C, ALPHA = 30.0, 4.2  # fitted by the authors for values of 0 to 255
SMALLEST, SLAB = 16, 16  # pixels along an edge: the largest filter on the halved image; planes held at once
HALVES, LARGEST = (1, 2, 4), 4  # half the width of the three filters; of the one that weighs
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@torch.no_grad()
def haarpsi(
    x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None, zero: float = 0.0, rgb: bool = False
) -> Tensor:
    """Similarity of Haar coefficients at two scales, weighted by those of a third: 0 to 1, 1 for equal images.

    2D: the authors' algorithm with subsampling, number for number (rgb: in YIQ with its chroma; otherwise the mean over channels).
    3D: the same sums over all slices across each of the three axes, put together before the final curve: slices of air weigh nothing.
    Only planes of at least 16 x 16 take part. With a mask a (halved) pixel counts where any of its voxels is inside.
    Where the filters see nothing in either image the score is 1.

    Args:
        zero: the lower end of the range, which becomes 0 of 0 to 255: -1 for [-1, 1]. It matters at the borders, which are
            filled with 0 as the authors do.

    Raises:
        MedgenError: smaller planes; rgb without three channels.
    """
    peak = check_pair(x, target, data_range, mask)
    if rgb and (x.shape[1] != 3 or x.ndim != 4):
        raise MedgenError(f"HaarPSI of colours needs images (B, 3, H, W), got {tuple(x.shape)}; leave rgb out")
    if not plane_axes(tuple(x.shape[2:])):
        raise MedgenError(f"HaarPSI needs planes of at least {SMALLEST} x {SMALLEST}, got {tuple(x.shape[2:])}; leave it out")
    masks = [torch.ones_like(target[0, :1], dtype=torch.bool)] * len(x) if mask is None else mask
    return torch.cat([haar_scores(a, b, peak, m, zero, rgb) for a, b, m in zip(x, target, masks, strict=True)])


def plane_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes across which a volume is cut; (0,) for an image that is large enough; () where nothing is."""
    if len(shape) == 2:
        return (0,) if min(shape) >= SMALLEST else ()
    return tuple(axis for axis in range(3) if min(n for i, n in enumerate(shape) if i != axis) >= SMALLEST)


def haar_scores(x: Tensor, target: Tensor, peak: float, masks: Tensor, zero: float = 0.0, rgb: bool = False) -> Tensor:
    """(R,) scores of one image (C, *S) in masks (R, *S) bool."""
    dtype = real(x[:0]).dtype
    scores = []
    for part in [slice(0, 3)] if rgb else [slice(c, c + 1) for c in range(len(x))]:
        lost, weight = torch.zeros(2, len(masks), dtype=torch.float64, device=x.device)
        for pair, inside in _planes(x[part], target[part], masks, zero):
            inside = inside.to(dtype).movedim(1, 0).flatten(2)  # (n, R, pixels): one product per plane
            for values, weights in _maps(pair.to(dtype) * (255 / peak)):
                columns = torch.stack([(values * weights).flatten(1), weights.flatten(1)], 2)
                sums = torch.bmm(inside, columns).double().sum(0)
                lost, weight = lost + sums[:, 0], weight + sums[:, 1]
        scores.append(_curve(lost, weight))
    return torch.stack(scores).mean(0)


def _planes(x: Tensor, target: Tensor, masks: Tensor, zero: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Slabs of halved planes: both images less `zero` (2, C, n, h, w), and whether a pixel is inside (R, n, h, w)."""
    axes = plane_axes(tuple(x.shape[1:]))
    if x.ndim == 3:
        x, target, masks = x[:, None], target[:, None], masks[:, None]
    for axis in axes:
        a, b, m = (v.movedim(axis + 1, 1) for v in (x, target, masks))
        for start in range(0, a.shape[1], SLAB):
            rows = slice(start, start + SLAB)
            yield torch.stack([_halved(a[:, rows], zero), _halved(b[:, rows], zero)]), _any_of_four(m[:, rows])


def _halved(planes: Tensor, zero: float) -> Tensor:
    """(..., H, W) less `zero` -> means of 2 x 2, with 0 beyond an odd border."""
    return _pair_sums(_pair_sums(real(planes), -2, zero), -1, 0.0).mul_(0.25)


def _pair_sums(values: Tensor, axis: int, zero: float) -> Tensor:
    count = values.shape[axis] // 2
    first, second = values.narrow(axis, 0, 2 * count).unflatten(axis, (count, 2)).unbind(axis)
    sums = first + second - 2 * zero if zero else first + second
    return sums if values.shape[axis] == 2 * count else torch.cat([sums, values.narrow(axis, -1, 1) - zero], axis)


def _any_of_four(mask: Tensor) -> Tensor:
    mask = functional.pad(mask, (0, mask.shape[-1] % 2, 0, mask.shape[-2] % 2))
    return mask[..., ::2, ::2] | mask[..., 1::2, ::2] | mask[..., ::2, 1::2] | mask[..., 1::2, 1::2]


def _maps(pair: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(what the sigmoid loses against equal images, weight), each (n, h, w), of both orientations and the chroma of (2, C, n, h, w)."""
    if pair.shape[1] == 3:
        pair = torch.einsum("dc,bcnhw->bdnhw", torch.tensor(YIQ, dtype=pair.dtype, device=pair.device), pair)
    fine, middle, coarse = _coefficients(pair[:, 0])
    weights = torch.maximum(coarse[:, 0], coarse[:, 1])
    for i in range(2):
        yield _loss((_similarity(*fine[i]) + _similarity(*middle[i])) / 2), weights[i]
    if pair.shape[1] == 3:
        chroma = functional.avg_pool2d(functional.pad(pair[:, 1:].flatten(0, 2)[:, None], (0, 1, 0, 1)), 2, stride=1)[:, 0]
        i_pair, q_pair = chroma.abs().unflatten(0, (2, 2, -1)).movedim(1, 0)
        yield _loss((_similarity(*i_pair) + _similarity(*q_pair)) / 2), weights.mean(0)


def _coefficients(images: Tensor) -> list[Tensor]:
    """Magnitudes (2 orientations, 2 images, n, h, w) at three scales of images (2, n, h, w), filled with 0 beyond their borders.

    A filter of width 2 h is the difference of two boxes, and a box of width 2 h is the sum of four of width h.
    """
    height, width = images.shape[-2:]
    boxes = functional.pad(images, (LARGEST - 1, LARGEST, LARGEST - 1, LARGEST))
    found = []
    for half in HALVES:
        begin = LARGEST - half
        left, right = boxes[..., :-half], boxes[..., half:]
        sums = left + right
        slopes = (right - left)[..., begin : begin + width]
        rows, below = slice(begin, begin + height), slice(begin + half, begin + half + height)
        out = torch.empty((2, *images.shape), dtype=images.dtype, device=images.device)
        torch.sub(sums[..., below, begin : begin + width], sums[..., rows, begin : begin + width], out=out[0])
        torch.add(slopes[..., below, :], slopes[..., rows, :], out=out[1])
        found.append(out.abs_().mul_(0.5 / half))
        boxes = sums[..., :-half, :] + sums[..., half:, :]
    return found


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).mul_(2).add_(C).div_((a * a).addcmul_(b, b).add_(C))


def _loss(similarity: Tensor) -> Tensor:
    return torch.sigmoid(torch.full_like(similarity[:1], ALPHA)) - similarity.mul_(ALPHA).sigmoid_()


def _curve(lost: Tensor, weight: Tensor) -> Tensor:
    kept = torch.sigmoid(torch.tensor(ALPHA, dtype=torch.float64)) - torch.where(weight > 0, lost / weight, 0.0)
    return (torch.logit(kept) / ALPHA) ** 2
