"""Small tensor helpers that keep everything outside `nn` free of the number of spatial dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def broadcast(value: Tensor | float, like: Tensor) -> Tensor | float:
    """`value` (B,) shaped to multiply `like` (B, ...); a number is returned as it is."""
    if isinstance(value, (int, float)):
        return value
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def flatten_mean(values: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, ...) -> (B,)."""
    return values.flatten(1).mean(1)


def as_complex(x: Tensor) -> Tensor:
    """(B, 2, *S) real and imaginary channels -> (B, *S) complex."""
    import torch

    return torch.complex(x[:, 0], x[:, 1])
