"""Nearest training images, by voxels or in a feature space, whatever the training set's size: its images are read, compared, forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from medgen.metrics.feature import Nearest, nearest_images
from medgen.metrics.privacy import Block, Neighbours, nearest_training
from medgen.metrics.space import Space

BLOCK = 32 << 20  # bytes of images that are read at once
HELD = 256 << 20  # bytes of float64 vectors whose nearest ones are sought at once: for more, the training set is read again


def nearest_in(space: Space, images: Iterable[Tensor], training: Sequence[Tensor], owners: Sequence[str]) -> Neighbours:
    """The nearest training images of each image, by the vectors of a space.

    Args:
        images, training: (C, *S) each, one after the other.
        owners: the subject of each training image.

    Raises:
        MedgenError: images that the space does not take, and what `nearest_training` refuses.
    """
    found = [nearest_training(held, _blocks(space, training, owners)) for held in _held(space, images)]
    return Neighbours(*(torch.cat(column) for column in zip(*found, strict=True)))


def nearest_of(images: Tensor, training: Iterable[Tensor]) -> Nearest:
    """`medgen.metrics.feature.nearest_images` among training images (C, *S) that come one after the other."""
    distances, rows, first = torch.full((len(images),), math.inf, dtype=torch.float64), torch.zeros(len(images), dtype=torch.long), 0
    for stack in stacks(training):
        found = nearest_images(images, stack)
        closer = found.distances < distances
        distances = torch.where(closer, found.distances, distances)
        rows = torch.where(closer, found.rows + first, rows)
        first += len(stack)
    return Nearest(distances, rows)


def _held(space: Space, images: Iterable[Tensor]) -> Iterator[Tensor]:
    """(N, F) vectors, as many as `HELD` bytes hold."""
    held: list[Tensor] = []
    for stack in stacks(images):
        held.append(space.features(stack).flatten(1))
        if 8 * sum(vectors.numel() for vectors in (*held, held[-1])) > HELD:  # no room for another stack
            whole, held = torch.cat(held), []
            yield whole
    if held:
        yield torch.cat(held)


def _blocks(space: Space, training: Sequence[Tensor], owners: Sequence[str]) -> Iterator[Block]:
    first = 0
    for stack in stacks(training):
        yield space.features(stack).flatten(1), owners[first : first + len(stack)]
        first += len(stack)


def stacks(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """(M, C, *S), as many as `BLOCK` bytes hold and at least one."""
    part: list[Tensor] = []
    for image in images:
        part.append(image)
        if (len(part) + 1) * image.nbytes > BLOCK:
            stack, part = torch.stack(part), []
            yield stack
    if part:
        yield torch.stack(part)
