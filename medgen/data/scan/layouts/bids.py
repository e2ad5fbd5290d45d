"""BIDS: sub-01/[ses-01/]anat/sub-01[_ses-01][_key-value...]_T1w.nii.gz, with participants.tsv."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medgen.data.columns import Column, by_name, channel, safe
from medgen.data.scan.layout import Layout, Match, Table, Tree, ending, stem

_NAME = re.compile(
    r"sub-(?P<subject>[A-Za-z0-9]+)(?:_ses-(?P<session>[A-Za-z0-9]+))?(?P<entities>(?:_[a-zA-Z]+-[^_]+)*)_(?P<suffix>[A-Za-z0-9]+)"
)
_MASKS = ("mask", "dseg", "probseg", "roi")


@dataclass(frozen=True)
class _Image:
    file: str
    subject: str
    session: str
    entities: tuple[tuple[str, str], ...]
    suffix: str


def fits(tree: Tree) -> Match | None:
    images, _ = _images(tree)
    if not images:
        return None
    if "dataset_description.json" in tree.files:
        return Match(3, f"dataset_description.json, and {len(images)} images named sub-<label>_..._<suffix>")
    return Match(2, f"{len(images)} images named sub-<label>_..._<suffix>, though there is no dataset_description.json")


def read(tree: Tree) -> Table:
    images, left_out = _images(tree)
    told_by = _telling(images)
    table = Table([], {}, left_out=left_out)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    sessions = any(image.session for image in images)
    for image in images:
        row = rows.setdefault((image.subject, image.session), {"subject": f"sub-{image.subject}"})
        if sessions:
            row["session"] = image.session
        name = _column(image, told_by[image.suffix])
        if name in row:
            table.left_out[image.file] = f"a second {name} of the same session"
            continue
        row[name] = image.file
        table.columns[name] = Column("labels") if image.suffix in _MASKS else by_name(name)
    table.rows = [rows[key] for key in sorted(rows)]
    for suffix, keys in told_by.items():
        if keys:
            table.notes.append(f"{suffix} occurs more than once in a session; the images are told apart by {', '.join(keys)}")
    if sessions:
        table.columns["session"] = Column("text")
    _participants(tree.root, table)
    return table


def _images(tree: Tree) -> tuple[list[_Image], dict[str, str]]:
    found, left_out = [], {}
    for file in tree.images:
        parts = PurePosixPath(file).parts
        match = _NAME.fullmatch(stem(file))
        if not match or not ending(file).lower().startswith(".nii"):
            continue
        entities = tuple(tuple(e.split("-", 1)) for e in match["entities"].split("_") if e)
        image = _Image(file, match["subject"], match["session"] or "", entities, match["suffix"])
        if parts[0] == f"sub-{image.subject}" or (parts[0] == "derivatives" and image.suffix in _MASKS):
            found.append(image)
        else:
            left_out[file] = "of a derived or source copy; only masks are taken from derivatives"
    return found, left_out


def _telling(images: list[_Image]) -> dict[str, list[str]]:
    """Suffix -> the entities in which its images differ within a session, anywhere in the set."""
    groups: dict[tuple[str, str, str], list[_Image]] = {}
    for image in images:
        groups.setdefault((image.suffix, image.subject, image.session), []).append(image)
    keys: dict[str, set[str]] = {image.suffix: set() for image in images}
    for (suffix, _, _), group in groups.items():
        told = [dict(image.entities) for image in group]
        keys[suffix] |= {key for one in told for key in one if len({other.get(key) for other in told}) > 1}
    return {suffix: sorted(found) for suffix, found in keys.items()}


def _column(image: _Image, keys: list[str]) -> str:
    told = [f"{key}_{value}" for key, value in image.entities if key in keys]
    return channel("_".join([image.suffix, *told]))


def _participants(root: Path, table: Table) -> None:
    path = root / "participants.tsv"
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        known = {line.get("participant_id") or "": line for line in csv.DictReader(file, delimiter="\t")}
    known = {subject if subject.startswith("sub-") else f"sub-{subject}": line for subject, line in known.items()}
    columns = [c for line in list(known.values())[:1] for c in line if c and c != "participant_id"]
    missing = [row["subject"] for row in table.rows if row["subject"] not in known]
    if missing:
        table.notes.append(f"participants.tsv does not list {len(set(missing))} subjects, such as {missing[0]}: their attributes are empty")
    names = {column: safe(column) if safe(column) not in table.columns else f"participant_{safe(column)}" for column in columns}
    for row in table.rows:
        row.update({names[c]: (known.get(row["subject"], {}).get(c) or "") for c in columns})
    table.code(list(names.values()))
    for column, entry in _described(root).items():
        if column in names and isinstance(entry, dict):
            old = table.columns[names[column]]
            table.columns[names[column]] = Column(old.kind, classes=old.classes, about=str(entry.get("Description", "")))


def _described(root: Path) -> dict[str, Any]:
    path = root / "participants.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}  # it only describes
    return told if isinstance(told, dict) else {}


LAYOUT = Layout("bids", "BIDS: sub-*/[ses-*/]*/sub-*_<suffix>.nii.gz, attributes of participants.tsv", fits, read)
