"""What an evaluation says, as plain data: the model, the data, the settings, n, costs, and every section by name."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import medgen
from medgen.core.errors import MedgenError
from medgen.core.page import png
from medgen.core.volume import folder_for
from medgen.evaluation.cost import Cost
from medgen.evaluation.section import Section, plain
from medgen.evaluation.work import Work

FORMAT = 1
PAGE, PLAIN, FIGURES = "evaluation.html", "evaluation.json", "figures"


def document(work: Work, sections: Sequence[Section]) -> dict[str, Any]:
    """The JSON of a report."""
    rows = work.manifest.split(work.split)
    counts = {"volumes": len(rows.rows), "subjects": len(rows.subjects)}
    return {
        "format": FORMAT,
        "model": about(work),
        "data": {
            "manifest": str(work.manifest.path),
            "split": work.split,
            "domain": work.domain or None,
            "labels": dict(work.labels),
            **counts,
        },
        "n": {**counts, **({"samples": work.samples} if work.kind == "synthesis" else {"draws": work.draws})},
        "settings": {
            "seed": work.seed,
            "draws": work.draws,
            **({"samples": work.samples} if work.kind == "synthesis" else {}),
            "steps": sampling(work.model.model)["steps"],
            "given": plain(dict(work.given)),
            "quick": work.quick,
        },
        "cost": cost(work.costs()),
        "versions": versions(),
        "sections": {section.name: section.to_dict() for section in sections},
    }


def about(work: Work) -> dict[str, Any]:
    """The model, as the report names it."""
    model, contract = work.model, work.model.contract
    return {
        "name": name_of(model.folder or "model"),
        "folder": str(model.folder or ""),
        "family": type(model.model).__name__,
        "kind": work.kind,
        "source": list(model.task.source),
        "target": list(model.task.target),
        "conditions": [*model.task.labels, *model.task.attributes],
        "size": list(contract.size),
        "spacing": None if contract.spacing is None else list(contract.spacing),
        **sampling(model.model),
        "numbers": sum(p.numel() for p in model.model.parameters()),
        "weights": work.fingerprint,
        "training_data": plain(dict(contract.data)),
        "known_failures": known_failures(model.folder),
    }


def sampling(model: nn.Module) -> dict[str, Any]:
    """How images are drawn: name of the sampler, its steps, the scale of guidance; each None where there is none."""
    sampler, guidance = (getattr(model, name, None) for name in ("sampler", "guidance"))
    return {
        "sampler": None if sampler is None else getattr(sampler, "scheduler", type(sampler).__name__),
        "steps": getattr(sampler, "steps", None),
        "guidance": getattr(guidance, "scale", None),
    }


def sampling_said(about: Mapping[str, Any]) -> str:
    """The same in words."""
    if about["sampler"] is None:
        return "one pass"
    steps = f", {about['steps']} step{'' if about['steps'] == 1 else 's'}" if about["steps"] else ""
    return f"{about['sampler']}{steps}" + ("" if about["guidance"] is None else f", guidance {about['guidance']:g}")


def known_failures(folder: str | Path | None) -> list[str]:
    """What the card beside the weights says of the model's faults, an item each; nothing where there is no card."""
    card = Path(folder or "") / "card.md"
    if not folder or not card.is_file():
        return []
    section = card.read_text("utf-8", errors="replace").partition("## Known failures")[2].partition("\n## ")[0]
    items = [" ".join(item.split()) for item in f"\n{section}".split("\n- ")[1:]]
    return [item for item in items if not item.startswith(("Worst case", "To be written"))]


def name_of(model: str | Path) -> str:
    """The zoo's name, or the run's folder: not "last" or "checkpoints"."""
    parts = [part for part in Path(model).parts if part not in ("checkpoints", "last", "best")]
    return parts[-1] if parts else "model"


def cost(costs: Sequence[Cost]) -> dict[str, Any]:
    """Per answer or sample: the median time and calls of the network, and the most memory."""
    if not costs:
        return {}
    return {
        "seconds": statistics.median(c.seconds for c in costs),
        "evaluations": statistics.median(c.evaluations for c in costs),
        "memory_bytes": max(c.memory for c in costs) or None,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def versions() -> dict[str, str]:
    return {"medgen": medgen.__version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def free_paths(folder: str | Path, names: Sequence[str] = (PAGE, PLAIN, FIGURES), overwrite: bool = False) -> list[Path]:
    """The report's files, refused where they exist; the folder is made.

    Raises:
        MedgenError: one of them exists and `overwrite` is not set, or the folder cannot be made.
    """
    paths = [Path(folder) / name for name in names]
    for path in paths:
        if path.exists() and not overwrite:
            raise MedgenError(f"{path} exists; choose another folder or pass --overwrite, which also uses what was made for it")
    folder_for(Path(folder))
    return paths


def write(told: Any, html: str, figures: Mapping[str, np.ndarray], paths: Sequence[Path]) -> None:
    """The page, the JSON without NaN, and its pictures alone, for slides and papers.

    Args:
        figures: name of a file -> (H, W) or (H, W, 3) uint8.
        paths: of `free_paths`.
    """
    paths[0].write_text(html, encoding="utf-8")
    for old in paths[2].glob("*.png"):
        old.unlink()
    for name, picture in figures.items():
        (folder_for(paths[2]) / f"{name}.png").write_bytes(png(picture))
    paths[1].write_text(as_json(told), encoding="utf-8")


def as_json(told: Any) -> str:
    """JSON without NaN."""
    return json.dumps(plain(told), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
