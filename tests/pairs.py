"""Two images whose scores are known from plain reimplementations: smooth structure, and an error of its own."""

import numpy as np
import torch
from scipy import ndimage


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth structure and an error of its own, in [0, 1]."""
    draw = np.random.default_rng(0)
    sigma = [0, 0, *[1.5] * (len(shape) - 2)]
    target = 0.5 + ndimage.gaussian_filter(draw.standard_normal(shape), sigma, mode="wrap")
    x = target + 0.1 * ndimage.gaussian_filter(draw.standard_normal(shape), sigma) + 0.02 * draw.standard_normal(shape)
    return torch.tensor(x, dtype=dtype), torch.tensor(target, dtype=dtype)


def corner(*shape: int) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[(..., *[slice(2, n - n // 3) for n in shape[2:]])] = True
    return mask
