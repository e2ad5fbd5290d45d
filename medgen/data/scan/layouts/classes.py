"""Image folders by class: [train/]normal/0001.png, [train/]pneumonia/0002.png."""

from __future__ import annotations

from medgen.data.columns import Column, by_name
from medgen.data.scan.layout import SPLITS, Layout, Match, Table, Tree, parent, safe_subject, shortened, stem

_MOST = 50  # folders: with more, and few pictures in each, they are patients
_LEAST = 5  # pictures a folder


def fits(tree: Tree) -> Match | None:
    names = _classes(tree)
    if len(names) < 2 or any(by_name(name).kind == "labels" for name in names):
        return None
    if len(names) > _MOST or (
        len(tree.images) < _LEAST * len(names) and any(file.lower().endswith((".nii", ".nii.gz")) for file in tree.images)
    ):
        return None
    return Match(1, f"{len(names)} folders of images, taken as classes: {shortened(names, 6)}")


def read(tree: Tree) -> Table:
    table, names = Table([], {"image": Column("image")}), _classes(tree)
    for file in tree.images:
        split, name = _place(file)
        row = {"subject": safe_subject(f"{split or ''}_{name}_{stem(file)}"), "image": file, "label": str(names.index(name))}
        table.rows.append({**row, "split": split} if split else row)
    table.columns["label"] = Column("attribute", classes=tuple(names))
    table.notes.append(
        "folders of this kind name no patients: every image is its own subject; if file names hold the patient, give a pattern such as "
        "'{label}/{subject}_{_}.png', and if the folders are patients and not classes, '{subject}/{_}.png'"
    )
    return table


def _classes(tree: Tree) -> list[str]:
    places = [_place(file) for file in tree.images]
    return [] if None in places else sorted({name for _, name in places})


def _place(file: str) -> tuple[str | None, str] | None:
    """(split, class) of the folders of a file."""
    parts = tuple(part for part in parent(file).split("/") if part)
    if len(parts) == 2 and parts[0].lower() in SPLITS:
        return SPLITS[parts[0].lower()], parts[1]
    return (None, parts[0]) if len(parts) == 1 and parts[0].lower() not in SPLITS else None


LAYOUT = Layout("classes", "image folders by class: [train/]normal/0001.png; the class becomes the attribute 'label'", fits, read)
