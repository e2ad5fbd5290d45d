"""Guidance: denoisers made from denoisers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.model import Denoiser


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022): D_null + scale (D_condition - D_null).

    Args:
        scale: 0 ignores the condition, 1 is the plain conditional model (one evaluation), above 1 sharpens.
    """

    scale: float = 1.0

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return denoiser if self.scale == 1.0 else _Guided(denoiser, self.scale)


@dataclass(frozen=True)
class _Guided:
    denoiser: Denoiser
    scale: float

    def denoise(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float, condition: Condition) -> Tensor:
        if not condition.roles:
            raise MedgenError(f"guidance {self.scale} needs a condition, and this request has none; leave guidance out")
        null = self.denoiser.denoise(x_t, alpha, sigma, condition.absent())
        if self.scale == 0.0:
            return null
        given = self.denoiser.denoise(x_t, alpha, sigma, condition)
        return null.lerp(given, self.scale)
