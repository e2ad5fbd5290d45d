"""Generative adversarial networks, conditional or not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.model import Example, GenerativeModel, Loss, Phase
from medgen.core.random import Rng
from medgen.models.adversarial import R1, Objective


@dataclass
class Fake:
    """The generator's output, computed once and used by both phases."""

    image: Tensor


class GAN(GenerativeModel):
    """A generator against a critic; with `reconstruction` > 0 and a dense condition this is pix2pix (Isola et al. 2017).

    Args:
        generator: (z, condition, size) -> image.
        critic: (image, condition) -> logits.
        objective: NonSaturating, Hinge or LeastSquares.
        penalty: R1 on real images, or None.
        latent: length of z (0: a deterministic generator).
        reconstruction: weight of the L1 distance to the target.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        objective: Objective,
        penalty: R1 | None = None,
        latent: int = 0,
        reconstruction: float = 0.0,
    ):
        super().__init__()
        self.generator, self.critic, self.objective = generator, critic, objective
        self.penalty, self.latent, self.reconstruction = penalty, latent, reconstruction

    @property
    def phases(self) -> tuple[Phase, ...]:
        critic = Phase("critic", self.critic, self.critic_loss)
        generator = Phase("generator", self.generator, self.generator_loss)
        if self.penalty is None:
            return critic, generator
        return critic, Phase("r1", self.critic, self.penalty_loss, every=self.penalty.every, optimizer="critic", validate=False), generator

    @property
    def averaged(self) -> tuple[str, ...]:
        return ("generator",)

    def begin(self, example: Example, rng: Rng) -> Fake:
        size = tuple(example.x.shape[2:])
        return Fake(self.generator(self._latent(len(example.x), rng), example.condition, size))

    def critic_loss(self, example: Example, shared: Fake) -> Loss:
        real = self.critic(example.x, example.condition).float()
        fake = self.critic(shared.image.detach(), example.condition).float()
        total = self.objective.critic(real, fake)
        return Loss(total, {"critic": total.detach(), "real": real.detach().mean(), "fake": fake.detach().mean()})

    def penalty_loss(self, example: Example, shared: Fake) -> Loss:
        total = self.penalty(lambda real: self.critic(real, example.condition), example.x)
        return Loss(total, {"r1": total.detach()})

    def generator_loss(self, example: Example, shared: Fake) -> Loss:
        adversarial = self.objective.generator(self.critic(shared.image, example.condition).float())
        terms = {"generator": adversarial.detach()}
        if not self.reconstruction:
            return Loss(adversarial, terms)
        error = (shared.image.float() - example.x).abs()
        distance = (error if example.weight is None else error * example.weight).mean()
        return Loss(adversarial + self.reconstruction * distance, terms | {"l1": distance.detach()})

    def sample(self, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        return self.generator(self._latent(shape[0], rng), condition, tuple(shape[2:]))

    def _latent(self, batch: int, rng: Rng) -> Tensor | None:
        return rng.normal((batch, self.latent)) if self.latent else None
