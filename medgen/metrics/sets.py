"""How far made images are from real ones in a feature space, beside how far real ones are: distance, floor, score, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.random import generator
from medgen.metrics import kernels
from medgen.metrics.feature import frechet
from medgen.metrics.manifold import DENSE_NEIGHBOUR, manifold
from medgen.metrics.statistics import Z

FEWEST = 2  # rows per dimension that a Frechet distance needs
SUBSETS = 4  # of the reference reals, whose mean is the floor
DRAWS = 100
SMALLEST_SPREAD = 1e-3  # of a feature, as a share of its mean: below it is constant for comparison


class Bounds(NamedTuple):
    """A value with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """Something of two sets of features that can be measured again and again on parts of them.

    Attributes:
        names: of its numbers; the last one makes the score.
        meaning: in a sentence.
        prepare: features of all sets together (N, F), and the reals' among them -> what `between` takes rows of.
        between: prepared, rows of one set, rows of the other -> (len(names),).
        limits: name -> values that it cannot leave, nor its interval.
    """

    names: tuple[str, ...]
    meaning: str
    prepare: Callable[[Tensor, Tensor], Tensor]
    between: Callable[[Tensor, Tensor, Tensor], Tensor]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sets:
    """Features of what was made and of two sets of reals, in one space.

    Attributes:
        made, reference, held: (N, F), (M, F), (K, F). Both of the others are compared with `held`; `reference` makes the floor.
        units: a name for each row of the three; rows of one name (the slices of a subject) are resampled together.
        standard: divide each feature by the reals' spread, see `standardised`.

    Raises:
        MedgenError: fewer than 4 units in a set; features that are not finite or do not fit each other.
    """

    made: Tensor
    reference: Tensor
    held: Tensor
    units: tuple[Sequence[str], Sequence[str], Sequence[str]]
    standard: bool = False

    def __post_init__(self):
        for part, names, features in zip(("made", "reference", "held-out"), self.units, self._parts, strict=True):
            kernels.check_features(features, self.held)
            if len(names) != len(features) or len(set(names)) < 4:
                raise MedgenError(f"the {part} set has {len(set(names))} subjects for {len(features)} images; at least 4 are needed")

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.made, self.reference, self.held

    @property
    def size(self) -> int:
        """Images in either set of a comparison: the floor must have as many as the distance."""
        return min(len(self.made), len(self.reference))

    @cached_property
    def features(self) -> Tensor:
        """All sets, one after the other."""
        together = torch.cat([part.double() for part in self._parts])
        return standardised(together, self.reals(together)) if self.standard else together

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each set is in `features`."""
        return torch.arange(sum(map(len, self._parts))).split([len(part) for part in self._parts])

    def reals(self, together: Tensor) -> Tensor:
        return together[len(self.made) :]

    def halves(self, seed: int, draw: int) -> list[Tensor]:
        """Rows of half of the units of each set, drawn without replacement."""
        found = []
        for place, (names, rows) in enumerate(zip(self.units, self.rows, strict=True)):
            unique, unit = np.unique(np.asarray(names, str), return_inverse=True)
            picked = generator(seed, draw, place).permutation(len(unique))[: len(unique) // 2]
            found.append(rows[torch.from_numpy(np.isin(unit, picked))])
        return found


class Result(NamedTuple):
    """Attributes:
    value, floor: of each name of the measure.
    score: of the last one, value over floor: 1 is as near to held-out reals as other reals are.
    size: images in either set.
    """

    value: dict[str, Bounds]
    floor: dict[str, Bounds]
    score: Bounds
    size: int


@torch.no_grad()
def measured(sets: Sets, measure: Measure, seed: int = 0, draws: int = DRAWS) -> Result:
    """A measure of made against held-out images, of as many reference images against the same, and their ratio, with 95 % intervals.

    The floor is the mean of 4 random subsets of the reference that have as many images. Intervals: normal ones with the spread over
    `draws` halves of all three sets, drawn by unit without replacement (the delete-d jackknife, Shao and Wu 1989, which for halves
    needs no rescaling). A bootstrap with replacement would move neighbours and covariances: its copies are at distance 0. The interval
    of the score is of its logarithm. What it should hold is the mean over samples of this size, not the limit of endless ones.
    """
    ready = measure.prepare(sets.features, sets.reals(sets.features))
    value, floor = _pair(ready, measure, sets.rows, generator(seed, 0))
    drawn = [_pair(ready, measure, sets.halves(seed, i), generator(seed, 1, i)) for i in range(draws)]
    values, floors = (torch.stack(column) for column in zip(*drawn, strict=True))
    score = Bounds(math.nan, math.nan, math.nan)
    if float(floor[-1]) > 1e-12 and float(value[-1]) > 0:
        relative = _relative(values[:, -1], value[-1]) - _relative(floors[:, -1], floor[-1])
        reach, ratio = math.exp(Z * float(relative.std())), float(value[-1] / floor[-1])
        score = Bounds(ratio, ratio / reach, ratio * reach)
    return Result(_bounds(measure, value, values), _bounds(measure, floor, floors), score, sets.size)


def standardised(features: Tensor, reals: Tensor) -> Tensor:
    """asinh of each feature less the reals' mean over their standard deviation, which counts as at least 0.1 % of the mean's size.

    asinh(z) is z for small and a logarithm for large z: a feature in which reals hardly differ (their darkest voxel) would otherwise
    stand for the whole distance as soon as it is off.
    """
    mean = reals.mean(0)
    least = SMALLEST_SPREAD * mean.abs() + 1e-9
    return ((features - mean) / torch.maximum(reals.std(0), least)).asinh()


def frechet_fits(size: int, dimension: int) -> bool:
    return size >= FEWEST * dimension


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """`medgen.metrics.feature.frechet` of features (N, F), (M, F), where there are enough of them for a covariance.

    Raises:
        MedgenError: fewer than 2 F rows.
    """
    a, b = kernels.check_features(a, b)
    size, dimension = min(len(a), len(b)), a.shape[1]
    if not frechet_fits(size, dimension):
        raise MedgenError(
            f"a Frechet distance of {dimension} dimensions needs {FEWEST * dimension} images in either set, got {size}: its value would be "
            "mostly the error of the covariances; use KID (medgen.metrics.kernels.kid), which is unbiased"
        )
    return frechet(a, b)


def _pair(ready: Tensor, measure: Measure, rows: Sequence[Tensor], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The measure of what was made, and the mean of that of subsets of the reference, with as many images."""
    made, reference, held = rows
    size = min(len(made), len(reference))
    subsets = [reference[torch.from_numpy(rng.permutation(len(reference))[:size].copy())] for _ in range(SUBSETS)]
    if size == len(reference):
        subsets = subsets[:1]
    floor = torch.stack([measure.between(ready, subset, held) for subset in subsets]).mean(0)
    return measure.between(ready, made[:size], held), floor


