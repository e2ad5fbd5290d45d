"""What depends on the number of spatial dimensions: the convolution class, and padding to a grid that can be halved."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from medgen.core.errors import MedgenError

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def convolution(spatial_dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution that keeps the grid (stride 1) or halves an even one (stride 2)."""
    return CONVOLUTIONS[spatial_dims](inputs, outputs, kernel, stride, (kernel - 1) // 2)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last values of every axis of x (B, C, *S) until each size is a multiple; works on axes of width 1."""
    missing = [-size % multiple for size in x.shape[2:]]
    if not any(missing):
        return x
    widths = [width for m in reversed(missing) for width in (0, m)]
    return F.pad(x, widths, mode="replicate")


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` positions of every spatial axis: undoes `pad_to_multiple`."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """(B, C, *S) -> (B, C factor^d, *S / factor): every cell of `factor` positions a side becomes channels."""
    if factor == 1:
        return x
    dims = x.ndim - 2
    cells = x.reshape(*x.shape[:2], *(n for size in x.shape[2:] for n in (size // factor, factor)))
    inside, outside = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    return cells.permute(0, 1, *inside, *outside).flatten(1, 1 + dims)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """Undoes `space_to_depth`."""
    if factor == 1:
        return x
    dims = x.ndim - 2
    cells = x.unflatten(1, (-1, *(factor,) * dims))
    order = [axis for a in range(dims) for axis in (2 + dims + a, 2 + a)]
    return cells.permute(0, 1, *order).reshape(x.shape[0], -1, *(size * factor for size in x.shape[2:]))


def ceil_div(size: Sequence[int], factor: int) -> tuple[int, ...]:
    return tuple(math.ceil(s / factor) for s in size)


def check_levels(name: str, spatial_dims: int, channels: Sequence[int]) -> tuple[int, ...]:
    """The channel counts as plain integers, refused when there are none or when one is not positive."""
    if spatial_dims not in CONVOLUTIONS:
        raise MedgenError(f"{name}: spatial_dims is {spatial_dims}; expected 1, 2 or 3")
    channels = tuple(int(c) for c in channels)
    if not channels or min(channels) < 1:
        raise MedgenError(f"{name}: channels is {list(channels)}; expected at least one positive number, such as [32, 64, 128]")
    return channels
