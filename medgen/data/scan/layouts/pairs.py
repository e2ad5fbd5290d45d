"""A folder per channel: images/case.png and masks/case.png, below or above a folder per split."""

from __future__ import annotations

import re

from medgen.data.columns import Column, by_name, safe
from medgen.data.scan.layout import SPLITS, Layout, Match, Table, Tree, parent, shortened, stem

_GENERIC = re.compile(r"images?|imgs?|scans?|inputs?|pictures?|tiles?|raw|originals?", re.I)
_AFFIX = re.compile(r"[_-](?:mask|masks|seg|segmentation|label|labels|gt|groundtruth|annotation|image|img)$", re.I)


def fits(tree: Tree) -> Match | None:
    channels = _channels(tree)
    if len(channels) < 2:
        return None
    stems = [{key for split in files.values() for key in split} for files in channels.values()]
    shared, fewest = set.intersection(*stems), min(map(len, stems))
    if 2 * len(shared) < fewest:
        return None
    reason = f"folders {', '.join(channels)} with {len(shared)} file names in common"
    kinds = [by_name(name) for name in channels]
    masks = [kind.kind == "labels" for kind in kinds]
    if not any(masks) and all(key.isdigit() for key in shared):
        return None  # numbers recur by chance
    named = any(masks) or all(kind.modality or _GENERIC.fullmatch(name) for kind, name in zip(kinds, channels, strict=True))
    return Match(2 if named and not all(masks) else 1, reason)


def read(tree: Tree) -> Table:
    channels = _channels(tree)
    table, rows = Table([], {}), {}
    names = _names(list(channels))
    for folder, splits in channels.items():
        table.columns[names[folder]] = by_name(folder) if not _GENERIC.fullmatch(folder) else Column("image")
        for split, files in splits.items():
            for key, file in files.items():
                row = rows.setdefault((split, key), {"subject": key, **({"split": split} if split else {})})
                row[names[folder]] = file
    lost = [key for key, row in rows.items() if not any(row.get(n) for n, c in table.columns.items() if c.kind == "image")]
    for key in lost:
        row = rows.pop(key)
        table.left_out.update({file: "a label map without an image" for name, file in row.items() if name in table.columns})
    table.rows = [rows[key] for key in sorted(rows)]
    if lost:
        table.notes.append(f"{len(lost)} label maps have no image of the same name ({shortened([key for _, key in lost])})")
    if any("split" in row for row in table.rows):
        for row in table.rows:
            row.setdefault("split", "train")
    return table


def _channels(tree: Tree) -> dict[str, dict[str, dict[str, str]]]:
    """Folder name -> split ('' for none) -> stem -> file, where every image lies in split and channel folders alone."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for file in tree.images:
        parts = tuple(part for part in parent(file).split("/") if part)
        splits = [SPLITS[part.lower()] for part in parts if part.lower() in SPLITS]
        others = [part for part in parts if part.lower() not in SPLITS]
        if len(others) != 1 or len(splits) > 1:
            return {}
        split = splits[0] if splits else ""
        found.setdefault(others[0], {}).setdefault(split, {})[_AFFIX.sub("", stem(file))] = file
    return found


def _names(folders: list[str]) -> dict[str, str]:
    """`image` for the only folder with a general name, singular names for the rest."""
    general = [folder for folder in folders if _GENERIC.fullmatch(folder)]
    made = {folder: safe(re.sub(r"(?<=[a-z]{3})s$", "", folder.lower())) for folder in folders}
    if len(general) == 1:
        made[general[0]] = "image"
    return made


LAYOUT = Layout("pairs", "a folder per channel with equal file names: images/, masks/ (and train/, test/)", fits, read)
