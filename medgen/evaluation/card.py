"""The model card that a report fills, what such a card needs, and the headline numbers for the zoo.

`card_text(report, contract)` is for whatever hands a model out (`medgen zoo card`, `medgen zoo add --report`, `medgen export`): `report` is
the parsed evaluation.json, or None where there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.core.contract import Contract
from medgen.evaluation.section import WORDS, Level

_METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nmse": "NMSE", "mae": "MAE (of a range of 2)"}
_PLACEHOLDER = "To be written by whoever trained the model: input that it was never shown, and what went wrong when it was tried."


@dataclass(frozen=True)
class Check:
    """Attributes:
    what: a thing that a card needs.
    there: whether it is there.
    told: what was found, or how to get it.
    """

    what: str
    there: bool
    told: str


def checks(report: Mapping[str, Any]) -> list[Check]:
    """What a model card needs, and whether a report (the parsed evaluation.json) has it."""
    data, trained = report["data"], report["model"]["training_data"]
    sections = report["sections"]
    done = {name: section for name, section in sections.items() if not section.get("skipped")}
    fidelity, subjects = done.get("pixel") or done.get("feature") or done.get("samples"), data["subjects"]
    baseline = "above_baseline" in done.get("pixel", {}).get("numbers", {}) or "feature" in done or "samples" in done
    absent = done.get("pixel", {}).get("numbers", {}).get("baselines_missing", "")
    found = [
        _check("training data", trained.get("name"), "name it in the run: data.source.options.about"),
        _check("licence of the training data", trained.get("licence"), "name it in the run: data.source.options.about"),
        Check("held-out subjects", data["split"] != "train", f"split {data['split']}, {subjects} subjects"),
        Check("an interval", subjects > 1, f"{subjects} subjects" if subjects > 1 else "one subject has none: evaluate on more"),
        _check("how good the images are", fidelity and fidelity["verdict"], "run the parts pixel (pairs) or feature (samples)"),
        Check("a yardstick", baseline and not absent, absent or ("beside a baseline or real images" if baseline else "run the part pixel")),
    ]
    return found + [_part(sections, name, what) for name, what in _parts_of(report["model"]["kind"]).items()]


def _parts_of(kind: str) -> dict[str, str]:
    """The parts that a card of such a model rests on."""
    common = {"task": "use for a task", "privacy": "copies of training data", "shift": "other domains and groups"}
    if kind == "synthesis":
        return {"feature": "realism in two feature spaces", **common}
    return {"hallucination": "structure made up or missed", "calibration": "its own uncertainty", **common}


def _part(sections: Mapping[str, Any], name: str, what: str) -> Check:
    section = sections.get(name)
    if section is None:
        return Check(what, False, f"run the part {name}")
    if section.get("skipped"):
        return Check(what, False, section["skipped"])
    return Check(what, True, section["verdict"])


def _check(what: str, found: Any, remedy: str) -> Check:
    known = bool(found) and found != "unknown"
    return Check(what, known, str(found) if known else remedy)


def headline(report: Mapping[str, Any]) -> dict[str, str]:
    """The numbers that the zoo's table shows, name -> text."""
    done = {name: section["numbers"] for name, section in report["sections"].items() if not section.get("skipped")}
    n = report["data"]["subjects"]
    found = {}
    if "pixel" in done:
        body = done["pixel"]["regions"]["body"]
        gap = done["pixel"].get("above_baseline")
        beside = f", {gap['psnr']['value']:+.2f} on {gap['baseline']}" if gap else ""
        found = {"PSNR": f"{_number(body['psnr'])} dB{beside}", "SSIM": f"{_number(body['ssim'])} (n = {n})"}
    elif "samples" in done:
        found = {"feature distance / floor": f"{done['samples']['frechet']['ratio']:.2f} (n = {done['samples']['n']['in_ratio']})"}
    return found | _of_task(done)


