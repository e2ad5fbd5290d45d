"""The parts of an evaluation: where each is, how it is run so that the others survive its failure, and how a finished one is kept."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from medgen.core.errors import MedgenError, nearest
from medgen.core.page import png
from medgen.evaluation.classes import class_names
from medgen.evaluation.section import Estimate, Figure, Level, Section, Table, plain, skipped
from medgen.evaluation.work import Work

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Part:
    """Attributes:
    name: its key in the JSON, and on the command line.
    place: module:function of `Work` to a `Section`, imported when the part is run.
    title: its heading where it cannot give one.
    shares: whether it asks the model for more than answers or samples: its module's `prepare(work, progress)` makes this process's
        share of that and keeps it on disk.
    """

    name: str
    place: str
    title: str
    shares: bool = False


PARTS = (
    Part("pixel", "medgen.evaluation.pixel:section", "Fidelity to the truth, voxel by voxel"),
    Part("samples", "medgen.evaluation.samples:section", "Samples at a glance"),
    Part("feature", "medgen.evaluation.feature:section", "Realism of the set"),
    Part("task", "medgen.evaluation.task:section", "Use for a task"),
    Part("hallucination", "medgen.evaluation.hallucination:section", "Structure made up or missed", shares=True),
    Part("calibration", "medgen.evaluation.calibration:section", "Does it know when it is wrong"),
    Part("anomaly", "medgen.evaluation.anomaly:section", "Anomalies found by the prior", shares=True),
    Part("privacy", "medgen.evaluation.privacy:section", "Copies of training data", shares=True),
    Part("shift", "medgen.evaluation.shift:section", "Other sites, scanners and people"),
)


def chosen(names: Sequence[str] | None) -> tuple[Part, ...]:
    """The parts of these names, in their own order; all of them without names.

    Raises:
        MedgenError: a name that no part has.
    """
    known = [part.name for part in PARTS]
    for name in names or ():
        if name not in known:
            raise MedgenError(f"the evaluation has no part '{name}'; {nearest(name, known)}")
    return PARTS if not names else tuple(part for part in PARTS if part.name in names)


def prepare(work: Work, parts: Sequence[Part], told: Told) -> None:
    """This process's share of what the parts ask the model beside `work.make_all`, so that they find it on disk. What fails here fails
    again in its part, which says so."""
    for part in parts:
        if part.shares and not _path(work, part).exists():
            with suppress(Exception):
                import_module(part.place.partition(":")[0]).prepare(work, lambda done, of, name=part.name: told(name, done, of))


def measured(work: Work, parts: Sequence[Part], told: Told | None = None) -> list[Section]:
    """Every part's section. One that is missing or fails is a section that says so, and is tried again next time."""
    sections = []
    for done, part in enumerate(parts, 1):
        path = _path(work, part)
        section = _restored(path) if path.exists() else _tried(work, part)
        if not path.exists() and "failed" not in section.numbers:
            _store(section, path)
        sections.append(section)
        if told:
            told("parts", done, len(parts))
    return sections


def _path(work: Work, part: Part) -> Path:
    return work.kept / f"{part.name}_{_facts(work)}.json"


def _tried(work: Work, part: Part) -> Section:
    module, _, function = part.place.partition(":")
    try:
        return getattr(import_module(module), function)(work)
    except MedgenError as error:
        said = str(error)
    except ModuleNotFoundError as error:
        said = f"this installation has no {error.name}"
    except Exception as error:  # whatever a part does, the others go on
        path = work.kept / f"{part.name}.error.txt"
        path.write_text(traceback.format_exc())
        said = f"{type(error).__name__}: {error} (the whole of it: {path})"
    section = skipped(part.name, part.title, f"Could not be done: {said}")
    section.numbers["failed"] = said
    return section


def _facts(work: Work) -> str:
    """A digest of what a section depends on beside the answers: settings, label maps, their classes' names and the code that measures."""
    code = hashlib.sha256()
    for room in ("evaluation", "metrics"):
        for path in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            code.update(path.read_bytes())
    facts = {
        "labels": dict(work.labels),
        "classes": class_names(work),
        "domain": work.domain,
        "quick": work.quick,
        "features": list(work.features),
        "code": code.hexdigest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _store(section: Section, path: Path) -> None:
    told = section.to_dict() | {"name": section.name}
    told["tables"] = [
        {**vars(t), "columns": list(t.columns), "unlike": list(t.unlike), "rows": [[_cell(c) for c in row] for row in t.rows]}
        for t in section.tables
    ]
    told["figures"] = [{**vars(f), "picture": base64.b64encode(png(f.picture)).decode()} for f in section.figures]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(told))
    partial.replace(path)


def _restored(path: Path) -> Section:
    from PIL import Image

    told = json.loads(path.read_text())
    tables = [
        Table(t["title"], t["columns"], [[_read(c) for c in row] for row in t["rows"]], t["note"], t["unlike"]) for t in told["tables"]
    ]
    figures = []
    for figure in told["figures"]:
        with Image.open(io.BytesIO(base64.b64decode(figure["picture"]))) as picture:
            figures.append(Figure(figure["title"], np.asarray(picture), figure["note"]))
    return Section(
        told["name"],
        told["title"],
        told["verdict"],
        Level(told["level"]),
        told["numbers"],
        tables,
        figures,
        [tuple(pair) for pair in told["worst"]],
        told["protocol"],
        told.get("skipped", ""),
    )


def _cell(value: Any) -> Any:
    return {"estimate": {**vars(value)}} if isinstance(value, Estimate) else plain(value)


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    told = value["estimate"]
    return Estimate(**{**told, "interval": told["interval"] and tuple(told["interval"])})
