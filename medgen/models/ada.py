"""Adaptive augmentation of what a critic sees, so that it cannot learn a small training set by heart: Karras et al. 2020 (NeurIPS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.random import Rng

SIGN = "sign"  # the loss term that says how often the critic finds real images real


class BatchChanges(Protocol):
    """Random changes of a batch, each with its probability times p; differentiable in the images."""

    def apply_batch(self, images: Tensor, rng: Rng, p: float) -> Tensor: ...

    def apply_pair(self, images: Tensor, given: Tensor, rng: Rng, p: float) -> tuple[Tensor, Tensor]: ...


class View(NamedTuple):
    """What the critic is shown."""

    image: Tensor
    condition: Condition


class Adaptive(nn.Module):
    """Changes real and made images alike before the critic, with a probability p that follows the critic's overfitting.

    Its measure is the mean sign of the critic's output on real images (equation 1, r_t): around 0 the critic does not tell them from made
    ones, 1 means that it knows each. Every few steps p goes up where r_t exceeds `target` and down where it does not. While some images
    stay unchanged the generator has no reason to imitate the changes; the paper sees them leak from p of about 0.8 on, so watch p. A dense
    condition is moved with the image.

    Args:
        changes: such as `medgen.data.augment.changes.Changes`.
        target: of r_t.
        steps: in which p can go from 0 to 1. (The paper's 500,000 images are 7,800 steps of 64.)
        every: steps whose signs are averaged before p moves.
        start: the first p; with a large `steps`, nearly a constant.
    """

    def __init__(self, changes: BatchChanges, target: float = 0.6, steps: int = 4000, every: int = 4, start: float = 0.0):
        super().__init__()
        if not (0 <= start <= 1 and -1 < target < 1 and 1 <= every <= steps):
            raise MedgenError(
                f"expected 0 <= start <= 1, -1 < target < 1 and 1 <= every <= steps,"
                f" found start={start}, target={target}, every={every}, steps={steps}"
            )
        self.changes, self.target, self.steps, self.every = changes, float(target), int(steps), int(every)
        self.register_buffer("p", torch.tensor(float(start)))
        self.register_buffer("signs", torch.zeros(2))  # their sum since p moved, and how many steps it is of

    def forward(self, image: Tensor, condition: Condition, rng: Rng) -> View:
        """The critic's view of images (B, C, *S); each call takes new draws."""
        if condition.dense is None:
            return View(self.changes.apply_batch(image, rng, float(self.p)), condition)
        image, dense = self.changes.apply_pair(image, condition.dense, rng, float(self.p))
        return View(image, replace(condition, dense=dense))

    @torch.no_grad()
    def after_step(self, terms: Mapping[str, Tensor]) -> None:
        """Follow a step's mean sign, which is the same on all ranks."""
        sign = terms[SIGN].to(self.signs)
        if not torch.isfinite(sign):
            return
        self.signs += torch.stack([sign, torch.ones_like(sign)])
        if self.signs[1] >= self.every:
            direction = torch.sign(self.signs[0] / self.signs[1] - self.target)
            self.p += direction * (self.every / self.steps)
            self.p.clamp_(0, 1)
            self.signs.zero_()
