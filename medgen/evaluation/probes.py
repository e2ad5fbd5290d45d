"""Lesions that are there, that are put into a case and that are taken out of it: how much of each a model's answer shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medgen.core.geometry import reoriented
from medgen.core.neighbours import neighbour
from medgen.core.random import generator
from medgen.data.checks import one_plane
from medgen.data.readers import read
from medgen.evaluation.made import digest
from medgen.evaluation.task import LESIONS
from medgen.evaluation.work import Case, Work
from medgen.metrics.decisions import lesions
from medgen.metrics.lesions import HALF, SHELL, Site, blob, filled_in, grown, moved, retained, shrunk, site

RADII, MARGIN = (3.0, 6.0), 12.0  # mm: of added lesions, in turn, and their least distance from the border of the body
PARTS = (0.025, 0.05)  # of a picture's sides, where there are no millimetres
SIZES = ("small", "large")
CONTRAST = 0.5  # network units: of a lesion whose look is not known
SILENT = 0.1  # of the change in the source: an answer that changes by less does not respond
NEAR = 0.1  # network units: how much the tissue that a lesion is put into may differ from the surroundings of lesions
LEAST = 0.1  # network units of contrast in the truth, below which a lesion cannot be seen there
ADDED, TRIES, CASES = 4, 40, 16  # lesions in a case, places tried for each, and cases that are changed


@dataclass(frozen=True)
class Look:
    """How a lesion looks, in network units.

    Attributes:
        source: in each source channel.
        target: in the target.
        contrast: of the lesions that are there, median of the absolute values in the target.
        around: least and largest mean of their surroundings in the first source channel (of a reconstruction in the target).
    """

    source: tuple[float, ...]
    target: float
    contrast: float
    around: tuple[float, float]

    def fits(self, value: float) -> bool:
        """Whether a place with this mean is tissue as lesions are found in."""
        return not (value < self.around[0] - NEAR or value > self.around[1] + NEAR)


@dataclass(frozen=True)
class Found:
    """One lesion and what became of it.

    Attributes:
        kind: "there", "added" or "removed".
        share: of its contrast that the answer shows; of an added one whose look in the target is not known, what changes there over
            what was changed in the source.
        centre: its middle voxel.
        known: whether the truth's contrast is known.
        size: "small" or "large" of an added one.
    """

    kind: str
    number: int
    subject: str
    share: float
    centre: tuple[int, ...]
    known: bool = True
    size: str = ""

    @property
    def wrong(self) -> bool:
        """Missed, still shown, or without any effect."""
        if self.kind == "removed":
            return self.share >= HALF
        return self.share < HALF if self.known else abs(self.share) < SILENT


def lesion_map(work: Work) -> str:
    """The name of the label map of lesions; "" is none."""
    return next((name for name in work.labels if any(word in name.lower() for word in LESIONS)), "")


def sites(case: Case, name: str) -> list[Site]:
    """The lesions of a case's label map that have surroundings."""
    if not name:
        return []
    body, marked = case.body[0, 0], case.regions[name][0, 0] > 0
    found = [site(torch.from_numpy(part), body, marked & ~torch.from_numpy(part)) for part in lesions(marked.numpy())]
    return [place for place in found if place is not None]


def there(case: Case, name: str, image: Tensor) -> list[Found]:
    """How much of each lesion that is there an answer shows: 0 % is the truth with the lesion filled in. Those that cannot be seen in the
    truth (less than `LEAST`) are left out."""
    places = sites(case, name)
    if not places:
        return []
    filled = without(case.target[:, :1], places)[0, 0]
    return [Found("there", case.number, case.subject, share, place.centre) for place, share in _shown(case, filled, image, places)]


def _shown(case: Case, filled: Tensor, image: Tensor, places: Sequence[Site]) -> list[tuple[Site, float]]:
    truth = case.target[0, 0]
    seen = [place for place in places if abs(place.contrast(truth) - place.contrast(filled)) >= LEAST]
    return [(place, retained(image[0, 0], place, truth, filled)) for place in seen]


def look_of(work: Work, name: str) -> Look | None:
    """How the lesions of the label map look: medians over lesions of the mean over each one's core, of the cases that would be changed;
    None where there is none."""
    sources, targets, contrasts, around = [], [], [], []
    for number in spread(len(work), CASES) if name else ():
        case = work.case(number)
        for place in sites(case, name):
            core = shrunk(place.inside)
            core = replace(place, inside=core) if bool(core.any()) else place
            sources.append([core.mean(channel) for channel in (case.source[0] if case.source is not None else ())])
            targets.append(core.mean(case.target[0, 0]))
            contrasts.append(abs(place.contrast(case.target[0, 0])))
            around.append(place.around(_given(case)[0, 0]))
    if not targets:
        return None
    values = tuple(np.nanmedian(sources, 0)) if sources[0] else ()
    return Look(values, float(np.median(targets)), float(np.median(contrasts)), (float(np.nanmin(around)), float(np.nanmax(around))))


