"""Does a feature space see what is wrong with images? Known corruptions in rising strength, and whether the distance rises with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics.sets import CMMD, FRECHET, KID, MMD, frechet_fits, standardised
from medgen.metrics.space import Space

FLOORS = 20  # draws of clean sets
LEAST = 8  # images of a set
MEASURES = (FRECHET, KID, MMD, CMMD)


@dataclass(frozen=True)
class Ladder:
    """One corruption.

    Attributes:
        name, unit: for the table.
        steps: strengths, the mildest first.
        apply: clean images (N, C, *S) in network units, strength, seed -> corrupted ones, each on its own.
    """

    name: str
    unit: str
    steps: tuple[float, ...]
    apply: Callable[[Tensor, float, int], Tensor]


@dataclass(frozen=True)
class Rung:
    """How a space and a distance fared with one corruption.

    Attributes:
        floor: the mean distance of clean sets of the same size; highest: the largest of 20 draws.
        clean: the distance of the very images that are corrupted, before they are.
        distances: at each step.
    """

    space: str
    measure: str
    ladder: str
    size: int
    floor: float
    highest: float
    clean: float
    distances: tuple[float, ...]

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of step number and distance, the same images uncorrupted being step 0: 1 if the distance always rises."""
        return spearman(range(len(self.distances) + 1), (self.clean, *self.distances))

    @property
    def separated(self) -> bool:
        """Whether the mildest step is farther than every one of 20 clean sets."""
        return self.distances[0] > self.highest

    @property
    def passed(self) -> bool:
        return self.separated and self.rank_correlation > 1 - 1e-9


def ladders() -> list[Ladder]:
    """What is asked of every space. `modes` drops a kind of image; it picks images instead of changing them, see `climbed`."""
    return [
        Ladder("blur", "sigma, voxels", (0.5, 1.0, 1.5, 2.0), blurred),
        Ladder("noise", "std, range 2", (0.02, 0.05, 0.1, 0.2), noisy),
        Ladder("anatomy removed", "radius / extent", (0.08, 0.12, 0.18, 0.25), removed),
        Ladder("contrast", "gamma", (1.15, 1.3, 1.6, 2.0), gamma),
        Ladder("mode dropped", "share of the brighter half", (0.4, 0.6, 0.8, 1.0), lambda images, strength, seed: images),
    ]


def climbed(space: Space, images: Tensor, among: Sequence[Ladder] | None = None, seed: int = 0, subjects: Sequence[str] = ()) -> list[Rung]:
    """Every corruption of some of the images (N, C, *S), by the distance of the rest from them.

    Half of the subjects (of the images, without subjects) are the reference. Of the other half, half of the images are corrupted; as many
    clean ones, 20 times drawn, are the floor. The distance should rise from that of the same images uncorrupted. For the dropped mode,
    which goes by mean brightness, images are picked from that half instead: ever fewer of its brighter ones.

    Raises:
        MedgenError: fewer than 32 images.
    """
    if len(images) < 4 * LEAST:
        raise MedgenError(f"a ladder needs {4 * LEAST} images, got {len(images)}")
    reference, pool = _parted(len(images), subjects, seed)
    size = len(pool) // 2
    features = space.features(images)
    picks = [pool[torch.from_numpy(generator(seed, 1, i).permutation(len(pool))[:size].copy())] for i in range(FLOORS)]
    rungs = []
    for ladder in ladders() if among is None else among:
        stages = [_stage(space, images, features, ladder, strength, pool, picks[0], seed) for strength in (0.0, *ladder.steps)]
        rungs += _rungs(space, ladder, features, reference, picks, stages)
    return rungs


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; 0 where all are equal."""
    a, b = (_ranks(np.asarray(values, float)) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else 0.0


def blurred(images: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Gaussian blur; sigma in voxels."""
    return _smoothed(images, sigma)


def noisy(images: Tensor, std: float, seed: int = 0) -> Tensor:
    """White noise."""
    noise = generator(seed, 2).standard_normal(tuple(images.shape), dtype=np.float32)
    return images + std * torch.from_numpy(noise).to(images)


def gamma(images: Tensor, power: float, seed: int = 0) -> Tensor:
    """Intensities in [0, 1] to a power: darker middle tones, the ends stay. What lies outside [-1, 1] stays too."""
    changed = 2 * ((images.clamp(-1, 1) + 1) / 2) ** power - 1
    return torch.where(images.abs() > 1, images, changed)