def _relative(halves: Tensor, whole: Tensor) -> Tensor:
    """Deviations of halves as a share of the distance: of the geometric mean of the whole's and the halves' own, which is larger (bias).

    By the halves' alone intervals of the score are too short (they held it in 87 to 95 % of simulations), by the whole's too long (99 %).
    """
    return (halves - halves.mean()) / (halves.mean() * whole).sqrt()


def _bounds(measure: Measure, value: Tensor, values: Tensor) -> dict[str, Bounds]:
    found = {}
    for name, middle, reach in zip(measure.names, value.tolist(), (Z * values.std(0)).tolist(), strict=True):
        low, high = measure.limits.get(name, (-math.inf, math.inf))
        found[name] = Bounds(middle, max(low, middle - reach), min(high, middle + reach))
    return found


def _gram(
    kernel: Callable[[Tensor], kernels.Kernel], change: Callable[[Tensor], Tensor] = lambda x: x
) -> Callable[[Tensor, Tensor], Tensor]:
    def prepare(features: Tensor, reals: Tensor) -> Tensor:
        return kernel(change(reals))(change(features), change(features))

    return prepare


def _discrepancy(scale: float = 1.0) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Of a matrix of kernel values: the unbiased estimate, and the one with the diagonals, which is never negative."""

    def between(gram: Tensor, a: Tensor, b: Tensor) -> Tensor:
        own, other, cross = gram[a][:, a], gram[b][:, b], gram[a][:, b].mean()
        apart = sum((k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (own, other))
        return scale * torch.stack([apart - 2 * cross, (own.mean() + other.mean() - 2 * cross).clamp(min=0)])

    return between


def _overlap(prepared: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor(manifold(prepared[a], prepared[b]), dtype=torch.float64)


SCORED = "Its score is a ratio of the estimates with the kernel's diagonal, which are positive."
FRECHET = Measure(
    ("Frechet",),
    "squared distance of Gaussians fitted to the features (Dowson and Landau 1982); grows as images become few",
    lambda features, reals: features,
    lambda features, a, b: torch.tensor([frechet(features[a], features[b])], dtype=torch.float64),
    {"Frechet": (0, math.inf)},
)
KID = Measure(
    ("KID", "KID with diagonal"),
    f"squared discrepancy with the kernel (x.y / F + 1)^3, unbiased (Binkowski et al. 2018): 0 on average for equal sets. {SCORED}",
    _gram(lambda reals: kernels.polynomial),
    _discrepancy(),
)
MMD = Measure(
    ("MMD", "MMD with diagonal"),
    f"squared discrepancy with a Gaussian kernel as wide as the median distance of two reals, unbiased (Gretton et al. 2012). {SCORED}",
    _gram(lambda reals: kernels.gaussian(kernels.median_distance(reals))),
    _discrepancy(),
)
CMMD = Measure(
    ("CMMD", "CMMD with diagonal"),
    f"1000 times the discrepancy of features of length 1 with a Gaussian kernel of width 10, unbiased (Jayasumana et al. 2024). {SCORED}",
    _gram(lambda reals: kernels.gaussian(kernels.CMMD_SIGMA), kernels.unit_length),
    _discrepancy(kernels.CMMD_SCALE),
)
OVERLAP = Measure(
    ("precision", "recall", "density", "coverage"),
    f"shares inside the other set's manifold of balls out to the 3rd (density and coverage: {DENSE_NEIGHBOUR}th) neighbour",
    lambda features, reals: features,
    _overlap,
    {"precision": (0, 1), "recall": (0, 1), "density": (0, math.inf), "coverage": (0, 1)},
)
