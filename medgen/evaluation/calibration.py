"""Whether a model knows when it is wrong: the spread of its draws against their error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medgen.core.picture import gray, upright
from medgen.evaluation.pictures import lettered, seen, small, worst_height
from medgen.evaluation.plots import bars, curves
from medgen.evaluation.section import Estimate, Figure, Level, Section, Table, skipped
from medgen.evaluation.work import Work
from medgen.metrics.calibration import LEVELS, QUANTILES, Calibration, calibration
from medgen.metrics.statistics import summarise

NAME, TITLE = "calibration", "Does it know when it is wrong"
MAIN = 0.9  # the interval that the verdict speaks of
NEAR, FAR = 0.05, 0.15  # of its coverage to that
FOLLOWS, HALF = 0.1, 0.5  # rank correlation of spread and error, and its part of what it would be if the draws were right
VOXELS = 300_000  # of a case, evenly spread: more change no digit
HEADS = {
    "expected_error": "calibration error (ECE)",
    "ratio": "spread over error",
    "correlation": "spread follows error",
    "attainable": "as it could at most",
    "crps": "CRPS",
    "rmse": "RMSE of the mean",
}
RULE = (
    f"good: {MAIN:.0%} intervals hold {100 * (MAIN - NEAR):.0f} to {100 * (MAIN + NEAR):.0f} % of the voxels, and the rank correlation of "
    f"spread and error is above {FOLLOWS:g} and half of what right draws would have; bad: they hold less than "
    f"{100 * (MAIN - FAR):.0f} % (overconfident); watch: all else"
)
PROTOCOL = {
    "level": RULE,
    "intervals": "of a next draw of a Gaussian after these draws (Student's t), so that few draws cover as many as many do",
    "calibration error (ECE)": "mean over quantiles 5 to 95 % of the gap between share of voxels below and quantile (Kuleshov 2018)",
    "spread over error": "root mean variance of the draws, corrected for their number, over the RMSE of their mean; under 1: overconfident",
    "spread follows error": "Spearman's rank correlation of standard deviation and absolute error, voxel by voxel",
    "as it could at most": "that correlation with one draw in the truth's place and the others around it",
    "CRPS": "mean continuous ranked probability score, fair for few draws (Ferro 2014), in network units",
    "ranks": "how many draws lie below the truth: even where they are right, high at both ends where they are overconfident, in the middle "
    "where too wide, at one end where biased",
    "voxels": f"of the body, at most {VOXELS:,} of a case, evenly spread; the mean is over subjects, intervals resample subjects",
}


@dataclass(frozen=True)
class Row:
    """One case."""

    number: int
    subject: str
    found: Calibration


def section(work: Work) -> Section:
    """Coverage, calibration error and rank histogram of the draws of a translation or a reconstruction."""
    if work.kind == "synthesis":
        return skipped(NAME, TITLE, "Images from nothing have no truth that their spread could be compared with.")
    if work.draws < 2:
        return skipped(NAME, TITLE, "One draw for each case has no spread: evaluate with --draws 8.")
    rows = []
    for case in work.cases():
        draws = work.made(case, draws=True).draws
        if draws is None or len(draws) < 2 or bool((draws == draws[:1]).all()):
            return _one_answer()
        rows.append(Row(case.number, case.subject, calibration(draws, case.target[0], _thinned(case.body[0]))))
    told = Section(NAME, TITLE, protocol={**PROTOCOL, "draws": f"{work.draws} of each case"})
    coverage = {level: _mean([100 * row.found.coverage[level] for row in rows], rows, "%") for level in LEVELS}
    mean = {name: _mean([getattr(row.found, name) for row in rows], rows) for name in HEADS}
    ranks = np.mean([row.found.ranks for row in rows], 0)
    below = np.mean([row.found.below for row in rows], 0)
    told.numbers = {"coverage": {f"{level:g}": value for level, value in coverage.items()}, **mean}
    told.numbers |= {"ranks": ranks, "quantiles": QUANTILES, "below": below, "draws": work.draws}
    told.tables = [
        Table("Coverage of the draws' intervals", ["interval", *(f"{level:.0%}" for level in LEVELS)], [["holds", *coverage.values()]]),
        Table("Spread and error", ["", *HEADS.values()], [["mean over subjects", *mean.values()]], _meanings()),
        _cases(rows),
    ]
    _judge(told, coverage[MAIN], mean)
    told.worst = [(row.subject, _told(row)) for row in ranked(rows)[:3] if abs(row.found.coverage[MAIN] - MAIN) > NEAR]
    told.figures = [_reliability(rows, below), _ranks(ranks), _spread(work, ranked(rows)[0])]
    return told


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The overconfident ones first."""
    return sorted(rows, key=lambda row: row.found.coverage[MAIN])


def _one_answer() -> Section:
    verdict = "It answers always the same, so it does not say how sure it is."
    return Section(NAME, TITLE, verdict, Level.WATCH, numbers={"deterministic": True}, protocol=PROTOCOL)


