"""The feature spaces that an evaluation reports: always at least two."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from medgen.metrics.radiomics import radiomics
from medgen.metrics.space import Space
from medgen.metrics.spaces import fixed, sliced

ENCODERS = "medgen.evaluation.encoder"


def spaces(dims: int) -> list[Space]:
    """The built-in encoder where its weights are there (of volumes also the one for planes, in 2.5D), radiomics, and the fixed feature."""
    encoder, planes = built_in(dims), built_in(2) if dims == 3 else None
    learned = [encoder, planes and sliced(planes)]
    return [
        *(space for space in learned if space is not None),
        radiomics(),
        fixed(),
        *([sliced(fixed())] if dims == 3 and not planes else []),
    ]


def built_in(dims: int) -> Space | None:
    """The trained encoder for images of `dims` dimensions; None where it is not installed."""
    return import_module(ENCODERS).built_in(dims) if find_spec(ENCODERS) else None
