"""`medgen zoo`: what pretrained models there are, and how one gets in."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medgen.checkpoint import read_document
from medgen.core.contract import Contract
from medgen.core.errors import MedgenError
from medgen.core.volume import folder_for
from medgen.evaluation.card import card_text, headline
from medgen.zoo import find, zoo_folders, zoo_models

WEIGHTS, CARD = "model.safetensors", "card.md"
LARGEST = 12_000_000  # bytes of weights that a zoo folder may hold


def run(options: argparse.Namespace) -> None:
    {"list": _list, "show": _show, "add": _add, "card": _card}[options.action](options)


def entries() -> list[dict[str, Any]]:
    """One dictionary per model: name, family, task, channels, grid, data, licence, parameters' bytes, metrics."""
    found = []
    for name, folder in zoo_models().items():
        try:
            found.append(entry(folder, name))
        except MedgenError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
    return found


def entry(folder: Path, name: str) -> dict[str, Any]:
    """What `medgen zoo list` says of a model, read from its files.

    Raises:
        MedgenError: files that are missing or corrupted.
    """
    document = read_document(folder)
    try:
        contract = Contract.from_dict(document["contract"])
        model, task = (document["recipe"][part]["_target_"].rsplit(".", 1)[-1] for part in ("model", "task"))
        size = (folder / WEIGHTS).stat().st_size
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise MedgenError(f"{folder} is not a whole checkpoint ({error}); copy it again") from error
    return {
        "name": name,
        "model": model,
        "task": task.lower(),
        "source": list(contract.source),
        "target": list(contract.target),
        "size": list(contract.size),
        "spacing": None if contract.spacing is None else list(contract.spacing),
        "data": contract.data.get("name", "unknown"),
        "licence": contract.data.get("licence", "unknown"),
        "bytes": size,
        "metrics": document.get("metrics", {}),
    }


def _list(options: argparse.Namespace) -> None:
    rows = entries()
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("no models; looked in " + ", ".join(map(str, zoo_folders())))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        channels = " + ".join(row["source"]) + (" -> " if row["source"] else "") + " + ".join(row["target"])
        grid, size = " x ".join(map(str, row["size"])), f"{row['bytes'] / 1e6:.1f} MB"
        print(f"{row['name']:<{width}}  {row['task']} of {channels}, {row['model']}, {grid}, {size}")
        print(f"{'':<{width}}  {row['data']}")
        for name, value in row["metrics"].items():
            print(f"{'':<{width}}  {name}: {value}")


def _show(options: argparse.Namespace) -> None:
    folder = find(options.model)
    card = folder / CARD
    print(card.read_text("utf-8") if card.is_file() else json.dumps(entry(folder, folder.name), indent=2))


def _add(options: argparse.Namespace) -> None:
    """The model is loaded and sampled before anything is written, so that the zoo only holds models that work, and only such as
    `medgen export` has let out."""
    from medgen.checkpoint import write_document

    source, target = find(options.model), Path(options.zoo) / options.name
    _check_addition(options, target)
    if "privacy" not in read_document(source):
        remedy = "`medgen export MODEL -o DIR` tests whether it gives training images away; add DIR then (or export to the zoo's folder)"
        raise MedgenError(f"{source} has not left its run folder yet: {remedy}")
    with TemporaryDirectory() as scratch:
        staged = _staged(source, Path(scratch), options.half)
        document = read_document(source)
        document["golden"] = _golden(staged)
        card = Path(options.card) if options.card else source / CARD
        text = card.read_bytes() if card.is_file() else None
        if options.report:
            report = read_report(options.report)
            document["metrics"] = headline(report)
            text = text or card_text(report, Contract.from_dict(document["contract"])).encode()
        folder_for(target)
        shutil.copyfile(staged / WEIGHTS, target / WEIGHTS)
    write_document(target, document)
    (target / CARD).unlink(missing_ok=True)  # a replaced model's card must not describe this one
    if text is not None:
        (target / CARD).write_bytes(text)
    print(f"added: {target}")


def _card(options: argparse.Namespace) -> None:
    """The card of the model that a report is about."""
    report = read_report(options.report)
    text = card_text(report, Contract.from_dict(read_document(find(report["model"]["folder"]))["contract"]))
    if not options.output:
        print(text, end="")
        return
    path = Path(options.output)
    if path.exists() and not options.overwrite:
        raise MedgenError(f"{path} exists; choose another file or pass --overwrite")
    path.write_text(text, "utf-8")
    print(f"written: {path}")


def read_report(place: str) -> dict[str, Any]:
    """A report of `medgen evaluate`, from its JSON or its folder.

    Raises:
        MedgenError: there is none, or another file.
    """
    path = Path(place) / "evaluation.json" if Path(place).is_dir() else Path(place)
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MedgenError(f"{path}: no report; `medgen evaluate MODEL --data MANIFEST -o DIR` writes DIR/evaluation.json") from error
    if not isinstance(report, dict) or not {"model", "data", "sections"} <= set(report):
        raise MedgenError(f"{path}: not a report of `medgen evaluate`; give the evaluation.json that it writes")
    return report


def _staged(source: Path, folder: Path, half: bool) -> Path:
    """The checkpoint as the zoo will hold it, on a scratch folder; half the bytes where numbers are kept as float16."""
    entry(source, source.name)
    shutil.copyfile(source / "contract.json", folder / "contract.json")
    if half:
        from safetensors.torch import load_file, save_file

        save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(source / WEIGHTS).items()}, folder / WEIGHTS)
    else:
        shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
    size = (folder / WEIGHTS).stat().st_size
    if size > LARGEST:
        remedy = "use the hub" if half else "pass --half to keep float16 numbers, or use the hub"
        raise MedgenError(f"{source / WEIGHTS} has {size / 1e6:.1f} MB; the zoo takes {LARGEST / 1e6:.0f}: {remedy}")
    return folder


def _check_addition(options: argparse.Namespace, target: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", options.name):
        raise MedgenError(f"'{options.name}' is no name for a model: use letters, digits, '_', '-' and '.'")
    if target.exists() and not options.overwrite:
        raise MedgenError(f"{target} exists; choose another name or pass --overwrite")
    if options.card and not Path(options.card).is_file():
        raise MedgenError(f"no card {options.card}; write one as a Markdown file or leave --card out")


def _golden(folder: Path) -> dict[str, Any]:
    """A small output of the model, so that another machine or release can be checked against it."""
    from medgen.inference import golden, load

    return golden(load(folder))
