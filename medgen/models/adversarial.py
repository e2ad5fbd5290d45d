"""Adversarial objectives and the gradient penalty, as values that any adversarial model takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus


class Objective(ABC):
    """What the critic and the generator minimise, given logits of any shape."""

    @abstractmethod
    def critic(self, real: Tensor, fake: Tensor) -> Tensor: ...

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor: ...


class NonSaturating(Objective):
    """Goodfellow et al. 2014, with the generator's -log D(fake)."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-real).mean() + softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return softplus(-fake).mean()


class Hinge(Objective):
    """Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17: on raw logits."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return relu(1 - real).mean() + relu(1 + fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class LeastSquares(Objective):
    """Mao et al. 2017, equation 9 (a = 0, b = c = 1)."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return ((real - 1).square().mean() + fake.square().mean()) / 2

    def generator(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean() / 2


@dataclass(frozen=True)
class R1:
    """weight / 2 E |grad critic(real)|^2 (Mescheder et al. 2018, equation 9), every `every` steps and scaled by it (Karras et al. 2020)."""

    weight: float = 10.0
    every: int = 16

    def __call__(self, critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
        return slope.square().flatten(1).sum(1).mean() * (self.weight / 2 * self.every)
