"""What the files of a row tell together: grids, overlap, shifts, and label maps against images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from medgen.data.check.facts import Image
from medgen.data.check.finding import ERROR, NOTE, WARNING, Data, Finding, counted, spread
from medgen.data.check.pairs import Pair
from medgen.data.labelling import words

_TOLERANCE = 0.05  # voxels by which headers of a grid may differ; as `medgen.data.checks.check_pair`
_CELLS = 0.4  # of the coarse grid: less is within what contrasts differ
_GAIN = 0.03  # of correlation that a shift by more than a cell must bring
_LEAST = 0.3  # correlation below which nothing can be said of a shift
_LISTED = 16  # values that a remedy writes out
_OUTSIDE = 0.2  # share of labelled voxels without image below them


def rules(data: Data) -> Iterator[Finding]:
    yield from _grids(data)
    yield from _places(data)
    for name in data.of("labels"):
        yield from _labels(data, name)


def _grids(data: Data) -> Iterator[Finding]:
    """Every other column against the row's first image."""
    names = data.of("image", "labels")
    sizes: dict[tuple[str, str], list[int]] = {}
    places: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for i, row in enumerate(data.rows):
        there = [name for name in names if name in row.images]
        for name in there[1:]:
            a, b = row.images[there[0]], row.images[name]
            if a.shape != b.shape:
                sizes.setdefault((there[0], name), []).append(i)
            elif a.affine is not None and b.affine is not None and (apart := _apart(a, b)) > _TOLERANCE * min(a.spacing):
                places.setdefault((there[0], name), []).append((i, apart))
    for (first, name), rows in sizes.items():
        a, b = data.rows[rows[0]].images[first], data.rows[rows[0]].images[name]
        found = f"{first} and {name} have different sizes in {counted(len(rows), 'row')}, such as {_by(a)} and {_by(b)}"
        yield Finding(ERROR, "grids-differ", found, f"resample {name} to the grid of {first}", **_both(data, rows, first, name))
    for (first, name), told in places.items():
        apart = spread([round(mm, 2) for _, mm in told])
        found = f"the headers of {first} and {name} place the same voxel up to {apart} mm apart in {counted(len(told), 'row')}"
        remedy = f"if the images were registered, copy the header of {first}; else resample {name} to its grid"
        yield Finding(ERROR, "headers-differ", found, remedy, **_both(data, [i for i, _ in told], first, name))


def _places(data: Data) -> Iterator[Finding]:
    apart: dict[tuple[str, str], list[int]] = {}
    shifted: dict[tuple[str, str], list[tuple[int, Pair]]] = {}
    for i, row in enumerate(data.rows):
        for pair in row.pairs:
            if pair.covered == 0:
                apart.setdefault((pair.first, pair.second), []).append(i)
            elif _is_shifted(pair):
                shifted.setdefault((pair.first, pair.second), []).append((i, pair))
    for (first, second), rows in apart.items():
        found = f"{first} and {second} do not overlap in the world in {counted(len(rows), 'row')}"
        yield Finding(
            ERROR,
            "no-overlap",
            found,
            "their headers are wrong, or they are not of one examination: register them",
            **_both(data, rows, first, second),
        )
    for (first, second), told in shifted.items():
        i, worst = max(told, key=lambda pair: np.linalg.norm(pair[1].shift))
        axes = ("right", "front", "up") if worst.unit == "mm" else ("along rows", "along columns")
        parts = ", ".join(f"{axis} {value:+.1f}" for axis, value in zip(axes, worst.shift, strict=False))
        distance = float(np.linalg.norm(worst.shift))
        found = (
            f"{second} is shifted against {first} in {counted(len(told), 'row')}, by about {distance:.1f} {worst.unit} in "
            f"{data.subject(i)} ({parts}); edges agree to {worst.here:.2f} as they are and to {worst.there:.2f} when it is moved back"
        )
        yield Finding(
            WARNING,
            "shifted",
            found,
            "register the pair before training: a shifted target teaches blur",
            **_both(data, [i for i, _ in told], first, second),
        )


def _is_shifted(pair: Pair) -> bool:
    """A shift that is more than the method's own error."""
    distance = float(np.linalg.norm(pair.shift))
    if pair.there < _LEAST or distance < max(1.0, _CELLS * pair.cell):
        return False
    return distance < pair.cell or pair.there - pair.here > _GAIN


