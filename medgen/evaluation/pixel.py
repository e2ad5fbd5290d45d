"""Fidelity to the truth on the same grid: one score per volume and region, means over subjects, beside what needs no learning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.core.colours import coloured
from medgen.core.errors import MedgenError
from medgen.evaluation.baselines import Baseline, baselines, missing
from medgen.evaluation.classes import class_names
from medgen.evaluation.perception import perception
from medgen.evaluation.pictures import HELD, SCALED, Cut, cases_picture, heights, seen, worst_height
from medgen.evaluation.section import Estimate, Figure, Level, Section, Table, skipped
from medgen.evaluation.work import AIR, Case, Work
from medgen.metrics.conventions import fastmri
from medgen.metrics.panel import METRICS, all_pixel
from medgen.metrics.statistics import summarise

NAME, TITLE = "pixel", "Fidelity to the truth, voxel by voxel"
DATA_RANGE, ZERO = 2.0, -1.0  # of network units: their full range, and the value of no signal
ONE_SUBJECT = "one subject: the value, no interval, because one subject cannot tell how much subjects differ"
NOT_FINITE = "no mean: of a volume it is infinite (equal images) or not defined (an axis shorter than its window, no signal in the region)"
HEADS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "haarpsi": "HaarPSI",
    "mae": "MAE",
    "nmse": "NMSE",
    "me": "ME (bias)",
    "relative_error": "relative error",
    "gradient_error": "gradient error",
    "hfen": "HFEN",
    "spectral_error": "spectral error",
    "detail_power": "fine detail",
}
ENOUGH = 4  # subjects, from which a verdict may be good
LARGEST = {"ssim": 1.0, "ms_ssim": 1.0, "haarpsi": 1.0}
MAIN, KINDS = list(HEADS)[:6], list(HEADS)[6:]
GREY = "Grey from -1 to 1 in network units, the same for all."
BLURRED = -3.0  # dB of fine detail: half of the power
SHOWN = 3  # the worst cases; the middle and the best one beside them


@dataclass(frozen=True)
class Row:
    """The scores of one volume in one region: "body", "whole", or "tissue=2" of a label map."""

    number: int
    subject: str
    region: str
    values: dict[str, float]
    unit: str = ""  # of intensities, where they have one


def section(work: Work) -> Section:
    """Scores of a translation or a reconstruction, beside its baselines, with the worst cases shown."""
    if work.kind == "synthesis":
        return skipped(NAME, TITLE, "Samples have no truth to be compared with voxel by voxel: see their distance to real images.")
    rivals, unit = baselines(work), unit_of(work)
    rows: list[Row] = []
    others: dict[str, list[Row]] = {rival.name: [] for rival in rivals}
    known: list[Row] = []  # by fastMRI's convention
    eye = perception(work)
    for case in work.cases():
        made = work.made(case)
        rows += score_case(made.image, case, unit)
        known += _fastmri(work, case, made.image)
        answers = {rival.name: rival.predict(case, made) for rival in rivals}
        for name, answer in answers.items():
            others[name] += score_case(answer, replace(case, regions={}), unit)
        if eye is not None:
            for name, answer in {"model": made.image, **answers}.items():
                eye.add(name, answer, case)
    told = Section(NAME, TITLE, numbers={**summary(rows), "baselines": {name: summary(found) for name, found in others.items()}})
    told.protocol = protocol(work)
    _judge(told, rows, others, rivals, missing(work))
    names = class_names(work)
    told.numbers["region_names"] = {row.region: names[row.region] for row in rows if row.region in names}
    told.tables = [_table(rows, MAIN, "Mean over subjects, by region", names), _beside(rows, others, rivals)]
    told.tables += [_table(rows, KINDS, "What kind of error it is", names), _cases(rows)]
    if known:
        told.numbers["fastmri"] = _region(known)
        cells = ["the model", *(estimate(known, "fastmri", metric) for metric in known[0].values)]
        note = "To compare with published numbers of fastMRI alone: the range is each volume's maximum, SSIM is by slices, uncropped."
        told.tables.append(Table("By fastMRI's convention", ["method", *(HEADS[m] for m in known[0].values)], [cells], note))
    if eye is not None:
        eye.tell(told, {"model": "the model"} | {rival.name: rival.title for rival in rivals})
    told.worst = [(row.subject, f"{_told(row)} in the body") for row in ranked(rows)[:SHOWN]]
    told.figures = _figures(work, rows, unit)
    return told


@dataclass(frozen=True)
class Unit:
    """What one network unit is worth: Hounsfield units for CT; of other images there is no scale that all share."""

    name: str = ""
    size: float = 1.0
    colours: bool = False


def unit_of(work: Work) -> Unit:
    """Of the model's target."""
    contract = work.model.contract
    rules = [contract.intensity[channel] for channel in contract.target]
    if all(rule["name"] == "ct_hu" for rule in rules):
        ends = contract.map_of(contract.target[0]).fit(np.zeros(1))
        return Unit("HU", (ends["high"] - ends["low"]) / 2)
    return Unit(colours=coloured(contract.target))


