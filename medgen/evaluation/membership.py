"""What gives a member of the training set away: a score for every image, high where the model knows it too well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medgen.core.condition import Condition
from medgen.core.levels import LogNormal
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.core.tensors import flatten_mean
from medgen.evaluation.made import digest
from medgen.evaluation.section import Estimate
from medgen.evaluation.training_set import Still, batches
from medgen.evaluation.work import Progress, Work
from medgen.metrics.feature import nearest_distances
from medgen.metrics.privacy import Membership, loss_scores, membership
from medgen.metrics.statistics import subject_means

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # quantiles of the noise levels that the model was trained on
DRAWS = 2  # of noise at each level
BATCH = 8  # images at once
PER_SUBJECT, SUBJECTS = 4, 64  # images of a subject and subjects of a kind that are tried, spread evenly
DENOISING = "squared error of denoising"
TRAINING = "training loss"
ANSWER = "squared error of the answer"
DISTANCE = "distance to the nearest sample"


@dataclass(frozen=True)
class Attack:
    """A membership test.

    Attributes:
        score: what tells members from others.
        whole: of all columns together.
        columns: name of each column (a noise level) -> the test by it alone.
    """

    score: str
    whole: Membership
    columns: dict[str, Membership]

    @property
    def estimate(self) -> Estimate:
        return estimate(self.whole)


def estimate(found: Membership) -> Estimate:
    """For a table."""
    return Estimate(found.auc, found.interval, found.members + found.others, reason="" if found.interval else "one subject of a kind")


def attack(work: Work, training: Still, held_out: Still, samples: Tensor | None = None) -> Attack:
    """The strongest test that the model allows: by its loss where it has one for a single image, by its answer's error where it answers,
    by the distance to its nearest sample otherwise. A score is the mean over a subject's images; the unit is the subject.
    """
    sets = (training, held_out)
    score, names, measure = _measure(work, samples)
    inside, outside = (torch.cat([_scored(work, measure, cases, part) for part in _parts(cases)]) for cases in sets)
    owners = [[cases.subjects[number] for part in _parts(cases) for number in part] for cases in sets]

    def tested(a: Tensor, b: Tensor) -> Membership:
        scores = loss_scores(a, b)
        return membership(*(list(subject_means(v.tolist(), who).values()) for v, who in zip(scores, owners, strict=True)))

    columns = {name: tested(inside[:, [i]], outside[:, [i]]) for i, name in enumerate(names)} if len(names) > 1 else {}
    return Attack(score, tested(inside, outside), columns)


def score_share(work: Work, training: Still, held_out: Still, progress: Progress) -> None:
    """This process's share of what the test asks the model, which `attack` then finds."""
    score, _, measure = _measure(work, None)
    own = work.share([(cases, part) for cases in (training, held_out) for part in _parts(cases)]) if score != DISTANCE else ()
    for done, (cases, part) in enumerate(own, 1):
        _scored(work, measure, cases, part)
        progress(done, len(own))


def _scored(work: Work, measure: Callable[[dict[str, Any]], Tensor], cases: Still, numbers: Sequence[int]) -> Tensor:
    """(B, columns) of these cases, from disk where the model was asked before."""
    (batch,) = batches(work, cases, numbers, BATCH)
    told = digest(*(value for _, value in sorted(batch.items())), torch.tensor([*LEVELS, DRAWS]))
    return work.once(f"membership_{told}", lambda: measure(batch))


def _parts(cases: Still) -> list[list[int]]:
    numbers = spread(cases.subjects)
    return [numbers[first : first + BATCH] for first in range(0, len(numbers), BATCH)]


def spread(subjects: Sequence[str]) -> list[int]:
    """The numbers of at most 4 images each of at most 64 subjects."""
    by_subject: dict[str, list[int]] = {}
    for number, subject in enumerate(subjects):
        by_subject.setdefault(subject, []).append(number)
    chosen = _evenly(list(by_subject.values()), SUBJECTS)
    return [number for own in chosen for number in _evenly(own, PER_SUBJECT)]


