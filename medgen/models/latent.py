"""Any model in a codec's space."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.model import Codec, Example, GenerativeModel, Loss, Moments, Phase
from medgen.core.random import Rng


class KLCodec(nn.Module):
    """A trained autoencoder with the mean and spread of its latent images, measured on training data and kept here.

    Args:
        autoencoder: encode(x) -> Moments, decode(z, size) -> x, latent_shape, factor; its weights stand still.
    """

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        channels = autoencoder.latent
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("measured", torch.zeros((), dtype=torch.long))

    @property
    def factor(self) -> int:
        """Side of the cell of pixels or voxels that a latent position stands for."""
        return self.autoencoder.factor

    def train(self, mode: bool = True) -> KLCodec:
        return super().train(False)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.autoencoder.latent_shape(shape)

    @torch.no_grad()
    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, C, *S) -> standardised latent image (B, Z, *s): a draw where `noise` is given, the mean otherwise."""
        return self.draw(self.moments(x), noise)

    @torch.no_grad()
    def moments(self, x: Tensor) -> Moments:
        """What the autoencoder makes of x (B, C, *S), not standardised: what a cache keeps."""
        return self.autoencoder.encode(x)

    def draw(self, moments: Moments, noise: Tensor | None = None) -> Tensor:
        """Moments -> standardised latent image (B, Z, *s): a draw where `noise` is given, the mean otherwise."""
        z = moments.mean if noise is None else moments.draw(noise)
        return (z - _across(self.mean, z)) / _across(self.std, z)

    def decode(self, z: Tensor, size: tuple[int, ...]) -> Tensor:
        """Latent image -> (B, C, *size); gradients pass to z."""
        return self.autoencoder.decode(z * _across(self.std, z) + _across(self.mean, z), tuple(size))

    def measure(self, images: Iterable[Tensor]) -> int:
        """Set mean and spread per latent channel from images, one batch at a time; returns how many images there were."""
        return self.measure_moments(self.moments(x.to(self.mean.device)) for x in images)

    def measure_moments(self, batches: Iterable[Moments]) -> int:
        """Set mean and spread per latent channel from the moments of images, one batch at a time; returns how many images there were.

        The spread includes the posterior's own variance, so that draws, not means, have unit variance. Counts, means and squares are
        joined by Chan et al. 1979, equations 2.1.
        """
        count, mean, square, seen = 0.0, 0.0, 0.0, 0
        for moments in batches:
            m, v = (t.double().transpose(0, 1).flatten(1) for t in (moments.mean, moments.log_variance.exp()))
            n, gap = m.shape[1], m.mean(1) - mean
            square = square + m.var(1, correction=0) * n + v.sum(1) + gap**2 * count * n / (count + n)
            mean, count, seen = mean + gap * n / (count + n), count + n, seen + len(moments.mean)
        if not seen:
            raise MedgenError("the codec's latent statistics need at least one training image")
        self.mean.copy_(mean)
        self.std.copy_((square / count).sqrt())
        self.measured.fill_(seen)
        return seen


@dataclass
class Inside:
    """A step's example and shared forwards as the inner model sees them."""

    example: Example
    shared: Any


class Latent(GenerativeModel):
    """`model` on the latent images of `codec` (Rombach et al. 2022): phases, sampling and denoising are the inner model's.

    A dense condition of K channels reaches the inner model without loss, as K factor^d channels of the latent grid: averaging or
    interpolating a label map to cells of 4 voxels would lose the structures that are thinner than that.

    Args:
        model: any family, its network built for the codec's channels and for the dense condition's factor^d times as many.
        codec: images to standardised latent images and back.
    """

    def __init__(self, model: GenerativeModel, codec: Codec):
        super().__init__()
        self.model, self.codec = model, codec

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(replace(phase, loss=_inside(phase)) for phase in self.model.phases)

    @property
    def averaged(self) -> tuple[str, ...]:
        return tuple(f"model.{name}" for name in self.model.averaged)

    @property
    def sampler(self) -> Any:
        return self.model.sampler

    @sampler.setter
    def sampler(self, value: Any) -> None:
        self._inner_copy().sampler = value

    @property
    def guidance(self) -> Any:
        return self.model.guidance

    @guidance.setter
    def guidance(self, value: Any) -> None:
        self._inner_copy().guidance = value

    @property
    def drop(self) -> float:
        """How often the inner model was trained without its condition, which guidance needs."""
        return getattr(self.model, "drop", 0.0)

    def _inner_copy(self) -> GenerativeModel:
        """A copy of the inner model, so that another `Latent` of the same weights keeps its own sampler and guidance."""
        self._modules = dict(self._modules)
        self.model = copy(self.model)
        return self.model

    def prepare(self, examples: Iterable[Example]) -> None:
        """Measure the codec's latent statistics once, before the first step."""
        if not int(self.codec.measured):
            self.codec.measure_moments(self._moments(example) for example in examples)

    def begin(self, example: Example, rng: Rng) -> Inside:
        moments = self._moments(example)
        z = self.codec.draw(moments, rng.normal(moments.mean.shape))
        inner = Example(z, example.condition.celled(self.codec.factor))
        return Inside(inner, self.model.begin(inner, rng))

    def _moments(self, example: Example) -> Moments:
        """Those that come with the example, or else the encoder's."""
        return self.codec.moments(example.x) if example.moments is None else example.moments

    def after_step(self, step: int, terms: Any) -> None:
        self.model.after_step(step, terms)

    def sample(self, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        inner = self.codec.latent_shape(shape)
        z = self.model.sample(condition.celled(self.codec.factor), inner, rng)
        return self.codec.decode(z, shape[2:])


def _inside(phase: Phase) -> Any:
    def loss(example: Example, shared: Inside) -> Loss:
        return phase.loss(shared.example, shared.shared)

    return loss


def _across(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(1, -1, *(1 for _ in like.shape[2:]))