def _given(case: Case) -> Tensor:
    """(1, K, *S): the source; of a reconstruction the image that is measured."""
    return case.target if case.source is None else case.source


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers up to `count`, evenly spread."""
    return sorted({i * count // min(count, most) for i in range(min(count, most))})


def radii(case: Case, spacing: tuple[float, ...] | None, size: int = 1) -> tuple[float, ...]:
    """Of a lesion of `RADII[size]` mm, in voxels of `spacing` mm; at least 1.5. Of a picture without spacing a part of its sides."""
    shape = case.body.shape[2:]
    if spacing is None:
        return (max(1.5, PARTS[size] * math.prod(shape) ** (1 / len(shape))),) * len(shape)
    return tuple(max(1.5, RADII[size] / s) for s in spacing)


def voxel(work: Work, case: Case) -> tuple[float, ...] | None:
    """Its sides in mm: the contract's, but across slices, where a file keeps its own."""
    contract = work.model.contract
    if contract.spacing is None or contract.slice_axis is None or case.body.ndim == 4:
        return contract.spacing
    channel = next(c for c in work.channels if case.row.get(work.column(c)[0]))
    own = reoriented(read(work.manifest.file(case.row, work.column(channel)[0])), contract.orientation or "RAS").spacing
    return tuple(own[axis] if axis == contract.slice_axis else s for axis, s in enumerate(contract.spacing))


@dataclass(frozen=True)
class Changed:
    """A case with lesions added and its own removed.

    Attributes:
        case: with the changed source, and the target as it should then be (where that is known).
        added: their places and sizes; removed: places.
        known: whether the target is known where lesions were added.
    """

    case: Case
    added: list[tuple[Site, str]]
    removed: list[Site]
    known: bool


def changed(work: Work, case: Case, name: str, look: Look | None) -> Changed:
    """Fill in the lesions of the case's label map and add others at random places, which depend on the seed and the case only.

    In a reconstruction an added lesion is a blob of `CONTRAST`, brighter or darker than its place, whichever leads to the middle of the
    range. For a translation it looks as those of the label map do, and lies in tissue like their surroundings; without them it is such
    a blob in the source, whose target is known where both channels are CT.
    """
    removed = sites(case, name)
    made = case
    if removed:
        filled = {"target": without(case.target, removed)}
        made = replace(case, **filled, **({} if case.source is None else {"source": without(case.source, removed)}))
    look = None if case.source is None else look
    known = look is not None or case.source is None or _same_scale(work)
    added: list[tuple[Site, str]] = []
    spacing = voxel(work, case)
    for number in range(ADDED):
        size = number % len(RADII)
        taken = [*removed, *(place for place, _ in added)]
        picks = torch.from_numpy(generator(work.seed, case.number, 23, number).random(TRIES))
        for weights, place in _candidates(case, spacing, size, taken, picks):
            if look is not None and not look.fits(place.mean(_given(made)[0, 0])):
                continue
            one = _with(work, made, weights, place, look, known)
            gain = place.contrast(one.target[0, 0]) - place.contrast(made.target[0, 0])
            if not known or abs(gain) >= (LEAST if look is None else max(LEAST, look.contrast / 2)):  # else it looks like what is there
                made = one
                added.append((place, SIZES[size]))
                break
    return Changed(made, added, removed, known)


def changed_cases(work: Work) -> list[int]:
    """The cases that are run again with their lesions changed."""
    return [] if work.quick else spread(len(work), CASES)


def tried(work: Work, case: Case, name: str, look: Look | None) -> tuple[Changed, Tensor] | None:
    """The changed case and the model's answer; None where no place was found for a lesion and there is none to remove."""
    change = changed(work, case, name, look)
    return (change, answer(work, change.case)) if change.added or change.removed else None


def outcome(case: Case, change: Changed, before: Tensor, after: Tensor) -> list[Found]:
    """What became of the lesions of a change, from the model's answers (1, C, *S) before and after it."""
    found = []
    for place, size in change.added:
        truth = (change.case.target, case.target) if change.known else (change.case.source, case.source)
        whole, gain = (place.contrast(a[0, 0]) - place.contrast(b[0, 0]) for a, b in (truth, (after, before)))
        if abs(whole) >= LEAST / 2:  # a channel that this case lacks does not change
            found.append(Found("added", case.number, case.subject, gain / whole, place.centre, change.known, size))
    shown = _shown(case, change.case.target[0, 0], after, change.removed)
    return found + [Found("removed", case.number, case.subject, share, place.centre) for place, share in shown]


def first_answer(work: Work, case: Case) -> Tensor:
    """(1, C, *S): the first draw, which is one image and not the mean of several."""
    made = work.made(case, draws=True)
    return made.image if made.draws is None else made.draws[:1]


