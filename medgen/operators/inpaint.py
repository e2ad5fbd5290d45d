"""Part of the image."""

from __future__ import annotations

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
