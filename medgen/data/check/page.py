"""The report as one HTML page without anything outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medgen.core.page import document, image, table
from medgen.data.check.checker import Checked
from medgen.data.check.document import headline
from medgen.data.check.finding import ERROR, WARNING, Finding, counted

_LISTED = 8  # subjects in sight; the rest unfolds
_UNFOLDED = 200  # of which the page lists so many; report.json has all
_WORDS = {"labels": "label map", "kspace": "k-space"}

STYLE = Path(__file__).with_name("page.css")


def page(checked: Checked, told: Mapping[str, Any], pictures: Mapping[tuple[int, str], bytes], sample: Sequence[int]) -> str:
    """The whole page.

    Args:
        told: `medgen.data.check.document.document`.
        pictures: (row, column) -> PNG.
        sample: rows whose pictures show what the set looks like.
    """
    worst = checked.findings[0].severity if checked.findings else "good"
    verdict = {
        ERROR: "Training would refuse this set or learn something false from it",
        WARNING: "Training would run; read the warnings first",
    }.get(worst, "Nothing stands against training")
    parts = [
        f"<h1>{escape(checked.data.manifest.path.name)}: {told['subjects']} subjects, {told['rows']} rows</h1>",
        f'<div class="path">{escape(told["manifest"])}</div>',
        f'<div class="verdict {worst}"><strong>{escape(headline(checked).split(" in ")[0])}</strong><br>{verdict}{_worst(checked)}</div>',
        _findings(checked, pictures),
        _splits(told),
        _columns(told),
        _attributes(told),
        _sample(checked, pictures, sample),
    ]
    return document("Data report", parts, STYLE)


def _worst(checked: Checked) -> str:
    """The gravest finding, in sight at once."""
    grave = [finding for finding in checked.findings if finding.severity == ERROR]
    return f": {escape(grave[0].found)}." if grave else "."


def _findings(checked: Checked, pictures: Mapping[tuple[int, str], bytes]) -> str:
    if not checked.findings:
        return "<h2>Findings</h2><p>None.</p>"
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in checked.findings:  # the same of several columns in one place
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    return "<h2>Findings</h2>" + "\n".join(_finding(checked, group, pictures) for group in groups.values())


def _finding(checked: Checked, group: Sequence[Finding], pictures: Mapping[tuple[int, str], bytes]) -> str:
    first = group[0]
    if len(group) == 1:
        found = f"<p>{escape(first.found)}</p>"
    else:
        found = "<ul>" + "".join(f"<li>{escape(finding.found)}</li>" for finding in group) + "</ul>"
    subjects = list(dict.fromkeys(subject for finding in group for subject in finding.subjects))
    places = list(dict.fromkeys(place for finding in group for place in finding.shown))[:8]
    figures = "".join(_figure(checked, place, pictures[place], with_column=True) for place in places if place in pictures)
    remedies = "".join(f'<p class="remedy">{escape(text)}</p>' for text in dict.fromkeys(finding.remedy for finding in group))
    head = f'<span class="tag">{first.severity}</span><span class="code">{escape(first.code)}</span>'
    return f'<div class="finding {first.severity}">{head}{found}{remedies}{_who(subjects)}{_cells(checked, group)}{figures}</div>'


def _who(subjects: Sequence[str]) -> str:
    if not subjects:
        return ""
    count = "1 subject" if len(subjects) == 1 else f"{len(subjects)} subjects"
    shown = escape(", ".join(subjects[:_LISTED]))
    if len(subjects) <= _LISTED:
        return f'<p class="who">{count}: {shown}</p>'
    more = f" (and {len(subjects) - _UNFOLDED} more in report.json)" if len(subjects) > _UNFOLDED else ""
    return f'<details class="who"><summary>{count}: {shown}, ...</summary><p>{escape(", ".join(subjects[:_UNFOLDED]))}{more}</p></details>'


def _cells(checked: Checked, group: Sequence[Finding]) -> str:
    """The files that a finding is about and why, folded."""
    lines: dict[tuple[int, str], str] = {}
    for finding in group:
        lines.update(zip(finding.places, finding.reasons or ("",) * len(finding.places), strict=True))
    if not lines:
        return ""
    data = checked.data
    items = []
    for (row, column), reason in list(lines.items())[:_UNFOLDED]:
        cell = f"{data.subject(row)}, {column}: {data.manifest.rows[row][column]}"
        items.append(f"<li>{escape(cell)}{f'<br>{escape(reason)}' if reason else ''}</li>")
    more = f"<p>and {len(lines) - _UNFOLDED} more in report.json</p>" if len(lines) > _UNFOLDED else ""
    return f'<details class="who"><summary>{counted(len(lines), "file")}</summary><ul>{"".join(items)}</ul>{more}</details>'


def _figure(checked: Checked, place: tuple[int, str], png: bytes, with_column: bool) -> str:
    row, column = place
    label = f"{checked.data.subject(row)}, " + (f"{column}, " if with_column else "") + checked.data.tail(row, column)
    return f"<figure>{image(png, label)}<figcaption>{escape(label)}</figcaption></figure>"


def _splits(told: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{split["subjects"]}</td><td class="number">{split["rows"]}</td>'
        f'<td><span class="bar" style="width:{240 * split["subjects"] / told["subjects"]:.0f}px"></span></td></tr>'
        for name, split in told["splits"].items()
    )
    head = '<tr><th>split</th><th class="number">subjects</th><th class="number">rows</th><th>share of the subjects</th></tr>'
    return f"<h2>Splits</h2><table>{head}{lines}</table>"


def _columns(told: Mapping[str, Any]) -> str:
    if not told["columns"]:
        return ""
    heads = ("column", "files", "size", "voxel (mm)", "orientation", "type", "values")
    return f"<h2>Images</h2>{table(heads, [_column(name, c) for name, c in told['columns'].items()])}"


def _column(name: str, told: Mapping[str, Any]) -> list[str]:
    kind = _WORDS.get(told["kind"], told["kind"]) + (f", {told['modality']}" if told["modality"] else "")
    absent = "".join(f"<br>{told[key]} {key}" for key in ("missing", "unreadable") if told[key])
    channels = f"<br>{'/'.join(map(str, told['channels']))} channels" if told["channels"] not in ([1], []) else ""
    return [
        f'<strong>{escape(name)}</strong><br><span class="soft">{escape(kind)}</span>',
        f"{told['files']}{absent}",
        _range(told["shapes"], " × ") + channels,
        _range(told["spacings"], " × "),
        _tally(told["orientations"]),
        _tally(told["dtypes"]),
        _values(told),
    ]


def _range(told: Mapping[str, Any] | None, between: str) -> str:
    if not told:
        return '<span class="soft">-</span>'
    if told["different"] == 1:
        return between.join(f"{v:g}" for v in told["common"])
    bounds = between.join(f"{v:g}" for v in told["least"]), between.join(f"{v:g}" for v in told["greatest"])
    return f'{bounds[0]}<br>to {bounds[1]}<br><span class="soft">{told["different"]} different</span>'


def _tally(counts: Mapping[str, int]) -> str:
    if len(counts) < 2:
        return escape(", ".join(counts)) or '<span class="soft">-</span>'
    return "<br>".join(f"{escape(name)} ({count})" for name, count in sorted(counts.items(), key=lambda item: -item[1])[:5])


def _values(told: Mapping[str, Any]) -> str:
    if told["low"] is None:
        return '<span class="soft">-</span>'
    if told["kind"] == "labels":
        values = told["values"]
        total = sum(values.values()) if values else 0
        if not values or len(values) > 20:
            return f"{told['low']:g} to {told['high']:g}"
        return "<br>".join(f"{value}: {100 * count / total:.3g} %" for value, count in values.items())
    return f"{told['low']:.5g} to {told['high']:.5g}" + (_histogram(told["histogram"]) if told["histogram"] else "")


def _histogram(told: Mapping[str, Sequence[float]], width: int = 240, height: int = 52) -> str:
    """Square roots of the shares; a bin that towers over the rest, such as the background, is cut."""
    roots = [share**0.5 for share in told["share"]]
    top = sorted(roots)[-3] or max(roots)
    step = width / len(roots)
    bars = "".join(_bar(i * step, step, min(1.0, root / top) * height, height) for i, root in enumerate(roots) if root > 0)
    low, high = told["edges"][0], told["edges"][-1]
    title = f"<title>shares of voxels (square roots), from {low:g} to {high:g}</title>"
    axis = f'<div class="axis" style="width:{width}px"><span>{low:.4g}</span><span>{high:.4g}</span></div>'
    return f'<svg class="histogram" width="{width}" height="{height}" role="img" fill="currentColor">{title}{bars}</svg>{axis}'


def _bar(left: float, width: float, tall: float, height: int) -> str:
    return f'<rect x="{left:.1f}" y="{height - tall:.1f}" width="{width:.2f}" height="{tall:.1f}"/>'


def _attributes(told: Mapping[str, Any]) -> str:
    blocks = [_classes(name, entry) if "classes" in entry else _quantity(name, entry) for name, entry in told["attributes"].items()]
    return f"<h2>Attributes</h2>{''.join(blocks)}" if blocks else ""


def _classes(name: str, told: Mapping[str, Any]) -> str:
    splits = list(told["rows"])
    head = f"<tr><th>{escape(name)}</th>" + "".join(f'<th class="number">{escape(split)}</th>' for split in splits) + "<th></th></tr>"
    most = max((sum(told["rows"][split][i] for split in splits) for i in range(len(told["classes"]))), default=0) or 1
    lines = ""
    for i, title in enumerate(told["classes"]):
        counts = [told["rows"][split][i] for split in splits]
        label = f"{i}" if title == str(i) else f"{i}: {title}"
        cells = "".join(f'<td class="number">{count}</td>' for count in counts)
        lines += (
            f'<tr><td>{escape(label)}</td>{cells}<td><span class="bar" style="width:{200 * sum(counts) / most:.0f}px"></span></td></tr>'
        )
    return f'<div class="scroll"><table>{head}{lines}</table></div>'


def _quantity(name: str, told: Mapping[str, Any]) -> str:
    span = f"{told['low']:g} to {told['high']:g}" if told["filled"] else "empty"
    return f"<p><strong>{escape(name)}</strong>: {span}, filled in {told['filled']} rows</p>"


def _sample(checked: Checked, pictures: Mapping[tuple[int, str], bytes], sample: Sequence[int]) -> str:
    names = list(dict.fromkeys(column for row, column in pictures if row in sample))
    names = [name for name in checked.data.manifest.columns if name in names]
    if not names:
        return ""
    if len(names) == 1:
        places = [(row, names[0]) for row in sample if (row, names[0]) in pictures]
        return "<h2>What it looks like</h2>" + "".join(_figure(checked, place, pictures[place], with_column=False) for place in places)
    head = "<tr><th></th>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr>"
    lines = ""
    for row in sample:
        cells = "".join(f"<td>{_image(pictures.get((row, name)), name)}</td>" for name in names)
        lines += (
            f'<tr><td>{escape(checked.data.subject(row))}<br><span class="soft">{escape(checked.data.split(row))}</span></td>{cells}</tr>'
        )
    return f'<h2>What it looks like</h2><div class="scroll"><table style="width:auto">{head}{lines}</table></div>'


def _image(png: bytes | None, name: str) -> str:
    return '<span class="soft">none</span>' if png is None else image(png, name)
