"""Part of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.core.operator import Operator, State


class Inpaint(Operator):
    """Keeps what lies in `state["mask"]` (B, 1, *S), 1 where the image is known; the rest of y is zero."""

    def __call__(self, x: Tensor, state: State) -> Tensor:
        return x * state["mask"]

    def adjoint(self, y: Tensor, state: State) -> Tensor:
        return y * state["mask"]

    def shape(self, x: tuple[int, ...], state: State) -> tuple[int, ...]:
        return x

    def view(self, y: Tensor, state: State) -> Tensor:
        """What is known beside the mask: a zero alone could be either."""
        return torch.cat([y, state["mask"].expand(-1, 1, *y.shape[2:]).to(y.dtype)], 1)

    def measured(self, y: Tensor, state: State) -> Tensor:
        return y * state["mask"]
