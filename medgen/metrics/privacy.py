"""Whether images are copies of training images, and whether a score tells who was in the training set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.metrics.decisions import auroc
from medgen.metrics.statistics import Z

OTHERS = 5  # other subjects whose nearest images say how near is usual for an image
SMALLEST = 1e-12  # of a squared error, under the logarithm
Block = tuple[Tensor, Sequence[str]]


class Neighbours(NamedTuple):
    """Attributes:
    distances: (N,) float64 root-mean-square difference to the nearest training image.
    relative: (N,) the same over the mean distance to the nearest images of the 5 nearest other subjects: near 1 where an image belongs
        to nobody, near 0 for a copy. A blurred image is near to everybody and stays near 1.
    rows: (N,) the nearest training image.
    """

    distances: Tensor
    relative: Tensor
    rows: Tensor


@torch.no_grad()
def nearest_training(images: Tensor, training: Iterable[Block]) -> Neighbours:
    """The nearest training image of each image, and how much nearer it is than those of other people (Carlini et al. 2023, section 4.2).

    Args:
        images: (N, ...) images or features.
        training: blocks of the same kind, (M, ...) and the subject of each row, at least two subjects in all. One block is held at a
            time; the answer does not depend on how the training set is cut into them.

    Raises:
        MedgenError: other shapes, one subject, values that are not finite.
    """
    search = _Search(images.flatten(1))
    for block, subjects in training:
        if images.shape[1:] != block.shape[1:] or len(subjects) != len(block):
            raise MedgenError(
                f"images of shape {tuple(images.shape[1:])} need training images of that shape and the subject of each, got "
                f"{len(block)} of shape {tuple(block.shape[1:])} and {len(subjects)} subjects"
            )
        search.see(block.flatten(1), subjects)
    return search.found()


class _Search:
    """What is kept of the training images that were seen: of each image the nearest one, and the nearest of the nearest subjects."""

    def __init__(self, images: Tensor):
        self.images, n = images.double(), len(images)
        self.norms = _norms(self.images)
        self.seen, self.places = 0, {}  # training images; subject -> its number
        self.squares = torch.full((n,), math.inf, dtype=torch.float64)
        self.rows, self.owners = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)
        self.distances = torch.zeros(n, dtype=torch.float64)
        self.near = torch.full((n, OTHERS + 1), math.inf, dtype=torch.float64)  # mean squares; one more, which may be the nearest one's
        self.whose = torch.full((n, OTHERS + 1), -1)

    def see(self, block: Tensor, subjects: Sequence[str]) -> None:
        block = block.double()
        owners = torch.tensor([self.places.setdefault(name, len(self.places)) for name in subjects])
        squares = (self.norms[:, None] + _norms(block) - 2 * (self.images @ block.T)).clamp(min=0) / block.shape[1]
        if not bool(torch.isfinite(squares).all()):
            raise MedgenError("an image holds NaN or infinite values; repair it before it is compared with training images")
        least, rows = squares.min(1)
        better = (least < self.squares).nonzero()[:, 0]
        rows = rows[better]
        self.squares[better], self.rows[better], self.owners[better] = least[better], self.seen + rows, owners[rows]
        for i, row in zip(better.tolist(), rows.tolist(), strict=True):  # once more by difference: a copy gives exactly 0
            self.distances[i] = (self.images[i] - block[row]).square().mean().sqrt()
        self._keep(squares, owners)
        self.seen += len(block)

    def _keep(self, squares: Tensor, owners: Tensor) -> None:
        """The nearest subjects among those that are kept and those of a block: a subject that is left out of so many stays out."""
        own, columns = owners.unique(return_inverse=True)
        of_subject = torch.full((len(squares), len(own)), math.inf, dtype=torch.float64)
        of_subject.scatter_reduce_(1, columns.expand(len(squares), -1), squares, "amin")
        at = torch.searchsorted(own, self.whose.clamp(min=0)).clamp(max=len(own) - 1)
        again = own[at] == self.whose
        of_subject.scatter_reduce_(1, at, torch.where(again, self.near, math.inf), "amin")
        near = torch.cat([torch.where(again, math.inf, self.near), of_subject], 1)
        whose = torch.cat([self.whose, own.expand(len(squares), -1)], 1)
        self.near, order = near.topk(OTHERS + 1, largest=False)
        self.whose = whose.gather(1, order)

    def found(self) -> Neighbours:
        if len(self.places) < 2:
            raise MedgenError(f"the nearest images of others need training images of at least two subjects, got {len(self.places)}")
        of_others = torch.where(self.whose == self.owners[:, None], math.inf, self.near)
        others = of_others.topk(min(OTHERS, len(self.places) - 1), largest=False).values.sqrt().mean(1)
        return Neighbours(self.distances, self.distances / others.clamp(min=1e-12), self.rows)


@dataclass(frozen=True)
class Memorised:
    """How many samples are nearer to the training set than new images are.

    Attributes:
        threshold: a low order statistic of the held-out images' distances.
        expected: share of new images below it: r / (H + 1) for the r-th of H, whatever the distribution.
        count, n: samples below it, and all samples.
        rate: count / n.
        excess: (rate - expected) / (1 - expected), at least 0: the share that the false rate does not explain.
        interval: of `excess`, 95 %, from the exact binomial interval of the rate.
        p: one-sided, that new images would have as many below.
    """

    threshold: float
    expected: float
    count: int
    n: int
    rate: float
    excess: float
    interval: tuple[float, float]
    p: float


def memorised(
    samples: Sequence[float], held_out: Sequence[float], quantile: float = 0.05, subjects: Sequence[str] | None = None
) -> Memorised:
    """Memorisation rate of samples at a quantile of held-out images.

    The threshold is the r-th smallest of H held-out distances, r = quantile (H + 1) rounded down, at least 1. The chance that a new
    image lies below is Beta(r, H + 1 - r), so the count among n new images is beta-binomial: p is exact for any distribution (the
    exceedance test, Rosenbaum 1954). Images of a subject are alike: with `subjects`, of each held-out image, p counts H as
    `effective_count` of them, and is no longer exact.

    Raises:
        MedgenError: no values, or values that are not finite.
    """
    made, new = np.asarray(samples, float), np.sort(np.asarray(held_out, float))
    if not len(made) or not len(new) or not (np.isfinite(made).all() and np.isfinite(new).all()):
        raise MedgenError(f"a memorisation rate needs finite distances of samples and of held-out images, got {len(made)} and {len(new)}")
    r = max(1, int(quantile * (len(new) + 1)))
    threshold, expected = float(new[r - 1]), r / (len(new) + 1)
    count, n = int((made < threshold).sum()), len(made)
    low, high = binomial_interval(count, n)
    excess, lower, upper = (min(1.0, max(0.0, (rate - expected) / (1 - expected))) for rate in (count / n, low, high))
    units = 1 + (len(new) if subjects is None else effective_count(held_out, subjects))
    chance = max(expected, 1 / units)  # below the least of so many units
    p = beta_binomial_tail(count, n, chance * units, (1 - chance) * units)
    return Memorised(threshold, expected, count, n, count / n, excess, (lower, upper), p)


def effective_count(values: Sequence[float], subjects: Sequence[str]) -> float:
    """How many independent values several per subject are worth: N / (1 + (m - 1) rho), where m is their usual number for a subject and
    rho the intraclass correlation of their ranks, by the analysis of variance (Kish 1965; Donner 1986).
    """
    ranks = np.argsort(np.argsort(np.asarray(values, float), kind="stable"), kind="stable").astype(float)
    _, owner, sizes = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    n, k = len(ranks), len(sizes)
    if k in (1, n):
        return float(k)
    means = np.bincount(owner, ranks) / sizes
    between = float((sizes * (means - ranks.mean()) ** 2).sum()) / (k - 1)
    within = float(((ranks - means[owner]) ** 2).sum()) / (n - k)
    usual = (n - float((sizes**2).sum()) / n) / (k - 1)
    alike = min(1.0, max(0.0, (between - within) / (between + (usual - 1) * within)))
    return n / (1 + (usual - 1) * alike)


def binomial_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share: Clopper and Pearson 1934."""
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else _bisected(lambda p: _binomial_tail(count, n, p) < tail)
    high = 1.0 if count == n else _bisected(lambda p: _binomial_tail(count + 1, n, p) < 1 - tail)
    return low, high


