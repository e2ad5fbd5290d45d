"""What of an error the measurement could have told, and what it could not: e = A^+ A e + (I - A^+ A) e."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.core.errors import MedgenError
from medgen.core.operator import Operator, inner
from medgen.core.tensors import broadcast


@dataclass(frozen=True)
class Split:
    """An error e (B, C, *S) in two orthogonal parts that add up to it.

    Attributes:
        range: A^+ A e, which contradicts the measurement (inconsistency).
        null: (I - A^+ A) e, which the measurement does not see (hallucinated or missed by the prior).
        seen: (B,) |A null| / |A e|: 0 for an exact split, what the solver has left otherwise.
    """

    range: Tensor
    null: Tensor
    seen: Tensor

    def shares(self, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,) squared range part and null part over the squared error, over `mask` (B, 1, *S); over the whole grid they add up to 1."""
        inside = 1.0 if mask is None else mask.to(self.null.dtype)
        total = inner((self.range + self.null) * inside, (self.range + self.null) * inside).clamp_min(torch.finfo(self.null.dtype).tiny)
        return tuple(inner(part * inside, part * inside) / total for part in (self.range, self.null))


@torch.no_grad()
def split_error(error: Tensor, operator: Operator, state: Mapping[str, Tensor], iterations: int = 100, tolerance: float = 1e-12) -> Split:
    """Split e (B, C, *S), real, in float64, by the operator's own adjoint (Barrett and Myers 2004, section 1.3; Bhadra et al. 2021).

    A^+ A e is the least-squares solution z of A z = A e with the smallest norm, which conjugate gradients on A* A z = A* A e (CGLS,
    Bjorck 1996) reach from z = 0: every iterate lies in the range of A*. Orthonormal transforms with a mask need at most three steps,
    operators with small singular values as many as `iterations` allows; `seen` tells what is left.

    Raises:
        MedgenError: an error that is complex or not finite.
    """
    if error.is_complex() or not bool(torch.isfinite(error).all()):
        raise MedgenError("the error to split must be real and finite; take the magnitude, or two real channels")
    e = error.double()
    state = {name: _double(value) for name, value in state.items()}
    image = operator(e, state)
    z, residual = torch.zeros_like(e), image
    gradient = operator.adjoint(residual, state)
    direction, energy = gradient, inner(gradient, gradient)
    start = energy
    for _ in range(iterations):
        if bool((energy <= tolerance**2 * start).all()):
            break
        forward = operator(direction, state)
        step = _ratio(energy, inner(forward, forward))
        z = z + broadcast(step, z) * direction
        residual = residual - broadcast(step, residual) * forward
        gradient = operator.adjoint(residual, state)
        now = inner(gradient, gradient)
        direction = gradient + broadcast(_ratio(now, energy), direction) * direction
        energy = now
    left = operator(e - z, state)
    return Split(z, e - z, _ratio(inner(left, left), inner(image, image)).sqrt())


def _double(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0.0)
