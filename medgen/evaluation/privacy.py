"""Copies of training data: are samples nearer to training images than new images are, and does the model give its training set away?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.picture import gray
from medgen.evaluation.membership import DISTANCE, Attack, attack, estimate, score_share
from medgen.evaluation.nearest import nearest_in
from medgen.evaluation.pictures import lettered, plane, seen, small
from medgen.evaluation.plots import histogram
from medgen.evaluation.section import Estimate, Figure, Level, Section, Table, skipped
from medgen.evaluation.training_set import Targets, TrainingSet, training_set
from medgen.evaluation.work import Progress, Work
from medgen.metrics.feature import describe
from medgen.metrics.privacy import Memorised, Neighbours, memorised
from medgen.metrics.space import Space
from medgen.metrics.statistics import holm

NAME, TITLE = "privacy", "Copies of training data"
ENCODERS = "medgen.evaluation.encoder"
PIXELS = Space("pixels", 0, lambda images: images)
QUANTILES = (0.05, 0.01)  # of held-out images; the first one is judged
LEAST_TRAIN, LEAST_HELD_OUT, LEAST_SAMPLES = 5, 8, 16  # subjects, subjects, images
COPIED = 0.05  # share of samples, beyond the false rate, that are surely copies: bad
TOLD = 0.7  # area under the ROC curve that membership surely reaches: bad
SURE, SEEN = 0.01, 0.05  # p after Holm's correction: for bad, for a look
SHOWN = 6
RULE = (
    f"fails: surely more than {COPIED:.0%} of samples are copies beyond the false rate (lower end of the exact interval, and p < {SURE:g} "
    f"after Holm's correction over the spaces), or membership is told with an area of surely {TOLD:g} or more. Look at it: copies with "
    f"p < {SEEN:g}, an area surely above 0.5, or training images that are not known for certain. Passes otherwise"
)
PROTOCOL = {
    "copy": "distance to the nearest training image over the mean distance to the nearest images of 5 other training subjects, below a low "
    "quantile of the same of held-out images; blur alone does not lower it",
    "nearer": "the same with the plain distance, which blurred samples have lowered too: shown, not judged",
    "false rate": "r / (H + 1) for the r-th smallest of H held-out images; the excess is the share that it does not explain, with an exact "
    "binomial interval; p is beta-binomial, and counts held-out images as fewer the more those of a subject are alike",
    "membership": "one score per subject, the mean over at most 4 images; area under the ROC curve (AUC) of training against held-out "
    "subjects, interval by Newcombe 2006",
    "level": RULE,
    "not seen": "shifted, mirrored or recoloured copies in pixels, copies of a part of an image, images that training subjects share",
}


@dataclass(frozen=True)
class Copies:
    """In one space.

    Attributes:
        space: its name.
        made, new: of samples and of held-out images.
        relative, plain: quantile -> memorisation by the relative and by the plain distance.
    """

    space: str
    made: Neighbours
    new: Neighbours
    relative: dict[float, Memorised] = field(default_factory=dict)
    plain: dict[float, Memorised] = field(default_factory=dict)


def section(work: Work, spaces: Sequence[Space] | None = None, progress: Progress | None = None) -> Section:
    """The test of copies for a model of synthesis, the test of membership for every model.

    Args:
        spaces: to look for copies in beside pixels; by default `feature_spaces`.
        progress: is told (done, of) while samples are drawn.
    """
    try:
        known = training_set(work)
        training, held_out = known.cases("train"), known.cases(known.held_out)
    except MedgenError as error:
        return skipped(NAME, TITLE, f"No privacy test: {error}")
    owners = [cases.subjects for cases in (training, held_out)]
    if few := _too_few(work, *owners):
        return skipped(NAME, TITLE, few)
    made = work.drawn(progress) if work.kind == "synthesis" else None
    images = [Targets(work, cases) for cases in (training, held_out)]
    found = [] if made is None else copies(made, *images, *owners, feature_spaces(work, spaces))
    try:
        told, reason = attack(work, training, held_out, made), ""
    except MedgenError as error:
        told, reason = None, str(error)
    if not found and told is None:
        return skipped(NAME, TITLE, f"No privacy test: {reason}")
    result = judged(found, told, known, [len(set(subjects)) for subjects in owners])
    if reason:
        result.numbers["membership_skipped"] = reason
    if found:
        result.figures = _figures(work, found, made, images[0])
        order = torch.argsort(found[0].made.relative)[:3].tolist()
        result.worst = [(f"sample {i}", _near(found[0], i)) for i in order if result.level in (Level.BAD, Level.WATCH)]
    return result


def prepare(work: Work, progress: Progress) -> None:
    """This process's share of what the test of membership asks the model, which the section then finds."""
    known = training_set(work)
    training, held_out = known.cases("train"), known.cases(known.held_out)
    if not _too_few(work, training.subjects, held_out.subjects):
        score_share(work, training, held_out, progress)


