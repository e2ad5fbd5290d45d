"""`medgen generate`: new images as files."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from medgen.cli.loading import given, pretrained
from medgen.cli.rank import shared
from medgen.core.errors import MedgenError, MedgenWarning
from medgen.core.volume import folder_for
from medgen.inference import Pretrained
from medgen.training import ranks

ENDINGS = {"nii": ".nii.gz", "png": ".png", "npy": ".npy", "tif": ".tif", "dicom": ".dcm"}


@shared
def run(options: argparse.Namespace) -> None:
    """Write `sample_000<ending>` and so on; nothing existing is replaced without `--overwrite`. Rank r makes samples r, r + world, ..."""
    if ranks.rank():
        warnings.simplefilter("ignore", MedgenWarning)  # rank 0 says it
    with ranks.agreed():
        paths, model = _checked(options)
    own = range(ranks.rank(), options.n, ranks.world())
    volumes = model.generate(options.n, options.seed, given(options), options.size, options.batch, own)
    for i, volume in zip(own, volumes, strict=True):
        volume.save(paths[i], options.overwrite)
    ranks.wait()
    if ranks.rank() == 0:
        print(f"{len(paths)} images in {paths[0].parent} ({volumes[0].units})")


def _checked(options: argparse.Namespace) -> tuple[list[Path], Pretrained]:
    """Where the images go, which is free, and what makes them."""
    folder = folder_for(Path(options.output))
    paths = [folder / f"sample_{i:03d}{ENDINGS[options.format]}" for i in range(options.n)]
    taken = [p for p in paths if p.exists()]
    if taken and not options.overwrite:
        raise MedgenError(f"{taken[0]} exists; choose another folder or pass --overwrite")
    model = pretrained(options)
    if options.format == "nii" and model.contract.spacing is None:
        raise MedgenError("this model makes pictures without geometry, which a NIfTI needs; pass --format png, npy, tif or dicom")
    return paths, model
