"""An evaluation as one HTML page without anything outside it: the answers to the first questions, then every section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medgen.core.page import document, image, png, table
from medgen.evaluation.document import sampling_said
from medgen.evaluation.section import WORDS, Estimate, Figure, Level, Section, Table

STYLE = Path(__file__).with_name("page.css")
_ORDER = (Level.BAD, Level.WATCH, Level.GOOD, Level.NONE)
_SHOWN = 12  # rows of a table in sight; a longer one unfolds
_WIDE, _TIMES = 1100, 2  # pixels of the page; how many times a small picture is enlarged at most
_FEW, _FEW_SAMPLES = 10, 16  # subjects below which intervals are wide; samples below which most parts do without


def page(told: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        told: `medgen.evaluation.document.document`.
    """
    model = told["model"]
    parts = [
        f"<h1>{escape(model['name'])}: {escape(purpose(model))}</h1>",
        f'<div class="soft">{escape(kind(model))}. For research; not a medical device.</div>',
        f'<div class="first"><div>{_how_good(sections)}{_how_sure(told, sections)}</div>{_on_what(told)}{_what_went_wrong(sections)}</div>',
        *(section_html(section) for section in sections if not section.skipped),
        _left_out(sections),
        _foot(told),
    ]
    return document(f"Evaluation of {model['name']}", parts, STYLE)


def purpose(model: Mapping[str, Any]) -> str:
    """What goes in and what comes out."""
    target = ", ".join(model["target"])
    if model["kind"] == "translation":
        return f"{', '.join(model['source'])} to {target}"
    return (
        f"{target} from measurements"
        if model["kind"] == "reconstruction"
        else f"new images of {target}"
        if target != "image"
        else "new images"
    )


def kind(model: Mapping[str, Any]) -> str:
    """Family, grid and size, in a line."""
    grid = " x ".join(map(str, model["size"]))
    spacing = f" at {' x '.join(f'{s:g}' for s in model['spacing'])} mm" if model["spacing"] else ""
    given = f", given {', '.join(model['conditions'])}" if model["conditions"] else ""
    if len(model["size"]) == 2 and len(model["spacing"] or ()) == 3:
        spacing += " in volumes, slice by slice"
    return f"{model['kind'].capitalize()} by {model['family']}{given}, {grid}{spacing}, {model['numbers'] / 1e6:.2g} million parameters"


def _how_good(sections: Sequence[Section]) -> str:
    """Every verdict, the main one first and larger: a glance at samples comes last where their realism was measured."""
    done = [section for section in sections if not section.skipped and section.verdict]
    if any(section.name == "feature" for section in done):
        done = sorted(done, key=lambda section: section.name == "samples")
    lines = [f"<li{' class=main' if place == 0 else ''}>{_named(s)}: {escape(s.verdict)}</li>" for place, s in enumerate(done)]
    return card("How good", f'<ul class="verdicts">{"".join(lines)}</ul>' if lines else "<p>No part could be done: see below why.</p>")


def _on_what(told: Mapping[str, Any]) -> str:
    data, settings = told["data"], told["settings"]
    trained = told["model"]["training_data"]
    known = {
        "data": f"{Path(data['manifest']).name}, split {data['split']}",
        "size": f"{count(data['subjects'], 'subject')}, {count(data['volumes'], 'image')}",
        "domain": data["domain"],
        "samples": str(settings["samples"]) if told["model"]["kind"] == "synthesis" else None,
        "draws": f"{settings['draws']} per case" if told["model"]["kind"] != "synthesis" else None,
        "trained on": ", ".join(
            str(part) for part in (trained.get("name"), trained.get("subjects") and count(trained["subjects"], "subject")) if part
        ),
        "its card says": " ".join(told["model"].get("known_failures", [])[:3]),
        "given": ", ".join(f"{name}={value}" for name, value in settings["given"].items()),
        "sampler": sampling_said(told["model"]),
    }
    return card("On what", facts(known))


def cautions(told: Mapping[str, Any]) -> list[str]:
    """What makes every number of a report unsure, a sentence each: one subject or few of them, few samples."""
    n, samples = told["n"]["subjects"], told["n"].get("samples")
    made = "" if samples is None else f", {count(samples, 'sample')}"
    said = []
    if n == 1:
        said.append(
            f"One subject, {count(told['n']['volumes'], 'image')}{made}: one subject cannot tell how much subjects differ, "
            "so there is no interval over subjects. Evaluate on more."
        )
    elif n < _FEW:
        said.append(f"{n} subjects are few: intervals are rough.")
    if samples is not None and samples < _FEW_SAMPLES:
        said.append(f"{count(samples, 'sample')} are few: draw more by -n.")
    return said


