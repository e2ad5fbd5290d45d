"""Images that occur more than once: the same voxels, or the same picture with noise, another scale or compression."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from medgen.core.errors import MedgenError
from medgen.data.check.coarse import coarse, fingerprint
from medgen.data.check.finding import ERROR, NOTE, SHOWN, WARNING, Data, Finding, counted
from medgen.data.readers import read_stored

_ALIKE = 0.93  # correlation of coarse detail that makes a candidate: registered heads of two patients reach 0.92, a noisy copy 0.999
_SAME = 0.75  # of fine detail that confirms it: two patients reach 0.52, a copy moved by three voxels 0.87
_MOST_CANDIDATES = 300
_MOST_IMAGES = 40000  # beyond which all pairs are not compared
_BLOCK = 1024


@dataclass(frozen=True)
class Candidate:
    """Two images of a column that look alike at a low resolution."""

    column: str
    rows: tuple[int, int]
    sources: tuple[str, str]


def exact(data: Data) -> Iterator[Finding]:
    """Findings on equal voxels, whatever the column."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in data.of("image", "kspace"):
        for i, image in data.images(name):
            if image.digest and not image.constant:
                groups.setdefault(image.digest, []).append((i, name))
    repeated = [group for group in groups.values() if len(group) > 1]
    within = [group for group in repeated if len({i for i, _ in group}) < len(group)]
    if within:
        rows = [i for group in within for i, _ in group]
        names = tuple(dict.fromkeys(name for group in within for _, name in group))
        found = f"{' and '.join(names)} are the same image in {counted(len({i for group in within for i, _ in group}), 'row')}"
        yield _finding(data, ERROR, "same-image-twice-in-row", found, "one of the files is wrong", within, rows, names)
    others = [group for group in repeated if len({i for i, _ in group}) > 1]
    yield from _by_place(data, others, "the same voxels", exact=True)


def near(data: Data, alike: Iterable[tuple[Candidate, float]]) -> Iterator[Finding]:
    """Findings on candidates whose fine detail was compared."""
    groups = [[(c.rows[0], c.column), (c.rows[1], c.column)] for c, correlation in alike if correlation >= _SAME]
    yield from _by_place(data, groups, "nearly the same image", exact=False)


def candidates(data: Data, column: str, sources: dict[int, str]) -> list[Candidate]:
    """Pairs of rows that look alike; equal voxels left out. At most 300: across splits before across subjects before the rest, the most
    alike first.
    """
    images = [(i, im) for i, im in data.images(column) if im.fingerprint is not None and im.fingerprint.any()]
    if not 2 <= len(images) <= _MOST_IMAGES:
        return []
    found: list[tuple[int, float, int, int]] = []
    for size in {im.fingerprint.size for _, im in images}:
        some = [(i, im) for i, im in images if im.fingerprint.size == size]
        prints = np.stack([im.fingerprint for _, im in some])
        digests = np.array([im.digest for _, im in some])
        for start in range(0, len(some), _BLOCK):
            block = prints[start : start + _BLOCK].astype(np.float32)
            for other in range(start, len(some), _BLOCK):
                likeness = block @ prints[other : other + _BLOCK].astype(np.float32).T
                for a, b in np.argwhere(likeness >= _ALIKE):
                    if start + a < other + b and digests[start + a] != digests[other + b]:
                        found.append((_gravity(data, pair := (some[start + a][0], some[other + b][0])), float(likeness[a, b]), *pair))
            found = sorted(found, reverse=True)[:_MOST_CANDIDATES]
    return [Candidate(column, (a, b), (sources[a], sources[b])) for _, _, a, b in found]


def unsearched(data: Data) -> Iterator[Finding]:
    """Columns with too many images to compare all pairs."""
    for name in data.of("image"):
        if (count := len(list(data.images(name)))) > _MOST_IMAGES:
            found = f"{name}: near duplicates were not searched among {count} images (at most {_MOST_IMAGES}); equal ones were"
            yield Finding(NOTE, "near-duplicates-unsearched", found, "check parts of the set", (name,))


def _gravity(data: Data, rows: tuple[int, int]) -> int:
    a, b = rows
    return 2 if data.split(a) != data.split(b) else 1 if data.subject(a) != data.subject(b) else 0


def confirm(candidate: Candidate) -> float:
    """Correlation of the fine detail of two images; 0 where one cannot be read."""
    try:
        a, b = (fingerprint(coarse(read_stored(source)), fine=True).astype(np.float32) for source in candidate.sources)
    except MedgenError:
        return 0.0
    return float(a @ b) if a.size == b.size else 0.0


def _by_place(data: Data, groups: list[list[tuple[int, str]]], what: str, exact: bool) -> Iterator[Finding]:
    """Across splits, across subjects, within a subject: in this order of gravity."""
    kinds: dict[str, list[list[tuple[int, str]]]] = {}
    for group in groups:
        splits, subjects = {data.split(i) for i, _ in group}, {data.subject(i) for i, _ in group}
        kind = "splits" if len(splits) > 1 else "subjects" if len(subjects) > 1 else "rows"
        kinds.setdefault(kind, []).append(group)
    code = "duplicate" if exact else "near-duplicate"
    told = {
        "splits": (
            ERROR if exact else WARNING,
            "in more than one split",
            "the test is known from training: keep one copy, or give the copies one subject name and split again",
        ),
        "subjects": (
            WARNING,
            "under different subjects",
            "one patient under two names, or a file copied by mistake: give them one subject name, or keep one",
        ),
        "rows": (
            WARNING if exact else NOTE,
            "in several rows of a subject",
            "keep one, or it counts more than once" if exact else "repeated scans or neighbouring slices are fine",
        ),
    }
    for kind, (severity, where, remedy) in told.items():
        if kind in kinds:
            some = kinds[kind]
            rows = [i for group in some for i, _ in group]
            names = tuple(dict.fromkeys(name for group in some for _, name in group))
            pair = f"{_named(data, some[0][0])} and {_named(data, some[0][1])}"
            found = f"{what} {where}: {counted(len(some), 'case')} ({len(set(rows))} rows), such as {pair}"
            yield _finding(
                data, severity, f"{code}-across-{kind}" if kind != "rows" else f"{code}-in-subject", found, remedy, some, rows, names
            )


def _named(data: Data, place: tuple[int, str]) -> str:
    """Whose image it is, where it lies, and its split where the manifest has splits."""
    row = data.manifest.rows[place[0]]
    split = f"{row['split']}, " if "split" in data.manifest.columns else ""
    return f"{row['subject']} ({split}{data.tail(*place)})"


def _finding(
    data: Data, severity: str, code: str, found: str, remedy: str, groups: list, rows: list[int], names: tuple[str, ...]
) -> Finding:
    subjects = tuple(dict.fromkeys(map(data.subject, rows)))
    shown = tuple(place for group in groups[:2] for place in group[:2])[:SHOWN]
    return Finding(severity, code, found, remedy, names, subjects, shown, tuple(place for group in groups for place in group))