def answer(work: Work, case: Case) -> Tensor:
    """(1, C, *S): the model's first draw for a changed case, from disk where it was made before.

    For a reconstruction the case's target is measured again, with the same noise.
    """
    make = _reconstructed if case.source is None else _translated
    return work.once(f"changed_{case.number:05d}_{digest(_given(case))}", lambda: make(work, case))


def _translated(work: Work, case: Case) -> Tensor:
    made = work.model.predict(case.source[0].numpy(), work.seed, work.conditions(case.row))
    return torch.from_numpy(np.ascontiguousarray(made))[None]


def _reconstructed(work: Work, case: Case) -> Tensor:
    channel = work.model.task.target[0]
    rule, ends = work.model.contract.map_of(channel), case.ends[channel]
    grid = work.model.regridded(one_plane(read(work.manifest.file(case.row, channel)), channel))
    truth = grid.with_array(np.asarray(rule.inverse(case.target[0].numpy(), **ends), np.float32))
    result = work.model.reconstruct(work.model.simulate(truth, seed=work.seed), draws=1, seed=work.seed)
    return torch.from_numpy(np.asarray(rule.forward(result.image.array, **ends), np.float32))[None]


def _candidates(
    case: Case, spacing: tuple[float, ...] | None, size: int, taken: Sequence[Site], picks: Tensor
) -> Iterator[tuple[Tensor, Site]]:
    """Weights (*S) in [0, 1] and places for a lesion well in the body, away from those that are `taken`."""
    body, r = case.body[0, 0], radii(case, spacing, size)
    marked = _all(taken, body)
    margin = round(MARGIN / max(spacing)) if spacing else round(PARTS[-1] * max(body.shape))
    inner = shrunk(body, margin) if margin and min(body.shape) > 2 * margin + 2 else body
    inner = inner if bool(inner.any()) else body
    box = tuple(min(2 * math.ceil(a + 1) + 1, n) for a, n in zip(r, body.shape, strict=True))
    middle, corner = tuple((n - 1) / 2 for n in box), tuple(slice(0, n) for n in box)
    reach = torch.zeros_like(body)
    reach[corner] = blob(box, middle, tuple(a + 1 for a in r)) > 0
    offset = torch.nonzero(reach).amin(0)
    for copy in moved(reach, inner & ~grown(marked, SHELL + 1), picks):
        start = (torch.nonzero(copy).amin(0) - offset).tolist()
        weights = torch.zeros(body.shape)
        weights[tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))] = blob(box, middle, r).float()
        place = site(weights > 0.5, body, marked)
        if place is not None:
            yield weights, place


def _all(places: Sequence[Site], body: Tensor) -> Tensor:
    marked = torch.zeros_like(body)
    for place in places:
        marked[place.box] |= place.inside
    return marked


def _with(work: Work, case: Case, weights: Tensor, place: Site, look: Look | None, known: bool) -> Case:
    """The case with a lesion of these weights."""
    names = work.model.task.source

    def put(image: Tensor, values: Sequence[float] | None, channels: Sequence[str]) -> Tensor:
        parts = []
        for i, channel in enumerate(image[0]):
            w = _moved_along(work, weights, channels[i])
            size = CONTRAST if place.mean(channel) < 0 else -CONTRAST
            parts.append(channel + w * size if values is None else channel * (1 - w) + w * values[i])
        return torch.stack(parts)[None]

    changes = {}
    if case.source is not None:
        changes["source"] = put(case.source, look and look.source, names)
    if known:
        first = put(case.target[:, :1], look and (look.target,), work.model.task.target)
        if look is None and case.source is not None:  # the same change of Hounsfield units in both
            first = case.target[:, :1] + (changes["source"] - case.source)[:, :1]
        changes["target"] = torch.cat([first, case.target[:, 1:]], 1)
    return replace(case, **changes)


def _moved_along(work: Work, weights: Tensor, channel: str) -> Tensor:
    """Weights as a channel sees them that shows the neighbouring slice."""
    away, axis = neighbour(channel)[1], work.model.contract.slice_axis
    if not away or axis is None or weights.ndim < 3:
        return weights
    places = (torch.arange(weights.shape[axis]) + away).clamp(0, weights.shape[axis] - 1)
    return weights.index_select(axis, places)


def _same_scale(work: Work) -> bool:
    """Whether source and target are CT of one window, so that a change in one is the same change in the other."""
    rules = [work.model.contract.intensity[c] for c in (work.model.task.source[0], work.model.task.target[0])]
    return all(rule["name"] == "ct_hu" for rule in rules) and rules[0] == rules[1]


def without(image: Tensor, places: Sequence[Site]) -> Tensor:
    """(1, C, *S) with these lesions and one voxel around them filled in."""
    channels = image[0].clone()
    for part in lesions(grown(_all(places, places[0].mask())).numpy(), 1):  # those that touch are filled together
        for i, channel in enumerate(channels):
            channels[i] = filled_in(channel, torch.from_numpy(part))
    return channels[None]
