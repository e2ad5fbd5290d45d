"""The image itself, with noise."""

from __future__ import annotations

from torch import Tensor

from medgen.core.operator import Operator, State


class Identity(Operator):
    """A = I: denoising."""

    def __call__(self, x: Tensor, state: State) -> Tensor:
        return x

    def adjoint(self, y: Tensor, state: State) -> Tensor:
        return y

    def shape(self, x: tuple[int, ...], state: State) -> tuple[int, ...]:
        return x
