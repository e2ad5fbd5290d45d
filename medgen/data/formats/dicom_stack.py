"""Frames of one orientation to a grid: sorted along the normal, other images at the same places as planes, and what is wrong with it.

Sorting is by position and never by file name or instance number. The distance between slices is that of their positions, never
SliceThickness or SpacingBetweenSlices.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from medgen.data.formats.dicom_files import Frame
from medgen.data.formats.dicom_tags import key_rank, key_title
from medgen.data.formats.format import Said

_LPS = np.diag([-1.0, -1.0, 1.0])
REPEATED = "nothing to do: copies count once; if the folder holds two exports of one series, keep one of them"
SAME = 1e-3  # mm: two positions that are one
_TOLD, _WRONG = 0.02, 0.1  # share of the slice distance by which a slice may lie off an even grid
_TILT = 0.1  # degrees
_TIMES = ("AcquisitionTime", "TriggerTime", "NominalCardiacTriggerDelayTime", "FrameReferenceTime")


@dataclass
class Stack:
    """Frames on a grid.

    Attributes:
        places: per plane, per slice, the frames that claim to be it (more than one: duplicates).
        planes: what each plane is; one unnamed plane has "".
        affine: (4, 4) index along (columns, rows, slices) to RAS mm; of an uneven stack with the mean distance.
        offsets: mm of each slice along the normal.
        findings: short sentences for people.
        problem: why it is no even grid, or None.
        repairable: whether interpolating along the slices mends that.
        tilt: degrees between the line of slices and their normal.
    """

    places: list[list[list[Frame]]]
    planes: list[str]
    affine: np.ndarray
    offsets: np.ndarray
    step: float
    findings: list[str] = field(default_factory=list)
    problem: str | None = None
    repairable: bool = False
    tilt: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        rows, columns = self.places[0][0][0].image.size
        return columns, rows, len(self.offsets)


def stacked(frames: Sequence[Frame]) -> Stack:
    """The stack of frames that share orientation, pixel spacing and size."""
    first = frames[0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    levels = _levels(frames, normal)
    findings: list[str] = []
    problem, planes = None, [("", levels)]
    if max(map(len, levels)) > 1:
        planes, problem = _planes(levels, findings)
    places = [[_by_number(level) for level in plane] for _, plane in planes]
    corners = np.array([level[0].position for level in places[0]])
    offsets = corners @ normal
    stack = Stack(places, [name for name, _ in planes], np.eye(4), offsets, 1.0, findings, problem)
    _placed(stack, corners, normal, first)
    return stack


def thickness(frame: Frame) -> float | None:
    """mm of a single slice, as its header says."""
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        value = frame.image.number(name)
        if value is not None and value > 0:
            return value
    return None


def _levels(frames: Sequence[Frame], normal: np.ndarray) -> list[list[Frame]]:
    """Frames that lie at one place of the normal, from the lowest place up."""
    order = sorted(frames, key=lambda frame: float(frame.position @ normal))
    levels = [[order[0]]]
    for frame in order[1:]:
        apart = float(np.abs(frame.position - levels[-1][0].position).max())
        if apart < SAME:
            levels[-1].append(frame)
        else:
            levels.append([frame])
    return levels


def _by_number(level: list[Frame]) -> list[Frame]:
    return sorted(level, key=lambda frame: (frame.image.number("InstanceNumber", 0.0), frame.index, frame.image.path.name))


def _planes(levels: list[list[Frame]], findings: list[str]) -> tuple[list[tuple[str, list[list[Frame]]]], str | None]:
    """[(name, levels)]: what separates the frames of each place, or one plane of duplicates."""
    counts = [len(level) for level in levels]
    doubled = sum(count > 1 for count in counts)
    names = sorted({name for level in levels for frame in level for name in frame.keys}, key=key_rank)
    if min(counts) == max(counts):
        for name in names:
            if (found := _separated(levels, (name,))) is not None:
                return found, None
        for pair in combinations([name for name in names if name not in _TIMES], 2):
            if (found := _separated(levels, pair)) is not None:
                return found, None
    elif doubled * 2 > len(levels):
        return [("", levels)], (
            f"{doubled} of {len(levels)} positions hold several images, others fewer (at most {max(counts)}, at least {min(counts)}): "
            "an echo or time point is not complete; copy the series again"
        )
    told = f"{doubled} position{'s' * (doubled > 1)} held more than once"
    findings.append(Said(told, REPEATED, "slices-repeated", note=True))
    return [("", levels)], None


def _separated(levels: list[list[Frame]], names: tuple[str, ...]) -> list[tuple[str, list[list[Frame]]]] | None:
    """The planes by the values of `names`; of a time that differs from slice to slice by its rank."""
    count = len(levels[0])
    tables: list[dict[Hashable, Frame]] = []
    for level in levels:
        table = {tuple(frame.keys.get(name) for name in names): frame for frame in level}
        if len(table) < count or any(None in value for value in table):
            return None
        tables.append(table)
    values = set().union(*tables)
    if len(values) == count:
        ordered = sorted(values, key=lambda value: tuple((isinstance(v, str), v) for v in value))
        return [(_named(names, value), [[table[value]] for table in tables]) for value in ordered]
    if names[0] not in _TIMES or len(names) > 1:
        return None
    ranked = [sorted(table) for table in tables]
    return [(f"{key_title(names[0])} number {i + 1}", [[t[r[i]]] for t, r in zip(tables, ranked, strict=True)]) for i in range(count)]


def _named(names: tuple[str, ...], value: tuple[Any, ...]) -> str:
    return ", ".join(f"{key_title(n)} {v:g}" if isinstance(v, float) else f"{key_title(n)} {v}" for n, v in zip(names, value, strict=True))


def _placed(stack: Stack, corners: np.ndarray, normal: np.ndarray, first: Frame) -> None:
    """Affine, spacing, tilt and the faults of the slices' places."""
    count, findings = len(corners), stack.findings
    if count > 1:
        step = (corners[-1] - corners[0]) / (count - 1)
        distance = _check_distances(stack)
        if distance > 0:
            lateral = corners - corners[0] - np.outer((stack.offsets - stack.offsets[0]) / float(step @ normal), step)
            worst = float(np.linalg.norm(lateral - np.outer(lateral @ normal, normal), axis=1).max())
            if worst > max(0.1 * min(first.spacing), SAME):
                stack.repairable = False
                stack.problem = f"its slices are shifted sideways against each other by up to {worst:.3g} mm; export one scan alone"
        stack.tilt = float(np.degrees(np.arccos(min(1.0, float(step @ normal) / float(np.linalg.norm(step))))))
        if stack.tilt > _TILT and (stack.problem is None or stack.repairable):
            told = f"gantry tilt of {stack.tilt:.2f} degrees: the affine is sheared, which is exact; '+even' makes it upright"
            findings.append(Said(told, "append '+even' to its cell, or data.source.spacing=[...], which resamples too", "gantry-tilt"))
    else:
        known = thickness(first)
        if known is None:
            told = "a single slice that does not say its thickness: 1 mm is taken"
            findings.append(Said(told, "nothing to do for slices: only the distance across them is a guess", "slice-thickness", note=True))
        step, distance = normal * (known or 1.0), known or 1.0
    stack.step = distance
    rows, columns = first.spacing
    stack.affine[:3, 0] = _LPS @ first.orientation[:3] * columns
    stack.affine[:3, 1] = _LPS @ first.orientation[3:] * rows
    stack.affine[:3, 2] = _LPS @ step
    stack.affine[:3, 3] = _LPS @ corners[0]


