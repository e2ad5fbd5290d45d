"""`medgen translate`: the target modality on the grid of the input."""

from __future__ import annotations

import argparse
from pathlib import Path

from medgen.cli.loading import given, pretrained
from medgen.core.errors import MedgenError


def run(options: argparse.Namespace) -> None:
    """Write one file; an existing one is not replaced without `--overwrite`."""
    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise MedgenError(f"{output} exists; choose another name or pass --overwrite")
    model = pretrained(options)
    volume = model.translate(sources(options.input), options.seed, given(options), options.draws)
    volume.save(output, options.overwrite)
    print(f"{output}: {', '.join(model.task.target)} in {volume.units} units, {volume.meta['scale']}")


def sources(items: list[str]) -> str | dict[str, str]:
    """One file, or channel -> file from `channel=file` words."""
    if len(items) == 1 and ("=" not in items[0] or Path(items[0]).exists()):
        return items[0]
    pairs = [item.partition("=") for item in items]
    wrong = [item for item, (_, separator, _) in zip(items, pairs, strict=True) if not separator]
    if wrong:
        raise MedgenError(f"several inputs are given as channel=file, got '{wrong[0]}'")
    return {name: value for name, _, value in pairs}
