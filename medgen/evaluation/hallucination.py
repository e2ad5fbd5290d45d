"""Structure that a model makes up or misses: lesions with known truth, places of a lesion's size, local agreement, and what of the error a
measurement could have told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medgen.evaluation.agreement import COARSE, Parts, Resolved, measured_parts, resolved, structures, window
from medgen.evaluation.hallucination_figures import Scene, lesion_figure, parts_figure, resolution_figure, structure_figure
from medgen.evaluation.probes import (
    ADDED,
    CASES,
    CONTRAST,
    LEAST,
    RADII,
    SILENT,
    SIZES,
    Found,
    Look,
    answer,
    changed,
    changed_cases,
    first_answer,
    lesion_map,
    look_of,
    outcome,
    radii,
    sites,
    there,
    tried,
    voxel,
)
from medgen.evaluation.section import Estimate, Level, Section, Table, skipped
from medgen.evaluation.work import Progress, Work
from medgen.metrics.detection import rate
from medgen.metrics.lesions import HALF
from medgen.metrics.statistics import summarise

NAME, TITLE = "hallucination", "Structure made up or missed"
ONE_SUBJECT = "one subject cannot tell how much subjects differ"
WELL, BADLY = 0.2, 0.5  # share of lesions missed, or shown without being there
FEW, MANY = 0.01, 0.1  # share of the body in structures that are not there, or lost
RULE = (
    f"good: the intervals of missed lesions and of removed ones that are still shown end at {WELL:.0%} or less, and structures that are "
    f"not there fill at most {FEW:.0%} of the body, lost ones too; bad: {BADLY:.0%} of the lesions, or {MANY:.0%} of the body; "
    "watch: between, or not all could be measured"
)
TITLES = {
    "there": "lesions that are there, missed",
    "added": "lesions added, missed",
    "unanswered": "lesions added, without any effect",
    "removed": "lesions removed, still shown",
}
SAID = {
    "there": "{0} of {1} lesions that are there are missed",
    "added": "{0} of {1} added lesions are missed",
    "unanswered": "{0} of {1} added lesions have no effect",
    "removed": "{0} of {1} removed lesions are still shown",
}


@dataclass(frozen=True)
class Seen:
    """What was found in one case."""

    number: int
    subject: str
    found: list[Found]
    false: int
    lost: int
    false_share: float
    lost_share: float
    largest: tuple[int, ...] | None
    resolved: Resolved | None
    parts: Parts | None
    spacing: float | None


def section(work: Work) -> Section:
    """Missed and false structure of a translation or a reconstruction."""
    if work.kind == "synthesis":
        return skipped(NAME, TITLE, "An image from nothing has no truth in which a structure could be missing or too many.")
    name = lesion_map(work)
    look = look_of(work, name)
    runs = changed_cases(work)
    seen = [_seen(work, number, name, look, number in runs) for number in range(len(work))]
    told = Section(NAME, TITLE, protocol=protocol(work, name, look, len(runs)))
    lesions = [found for one in seen for found in one.found]
    told.numbers = {"lesions": _rates(lesions), "structures": _structures(seen), "changed_cases": len(runs), "label_map": name or None}
    told.tables = [table for table in (_lesion_table(told.numbers["lesions"]), _structure_table(told.numbers["structures"])) if table.rows]
    for measure in (_add_resolution, _add_parts):
        measure(told, seen)
    _judge(told)
    told.worst = _worst(seen)
    told.figures = _figures(work, seen, name, look)
    return told


def prepare(work: Work, progress: Progress) -> None:
    """This process's share of the runs with changed lesions, which the section then finds."""
    if work.kind == "synthesis":
        return
    name = lesion_map(work)
    look, own = look_of(work, name), work.share(changed_cases(work))
    for done, number in enumerate(own, 1):
        tried(work, work.case(number), name, look)
        progress(done, len(own))


