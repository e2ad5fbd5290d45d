"""What the readers say of single files (`medgen.data.formats.format.Said`), each matter with its own remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from medgen.data.check.finding import NOTE, WARNING, Data, Finding
from medgen.data.formats.format import Said

_NUMBER = re.compile(r"\d+(\.\d+)?")


def told(data: Data, name: str) -> list[Finding]:
    """A finding for each matter: sentences of one code, or that differ in their numbers alone."""
    matters: dict[str, dict[int, list[Said]]] = {}
    for i, image in data.images(name):
        for text in image.meta.get("findings", ()):
            said = text if isinstance(text, Said) else Said(str(text))
            key = _NUMBER.sub("#", said) if said.code == Said("").code else said.code
            matters.setdefault(key, {}).setdefault(i, []).append(said)
    return [_finding(data, name, rows) for rows in matters.values()]


def absorbed(found: Sequence[Finding], others: Sequence[Finding]) -> list[Finding]:
    """`found`, and those of `others` on another matter. One on the same matter gives its sentences to the images that they are of."""
    codes = {finding.code: finding for finding in others}
    joined = []
    for finding in found:
        same = codes.pop(finding.code, None)
        if same is not None:
            reasons = dict(zip(same.places, same.reasons, strict=True))
            finding = replace(finding, reasons=tuple(reasons.get(place, "") for place in finding.places))
        joined.append(finding)
    left = {finding.code for finding in found}
    return [*joined, *(finding for finding in others if finding.code not in left)]


def _finding(data: Data, name: str, rows: dict[int, list[Said]]) -> Finding:
    first = next(iter(rows.values()))
    reasons = ["; ".join(dict.fromkeys(said)) for said in rows.values()]
    found = f"{name}: {reasons[0]}" + (f" (the first of {len(rows)} images of which this is said)" if len(rows) > 1 else "")
    note = all(said.note for texts in rows.values() for said in texts)
    return Finding(NOTE if note else WARNING, first[0].code, found, first[0].remedy, **data.told(list(rows), name, reasons))
