"""How much of a lesion's contrast an image shows, and where structures are that should not be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv1d, max_pool2d, max_pool3d

from medgen.core.errors import MedgenError

SHELL = 2  # voxels around a lesion that its contrast is taken against
HALF = 0.5  # of the true contrast: the line between there and not there


@dataclass(frozen=True)
class Site:
    """A place with its surroundings.

    Attributes:
        box: the part of the grid that holds both.
        inside: bool in the box, the lesion or the place of one.
        shell: bool in the box, body around it that belongs to no lesion.
        shape: of the grid.
    """

    box: tuple[slice, ...]
    inside: Tensor
    shell: Tensor
    shape: tuple[int, ...]

    def mean(self, image: Tensor) -> float:
        """Of an image (*S) inside."""
        return float(image[self.box][self.inside].double().mean())

    def around(self, image: Tensor) -> float:
        """Mean of an image (*S) over the shell."""
        return float(image[self.box][self.shell].double().mean())

    def contrast(self, image: Tensor) -> float:
        """Mean inside minus mean of the shell, of an image (*S)."""
        return self.mean(image) - self.around(image)

    def mask(self) -> Tensor:
        """(*S) bool, the inside on the whole grid."""
        whole = torch.zeros(self.shape, dtype=torch.bool)
        whole[self.box] = self.inside
        return whole

    @property
    def centre(self) -> tuple[int, ...]:
        """The middle voxel of the inside's bounding box."""
        at = torch.nonzero(self.inside)
        middle = (at.amin(0) + at.amax(0)) // 2
        return tuple(int(m) + part.start for m, part in zip(middle, self.box, strict=True))


def grown(mask: Tensor, voxels: int = 1) -> Tensor:
    """(*S) bool widened by cubes of `voxels` to each side."""
    pool = {2: max_pool2d, 3: max_pool3d}[mask.ndim]
    out = mask[None, None].float()
    for _ in range(voxels):
        out = pool(out, 3, 1, 1)
    return out[0, 0] > 0


def shrunk(mask: Tensor, voxels: int = 1) -> Tensor:
    """(*S) bool narrowed by cubes of `voxels`; outside the grid is not in the mask."""
    rest = torch.ones([n + 2 * voxels for n in mask.shape], dtype=torch.bool)
    middle = tuple(slice(voxels, -voxels) for _ in mask.shape)
    rest[middle] = ~mask
    return ~grown(rest, voxels)[middle]


def site(inside: Tensor, body: Tensor, lesions: Tensor | None = None, width: int = SHELL) -> Site | None:
    """`inside` (*S) with its shell of `width` voxels in the body and outside `lesions`, one voxel of partial volume left out between; None
    where fewer than 4 voxels of surroundings are left."""
    at = torch.nonzero(inside)
    ends = zip(at.amin(0).tolist(), at.amax(0).tolist(), inside.shape, strict=True)
    box = tuple(slice(max(a - width - 2, 0), min(b + width + 3, n)) for a, b, n in ends)
    near = grown(inside[box])
    shell = grown(near, width) & ~near & body[box]
    if lesions is not None:
        shell &= ~grown(lesions[box])
    return Site(box, inside[box].clone(), shell, tuple(inside.shape)) if int(shell.sum()) >= 4 else None


def retained(result: Tensor, place: Site, there: Tensor, without: Tensor | None = None) -> float:
    """(c(result) - c(without)) / (c(there) - c(without)) with the contrast c at a place: 1 where a result (*S) shows the whole lesion, 0
    where it shows what is there without. An unknown `without` counts as no contrast.

    Raises:
        MedgenError: the truth has no contrast here, so that nothing could be retained.
    """
    base = 0.0 if without is None else place.contrast(without)
    full = place.contrast(there) - base
    if abs(full) < 1e-6:
        raise MedgenError("the lesion has no contrast in the true image; it cannot be told whether a result shows it")
    return (place.contrast(result) - base) / full