def protocol(work: Work, name: str, look: Look | None, runs: int) -> dict[str, str]:
    """How the numbers come about, in words."""
    told = {
        "level": RULE,
        "contrast": "mean over a lesion minus mean over a shell of two voxels around it, first channel; shown is its share of the truth's",
        "missed": f"less than {HALF:.0%} of the contrast is shown",
        "added lesions": f"up to {ADDED} ellipsoids of {RADII[0]:g} and {RADII[1]:g} mm radius (small and large) at random places well in "
        f"the body, {_appearance(work, look)}; the change of the answer over the change of the truth. {runs} more runs of the model, one "
        f"each for at most {CASES} cases (none with --quick)",
        "structures": f"where answer and truth differ by {HALF * CONTRAST:g} network units at the scale of a large ellipsoid; their share "
        "of the body by volume",
        "answer": "the first draw, not the mean of several",
        "resolution": "Fourier ring correlation of windows, as a fraction of Nyquist where it falls below a half (Kc et al. 2024)",
    }
    if name:
        told["lesions there"] = (
            f"those of '{name}' of three voxels or more with a contrast of at least {LEAST:g} network units in the truth; none of it is "
            "shown where the answer is like the truth with the membrane through the lesion's rim in its place"
        )
        told["removed lesions"] = "the same, replaced by that membrane in what is given, in the runs with added ones"
    if work.kind == "reconstruction":
        told["range and null space"] = "the error e = A^+ A e + (I - A^+ A) e by conjugate gradients in float64 (Bhadra et al. 2021)"
    return told


def _appearance(work: Work, look: Look | None) -> str:
    if work.kind == "reconstruction":
        return f"{CONTRAST:g} network units brighter or darker than their place in the truth, which is measured again with the same noise"
    if look is not None:
        return "with the values of the lesions of the label map in source and target"
    return (
        f"{CONTRAST:g} network units brighter or darker than their place in the source. Unless both are CT of one window, their look in "
        f"the target is not known and only counts whether the answer changes by {SILENT:.0%} of that (name lesions by --labels lesion=2)"
    )


def _seen(work: Work, number: int, name: str, look: Look | None, run: bool) -> Seen:
    case = work.case(number)
    image = first_answer(work, case)
    found = there(case, name, image)
    if run:
        again = tried(work, case, name, look)
        found += outcome(case, again[0], image, again[1]) if again else []
    spacing = voxel(work, case)
    scan = structures(image, case, radii(case, spacing), CONTRAST)
    largest = (scan.false or scan.lost or [None])[0]
    return Seen(
        number,
        case.subject,
        found,
        len(scan.false),
        len(scan.lost),
        scan.share(scan.false),
        scan.share(scan.lost),
        None if largest is None else _middle(largest),
        resolved(work, case, image),
        measured_parts(work, case, image) if work.kind == "reconstruction" else None,
        None if spacing is None else float(spacing[0]),
    )


