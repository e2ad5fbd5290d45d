"""The contract of a measurement's physics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]


class Operator(ABC):
    """A linear map from images to what a machine measures, y = A x + noise, and its adjoint.

    <A x, y> = <x, A* y> in the real inner product Re sum(conj(a) b), and one by one equals batch. What belongs to one measurement
    (sampling mask, coil maps) is in `state`, batch first; the operator itself has no batch and no weights.
    """

    @abstractmethod
    def __call__(self, x: Tensor, state: State) -> Tensor:
        """x (B, C, *S) -> y (B, ...)."""

    @abstractmethod
    def adjoint(self, y: Tensor, state: State) -> Tensor:
        """y (B, ...) -> (B, C, *S), real where images are."""

    @abstractmethod
    def shape(self, x: tuple[int, ...], state: State) -> tuple[int, ...]:
        """The shape of y for images of shape `x`."""


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(B,) real inner product of real or complex tensors."""
    product = a.conj() * b if a.is_complex() or b.is_complex() else a * b
    return (product.real if product.is_complex() else product).flatten(1).sum(1)
