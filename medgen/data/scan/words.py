"""The words of `medgen train` that fit a manifest, to start from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medgen.core.colours import ENDINGS
from medgen.core.errors import MedgenError
from medgen.data.columns import Column
from medgen.data.formats.format import Header
from medgen.data.manifest import Manifest
from medgen.data.readers import peek

_BUILT_IN = {"slices": "t1", "volumes": "t1", "pictures": "image"}  # the channel that configs/data has there
_RULES = {"CT": "ct_hu", "MR": "mr_percentile"}


def training_words(manifest: Manifest, columns: Mapping[str, Column]) -> list[str]:
    """`data=...` and what follows, for new images of the first image column; empty where no image can be looked at.

    What they cannot know is left as it is: size, spacing, labels, and whether something else is to be made.
    """
    for name, column in columns.items():
        cell = next((row[name] for row in manifest.rows if row.get(name)), None) if column.kind in ("image", "kspace") else None
        if cell is None:
            continue
        try:
            header = peek(manifest.file({"subject": "", name: cell}, name))
        except MedgenError:
            continue
        return _words(manifest, name, column, header)
    return []


def _words(manifest: Manifest, name: str, column: Column, header: Header) -> list[str]:
    kind = "pictures" if len(header.shape) == 2 else "volumes" if "frame_seconds" in header.meta else "slices"
    modality = column.modality or str(header.meta.get("modality", "")).upper()
    rule = _RULES.get(modality) or ("unit_range" if np.dtype(header.dtype) == np.uint8 else "mr_percentile")
    channels = [f"{name}{ending}" for ending in ENDINGS] if kind == "pictures" and header.channels == 3 else [name]
    words = [f"data={kind}", f"data.source.manifest={manifest.path}"]
    default = _BUILT_IN[kind]
    if channels == [default] and rule in ("mr_percentile" if default == "t1" else "unit_range"):
        return words + ([] if default == "t1" else [f"task.target=[{default}]"])
    words.append(f"~data.source.channels.{default}")
    words += [f"+data.source.channels.{channel}.name={rule}" for channel in channels]
    return [*words, f"task.target=[{','.join(channels)}]"]


def training_line(manifest: Manifest, columns: Mapping[str, Column]) -> list[str]:
    """A line for the user, or none."""
    words = training_words(manifest, columns)
    return [f"train: medgen train {' '.join(words)}"] if words else []
