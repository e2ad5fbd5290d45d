"""Variational autoencoders: a family of their own, and the codecs of latent models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.model import Example, GenerativeModel, Loss, Moments, Phase
from medgen.core.random import Rng
from medgen.models.adversarial import Objective
from medgen.models.perceptual import Perceptual

LEAST_KL = 1e-3  # below, the likelihood's scale is far under an image's noise: the encoder fills the latent space as it likes


@dataclass
class Reconstruction:
    """What both phases of a step share."""

    moments: Moments
    image: Tensor
    judged: bool


class VAE(GenerativeModel):
    """Kingma and Welling 2014, with an L1 (Laplace) likelihood; with a small `kl` and a critic the codec of Rombach et al. 2022.

    Args:
        autoencoder: encode(x, condition) -> Moments, decode(z, size, condition) -> x, latent_shape.
        kl: weight of KL(q(z | x) || N(0, 1)), summed over the latent image and divided by the image's elements. At `kl` = b the loss is the
            negative evidence bound per element under a Laplace likelihood of scale b.
        perceptual: a weight-free distance beside L1, or None.
        critic: (image, condition) -> logits, or None.
        objective: adversarial objective of the critic.
        adversarial: weight of the generator's adversarial term.
        start: first step on which the critic learns and is asked.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        kl: float = 1e-3,
        perceptual: Perceptual | None = None,
        critic: nn.Module | None = None,
        objective: Objective | None = None,
        adversarial: float = 0.1,
        start: int = 0,
    ):
        super().__init__()
        if not callable(getattr(autoencoder, "encode", None)):
            kind = type(autoencoder).__name__
            raise MedgenError(f"VAE: a {kind} has no encode and decode; take an autoencoder, such as network=autoencoder")
        self.autoencoder, self.kl, self.perceptual = autoencoder, kl, perceptual
        self.critic, self.objective, self.adversarial, self.start = critic, objective, adversarial, start

    @property
    def phases(self) -> tuple[Phase, ...]:
        own = Phase("autoencoder", self.autoencoder, self.loss)
        return (own,) if self.critic is None else (own, Phase("critic", self.critic, self.critic_loss, start=self.start))

    @property
    def averaged(self) -> tuple[str, ...]:
        return ("autoencoder",)

    @property
    def caveat(self) -> str:
        if self.kl >= LEAST_KL:
            return ""
        return (
            f"this is a codec, an autoencoder with kl={self.kl:g}, and what its prior gives are no images: train a model in its space with"
            f" model=latent_diffusion codec=<this model>, or for samples from the prior a VAE (model=vae) with kl of at least {LEAST_KL:g}"
        )

    def preview(self, example: Example, rng: Rng) -> Tensor:
        """Samples, or the reconstruction of a codec, which is no generator."""
        if not self.caveat:
            return super().preview(example, rng)
        moments = self.autoencoder.encode(example.x, example.condition)
        return self.decode(moments.mean, example.x.shape[2:], example.condition).float()

    def begin(self, example: Example, rng: Rng) -> Reconstruction:
        moments = self.autoencoder.encode(example.x, example.condition)
        z = moments.draw(rng.normal(moments.mean.shape))
        image = self.autoencoder.decode(z, example.x.shape[2:], example.condition)
        return Reconstruction(moments, image.float(), self.critic is not None and rng.step >= self.start)

    def loss(self, example: Example, shared: Reconstruction) -> Loss:
        error = (shared.image - example.x).abs()
        distance = (error if example.weight is None else error * example.weight).mean()
        divergence = shared.moments.divergence().mean() / example.x[0].numel()
        total, terms = distance + self.kl * divergence, {"l1": distance.detach(), "kl": divergence.detach()}
        if self.perceptual is not None:
            seen = self.perceptual(shared.image, example.x)
            total, terms["perceptual"] = total + seen, seen.detach()
        if shared.judged:
            fooled = self.objective.generator(self.critic(shared.image, example.condition).float())
            total, terms["generator"] = total + self.adversarial * fooled, fooled.detach()
        return Loss(total, terms)

    def critic_loss(self, example: Example, shared: Reconstruction) -> Loss:
        real = self.critic(example.x, example.condition).float()
        fake = self.critic(shared.image.detach(), example.condition).float()
        total = self.objective.critic(real, fake)
        return Loss(total, {"critic": total.detach(), "real": real.detach().mean(), "fake": fake.detach().mean()})

    def sample(self, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        return self.decode(self.draw_latent(shape, rng), shape[2:], condition)

    def draw_latent(self, shape: tuple[int, ...], rng: Rng) -> Tensor:
        """z from the prior for images of `shape`."""
        return rng.normal(self.autoencoder.latent_shape(shape))

    def decode(self, z: Tensor, size: tuple[int, ...], condition: Condition) -> Tensor:
        """The image of a latent image."""
        return self.autoencoder.decode(z, size, condition)
