"""Changes one after the other, on a case of the loader or on a batch inside a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from medgen.core.errors import MedgenError, nearest
from medgen.core.random import Rng
from medgen.data.augment.change import Geometry, Intensity, rows_of
from medgen.data.augment.move import Move
from medgen.data.source import Case


class Changes:
    """Named changes in the order given: all moves of voxels first, as one interpolation, then the changes of intensity.

    Args:
        changes: name -> change; None leaves it out (`data.augment.changes.motion=null`).
    """

    def __init__(self, changes: Mapping[str, Geometry | Intensity | None]):
        self.named = {name: change for name, change in changes.items() if change is not None}
        for name, change in self.named.items():
            if not isinstance(change, (Geometry, Intensity)):
                raise MedgenError(f"change '{name}' is a {type(change).__name__}; expected one such as medgen.data.augment.mr.BiasField")
        strength = torch.ones(1)  # loader processes see what the trainer sets; a memory plan has stand-ins, which share nothing
        self._strength = strength.share_memory_() if type(strength) is Tensor else strength

    @property
    def strength(self) -> float:
        return float(self._strength)

    def drive(self, strength: float) -> None:
        """From now on all probabilities are multiplied by `strength` >= 0, here and in loader processes.

        The draws are the same at every strength: a change that happens at one also happens, equal, at a larger one. Batches that loader
        processes have made in advance keep the strength of that moment.
        """
        if strength < 0:
            raise MedgenError(f"strength={strength}; expected 0 or more")
        self._strength.fill_(strength)

    def __call__(self, case: Case, rng: np.random.Generator) -> Case:
        """The changed case; "affine" stays that of the untouched grid."""
        images = images_of(case)
        stream, size = stream_of(rng), next(iter(images.values())).shape[1:]
        return self.recoloured({**case, **moved(images, self.move(stream, size))}, stream)

    def apply_batch(self, images: Tensor, rng: Rng, p: Tensor | float | None = None) -> Tensor:
        """(B, C, *S) images with all channels changed; differentiable in them.

        Args:
            rng: one stream per image; each call takes new draws.
            p: instead of the driven strength: a number, or one per image (B,), that multiplies the probabilities.
        """
        stream, strength = rng.fork().to("cpu"), self.strength if p is None else p
        move = self.move(stream, images.shape[2:], strength)
        return self._all_recoloured(move(images.float()), stream, strength)

    def apply_pair(self, images: Tensor, given: Tensor, rng: Rng, p: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """The same, with `given` (B, K, *S) moved alike and nothing else done to it.

        What `given` holds is not known (images, one-hot labels), so where "air" would come in at the edges both are reflected.
        """
        stream, strength = rng.fork().to("cpu"), self.strength if p is None else p
        move = self.move(stream, images.shape[2:], strength)
        move = replace(move, outside="reflection") if move.outside == "air" else move
        return self._all_recoloured(move(images.float()), stream, strength), move(given.float())

    def move(self, stream: Rng, size: Sequence[int], strength: Tensor | float | None = None) -> Move:
        """All moves of voxels as one."""
        strength = self.strength if strength is None else strength
        total = Move.none(len(stream), len(size))
        for change in self._of(Geometry):
            own = stream.fork()
            on = happens(change, own, strength)
            if on.any():
                total = change.draw(own, size).where(on).after(total)
        return total

    def recoloured(self, case: Case, stream: Rng) -> Case:
        """The case with its named channels changed in intensity."""
        for change in self._of(Intensity):
            own = stream.fork()
            if not change.channels:
                continue
            values = torch.cat([torch.from_numpy(image_of(case, name, change)) for name in change.channels])[None]
            changed = recoloured(change, values, own, self.strength)[0].numpy()
            parts = np.split(changed, np.cumsum([len(case[name]) for name in change.channels])[:-1])
            case = {**case, **dict(zip(change.channels, parts, strict=True))}
        return case

    def _all_recoloured(self, images: Tensor, stream: Rng, strength: Tensor | float) -> Tensor:
        for change in self._of(Intensity):
            images = recoloured(change, images, stream.fork(), strength)
        return images

    def _of(self, kind: type) -> list:
        return [change for change in self.named.values() if isinstance(change, kind)]


def stream_of(rng: np.random.Generator) -> Rng:
    """The stream of one case."""
    return Rng(int(rng.integers(1 << 62)))


def happens(change: Geometry | Intensity, stream: Rng, strength: Tensor | float) -> Tensor:
    """(B,) whether a change happens to each image."""
    strength = strength.detach().cpu() if isinstance(strength, Tensor) else strength
    return stream.uniform((len(stream),)) < change.probability * strength


def recoloured(change: Intensity, images: Tensor, stream: Rng, strength: Tensor | float) -> Tensor:
    """(B, C, *S) images, those changed to which it happens."""
    rows = rows_of(happens(change, stream, strength))
    if not rows:
        return images
    drawn = change.draw(stream.of(rows), (len(rows), *images.shape[1:]))
    drawn = {name: value.to(images.device) for name, value in drawn.items()}
    if len(rows) == len(images):
        return change.apply(images, drawn)
    place = torch.tensor(rows, device=images.device)
    return images.index_copy(0, place, change.apply(images[place], drawn))


def images_of(case: Case) -> dict[str, np.ndarray]:
    """Images and label maps (C, *S) of a case."""
    return {name: value for name, value in case.items() if isinstance(value, np.ndarray) and name != "affine" and value.ndim >= 3}


def moved(images: Mapping[str, np.ndarray], move: Move) -> dict[str, np.ndarray]:
    """All images and label maps, moved alike: each kind in one interpolation."""
    done: dict[str, np.ndarray] = {}
    for labels in (False, True):
        own = {name: image for name, image in images.items() if np.issubdtype(image.dtype, np.integer) == labels}
        if own:
            values = torch.from_numpy(np.concatenate(list(own.values())))[None]
            parts = np.split(move(values, labels)[0].numpy(), np.cumsum([len(image) for image in own.values()])[:-1])
            done |= {name: part.astype(own[name].dtype, copy=False) for name, part in zip(own, parts, strict=True)}
    return {name: done[name] for name in images}


def image_of(case: Case, name: str, change: Intensity) -> np.ndarray:
    images = [n for n, value in images_of(case).items() if np.issubdtype(value.dtype, np.floating)]
    if name not in images:
        raise MedgenError(f"{type(change).__name__} has channel '{name}', which the case has not; {nearest(name, images)}")
    return case[name]
