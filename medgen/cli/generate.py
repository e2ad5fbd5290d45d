"""`medgen generate`: new images as files."""

from __future__ import annotations

import argparse
from pathlib import Path

from medgen.cli.loading import given, pretrained
from medgen.core.errors import MedgenError
from medgen.core.volume import folder_for

ENDINGS = {"nii": ".nii.gz", "png": ".png", "npy": ".npy"}


def run(options: argparse.Namespace) -> None:
    """Write `sample_000<ending>` and so on; nothing existing is replaced without `--overwrite`."""
    folder = folder_for(Path(options.output))
    paths = [folder / f"sample_{i:03d}{ENDINGS[options.format]}" for i in range(options.n)]
    taken = [p for p in paths if p.exists()]
    if taken and not options.overwrite:
        raise MedgenError(f"{taken[0]} exists; choose another folder or pass --overwrite")
    model = pretrained(options)
    if options.format == "nii" and model.contract.spacing is None:
        raise MedgenError("this model makes pictures without geometry, which a NIfTI needs; pass --format png or npy")
    volumes = model.generate(options.n, options.seed, given(options), options.size, options.batch)
    for path, volume in zip(paths, volumes, strict=True):
        volume.save(path, options.overwrite)
    print(f"{len(paths)} images in {folder} ({volumes[0].units})")
