"""`medgen translate`: the target modality on the grid of the input."""

from __future__ import annotations

import argparse
from pathlib import Path

from medgen.cli.loading import given, pretrained
from medgen.cli.saving import series_of, write
from medgen.core.errors import MedgenError
from medgen.core.volume import writable


def run(options: argparse.Namespace) -> None:
    """Write one file; an existing one is not replaced without `--overwrite`."""
    output = Path(options.output)
    ending = writable(output, options.overwrite)
    model = pretrained(options)
    inputs = model.read_sources(sources(options.input))
    if ending.startswith(".nii") and any(volume.affine is None for volume in inputs.values()):
        raise MedgenError(f"{output.name}: a NIfTI needs an affine, and the input has no geometry; write .png or .npy")
    reference = series_of(next(iter(inputs.values())), output, options.keep_patient)
    volume = model.translate(inputs, options.seed, given(options), options.draws)
    write(volume, output, options.overwrite, reference, options.keep_patient)
    print(f"{output}: {', '.join(model.task.target)}, units {volume.units}, scale {volume.meta['scale']}")


def sources(items: list[str]) -> str | dict[str, str]:
    """One file, or channel -> file from `channel=file` words."""
    if len(items) == 1 and ("=" not in items[0] or Path(items[0]).exists()):
        return items[0]
    pairs = [item.partition("=") for item in items]
    wrong = [item for item, (_, separator, _) in zip(items, pairs, strict=True) if not separator]
    if wrong:
        raise MedgenError(f"several inputs are given as channel=file, got '{wrong[0]}'")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise MedgenError(f"a channel is given twice: {', '.join(names)}")
    return {name: value for name, _, value in pairs}
