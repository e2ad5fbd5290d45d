"""Whether k-space, its mask and the transform's convention agree: what contradicts itself is refused, what looks strange is said."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from medgen.core.errors import MedgenError, MedgenWarning

EMPTY = 0.05  # share of what the mask calls sampled that may be exactly zero, as rounded numbers are
AROUND = 0.4  # least share of the energy in the middle half of an axis; noise alone has a half


def check_kspace(y: Tensor, mask: Tensor) -> None:
    """Compare k-space (N, coils, *S) with its mask (N, 1, *S), ones for axes that are fully sampled.

    Raises:
        MedgenError: a whole line, or many places, that the mask calls sampled and that hold exactly zero.
    """
    there = (y != 0).any(1, keepdim=True)
    said = (mask != 0).expand_as(there)
    empty = said & ~there
    others = tuple(range(2, y.ndim - 1))
    lines = (said.all(others) & ~there.any(others)) if others else empty
    share = float(empty.sum() / said.sum().clamp_min(1))
    if bool(lines.any()) or share > EMPTY:
        raise MedgenError(
            f"{share:.0%} of what the mask calls sampled is exactly 0 in the k-space: the mask is shifted, inverted or another"
            " measurement's; give the right one, or none, which takes what is not 0"
        )
    outside = float((there & ~said).sum() / there.sum().clamp_min(1))
    if outside:
        _warn(f"{outside:.0%} of the k-space lies outside the mask and is not used: right in a retrospective study, else the mask is wrong")
    energy = (y * mask).abs().square().sum((0, 1))
    for axis, size in enumerate(energy.shape):
        profile = energy.sum([a for a in range(energy.ndim) if a != axis])
        near = (torch.arange(size, device=y.device) - size // 2).abs() <= size // 4
        if size >= 8 and float(profile[near].sum() / profile.sum()) < AROUND:
            _warn(
                f"along axis {axis} the energy of k-space lies around index {int(profile.argmax())} and not around {size // 2}:"
                " zero frequency belongs at N // 2, as in fftshift(fft2(ifftshift(image), norm='ortho'))"
            )


def _warn(text: str) -> None:
    warnings.warn(text, MedgenWarning, stacklevel=6)
