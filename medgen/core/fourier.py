"""Centred, orthonormal Fourier transforms over the spatial axes."""

from __future__ import annotations

import torch
from torch import Tensor


def fft(x: Tensor, dims: int) -> Tensor:
    """(..., *S) image -> k-space over the last `dims` axes; zero frequency at index n // 2, energy preserved."""
    axes = tuple(range(-dims, 0))
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, axes), dim=axes, norm="ortho"), axes)


def ifft(k: Tensor, dims: int) -> Tensor:
    """Undoes `fft`; as the transform is unitary, this is also its adjoint."""
    axes = tuple(range(-dims, 0))
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(k, axes), dim=axes, norm="ortho"), axes)