def _check_distances(stack: Stack) -> float:
    """The distance of an even grid through the slices; findings, and a problem, where they do not lie on it."""
    offsets, count = stack.offsets, len(stack.offsets)
    steps = np.diff(offsets)
    if steps.min() < SAME:
        stack.problem = stack.problem or "slices lie beside each other in one plane; export one scan alone"
        return 0.0
    mean = float(offsets[-1] - offsets[0]) / (count - 1)
    off = float(np.abs(offsets - offsets[0] - mean * np.arange(count)).max())
    if off <= _WRONG * mean:
        if off > _TOLD * mean:
            told = f"slices lie up to {off:.3g} mm off an even grid of {mean:.4g} mm"
            remedy = "nothing to do where positions were rounded; else append '+even' to its cell, which interpolates"
            stack.findings.append(Said(told, remedy, "slices-uneven", note=True))
        return mean
    usual = float(np.median(steps))
    gaps = np.rint(steps / usual).astype(int)
    even = np.abs(steps - gaps * usual) <= _WRONG * usual
    if even.all() and gaps.min() >= 1:
        missing = int((gaps - 1).sum())
        where = ", ".join(f"{offsets[i]:.4g} to {offsets[i + 1]:.4g}" for i in np.flatnonzero(gaps > 1)[:3])
        said = f"{missing} slice{'s are' if missing > 1 else ' is'} missing (along the normal from {where} mm)"
        usual = float(offsets[-1] - offsets[0]) / int(gaps.sum())
    else:
        said = f"uneven distances between slices: from {steps.min():.4g} to {steps.max():.4g} mm"
    if stack.problem is None:
        stack.problem, stack.repairable = f"{said}; copy the series again, or append '+even' to interpolate an even grid", True
    return usual