def beta_binomial_tail(count: int, n: int, a: float, b: float) -> float:
    """P(K >= count) of K binomial with n trials and a chance that is Beta(a, b)."""

    if count <= 0:
        return 1.0
    k = np.arange(count, n + 1)
    inside = [math.lgamma(i + a) + math.lgamma(n - i + b) for i in k.tolist()]
    whole = math.lgamma(n + a + b) + math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return min(1.0, float(np.exp(_log_choose(n)[count:] + inside - whole).sum()))


class Membership(NamedTuple):
    """Attributes:
    auc: chance that a member's score is above that of somebody else.
    interval: 95 %; None below 2 of a kind.
    members, others: subjects.
    """

    auc: float
    interval: tuple[float, float] | None
    members: int
    others: int


def membership(members: Sequence[float], others: Sequence[float]) -> Membership:
    """Area under the ROC curve of a score (one per subject) that should tell members of the training set from others.

    The interval solves |theta - auc| = 1.96 sd(theta) with Hanley and McNeil's variance (Newcombe 2006, method 5), so that it has a width
    also where all members score highest.

    Raises:
        MedgenError: none of a kind, or values that are not finite.
    """
    inside, outside = np.asarray(members, float), np.asarray(others, float)
    if not len(inside) or not len(outside) or not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise MedgenError(f"membership needs finite scores of members and of others, got {len(inside)} and {len(outside)}")
    m, n = len(inside), len(outside)
    auc = auroc(np.concatenate([inside, outside]), np.arange(m + n) < m)
    return Membership(auc, auc_interval(auc, m, n) if min(m, n) > 1 else None, m, n)


