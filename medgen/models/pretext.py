"""How an encoder is trained without labels: hidden parts are rebuilt, and two views of an image are told from other images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.core.model import Loss


class Pretext(nn.Module):
    """Masked reconstruction (He et al. 2022, by convolutions) plus contrast (NT-Xent, Chen et al. 2020, equation 1).

    Views and masks are drawn outside, and decide what the encoder becomes blind to: for a measure of realism views may be shifted,
    cropped and mirrored, and never blurred, made noisy or changed in contrast.

    Args:
        encoder: with `maps`, `statistics` and `width`, such as `medgen.nn.encoder.Encoder`; what is kept.
        rebuilder: its maps -> image.
        temperature: of the contrast.
        weight: of the reconstruction beside the contrast.
    """

    def __init__(self, encoder: nn.Module, rebuilder: nn.Module, temperature: float = 0.2, weight: float = 10.0):
        super().__init__()
        self.encoder, self.rebuilder, self.temperature, self.weight = encoder, rebuilder, temperature, weight
        self.projector = nn.Sequential(
            nn.BatchNorm1d(encoder.width, affine=False), nn.Linear(encoder.width, 128), nn.ReLU(), nn.Linear(128, 64)
        )

    def loss(self, first: Tensor, second: Tensor, hidden: Tensor) -> Loss:
        """Two views (B, 1, *S) of B images; `hidden` (B, 1, *S) bool is what is to be rebuilt of the first."""
        contrast = self.contrast(first, second)
        rebuilding = self.rebuilding(first, hidden)
        return Loss(contrast + self.weight * rebuilding, {"contrast": contrast.detach(), "rebuilding": rebuilding.detach()})

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """Cross-entropy of finding each view's partner among all views; log(2 B - 1) by chance."""
        vectors = F.normalize(self.projector(self.encoder.statistics(torch.cat([first, second]))[:, 0]).float())
        logits = vectors @ vectors.T / self.temperature
        logits = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), float("-inf"))
        partners = torch.arange(len(logits), device=logits.device).roll(len(first))
        return F.cross_entropy(logits, partners)

    def rebuilding(self, image: Tensor, hidden: Tensor) -> Tensor:
        """Mean absolute error of what is hidden. It shows the mean of what is seen, and the difference from that is sought."""
        axes = tuple(range(1, image.ndim))
        mean = (image * ~hidden).sum(axes, keepdim=True) / (~hidden).sum(axes, keepdim=True).clamp(min=1)
        rebuilt = self.rebuilder(self.encoder.maps(torch.where(hidden, mean.to(image), image)))
        return (mean + rebuilt.float() - image).abs()[hidden].mean()
