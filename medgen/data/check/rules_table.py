"""What the table alone tells: leakage, empty cells, splits, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from medgen.data.check.finding import ERROR, NOTE, WARNING, Data, Finding, counted
from medgen.data.columns import is_number

_RARE = 20  # times that one class may outnumber another
_FEW = 5  # subjects below which a split measures little
_CLASSES = 20  # distinct whole numbers beyond which an attribute is taken as a quantity


def leaks(data: Data) -> Iterator[Finding]:
    """What makes results untrue."""
    yield from _leakage(data)
    yield from _repeated(data)


def rules(data: Data) -> Iterator[Finding]:
    """What is missing, and how subjects and classes are shared out."""
    yield from _missing(data)
    yield from _attributes(data)
    yield from _several(data)
    yield from _splits(data)


def _leakage(data: Data) -> Iterator[Finding]:
    splits: dict[str, set[str]] = {}
    for row in data.manifest.rows:
        splits.setdefault(row["subject"], set()).add(row["split"])
    several = tuple(subject for subject, found in splits.items() if len(found) > 1)
    if several:
        yield Finding(
            ERROR,
            "subject-leakage",
            f"{counted(len(several), 'subject is', 'subjects are')} in more than one split",
            "a subject belongs to one split, or results are too good: make a new split with `medgen data split --resplit`",
            subjects=several,
        )


def _repeated(data: Data) -> Iterator[Finding]:
    counts = Counter(tuple(row.values()) for row in data.manifest.rows)
    subjects = tuple(row["subject"] for row in data.manifest.rows if counts[tuple(row.values())] > 1)
    if subjects:
        yield Finding(
            ERROR,
            "repeated-row",
            f"{counted(len(set(subjects)), 'subject has', 'subjects have')} the same row twice",
            "remove the repetitions",
            subjects=tuple(dict.fromkeys(subjects)),
        )
    nameless = sum(not row["subject"] or not row["split"] for row in data.manifest.rows)
    if nameless:
        yield Finding(ERROR, "nameless-row", f"{counted(nameless, 'row has', 'rows have')} no subject or no split", "fill these cells")


def _splits(data: Data) -> Iterator[Finding]:
    counts = {split: len({row["subject"] for row in data.manifest.rows if row["split"] == split}) for split in data.manifest.splits}
    absent = [split for split in ("train", "validation", "test") if split not in counts]
    if absent:
        why = "; without validation the best checkpoint is not known" if "validation" in absent else ""
        found = f"no row is for {' or '.join(absent)}"
        yield Finding(ERROR if "train" in absent else WARNING, "no-split", found, f"share the subjects out with `medgen data split`{why}")
    few = [f"{split} has {counted(n, 'subject')}" for split, n in counts.items() if split != "train" and n < _FEW]
    if few:
        yield Finding(
            NOTE,
            "small-split",
            "; ".join(few),
            "few subjects tell little about others: report intervals, or use `medgen data split --folds`",
        )


def _several(data: Data) -> Iterator[Finding]:
    counts = Counter(row["subject"] for row in data.manifest.rows)
    several = tuple(subject for subject, n in counts.items() if n > 1)
    if several:
        most = max(counts.values())
        found = f"{len(several)} of {len(counts)} subjects have several rows (series, visits, slices or pictures), at most {most}"
        yield Finding(
            NOTE,
            "several-rows",
            found,
            "nothing to do: rows of a subject stay in one split, and scores are averaged by subject",
            subjects=several,
        )


def _missing(data: Data) -> Iterator[Finding]:
    for name in data.of("image", "kspace", "labels"):
        empty = [i for i, row in enumerate(data.manifest.rows) if not row[name]]
        if empty:
            subjects = tuple(dict.fromkeys(map(data.subject, empty)))
            found = f"{name} is missing in {len(empty)} of {len(data.manifest)} rows"
            remedy = "train with data.source.options.missing=true, leave these rows out, or find the files"
            yield Finding(WARNING, "missing-channel", found, remedy, (name,), subjects)
    for name in data.of("attribute"):
        empty = [i for i, row in enumerate(data.manifest.rows) if not row[name]]
        if empty:
            found = f"{name} is empty in {len(empty)} of {len(data.manifest)} rows"
            yield Finding(
                WARNING,
                "missing-attribute",
                found,
                f"leave these rows out before training with '{name}', or do not use it",
                (name,),
                tuple(dict.fromkeys(map(data.subject, empty))),
            )


def _attributes(data: Data) -> Iterator[Finding]:
    for name in data.of("attribute"):
        wrong = [i for i, row in enumerate(data.manifest.rows) if row[name] and not is_number(row[name])]
        if wrong:
            value = data.manifest.rows[wrong[0]][name]
            found = f"{name} has cells that are no numbers, such as '{value}', in {len(wrong)} rows"
            yield Finding(
                WARNING,
                "attribute-not-number",
                found,
                "write classes as 0, 1, 2, ..., as `medgen data scan` does, or ignore the column",
                (name,),
                tuple(dict.fromkeys(map(data.subject, wrong))),
            )
            continue
        if classes := classes_of(data, name):
            yield from _balance(data, name, classes)


def classes_of(data: Data, name: str) -> tuple[str, ...]:
    """The names of an attribute's classes; empty for a quantity."""
    if data.columns[name].classes:
        return data.columns[name].classes
    cells = {row[name] for row in data.manifest.rows if row[name]}
    whole = bool(cells) and all(is_number(cell) and float(cell).is_integer() and float(cell) >= 0 for cell in cells)
    if not whole or len(cells) > _CLASSES or max(map(float, cells)) >= 2 * _CLASSES:
        return ()
    return tuple(str(i) for i in range(int(max(map(float, cells))) + 1))


def balance(data: Data, name: str, classes: tuple[str, ...]) -> dict[str, list[int]]:
    """Split -> rows of each class."""
    counts = {split: [0] * len(classes) for split in data.manifest.splits}
    for row in data.manifest.rows:
        if row[name] and is_number(row[name]) and 0 <= int(float(row[name])) < len(classes):
            counts[row["split"]][int(float(row[name]))] += 1
    return counts


def _balance(data: Data, name: str, classes: tuple[str, ...]) -> Iterator[Finding]:
    counts = balance(data, name, classes)
    total = [sum(split[i] for split in counts.values()) for i in range(len(classes))]
    lacking = [
        f"{split} has no '{classes[i]}'"
        for split, numbers in counts.items()
        if sum(numbers)
        for i, n in enumerate(numbers)
        if n == 0 and total[i]
    ]
    if lacking:
        yield Finding(WARNING, "class-absent", f"{name}: {'; '.join(lacking[:6])}", f"split again with --stratify {name}", (name,))
    present = [n for n in total if n]
    if len(present) == 1:
        found = f"{name} has the one class '{classes[total.index(present[0])]}'"
        yield Finding(NOTE, "class-single", found, "it cannot serve as a condition", (name,))
    elif present and max(present) > _RARE * min(present):
        rare = classes[total.index(min(present))]
        found = f"{name}: '{classes[total.index(max(present))]}' has {max(present)} rows and '{rare}' {min(present)}"
        yield Finding(WARNING, "class-imbalance", found, "draw training cases balanced by class, or join rare classes", (name,))
