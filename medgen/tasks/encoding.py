"""Named tensors to condition tensors, shared by all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from medgen.core.errors import MedgenError, nearest
from medgen.core.model import Moments
from medgen.core.neighbours import neighbour
from medgen.core.task import MOMENTS, availability


def pick(inputs: Mapping[str, Any], name: str) -> Tensor:
    """`inputs[name]`, or one sentence that says what is there."""
    if name not in inputs:
        raise MedgenError(f"'{name}' is needed and not given; {nearest(name, inputs)}")
    return inputs[name]


def stacked(inputs: Mapping[str, Any], names: Sequence[str]) -> Tensor:
    """Image channels as (B, len(names), *S)."""
    return torch.cat([pick(inputs, name) for name in names], 1)


def dense(inputs: Mapping[str, Any], source: Sequence[str], labels: Mapping[str, int]) -> Tensor | None:
    """Source images and one-hot label maps as (B, K, *S); None where the task has neither."""
    parts = [pick(inputs, name) for name in source]
    for name, classes in labels.items():
        index = checked(pick(inputs, name).long(), name, classes)[:, 0]
        parts.append(one_hot(index, classes).movedim(-1, 1).float())
    return torch.cat(parts, 1) if parts else None


def flags(inputs: Mapping[str, Any], names: Sequence[str]) -> Tensor:
    """(B, len(names)): 1 where a case has the channel, 0 where it is missing; all ones where nothing is said."""
    image = pick(inputs, names[0])
    ones = image.new_ones(len(image))
    own = [inputs.get(availability(neighbour(name)[0]), ones) for name in names]  # a slice beside a slice is there with it
    return torch.stack([inputs.get(availability(name), flag).to(image) for name, flag in zip(names, own, strict=True)], 1)


def vector(inputs: Mapping[str, Any], attributes: Mapping[str, int]) -> Tensor | None:
    """Attributes as (B, E): one-hot for classes, the value itself for a real number; None where the task has none."""
    parts = []
    for name, classes in attributes.items():
        value = pick(inputs, name)
        if not classes:
            parts.append(value.float()[:, None])
            continue
        parts.append(one_hot(checked(value.long(), name, classes), classes).float())
    return torch.cat(parts, 1) if parts else None


def cached(batch: Mapping[str, Any]) -> Moments | None:
    """The target's latent moments, where the data carry them."""
    return Moments(*batch[MOMENTS].unbind(1)) if MOMENTS in batch else None


def checked(index: Tensor, name: str, classes: int) -> Tensor:
    """`index` if all of it lies in 0 .. classes - 1."""
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise MedgenError(f"{name}={wrong} is out of range: the model knows {classes} classes, 0 to {classes - 1}")
    return index
