"""Pictures of what a model made up or missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medgen.core.picture import gray, upright
from medgen.evaluation.agreement import Parts, Structures, local
from medgen.evaluation.pictures import lettered, scale, seen, signed, small, worst_height
from medgen.evaluation.pixel import scaled, unit_of
from medgen.evaluation.probes import Found
from medgen.evaluation.section import Figure
from medgen.evaluation.work import Case, Work
from medgen.metrics.lesions import grown

RED, BLUE = (255, 60, 60), (80, 140, 255)
GREY = "Grey from -1 to 1 in network units."
KINDS = {"there": "is there", "added": "added", "removed": "removed"}


@dataclass(frozen=True)
class Scene:
    """A lesion, what was given, and the answers with it and without.

    Attributes:
        case: as it was given to the model.
        result: its answer (1, C, *S).
        other: the answer without the change; None for a lesion that is there.
        inside: (*S) the lesion's place.
    """

    found: Found
    case: Case
    result: Tensor
    other: Tensor | None
    inside: Tensor


def lesion_figure(work: Work, scenes: Sequence[Scene]) -> Figure:
    """The lesion of each kind that went worst."""
    rows, names = [], []
    for scene in scenes:
        height = scene.found.centre[axis_of(work)] if scene.inside.ndim == 3 else 0
        given = scene.case.target if scene.case.source is None else torch.nan_to_num(scene.case.source, nan=-1.0)
        other = scene.result if scene.other is None else scene.other
        images = [given, scene.case.target, scene.result, other]
        rows.append([_marked(work, image, height, {RED: scene.inside}) for image in images])
        names.append(f"{scene.found.subject}: {KINDS[scene.found.kind]}, {scene.found.share:.0%}")
    titles = ["measured" if work.kind == "reconstruction" else "given", "truth", "answer", "before the change"]
    note = f"{GREY} The lesion of each kind that went worst, and the share of its contrast that is shown. Red: around the lesion, or where "
    note += "it was. Of an added lesion whose look in the target is not known, the truth is the one without it."
    return Figure("Lesions that went wrong", lettered(rows, titles, names), note)


def structure_figure(work: Work, case: Case, image: Tensor, found: Structures, at: tuple[int, ...]) -> Figure:
    """The case with the most structures too many or too few for its size, at the largest one."""
    height = at[axis_of(work)] if case.body.ndim == 5 else 0
    empty = torch.zeros(case.body.shape[2:], dtype=torch.bool)
    false, lost = (torch.stack([empty, *parts]).any(0) for parts in (found.false, found.lost))
    rims = {RED: false, BLUE: lost}
    rows = [[_marked(work, x, height, rims) for x in (case.target, image)]]
    note = f"{GREY} Red: in the answer, not in the truth. Blue: in the truth, not in the answer."
    return Figure("Structures too many and too few", lettered(rows, ["truth", "answer"], [case.subject]), note)


def resolution_figure(work: Work, case: Case, image: Tensor, worst: int | None, size: int) -> Figure | None:
    """The map of the case that agrees least, in its worst slice."""
    axis = work.model.contract.slice_axis if case.body.ndim == 5 else None
    found = local(case, image, axis, worst, size)
    if found is None:
        return None
    values = found.image()
    height = 0
    if values.ndim == 3:
        height = values.shape[axis_of(work)] // 2
        values = values.select(axis_of(work), height)
    elif worst is not None:
        height = worst
    turned = upright(values.numpy()) if case.body.ndim == 5 else values.numpy()
    planes = [_plane(work, x, height) for x in (case.target, image)]
    picture = lettered([[*planes, small(_heat(turned))]], ["truth", "answer", "agrees up to"], [case.subject])
    note = f"{GREY} Map: windows of {size} voxels; black agrees on nothing, yellow up to Nyquist, grey holds no structure or no body."
    return Figure("Where the answer resembles the truth only in its shapes", picture, note)


def parts_figure(work: Work, case: Case, parts: Parts) -> Figure:
    """The error of the case with the largest part that the measurement cannot see."""
    height = worst_height(parts.images[0], case.body, axis_of(work))
    errors, unit = [_values(work, x, height) for x in parts.images], unit_of(work)
    shared = scale(errors, unit.name, unit.size)
    planes = [_plane(work, case.target, height), *(small(signed(error, shared.edge)) for error in errors)]
    titles = ["truth", "error", "contradicted", "not seen"]
    return Figure("What the measurement says of the error", lettered([planes], titles, [case.subject], [shared]), f"{GREY} {scaled(unit)}")


def axis_of(work: Work) -> int:
    """That volumes are cut across."""
    return 2 if work.model.contract.slice_axis is None else work.model.contract.slice_axis


def _values(work: Work, image: Tensor, height: int) -> np.ndarray:
    first = image[0, 0].float().numpy()
    return first if first.ndim == 2 else upright(np.take(first, height, axis_of(work)))


def _plane(work: Work, image: Tensor, height: int) -> np.ndarray:
    return small(gray(_values(work, seen(image, ()), height), -1.0, 1.0))


def _marked(work: Work, image: Tensor, height: int, masks: dict[tuple[int, int, int], Tensor]) -> np.ndarray:
    """The first channel in grey with a coloured rim around each mask (*S)."""
    picture = np.repeat(gray(_values(work, seen(image, ()), height), -1.0, 1.0)[..., None], 3, -1)
    for colour, mask in masks.items():
        inside = torch.from_numpy(_values(work, mask[None, None], height) > 0)
        picture[(grown(inside) & ~inside).numpy()] = colour
    return small(picture)


def _heat(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] to uint8 colours from black over red to yellow; NaN is grey."""
    v = np.nan_to_num(values)
    colours = np.stack([np.clip(2 * v, 0, 1), np.clip(2 * v - 1, 0, 1), np.zeros_like(v)], -1)
    return np.where(np.isnan(values)[..., None], 70, (colours * 255 + 0.5)).astype(np.uint8)