def _of_task(done: Mapping[str, Any]) -> dict[str, str]:
    """What judges that were trained on samples reach on real images, beside those trained on real ones."""
    found = {}
    for arms in done.get("task", {}).get("training", {}).values():
        for measure, word in (("auroc", "AUROC"), ("dice", "Dice")):
            made, real = (arms[arm].get(measure, {}).get("value") for arm in ("synthetic", "real"))
            if made is not None and real is not None:
                found.setdefault(f"{word} trained on samples", f"{made:.3f} (on real {real:.3f})")
    return found


def card_text(report: Mapping[str, Any] | None, contract: Contract) -> str:
    """A model card in Markdown, from the parsed evaluation.json (None: a card that says that nothing was measured) and the contract."""
    about = report["model"] if report else {"name": "model", "kind": "", "family": "generative model"}
    channels = f"{', '.join(contract.source)} to {', '.join(contract.target)}" if contract.source else ", ".join(contract.target)
    grid = " x ".join(map(str, contract.size)) + (f" at {' x '.join(f'{s:g}' for s in contract.spacing)} mm" if contract.spacing else "")
    data = {"name": "unknown", "licence": "unknown", "attribution": "no attribution given", "subjects": 0, **contract.data}
    lines = [
        f"# {about['name']}",
        f"{about['family']}, {channels}, {grid}." + (f" {about['kind'].capitalize()}." if about["kind"] else ""),
        "Research only; not a medical device.",
        "## Training",
        f"- Data: {data['name']}; licence {data['licence']}; {data['attribution']}."
        + (f" {data['subjects']} subjects." if data["subjects"] else ""),
        "## Measured",
    ]
    lines += (
        measured_lines(report) if report else ["Nothing was measured: `medgen evaluate MODEL --data MANIFEST -o report` fills this in."]
    )
    lines += ["## Known failures", *(_failures(report) if report else []), f"- {_PLACEHOLDER}"]
    return spaced(lines)


def measured_lines(report: Mapping[str, Any]) -> list[str]:
    """Markdown of what a report found: on what, the scores beside the baselines, a verdict for each part, and what was not measured."""
    data, sections = report["data"], report["sections"]
    done = {name: section for name, section in sections.items() if not section.get("skipped")}
    count = f"{data['subjects']} subject{'' if data['subjects'] == 1 else 's'}"
    lines = [f"On {Path(data['manifest']).name}, split {data['split']}, {count}, seed {report['settings']['seed']}."]
    if "pixel" in done:
        lines += _table(done["pixel"]["numbers"])
        lines.append("Part by part:")  # two tables need something between them
    lines += ["| part | level | what was found |", "|---|---|---|"]
    lines += [
        f"| {section['title']} | {WORDS[Level(section['level'])]} | {section['verdict'].replace('|', '/')} |" for section in done.values()
    ]
    gone = [f"- Not measured: {section['title'].lower()}. {section['skipped']}" for section in sections.values() if section.get("skipped")]
    return [*lines, *gone]


def _table(numbers: Mapping[str, Any]) -> list[str]:
    """The scores in the body, the model's and its baselines'."""
    methods = {"the model": numbers, **numbers.get("baselines", {})}
    lines = [f"| method | {' | '.join(_METRICS.values())} |", "|---" * (1 + len(_METRICS)) + "|"]
    lines += [f"| {name} | {' | '.join(_number(found['regions']['body'][m]) for m in _METRICS)} |" for name, found in methods.items()]
    return lines


def _failures(report: Mapping[str, Any]) -> list[str]:
    """The worst cases, and the parts that did not go well."""
    sections = report["sections"].values()
    ill = [f"- {section['title']}: {section['verdict']}" for section in sections if section["level"] in ("bad", "watch")]
    return ill + [f"- Worst case {who}: {what}." for section in sections for who, what in section["worst"][:2]]


def _number(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "-"
    ends = found["interval"]
    return f"{found['mean']:.4g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else "")


def spaced(lines: list[str]) -> str:
    """Paragraphs apart, rows of a table and items of a list together."""
    text = lines[0]
    for before, line in itertools.pairwise(lines):
        together = (before[:2] == line[:2] and before[:2] in ("- ", "| ")) or (before[:1] == line[:1] == "|")
        text += ("\n" if together else "\n\n") + line
    return text + "\n"