def _thinned(body: Tensor) -> Tensor:
    """(1, *S) with every k-th voxel of the body only."""
    at = torch.nonzero(body.flatten())[:, 0]
    kept = torch.zeros(body.numel(), dtype=torch.bool)
    kept[at[:: max(1, -(-len(at) // VOXELS))]] = True
    return kept.reshape(body.shape)


def _mean(values: Sequence[float], rows: Sequence[Row], unit: str = "") -> Estimate:
    """Over subjects; of cases whose value is not defined (a spread that does not vary) without them."""
    known = [(value, row.subject) for value, row in zip(values, rows, strict=True) if math.isfinite(value)]
    if not known:
        return Estimate(math.nan, None, 0, unit, "not defined in any case")
    found = summarise([v for v, _ in known], [s for _, s in known])
    reason = "one subject cannot tell how much subjects differ" if found.interval is None else ""
    return Estimate(found.mean, found.interval, found.subjects, unit, reason)


def _meanings() -> str:
    return " ".join(f"{head[:1].upper()}{head[1:]}: {PROTOCOL[head]}." for head in HEADS.values() if head in PROTOCOL)


def _judge(told: Section, covered: Estimate, mean: dict[str, Estimate]) -> None:
    ratio, follows, most, share = (*(mean[name].value for name in ("ratio", "correlation", "attainable")), covered.value / 100)
    told.verdict = f"{MAIN:.0%} intervals of its draws hold {covered} of the voxels of the truth; its spread is {ratio:.2g} of its error."
    if share < MAIN - FAR:
        told.level, said = Level.BAD, "It is overconfident: do not read its spread as its error."
    elif share < MAIN - NEAR:
        told.level, said = Level.WATCH, "It is somewhat overconfident."
    elif share > MAIN + NEAR:
        told.level, said = Level.WATCH, "Its spread is wider than its error."
    elif not follows > max(FOLLOWS, HALF * (0.0 if math.isnan(most) else most)):
        told.level, said = Level.WATCH, "Its spread is right on the whole, but does not tell where it is wrong."
    else:
        told.level, said = Level.GOOD, ""
    told.verdict = f"{told.verdict} {said}".strip()
    if covered.n == 1:
        told.verdict += " One subject: how much subjects differ is not known."


def _told(row: Row) -> str:
    return f"{MAIN:.0%} intervals hold {row.found.coverage[MAIN]:.0%}, spread {row.found.ratio:.2g} of the error"


def _cases(rows: Sequence[Row]) -> Table:
    heads = ["subject", *(f"{level:.0%} hold (%)" for level in LEVELS), *HEADS.values()]
    cells = [
        [row.subject, *(100 * row.found.coverage[level] for level in LEVELS), *(getattr(row.found, name) for name in HEADS)]
        for row in ranked(rows)
    ]
    return Table("Every case, the most overconfident first", heads, cells)


# --- pictures ---------------------------------------------------------------------------------------------------------------------------


def _reliability(rows: Sequence[Row], below: np.ndarray) -> Figure:
    x = [0.0, *QUANTILES, 1.0]
    single = [[0.0, *row.found.below, 1.0] for row in rows] if len(rows) > 1 else []
    picture = curves(x, {"mean over cases": [0.0, *below.tolist(), 1.0]}, single, ("predicted quantile", "share of voxels below"))
    note = "On the diagonal the quantiles are right. Above it at the left and below at the right: overconfident; all on one side: biased. "
    note += "Grey: single cases."
    return Figure("Reliability", picture, note)


def _ranks(ranks: np.ndarray) -> Figure:
    picture = bars(ranks.tolist(), 1 / len(ranks), ("draws below the truth", "share of voxels"))
    return Figure("Rank histogram", picture, f"{PROTOCOL['ranks'][:1].upper()}{PROTOCOL['ranks'][1:]}. Line: even.")


def _spread(work: Work, row: Row) -> Figure:
    """Truth, mean, spread and error of the most overconfident case, spread and error in one grey scale."""
    case = work.case(row.number)
    made = work.made(case, draws=True)
    mean, std = made.draws.mean(0, keepdim=True), made.draws.std(0, keepdim=True)
    error = (mean - case.target).abs()
    axis = 2 if work.model.contract.slice_axis is None else work.model.contract.slice_axis
    height = worst_height(mean - case.target, case.body, axis)
    edge = max(1e-6, float(np.percentile(_plane(error, axis, height), 99.5)))
    names = work.model.task.target
    planes = [small(gray(_plane(seen(image, names), axis, height), -1, 1)) for image in (case.target, mean)]
    planes += [small(gray(_plane(image, axis, height), 0, edge)) for image in (std, error)]
    titles = ["truth", "mean of draws", "their spread", "error"]
    note = f"Cut where its error is largest. Spread (one standard deviation) and absolute error: black 0, white {edge:.2g} network units."
    return Figure(f"The most overconfident case, {row.subject}", lettered([planes], titles, [row.subject]), note)


def _plane(image: Tensor, axis: int, height: int) -> np.ndarray:
    first = image[0, 0].float().numpy()
    return first if first.ndim == 2 else upright(np.take(first, height, axis))