def _how_sure(told: Mapping[str, Any], sections: Sequence[Section]) -> str:
    n, synthesis = told["data"]["subjects"], told["model"]["kind"] == "synthesis"
    known = any(isinstance(cell, Estimate) and cell.interval for s in sections for shown in s.tables for row in shown.rows for cell in row)
    warned = "".join(f"<p>{_level(Level.WATCH)}{escape(line)}</p>" for line in cautions(told))
    said = f"{count(told['settings']['samples'], 'sample')} stand beside real images of {count(n, 'subject')}. " if synthesis else ""
    if not known:
        said += "No part that was measured has an interval."
    elif n == 1:
        said += "The 95 % intervals that are shown resample images, not subjects."
    else:
        said += "95 % intervals resample subjects or images (studentised, so that few subjects get wide ones). "
        said += "They speak for subjects like these, not for other sites."
    done = sum(not section.skipped for section in sections)
    seed = f"Parts measured: {done} of {len(sections)}."
    seed += f" Seed {told['settings']['seed']}: run again, it gives the same numbers." if done else ""
    return card("How sure", f"{warned}<p>{said}</p><p class=soft>{seed}</p>")


def _what_went_wrong(sections: Sequence[Section]) -> str:
    """Verdicts that are not good, the worst cases with their picture, and what could not be done."""
    ill = [section for section in sections if section.level in (Level.BAD, Level.WATCH)]
    lines = [f"<li>{_named(s)}</li>" for s in sorted(ill, key=lambda s: _ORDER.index(s.level))]
    for section in sections:
        lines += [f"<li><strong>{escape(who)}</strong>: {escape(what)}</li>" for who, what in section.worst[:3]]
    failed = [section.title for section in sections if "failed" in section.numbers]
    if failed:
        lines.append(f"<li>Could not be done: {escape(', '.join(failed))} (<a href=#left>why</a>)</li>")
    seen = [section for section in sections if section.figures]
    pictures = [figure_html(section.figures[0]) for section in sorted(seen, key=lambda s: not s.worst)][:1]
    body = f'<ul class="worst">{"".join(lines)}</ul>' if lines else "<p>No part names a case or a fault.</p>"
    return card("What went wrong, and the worst cases", f'<div class="beside"><div>{body}</div>{"".join(pictures)}</div>', wide=True)


def section_html(section: Section) -> str:
    """One section: verdict, tables, pictures, worst cases, and folded how it was measured."""
    shown = [f'<h2 id="{escape(section.name)}">{escape(section.title)}</h2>']
    if section.verdict:
        shown.append(f"<p>{_level(section.level)}{escape(section.verdict)}</p>")
    shown += [table_html(made) for made in section.tables]
    shown += [figure_html(figure) for figure in section.figures]
    if section.worst and not section.figures:
        lines = "".join(f"<li><strong>{escape(who)}</strong>: {escape(what)}</li>" for who, what in section.worst)
        shown.append(f'<h3>The worst</h3><ul class="worst">{lines}</ul>')
    if section.protocol:
        shown.append(f"<details><summary>How this was measured</summary>{facts(section.protocol)}</details>")
    return "\n".join(shown)


def table_html(made: Table, best: Sequence[tuple[int, int]] = (), zero: bool = False) -> str:
    """A table whose intervals are drawn on one scale for each column (with `zero`: that has 0); `best` are (row, column) in bold."""
    scales = [[row[i] for row in made.rows if isinstance(row[i], Estimate)] for i in range(len(made.columns))]
    scales = [[*scale, Estimate(0.0, (0.0, 0.0))] for scale in scales] if zero else scales
    scales = [None if name in made.unlike else scale for name, scale in zip(made.columns, scales, strict=True)]
    rows = [[_cell(cell, scales[j], (i, j) in best, zero) for j, cell in enumerate(row)] for i, row in enumerate(made.rows)]
    shown = table(made.columns, rows)
    note = f'<p class="note">{escape(made.note)}</p>' if made.note else ""
    if len(rows) > _SHOWN:
        return f"<details><summary>{escape(made.title)} ({len(rows)} rows)</summary>{shown}{note}</details>"
    return f"<h3>{escape(made.title)}</h3>{shown}{note}"


