"""Changes of values that any modality knows: contrast, noise, resolution, holes. Strengths are in units of signal (0 air, 1 full)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.core.tensors import broadcast
from medgen.data.augment.change import Drawn, Intensity, between, check, rows_of, signal, units, whole


@dataclass(frozen=True)
class Contrast(Intensity):
    """Signal s becomes gain s^gamma: air stays air and order stays order.

    Args:
        gamma: largest logarithm of the exponent.
        gain: largest logarithm of the factor.
    """

    channels: Sequence[str] = ()
    gamma: float = 0.3
    gain: float = 0.1
    probability: float = 0.5

    def __post_init__(self) -> None:
        check(self, gamma=(0, 3), gain=(0, 3))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        return {"gamma": between(rng, -self.gamma, self.gamma).exp(), "gain": between(rng, -self.gain, self.gain).exp()}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        return units(broadcast(drawn["gain"], images) * power(signal(images), broadcast(drawn["gamma"], images)))


@dataclass(frozen=True)
class Noise(Intensity):
    """White noise: Gaussian, or Rician as in the magnitude of a complex MR image (Gudbjartsson and Patz 1995).

    Args:
        sigma: largest standard deviation.
        rician: |s + sigma (n1 + i n2)|, whose mean in air is sigma sqrt(pi / 2); else s + sigma n.
    """

    channels: Sequence[str] = ()
    sigma: float = 0.05
    rician: bool = False
    probability: float = 0.3

    def __post_init__(self) -> None:
        check(self, sigma=(0, 10))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        return {"sigma": between(rng, 0.0, self.sigma), "noise": rng.normal((*shape[:1], 1 + self.rician, *shape[1:]))}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        real, *imaginary = (broadcast(drawn["sigma"], images) * part for part in drawn["noise"].unbind(1))
        noisy = signal(images) + real
        return units(magnitude(noisy, *imaginary) if imaginary else noisy)


@dataclass(frozen=True)
class LowResolution(Intensity):
    """Thick slices: averages over boxes of several voxels along one axis, and linear interpolation back to the grid.

    Args:
        factor: largest thickness of a slice in voxels.
        axes: one of which is drawn (of a volume with two axes in plane: the third, [2]).
    """

    channels: Sequence[str] = ()
    factor: float = 4.0
    axes: Sequence[int] = (0, 1)
    probability: float = 0.2

    def __post_init__(self) -> None:
        check(self, factor=(1, 64), axes=(0, 2))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        if max(self.axes) >= len(shape) - 2:
            raise MedgenError(f"LowResolution has axis {max(self.axes)}, the images have the axes 0 to {len(shape) - 3}")
        return {"factor": between(rng, 1.0, self.factor), "axis": torch.tensor(self.axes)[whole(rng, 0, len(self.axes) - 1).cpu()]}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        return along(images, drawn, lambda x, own: torch.einsum("bij,bc...j->bc...i", thick(own["factor"], x.shape[-1]), x))


@dataclass(frozen=True)
class Cutout(Intensity):
    """A box without signal (DeVries and Taylor 2017).

    Args:
        size: largest share of each side; the smallest is half of it.
    """

    channels: Sequence[str] = ()
    size: float = 0.3
    probability: float = 0.2

    def __post_init__(self) -> None:
        check(self, size=(0, 1))

    def draw(self, rng: Rng, shape: Sequence[int]) -> Drawn:
        dims = len(shape) - 2
        return {"centre": between(rng, 0, 1, (dims,)), "size": between(rng, self.size / 2, self.size, (dims,))}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        hole = torch.ones((), dtype=torch.bool, device=images.device)
        for axis, n in enumerate(images.shape[2:]):
            place = (torch.arange(n, device=images.device) + 0.5) / n
            near = (place - drawn["centre"][:, axis, None]).abs() <= (drawn["size"][:, axis, None] / 2).clamp(min=0.5 / n)
            hole = hole & near.reshape(len(images), *(n if a == axis else 1 for a in range(-1, images.ndim - 2)))
        return torch.where(hole, -1.0, images)


def power(s: Tensor, exponent: Tensor) -> Tensor:
    """s^exponent, on a straight line from zero up to 0.001 and below: finite slopes, and 0 stays 0."""
    knee = 1e-3
    return torch.where(s > knee, s.clamp(min=knee) ** exponent, s * knee ** (exponent - 1))


def magnitude(real: Tensor, imaginary: Tensor) -> Tensor:
    """|real + i imaginary| with a finite slope at 0 (where it is 1e-8)."""
    return (real.square() + imaginary.square() + 1e-16).sqrt()


def along(images: Tensor, drawn: Drawn, change: Callable[[Tensor, Drawn], Tensor]) -> Tensor:
    """`change(images, drawn)` of (b, C, ..., n) images whose last axis is the one that was drawn for them, put back in place."""
    drawn_axes = drawn["axis"].cpu()
    for axis in range(images.ndim - 2):
        own = rows_of(drawn_axes == axis)
        if not own:
            continue
        rows = torch.tensor(own, device=images.device)
        changed = change(images[rows].movedim(axis + 2, -1), {name: value[rows] for name, value in drawn.items()})
        images = images.index_copy(0, rows, changed.movedim(-1, axis + 2))
    return images


def thick(factor: Tensor, n: int) -> Tensor:
    """(B, n, n) averages over boxes of `factor` (B,) voxels, the first of which begins at the edge, followed by linear interpolation."""
    factor, place = factor[:, None, None], torch.arange(n, device=factor.device, dtype=torch.float32)
    slices = place[None, :, None]
    inside = torch.minimum(place + 1, (slices + 1) * factor) - torch.maximum(place, slices * factor)
    inside = inside.clamp(min=0)
    down = inside / inside.sum(2, keepdim=True).clamp(min=1e-6)
    last = torch.ceil(n / factor - 1e-4) - 1
    where = ((place[None, :, None] + 0.5) / factor - 0.5).clamp(min=0).minimum(last)
    up = (1 - (where - place).abs()).clamp(min=0)
    return up @ down
