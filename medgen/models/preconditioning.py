"""How a network's output F becomes a denoised image: D = c_skip x_t + c_out F(c_in x_t, c_noise).

All are written for x_t = alpha x + sigma n with any (alpha, sigma), so that one model serves variance-exploding and
variance-preserving processes. Arguments are tensors (B,) in training and floats in sampling, where coefficients cost nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = Tensor | float
_SMALLEST = 1e-5  # keeps log-SNR and 1 / alpha finite at the ends of the process


class Coefficients(NamedTuple):
    c_skip: Scalar
    c_out: Scalar
    c_in: Scalar
    c_noise: Scalar


class Preconditioning(ABC):
    """The four coefficients at a noise level. The network's regression target follows: (x - c_skip x_t) / c_out."""

    @abstractmethod
    def __call__(self, alpha: Scalar, sigma: Scalar) -> Coefficients: ...


@dataclass(frozen=True)
class EDM(Preconditioning):
    """Unit variance in and out for data of standard deviation `data_std`: Karras et al. 2022, table 1, extended to any alpha.

    For Gaussian data c_skip x_t is the posterior mean, so the network learns only what is not Gaussian.
    """

    data_std: float = 0.5

    def __call__(self, alpha: Scalar, sigma: Scalar) -> Coefficients:
        variance = (alpha * self.data_std) ** 2 + sigma**2
        scale = variance**-0.5
        return Coefficients(alpha * self.data_std**2 / variance, sigma * self.data_std * scale, scale, noise_coordinate(alpha, sigma))


@dataclass(frozen=True)
class Epsilon(Preconditioning):
    """The network predicts n: Ho et al. 2020. Cannot say anything at alpha = 0; alpha is held above 1e-5 of the scale there."""

    def __call__(self, alpha: Scalar, sigma: Scalar) -> Coefficients:
        scale = (alpha**2 + sigma**2) ** -0.5
        safe = _at_least(alpha, _SMALLEST)
        return Coefficients(1 / safe, -sigma / safe, scale, noise_coordinate(alpha, sigma))


@dataclass(frozen=True)
class X0(Preconditioning):
    """The network predicts x."""

    def __call__(self, alpha: Scalar, sigma: Scalar) -> Coefficients:
        scale = (alpha**2 + sigma**2) ** -0.5
        return Coefficients(0.0 * scale, 1.0 + 0.0 * scale, scale, noise_coordinate(alpha, sigma))


@dataclass(frozen=True)
class V(Preconditioning):
    """The network predicts v = alpha n - sigma x on the unit circle: Salimans and Ho 2022, appendix D."""

    def __call__(self, alpha: Scalar, sigma: Scalar) -> Coefficients:
        square = alpha**2 + sigma**2
        return Coefficients(alpha / square, -sigma * square**-0.5, square**-0.5, noise_coordinate(alpha, sigma))


@dataclass(frozen=True)
class Velocity(Preconditioning):
    """The network predicts the velocity n - x of the straight path: Lipman et al. 2023; Liu et al. 2022 (rectified flow).

    Any (alpha, sigma) is first brought to that path, where alpha + sigma = 1; there D = x_t - sigma v and the target is n - x itself.
    `data_std` only scales the network's input to unit variance.
    """

    data_std: float = 0.5

    def __call__(self, alpha: Scalar, sigma: Scalar) -> Coefficients:
        total = alpha + sigma
        scale = ((alpha * self.data_std) ** 2 + sigma**2) ** -0.5
        return Coefficients(1.0 / total, -sigma / total, scale, noise_coordinate(alpha, sigma))


def noise_coordinate(alpha: Scalar, sigma: Scalar) -> Scalar:
    """ln(sigma / alpha) / 4: EDM's c_noise, kept finite at both ends."""
    ratio = _at_least(sigma, _SMALLEST) / _at_least(alpha, _SMALLEST)
    return (torch.log(ratio) if isinstance(ratio, Tensor) else math.log(ratio)) / 4


def _at_least(value: Scalar, floor: float) -> Scalar:
    return value.clamp_min(floor) if isinstance(value, Tensor) else max(value, floor)
