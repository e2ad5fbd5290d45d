"""Posterior samples from a prior that can denoise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.levels import Level
from medgen.core.model import Denoiser, GenerativeModel
from medgen.core.random import Rng


class Posterior:
    """Walks the prior's reverse process with a denoiser that also knows the measurement.

    Args:
        guidance: makes E[x | x_t, y] from E[x | x_t], such as `MomentMatching`.
        sampler: walks from noise to a sample.
    """

    def __init__(self, guidance: Callable[[Denoiser], Denoiser], sampler: Callable[..., Tensor]):
        self.guidance, self.sampler = guidance, sampler

    def __call__(self, model: GenerativeModel, condition: Condition, shape: tuple[int, ...], rng: Rng) -> Tensor:
        """Samples (B, C, *S) of p(x | condition.measurement).

        Raises:
            MedgenError: a model that cannot denoise, or a condition without measurement.
        """
        guided = self.guidance(denoiser_of(model, condition))

        def denoise(x: Tensor, level: Level) -> Tensor:
            return guided.denoise(x, level.alpha, level.sigma, condition)

        with standing_still(model):
            return self.sampler(denoise, shape, rng)


def denoiser_of(model: GenerativeModel, condition: Condition) -> Denoiser:
    """`model`, if posterior sampling can use it."""
    check_denoises(model)
    if condition.measurement is None:
        raise MedgenError("posterior sampling needs a measurement, and this condition has none")
    return model


def check_denoises(model: GenerativeModel) -> None:
    """Refuse a model without a denoiser of images."""
    if not callable(getattr(model, "denoise", None)):
        raise MedgenError(
            f"posterior sampling needs a prior that can denoise, and a {type(model).__name__} cannot; "
            "use a diffusion or flow model, or train a model for the reconstruction task"
        )


@contextmanager
def standing_still(model: nn.Module) -> Iterator[None]:
    """Within the context gradients go to the image alone."""
    moving = [p for p in model.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


def measured_noise(condition: Condition) -> Tensor:
    """(B,) standard deviation of the measurement's noise."""
    noise = condition.measurement.noise
    if noise is None or not bool((noise > 0).all()):
        raise MedgenError("the measurement's noise must be a positive standard deviation for every sample")
    return torch.as_tensor(noise)
