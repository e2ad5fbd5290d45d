"""Names of the classes of label maps, from the JSON beside the manifest."""

from __future__ import annotations

from medgen.data.columns import Column, read_columns
from medgen.data.labelling import LabelRule
from medgen.evaluation.work import Work


def class_names(work: Work) -> dict[str, str]:
    """`tissue=2` -> `tissue: fat`, of the label maps under evaluation, where the classes' names are known.

    Raises:
        MedgenError: the JSON beside the manifest is not one of columns.
    """
    columns = read_columns(work.manifest.path)
    return {
        f"{name}={k}": f"{name}: {word}"
        for name, entry in work.labels.items()
        for k, word in _by_class(columns.get(name, Column("labels")).names(), LabelRule.said(name, entry)).items()
    }


def _by_class(names: dict[int, str], rule: LabelRule) -> dict[int, str]:
    """Stored value -> name as class -> name."""
    if rule.binary:
        marked = [name for value, name in names.items() if value]
        return {1: marked[0]} if len(marked) == 1 else {}
    if rule.values:
        return {k: names[value] for k, value in enumerate(rule.values) if value in names}
    return names
