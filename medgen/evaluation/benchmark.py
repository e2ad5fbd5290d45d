"""Several models on the same cases with the same seeds: scores, paired differences, costs, and pictures of the same cases side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from medgen.core.errors import MedgenError
from medgen.core.picture import gray
from medgen.evaluation.baselines import Baseline, baselines, missing
from medgen.evaluation.document import about, cost, sampling_said, versions
from medgen.evaluation.pictures import flat, heights, lettered, plane, scale, seen, signed, small
from medgen.evaluation.pixel import DATA_RANGE, HEADS, MAIN, Row, estimate, ranked, scaled, score_case, summary, unit_name, unit_of
from medgen.evaluation.samples import evaluate_samples, work_picture
from medgen.evaluation.section import Estimate, Figure, Table, plain
from medgen.evaluation.training_set import read_targets
from medgen.evaluation.work import Case, Work
from medgen.metrics.panel import METRICS
from medgen.metrics.statistics import compare

SIGNIFICANT = 0.05
DIFFERENCES = "Paired differences"
LOST = 10.0  # dB below a copy of the source: not a picture of the target
SHOWN = 3  # cases: the worst, the middle and the best one
COLUMNS = (*MAIN, "detail_power")
SAMPLED = ("feature distance / floor", "kernel distance x 1000", "nearest training image", "nearer than held-out 5 %")
Told = Callable[[str, int, int], None]


@dataclass
class Method:
    """A model, or a baseline: its scores, and for a model its costs.

    Attributes:
        rows: of every case and region, for pairs.
        samples: what `evaluate_samples` says, for synthesis.
        about, cost: plain data of a model; empty for a baseline.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """The work of a model whose answers are on disk and whose network was let go, and what is to be said about it."""

    work: Work
    about: dict[str, Any]


@dataclass
class Compared:
    """Attributes:
    best: metric -> the method that is better than every other by interval and test; None where none is.
    differences: metric -> method -> how far it is from the one with the best mean.
    """

    kind: str
    methods: list[Method]
    best: dict[str, str | None]
    differences: dict[str, dict[str, Estimate]]
    figures: list[Figure]
    notes: list[str]


def answered(works: Mapping[str, Callable[[], Work]], told: Told | None = None) -> dict[str, Answered]:
    """This process's share of every model's answers, model by model: one network is in memory at a time.

    Args:
        works: name -> how to get its work.

    Raises:
        MedgenError: models that answer different questions or work on different grids.
    """
    _check_all(works)
    done: dict[str, Answered] = {}
    for name, get in works.items():
        work = get()
        work.make_all(lambda made, of, name=name: told(name, made, of) if told else None)
        done[name] = Answered(work, about(work))
        work.model = replace(work.model, model=nn.Module())
    return done


def compared(answers: Mapping[str, Answered], rivals: Sequence[str] | None = None, told: Told | None = None) -> Compared:
    """What the answers are worth, beside each other and the baselines (None: all that apply)."""
    done = {name: answer.work for name, answer in answers.items()}
    methods = [Method(name, about=answer.about, cost=cost(answer.work.costs())) for name, answer in answers.items()]
    first = next(iter(done.values()))
    if first.kind == "synthesis":
        return _sampled(done, methods)
    beside = baselines(first, rivals)
    methods += [Method(rival.name) for rival in beside]
    for number in range(len(first)):
        _score(done, beside, methods, first.case(number))
        if told:
            told("scores", number + 1, len(first))
    best, differences = ranking(methods, MAIN)
    absent = missing(first) if rivals is None or {"line", "curve"} & set(rivals) else ""
    notes = [*_notes(methods), *filter(None, [absent])]
    return Compared(first.kind, methods, best, differences, _figures(done, beside, methods), notes)


def _check_all(works: Mapping[str, Callable[[], Work]]) -> None:
    """Refuse, before anything is made, models that cannot be compared and a manifest that does not fit one of them."""
    seen: dict[str, Work] = {}
    for name, get in works.items():
        work = get()
        check_alike(seen, name, work)
        work.rows  # noqa: B018
        work.model = replace(work.model, model=nn.Module())
        seen[name] = work


def check_alike(done: Mapping[str, Work], name: str, work: Work) -> None:
    """Refuse a model that cannot be compared with those before it."""
    for other, earlier in done.items():
        for what in ("kind", "source channels", "target channels", "intensities of the target", "grid"):
            one, two = (_trait(w, what) for w in (earlier, work))
            if one != two:
                raise MedgenError(f"{other} and {name} cannot be compared: their {what} differ ({one} and {two})")


