"""The contract between a generative principle and the one training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.random import Rng


@dataclass
class Example:
    """One training batch as a model sees it.

    Attributes:
        x: (B, C, *S) target in the contract's normalised units, or None where only the condition is known.
        condition: what is given.
        weight: broadcastable to `x`; masks padding and missing contrasts out of a loss.
        moments: what a codec's encoder makes of `x`, where it was computed before.
    """

    x: Tensor | None
    condition: Condition
    weight: Tensor | None = None
    moments: Moments | None = None


@dataclass
class Loss:
    """`total` is descended; `terms` are detached scalars for the log."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """One move of a training step: the parameters of `module` descend `loss(example, shared)`.

    Attributes:
        every: the phase runs on steps divisible by this number.
        start: the first step on which it runs.
        optimizer: phases with the same name share one optimizer (default: the phase's own name).
        validate: whether the loss is also computed, without gradients, on validation batches.
    """

    name: str
    module: nn.Module
    loss: Callable[[Example, Any], Loss]
    every: int = 1
    start: int = 0
    optimizer: str = ""
    validate: bool = True

    def due(self, step: int) -> bool:
        return step >= self.start and step % self.every == 0


class GenerativeModel(nn.Module, ABC):
    """A law p(x | condition) and how it is fitted. Knows nothing of data keys, optimizers or the number of dimensions."""

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The moves of one training step, in order."""

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of the sub-modules that make samples; the exponential moving average follows these."""
        return tuple(name for name, _ in self.named_children())

    @property
    def caveat(self) -> str:
        """Why `sample` makes no images such as the training set's, and what would, in a sentence; empty for a generator."""
        return ""

    def preview(self, example: Example, rng: Rng) -> Tensor:
        """What validation shows and scores beside `example.x`: samples, for a model that makes them."""
        return self.sample(example.condition, tuple(example.x.shape), rng)

    def prepare(self, examples: Iterable[Example]) -> None:
        """Called once before the first step of a run with the training cases in order: measure what the model keeps of the data."""

    def begin(self, example: Example, rng: Rng) -> Any:
        """Draw the step's noise and run the forwards that several phases share."""
        return None

    def after_step(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Called once after all phases of a step."""

    @abstractmethod
    def sample(self, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        """Draw x (B, C, *S) of `shape`, one sample per stream of `rng`."""


class Moments(NamedTuple):
    """A diagonal Gaussian over latent images: mean and log-variance (B, Z, *s)."""

    mean: Tensor
    log_variance: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """mean + std * noise."""
        return self.mean + (self.log_variance / 2).exp() * noise

    def divergence(self) -> Tensor:
        """(B,) KL to the standard normal, summed over the latent image: Kingma and Welling 2014, appendix B."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return terms.flatten(1).sum(1) / 2


class Codec(Protocol):
    """Images to latent images of about zero mean and unit spread, and back; `factor` pixels a side become one latent position."""

    factor: int

    def moments(self, x: Tensor) -> Moments: ...

    def draw(self, moments: Moments, noise: Tensor | None = None) -> Tensor: ...

    def decode(self, z: Tensor, size: tuple[int, ...]) -> Tensor: ...

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...


class Denoiser(Protocol):
    """A model that knows the mean of x given x_t = alpha x + sigma n, finite also at alpha = 0."""

    def denoise(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float, condition: Condition) -> Tensor: ...