def removed(images: Tensor, radius: float, seed: int = 0) -> Tensor:
    """A ball somewhere in the body is smoothed away: filled with what a wide blur makes of its surroundings, under a soft edge.

    Args:
        radius: as a share of each axis.
    """
    filled = _smoothed(images, max(2.0, 1.5 * radius * min(images.shape[2:])))
    grids = torch.meshgrid(*(torch.linspace(0, 1, n) for n in images.shape[2:]), indexing="ij")
    parts = []
    for i, (image, smooth) in enumerate(zip(images, filled, strict=True)):
        centre = _somewhere(image, generator(seed, 3, i))
        distance = sum((grid - c).square() for grid, c in zip(grids, centre, strict=True)).sqrt()
        share = ((radius - distance) / (0.3 * radius) + 0.5).clamp(0, 1)
        parts.append(image + share.to(image) * (smooth - image))
    return torch.stack(parts)


def without_mode(images: Tensor, share: float, size: int, seed: int = 0) -> Tensor:
    """Rows (size,) of images (N, C, *S), N = 2 size, from which a share of those that belong to the brighter half is left out."""
    order = images.flatten(1).double().mean(1).argsort()
    dark, bright = (half[torch.from_numpy(generator(seed, 4, i).permutation(len(half)).copy())] for i, half in enumerate(order.chunk(2)))
    keep = round((1 - share) * size / 2)
    return torch.cat([bright[:keep], dark[: size - keep]])


def _stage(
    space: Space, images: Tensor, features: Tensor, ladder: Ladder, strength: float, pool: Tensor, picked: Tensor, seed: int
) -> Tensor:
    """Features of the corrupted set; at strength 0 of the set before."""
    if ladder.name == "mode dropped":
        return features[pool[without_mode(images[pool], strength, len(picked), seed)]]
    return space.features(ladder.apply(images[picked], strength, seed)) if strength else features[picked]


def _rungs(
    space: Space, ladder: Ladder, features: Tensor, reference: Tensor, picks: Sequence[Tensor], stages: Sequence[Tensor]
) -> list[Rung]:
    """By each distance that the numbers allow."""
    together = torch.cat([features, *stages])
    if space.standard:
        together = standardised(together, features)
    size, count, found = len(picks[0]), len(features), []
    for measure in MEASURES:
        if measure is FRECHET and not frechet_fits(size, features.shape[1]):
            continue
        ready = measure.prepare(together, together[:count])
        clean = [float(measure.between(ready, pick, reference)[0]) for pick in picks]
        rows = [torch.arange(size) + count + i * size for i in range(len(stages))]
        first, *steps = (float(measure.between(ready, row, reference)[0]) for row in rows)
        found.append(Rung(space.name, measure.names[0], ladder.name, size, sum(clean) / len(clean), max(clean), first, tuple(steps)))
    return found


def _parted(count: int, subjects: Sequence[str], seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the reference and of the rest, by subject; the rest is cut to an even number."""
    names = np.asarray(subjects, str) if len(subjects) else np.arange(count).astype(str)
    unique, unit = np.unique(names, return_inverse=True)
    first = np.isin(unit, generator(seed, 0).permutation(len(unique))[: len(unique) // 2])
    pool = np.flatnonzero(~first)
    return torch.from_numpy(np.flatnonzero(first)), torch.from_numpy(pool[: len(pool) // 2 * 2])


def _smoothed(images: Tensor, sigma: float) -> Tensor:
    """Gaussian, the border's values going on outside."""
    reach = max(1, math.ceil(3 * sigma))
    taps = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float32) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(images)
    for axis in range(2, images.ndim):
        rows = images.movedim(axis, -1)
        wide = functional.pad(rows.reshape(-1, 1, rows.shape[-1]), (reach, reach), mode="replicate")
        images = functional.conv1d(wide, taps[None, None]).reshape(rows.shape).movedim(-1, axis)
    return images


def _somewhere(image: Tensor, rng: np.random.Generator) -> list[float]:
    """A place where the image is brighter than its middle range, in shares of each axis; the middle of an image without contrast."""
    values = image.mean(0)
    inside = (values > (values.min() + values.max()) / 2).nonzero()
    if not len(inside):
        return [0.5] * values.ndim
    place = inside[int(rng.integers(len(inside)))]
    return [float(p) / max(1, n - 1) for p, n in zip(place, values.shape, strict=True)]


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
