"""Generative adversarial networks, conditional or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.model import Example, GenerativeModel, Loss, Phase
from medgen.core.random import Rng
from medgen.models.ada import SIGN, Adaptive, View
from medgen.models.adversarial import R1, Objective


@dataclass
class Fake:
    """The generator's output, computed once and used by both phases, and what the critic sees of it and of the real images."""

    image: Tensor
    seen: View
    real: View


class GAN(GenerativeModel):
    """A generator against a critic; with `reconstruction` > 0 and a dense condition this is pix2pix (Isola et al. 2017).

    Args:
        generator: (z, condition, size) -> image.
        critic: (image, condition) -> logits.
        objective: NonSaturating, Hinge or LeastSquares.
        penalty: R1 on real images, or None.
        latent: length of z (0: a deterministic generator).
        reconstruction: weight of the L1 distance to the target.
        ada: changes what the critic sees, for small training sets; or None.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        objective: Objective,
        penalty: R1 | None = None,
        latent: int = 0,
        reconstruction: float = 0.0,
        ada: Adaptive | None = None,
    ):
        super().__init__()
        self.generator, self.critic, self.objective = generator, critic, objective
        self.penalty, self.latent, self.reconstruction, self.ada = penalty, latent, reconstruction, ada

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
        size, condition = tuple(example.x.shape[2:]), example.condition
        image = self.generator(self._latent(len(example.x), rng), condition, size)
        if self.ada is None:
            return Fake(image, View(image, condition), View(example.x, condition))
        return Fake(image, self.ada(image, condition, rng), self.ada(example.x, condition, rng))

    def critic_loss(self, example: Example, shared: Fake) -> Loss:
        real = self.critic(*shared.real).float()
        fake = self.critic(shared.seen.image.detach(), shared.seen.condition).float()
        total = self.objective.critic(real, fake)
        terms = {"critic": total.detach(), "real": real.detach().mean(), "fake": fake.detach().mean()}
        return Loss(total, terms if self.ada is None else terms | {SIGN: real.detach().sign().mean(), "p": self.ada.p.clone()})

    def penalty_loss(self, example: Example, shared: Fake) -> Loss:
        """On the images that the critic sees: with `ada` the changed ones, whose interpolation has no second derivative."""
        total = self.penalty(lambda real: self.critic(real, shared.real.condition), shared.real.image)
        return Loss(total, {"r1": total.detach()})

    def generator_loss(self, example: Example, shared: Fake) -> Loss:
        adversarial = self.objective.generator(self.critic(*shared.seen).float())
        terms = {"generator": adversarial.detach()}
        if not self.reconstruction:
            return Loss(adversarial, terms)
        error = (shared.image.float() - example.x).abs()
        distance = (error if example.weight is None else error * example.weight).mean()
        return Loss(adversarial + self.reconstruction * distance, terms | {"l1": distance.detach()})

    def after_step(self, step: int, terms: Mapping[str, Tensor]) -> None:
        if self.ada is not None:
            self.ada.after_step(terms)

    def sample(self, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        return self.generator(self._latent(shape[0], rng), condition, tuple(shape[2:]))

    def _latent(self, batch: int, rng: Rng) -> Tensor | None:
        return rng.normal((batch, self.latent)) if self.latent else None
