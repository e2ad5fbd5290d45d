"""What the headers of a column's images say they are: several modalities or contrasts in one column."""

from __future__ import annotations

from collections.abc import Iterator

from medgen.data.check.facts import Image
from medgen.data.check.finding import NOTE, WARNING, Data, Finding, tally
from medgen.data.columns import MODALITY_OF


def rules(data: Data, name: str) -> Iterator[Finding]:
    """Of a column of images."""
    told = [(i, kind) for i, image in data.images(name) if (kind := modality_of(image))]
    kinds = [kind for _, kind in told]
    if len(set(kinds)) > 1:
        rarest = min(set(kinds), key=kinds.count)
        remedy = "keep the rows of one, or scan with `--columns-by modality`, which gives each a column of its own"
        found = f"{name}: images of several modalities: {tally(kinds)}"
        yield Finding(WARNING, "mixed-modalities", found, remedy, **data.told([i for i, kind in told if kind == rarest], name))
        return
    yield from _descriptions(data, name)


def modality_of(image: Image) -> str | None:
    """What the file says, in medgen's words."""
    word = str(image.meta.get("modality", "")).upper()
    return MODALITY_OF.get(word, word) or None


def _descriptions(data: Data, name: str) -> Iterator[Finding]:
    told = [(i, text) for i, image in data.images(name) if (text := str(image.meta.get("description", "")).strip())]
    if len({text for _, text in told}) < 2:
        return
    of: dict[str, set[str]] = {}
    for i, text in told:
        of.setdefault(data.subject(i), set()).add(text)
    several = {subject for subject, texts in of.items() if len(texts) > 1}
    words = tally([text for _, text in told])
    if several:
        found = f"{name}: {len(several)} of {len(of)} subjects have series of different descriptions in this column: {words}"
        remedy = "where these are contrasts, scan with `--columns-by description`, which puts them side by side; else nothing to do"
        yield Finding(WARNING, "mixed-series", found, remedy, **data.told([i for i, _ in told if data.subject(i) in several], name))
    else:
        remedy = "nothing to do where they are names of one contrast"
        yield Finding(NOTE, "series-names", f"{name}: series of different descriptions: {words}", remedy, (name,))
