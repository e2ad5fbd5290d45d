"""A model's answer for one case, how it is kept on disk, and images as networks have them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.core.volume import Volume
from medgen.data.files import FileData
from medgen.evaluation.cost import Cost
from medgen.inference import Pretrained


@dataclass(frozen=True)
class Made:
    """A model's answer for one case, on the model's grid in network units.

    Attributes:
        image: (1, C, *S), the mean of the draws.
        std: (1, C, *S) over the draws; None for one draw.
        draws: (D, C, *S); None where they were not kept.
        view: (1, C, *S) what a measurement alone shows; None for a translation.
        residual: of a reconstruction, over the noise; None for a translation.
        cost: what it took.
    """

    image: Tensor
    std: Tensor | None = None
    draws: Tensor | None = None
    view: Tensor | None = None
    residual: float | None = None
    cost: Cost = field(default_factory=Cost)


def summed(draws: Tensor) -> dict[str, Any]:
    """Mean and standard deviation of draws (D, C, *S), as `Made` takes them."""
    std = draws.std(0, keepdim=True) if len(draws) > 1 else None
    return {"image": draws.mean(0, keepdim=True), "std": std, "draws": draws if len(draws) > 1 else None}


def save(path: Path, made: Made) -> None:
    """Whole or not at all."""
    arrays = {name: value.numpy() for name, value in vars(made).items() if isinstance(value, Tensor)}
    told = json.dumps({"residual": made.residual, "cost": vars(made.cost)})
    written(path, lambda file: np.savez(file, told=told, **arrays))


def load(path: Path, draws: bool = False, images: bool = True) -> Made:
    """An answer without its single draws, or without any image (the cost alone), unless they are asked for."""
    with np.load(path, allow_pickle=False) as file:
        told = json.loads(str(file["told"]))
        wanted = [name for name in file.files if name != "told" and (draws or name != "draws")]
        arrays = {name: torch.from_numpy(file[name]) for name in wanted} if images else {"image": torch.empty(0)}
        return Made(**arrays, residual=told["residual"], cost=Cost(**told["cost"]))


def digest(*tensors: Tensor) -> str:
    """Of their values, for the name of what is made of them."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def written(path: Path, write: Callable[[Any], None]) -> None:
    """Whole or not at all, so that an interrupted evaluation finds no half answer."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        write(file)
    os.replace(partial, path)


def real_images(data: FileData, split: str, channels: Sequence[str]) -> Tensor:
    """All cases of a split, (N, C, *S)."""
    cases, rng = data.split(split), np.random.default_rng(0)
    rows = (cases.case(i, rng) for i in range(len(cases)))
    return torch.from_numpy(np.stack([np.concatenate([row[c] for c in channels]) for row in rows]))


def network_units(model: Pretrained, volume: Volume) -> Tensor:
    """A generated volume back in network units, without the thin axis of a slice: (C, *S)."""
    contract = model.contract
    array = np.stack([contract.map_of(c).forward(volume.array[i], **contract.typical(c)) for i, c in enumerate(contract.target)])
    if contract.slice_axis is not None and volume.affine is not None:
        array = array.squeeze(contract.slice_axis + 1)
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def as_volume(sample: np.ndarray, acquired: Any, image: Volume) -> np.ndarray:
    """One draw (N, C, *S) as the volume (C, *S) that `image` is."""
    if sample.shape[0] == 1:
        return sample[0]
    return np.moveaxis(sample, 0, acquired.axis + 1).reshape(image.array.shape)
