"""nnU-Net raw and the Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs.

nnU-Net keeps one file per channel (case_0000.nii.gz), the Decathlon one file per case, with several channels as a fourth axis.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

from medgen.core.errors import MedgenError
from medgen.data.columns import Column, by_name, safe
from medgen.data.scan.layout import Layout, Match, Table, Tree, parent, shortened, stem

_NUMBERED = re.compile(r"(.+)_(\d{4})")
_PLACES = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def fits(tree: Tree) -> Match | None:
    folders = {parent(file) for file in tree.images}
    if "dataset.json" in tree.files and folders & {"imagesTr", "imagesTs"}:
        return Match(3, "dataset.json beside imagesTr: nnU-Net raw or Decathlon")
    return None


def read(tree: Tree) -> Table:
    told = _document(tree)
    names = _channels(told)
    table = Table([], {}, notes=[])
    for split, (images, labels) in _PLACES.items():
        cases = _cases([f for f in tree.images if parent(f) == images], numbered=not _decathlon(tree, told))
        masks = {stem(f): f for f in tree.images if parent(f) == labels}
        for case, files in cases.items():
            row = {"subject": case, "split": split, **_named(files, names)}
            if case in masks:
                row["label"] = masks.pop(case)
            table.rows.append(row)
        table.left_out.update(dict.fromkeys(masks.values(), "a label map without an image"))
    if not table.rows:
        raise MedgenError(f"{tree.root}: dataset.json, but no image in imagesTr; check that the archive was unpacked whole")
    _describe(table, told, names)
    _compare(table, told)
    return table


def _document(tree: Tree) -> dict[str, Any]:
    path = tree.root / "dataset.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MedgenError(f"{path}: not JSON ({error}); copy it again, or scan with another --layout or a --pattern") from error
    if not isinstance(told, dict):
        raise MedgenError(f"{path}: expected an object with 'labels' and 'modality' or 'channel_names'")
    return told


def _channels(told: dict[str, Any]) -> list[str]:
    """Names of the channels in order, from either generation of the file."""
    named = told.get("channel_names") or told.get("modality") or {"0": "image"}
    if not isinstance(named, dict):
        raise MedgenError("dataset.json: 'modality' or 'channel_names' must be an object such as {\"0\": \"T1\"}")
    return [str(named[key]) for key in sorted(named, key=lambda k: int(k) if str(k).isdigit() else 0)]


def _decathlon(tree: Tree, told: dict[str, Any]) -> bool:
    """Whether a case is one file: the training list names files that exist."""
    listed = told.get("training")
    if isinstance(listed, list) and listed and isinstance(listed[0], dict):
        return PurePosixPath(str(listed[0].get("image", ""))).as_posix().removeprefix("./") in tree.files
    return not any(_NUMBERED.fullmatch(stem(f)) for f in tree.images if parent(f) in ("imagesTr", "imagesTs"))


def _cases(files: list[str], numbered: bool) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for file in files:
        match = _NUMBERED.fullmatch(stem(file)) if numbered else None
        case, number = (match[1], int(match[2])) if match else (stem(file), 0)
        found.setdefault(case, {})[number] = file
    return found


def _named(files: dict[int, str], names: list[str]) -> dict[str, str]:
    return {_column(number, names): file for number, file in files.items()}


def _column(number: int, names: list[str]) -> str:
    """`image` where there is one channel or all are in one file, else the channel's own name."""
    distinct = [safe(name.lower()) for name in names]
    if len(names) < 2 and number == 0:
        return "image"
    name = distinct[number] if number < len(names) else f"channel_{number}"
    return name if distinct.count(name) < 2 else f"{name}_{number}"


def _describe(table: Table, told: dict[str, Any], names: list[str]) -> None:
    files = [name for name in dict.fromkeys(n for row in table.rows for n in row) if name not in ("subject", "split", "label")]
    together = len(names) > 1 and files == [_column(0, names)]
    for name in files:
        word = names[0] if len(names) == 1 else name
        table.columns[name] = Column("image", by_name(safe(word)).modality)
    if together:  # several channels, one file per case
        (only,) = files
        for row in table.rows:
            row["image"] = row.pop(only)
        del table.columns[only]
        held = ", ".join(f"image_{i} ({name})" for i, name in enumerate(names))
        table.columns["image"] = Column("image", by_name(safe(names[0])).modality, about=f"channels {held}")
        table.notes.append(f"one file holds {len(names)} channels; train with the channels {held}")
    if any("label" in row for row in table.rows):
        table.columns["label"] = Column("labels", classes=_classes(told))


def _classes(told: dict[str, Any]) -> tuple[str, ...]:
    """Both ways: {"0": "background"} and {"background": 0}; regions of several values are named after their value list."""
    pairs = []
    for key, value in (told.get("labels") or {}).items():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        pairs.append((str(number), f"{number}: {name}"))
    return tuple(text for _, text in sorted(pairs, key=lambda p: (len(p[0]), p[0])))


def _compare(table: Table, told: dict[str, Any]) -> None:
    counted = told.get("numTraining")
    have = sum(row["split"] == "train" for row in table.rows)
    if isinstance(counted, int) and counted != have:
        table.notes.append(f"dataset.json counts {counted} training cases, and {have} are there")
    unlabelled = [row["subject"] for row in table.rows if row["split"] == "test" and "label" not in row]
    if unlabelled:
        table.notes.append(f"the {len(unlabelled)} test cases have no label maps ({shortened(unlabelled)})")


LAYOUT = Layout("nnunet", "nnU-Net raw and Decathlon: dataset.json, imagesTr, labelsTr, imagesTs", fits, read)
