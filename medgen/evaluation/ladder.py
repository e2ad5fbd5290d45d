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

SPLITS = 50  # of the subjects into reference and rest
OFTEN = 0.95  # of the splits: a step is seen if so many distances lie above this quantile of the clean ones
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
        size: images in a corrupted set.
        distances: (splits, 1 + steps) from the reference: of the clean images, and of the same images at each step.
    """

    space: str
    measure: str
    ladder: str
    size: int
    distances: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """(1 + steps,) over the splits."""
        return self.distances.mean(0)

    @property
    def highest(self) -> float:
        """What a clean set stays below in 95 % of the splits."""
        return float(np.quantile(self.distances[:, 0], OFTEN))

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of step number and mean distance, the clean images being step 0: 1 if the distance always rises."""
        return spearman(range(len(self.means)), self.means)

    @property
    def power(self) -> np.ndarray:
        """(steps,) the share of the splits in which a step is farther than 95 % of clean sets."""
        return (self.distances[:, 1:] > self.highest).mean(0)

    @property
    def seen(self) -> int | None:
        """The first step, counted from 1, from which on 95 % of the splits see the corruption; None if the last is not."""
        late = np.flatnonzero(self.power < OFTEN)
        first = 1 if not len(late) else int(late[-1]) + 2
        return first if first <= len(self.power) else None

    @property
    def passed(self) -> bool:
        """Ranked correctly, and seen at the last step at least."""
        return self.seen is not None and self.rank_correlation > 1 - 1e-9


def ladders() -> list[Ladder]:
    """What is asked of every space. The last one drops a kind of image: it picks images instead of changing them, see `climbed`."""
    return [
        Ladder("blur", "sigma, voxels", (0.5, 1.0, 1.5, 2.0), blurred),
        Ladder("noise", "std, range 2", (0.02, 0.05, 0.1, 0.2), noisy),
        Ladder("anatomy removed", "radius / extent", (0.08, 0.12, 0.18, 0.25), removed),
        Ladder("contrast", "gamma", (1.15, 1.3, 1.6, 2.0), gamma),
        Ladder("mode dropped", "share of the brighter half", (0.4, 0.6, 0.8, 1.0), lambda images, strength, seed: images),
    ]


def climbed(space: Space, images: Tensor, among: Sequence[Ladder] | None = None, seed: int = 0, subjects: Sequence[str] = ()) -> list[Rung]:
    """Every corruption of some of the images (N, C, *S), by the distance of the rest from them.

    Half of the subjects (of the images, without subjects) are the reference; of the images of the other half, half are corrupted. That is
    done for 50 splits, so that it is not one split's luck which distance rises. For the dropped mode, which goes by mean brightness, images
    are picked from the other half instead: ever fewer of its brighter ones.

    Raises:
        MedgenError: fewer than 32 images.
    """
    if len(images) < 4 * LEAST:
        raise MedgenError(f"a ladder needs {4 * LEAST} images, got {len(images)}")
    splits = [_parted(len(images), subjects, seed, i) for i in range(SPLITS)]
    clean, found = space.features(images), []
    for ladder in ladders() if among is None else among:
        if ladder.name == "mode dropped":
            stages = [clean]
            rows = [
                [pool[without_mode(images[pool], share, len(pool) // 2, seed)] for share in (0.0, *ladder.steps)] for _, pool, _ in splits
            ]
        else:
            stages = [clean, *(space.features(ladder.apply(images, strength, seed)) for strength in ladder.steps)]
            rows = [[pick + i * len(images) for i in range(len(stages))] for _, _, pick in splits]
        found += _rungs(space, ladder, stages, [reference for reference, _, _ in splits], rows)
    return found


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


def _rungs(
    space: Space, ladder: Ladder, stages: Sequence[Tensor], references: Sequence[Tensor], rows: Sequence[Sequence[Tensor]]
) -> list[Rung]:
    """By each distance that the numbers allow. `rows` of the stages one after the other, for each split and step."""
    clean, together = stages[0], torch.cat(list(stages))
    if space.standard:
        together = standardised(together, clean)
    size, found = len(rows[0][0]), []
    for measure in MEASURES:
        if measure is FRECHET and not frechet_fits(size, clean.shape[1]):
            continue
        ready = measure.prepare(together, together[: len(clean)])
        distances = [
            [float(measure.between(ready, row, reference)[0]) for row in steps] for steps, reference in zip(rows, references, strict=True)
        ]
        found.append(Rung(space.name, measure.names[0], ladder.name, size, np.asarray(distances)))
    return found


def _parted(count: int, subjects: Sequence[str], seed: int, split: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the reference, of the rest, and of half of the rest: by subject; the rest is cut to an even number."""
    names = np.asarray(subjects, str) if len(subjects) else np.arange(count).astype(str)
    unique, unit = np.unique(names, return_inverse=True)
    first = np.isin(unit, generator(seed, 0, split).permutation(len(unique))[: len(unique) // 2])
    pool = np.flatnonzero(~first)
    pool = pool[: len(pool) // 2 * 2]
    pick = pool[generator(seed, 1, split).permutation(len(pool))[: len(pool) // 2]]
    return torch.from_numpy(np.flatnonzero(first)), torch.from_numpy(pool), torch.from_numpy(pick.copy())


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