def _trait(work: Work, what: str) -> Any:
    contract, task = work.model.contract, work.model.task
    rules = {c: {k: v for k, v in contract.intensity[c].items() if k != "typical"} for c in task.target}
    axis = contract.slice_axis
    spacing = None if contract.spacing is None else [s for i, s in enumerate(contract.spacing) if i != axis]
    return {
        "kind": work.kind,
        "source channels": list(task.source),
        "target channels": list(task.target),
        "intensities of the target": rules,
        "grid": (contract.orientation, spacing, axis, list(contract.size) if work.kind == "synthesis" else None),
    }[what]


def _score(done: Mapping[str, Work], beside: Sequence[Baseline], methods: Sequence[Method], case: Case) -> None:
    """One case's rows for every method; a reconstruction's baseline is what the first model was given."""
    unit = unit_of(next(iter(done.values())))
    made = [work.made(case) for work in done.values()]
    images = [answer.image for answer in made] + [rival.predict(case, made[0]) for rival in beside]
    for method, image in zip(methods, images, strict=True):
        method.rows += score_case(image, case, unit)


def ranking(methods: Sequence[Method], metrics: Sequence[str], region: str = "body") -> tuple[dict[str, str | None], dict[str, Any]]:
    """For each metric the method that is better than every other, and each one's paired difference from the one with the best mean.

    Better is: the 95 % interval of the paired difference excludes 0, and the sign-flip test says so after Holm's correction.
    """
    best: dict[str, str | None] = {}
    differences: dict[str, dict[str, Estimate]] = {}
    for metric in metrics:
        values = {m.name: [r.values[metric] for r in m.rows if r.region == region] for m in methods}
        values = {name: column for name, column in values.items() if column and all(map(math.isfinite, column))}
        best[metric], differences[metric] = None, {}
        if len(values) < 2:
            continue
        subjects = [r.subject for r in methods[0].rows if r.region == region]
        means = {name: statistics.fmean(column) for name, column in values.items()}
        leader = (max if METRICS[metric].best == "max" else min)(means, key=means.get)
        pairs = compare(values, subjects, reference=leader)
        unit = unit_name(metric, methods[0].rows)
        differences[metric] = {pair.first: Estimate(pair.difference, pair.interval, pair.subjects, unit) for pair in pairs}
        if all(pair.interval and not pair.interval[0] <= 0 <= pair.interval[1] and pair.adjusted < SIGNIFICANT for pair in pairs):
            best[metric] = leader
    return best, differences


def _notes(methods: Sequence[Method]) -> list[str]:
    subjects = len({row.subject for row in methods[0].rows})
    notes = ["Bold is better than every other: the interval of the paired difference excludes 0, and Holm's sign-flip test agrees."]
    if subjects < 6:
        count = "one subject" if subjects == 1 else f"{subjects} subjects"
        notes.append(f"With {count} no difference can be significant, so nothing is bold.")
    scores = {m.name: statistics.fmean(row.values["psnr"] for row in m.rows) for m in methods}
    copied = scores.get("copy")
    lost = [] if copied is None else [f"{name} ({score:.3g} dB)" for name, score in scores.items() if score < copied - LOST]
    if lost:
        notes.append(
            f"Far below a copy of the source ({copied:.3g} dB): {', '.join(lost)}. Such images are wrong as a whole: look at them."
        )
    return notes