def _evenly(items: list[Any], most: int) -> list[Any]:
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _measure(work: Work, samples: Tensor | None) -> tuple[str, list[str], Callable[[dict[str, Any]], Tensor]]:
    """What is measured, the names of its columns, and batch -> (B, columns)."""
    model = work.model.model
    inner = getattr(model, "model", model) if hasattr(model, "codec") else model
    if hasattr(inner, "denoise"):
        levels = getattr(inner, "levels", LogNormal())
        alphas, sigmas = (values.tolist() for values in levels.at(torch.tensor(LEVELS)))
        names = [f"sigma / alpha {s / max(a, 1e-9):.3g}" for a, s in zip(alphas, sigmas, strict=True)]
        return DENOISING, names, lambda batch: _denoising(work, batch, list(zip(alphas, sigmas, strict=True)))
    if len(getattr(model, "phases", ())) == 1:
        return TRAINING, [""], lambda batch: _training(work, batch)
    if work.kind != "synthesis":
        return ANSWER, [""], lambda batch: _answer(work, batch)
    return DISTANCE, [""], lambda batch: _to_samples(work, batch, samples)


@torch.no_grad()
def _denoising(work: Work, batch: dict[str, Any], levels: Sequence[tuple[float, float]]) -> Tensor:
    """(B, levels): every image under the same noise."""
    model, (x, condition, weight) = work.model.model, _example(work, batch)
    if hasattr(model, "codec"):
        z = model.codec.draw(model.codec.moments(x))
        model, x, condition, weight = model.model, z, condition.celled(model.codec.factor), None
    columns = []
    for place, (alpha, sigma) in enumerate(levels):
        errors = []
        for draw in range(DRAWS):
            noise = _rng(work, 1, place * DRAWS + draw).normal((1, *x.shape[1:]))
            made = model.denoise(alpha * x + sigma * noise, alpha, sigma, condition)
            error = (made.float() - x).square()
            errors.append(flatten_mean(error if weight is None else error * weight))
        columns.append(torch.stack(errors).mean(0))
    return torch.stack(columns, 1).double().cpu()


@torch.no_grad()
def _training(work: Work, batch: dict[str, Any]) -> Tensor:
    """(B, 1): the loss of training, image by image, every one under the same draws."""
    model, (x, condition, weight) = work.model.model, _example(work, batch)
    (phase,) = model.phases
    rows = []
    for i in range(len(x)):
        own = Example(x[i : i + 1], condition[i : i + 1], None if weight is None else weight[i : i + 1])
        rows.append(torch.stack([phase.loss(own, model.begin(own, _rng(work, 1, draw))).total for draw in range(DRAWS)]).mean())
    return torch.stack(rows).double().cpu()[:, None]


def _answer(work: Work, batch: dict[str, Any]) -> Tensor:
    """(B, 1): of the answer against the target."""
    x, condition, weight = _example(work, batch)
    made = work.model.sample(condition, tuple(x.shape[2:]), _rng(work, len(x), 0)).to(x)
    error = (made - x).square()
    return flatten_mean(error if weight is None else error * weight).double().cpu()[:, None]


def _to_samples(work: Work, batch: dict[str, Any], samples: Tensor | None) -> Tensor:
    """(B, 1): squared distance."""
    x, _, _ = _example(work, batch)
    return nearest_distances(x.cpu(), (work.drawn() if samples is None else samples).float()).square()[:, None]


def _example(work: Work, batch: dict[str, Any]) -> tuple[Tensor, Condition, Tensor | None]:
    """Every case measured and noised alike, on the model's device."""
    device = work.model.device
    example = work.model.task.example(batch, Rng(work.seed, 0, [0] * len(next(iter(batch.values())))))
    weight = None if example.weight is None else example.weight.to(device)
    return example.x.float().to(device), example.condition.to(device), weight


def _rng(work: Work, n: int, step: int) -> Rng:
    return Rng(work.seed, step, [0] * n, work.model.device)
