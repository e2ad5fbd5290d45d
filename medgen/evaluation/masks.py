"""Where the body is, so that a score is not earned on air."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError

TOLERANCE = 1e-4  # of the span: rounding. More would cut dark tissue off, as one vessel can set the span


def body_mask(image: Tensor, threshold: float | None = None) -> Tensor:
    """(C, *S) image or volume -> (1, *S) bool: the largest connected part of the foreground, its holes filled.

    The foreground is what any channel has above `threshold`. Without one: where more than half of the border holds one value
    (skull-stripped or padded images), everything that differs from that value; elsewhere what is above Otsu's threshold (1979).
    CT should pass a threshold (-500 HU in the image's units), because padding outside the field of view is a constant too.

    Raises:
        MedgenError: nothing is in the foreground.
    """
    foreground = torch.zeros(image.shape[1:], dtype=torch.bool)
    for channel in image.detach().cpu().float():
        foreground |= _foreground(channel) if threshold is None else channel > threshold
    if not bool(foreground.any()):
        raise MedgenError("no body found: the image is constant or wholly below the threshold")
    box = _box(foreground)
    body = torch.zeros_like(foreground)
    body[box] = torch.from_numpy(filled(largest(foreground[box].numpy())))
    return body[None].to(image.device)


def largest(foreground: np.ndarray) -> np.ndarray:
    """The connected part (face neighbours) with the most voxels."""
    rest, best = foreground.copy(), np.zeros_like(foreground)
    while rest.sum() > best.sum():
        part = flood(_bulk(rest), rest)
        rest &= ~part
        best = part if part.sum() > best.sum() else best
    return best


def filled(body: np.ndarray) -> np.ndarray:
    """`body` with everything that cannot be reached from the border through face neighbours."""
    border = np.ones_like(body)
    border[tuple(slice(1, -1) for _ in body.shape)] = False
    return ~flood(border & ~body, ~body)


def flood(seed: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Voxels of `allowed` that are connected to `seed`: sweeps along whole lines, so few rounds are needed."""
    reached, count = seed & allowed, -1
    while count != (count := int(reached.sum())):
        for axis, backwards in itertools.product(range(allowed.ndim), (False, True)):
            reached = _sweep(reached, allowed, axis, backwards)
    return reached


def _sweep(reached: np.ndarray, allowed: np.ndarray, axis: int, backwards: bool) -> np.ndarray:
    """Extend `reached` along one direction until a wall: where the last reached voxel lies after the last wall."""
    if backwards:
        return np.flip(_sweep(np.flip(reached, axis), np.flip(allowed, axis), axis, False), axis)
    shape = [-1 if a == axis else 1 for a in range(allowed.ndim)]
    place = np.arange(1, allowed.shape[axis] + 1, dtype=np.int16 if allowed.shape[axis] < 2**15 else np.int64).reshape(shape)
    last_reached = np.maximum.accumulate(place * reached, axis)
    last_wall = np.maximum.accumulate(place * ~allowed, axis)
    return last_reached > last_wall


def _box(foreground: Tensor) -> tuple[slice, ...]:
    """The bounding box with one voxel of air around it, so that nothing more is searched."""
    ends = [torch.nonzero(foreground.movedim(axis, 0).flatten(1).any(1)) for axis in range(foreground.ndim)]
    return tuple(slice(max(int(e[0]) - 1, 0), int(e[-1]) + 2) for e in ends)


def _bulk(foreground: np.ndarray) -> np.ndarray:
    """One voxel of `foreground` where it is thickest along its lines, as a mask: a good first guess of the largest part."""
    thick = np.zeros(foreground.shape, np.float32)
    for axis in range(foreground.ndim):
        thick += foreground.sum(axis, keepdims=True, dtype=np.float32)
    seed = np.zeros_like(foreground)
    seed.flat[np.where(foreground, thick, -1).argmax()] = True
    return seed


def _foreground(channel: Tensor) -> Tensor:
    faces = [channel.select(axis, end).flatten() for axis in range(channel.ndim) for end in (0, -1)]
    border = torch.cat(faces)
    air = border.median()
    if (border == air).float().mean() > 0.5:
        span = channel.max() - channel.min()
        return (channel - air).abs() > TOLERANCE * span
    return channel > otsu(channel)


def otsu(values: Tensor, bins: int = 256) -> float:
    """The threshold between two classes of largest variance between them, from a histogram up to the 99.5 percentile."""
    sample = values.flatten()[:: max(1, values.numel() // 200_000)].double()
    sample = sample.clamp(max=sample.quantile(0.995).item())
    low, high = sample.min().item(), sample.max().item()
    counts = torch.histc(sample, bins, low, high)
    centres = low + (torch.arange(bins) + 0.5).double() * (high - low) / bins
    below, mass = counts.cumsum(0), (counts * centres).cumsum(0)
    between = (mass * counts.sum() - mass[-1] * below).square() / (below * (counts.sum() - below)).clamp(min=1)
    best = torch.nonzero(between[:-1] >= between[:-1].max() * (1 - 1e-9)).double().mean().item()  # the middle of an empty gap
    return low + (best + 1) * (high - low) / bins
