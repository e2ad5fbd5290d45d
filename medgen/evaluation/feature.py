"""Realism of the set: how far made images are from real ones in several feature spaces, measured in how far real images are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.picture import gray
from medgen.evaluation.imagesets import FEWEST, MOST, Images, ImageSets, TooFew, image_sets
from medgen.evaluation.pictures import lettered, middle_plane
from medgen.evaluation.plots import scatter
from medgen.evaluation.section import Estimate, Figure, Level, Section, Table, skipped
from medgen.evaluation.spaces import asked, spaces
from medgen.evaluation.work import Work
from medgen.metrics.diversity import similarity
from medgen.metrics.manifold import realism
from medgen.metrics.scales import most_scales
from medgen.metrics.sets import CMMD, DRAWS, FRECHET, KID, MMD, OVERLAP, Bounds, Measure, Result, Sets, frechet_fits, measured
from medgen.metrics.space import Space
from medgen.metrics.statistics import summarise

NAME, TITLE = "feature", "Realism of the set"
GOOD, WATCH = 2.0, 5.0  # times the floor
SHOWN = 3  # worst images that are named
COLUMNS = 8  # images of a row of the picture
ALIKE = "no score: the real images are all alike"


@dataclass(frozen=True)
class Found:
    """What was measured in one space; `results` by the first name of each measure."""

    space: Space
    sets: Sets
    results: Mapping[str, Result]

    @property
    def headline(self) -> str:
        """The distance that judges: Frechet's where there are enough images, else KID."""
        return "Frechet" if "Frechet" in self.results else "KID"

    @property
    def score(self) -> float:
        return self.results[self.headline].score.value


def section(work: Work) -> Section:
    """Distances, overlap of manifolds and diversity of samples against held-out reals, or of answers against the truth of others."""
    try:
        images = image_sets(work)
    except TooFew as error:
        return skipped(NAME, TITLE, f"Not measured: {error}")
    dims = work.model.contract.spatial_dims
    return compared(images, [*spaces(dims), *(asked(said, dims) for said in work.features)], work.seed)


def compared(images: ImageSets, among: Sequence[Space], seed: int = 0, draws: int = DRAWS) -> Section:
    """The section for sets of images.

    Raises:
        MedgenError: no space takes these images.
    """
    found, left = _measured(images, among, seed, draws)
    if not found:
        raise MedgenError("no feature space takes these images: " + "; ".join(f"{name}: {reason}" for name, reason in left.items()))
    alike = _alike(images, seed)
    told = Section(NAME, TITLE, protocol=_protocol(images, found, draws))
    told.numbers = _numbers(images, found, left, alike)
    told.tables = [_distances(found, left), _overlaps(found)] + ([_diversity(alike)] if alike else [])
    _judge(told, found, alike)
    order, values = _by_realism(images, found[0])
    said = f"by {found[0].space.name}; what looks real has 1 or more"
    told.worst = [(images.made.units[i], f"realism {values[i]:.2g} {said}") for i in order[:SHOWN]]
    told.figures = [_worst_picture(images, order[:COLUMNS]), _picture(images, found[0])]
    return told


def _measured(images: ImageSets, among: Sequence[Space], seed: int, draws: int) -> tuple[list[Found], dict[str, str]]:
    """Everything in every space that takes these images; and why the others do not."""
    found, left = [], {}
    for space in among:
        try:
            features = [space.features(part.images) for part in (images.made, images.reference, images.held)]
        except MedgenError as error:
            left[space.name] = str(error)
            continue
        sets = Sets(*features, (images.made.units, images.reference.units, images.held.units), space.standard)
        measures = [KID, MMD, CMMD, OVERLAP]
        if frechet_fits(min(sets.size, len(sets.held)), features[0].shape[1]):
            measures.insert(0, FRECHET)
        found.append(Found(space, sets, {measure.names[0]: measured(sets, measure, seed, draws) for measure in measures}))
    return found, left


def _alike(images: ImageSets, seed: int) -> dict[str, Estimate]:
    """Mean MS-SSIM of pairs of made images and of pairs of held-out reals; nothing of images that are too small for it."""
    if not most_scales(tuple(images.held.images.shape[2:])):
        return {}
    return {name: _mean(similarity(part.images, part.units, seed=seed)) for name, part in (("made", images.made), ("real", images.held))}


