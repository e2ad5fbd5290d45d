"""The contract of a measurement's physics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from medgen.core.condition import Measurement
from medgen.core.random import Rng
from medgen.core.tensors import broadcast

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

    def view(self, y: Tensor, state: State) -> Tensor:
        """y -> (B, K, *S): what a network is shown of a measurement, on the grid of the image. The adjoint, unless that misleads."""
        return self.adjoint(y, state)

    def measured(self, y: Tensor, state: State) -> Tensor:
        """y with zeros where nothing is measured, so that noise falls on what is."""
        return y

    def measure(self, x: Tensor, state: State, noise: Tensor, rng: Rng) -> Measurement:
        """A x + noise: Gaussian of standard deviation `noise` (B,) on every real component of what is measured."""
        y = self(x, state)
        parts = rng.normal((len(x), 2, *y.shape[1:])).to(y.real.dtype)
        fresh = torch.complex(parts[:, 0], parts[:, 1]) if y.is_complex() else parts[:, 0]
        return Measurement(y + self.measured(broadcast(noise.to(y.device), y) * fresh, state), self, dict(state), noise)

    def residual(self, x: Tensor, measured: Measurement) -> Tensor:
        """(B,) root mean square of y - A x over the real components that were measured; near the noise where x explains y."""
        difference = measured.y - self(x, measured.state)
        return (inner(difference, difference) / self.components(measured.y, measured.state)).sqrt()

    def components(self, y: Tensor, state: State) -> Tensor:
        """(B,) how many real numbers of y were measured."""
        ones = self.measured(torch.ones_like(y), state)
        return inner(ones, ones) * (2 if y.is_complex() else 1)


class Sampling(ABC):
    """Draws what belongs to one measurement: sampling masks, coil maps."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], rng: Rng) -> dict[str, Tensor]:
        """The state for images of `shape` (B, C, *S), one per stream of `rng`."""


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(B,) real inner product of real or complex tensors."""
    product = a.conj() * b if a.is_complex() or b.is_complex() else a * b
    return (product.real if product.is_complex() else product).flatten(1).sum(1)
