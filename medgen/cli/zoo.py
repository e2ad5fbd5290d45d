"""`medgen zoo`: what pretrained models there are, and how one gets in."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from medgen.checkpoint import read_document
from medgen.core.errors import MedgenError

LARGEST = 12 * 2**20  # bytes of weights that a zoo folder may hold


def run(options: argparse.Namespace) -> None:
    {"list": _list, "show": _show, "add": _add}[options.action](options)


def entries() -> list[dict[str, Any]]:
    """One dictionary per model: name, family, task, channels, grid, data, licence, parameters' bytes, metrics."""
    from medgen.inference import find, zoo_names

    return [entry(find(name), name) for name in zoo_names()]


def entry(folder: Path, name: str) -> dict[str, Any]:
    """What `medgen zoo list` says of a model, read from its files."""
    document = read_document(folder)
    contract, recipe = document["contract"], document["recipe"]
    return {
        "name": name,
        "model": recipe["model"]["_target_"].rsplit(".", 1)[1],
        "task": recipe["task"]["_target_"].rsplit(".", 1)[1].lower(),
        "source": contract["source"],
        "target": contract["target"],
        "size": contract["size"],
        "spacing": contract["spacing"],
        "data": contract["data"].get("name", "unknown"),
        "licence": contract["data"].get("licence", "unknown"),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "metrics": document.get("metrics", {}),
    }


def _list(options: argparse.Namespace) -> None:
    rows = entries()
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "model", "task", "channels", "grid", "data", "MB", "metrics")
    for row in rows:
        channels = " + ".join(row["source"]) + (" -> " if row["source"] else "") + " + ".join(row["target"])
        numbers = ", ".join(f"{k} {v}" for k, v in row["metrics"].items())
        table.add_row(
            row["name"],
            row["model"],
            row["task"],
            channels,
            " x ".join(map(str, row["size"])),
            row["data"],
            f"{row['bytes'] / 1e6:.1f}",
            numbers,
        )
    Console().print(table)


def _show(options: argparse.Namespace) -> None:
    from medgen.inference import find

    folder = find(options.model)
    card = folder / "card.md"
    print(card.read_text() if card.is_file() else json.dumps(entry(folder, folder.name), indent=2))


def _add(options: argparse.Namespace) -> None:
    from medgen.inference import find

    source, target = find(options.model), Path(options.zoo) / options.name
    weights = source / "model.safetensors"
    if weights.stat().st_size > LARGEST:
        raise MedgenError(f"{weights} has {weights.stat().st_size / 2**20:.1f} MB; the zoo takes {LARGEST / 2**20:.0f}: use the hub")
    if target.exists() and not options.overwrite:
        raise MedgenError(f"{target} exists; choose another name or pass --overwrite")
    if options.card and not Path(options.card).is_file():
        raise MedgenError(f"no card {options.card}")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "contract.json"):
        shutil.copyfile(source / name, target / name)
    _golden(target)
    if options.card:
        shutil.copyfile(options.card, target / "card.md")
    print(f"added: {target}")


def _golden(folder: Path) -> None:
    """Store a small output of the model, so that another machine or release can be checked against it."""
    from medgen.checkpoint import write_document
    from medgen.inference import golden, load

    document = read_document(folder)
    document["golden"] = golden(load(folder))
    write_document(folder, document)
