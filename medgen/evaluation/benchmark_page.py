"""A benchmark as one HTML page without anything outside it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from medgen.core.page import document
from medgen.evaluation.benchmark import DIFFERENCES, Compared, tables
from medgen.evaluation.page import STYLE, card, count, facts, figure_html, purpose, table_html
from medgen.evaluation.pixel import HEADS, estimate


def page(found: Compared, told: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        told: `medgen.evaluation.benchmark.document`.
    """
    models = [method for method in found.methods if method.about]
    first = models[0].about
    data, settings = told["data"], told["settings"]
    said = "".join(f"<p>{escape(line)}</p>" for line in verdicts(found))
    on = {
        "data": f"{Path(data['manifest']).name}, split {data['split']}",
        "size": f"{count(data['subjects'], 'subject')}, {count(data['volumes'], 'image')}",
        "seed": str(settings["seed"]),
        "draws": str(settings["draws"]) if found.kind != "synthesis" else "",
        "samples": str(settings["samples"]) if found.kind == "synthesis" else "",
    }
    parts = [
        f"<h1>{escape(', '.join(m.name for m in models))}: {escape(purpose(first))}</h1>",
        '<div class="soft">The same cases and seeds through every model. For research; not a medical device.</div>',
        f'<div class="first">{card("Which is best", said)}<div>{card("On what", facts(on))}</div></div>',
        *(table_html(made, best, zero=made.title == DIFFERENCES) for made, best in tables(found)),
        *(figure_html(figure) for figure in found.figures),
        _foot(found, told),
    ]
    return document(f"Benchmark of {', '.join(m.name for m in models)}", parts, STYLE)


def verdicts(found: Compared) -> list[str]:
    """What can be said of the order, a sentence for each metric that has a best, and one where none has."""
    if found.kind == "synthesis":
        order = sorted(found.methods, key=lambda m: m.samples["frechet"]["ratio"])
        ratios = ", ".join(f"{m.name} {m.samples['frechet']['ratio']:.3g}" for m in order)
        return [f"Distance to real images over that of real images to each other: {ratios}.", *found.notes]
    lines, named = [], {name for name in found.best.values() if name}
    for name in sorted(named):
        metrics = [metric for metric, best in found.best.items() if best == name]
        lines.append(f"{name} is better than every other in {', '.join(HEADS[m] for m in metrics)}.")
    if not named:
        lines.append("No method is surely better than every other in any metric; the paired differences below say which pairs differ.")
    scores = "; ".join(f"{m.name} {estimate(m.rows, 'body', 'psnr')}" for m in found.methods)
    return [*lines, f"PSNR in the body: {scores}.", *found.notes]


def _foot(found: Compared, told: Mapping[str, Any]) -> str:
    models = {m.name: f"{m.about['folder']} (weights {m.about['weights']})" for m in found.methods if m.about}
    known = {**models, "versions": ", ".join(f"{name} {version}" for name, version in told["versions"].items())}
    return f'<div class="foot">{facts(known)}<p>All numbers, also of single cases, are in benchmark.json beside this page.</p></div>'
