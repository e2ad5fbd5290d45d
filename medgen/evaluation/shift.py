"""Other sites, scanners and people: how much worse the model is there, and how far its inputs are from those that it was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.data.source import Case as TrainingCase
from medgen.evaluation.pixel import DATA_RANGE
from medgen.evaluation.plots import histogram
from medgen.evaluation.section import Estimate, Figure, Level, Section, Table, skipped
from medgen.evaluation.training_set import Still, batches, read_as_trained, training_set
from medgen.evaluation.work import Work
from medgen.metrics.feature import describe
from medgen.metrics.groups import Group, Novelty, Unpaired, novelty, unpaired_all
from medgen.metrics.pixel import psnr
from medgen.metrics.privacy import binomial_interval
from medgen.metrics.space import Space
from medgen.metrics.statistics import summarise

NAME, TITLE = "shift", "Other sites, scanners and people"
LEAST = 5  # subjects, below which a group has no interval
SEVERE = 3.0  # dB of PSNR: twice the squared error
FAR = 0.95  # of training subjects are nearer to one another
SIGNIFICANT = 0.05
UNKNOWN = "not given"
SEX, AGE = ("sex", "gender"), ("age", "age_years", "patient_age")
PLACES = ("site", "scanner", "vendor", "manufacturer", "center", "centre", "hospital", "field", "field_strength", "stain", "acceleration")
PLACES += ("dose", "protocol", "ethnicity", "race")
AGES = (0, 18, 40, 60, 80, math.inf)
DISTINCT = 8  # numbers of a column above which they are taken in quarters
SHOWN = 12
PROTOCOL = {
    "score": "PSNR in the body, one per volume, mean over subjects: that of the first section",
    "drop": "mean of the reference less that of the domain, different subjects: Welch's interval, p of the studentised permutation test, "
    "Holm's correction over domains. The reference is the domain with most training subjects, or the largest one",
    "groups": f"of columns {', '.join((*SEX, *AGE))} (in bands) and those of places and machines, each against all others; below "
    f"{LEAST} subjects there is a number and no interval",
    "novelty": "distance of what the model is given to the 3 nearest training subjects, in a feature space, over the median of the same "
    f"among training subjects; far is what {FAR:.0%} of training subjects are below, so of new inputs of the same kind about 5 % are far",
    "level": f"fails: a drop surely above {SEVERE:g} dB. Look at it: a drop or a difference of groups surely above 0 (p < {SIGNIFICANT:g} "
    "after Holm), or surely more than 5 % of inputs far from training. Passes: two domains or groups were compared, and none of these",
}


@dataclass(frozen=True)
class Scored:
    """A volume: its number in the split, its subject, its row, its PSNR in the body."""

    number: int
    subject: str
    row: dict[str, str]
    value: float


def section(work: Work, space: Space | None = None) -> Section:
    """Scores by domain and by group of people, and the inputs that are far from training."""
    if work.kind == "synthesis":
        reason = "Samples belong to no subject, so they have no domain: evaluate on a manifest of each domain and compare the distances."
        return skipped(NAME, TITLE, reason)
    columns = [c for c in work.manifest.columns if c != work.domain and c.lower() in (*SEX, *AGE, *PLACES)]
    rows = scored(work)
    if not rows:
        return skipped(NAME, TITLE, "Every volume equals its target: there is nothing to compare.")
    told = Section(NAME, TITLE, numbers={"reference": None, "domains": {}, "groups": {}}, protocol=dict(PROTOCOL))
    space = space or Space("fixed feature (medgen.metrics.feature.describe)", 0, describe)
    told.protocol["feature space"] = space.name
    try:
        far, missing = novelty_of(work, space), ""
    except MedgenError as error:
        far, missing = None, str(error)
    gaps = _domains(work, rows, far, told) if work.domain else []
    gaps += _groups(rows, columns, told)
    if not told.tables and far is None:
        return skipped(NAME, TITLE, f"No column to compare over: name one by --domain. Inputs cannot be compared with training: {missing}.")
    if far is None:
        told.numbers["novelty_skipped"] = missing
    else:
        _inputs(rows, far, told)
    _judge(told, gaps, far)
    return told


def scored(work: Work) -> list[Scored]:
    """The PSNR of every volume; those that equal their target, whose PSNR is infinite, are left out."""
    found = []
    for case in work.cases():
        value = float(psnr(work.made(case).image.to(case.target), case.target, DATA_RANGE, case.body))
        if math.isfinite(value):
            found.append(Scored(case.number, case.subject, dict(case.row), value))
    return found


def novelty_of(work: Work, space: Space) -> Novelty:
    """Of every row of the split, by what the task shows the model.

    Raises:
        MedgenError: no training images, or too few.
    """
    known = training_set(work)
    training, given = known.cases("train"), Still(read_as_trained(work).split(work.split))
    numbers = [str(i) for i in given.whole.told(np.arange(len(work)))]
    inputs = _means(work, given, numbers, space)
    absent = [i for i in range(len(work)) if str(i) not in inputs]
    if absent:
        raise MedgenError(f"subject {work.rows.rows[absent[0]]['subject']} has no image that training would take")
    references = _means(work, training, training.subjects, space)
    return novelty(torch.stack([inputs[str(i)] for i in range(len(work))]), torch.stack(list(references.values())))


def bands(column: str, values: Sequence[str]) -> list[str]:
    """Values as groups: ages in bands, other numbers in quarters where there are many, the rest as they are."""
    numbers = [_number(value) for value in values]
    known = [n for n in numbers if n is not None]
    age = column.lower() in AGE
    if not known or (not age and (len(known) < sum(map(bool, values)) or len(set(known)) <= DISTINCT)):
        return [value or UNKNOWN for value in values]
    edges = AGES if age else (-math.inf, *np.quantile(known, (0.25, 0.5, 0.75)).tolist(), math.inf)
    return [UNKNOWN if n is None else _band(n, edges) for n in numbers]


def _domains(work: Work, rows: Sequence[Scored], far: Novelty | None, told: Section) -> list[tuple[str, Unpaired]]:
    """The table over `work.domain`, and the drops that can be tested."""
    names = bands(work.domain, [row.row[work.domain] for row in rows])
    parts = {name: [row for row, own in zip(rows, names, strict=True) if own == name] for name in sorted(set(names))}
    reference = _reference(work, parts)
    others = [name for name in parts if name != reference and _subjects(parts[name]) >= LEAST and _subjects(parts[reference]) >= LEAST]
    found = dict(zip(others, unpaired_all([(_group(parts[reference]), _group(parts[name])) for name in others]), strict=True))
    cells = []
    for name, part in sorted(parts.items(), key=lambda item: item[0] != reference):
        gap = found.get(name)
        share = "-" if far is None else f"{np.mean([far.places[row.number] >= FAR for row in part]):.0%}"
        below = "reference" if name == reference else _gap(gap, part, parts[reference])
        cells.append([name, _subjects(part), _mean(part), below, gap.adjusted if gap else "-", share])
        told.numbers["domains"][name] = {"psnr": _mean(part), "drop": None if name == reference else below, "p": gap and gap.adjusted}
    told.numbers |= {"domain": work.domain, "reference": reference}
    heads = [work.domain, "subjects", "PSNR", f"below {reference}", "p (Holm)", "inputs far from training rows"]
    told.tables.append(Table(f"By {work.domain}", heads, cells, "Different subjects in each; see below how they are compared."))
    return [(f"from {reference} to {name}", gap) for name, gap in found.items()]


def _groups(rows: Sequence[Scored], columns: Sequence[str], told: Section) -> list[tuple[str, Unpaired]]:
    """The table of groups of people and places, each against all others of its column."""
    listed: list[tuple[str, list[Scored], list[Scored]]] = []
    for column in columns:
        names = bands(column, [row.row[column] for row in rows])
        kinds = sorted(set(names), key=_sorting)
        for kind in kinds if len(kinds) > 1 else ():
            inside = [row for row, own in zip(rows, names, strict=True) if own == kind]
            listed.append((f"{column} {kind}", inside, [row for row, own in zip(rows, names, strict=True) if own != kind]))
    tested = [i for i, (_, inside, rest) in enumerate(listed) if min(_subjects(inside), _subjects(rest)) >= LEAST]
    pairs = [(_group(listed[i][2]), _group(listed[i][1])) for i in tested]
    found = dict(zip(tested, unpaired_all(pairs), strict=True))
    cells = []
    for i, (name, inside, rest) in enumerate(listed):
        below = _gap(found.get(i), inside, rest)
        cells.append([name, _subjects(inside), _mean(inside), below, found[i].adjusted if i in found else "-"])
        told.numbers["groups"][name] = {"psnr": _mean(inside), "below_others": below, "p": found[i].adjusted if i in found else None}
    if cells:
        note = f"A group below {LEAST} subjects is shown and not judged."
        told.tables.append(
            Table("By group of people and place", ["group", "subjects", "PSNR", "below all others", "p (Holm)"], cells, note)
        )
    return [(f"for {listed[i][0]}", gap) for i, gap in found.items()]


def _inputs(rows: Sequence[Scored], far: Novelty, told: Section) -> None:
    """The inputs that are furthest from training."""
    order = sorted(rows, key=lambda row: -far.scores[row.number])
    cells = [[row.subject, float(far.scores[row.number]), f"{far.places[row.number]:.0%}", row.value] for row in order[:SHOWN]]
    heads = ["subject", "distance", "training subjects that are nearer", "PSNR (dB)"]
    note = "Distance to training over what is usual among training subjects (1)."
    told.tables.append(Table("Inputs, the furthest from training first", heads, cells, note))
    told.figures.append(
        Figure("How far inputs are from training", histogram({"these inputs": far.scores, "training subjects": far.training}), note)
    )
    told.worst = [(row.subject, f"input {far.scores[row.number]:.3g} times as far from training as usual") for row in order[:3]]
    told.worst = [pair for pair, row in zip(told.worst, order, strict=False) if far.places[row.number] >= FAR]
    told.numbers["novelty"] = [
        {"subject": r.subject, "score": float(far.scores[r.number]), "place": float(far.places[r.number])} for r in rows
    ]
    told.numbers["novelty_training"] = {"n": len(far.training), "median": 1.0, "largest": float(far.training.max())}


def _judge(told: Section, gaps: Sequence[tuple[str, Unpaired]], far: Novelty | None) -> None:
    """Verdict and level."""
    sure = [(name, gap) for name, gap in gaps if gap.interval and gap.interval[0] > 0 and gap.adjusted < SIGNIFICANT]
    said = []
    if sure:
        name, gap = max(sure, key=lambda item: item[1].difference)
        said.append(f"PSNR falls {name} by {Estimate(gap.difference, gap.interval, unit='dB')}.")
    elif gaps:
        widest = max(gap.interval[1] if gap.interval else math.inf for _, gap in gaps)
        said.append(f"Of {len(gaps)} comparisons none is surely worse; a drop of up to {widest:.3g} dB is not excluded.")
    strange = None
    if far is not None:
        count, n = int((far.places >= FAR).sum()), len(far.places)
        strange = binomial_interval(count, n)[0] > 1 - FAR
        said.append(f"{count} of {n} inputs are far from the training rows of the manifest; about {1 - FAR:.0%} would be usual.")
        told.numbers["far"] = {"count": count, "n": n}
    if not said:
        few = f"fewer than {LEAST} subjects in all domains but one" if told.numbers["domains"] else "no inputs of training to compare with"
        said.append(f"Shown and not judged: {few}.")
    told.verdict = " ".join(said)
    if any(gap.interval[0] > SEVERE for _, gap in sure):
        told.level = Level.BAD
    elif sure or strange:
        told.level = Level.WATCH
    else:
        told.level = Level.GOOD if gaps else Level.NONE


def _reference(work: Work, parts: dict[str, list[Scored]]) -> str:
    """The domain with most training subjects, where it was evaluated; else the largest."""
    train = [row for row in work.manifest.rows if row["split"] == "train"]
    seen: dict[str, set[str]] = {}
    for row in train:
        seen.setdefault(row[work.domain] or UNKNOWN, set()).add(row["subject"])
    known = {name: len(seen[name]) for name in parts if name in seen}
    return max(known, key=lambda name: known[name]) if known else max(parts, key=lambda name: _subjects(parts[name]))


def _means(work: Work, cases: Sequence[TrainingCase], names: Sequence[str], space: Space) -> dict[str, torch.Tensor]:
    """Name -> mean feature of what the model is given in the cases of that name."""
    found: list[torch.Tensor] = []
    for batch in batches(work, cases):
        size = len(next(iter(batch.values())))
        dense = work.model.task.example(batch, Rng(work.seed, 0, [0] * size)).condition.dense
        if dense is None:
            raise MedgenError("the model is given no image")
        found.append(space.features(dense.float()))
    vectors = torch.cat(found)
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    return {name: vectors[own].mean(0) for name, own in rows.items()}


def _mean(part: Sequence[Scored]) -> Estimate:
    found = summarise(*_group(part))
    few = found.subjects < LEAST
    return Estimate(found.mean, None if few else found.interval, found.subjects, "dB", f"fewer than {LEAST} subjects" if few else "")


def _gap(gap: Unpaired | None, part: Sequence[Scored], reference: Sequence[Scored]) -> Estimate:
    """How far a group is below another one."""
    if gap is not None:
        return Estimate(gap.difference, gap.interval, sum(gap.subjects), "dB", "" if gap.interval else "no spread")
    value = _mean(reference).value - _mean(part).value if reference else math.nan
    return Estimate(value, None, _subjects(part), "dB", f"fewer than {LEAST} subjects in one of the two")


def _group(part: Sequence[Scored]) -> Group:
    return [row.value for row in part], [row.subject for row in part]


def _subjects(part: Sequence[Scored]) -> int:
    return len({row.subject for row in part})


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _band(number: float, edges: Sequence[float]) -> str:
    low, high = next(pair for pair in pairwise(edges) if number < pair[1] or math.isinf(pair[1]))
    if math.isinf(low):
        return f"below {high:g}"
    return f"{low:g} and more" if math.isinf(high) else f"{low:g} to below {high:g}"


def _sorting(name: str) -> tuple[bool, float, str]:
    """Bands in their order, words by letter."""
    first = _number(name.split()[0]) if name.split() else None
    return (first is None and not name.startswith("below"), -math.inf if name.startswith("below") else first or 0.0, name)
