"""An image pulled towards what was measured."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.core.condition import Measurement
from medgen.core.operator import inner
from medgen.core.tensors import broadcast
from medgen.solvers.moments import conjugate_gradients


def consistent(x: Tensor, measured: Measurement, trust: Tensor | None = None, iterations: int = 10) -> Tensor:
    """argmin |A u - y|^2 / s^2 + |u - x|^2 / trust^2: the data consistency step of Aggarwal et al. 2019 (MoDL), equation 8.

    Args:
        x: (B, C, *S) a network's answer.
        measured: y, operator, state and noise s.
        trust: (B,) standard deviation of the answer's error, taken as white. None estimates it from the part of the residual that noise
            does not explain, tr(A*A) trust^2 = |y - A x|^2 - |noise|^2, the trace by one probe of random signs (Hutchinson 1990).
        iterations: of conjugate gradients; one is exact for a single coil.
    """
    operator, state = measured.operator, measured.state
    noise = measured.noise.to(x.dtype)
    if trust is None:
        signs = torch.randint(0, 2, x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
        probe = operator(signs.expand_as(x), state)
        unexplained = (operator.residual(x, measured).square() - noise.square()) * operator.components(measured.y, state)
        trust = (unexplained / inner(probe, probe)).clamp_min(0).sqrt()
    weight = broadcast((trust / noise).square(), x)

    def system(u: Tensor) -> Tensor:
        return u + weight * operator.adjoint(operator(u, state), state)

    gap = operator.adjoint(measured.y - operator(x, state), state)
    return x + conjugate_gradients(system, weight * gap, iterations)
