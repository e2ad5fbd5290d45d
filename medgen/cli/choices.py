"""Choices that do not go together, answered when a configuration is composed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medgen.core.errors import MedgenError

UNSET = "???"  # as a configuration says that a value is the user's to give


def check_choices(config: Mapping[str, Any]) -> None:
    """Refuse data without their manifest, and a model that answers from what it is given for a task that gives nothing.

    Raises:
        MedgenError: with what would go.
    """
    if (config["data"].get("source") or {}).get("manifest") == UNSET:
        raise MedgenError(
            "the data are yours to name: set data.source.manifest=<CSV with a column 'subject' and one column per image>;"
            " `medgen data scan` makes one of a folder"
        )
    kind = str(config["model"].get("_target_")).rpartition(".")[2]
    if kind == "Regression" and (config.get("condition") or {}).get("dense") == 0:
        raise MedgenError(
            "model=regression makes an image of what it is given, and this task gives it nothing; take task=translation or"
            " task=reconstruction, or another model"
        )