def _figures(done: Mapping[str, Work], beside: Sequence[Baseline], methods: Sequence[Method]) -> list[Figure]:
    """The cases that are hardest, middling and easiest for all models, side by side, and below each method its difference."""
    first = next(iter(done.values()))
    by_case: dict[int, list[float]] = {}
    for method in methods[: len(done)]:
        for row in ranked(method.rows):
            by_case.setdefault(row.number, []).append(row.values["psnr"])
    order = sorted(by_case, key=lambda number: statistics.fmean(by_case[number]))
    axis = 2 if first.model.contract.slice_axis is None else first.model.contract.slice_axis
    rows, marks, scales, unit = [], [], [], unit_of(first)
    for place in dict.fromkeys((0, len(order) // 2, len(order) - 1)):
        case = first.case(order[place])
        made = [work.made(case) for work in done.values()]
        given = case.source if first.kind == "translation" else made[0].view
        images = [answer.image for answer in made] + [rival.predict(case, made[0]) for rival in beside]
        height = heights(case.body[0, 0], axis, (0.5,))[0]
        names = first.model.task.source if first.kind == "translation" else first.model.task.target
        shown = [plane(seen(given, names), axis, height)]
        shown += [plane(seen(image, first.model.task.target), axis, height) for image in (case.target, *images)]
        rows.append([small(gray(p, -DATA_RANGE / 2, DATA_RANGE / 2)) for p in shown])
        blank = np.zeros_like(rows[-1][0])
        differences = [flat(p - shown[1]) for p in shown[2:]]
        scales += [None, scale(differences, unit.name, unit.size)]
        rows.append([blank, blank, *(small(signed(difference, scales[-1].edge)) for difference in differences)])
        marks += [case.subject, ""]
    titles = ["given", "truth", *(method.name for method in methods)]
    note = f"The middle of the body; below each result its difference, on one scale for all methods of a case. {scaled(unit)}"
    return [Figure("The hardest, the middle and the easiest case", lettered(rows, titles, marks, scales), note)]


def _sampled(done: Mapping[str, Work], methods: list[Method]) -> Compared:
    """Models that make images from nothing: sets are compared, not cases."""
    first = next(iter(done.values()))
    training, held_out = read_targets(first, "train")[0], first.reals(first.split)
    figures = []
    for method, work in zip(methods, done.values(), strict=True):
        made = work.drawn()
        if made.shape[1:] != held_out.shape[1:]:
            raise MedgenError(f"{method.name}: samples have shape {tuple(made.shape[1:])}, the data's images {tuple(held_out.shape[1:])}")
        method.samples = {k: v for k, v in evaluate_samples(made, training, held_out).items() if k != "protocol"}
        picture = work_picture(work, made, training, held_out)
        figures.append(Figure(f"{method.name}: samples, their nearest training images, real images", picture))
    note = "Sets have no pairs: the distances carry no test, so nothing is bold. `medgen evaluate` gives their intervals."
    return Compared(first.kind, methods, {}, {}, figures, [note])


def tables(found: Compared) -> list[tuple[Table, list[tuple[int, int]]]]:
    """Every table with the (row, column) that are best."""
    if found.kind == "synthesis":
        rows = [[m.name, *_sample_cells(m.samples)] for m in found.methods]
        made = [(Table("Samples beside real images", ["model", *SAMPLED], rows), [])]
    else:
        rows = [[m.name, *(estimate(m.rows, "body", metric) for metric in COLUMNS)] for m in found.methods]
        best = [(i, j + 1) for i, m in enumerate(found.methods) for j, metric in enumerate(COLUMNS) if found.best.get(metric) == m.name]
        made = [(Table("Scores in the body", ["method", *(HEADS[m] for m in COLUMNS)], rows, " ".join(found.notes)), best)]
        apart = [[m.name, *(found.differences[metric].get(m.name, "best mean") for metric in MAIN)] for m in found.methods]
        note = "What a method scores above the one with the best mean, on the same cases: mean over subjects."
        made.append((Table(DIFFERENCES, ["method", *(HEADS[m] for m in MAIN)], apart, note), []))
    spent = [
        [m.name, sampling_said(m.about), _seconds(m.cost), m.cost.get("evaluations"), _memory(m.cost), m.about["numbers"] / 1e6]
        for m in found.methods
        if m.cost
    ]
    heads = ["model", "sampler", "seconds", "network evaluations", "memory (GB)", "parameters (million)"]
    note = "Medians per answer or sample; memory is the most that the process (on CUDA: the device's tensors) held."
    return [*made, (Table("Costs", heads, spent, note), [])]


def _sample_cells(found: Mapping[str, Any]) -> list[float | str]:
    near = found["nearest_training"]
    distances = [found["frechet"]["ratio"], 1000 * found["kernel"]["samples"], near["samples_median"]]
    return [*distances, f"{near['share_nearer_than_5th_percentile']:.0%}"]


def _seconds(spent: Mapping[str, Any]) -> float | None:
    return spent.get("seconds")


def _memory(spent: Mapping[str, Any]) -> float | None:
    return spent["memory_bytes"] / 1e9 if spent.get("memory_bytes") else None


def _cost(method: Method) -> dict[str, Any]:
    """What an answer took, and what it was drawn by, which explains it."""
    return {**method.cost, **{name: method.about[name] for name in ("sampler", "steps", "guidance")}}


def document(found: Compared, works: Work, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a benchmark. `works` is any one of the models', for the data that they share."""
    rows = works.manifest.split(works.split)
    scores = {m.name: {"scores": summary(m.rows)} if m.rows else {"samples": m.samples} for m in found.methods}
    return plain(
        {
            "format": 1,
            "kind": found.kind,
            "data": {
                "manifest": str(works.manifest.path),
                "split": works.split,
                "volumes": len(rows.rows),
                "subjects": len(rows.subjects),
            },
            "settings": dict(settings),
            "models": {m.name: {"about": m.about, "cost": _cost(m), **scores[m.name]} for m in found.methods if m.about},
            "baselines": {m.name: scores[m.name] for m in found.methods if not m.about},
            "best": found.best,
            "differences_from_the_best_mean": found.differences,
            "notes": found.notes,
            "versions": versions(),
        }
    )