def _labels(data: Data, name: str) -> Iterator[Finding]:
    maps = data.valued(name)
    broken = [i for i, image in maps if not image.whole or image.low < 0]
    if broken:
        found = f"{name}: {counted(len(broken), 'label map has', 'label maps have')} values that are not whole numbers from 0"
        remedy = "label maps are resampled with the nearest voxel only: make them again, or declare the column as image"
        yield Finding(ERROR, "label-values", found, remedy, **data.told(broken, name))
    many = [i for i, image in maps if image.values is None and i not in set(broken)]
    if many:
        found = f"{name}: {counted(len(many), 'label map has', 'label maps have')} more than 64 values: numbered instances"
        yield Finding(NOTE, "label-instances", found, _instances_remedy(name), **data.told(many, name))
    else:
        yield from _classes(data, name, [(i, image) for i, image in maps if image.values is not None and i not in set(broken)])
    yield from _outside(data, name, maps)


def _classes(data: Data, name: str, known: list[tuple[int, Image]]) -> Iterator[Finding]:
    """Whether the values are those of classes."""
    values = sorted({value for _, image in known for value in image.values})
    gaps = bool(values) and values != list(range(len(values)))
    if gaps:
        found = f"{name}: the values are {', '.join(f'{v:g}' for v in values[:20])}, with gaps"
        yield Finding(WARNING, "label-gaps", found, _gaps_remedy(name, values), (name,))
    declared = len(data.columns[name].classes)
    over = [i for i, image in known if declared and max(image.values) >= declared and not gaps]
    if over:
        found = f"{name}: {len(over)} label maps have values above the {declared} classes that are declared"
        yield Finding(ERROR, "label-undeclared", found, "correct the classes or the maps", **data.told(over, name))
    yield from _instances(data, name, known)


def _instances(data: Data, name: str, known: list[tuple[int, Image]]) -> Iterator[Finding]:
    """Numbers that differ so much between images that they can hardly be classes."""
    tops = [max(image.values) for _, image in known if image.values]
    if tops and len(set(tops)) > 8 and max(tops) > 16 and len(set(tops)) > len(tops) / 4:
        found = f"{name}: every map counts to another number ({spread(tops)}): numbered instances"
        yield Finding(NOTE, "label-instances", found, _instances_remedy(name), (name,))


def _gaps_remedy(name: str, values: list[float]) -> str:
    if len(values) > _LISTED:
        return f"number the classes from 0 without gaps, or take all but 0 as one: add {words(name)} to the command that trains"
    renumber = f"say which value is which class: add {words(name, values)} to the command that trains"
    few = values[-1] < 4 * len(values)
    return renumber + (f", or train with {int(values[-1]) + 1} classes" if few else "")


def _instances_remedy(name: str) -> str:
    return f"training takes classes: take all objects as one by adding {words(name)} to the command that trains, or leave it out"


def _outside(data: Data, name: str, maps: list[tuple[int, Image]]) -> Iterator[Finding]:
    beside = [(i, image.in_air) for i, image in maps if image.in_air is not None and image.in_air > _OUTSIDE]
    if not beside:
        return
    severity = ERROR if max(share for _, share in beside) > 0.8 else WARNING
    shares = spread([round(100 * share) for _, share in beside])
    lie = counted(len(beside), "label map lies", "label maps lie")
    found = f"{name}: {lie} where the image shows nothing ({shares} % of the labelled voxels)"
    yield Finding(
        severity,
        "label-outside",
        found,
        "turned, shifted, or of another subject: look at them on top of the image",
        **data.told([i for i, _ in beside], name),
    )


def _both(data: Data, rows: list[int], first: str, second: str) -> dict:
    told = data.told(rows, first)
    places = tuple((row, name) for row in rows for name in (first, second))
    return {**told, "columns": (first, second), "shown": places[:4], "places": places}


def _apart(a: Image, b: Image) -> float:
    """The largest distance in mm between the same corner of two grids."""
    corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in (*a.shape, 1, 1)[:3]))]).T
    return float(np.linalg.norm((a.affine @ corners - b.affine @ corners)[:3], axis=0).max())


def _by(image: Image) -> str:
    return " x ".join(map(str, image.shape))
