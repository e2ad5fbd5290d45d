"""A perceptual distance without weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Perceptual:
    """L1 between Laplacian pyramids (Bojanowski et al. 2018, Lap1): edges at every scale count, wherever a pixel-wise mean forgives blur.

    Args:
        weight: of the distance in a loss.
        levels: scales; fewer where the image is smaller than 2^levels.
    """

    weight: float = 1.0
    levels: int = 4

    def __call__(self, made: Tensor, real: Tensor) -> Tensor:
        """Images (B, C, *S) -> mean over scales of the mean absolute difference of their details."""
        difference, total, scales = made - real, 0.0, 0  # the pyramid is linear
        for _ in range(self.levels):
            if min(difference.shape[2:]) < 4:
                break
            coarse = F.interpolate(difference, scale_factor=0.5, mode="area", recompute_scale_factor=True)
            smooth = F.interpolate(coarse, size=difference.shape[2:], mode=LINEAR[difference.ndim - 2], align_corners=False)
            total, difference, scales = total + (difference - smooth).abs().mean(), coarse, scales + 1
        return self.weight * (total + difference.abs().mean()) / (scales + 1)
