"""What may leave a machine: documents and reports without paths, manifests and subjects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medgen.core.errors import MedgenError
from medgen.data.manifest import Manifest
from medgen.evaluation.document import name_of

DATA = "held-out data"
KEPT = ("format", "medgen", "recipe", "contract")  # of a checkpoint's document
ABOUT = ("name", "licence", "attribution", "subjects")  # of training data
_PATH = re.compile(r"(?<![\w/:.~])(?:~?/(?:[^\s/,;:'\"()]+/)+|[A-Za-z]:\\(?:[^\s\\,;:'\"()]+\\)+|file://\S*/)")
_MEANS_NOTHING = re.compile(r"\d{0,3}")  # a subject called 12: the number alone names nobody, and prose is full of numbers


def public_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's `contract.json` for others: the recipe as it is, of the training data what describes them and no more.

    Raises:
        MedgenError: a recipe that names a file of this machine.
    """
    told = {key: document[key] for key in KEPT if key in document}
    for text in _strings(told["recipe"]):
        if without_paths(text) != text:
            raise MedgenError(f"the recipe names a file of this machine, {text}: nobody else could load it; train without it, or move it")
    contract = dict(told["contract"])
    contract["data"] = _about(contract.get("data") or {})
    return {**told, "contract": contract}


def public_report(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A report without the names of its files, folders and subjects, for a model that is called `name`."""
    manifest = Path(report["data"]["manifest"])
    clean = _cleaner(manifest, _subjects(report, manifest))
    told = _mapped(report, clean)
    told["data"]["manifest"] = DATA
    told["model"] = {**told["model"], "name": name, "folder": name}
    for section in told["sections"].values():
        section["worst"] = [[who if who.startswith("sample ") else f"{i}", what] for i, (who, what) in enumerate(section["worst"], 1)]
    return told


def without_paths(text: str) -> str:
    """Text in which files are called by their names, without their folders."""
    return _PATH.sub("", text)


def _about(data: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: without_paths(data[key]) if isinstance(data[key], str) else data[key] for key in ABOUT if key in data}
    parent = data.get("parent")
    if isinstance(parent, Mapping):  # the folder of a run on this machine, or a name in the zoo
        place = str(parent.get("name", "unknown"))
        kept = {key: parent[key] for key in ("weights", "method") if key in parent}
        name = place if place.startswith("hf://") else name_of(place)
        told["parent"] = {"name": name, **kept, "data": _about(parent.get("data") or {})}
    return told


def _cleaner(manifest: Path, subjects: Iterable[str]) -> Callable[[str], str]:
    known = [re.escape(name) for name in sorted(set(subjects), key=len, reverse=True) if not _MEANS_NOTHING.fullmatch(name)]
    names = re.compile(rf"(?<![\w-])(?:{'|'.join(known)})(?![\w-])") if known else None

    def clean(text: str) -> str:
        text = without_paths(text.replace(str(manifest), "the manifest").replace(str(manifest.resolve()), "the manifest"))
        text = text.replace(manifest.name, "the manifest")
        return names.sub("a subject", text) if names else text

    return clean


def _subjects(report: Mapping[str, Any], manifest: Path) -> set[str]:
    """Every subject that the report may name: those that it lists, and those of its manifest where that is still there."""
    found = {str(value) for key, value in _entries(report["sections"]) if key == "subject"}
    found |= {str(who) for section in report["sections"].values() for who, _ in section["worst"] if not str(who).startswith("sample ")}
    with suppress(MedgenError, KeyError):
        found |= set(Manifest.parse(manifest).subjects)
    return found


def _mapped(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {clean(key): _mapped(item, clean) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, clean) for item in value]
    return clean(value) if isinstance(value, str) else value


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of all mappings inside."""
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _entries(item)
    if isinstance(value, Mapping):
        yield from value.items()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _strings(item)