def _too_few(work: Work, training: Sequence[str], held_out: Sequence[str]) -> str:
    """What there is too little of, by the subjects of the images; empty where there is enough."""
    counts = [len(set(subjects)) for subjects in (training, held_out)]
    if counts[0] < LEAST_TRAIN or counts[1] < LEAST_HELD_OUT:
        found = f"{counts[0]} training and {counts[1]} held-out subjects are too few for a privacy test"
        return f"{found}: {LEAST_TRAIN} and {LEAST_HELD_OUT} are needed."
    if work.kind == "synthesis" and work.samples < LEAST_SAMPLES:
        return f"{work.samples} samples are too few for a privacy test: {LEAST_SAMPLES} are needed."
    return ""


def feature_spaces(work: Work, spaces: Sequence[Space] | None = None) -> list[Space]:
    """The built-in encoder where this release has one, else the fixed feature; none where images are too small for it."""
    if spaces is not None:
        return list(spaces)
    if find_spec(ENCODERS) is not None:
        with suppress(MedgenError):  # damaged weights are said where realism is measured
            learned = import_module(ENCODERS).built_in(work.model.contract.spatial_dims)
            if learned is not None:
                return [learned]
    return [Space("fixed feature", 0, describe)]


def copies(
    made: Tensor,
    training: Sequence[Tensor],
    held_out: Sequence[Tensor],
    owners: Sequence[str],
    others: Sequence[str],
    spaces: Sequence[Space],
) -> list[Copies]:
    """Samples and held-out images beside the training images, in pixels and in every space that takes them. Held-out images that are
    training images, to the last bit, are left out: they are not new, and would set a threshold of 0.

    Args:
        made: (N, C, *S).
        training, held_out: images (C, *S), which are read when they are asked for and not kept.
        owners, others: the subjects of training and held-out images.

    Raises:
        MedgenError: samples of another shape, values that are not finite.
    """
    if made.shape[1:] != training[0].shape:
        raise MedgenError(f"samples have shape {tuple(made.shape[1:])}, the training images {tuple(training[0].shape)}")
    found, fresh = [], torch.ones(len(held_out), dtype=torch.bool)
    for space in (PIXELS, *spaces):
        try:
            both = nearest_in(space, chain(made, held_out), training, owners)
        except MedgenError:
            if space is PIXELS:
                raise
            continue
        near, new = (Neighbours(*(column[part] for column in both)) for part in (slice(len(made)), slice(len(made), None)))
        if space is PIXELS and bool((new.distances > 0).any()):
            fresh = new.distances > 0
        new = Neighbours(*(column[fresh] for column in new))
        subjects = [other for other, kept in zip(others, fresh.tolist(), strict=True) if kept]
        rates = [
            {q: memorised(getattr(near, kind).tolist(), getattr(new, kind).tolist(), q, subjects) for q in QUANTILES}
            for kind in ("relative", "distances")
        ]
        found.append(Copies(space.name, near, new, *rates))
    return found


def judged(found: Sequence[Copies], told: Attack | None, known: TrainingSet, counts: Sequence[int]) -> Section:
    """Verdict, level, numbers and tables of the tests; `counts` are the training and the held-out subjects."""
    first = QUANTILES[0]
    corrected = holm([copy.relative[first].p for copy in found])
    auc = told.whole.interval if told else None
    bad = [c for c, p in zip(found, corrected, strict=True) if p < SURE and c.relative[first].interval[0] > COPIED]
    watch = any(p < SEEN for p in corrected) or not known.sure or (auc is not None and (auc[0] > 0.5 or auc[1] <= 0.5))
    level = Level.BAD if bad or (auc is not None and auc[0] >= TOLD) else Level.WATCH if watch else Level.GOOD
    numbers: dict[str, Any] = {"compared": known.told, "training_known": known.sure}
    numbers |= {"subjects": {"train": counts[0], "held_out": counts[1]}}
    numbers["copies"] = {c.space: _numbers(c, p) for c, p in zip(found, corrected, strict=True)}
    tables = [_rates(found, corrected)] if found else []
    if told is not None:
        numbers["membership"] = {"score": told.score, "auc": told.estimate, "columns": {n: estimate(m) for n, m in told.columns.items()}}
        tables.append(_membership(told))
    result = Section(NAME, TITLE, _verdict(found, told, bad, known), level, numbers, tables)
    result.protocol = {"compared": known.told, **PROTOCOL}
    return result