def _mean(values: Tensor) -> Estimate:
    summary = summarise(values.tolist(), [str(i) for i in range(len(values))])
    return Estimate(summary.mean, summary.interval, len(values), reason="" if summary.interval else "one pair")


def _judge(told: Section, found: Sequence[Found], alike: Mapping[str, Estimate]) -> None:
    """By the space in the middle: one space alone may see what does not matter (noise in radiomics), or miss what does."""
    known = sorted((one for one in found if math.isfinite(one.score)), key=lambda one: one.score)
    if not known:
        told.verdict = f"There is {ALIKE}."
        return
    middle, farthest = known[(len(known) - 1) // 2], known[-1]
    result = middle.results[middle.headline]
    sure = result.score.high < GOOD
    told.level = Level.BAD if middle.score >= WATCH else Level.GOOD if middle.score < GOOD and sure else Level.WATCH
    told.verdict = (
        f"The made images are {_estimate(result.score, result.size)} times as far from real ones as other real images are, below {GOOD:g} "
        f"is good ({middle.headline} in the space '{middle.space.name}', n = {result.size})"
    )
    if farthest is middle:
        told.verdict += "."
    else:
        place = "nearer one of 2" if len(known) == 2 else f"middle one of {len(known)}"
        told.verdict += f". That is the {place} spaces; in the farthest, '{farthest.space.name}', "
        told.verdict += f"it is {_times(farthest.results[farthest.headline].score)}."
    if middle.score < GOOD and not sure:
        told.verdict += f" It is not certain that they are below {GOOD:g}: more samples and more held-out images would tell."
    if alike and alike["made"].apart(alike["real"]) and alike["made"].value > alike["real"].value:
        told.verdict += f" They are more alike than real images: MS-SSIM of two is {alike['made']}, of two real ones {alike['real']}."
        told.level = Level.WATCH if told.level == Level.GOOD else told.level


def _times(score: Bounds) -> str:
    """With its interval, and a long one in whole numbers."""
    value, low, high = (f"{x:.3g}" if x < 1000 else f"{x:,.0f}" for x in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}] times"


def _distances(found: Sequence[Found], left: Mapping[str, str]) -> Table:
    rows, notes = [], []
    for one in found:
        for name, result in one.results.items():
            if name == "precision":
                continue
            score = _estimate(result.score, result.size)
            value, floor = (_estimate(side[name], result.size) for side in (result.value, result.floor))
            rows.append([f"{one.space.name}: {name}", value, floor, score if math.isfinite(score.value) else "no score"])
        dimension = one.sets.made.shape[1]
        if "Frechet" not in one.results:
            size = min(one.sets.size, len(one.sets.held))
            notes.append(
                f"{one.space.name}: no Frechet distance, {dimension} dimensions need {2 * dimension} images and there are {size}; see KID."
            )
    notes += [f"{name}: left out, {reason}." for name, reason in left.items()]
    note = f"n = {found[0].sets.size} images in a comparison. Score: 1 is as near as real images are. KID, MMD and CMMD may be "
    note += f"negative. A score below {GOOD:g} is good, from {WATCH:g} on bad. " + " ".join(notes)
    heads = ["space: distance", "made images", "as many real images (floor)", "score"]
    return Table("Distance to real images", heads, rows, note.strip(), unlike=heads[1:3])


def _overlaps(found: Sequence[Found]) -> Table:
    rows = []
    for one in found:
        result = one.results["precision"]
        for which, side in (("made images", result.value), ("as many real images", result.floor)):
            rows.append([f"{one.space.name}: {which}", *(_estimate(side[name], result.size) for name in OVERLAP.names)])
    note = "Precision and density fall when images look unreal, recall and coverage when kinds of real images are missing."
    return Table("Overlap of the manifolds", ["space", *OVERLAP.names], rows, note)


def _diversity(alike: Mapping[str, Estimate]) -> Table:
    rows = [["two made images", alike["made"], alike["made"].n], ["two real images", alike["real"], alike["real"].n]]
    note = "Of different subjects. More alike than real ones: too little diversity. Less alike: structure or noise of their own."
    return Table("Diversity: mean MS-SSIM of random pairs", ["pairs", "MS-SSIM", "n"], rows, note)


