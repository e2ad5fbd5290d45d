"""`medgen data prepare`: what training would prepare at its first use, now."""

from __future__ import annotations

import argparse
from pathlib import Path

from medgen.checkpoint import build
from medgen.cli.configs import compose, resolved
from medgen.core.errors import MedgenError
from medgen.data.files import FileData


def run(options: argparse.Namespace) -> None:
    """Prepare every split of the manifest that the overrides name, and say where it lies."""
    source = build(resolved(compose(options.overrides))["data"]["source"], trusted=True)
    if not isinstance(source, FileData):
        raise MedgenError(
            f"{type(source).__name__} draws its images and prepares nothing; name a manifest: data=slices data.source.manifest=..."
        )
    store = source.store
    if store is None:
        raise MedgenError("data.source.options.keep.folder=memory keeps nothing on disk; leave it out")
    print(f"store: {store.folder}")
    for split in source.manifest.splits:
        rows = source.prepared(split)
        count = f"{int(rows.counts.sum())} planes" if len(source.size) == 2 else f"{len(rows)} volumes"
        print(f"{split}: {len(source.manifest.split(split))} rows, {count}")
    if options.prune:
        freed = store.prune(source.wanted(source.manifest))
        print(f"pruned: {freed / 1e6:.1f} MB")
        for other in sorted(path.parent for path in store.folder.parent.glob("*/recipe.json") if path.parent != store.folder):
            print(f"of another recipe: {other}, {_size(other)}; delete the folder where no run needs it")
    print(f"on disk: {_size(store.folder)}")


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB"
