"""What the columns of a manifest hold, and the JSON beside it that says so.

`manifest.csv` has `manifest.columns.json`: {"columns": {"label": {"kind": "attribute", "classes": ["normal", "pneumonia"]}, ...}}.
A manifest without one is fine: kinds are then guessed from names and cells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medgen.core.errors import MedgenError, nearest
from medgen.data.manifest import Manifest
from medgen.data.readers import formats, parted

FILES = ("image", "kspace", "labels")
KINDS = (*FILES, "attribute", "text", "ignore")
MODALITIES = ("CT", "MR", "PET", "XR", "US", "picture")
# as DICOM calls them
MODALITY_OF = {"CT": "CT", "MR": "MR", "PT": "PET", "CR": "XR", "DX": "XR", "RG": "XR", "MG": "XR", "US": "US"}

EMPTY = {"", "n/a", "na", "nan", "null"}
_LONGEST = 64  # characters of a class's name
_MASKS = (
    r"(?:seg|segm|segmentations?|labels?|labelmaps?|masks?|lesions?|roi|tissues?|dseg|annotations?|ground_?truth|gt|contours?|tumou?rs?)"
)
_IS_MASK = re.compile(rf"(?:^|_){_MASKS}(?:_?\d+)?(?:$|_)", re.I)
_TEXT = re.compile(r"note|caption|report|comment|description|url|licen[cs]e|source|doi|text", re.I)
_BY_NAME = (
    ("MR", r"t1\w*|t2\w*|flair|pd|pdw|mri?|dwi|dti|adc|swi|bold|mra|asl|inplanet\d|fieldmap"),
    ("CT", r"\w*ct|cta|ncct|ctp|hu"),
    ("PET", r"pet|pt|suv|fdg"),
    ("XR", r"xr|cr|dx|x_?rays?|radiographs?|cxr|mammogram|mg"),
    ("US", r"us|ultrasound|echo"),
    ("picture", r"he|hne|rgb|photo|histology|tile|slide"),
)


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        kind: one of `KINDS`; "labels" is a label map, an attribute is a number.
        modality: of an image, one of `MODALITIES`, or None where nobody knows.
        classes: names of 0, 1, 2, ... of an attribute or a label map, or of a label map values with names such as "3: tumour".
        about: anything else worth knowing.
    """

    kind: str
    modality: str | None = None
    classes: tuple[str, ...] = ()
    about: str = ""

    def names(self) -> dict[int, str]:
        """Stored value -> name of its class, of those that have one; a name that stands for several values is left out."""
        values = [re.fullmatch(r"(-?\d+): (.+)", name) for name in self.classes]
        if any(values):
            return {int(found[1]): found[2] for found in values if found}
        return dict(enumerate(self.classes))

    @staticmethod
    def said(kind: str, where: str) -> Column:
        """The column that a user declared by one word, a kind or a modality."""
        if kind in MODALITIES:
            return Column("image", kind)
        if kind not in KINDS:
            raise MedgenError(f"{where}: no kind '{kind}'; {nearest(kind, [*KINDS, *MODALITIES])}")
        return Column(kind)


@dataclass(frozen=True)
class Coded:
    """A column's cells as FileData takes them, and what they mean."""

    cells: list[str]
    column: Column = field(default_factory=lambda: Column("attribute"))