def _numbers(images: ImageSets, found: Sequence[Found], left: Mapping[str, str], alike: Mapping[str, Estimate]) -> dict:
    parts = {"made": images.made, "reference": images.reference, "held_out": images.held}
    counts = {name: {"images": len(part), "subjects": part.subjects} for name, part in parts.items()}
    return {
        "n": counts | {"in_a_comparison": found[0].sets.size},
        "spaces": {
            one.space.name: {"dimension": one.sets.made.shape[1], **{k: _plain(r) for k, r in one.results.items()}} for one in found
        },
        "left_out": dict(left),
        "ms_ssim_of_pairs": dict(alike),
        "levels": {"good_below": GOOD, "bad_from": WATCH},
    }


def _plain(result: Result) -> dict:
    sides = {"made": result.value, "floor": result.floor}
    told = {side: {name: _estimate(bounds, result.size) for name, bounds in values.items()} for side, values in sides.items()}
    return told if "precision" in result.value else told | {"score": _estimate(result.score, result.size)}


def _estimate(bounds: Bounds, n: int) -> Estimate:
    if not math.isfinite(bounds.value):
        return Estimate(bounds.value, None, n, reason=ALIKE)
    return Estimate(bounds.value, (bounds.low, bounds.high), n)


def _by_realism(images: ImageSets, first: Found) -> tuple[list[int], list[float]]:
    """The made images from the one that lies farthest outside the manifold of real ones on, and the realism of each."""
    features = first.sets.features.split([len(part) for part in (images.made, images.reference, images.held)])
    values = realism(features[0], torch.cat(features[1:]))
    return values.argsort().tolist(), values.tolist()


def _worst_picture(images: ImageSets, worst: Sequence[int]) -> Figure:
    rows = [[images.made.images[i] for i in worst], [images.made.images[i] for i in _spread(len(images.made))]]
    rows.append([images.held.images[i] for i in _spread(len(images.held))])
    planes = [[gray(middle_plane(image, images.turn), -1.0, 1.0) for image in row] for row in rows]
    picture = lettered(planes, [], ["the worst", "any made", "real"])
    return Figure("The least real of the made images", picture, "First row: the least real first. Then made and real images spread evenly.")


def _spread(count: int) -> list[int]:
    return torch.linspace(0, count - 1, min(COLUMNS, count)).round().long().tolist()


def _picture(images: ImageSets, first: Found) -> Figure:
    features = first.sets.features.split([len(part) for part in (images.made, images.reference, images.held)])
    reals = torch.cat(features[1:])
    axes = torch.linalg.svd(reals - reals.mean(0), full_matrices=False).Vh[:2]
    points = {name: ((part - reals.mean(0)) @ axes.T).numpy() for name, part in (("real", reals), ("made", features[0]))}
    note = f"Each point is an image, by the two directions in which real images vary most in the space '{first.space.name}'."
    return Figure("Made and real images in feature space", scatter(points), note)


def _protocol(images: ImageSets, found: Sequence[Found], draws: int) -> dict[str, str]:
    measures: dict[str, Measure] = {measure.names[0]: measure for measure in (FRECHET, KID, MMD, CMMD)}
    used = dict.fromkeys(name for one in found for name in one.results)
    return {
        "sets": f"{images.told}; at most {MOST} images of each, at least {FEWEST} subjects",
        "n": ", ".join(
            f"{name}: {_count(part)}" for name, part in (("made", images.made), ("reference", images.reference), ("held-out", images.held))
        ),
        "spaces": ", ".join(
            f"{one.space.name} ({one.sets.made.shape[1]} features{', standardised by the reals' if one.space.standard else ''})"
            for one in found
        ),
        **{name: measures[name].meaning for name in used if name in measures},
        "overlap": f"{OVERLAP.meaning} (Kynkaanniemi et al. 2019, Naeem et al. 2020)",
        "floor": "the same distance for real images, as many as were made: what a perfect model would score at this number",
        "score": "distance over floor. It grows with n for the same model, since the floor falls: compare at equal n. "
        "Far off, KID grows as the sixth power of a distance",
        "intervals": f"95 %, from {draws} halves of all sets drawn by subject (delete-d jackknife); for pairs of images, over pairs",
        "level": "of the middle space (of two the nearer) by Frechet distance, else by KID: "
        f"good where the interval is below {GOOD:g}, bad from {WATCH:g}",
    }


def _count(part: Images) -> str:
    return f"{len(part)} images of {part.subjects} subjects"