def _cell(value: Any, scale: Sequence[Estimate] | None, best: bool, zero: bool) -> str:
    if isinstance(value, Estimate):
        unit = f" {escape(value.unit)}" if value.unit else ""
        ends = f'<span class="range">{value.interval[0]:.4g} to {value.interval[1]:.4g}</span>' if value.interval else ""
        number = '<span class="soft">-</span>' if value.value != value.value else f"{value.value:.4g}{unit}"
        text = f"{f'<strong>{number}</strong>' if best else number}{ends}{'' if scale is None else interval(value, scale, zero)}"
        return f'<span title="{escape(value.reason)}">{text}</span>' if value.reason else text
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: '<span class="soft">-</span>'}[value]
    text = f"{value:.4g}" if isinstance(value, float) else escape(str(value))
    return f"<strong>{text}</strong>" if best else text


def interval(value: Estimate, scale: Sequence[Estimate], zero: bool = False, width: int = 110) -> str:
    """A line from end to end with a dot at the value, on the scale of the column, and with `zero` a mark at 0."""
    if value.interval is None:
        return ""
    ends = [end for other in scale if other.interval for end in (*other.interval, other.value)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    left, right, dot = (4 + (end - low) / span * (width - 8) for end in (*value.interval, value.value))
    line = f'<line x1="{left:.1f}" x2="{right:.1f}" y1="5" y2="5" stroke="currentColor" stroke-width="2"/>'
    if zero:
        place = 4 + (0 - low) / span * (width - 8)
        line = f'<line x1="{place:.1f}" x2="{place:.1f}" y1="0" y2="10" class="zero"/>{line}'
    dot = f'<circle cx="{dot:.1f}" cy="5" r="3.5" fill="currentColor"/>'
    return f'<svg class="interval" width="{width}" height="10" role="img" aria-label="interval">{line}{dot}</svg>'


def figure_html(figure: Figure) -> str:
    """A picture with its title and note; a small one is enlarged."""
    note = f'<p class="note">{escape(figure.note)}</p>' if figure.note else ""
    times = max(1, min(_TIMES, _WIDE // figure.picture.shape[1]))
    picture = figure.picture.repeat(times, 0).repeat(times, 1)
    shown = f'<div class="scroll">{image(png(picture), figure.title)}</div>'
    return f"<figure><figcaption>{escape(figure.title)}</figcaption>{shown}{note}</figure>"


def _left_out(sections: Sequence[Section]) -> str:
    gone = [section for section in sections if section.skipped]
    if not gone:
        return ""
    known = {section.title: section.skipped for section in gone}
    return f'<h2 id="left">Not measured here, and why</h2>{facts(known)}'


def _foot(told: Mapping[str, Any]) -> str:
    model, cost = told["model"], told["cost"]
    spent = f"{cost['seconds']:.3g} s and {cost['evaluations']:g} network evaluations per answer ({cost['device']})" if cost else None
    if cost.get("memory_bytes"):
        spent += f", at most {cost['memory_bytes'] / 1e9:.2g} GB of memory"
    known = {
        "model": model["folder"],
        "weights": model["weights"],
        "data": told["data"]["manifest"],
        "cost": spent,
        "versions": ", ".join(f"{name} {version}" for name, version in told["versions"].items()),
    }
    return f'<div class="foot">{facts(known)}<p>All numbers, also of single cases, are in evaluation.json beside this page.</p></div>'


def card(title: str, body: str, wide: bool = False) -> str:
    return f'<div class="card{" wide" if wide else ""}"><h3>{escape(title)}</h3>{body}</div>'


def facts(known: Mapping[str, str | None]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in known.items() if text) + "</dl>"


def _named(section: Section) -> str:
    return f'{_level(section.level)}<a href="#{escape(section.name)}">{escape(section.title)}</a>'


def _level(level: Level) -> str:
    return f'<span class="level {level}">{WORDS[level]}</span>'


def count(n: int, what: str) -> str:
    """Such as "1 subject" and "2 subjects"."""
    return f"{n} {what}" + ("" if n == 1 else "s")