def auc_interval(auc: float, m: int, n: int) -> tuple[float, float]:
    """See `membership`."""
    half = (m + n) / 2 - 1

    def near(theta: float) -> bool:
        spread = theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / (m * n)
        return abs(theta - auc) <= Z * math.sqrt(spread)

    low = 0.0 if auc == 0 else _bisected(lambda theta: not near(theta), 0.0, auc)
    high = 1.0 if auc == 1 else _bisected(near, auc, 1.0)
    return low, high


def loss_scores(members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """One score an image from its squared errors at several noise levels: the mean over levels of minus the logarithm, standardised over
    members and others together, so that a level counts by how well it orders and not by its size.

    Args:
        members, others: (N, L) and (M, L).

    Returns: (N,) and (M,), high where the error is low.
    """
    logs = torch.cat([members, others]).double().clamp(min=SMALLEST).log()
    scores = -((logs - logs.mean(0)) / logs.std(0).clamp(min=1e-9)).mean(1)
    return scores[: len(members)], scores[len(members) :]


def _norms(vectors: Tensor) -> Tensor:
    """(N,) squared lengths, without another tensor of the vectors' size."""
    return torch.linalg.vector_norm(vectors, dim=1).square()


def _binomial_tail(count: int, n: int, p: float) -> float:
    """P(K >= count) for p strictly between 0 and 1."""
    k = np.arange(n + 1)
    return float(np.exp(_log_choose(n) + k * math.log(p) + (n - k) * math.log1p(-p))[count:].sum())


def _log_choose(n: int) -> np.ndarray:
    """(n + 1,) logarithms of the binomial coefficients."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return factorials[n] - factorials - factorials[::-1]


def _bisected(below, low: float = 0.0, high: float = 1.0) -> float:
    """Where `below` turns from true to false between `low` and `high`."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2
