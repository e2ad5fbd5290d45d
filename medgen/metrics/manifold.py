"""How the manifolds of two sets of features overlap: improved precision and recall, density and coverage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.metrics.kernels import check_features, squared_distances

NEIGHBOUR, DENSE_NEIGHBOUR = 3, 5  # of precision and recall, of density and coverage: the papers' choices
ROWS = 1024
TIE = 1e-12  # of the largest squared distance: what counts as equal


class Manifold(NamedTuple):
    """Attributes:
    precision: share of made images inside the reals' manifold, the union of balls out to each real's 3rd neighbour.
    recall: share of reals inside the manifold of what was made. Both: Kynkaanniemi et al. 2019, equation 1.
    density: how many balls (out to the 5th neighbour) of reals hold a made image, over 5; may exceed 1.
    coverage: share of reals whose ball holds a made image. Both: Naeem et al. 2020, equations 3 and 4.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@torch.no_grad()
def manifold(made: Tensor, reals: Tensor, k: int = NEIGHBOUR, dense: int = DENSE_NEIGHBOUR) -> Manifold:
    """Of features (N, F) and (M, F). A ball has its edge; a real is no neighbour of itself. In blocks of rows.

    Raises:
        MedgenError: fewer than k + 1 or dense + 1 rows, or as `medgen.metrics.kernels.check_features`.
    """
    made, reals = check_features(made, reals)
    if min(len(made), len(reals)) <= max(k, dense):
        raise MedgenError(
            f"the {max(k, dense)}th neighbour needs {max(k, dense) + 1} images in either set, got {len(made)} and {len(reals)}"
        )
    scale = TIE * float((torch.cat([made, reals]) - reals.mean(0)).square().sum(1).max())
    own, others = radii(reals, (k, dense)) + scale, radii(made, (k,)) + scale
    inside, held = torch.zeros(len(made), 2, dtype=torch.float64), torch.zeros(len(reals), 2, dtype=torch.bool)
    for first in range(0, len(made), ROWS):
        rows = slice(first, first + ROWS)
        apart = squared_distances(made[rows], reals)
        inside[rows, 0] = (apart <= own[:, 0]).any(1).double()
        within = apart <= own[:, 1]
        inside[rows, 1] = within.sum(1).double() / dense
        held[:, 0] |= (apart <= others[rows]).any(0)
        held[:, 1] |= within.any(0)
    means = inside.mean(0), held.double().mean(0)
    return Manifold(float(means[0][0]), float(means[1][0]), float(means[0][1]), float(means[1][1]))


def radii(x: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Squared distances (N, len(ks)) of each row to its k-th neighbours, itself left out."""
    return torch.cat([_radii(rows, x, first, ks) for first, rows in zip(range(0, len(x), ROWS), x.split(ROWS), strict=True)])


@torch.no_grad()
def realism(made: Tensor, reals: Tensor, k: int = NEIGHBOUR) -> Tensor:
    """(N,): the largest ratio of a real's ball to the distance of the made image from it: 1 at the manifold's edge, less outside.

    Kynkaanniemi et al. 2019, equation 3, with their choice to leave out the half of the reals that have the largest balls.
    """
    made, reals = check_features(made, reals)
    balls = radii(reals, (min(k, len(reals) - 1),))[:, 0]
    small = balls <= balls.median()
    ratios = [(balls[small] / squared_distances(rows, reals[small]).clamp(min=1e-300)).amax(1) for rows in made.split(ROWS)]
    return torch.cat(ratios).sqrt()


def _radii(rows: Tensor, x: Tensor, first: int, ks: tuple[int, ...]) -> Tensor:
    apart = squared_distances(rows, x)
    apart[torch.arange(len(rows)), first + torch.arange(len(rows))] = -1.0
    ordered = apart.topk(max(ks) + 1, dim=1, largest=False).values
    return ordered[:, list(ks)]
