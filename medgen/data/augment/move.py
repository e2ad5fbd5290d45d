"""Moved images: one map of positions, however many changes it is made of, and one interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medgen.core.errors import MedgenError
from medgen.core.tensors import broadcast

OUTSIDE = {"air": "zeros", "border": "border", "reflection": "reflection"}  # -> torch's name


@dataclass(frozen=True)
class Move:
    """Voxel x of the moved image comes from position `linear (x + bend(x)) + shift`, in voxels from the centre of the grid.

    Attributes:
        linear: (B, d, d).
        shift: (B, d).
        bend: (B, d, *S), or None.
        outside: what lies beyond the image: "air" (-1, label 0), its "border", or its "reflection".
    """

    linear: Tensor
    shift: Tensor
    bend: Tensor | None = None
    outside: str = "air"

    def __post_init__(self) -> None:
        check_outside(self.outside)

    @staticmethod
    def none(batch: int, dims: int) -> Move:
        """Everything stays where it is."""
        return Move(torch.eye(dims).repeat(batch, 1, 1), torch.zeros(batch, dims))

    def where(self, on: Tensor) -> Move:
        """The move in the rows that are on (B,), none in the others."""
        linear = torch.where(on[:, None, None], self.linear, torch.eye(self.linear.shape[-1], dtype=self.linear.dtype))
        bend = None if self.bend is None or not on.any() else self.bend * broadcast(on.float(), self.bend)
        return replace(self, linear=linear, shift=self.shift * on[:, None], bend=bend)

    def after(self, first: Move) -> Move:
        """`first`, and then this, as one move."""
        outside = self.outside if first.outside == "air" else first.outside
        linear, shift = first.linear @ self.linear, (first.linear @ self.shift[..., None])[..., 0] + first.shift
        bend = self.bend
        if first.bend is not None:  # first.linear (p + first.bend(p)) + first.shift with p = linear (x + bend(x)) + shift
            pushed = grid_sample(first.bend, self.grid(first.bend.shape[2:]), padding_mode="border", align_corners=False)
            back = torch.einsum("bij,bj...->bi...", torch.linalg.inv(self.linear), pushed)
            bend = back if bend is None else bend + back
        return Move(linear, shift, bend, outside)

    def grid(self, size: Sequence[int]) -> Tensor:
        """(B, *S, d) float32 positions as `grid_sample` takes them: last axis first, -1 and 1 at the outer edges of the grid."""
        sides = torch.tensor(size, dtype=self.linear.dtype)
        linear = (self.linear * sides / sides[:, None]).flip(1, 2)
        shift = (2 * self.shift / sides).flip(1)
        grid = affine_grid(torch.cat([linear, shift[..., None]], 2).float(), [len(linear), 1, *size], align_corners=False)
        if self.bend is None:
            return grid
        bend = (self.bend.movedim(1, -1) * (2 / sides)).flip(-1).float()
        return grid + torch.einsum("bij,b...j->b...i", linear.float(), bend)

    def __call__(self, images: Tensor, labels: bool = False) -> Tensor:
        """(B, C, *S) images interpolated linearly, or label maps by the nearest voxel; mirroring alone is exact."""
        if self._flips():
            return self._flipped(images)
        grid, mode = self.grid(images.shape[2:]).to(images.device), OUTSIDE[self.outside]
        if labels:
            return grid_sample(images.float(), grid, mode="nearest", padding_mode=mode, align_corners=False).to(images.dtype)
        return grid_sample(images + 1, grid, padding_mode=mode, align_corners=False) - 1

    def _flips(self) -> bool:
        """Whether it mirrors and does nothing else, in any row."""
        diagonal = torch.diagonal(self.linear, dim1=1, dim2=2)
        return self.bend is None and not self.shift.any() and torch.equal(self.linear, torch.diag_embed(diagonal.sign()))

    def _flipped(self, images: Tensor) -> Tensor:
        for axis in range(self.linear.shape[-1]):
            mirrored = self.linear[:, axis, axis] < 0
            if mirrored.all():
                images = images.flip(axis + 2)
            elif mirrored.any():
                images = torch.where(broadcast(mirrored.to(images.device), images), images.flip(axis + 2), images)
        return images


def check_outside(outside: str) -> None:
    if outside not in OUTSIDE:
        raise MedgenError(f"outside={outside}; expected one of {', '.join(OUTSIDE)}")