def _verdict(found: Sequence[Copies], told: Attack | None, bad: Sequence[Copies], known: TrainingSet) -> str:
    said = []
    if found:
        worst = max(bad or found, key=lambda c: c.relative[QUANTILES[0]].excess)
        rate = worst.relative[QUANTILES[0]]
        found_any = "Copies among the samples" if rate.interval[0] > 0 else "No sure copies among the samples"
        said.append(
            f"{found_any}: {rate.excess:.0%} [{rate.interval[0]:.0%}, {rate.interval[1]:.0%}] by {worst.space} "
            f"({rate.count} of {rate.n} are nearer to a single training subject than {1 - rate.expected:.0%} of new images are)."
        )
    if told is not None:
        whole = told.whole
        sure = f" [{whole.interval[0]:.2f}, {whole.interval[1]:.2f}]" if whole.interval else ""
        said.append(
            f"Whether an image was in the training set is told by the {told.score} with an AUC of {whole.auc:.2f}{sure} (chance: 0.5)."
        )
        if whole.interval and whole.interval[1] <= 0.5:
            said.append("That is below chance: the held-out images are easier for it than those of training, which can hide membership.")
    if not known.sure:
        said.append("It is not certain that these are the images that the model was trained on.")
    return " ".join(said)


def _numbers(copy: Copies, p: float) -> dict[str, Any]:
    kinds = {"relative": copy.relative, "distance": copy.plain}
    told: dict[str, Any] = {kind: {f"{q:g}": vars(rate) for q, rate in rates.items()} for kind, rates in kinds.items()}
    told["p_holm"] = p
    for who, near in (("samples", copy.made), ("held_out", copy.new)):
        for kind in ("distances", "relative"):
            values = getattr(near, kind)
            told[f"{who}_{kind}"] = {"least": float(values.min()), "median": float(values.median()), "n": len(values)}
    return told


def _rates(found: Sequence[Copies], corrected: Sequence[float]) -> Table:
    rows = []
    for copy, p in zip(found, corrected, strict=True):
        for title, rates, judged_ in (("copies", copy.relative, True), ("nearer", copy.plain, False)):
            for q, rate in rates.items():
                if q != QUANTILES[0] and rate.threshold == rates[QUANTILES[0]].threshold:
                    continue  # of few held-out images both are the least
                cells = [f"{rate.count} of {rate.n}", f"{rate.expected:.1%}", Estimate(rate.excess, rate.interval, rate.n), rate.p]
                rows.append([f"{copy.space}: {title}, {q:.0%}", *cells, p if judged_ and q == QUANTILES[0] else "-"])
    note = "Copies: much nearer to one training subject than to others. Nearer: plain distance, which blur lowers too. "
    note += "Excess: the share of samples that the false rate does not explain. Judged: copies at 5 %."
    return Table("Samples below a quantile of held-out images", ["space", "samples", "false rate", "excess", "p", "p (Holm)"], rows, note)


def _membership(told: Attack) -> Table:
    rows = [["all together" if told.columns else told.score, told.estimate]]
    rows += [[name, estimate(found)] for name, found in told.columns.items()]
    whole = told.whole
    note = f"By the {told.score}: {whole.members} training against {whole.others} other subjects. 0.5 is by chance, 1 tells all."
    if told.score == DISTANCE:
        note += " A weak test: with more samples it gets stronger."
    return Table("Who was in the training set", ["told by", "AUC"], rows, note)


def _near(copy: Copies, i: int) -> str:
    return f"{float(copy.made.relative[i]):.2g} times as far from its nearest training image as from other subjects' nearest"


def _figures(work: Work, found: Sequence[Copies], made: Tensor, training: Sequence[Tensor]) -> list[Figure]:
    """The samples most like a copy beside their nearest training images, and where all distances lie."""
    near = found[0].made
    order = torch.argsort(near.relative)[:SHOWN].tolist()
    rows = [[_plane(work, images[i]) for i in row] for images, row in ((made, order), (training, near.rows[order].tolist()))]
    pairs = lettered(rows, [f"{float(near.relative[i]):.2f}" for i in order], ["sample", "nearest training image"])
    least = float(found[0].new.relative.min())
    note = f"Each with its distance over that to other subjects; of held-out images the least is {least:.2f}."
    figures = [Figure("The samples most like a copy", pairs, note)]
    for copy in found:
        sets = {"samples": copy.made.relative.numpy(), "held-out images": copy.new.relative.numpy()}
        limit = copy.relative[QUANTILES[0]].threshold
        title = f"Distance to the nearest training image over that to other subjects, by {copy.space}"
        figures.append(Figure(title, histogram(sets, limit), "The line is the threshold. Copies lie near 0, images of nobody near 1."))
    return figures


def _plane(work: Work, image: Tensor) -> np.ndarray:
    shown = seen(image[None], work.model.task.target)
    turned = work.model.contract.spacing is not None and image.ndim == 3
    flat = plane(shown, 2, shown.shape[-1] // 2)
    return small(gray(np.rot90(flat) if turned else flat, -1.0, 1.0))