def coded(name: str, cells: Sequence[str]) -> Coded:
    """Numbers as they are; few texts that recur as classes 0, 1, 2, ... in alphabetical order; any other text as text."""
    cells = ["" if cell.strip().lower() in EMPTY else cell.strip() for cell in cells]
    filled = [cell for cell in cells if cell]
    if _TEXT.search(name):
        return Coded(cells, Column("text"))
    if all(is_number(cell) for cell in filled):
        return Coded(cells)
    names = sorted(set(filled))
    if len(names) > max(2, len(filled) // 2) or max(map(len, names)) > _LONGEST:
        return Coded(cells, Column("text"))
    return Coded([str(names.index(cell)) if cell else "" for cell in cells], Column("attribute", classes=tuple(names)))


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number."""
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", cell) is not None


def by_name(name: str) -> Column:
    """The kind and modality that an image column's name tells."""
    if _IS_MASK.search(name):
        return Column("labels")
    if "kspace" in name.lower():
        return Column("kspace")
    words = [word for word in re.split(r"[_\W]+", name.lower()) if word]
    for modality, words_of in _BY_NAME:
        if any(re.fullmatch(words_of, word) for word in words):
            return Column("image", modality)
    return Column("image")


def safe(name: str) -> str:
    """A column's name out of any text: letters, digits and underscores, as overrides on the command line take it."""
    made = re.sub(r"\W+", "_", name.strip()).strip("_")
    return made if made and not made[0].isdigit() else f"c_{made}".rstrip("_")


def channel(name: str) -> str:
    """A channel's name out of a file's: as `safe`, in lower case."""
    return safe(name).lower()


def sidecar(manifest: Path) -> Path:
    """The JSON that describes the columns of a manifest."""
    return manifest.with_name(f"{manifest.stem}.columns.json")


def read_columns(manifest: Path) -> dict[str, Column]:
    """What the JSON beside a manifest says; nothing where there is none.

    Raises:
        MedgenError: it is there and is not what `medgen data scan` writes.
    """
    path = sidecar(manifest)
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MedgenError(f"{path}: not JSON ({error}); repair it, or delete it to have the columns guessed") from error
    told = document.get("columns") if isinstance(document, dict) else None
    if not isinstance(told, dict):
        raise MedgenError(f"{path}: expected an object 'columns' with an entry per column; delete the file to have the columns guessed")
    return {name: _column(path, name, entry) for name, entry in told.items()}


def describe(columns: Mapping[str, Column], **more: Any) -> str:
    """The text of the JSON beside a manifest."""
    plain = {name: {k: v for k, v in asdict(column).items() if v} for name, column in columns.items()}
    return json.dumps({**more, "columns": plain}, indent=2, ensure_ascii=False) + "\n"


def columns_of(manifest: Manifest, said: Mapping[str, str]) -> dict[str, Column]:
    """What each column holds: as the user says, as the JSON beside the manifest says, as name and cells suggest."""
    for name in said:
        if name not in manifest.columns:
            raise MedgenError(f"--column {name}=...: {manifest.path} has no such column; {nearest(name, manifest.columns)}")
    told = read_columns(manifest.path)
    columns = {}
    for name in manifest.columns:
        if name in said:
            columns[name] = Column.said(said[name], f"--column {name}")
        elif name in told:
            columns[name] = told[name]
        elif name in ("subject", "split", "session", "fold"):
            columns[name] = Column("ignore")
        else:
            columns[name] = _guessed(manifest, name)
    return columns


def _guessed(manifest: Manifest, name: str) -> Column:
    cells = [row[name] for row in manifest.rows if row[name]]
    endings = tuple(ending for format in formats() for ending in format.endings)
    some = cells[:20]
    files = [cell for cell in some if cell.partition("#")[0].lower().endswith(endings) or parted(manifest.path.parent / cell)[0].exists()]
    return by_name(name) if files and 2 * len(files) >= len(some) else coded(name, cells).column if cells else Column("ignore")


def _column(path: Path, name: str, entry: Any) -> Column:
    if not isinstance(entry, dict) or entry.get("kind") not in KINDS:
        raise MedgenError(f"{path}: column '{name}' needs a kind of {', '.join(KINDS)}")
    classes = entry.get("classes", [])
    if not isinstance(classes, list):
        raise MedgenError(f"{path}: the classes of column '{name}' must be a list of names, the first for 0")
    return Column(entry["kind"], entry.get("modality"), tuple(map(str, classes)), str(entry.get("about", "")))
