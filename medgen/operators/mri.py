"""Magnetic resonance: the masked Fourier transform, with one coil or several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.fourier import fft, ifft
from medgen.core.operator import Operator, State


class MaskedFourier(Operator):
    """y = mask * F(maps * x): Cartesian sampling by coils of known sensitivity (Pruessmann et al. 1999, SENSE).

    F is the centred orthonormal transform over all spatial axes. `state["mask"]` (B, 1, *S), or with ones for axes that are fully
    sampled, is 1 where k-space was measured; `state["maps"]` (B, coils, *S) complex may be left out for a single coil. y is complex,
    (B, coils, *S), zero where nothing was measured.

    Args:
        real: images are real (magnitude), so that the adjoint is the real part of A^H y; otherwise they are complex, (B, 1, *S).
    """

    def __init__(self, real: bool = True):
        self.real = real

    def __call__(self, x: Tensor, state: State) -> Tensor:
        maps = state.get("maps")
        if maps is not None and x.shape[1] != 1:
            raise MedgenError(f"MaskedFourier: coils see one image, found {x.shape[1]} channels; measure each by itself")
        return state["mask"] * fft(x if maps is None else maps * x, x.ndim - 2)

    def adjoint(self, y: Tensor, state: State) -> Tensor:
        image, maps = ifft(state["mask"] * y, y.ndim - 2), state.get("maps")
        if maps is not None:
            image = (maps.conj() * image).sum(1, keepdim=True)
        return image.real if self.real else image

    def shape(self, x: tuple[int, ...], state: State) -> tuple[int, ...]:
        maps = state.get("maps")
        return x if maps is None else (x[0], maps.shape[1], *x[2:])

    def view(self, y: Tensor, state: State) -> Tensor:
        """The adjoint over the squared sensitivity of all coils, so that the image's scale does not depend on that of the maps."""
        image, maps = self.adjoint(y, state), state.get("maps")
        if maps is None:
            return image
        power = maps.abs().square().sum(1, keepdim=True)
        return image / power.clamp_min(1e-2 * float(power.max()))

    def measured(self, y: Tensor, state: State) -> Tensor:
        return state["mask"] * y


def equispaced(size: int, acceleration: int, centre: float = 0.08, offset: int = 0) -> Tensor:
    """(size,) float32 mask of phase-encoding lines: every `acceleration`-th from `offset`, and a fully sampled centre.

    As in fastMRI (Zbontar et al. 2018) the centre comes on top, so that slightly more than 1 / acceleration is sampled.
    """
    mask = torch.zeros(size)
    mask[offset % acceleration :: acceleration] = 1
    mask[_centre(size, centre)] = 1
    return mask


def random_lines(size: int, acceleration: int, uniform: Tensor, centre: float = 0.08) -> Tensor:
    """(size,) float32 mask of exactly round(size / acceleration) lines: the centre, and the rest drawn by `uniform` (size,) in [0, 1)."""
    mask = torch.zeros(size)
    mask[_centre(size, centre)] = 1
    missing = max(round(size / acceleration) - int(mask.sum()), 0)
    order = torch.where(mask > 0, torch.inf, uniform).argsort()
    mask[order[:missing]] = 1
    return mask


def coil_maps(coils: int, size: Sequence[int]) -> Tensor:
    """(coils, *size) complex64 sensitivities of coils in a ring around the last two axes, of unit root sum of squares: smooth Gaussian
    profiles whose phase turns with the coil. For trying things out; real maps are estimated from the scan (ESPIRiT)."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    angles = torch.arange(coils) * (2 * math.pi / coils)
    profiles = []
    for angle in angles.tolist():
        along = axes[-2] * math.cos(angle) + axes[-1] * math.sin(angle)
        across = axes[-1] * math.cos(angle) - axes[-2] * math.sin(angle)
        distance = (along - 1.2).square() + across.square() + sum(a.square() for a in axes[:-2])
        profiles.append(torch.polar(torch.exp(-distance / 2), angle + 0.5 * across))
    maps = torch.stack(profiles)
    return maps / maps.abs().square().sum(0).sqrt()


def calibrated_maps(y: Tensor, mask: Tensor, widest: int = 16) -> Tensor:
    """(B, coils, *S) sensitivities from the fully sampled centre of k-space y (B, coils, *S): smooth coil images over their root sum of
    squares (McKenzie et al. 2002). They carry the smooth phase of the image too, so that the image behind them is nearly real, also with
    one coil. Blurred to the width of the centre: less exact than ESPIRiT at edges and where there is no signal.

    Args:
        mask: (B or 1, 1, *S), 1 where k-space was measured.
        widest: half of the centre's width in lines, at most.

    Raises:
        MedgenError: fewer than 4 x 4 lines around zero frequency were measured.
    """
    size = y.shape[2:]
    known = mask.expand(-1, 1, *size).bool().all(0)[0]
    half = 0
    while half < min(widest, *(n // 2 for n in size)) and bool(
        known[tuple(slice(n // 2 - half - 1, n // 2 + half + 1) for n in size)].all()
    ):
        half += 1
    if half < 2:
        raise MedgenError("the centre of k-space is not fully sampled, from which coil maps could be estimated; give them")
    window = y.new_zeros(size, dtype=y.real.dtype)
    block = torch.hann_window(2 * half)
    square = block
    for _ in size[1:]:
        square = square[..., None] * block
    window[tuple(slice(n // 2 - half, n // 2 + half) for n in size)] = square.to(window)
    smooth = ifft(window * y, len(size))
    power = smooth.abs().square().sum(1, keepdim=True).sqrt()
    return smooth / power.clamp_min(1e-6 * float(power.max()) + 1e-30)


def _centre(size: int, fraction: float) -> slice:
    lines = max(round(size * fraction), 1)
    first = size // 2 - lines // 2
    return slice(first, first + lines)
