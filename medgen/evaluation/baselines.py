"""What a model must beat: the source itself, the best line and the best monotone curve from source to target intensities, zero-filling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError, nearest
from medgen.evaluation.masks import body_mask
from medgen.evaluation.work import Case, Made, Work

NAMES = ("copy", "line", "curve", "zero-filled")
_FITTED = 8  # training volumes that a fit sees at most


@dataclass(frozen=True)
class Baseline:
    """Attributes:
    name: for the JSON and the command line.
    title: in a sentence.
    predict: case, and what the model made of it -> (1, C, *S).
    """

    name: str
    title: str
    predict: Callable[[Case, Made], Tensor]


def baselines(work: Work, names: Sequence[str] | None = None) -> list[Baseline]:
    """What applies to the model and the manifest, or those of the names that do.

    Fits are made on the training split and left out where the manifest has none, or where several channels are made of several.

    Raises:
        MedgenError: a name that is none of `NAMES`.
    """
    for name in names or ():
        if name not in NAMES:
            raise MedgenError(f"no baseline '{name}'; {nearest(name, NAMES)}")
    wanted = NAMES if names is None else names
    if work.kind == "reconstruction":
        made = [Baseline("zero-filled", "what the measurement alone shows (zero-filled)", lambda case, made: made.view)]
        return [rival for rival in made if rival.name in wanted]
    if work.kind != "translation" or _inapplicable(work):
        return []
    found = [Baseline("copy", "a copy of the source", lambda case, made: copy_source(case.source))]
    pairs = _training_pairs(work) if {"line", "curve"} & set(wanted) else []
    if pairs:
        line, curve = fit_line(pairs), fit_curve(pairs)
        found.append(Baseline("line", "the best line from source to target values", lambda case, made: line(case.source, case.body)))
        found.append(
            Baseline("curve", "the best monotone curve from source to target values", lambda case, made: curve(case.source, case.body))
        )
    return [rival for rival in found if rival.name in wanted]


def missing(work: Work) -> str:
    """What a translation cannot be measured against here, why, and what to do; empty where nothing is missing."""
    if work.kind != "translation":
        return ""
    if why := _inapplicable(work):
        return f"No baseline stands beside it, because {why}; compare it with another model by medgen benchmark."
    if why := _unfitted(work):
        return f"The best line and the best curve from source to target values, the harder yardsticks, are missing, because {why}."
    return ""


def _inapplicable(work: Work) -> str:
    """Why no baseline answers what the model answers."""
    task = work.model.task
    if len(task.target) > 1:
        return "it makes several channels"
    return "its sources may be missing" if task.availability else ""


def _unfitted(work: Work) -> str:
    """Why nothing can be fitted, and what to do."""
    if work.split == "train":
        return "they would be fitted on the very images that are scored; score another split by --split"
    if not any(row["split"] == "train" for row in work.manifest.rows):
        return "the manifest has no training subjects to fit them on; add rows with split train"
    return ""


def _training_pairs(work: Work) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(source, target, body), each (1, *S), of some training volumes, evenly spread."""
    if _unfitted(work):
        return []
    rows = work.manifest.split("train").rows
    training = replace(work, split="train", labels={})
    places = np.unique(np.linspace(0, len(rows) - 1, min(_FITTED, len(rows))).round().astype(int))
    cases = (training.case(int(place)) for place in places)
    return [(case.source[0, :1], case.target[0, :1], case.body[0]) for case in cases]


def copy_source(source: Tensor) -> Tensor:
    """(1, K, *S) -> its first channel (1, 1, *S), unchanged."""
    return source[:, :1]


@dataclass(frozen=True)
class Line:
    """target = slope source + offset inside the body, `outside` elsewhere."""

    slope: float
    offset: float
    outside: float = -1.0

    def __call__(self, source: Tensor, body: Tensor | None = None) -> Tensor:
        """(1, K, *S) -> (1, 1, *S), from the first channel; `body` (1, 1, *S) is found in it where it is not given."""
        return _inside(source, body, self.slope * source[:, :1] + self.offset, self.outside)


