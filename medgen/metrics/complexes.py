"""Errors of complex images, which travel as a real and an imaginary channel (B, 2, *S): as a whole, of magnitude, and of phase."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.tensors import as_complex
from medgen.metrics.pixel import check_pair


def magnitude(x: Tensor) -> Tensor:
    """(B, 2, *S) -> (B, 1, *S), for every metric of real images.

    Raises:
        MedgenError: not two channels.
    """
    if x.ndim < 4 or x.shape[1] != 2:
        raise MedgenError(f"a complex image travels as (B, 2, *S), real and imaginary, got {tuple(x.shape)}")
    return as_complex(x).abs()[:, None]


@torch.no_grad()
def complex_psnr(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """10 log10(range^2 / mean |x - target|^2) in dB, `data_range` being that of the magnitude. A wrong phase counts."""
    peak = check_pair(magnitude(x), magnitude(target), data_range, mask)
    return 10 * torch.log10(peak**2 / _mean((x.double() - target.double()).square().sum(1, keepdim=True), mask))


@torch.no_grad()
def complex_nmse(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """sum |x - target|^2 / sum |target|^2. A wrong phase counts: a global turn by 60 degrees alone scores 1.

    Raises:
        MedgenError: a target without signal.
    """
    check_pair(magnitude(x), magnitude(target), data_range, mask)
    signal = _signal(target, mask)
    return _mean((x.double() - target.double()).square().sum(1, keepdim=True), mask) / signal


@torch.no_grad()
def phase_offset(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """The global turn of x against the target in radians, in (-pi, pi]: the angle of sum x conj(target)."""
    check_pair(magnitude(x), magnitude(target), data_range, mask)
    _signal(target, mask)
    return _mean(_product(x, target), mask).angle()


@torch.no_grad()
def phase_error(x: Tensor, target: Tensor, data_range: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Mean |angle(x) - angle(target)| in radians, wrapped, after the global turn is taken out, weighted by the target's magnitude.

    Random phase scores pi / 2. Weighted, because the phase of air is noise. Voxels that are 0 in x score as random.

    Raises:
        MedgenError: a target without signal.
    """
    turn = torch.polar(torch.ones(len(x), dtype=torch.float64, device=x.device), -phase_offset(x, target, data_range, mask))
    product = _product(x, target) * turn.reshape(-1, *[1] * (x.ndim - 1))
    weight = magnitude(target.double())
    angles = torch.where(product == 0, torch.pi / 2, product.angle().abs())
    return _mean(angles * weight, mask) / _mean(weight, mask)


def _product(x: Tensor, target: Tensor) -> Tensor:
    return (as_complex(x.double()) * as_complex(target.double()).conj())[:, None]


def _signal(target: Tensor, mask: Tensor | None) -> Tensor:
    signal = _mean(target.double().square().sum(1, keepdim=True), mask)
    if bool((signal == 0).any()):
        raise MedgenError("a complex error is not defined: a target is 0 everywhere it is compared; leave that image out")
    return signal


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean (B,) of (B, 1, *S), over the mask."""
    if mask is None:
        return values.flatten(1).mean(1)
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).flatten(1).sum(1) / mask.flatten(1).sum(1)