def _middle(mask: Tensor) -> tuple[int, ...]:
    at = mask.nonzero()
    return tuple(((at.amin(0) + at.amax(0)) // 2).tolist())


# --- numbers ----------------------------------------------------------------------------------------------------------------------------


def _rates(lesions: Sequence[Found]) -> dict[str, Any]:
    """Kind -> how many, the share that went wrong, and the mean share of contrast that is shown; of added ones by size too."""
    groups = {
        "there": [f for f in lesions if f.kind == "there"],
        "added": [f for f in lesions if f.kind == "added" and f.known],
        "unanswered": [f for f in lesions if f.kind == "added" and not f.known],
        "removed": [f for f in lesions if f.kind == "removed"],
    }
    return {kind: _rate(found) | _by_size(found) for kind, found in groups.items() if found}


def _by_size(found: Sequence[Found]) -> dict[str, Any]:
    return {size: _rate(own) for size in SIZES if (own := [f for f in found if f.size == size])}


def _rate(found: Sequence[Found]) -> dict[str, Any]:
    subjects = [f.subject for f in found]
    wrong, shown = rate([f.wrong for f in found], subjects), summarise([f.share for f in found], subjects)
    return {"n": len(found), "wrong": _percent(wrong), "shown": _percent(shown)}


def _percent(found: Any) -> Estimate:
    interval = None if found.interval is None else tuple(100 * end for end in found.interval)
    return Estimate(100 * found.mean, interval, found.subjects, "%", ONE_SUBJECT if interval is None else "")


def _mean(values: Sequence[float], subjects: Sequence[str], unit: str = "") -> Estimate:
    """Of numbers that are never negative."""
    found = summarise(values, subjects)
    interval = found.interval and (max(0.0, found.interval[0]), found.interval[1])
    return Estimate(found.mean, interval, found.subjects, unit, ONE_SUBJECT if interval is None else "")


def _structures(seen: Sequence[Seen]) -> dict[str, Any]:
    subjects, told = [one.subject for one in seen], {}
    for kind in ("false", "lost"):
        counts, shares = [float(getattr(one, kind)) for one in seen], [100 * getattr(one, f"{kind}_share") for one in seen]
        told[kind] = {"per_image": _mean(counts, subjects), "of_body": _mean(shares, subjects, "%")}
    return told


def _lesion_table(rates: dict[str, Any]) -> Table:
    rows = []
    for kind, one in rates.items():
        rows.append([TITLES[kind], one["n"], one["wrong"], one["shown"]])
        rows += [[f"of these {size}", own["n"], own["wrong"], own["shown"]] for size in SIZES if (own := one.get(size))]
    note = (
        "Shown: mean share of the true contrast, 100 % is right, of removed lesions 0 %. Intervals resample subjects; where all are alike, "
    )
    note += "they are Clopper and Pearson's for as many subjects. Without any effect: the change of the answer over that of the source."
    return Table("Lesions with known truth", ["what", "lesions", "of them", "contrast shown"], rows, note)


def _structure_table(found: dict[str, Any]) -> Table:
    titles = {"false": "in the answer, not in the truth", "lost": "in the truth, not in the answer"}
    rows = [[titles[kind], found[kind]["per_image"], found[kind]["of_body"]] for kind in titles]
    note = "Any anatomy counts, not lesions alone. What is connected counts as one."
    return Table("Structures of a lesion's size or larger", ["what", "per image", "of the body"], rows, note)


def _add_resolution(told: Section, seen: Sequence[Seen]) -> None:
    known = [one for one in seen if one.resolved is not None]
    if not known:
        return
    subjects = [one.subject for one in known]
    median = _mean([one.resolved.median for one in known], subjects)
    coarse = _mean([100 * one.resolved.coarse for one in known], subjects, "%")
    row = ["agrees up to", median, coarse]
    told.numbers["resolution"] = {"median": median, "coarse": coarse, "window": known[0].resolved.window}
    heads = ["what", "of Nyquist", f"windows that end below {COARSE:g}"]
    if all(one.spacing and one.resolved.median > 0 for one in known):
        detail = _mean([one.spacing / one.resolved.median for one in known], subjects, "mm")
        told.numbers["resolution"]["detail"] = detail
        row, heads = [*row, detail], [*heads, "smallest detail"]
    note = f"Median over windows of {known[0].resolved.window} voxels, then mean over subjects. Contrast does not matter to it, only shape."
    told.tables.append(Table("Local agreement with the truth", heads, [row], note))


def _add_parts(told: Section, seen: Sequence[Seen]) -> None:
    known = [one for one in seen if one.parts is not None]
    if not known:
        return
    subjects = [one.subject for one in known]
    shares = {part: _mean([100 * getattr(one.parts, part) for one in known], subjects, "%") for part in ("range", "null")}
    told.numbers["error_parts"] = shares | {"seen": max(one.parts.seen for one in known)}
    rows = [
        ["what the measurement contradicts (range)", shares["range"]],
        ["what it cannot see (null space): made up or missed", shares["null"]],
    ]
    told.tables.append(Table("Squared error in two parts", ["part", "of the error"], rows, "Over the whole grid; they add up to 100 %."))


# --- the verdict ------------------------------------------------------------------------------------------------------------------------


def _judge(told: Section) -> None:
    rates, scan = told.numbers["lesions"], told.numbers["structures"]
    parts = [_said(kind, one["wrong"], one["n"]) for kind, one in rates.items()] or ["No lesion was tried"]
    false, lost = (scan[kind]["of_body"] for kind in ("false", "lost"))
    told.verdict = f"{'; '.join(parts)}. Structures that are not there fill {false} of the body, lost ones {lost}."
    judged, share = [one["wrong"] for one in rates.values()], max(false.value, lost.value)
    bad = any(one.value >= 100 * BADLY for one in judged) or share >= 100 * MANY
    ends = [one.interval[1] if one.interval else 100.0 for one in judged]
    complete = ("there" in rates or "added" in rates) and all(end <= 100 * WELL for end in ends)
    told.level = Level.BAD if bad else Level.GOOD if complete and share <= 100 * FEW else Level.WATCH


def _said(kind: str, wrong: Any, n: int) -> str:
    text = SAID[kind].format(wrong, n)
    if n > 1:
        return text
    for many, one in (
        ("lesions that are there are", "lesion that is there is"),
        ("lesions are", "lesion is"),
        ("lesions have", "lesion has"),
    ):
        text = text.replace(many, one)
    return text


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _worst(seen: Sequence[Seen], most: int = 3) -> list[tuple[str, str]]:
    """By lesions that went wrong, then by structures that are not there."""

    def badness(one: Seen) -> tuple[int, float]:
        return sum(f.wrong for f in one.found), one.false_share

    found = []
    for one in sorted(seen, key=badness, reverse=True)[:most]:
        wrong = {kind: sum(f.wrong for f in one.found if f.kind == kind) for kind in ("there", "added", "removed")}
        words = {"there": "missed", "added": "that was added missed or without effect", "removed": "that was removed still shown"}
        said = [
            f"{_counted(count, 'lesion')} {words[kind] if count == 1 else words[kind].replace('was', 'were')}"
            for kind, count in wrong.items()
            if count
        ]
        said += [f"{_counted(one.false, 'structure')} that {'is' if one.false == 1 else 'are'} not there"] if one.false else []
        if said:
            found.append((one.subject, ", ".join(said)))
    return found


# --- pictures ---------------------------------------------------------------------------------------------------------------------------


def _figures(work: Work, seen: Sequence[Seen], name: str, look: Look | None) -> list[Any]:
    lesions = [found for one in seen for found in one.found]
    badness: Callable[[Found], float] = lambda f: f.share if f.kind == "removed" else 1 - f.share  # noqa: E731
    picked = [max(own, key=badness) for kind in ("there", "added", "removed") if (own := [f for f in lesions if f.kind == kind])]
    figures = [lesion_figure(work, [_scene(work, one, name, look) for one in picked])] if picked else []
    counted = [one for one in seen if one.largest is not None]
    if counted:
        one = max(counted, key=lambda s: s.false_share + s.lost_share)
        case = work.case(one.number)
        image = first_answer(work, case)
        scan = structures(image, case, radii(case, voxel(work, case)), CONTRAST)
        figures.append(structure_figure(work, case, image, scan, one.largest))
    known = [one for one in seen if one.resolved is not None]
    if known:
        one = min(known, key=lambda s: s.resolved.median)
        case = work.case(one.number)
        figures.append(resolution_figure(work, case, first_answer(work, case), one.resolved.worst, window(work, case)))
    split = [one for one in seen if one.parts is not None]
    if split:
        one = max(split, key=lambda s: s.parts.null)
        figures.append(parts_figure(work, work.case(one.number), one.parts))
    return [figure for figure in figures if figure is not None]


def _scene(work: Work, one: Found, name: str, look: Look | None) -> Scene:
    """The images of a lesion and of the same place without it."""
    case = work.case(one.number)
    before = first_answer(work, case)
    change = changed(work, case, name, look) if one.kind != "there" else None
    if change is None:
        place = next(p for p in sites(case, name) if p.centre == one.centre)
        return Scene(one, case, before, None, place.mask())
    places = [p for p, _ in change.added] if one.kind == "added" else change.removed
    place = next(p for p in places if p.centre == one.centre)
    return Scene(one, change.case, answer(work, change.case), before, place.mask())
