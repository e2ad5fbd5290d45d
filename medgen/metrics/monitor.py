"""The one number that a validation reports, as a value that a task carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from medgen.metrics.feature import describe
from medgen.metrics.kernels import kid
from medgen.metrics.pixel import psnr


@dataclass(frozen=True)
class PSNR:
    """Mean peak signal-to-noise ratio in dB of paired images, over cases."""

    data_range: float = 2.0
    name: ClassVar[str] = "psnr"
    best: ClassVar[str] = "max"
    least: ClassVar[int] = 1

    def __call__(self, made: Tensor, real: Tensor) -> float:
        return float(psnr(made, real, self.data_range).mean())


@dataclass(frozen=True)
class FeatureDistance:
    """Unbiased kernel distance of the fixed feature between samples and held-out images; near 0 for equal distributions."""

    name: ClassVar[str] = "kernel_distance"
    best: ClassVar[str] = "min"
    least: ClassVar[int] = 2

    def __call__(self, made: Tensor, real: Tensor) -> float:
        return kid(describe(made), describe(real)).value