def score_case(image: Tensor, case: Case, unit: Unit | None = None) -> list[Row]:
    """All metrics of one volume (1, C, *S), in the body, in the whole image and in every class of its label maps.

    Raises:
        MedgenError: another grid than the target's, or values that are not finite.
    """
    image, unit = image.to(case.target), unit or Unit()
    if image.shape != case.target.shape:
        raise MedgenError(f"{case.subject}: the prediction has shape {tuple(image.shape)}, the target {tuple(case.target.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise MedgenError(f"{case.subject}: the prediction holds NaN or infinite values; the model has diverged or its input is broken")
    regions = {"body": case.body}
    for name, labels in case.regions.items():
        regions |= {f"{name}={k}": labels == k for k in labels.unique().tolist() if k}
    panel = all_pixel(image, case.target, DATA_RANGE, regions, ZERO, unit.size, unit.colours)
    scores = {name: {metric: float(value) for metric, value in values.items()} for name, values in panel.values.items()}
    return [Row(case.number, case.subject, name, scores[name], unit.name) for name in ("body", "whole", *list(regions)[1:])]


def _fastmri(work: Work, case: Case, image: Tensor) -> list[Row]:
    """One row of a reconstructed magnitude, from 0 up; none where the convention does not apply."""
    if work.kind != "reconstruction" or case.target.shape[1] > 1:
        return []
    x, target = (((values - ZERO) / DATA_RANGE).clamp(min=0) for values in (image.to(case.target), case.target))
    try:
        found = fastmri(x, target, work.model.contract.slice_axis or 0)
    except MedgenError:  # slices smaller than its window, an empty target
        return []
    return [Row(case.number, case.subject, "fastmri", {name: float(value) for name, value in found.items()})]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Plain data: n, and per region and metric the values, their mean and interval (or null with the reason)."""
    regions = dict.fromkeys(row.region for row in rows)
    return {
        "n_volumes": sum(row.region == "body" for row in rows),
        "n_subjects": len({row.subject for row in rows}),
        "data_range": DATA_RANGE,
        "interval_level": 0.95,
        "regions": {region: _region([r for r in rows if r.region == region]) for region in regions},
    }


def estimate(rows: Sequence[Row], region: str, metric: str) -> Estimate:
    """Mean over subjects with its interval."""
    own = [row for row in rows if row.region == region]
    found = _metric(metric, [r.values[metric] for r in own], [r.subject for r in own])
    mean = math.nan if found["mean"] is None else found["mean"]
    interval = None if found["interval"] is None else tuple(found["interval"])
    return Estimate(mean, interval, len({r.subject for r in own}), unit_name(metric, own), found["reason"] or "")


def difference(rows: Sequence[Row], others: Sequence[Row], metric: str, region: str = "body") -> Estimate | None:
    """Mean over subjects of what `rows` score above `others` on the same volumes; None where a score is not finite."""
    theirs = {row.number: row.values[metric] for row in others if row.region == region}
    own = [row for row in rows if row.region == region]
    gaps = [row.values[metric] - theirs[row.number] for row in own]
    if not all(map(math.isfinite, gaps)):
        return None
    found = summarise(gaps, [row.subject for row in own])
    return Estimate(found.mean, found.interval, found.subjects, unit_name(metric, own), ONE_SUBJECT if found.interval is None else "")


def unit_name(metric: str, rows: Sequence[Row]) -> str:
    """The unit of a metric, by what the rows' intensities are in."""
    unit = METRICS[metric].unit
    return rows[0].unit if unit == "intensity" else unit


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The volumes' rows of the body, the lowest PSNR first."""
    return sorted((row for row in rows if row.region == "body"), key=lambda row: row.values["psnr"])


def protocol(work: Work) -> dict[str, str]:
    """How the numbers come about, in words."""
    hounsfield = any(work.model.contract.intensity[c]["name"] == "ct_hu" for c in work.channels)
    body = "voxels that differ from the background in source or target: the largest connected part, holes filled"
    if hounsfield:
        body = f"above {AIR:g} HU in any CT channel: the largest connected part, holes filled"
    contract = work.model.contract
    grid = f"{contract.orientation}, spacing {contract.spacing} mm"
    if contract.slice_axis is not None:
        plane = [s for axis, s in enumerate(contract.spacing or ()) if axis != contract.slice_axis]
        across = f"slices along axis {contract.slice_axis} as far apart as in the files"
        grid = f"{contract.orientation}, {' x '.join(f'{s:g}' for s in plane)} mm in the plane, {across}"
    told = {
        "unit": "one score per volume over all its voxels at once; the mean is over subjects, the 95 % interval resamples subjects "
        "(studentised bootstrap: few subjects, wide intervals)",
        "scale": f"normalised units of the target, data_range {DATA_RANGE:g}; nothing is clipped or rescaled to the target",
        "body": body,
        **{HEADS[name]: metric.meaning for name, metric in METRICS.items()},
        "signal": f"NMSE and relative error count it from {ZERO:g}, the value of air and of no signal",
        "grid": f"{grid}; resampled after the intensity map",
        "draws": f"the mean of {work.draws} draws per case is scored" if work.draws > 1 else "one draw per case",
    }
    if work.kind == "reconstruction":
        told["measurement"] = f"{type(work.model.task.operator).__name__} as in training, simulated from the manifest's images"
    return told


def _judge(told: Section, rows: Sequence[Row], others: Mapping[str, Sequence[Row]], rivals: Sequence[Baseline], absent: str = "") -> None:
    """The verdict: how far above the best baseline, whether the interval says so, and whether it is blurred.

    Args:
        absent: the sentence of `baselines.missing`; without the harder yardsticks nothing passes.
    """
    own = estimate(rows, "body", "psnr")
    told.verdict = f"PSNR {own} in the body." if math.isfinite(own.value) else "A volume equals its target: the PSNR is infinite."
    gaps = {rival: difference(rows, others[rival.name], "psnr") for rival in rivals}
    known = {rival: gap for rival, gap in gaps.items() if gap is not None}
    if known:
        rival, gap = min(known.items(), key=lambda item: item[1].value)
        told.numbers["above_baseline"] = {"baseline": rival.name, "psnr": gap}
        told.verdict += f" {_against(gap, rival.title)}"
        sure = gap.interval is not None
        ends = gap.interval or (gap.value, gap.value)
        told.level = Level.BAD if ends[1] < 0 else Level.GOOD if sure and ends[0] > 0 else Level.WATCH
    if absent:
        told.numbers["baselines_missing"] = absent
        told.verdict += f" {absent}"
        told.level = Level.WATCH if told.level == Level.GOOD else told.level
    fine = estimate(rows, "body", "detail_power").value
    if fine < BLURRED:
        told.verdict += f" It is blurred: fine detail has {-fine:.2g} dB less power than the truth's."
        told.level = Level.WATCH if told.level == Level.GOOD else told.level
    if own.n == 1:
        told.verdict += " One subject: how much subjects differ is not known."
    elif own.n < ENOUGH and told.level == Level.GOOD:
        told.verdict += f" {own.n} subjects are too few to rest on."
        told.level = Level.WATCH


def _against(gap: Estimate, title: str) -> str:
    """A difference in PSNR as a sentence."""
    if gap.interval is not None and gap.interval[0] <= 0 <= gap.interval[1]:
        return f"That is not certainly better than {title}, {gap.value:+.3g} [{gap.interval[0]:.3g}, {gap.interval[1]:.3g}] dB."
    size = Estimate(abs(gap.value), gap.interval and tuple(sorted(abs(end) for end in gap.interval)), unit="dB")
    return f"That is {size} {'above' if gap.value > 0 else 'below'} {title}."


def _table(rows: Sequence[Row], metrics: Sequence[str], title: str, names: Mapping[str, str]) -> Table:
    regions = list(dict.fromkeys(row.region for row in rows))
    known = [metric for metric in metrics if any(math.isfinite(row.values[metric]) for row in rows)]
    counts = {region: len({row.subject for row in rows if row.region == region}) for region in regions}
    names = {"whole": "whole image", **names}
    cells = [[names.get(region, region), counts[region], *(estimate(rows, region, metric) for metric in known)] for region in regions]
    note = f"Better is: {_better(known)}. 95 % intervals resample subjects; of a class, those who have it."
    if not rows[0].unit and {"mae", "me"} & set(known):
        note += f" {'MAE' if metrics is MAIN else 'ME'} in network units, whose full range is {DATA_RANGE:g}."
    if metrics is KINDS:
        note += " " + " ".join(f"{HEADS[m][:1].upper()}{HEADS[m][1:]}: {METRICS[m].meaning}." for m in known)
    return Table(title, ["region", "subjects", *(HEADS[m] for m in known)], cells, note)


def _better(metrics: Sequence[str]) -> str:
    """Which way each of them is better."""
    ways = {"max": "higher", "min": "lower", "zero": "nearer to 0"}
    named = {word: [HEADS[m] for m in metrics if METRICS[m].best == way] for way, word in ways.items()}
    return "; ".join(f"{word} {', '.join(names)}" for word, names in named.items() if names)


def _beside(rows: Sequence[Row], others: Mapping[str, Sequence[Row]], rivals: Sequence[Baseline]) -> Table:
    methods = {"the model": rows, **{rival.title: others[rival.name] for rival in rivals}}
    cells = [[name, *(estimate(found, "body", metric) for metric in MAIN)] for name, found in methods.items()]
    note = "Baselines need no network; a fit is made on the training split." if rivals else "No baseline applies here."
    return Table("In the body, beside what needs no learning", ["method", *(HEADS[m] for m in MAIN)], cells, note)


def _cases(rows: Sequence[Row]) -> Table:
    cells = [[row.subject, *(row.values[metric] for metric in MAIN)] for row in ranked(rows)]
    return Table("Every volume in the body, the worst first", ["subject", *(HEADS[m] for m in MAIN)], cells)


def _figures(work: Work, rows: Sequence[Row], unit: Unit) -> list[Figure]:
    """The worst cases, the middle one and the best one, each in its worst plane; and the worst one at three heights."""
    order = ranked(rows)
    axis = 2 if work.model.contract.slice_axis is None else work.model.contract.slice_axis
    cuts, title = [], "Worst cases, a middle one and the best one" if len(order) > SHOWN else "All cases, the worst first"
    for place in dict.fromkeys([*range(min(SHOWN, len(order))), len(order) // 2, len(order) - 1]):
        case = work.case(order[place].number)
        made = work.made(case)
        images = shown(work, case, made.view, {"truth": case.target, "result": made.image})
        cuts.append(Cut(case.subject, images, worst_height(made.image - case.target, case.body, axis)))
        if place == 0 and case.body.ndim == 5:
            tall = [Cut(case.subject if not i else "", images, height) for i, height in enumerate(heights(case.body[0, 0], axis))]
    seen_as, note = (axis, DATA_RANGE, unit.name, unit.size), f"{GREY} {scaled(unit)}"
    figures = [Figure(title, cases_picture(cuts, *seen_as), f"Each is cut where its error is largest. {note}")]
    if order and cuts[0].images["truth"].ndim == 5:
        figures.append(Figure(f"The worst case, {order[0].subject}, at three heights", cases_picture(tall, *seen_as), note))
    return figures


def scaled(unit: Unit) -> str:
    """What the colours of differences mean."""
    return SCALED.format(unit=f"in {unit.name or f'network units (full range {DATA_RANGE:g})'}", held=HELD)


def shown(work: Work, case: Case, view: Tensor | None, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a picture of a case shows: what was given, then `images` of the target."""
    source, target = work.model.task.source, work.model.task.target
    given = {f"given: {source[0]}": seen(case.source, source)} if work.kind == "translation" else {"given: measured": seen(view, target)}
    return {**given, **{title: seen(image, target) for title, image in images.items()}}


def _told(row: Row) -> str:
    return f"PSNR {row.values['psnr']:.4g} dB, SSIM {row.values['ssim']:.3g}"


def _region(rows: list[Row]) -> dict[str, Any]:
    return {metric: _metric(metric, [r.values[metric] for r in rows], [r.subject for r in rows]) for metric in rows[0].values}


def _metric(name: str, values: list[float], subjects: list[str]) -> dict[str, Any]:
    listed = [{"subject": s, "value": v if math.isfinite(v) else None} for s, v in zip(subjects, values, strict=True)]
    if not all(map(math.isfinite, values)):
        empty = dict.fromkeys(("mean", "interval", "median", "median_interval"))
        return {**empty, "reason": NOT_FINITE, "volumes": listed}
    found = summarise(values, subjects)
    interval = None if found.interval is None else list(found.interval)
    if interval is not None:  # of few subjects it may reach beyond what the metric can be
        interval = [max(interval[0], 0.0) if METRICS[name].best == "min" else interval[0], min(interval[1], LARGEST.get(name, math.inf))]
    told = {"mean": found.mean, "interval": interval, "reason": ONE_SUBJECT if interval is None else None}
    return {**told, "median": found.median, "median_interval": found.median_interval, "volumes": listed}