def fit_line(pairs: Iterable[tuple[Tensor, Tensor, Tensor]], outside: float = -1.0) -> Line:
    """The least-squares line of training voxels; arguments and errors as `fit_curve`."""
    source, target = _voxels(pairs)
    spread = float(((source - source.mean()) ** 2).mean())
    slope = float(((source - source.mean()) * (target - target.mean())).mean()) / spread if spread else 0.0
    return Line(slope, float(target.mean() - slope * source.mean()), outside)


@dataclass(frozen=True)
class MonotoneCurve:
    """target = f(source) with f rising or falling everywhere, linear between knots and constant beyond them.

    Attributes:
        knots: (N,) rising source intensities.
        values: (N,) target intensities.
        outside: what is predicted outside the body, where the curve says nothing (the value of no signal).
    """

    knots: np.ndarray
    values: np.ndarray
    outside: float = -1.0

    def __call__(self, source: Tensor, body: Tensor | None = None) -> Tensor:
        """(1, K, *S) -> (1, 1, *S), from the first channel; `body` (1, 1, *S) is found in it where it is not given."""
        mapped = np.interp(source[:, :1].cpu().numpy(), self.knots, self.values).astype(np.float32)
        return _inside(source, body, torch.from_numpy(mapped).to(source.device), self.outside)

    @property
    def falling(self) -> bool:
        return bool(self.values[0] > self.values[-1])


def fit_curve(pairs: Iterable[tuple[Tensor, Tensor, Tensor]], bins: int = 512, outside: float = -1.0) -> MonotoneCurve:
    """The least-squares monotone curve of training voxels, rising or falling, whichever fits better.

    Source intensities are gathered in `bins` bins of equal count (or one per value, if fewer are distinct), and the bins' mean targets
    are made monotone by pooling adjacent violators: Barlow et al. 1972.

    Args:
        pairs: (source, target, mask) of each training volume, each (1, *S), the mask bool.

    Raises:
        MedgenError: no voxels inside the masks.
    """
    source, target = _voxels(pairs)
    place = _bin(source, bins)
    count = np.bincount(place)
    used = count > 0
    count, knots, means = count[used], (np.bincount(place, source)[used] / count[used]), (np.bincount(place, target)[used] / count[used])
    fits = [sign * isotonic(sign * means, count) for sign in (1, -1)]
    best = min(fits, key=lambda fit: float((count * (fit - means) ** 2).sum()))
    return MonotoneCurve(knots, best, outside)


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence closest to `values` in weighted least squares, by pooling adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, float(weight), 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, mass, size = blocks.pop()
            total = mass + block[1]
            block = ((mean * mass + block[0] * block[1]) / total, total, size + block[2])
        blocks.append(block)
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])


def _bin(source: np.ndarray, bins: int) -> np.ndarray:
    """The bin of every voxel, from edges at even quantiles of the values."""
    distinct = np.unique(source)
    edges = distinct if len(distinct) <= bins else np.unique(np.quantile(source, np.linspace(0, 1, bins + 1)[:-1]))
    return np.searchsorted(edges, source, side="right") - 1


def _inside(source: Tensor, body: Tensor | None, mapped: Tensor, outside: float) -> Tensor:
    return torch.where(body_mask(source[0, :1])[None] if body is None else body, mapped, outside)


def _voxels(pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Source and target values inside the masks, (N,) float64 each."""
    voxels = [(s[m].double().cpu().numpy(), t[m].double().cpu().numpy()) for s, t, m in pairs]
    if not sum(len(s) for s, _ in voxels):
        raise MedgenError("a curve cannot be fitted: there is no voxel inside the training masks")
    return tuple(np.concatenate(parts) for parts in zip(*voxels, strict=True))