def moved(mask: Tensor, allowed: Tensor, picks: Tensor, tries: int = 200) -> Iterator[Tensor]:
    """Copies of `mask` at other places that lie wholly in `allowed`, which must not include what they should avoid, and not in each other.

    Args:
        picks: (N,) uniform numbers in [0, 1) that choose; there are at most N copies, as some find no place in `tries` steps.
    """
    at = torch.nonzero(mask)
    shape = at - at.amin(0)
    places = torch.nonzero(allowed)
    limit = torch.tensor(mask.shape) - 1 - shape.amax(0)
    places = places[(places <= limit).all(1)]
    free = allowed.clone()
    for pick in picks.tolist():
        first = int(pick * len(places)) if len(places) else 0
        for k in range(min(tries, len(places))):
            voxels = tuple((places[(first + k * 7919) % len(places)] + shape).T)
            if bool(free[voxels].all()):
                one = torch.zeros_like(mask)
                one[voxels] = True
                free &= ~one
                yield one
                break


def blob(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> Tensor:
    """(*S) in [0, 1]: an ellipsoid with an edge that falls over one voxel, as partial volume does."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    scaled = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)).sqrt()
    return ((1 - scaled) * min(radii) + 0.5).clamp(0, 1)


def filled_in(image: Tensor, mask: Tensor, steps: int = 400) -> Tensor:
    """`image` (*S) with the voxels of `mask` replaced by the membrane through their surroundings (Laplace's equation, by averaging of
    neighbours): a lesion removed without a trace of its mean."""
    region = torch.nonzero(mask)
    box = tuple(slice(max(a - 1, 0), b + 2) for a, b in zip(region.amin(0).tolist(), region.amax(0).tolist(), strict=True))
    part, inside = image[box].double().clone(), mask[box]
    part[inside] = part[~inside].mean()
    for _ in range(steps):
        sides = [
            torch.roll(_padded(part, axis), shift, axis).narrow(axis, 1, part.shape[axis]) for axis in range(part.ndim) for shift in (1, -1)
        ]
        part[inside] = (sum(sides) / len(sides))[inside]
    out = image.clone()
    out[box] = part.to(image.dtype)
    return out


def _neighbours_mean(values: Tensor) -> Tensor:
    """Of the two neighbours along each axis; beyond the border the border goes on."""
    total = torch.zeros_like(values)
    for axis in range(values.ndim):
        wide = _padded(values, axis)
        total += wide.narrow(axis, 0, values.shape[axis]) + wide.narrow(axis, 2, values.shape[axis])
    return total / (2 * values.ndim)


def _padded(values: Tensor, axis: int) -> Tensor:
    first, last = values.narrow(axis, 0, 1), values.narrow(axis, values.shape[axis] - 1, 1)
    return torch.cat([first, values, last], axis)


def local_contrast(image: Tensor, body: Tensor, radii: tuple[float, ...]) -> Tensor:
    """(*S) float64: the contrast of an ellipsoid of these radii (voxels) that would look like this at each voxel of the body; 0 outside.

    A difference of Gaussians over the body only, scaled so that a lone `blob` gives its contrast at its centre (to a few percent).
    """
    near, far = tuple(r / 2 for r in radii), tuple(1.5 * r for r in radii)
    size = tuple(2 * round(4.5 * r) + 3 for r in radii)
    one = blob(size, tuple((n - 1) / 2 for n in size), radii)
    middle = tuple(n // 2 for n in size)
    unit = float((smoothed(one, near) - smoothed(one, far))[middle])
    return (smoothed(image, near, body) - smoothed(image, far, body)) / unit


def smoothed(image: Tensor, sigma: float | tuple[float, ...], mask: Tensor | None = None) -> Tensor:
    """(*S) float64 Gaussian mean, one sigma (voxels) for all axes or one each; with a mask of the voxels in it only (normalised
    convolution), 0 outside."""
    if mask is not None:
        inside = mask.double()
        return torch.where(mask, smoothed(image.double() * inside, sigma) / smoothed(inside, sigma).clamp_min(1e-6), 0.0)
    sigmas = sigma if isinstance(sigma, tuple) else (sigma,) * image.ndim
    out = image.double()
    for axis, width in enumerate(sigmas):
        radius = max(1, round(3 * width))
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / width) ** 2)
        line = out.movedim(axis, -1)
        flat = conv1d(line.reshape(-1, 1, line.shape[-1]), (weights / weights.sum())[None, None], padding=radius)
        out = flat.reshape(line.shape).movedim(-1, axis)
    return out
