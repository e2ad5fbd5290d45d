"""What MR scanners do to images: bias fields, motion and ghosting in k-space, a lower field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.fourier import fft, ifft
from medgen.core.random import Rng
from medgen.core.tensors import broadcast
from medgen.data.augment.change import Drawn, Intensity, between, check, signal, units, whole
from medgen.data.augment.fields import coefficients, field
from medgen.data.augment.geometry import rotation
from medgen.data.augment.intensity import along, magnitude, power
from medgen.data.augment.move import Move


@dataclass(frozen=True)
class BiasField(Intensity):
    """The signal times exp(f), with f a sum of slow cosines whose mean over the grid is zero.

    Args:
        strength: largest root mean square of f.
        order: half waves along the longest side.
    """

    channels: Sequence[str] = ()
    strength: float = 0.2
    order: int = 3
    probability: float = 0.5

    def __post_init__(self) -> None:
        check(self, strength=(0, 3), order=(1, 32))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        strength = between(rng, 0.0, self.strength)
        smooth = field(coefficients(rng, 1, shape[2:], self.order), shape[2:])
        return {"log": smooth * broadcast(strength, smooth)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        return units(signal(images) * drawn["log"].exp())


@dataclass(frozen=True)
class Motion(Intensity):
    """A head that moves between groups of k-space lines: each group belongs to the image in another rigid pose (as in Shaw et al. 2019).

    The group with the centre of k-space is in the pose of the image, so that the result stays in place. The image is taken as real.

    Args:
        rotation: largest angle in degrees, about every axis.
        shift: largest shift, as a fraction of each side.
        moves: largest number of moves during the scan.
    """

    channels: Sequence[str] = ()
    rotation: float = 3.0
    shift: float = 0.02
    moves: int = 3
    probability: float = 0.2

    def __post_init__(self) -> None:
        check(self, rotation=(0, 180), shift=(0, 1), moves=(1, 32))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        dims, limit = len(shape) - 2, math.radians(self.rotation)
        count = whole(rng, 1, self.moves)
        times = between(rng, 0.0, 1.0, (self.moves,))
        times = torch.where(torch.arange(self.moves) < count[:, None], times, 1.0).sort(1).values
        here = (times[:, :, None] <= 0.5).sum(1)  # the pose while the centre is acquired
        others = (torch.arange(self.moves + 1) != here)[..., None].float()
        angles = between(rng, -limit, limit, (self.moves + 1, dims * (dims - 1) // 2))
        shifts = between(rng, -self.shift, self.shift, (self.moves + 1, dims)) * torch.tensor(shape[2:])
        return {"axis": whole(rng, 0, dims - 1), "times": times, "angles": angles * others, "shifts": shifts * others}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        groups = self._groups(drawn["times"], drawn["axis"], images.shape[2:])
        total = torch.zeros_like(images, dtype=torch.complex64)
        for pose, lines in enumerate(groups):
            if not lines.any():
                continue
            linear = rotation(drawn["angles"][:, pose].cpu(), images.ndim - 2)
            moved = Move(linear, drawn["shifts"][:, pose].cpu())(images)
            seen = {"axis": drawn["axis"], "lines": lines}
            total = total + along(signal(moved).to(torch.complex64), seen, _measured)
        return units(magnitude(total.real, total.imag))

    def _groups(self, times: Tensor, axis: Tensor, size: Sequence[int]) -> list[Tensor]:
        """For every pose (B, longest side) whether a line is acquired in it; lines are taken one after the other."""
        sides = torch.tensor(size, device=axis.device)[axis]
        line = torch.arange(max(size), device=axis.device)
        pose = ((line - sides[:, None] // 2) / sides[:, None] + 0.5)[:, :, None] >= times[:, None]
        return [(pose.sum(2) == number).float() for number in range(self.moves + 1)]


@dataclass(frozen=True)
class Ghosting(Intensity):
    """A signal that pulsates with a period of n lines: k-space times 1 + a cos(2 pi k / n + phase).

    Two copies of strength a / 2 appear at a distance of a side / n along the drawn axis, folded back at the edges.

    Args:
        strength: largest a.
        periods: smallest and largest n.
    """

    channels: Sequence[str] = ()
    strength: float = 0.3
    periods: Sequence[int] = (2, 5)
    probability: float = 0.2

    def __post_init__(self) -> None:
        check(self, strength=(0, 1), periods=(2, 1000))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        return {
            "axis": whole(rng, 0, len(shape) - 3),
            "strength": between(rng, 0.0, self.strength),
            "period": whole(rng, *self.periods),
            "phase": between(rng, 0.0, 2 * math.pi),
        }

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        total = along(signal(images).to(torch.complex64), drawn, _ghosted)
        return units(magnitude(total.real, total.imag))


@dataclass(frozen=True)
class LowField(Intensity):
    """An approximation of the image of a scanner with a lower field: less contrast, larger voxels, noise of the larger voxels' grain.

    The signal becomes s^(1 - c), k-space is cut to a box, and complex noise of that bandwidth is added before the magnitude is taken.
    Signal to noise is proportional to field and voxel volume (Marques et al. 2019). Relaxation times change with the field and with the
    tissue: an exponent does not know that.

    Args:
        field: smallest and largest field in tesla; drawn uniformly in its logarithm.
        reference: field of the images in tesla.
        noise: standard deviation of their noise, in units of full contrast.
        resolution: largest factor by which voxels are longer, along each axis.
        contrast: largest c.
    """

    channels: Sequence[str] = ()
    field: Sequence[float] = (0.3, 1.5)
    reference: float = 3.0
    noise: float = 0.01
    resolution: float = 2.0
    contrast: float = 0.3
    probability: float = 0.2

    def __post_init__(self) -> None:
        check(self, field=(0.001, 100), reference=(0.001, 100), noise=(0, 10), resolution=(1, 16), contrast=(0, 0.95))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        low, high = map(math.log, self.field)
        longer = between(rng, 0.0, math.log(self.resolution), (len(shape) - 2,)).exp()
        return {
            "exponent": 1 - between(rng, 0.0, self.contrast),
            "longer": longer,
            "sigma": self.noise * self.reference / between(rng, low, high).exp() / longer.prod(1),
            "noise": rng.normal((*shape[:1], 2, *shape[1:])),
        }

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        dims = images.ndim - 2
        kept, share = _box(drawn["longer"], images.shape[2:])
        sigma = broadcast(drawn["sigma"] / share.sqrt(), images)  # after the cut the standard deviation is drawn["sigma"]
        noise = torch.complex(*drawn["noise"].unbind(1)) * sigma
        seen = ifft(fft(power(signal(images), broadcast(drawn["exponent"], images)) + noise, dims) * kept, dims)
        return units(magnitude(seen.real, seen.imag))


def _measured(images: Tensor, own: Drawn) -> Tensor:
    """Of k-space along the last axis only the lines (b, n or more) that belong to this pose."""
    lines = own["lines"][:, : images.shape[-1]].reshape(len(images), *(1,) * (images.ndim - 2), -1)
    return ifft(fft(images, 1) * lines, 1)


def _ghosted(images: Tensor, own: Drawn) -> Tensor:
    n = images.shape[-1]
    line = torch.arange(n, device=images.device) - n // 2
    angle = 2 * math.pi * line / own["period"][:, None] + own["phase"][:, None]
    weight = 1 + own["strength"][:, None] * angle.cos()
    return ifft(fft(images, 1) * weight.reshape(len(images), *(1,) * (images.ndim - 2), n), 1)


def _box(longer: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, 1, *S) the lines that are kept, 1 / longer (B, d) of every side, and (B,) their share."""
    kept, share = torch.ones(len(longer), *(1,) * (len(size) + 1), device=longer.device), torch.ones(len(longer), device=longer.device)
    for axis, n in enumerate(size):
        distance = (torch.arange(n, device=longer.device) - n // 2).abs()
        inside = (distance <= n / 2 / longer[:, axis, None]).float()
        kept = kept * inside.reshape(len(longer), *(n if a == axis else 1 for a in range(-1, len(size))))
        share = share * inside.mean(1)
    return kept, share
