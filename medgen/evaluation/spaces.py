"""The feature spaces that an evaluation reports: always at least two."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from medgen.core.errors import MedgenError
from medgen.metrics.radiomics import radiomics
from medgen.metrics.space import Space
from medgen.metrics.spaces import brought, fixed, sliced

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


def asked(said: str, dims: int) -> Space:
    """A space by the user's network: a TorchScript file, and after a colon what it takes: size, channels, mean, std; numbers joined by x.

    It is one for images of 2 dimensions, and cut along three axes for volumes; with `dims=3` among the options it takes volumes itself.

    Raises:
        MedgenError: an option that is not one of these, or no number; as `medgen.metrics.spaces.brought`.
    """
    path, _, options = said.partition(":")
    given: dict[str, list[float]] = {}
    for option in filter(None, options.split(",")):
        name, _, text = option.partition("=")
        if name not in ("size", "channels", "mean", "std", "dims"):
            raise MedgenError(
                f"'{said}': a network takes size, channels, mean, std and dims, not '{name}'; write {path}:size=224,channels=3"
            )
        try:
            given[name] = [float(number) for number in text.split("x")]
        except ValueError as error:
            raise MedgenError(f"'{said}': {name} takes numbers joined by x, got '{text}'; write {name}=224x224, or {name}=0.5") from error
    own = int(given.get("dims", [2])[0])
    size = [int(n) for n in given["size"] * (own if len(given["size"]) == 1 else 1)] if "size" in given else None
    channels = int(given["channels"][0]) if "channels" in given else None
    space = brought(path, dims=own, size=size, channels=channels, mean=given.get("mean", [0.0]), std=given.get("std", [1.0]))
    return sliced(space) if dims == 3 and own == 2 else space


def built_in(dims: int) -> Space | None:
    """The trained encoder for images of `dims` dimensions; None where it is not installed."""
    return import_module(ENCODERS).built_in(dims) if find_spec(ENCODERS) else None
