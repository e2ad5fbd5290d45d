"""The encoders that come with medgen: weights in `zoo/encoder_2d` and `zoo/encoder_3d`, their digest in the name of every number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from medgen.checkpoint import build
from medgen.core.errors import MedgenError
from medgen.metrics.space import Space
from medgen.nn.encoder import Encoder
from medgen.zoo import zoo_folders

WEIGHTS, DOCUMENT = "model.safetensors", "encoder.json"
FORMAT = 1


def built_in(dims: int) -> Space | None:
    """The feature space of the encoder for `dims` (2 or 3) dimensions, or None where its weights are not installed.

    Named after the weights, such as "encoder_2d@1a2b3c4d" (the first 8 hexadecimal digits of the file's SHA-256). A one-channel image
    has 64 features, one of three channels 96.

    Raises:
        MedgenError: the files are there and damaged.
    """
    folder = folder_of(dims)
    if folder is None:
        return None
    name, encoder = _loaded(folder, _state(folder))
    return Space(name, dims, encoder.features, standard=True)


def built_in_maps(dims: int) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """The feature maps of the same encoder, for `medgen.metrics.perceptual`; None where its weights are not installed."""
    folder = folder_of(dims)
    return None if folder is None else _loaded(folder, _state(folder))[1].maps


def folder_of(dims: int) -> Path | None:
    """Where the encoder for `dims` dimensions lies: the first of `zoo_folders` that has it."""
    folders = (zoo / f"encoder_{dims}d" for zoo in zoo_folders())
    return next((folder for folder in folders if (folder / WEIGHTS).is_file() and (folder / DOCUMENT).is_file()), None)


def named(folder: Path, weights: bytes) -> str:
    """What numbers of the encoder in `folder` are called."""
    return f"{folder.name}@{hashlib.sha256(weights).hexdigest()[:8]}"


def save(folder: Path, encoder: Encoder, about: dict[str, Any]) -> None:
    """Weights, and how the network that they fit is made, with what is told about its training.

    Raises:
        MedgenError: the folder holds a model of another kind.
    """
    from safetensors.torch import save_file

    if (folder / "contract.json").exists():
        raise MedgenError(f"{folder} holds a generative model; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}, folder / WEIGHTS)
    arguments = {"spatial_dims": encoder.spatial_dims, "channels": list(encoder.channels), "features": encoder.readout.shape[1]}
    document = {"format": FORMAT, "encoder": {"_target_": "medgen.nn.encoder.Encoder", **arguments}, **about}
    (folder / DOCUMENT).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _state(folder: Path) -> tuple[tuple[int, int], ...]:
    """What changes when a file is replaced."""
    stats = [(folder / name).stat() for name in (WEIGHTS, DOCUMENT)]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


@lru_cache(maxsize=4)
def _loaded(folder: Path, state: tuple[tuple[int, int], ...]) -> tuple[str, Encoder]:
    """Name and network, kept while the files in `folder` stay as `state` says."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    weights = (folder / WEIGHTS).read_bytes()
    try:
        document = json.loads((folder / DOCUMENT).read_text("utf-8"))
        encoder = build(document["encoder"])
        encoder.load_state_dict(load(weights))
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        if isinstance(error, MedgenError):
            raise
        raise MedgenError(f"{folder} is damaged ({str(error).splitlines()[0]}); copy the encoder again") from error
    return named(folder, weights), encoder.eval().requires_grad_(False)
